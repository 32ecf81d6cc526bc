#!/bin/busybox sh
# shellcheck shell=dash
# Process 1 until the root file system is there: loads what a disk needs, mounts it, unpacks what is to be tested.
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
for module in virtio virtio_ring virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk; do
  $bb insmod "/modules/$module.ko"
done
# The disks need a moment after their driver.
until [ -b /dev/vda ] && [ -b /dev/vdb ] && [ -b /dev/vdc ]; do $bb usleep 20000; done
if ! { $bb mount -t ext4 -o noatime /dev/vda /root && $bb mkdir /root/ilot && $bb tar -xf /dev/vdb -C /root/ilot; }; then
  echo 'ilot: the root file system cannot be used'
  $bb poweroff -f
fi
for word in $($bb cat /proc/cmdline); do
  case $word in ilot.init=*) init=${word#*=} ;; esac
done
for dir in proc sys dev; do $bb mount --move /$dir /root/$dir; done
exec $bb switch_root /root "${init:-/ilot/plain.sh}"
