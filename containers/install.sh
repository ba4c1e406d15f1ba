#!/bin/sh
# Finishes the image magi: the console's metadata, compiled Python, and the volumes' folders.
set -eu
version="$1"
packages=/usr/lib/python3/dist-packages
mkdir -p "$packages/magi_llama_console-$version.dist-info"
printf 'Metadata-Version: 2.1\nName: magi-llama-console\nVersion: %s\n' "$version" \
  > "$packages/magi_llama_console-$version.dist-info/METADATA"
chmod 755 /usr/local/bin/magi-container
python3 -m compileall -q "$packages/magi_llama_console" "$packages/magi_container" \
  /usr/share/ansible/collections/ansible_collections/magi/llama/plugins
# A new volume takes its owner from the image.
mkdir -p /data /config/profiles /control /run/magi
# A file system in memory is mounted here, with this mode: when a container is started again, runc takes the folder's.
chmod 1777 /run/magi
chown -R 10001:10001 /data /config /control
chmod 700 /data /control
rm -f /tmp/install.sh
