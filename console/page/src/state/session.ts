// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { computed, signal } from '@preact/signals';

/** What the signed-in token may do; null until the console has said so. */
export const role = signal<string | null>(null);
export const mayOperate = computed(() => role.value !== 'read');
