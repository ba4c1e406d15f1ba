#!/bin/bash
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# The console's units as systemd sees them, a line each: exposure of the console, of a job; the console's user; whether that
# user may stop another unit.
for unit in magi-llama-console.service magi-llama-console-job@.service; do
  systemd-analyze security --no-pager "$unit" | grep -oE 'level for .*: [0-9.]+' | grep -oE '[0-9.]+$'
done
systemctl show --property=User --value magi-llama-console
if runuser --user=magi-llama-console -- systemctl --no-ask-password stop ssh.service 2>/dev/null; then echo stopped; else echo refused; fi
