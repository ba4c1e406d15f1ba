#!/bin/sh
# Installs the packages of a list that are missing, removes what a container does not need, and adds the user 10001.
set -eu
missing=""
while read -r package; do
  dpkg-query -W -f '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done < "$1"
if [ -n "$missing" ]; then
  # The packages' services are not wanted.
  printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
  chmod 755 /usr/sbin/policy-rc.d
  apt-get -qq update
  # shellcheck disable=SC2086
  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $missing >/dev/null
  rm -f /usr/sbin/policy-rc.d
fi
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/log/* /tmp/packages.txt /tmp/system.sh /usr/share/man \
  /usr/share/locale /usr/share/ieee-data /var/lib/ieee-data
find /usr/share/doc -type f ! -name copyright -delete
# Keys of a host are not part of an image.
rm -f /etc/ssh/ssh_host_*
grep -q '^magi:' /etc/passwd || {
  echo 'magi:x:10001:10001::/tmp:/bin/sh' >> /etc/passwd
  echo 'magi:x:10001:' >> /etc/group
}
mkdir -p /models
