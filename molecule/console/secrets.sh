#!/bin/bash
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Fails where a secret is in what the console writes, or where others may look into its folders.
state=/var/lib/magi-llama-console
test -s "$state/console.db" || exit 1
if grep -rlE 'PRIVATE KEY|password-of-the|text-of-the-vault|token-of-the' "$state" /etc/systemd/system/magi-llama-console*; then
  exit 1
fi
for folder in "$state" /etc/magi-llama-console; do
  if setpriv --reuid=65534 --clear-groups ls "$folder" 2>/dev/null; then exit 1; fi
done
