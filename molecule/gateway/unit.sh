#!/bin/bash
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# The gateway's unit as systemd sees it, a line each: enabled, active (ours, the package's), exposure, users.
systemctl is-enabled magi-llama-gateway haproxy
systemctl is-active magi-llama-gateway haproxy
systemd-analyze security --no-pager magi-llama-gateway | tail -n 1
ps -o user= -C haproxy | sort -u
