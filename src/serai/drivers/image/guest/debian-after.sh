#!/bin/sh
# mmdebstrap's customize hook for the Debian guest: boot loader's menu, mounts, cloud-init, and nothing that would make
# two VMs of this image alike.   debian-after.sh ROOT FILESYSTEM-UUID
set -eu
root=$1
uuid=$2

mkdir -p "$root/boot/grub"
# /vmlinuz and /initrd.img are links that Debian keeps at the newest kernel, so an upgrade needs no update-grub.
cat >"$root/boot/grub/grub.cfg" <<END
set timeout=0
set default=0
set fallback=1
menuentry "Debian" {
    linux /vmlinuz root=UUID=$uuid ro net.ifnames=0 console=tty0 console=ttyS0,115200 quiet
    initrd /initrd.img
}
menuentry "Debian, previous kernel" {
    linux /vmlinuz.old root=UUID=$uuid ro net.ifnames=0 console=tty0 console=ttyS0,115200
    initrd /initrd.img.old
}
END
echo "UUID=$uuid / ext4 defaults,errors=remount-ro 0 1" >"$root/etc/fstab"

cat >"$root/etc/cloud/cloud.cfg.d/90-serai.cfg" <<END
# The seed disk is the only source; without one the guest still comes up.
datasource_list: [NoCloud, None]
system_info:
  network:
    renderers: [networkd]
# RSA keys take many seconds to make where there is no KVM.
ssh_genkeytypes: [ed25519, ecdsa]
manage_etc_hosts: localhost
# C.UTF-8 is what there is; to change it needs the package locales.
locale: false
# Debian's lists without what only other clouds, desktops and configuration managers need.
cloud_init_modules: [seed_random, bootcmd, write-files, growpart, resizefs, disk_setup, mounts, set_hostname,
  update_hostname, update_etc_hosts, ca-certs, users-groups, ssh]
cloud_config_modules: [ssh-import-id, keyboard, locale, set-passwords, apt-configure, ntp, timezone, runcmd]
cloud_final_modules: [package-update-upgrade-install, write-files-deferred, scripts-vendor, scripts-per-once,
  scripts-per-boot, scripts-per-instance, scripts-user, phone-home, final-message, power-state-change]
END

# A processor that is plugged in is used at once.
echo 'ACTION=="add", SUBSYSTEM=="cpu", ATTR{online}=="0", ATTR{online}="1"' >"$root/etc/udev/rules.d/70-serai-cpu.rules"

# A card without an answer from DHCP must not hold the boot up for two minutes.
mkdir -p "$root/etc/systemd/system/systemd-networkd-wait-online.service.d"
printf '[Service]\nExecStart=\nExecStart=/lib/systemd/systemd-networkd-wait-online --any --timeout=20\n' \
    >"$root/etc/systemd/system/systemd-networkd-wait-online.service.d/serai.conf"
chroot "$root" systemctl -q enable systemd-networkd.service
# LVM snapshots to check, and package lists that nobody reads: only load, in every VM's first minute.
chroot "$root" systemctl -q disable e2scrub_reap.service e2scrub_all.timer apt-daily.timer apt-daily-upgrade.timer
chroot "$root" passwd -q -l root

# cloud-init makes each VM's own.
rm -f "$root"/etc/ssh/ssh_host_*
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
echo localhost >"$root/etc/hostname"
# Packages installed in the guest later bring their documentation.
rm -f "$root/etc/dpkg/dpkg.cfg.d/99mmdebstrap" "$root/etc/apt/apt.conf.d/99mmdebstrap"
rm -rf "$root"/var/log/*.log "$root"/var/log/apt/* "$root"/var/cache/ldconfig/* "$root"/var/lib/cloud/*
# All that systemd would bring up to date at a first boot was done as the packages were installed.
touch -r "$root/usr" "$root/etc/.updated" "$root/var/.updated"
