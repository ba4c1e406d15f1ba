#!/bin/sh
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Installs a controller from this bundle, without a network: sh install.sh [FOLDER]
set -eu
bundle=$(cd "$(dirname "$0")" && pwd)
folder=${1:-$HOME/magi-llama}
fail() { echo "install.sh: $1" >&2; exit 1; }

cd "$bundle"
sha256sum --check --quiet --strict SHA256SUMS || fail "a file differs from SHA256SUMS: copy the bundle again. Nothing was installed."
if [ -e "$folder" ] && [ -n "$(ls -A "$folder")" ] && ! [ -e "$folder/bundle.json" ]; then
  fail "$folder is not empty and was not made by install.sh: name another folder. Nothing was installed."
fi
machine=$(sed -n 's/.*"machine": "\(.*\)".*/\1/p' bundle.json)
[ "$machine" = "$(uname -m)" ] || fail "the bundle is for $machine, this is $(uname -m): make it on such a machine."

python=
for version in 3.14 3.13 3.12 3.11; do
  [ -e "requirements-$version.txt" ] || continue
  for candidate in ${PYTHON:-"python$version" python3}; do
    if "$candidate" -c "import ensurepip, sys, venv; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
      python=$candidate
      break 2
    fi
  done
done
[ -n "$python" ] || fail "no Python with the module venv that the bundle has wheels for ($(echo requirements-*.txt)): install one, or set PYTHON to it."

mkdir -p "$folder"
folder=$(cd "$folder" && pwd)
cp bundle.json "$folder/"
"$python" -m venv --clear "$folder/venv"
"$folder/venv/bin/python" -m pip --quiet --isolated --disable-pip-version-check install --no-index --find-links wheels \
  --require-hashes --requirement "requirements-$version.txt"
ANSIBLE_COLLECTIONS_PATH=$folder/collections "$folder/venv/bin/ansible-galaxy" collection install --offline --force \
  -p "$folder/collections" "$bundle"/magi-llama-[0-9]*.tar.gz >/dev/null
for name in llama-server models; do
  [ ! -e "$name" ] || { mkdir -p "$folder/$name" && cp "$name"/* "$folder/$name/"; }
done
cat <<END
installed  $folder, with $("$folder/venv/bin/ansible-playbook" --version | sed -n 1p)
use        export ANSIBLE_COLLECTIONS_PATH=$folder/collections
           $folder/venv/bin/ansible-playbook -i INVENTORY magi.llama.site
END
for archive in "$folder"/llama-server/*; do
  [ ! -e "$archive" ] || cat <<END
hosts      runtime_install_method: release
           runtime_release_sha256: $(sha256sum "$archive" | cut -c 1-64)
           runtime_release_url: the address of $archive, file:// for a copy on the host
END
done
[ ! -e "$folder/models" ] || echo "manifest   copy $folder/models next to the inventory"
