#!/bin/sh
# PID 1 of the tiny guest: modules, addresses from the kernel command line, then seraiguest and a shell on the console.
#   serai.ip=10.77.0.100/24   serai.gw=10.77.0.1   serai.mem=RATE:SIZE (MB/s, MB)
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
while read -r module; do insmod "/modules/$module" 2>/dev/null; done </modules/order
ip link set lo up
set -- $(cat /proc/cmdline)
for word; do
    case $word in
        serai.ip=*) address=${word#serai.ip=} ;;
        serai.gw=*) gateway=${word#serai.gw=} ;;
        serai.mem=*) memory=${word#serai.mem=} ;;
    esac
done
if [ -e /sys/class/net/eth0 ]; then
    ip link set eth0 up
    [ -z "$address" ] || ip addr add "$address" dev eth0
    [ -z "$gateway" ] || ip route add default via "$gateway"
    [ -z "$address" ] || arping -q -c 1 -U -I eth0 "${address%/*}" &
fi
seraiguest ${memory%:*} ${memory#*:} </dev/null >/dev/console 2>&1 &
echo "serai: tiny guest up" >/dev/console
while :; do setsid -c sh </dev/ttyS0 >/dev/ttyS0 2>&1; sleep 1; done
