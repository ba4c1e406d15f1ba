#!/bin/bash
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Fails where a removed console has left something.
for path in /var/lib/magi-llama-console /opt/magi-llama-console /etc/magi-llama-console \
  /etc/systemd/system/magi-llama-console* /etc/polkit-1/rules.d/50-magi-llama-console.rules; do
  if test -e "$path"; then echo "$path"; exit 1; fi
done
if systemctl list-units --all --plain --no-legend 'magi-llama-console*' | grep .; then exit 1; fi
