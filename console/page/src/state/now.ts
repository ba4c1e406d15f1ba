// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { signal } from '@preact/signals';

/** The time for ages that are shown; it moves every five seconds, which is enough for them. */
export const now = signal(Date.now());
window.setInterval(() => {
  now.value = Date.now();
}, 5000);
