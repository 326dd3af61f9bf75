#!/bin/sh
# mmdebstrap's essential hook for the Debian guest: what must be known before the kernel's package makes its initramfs.
set -eu
root=$1
mkdir -p "$root/etc/initramfs-tools/conf.d"
# Only what finds the root file system of a virtual machine: a quarter of the size, and of the time to unpack it.
printf 'MODULES=list\nCOMPRESS=zstd\n' >"$root/etc/initramfs-tools/conf.d/serai"
printf '%s\n' virtio_pci virtio_blk virtio_scsi sd_mod ext4 >"$root/etc/initramfs-tools/modules"
