#!/bin/sh
# First process of a systemd test host: makes the container a machine, then becomes systemd.
set -eu

# Docker's bind mounts cannot be replaced by a rename, as Ansible does it: plain files instead.
umount /etc/hosts /etc/hostname /etc/resolv.conf
rm -f /.dockerenv
[ -s /etc/hostname ] || uname -n >/etc/hostname
[ -s /etc/hosts ] || printf '127.0.0.1\tlocalhost\n127.0.1.1\t%s\n' "$(uname -n)" >/etc/hosts
[ -s /etc/resolv.conf ] || cp /usr/local/lib/test-host/resolv.conf /etc/resolv.conf

# The kernel's own boot_id stays the same when a container starts again.
cat /proc/sys/kernel/random/uuid >/run/boot_id
mount --bind /run/boot_id /proc/sys/kernel/random/boot_id

# Time is not a container's own: who sets it here would set it for all.
export container=docker
exec setpriv --bounding-set=-sys_time --inh-caps=-sys_time /sbin/init
