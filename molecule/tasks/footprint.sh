#!/usr/bin/env bash
# Lists the files of a host: every path with its kind, mode, owner and target, files in /etc with their content and
# others with size and time. Excluded are files that the kernel, the boot, logs and package managers change, Ansible's
# own folders, and useradd's backups.
set -euo pipefail
left_out=(-false)
for path in /proc /sys /dev /run /tmp /var/tmp /var/log /var/lib/systemd /var/lib/private /var/lib/apt /var/lib/dpkg \
  /var/cache/apt /var/cache/debconf /var/cache/ldconfig /root/.ansible /root/.ansible_async '/etc/*-' /etc/.updated /var/.updated \
  /etc/ld.so.cache /etc/hosts /etc/hostname /etc/resolv.conf; do
  left_out+=(-o -path "$path")
done
find / -xdev \( "${left_out[@]}" \) -prune -o -path '/etc/*' -printf '%y %m %u:%g %p -> %l\n' \
  -o -type f -printf '%y %m %U:%G %s %T@ %p\n' -o -printf '%y %m %U:%G %p -> %l\n' | LC_ALL=C sort -k3
find /etc -xdev \( "${left_out[@]}" \) -prune -o -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum
