// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import type { HostState, JobState, ServerState } from '../api/types';

export type Tone = 'ok' | 'busy' | 'warn' | 'bad' | 'off';
type AnyState = ServerState | HostState | JobState | 'updated' | 'unchanged' | 'planned' | 'untouched';

const TONES: Record<AnyState, Tone> = {
  ready: 'ok', ok: 'ok', finished: 'ok', updated: 'ok', unchanged: 'off',
  starting: 'busy', loading: 'busy', running: 'busy', stopping: 'busy', restarting: 'busy', planned: 'busy',
  hung: 'warn', unhealthy: 'warn', degraded: 'warn', wrong_identity: 'bad', failed: 'bad', unreachable: 'bad', lost: 'bad',
  sleeping: 'off', stopped: 'off', absent: 'off', unknown: 'off', queued: 'off', cancelled: 'off', untouched: 'off',
};
const WORDS: Partial<Record<AnyState, string>> = { wrong_identity: 'wrong identity' };

// Each tone has a shape of its own, so that state can be read without colour.
const SHAPES: Record<Tone, string> = {
  ok: 'M6 1a5 5 0 1 1 0 10A5 5 0 0 1 6 1Z',
  busy: 'M6 1.8a4.2 4.2 0 1 0 0 8.4a4.2 4.2 0 0 0 0-8.4ZM6 .4a5.6 5.6 0 1 1 0 11.2A5.6 5.6 0 0 1 6 .4ZM6 3v6a3 3 0 0 0 0-6Z',
  warn: 'M6 .9 11.6 11H.4Z',
  bad: 'M2.4 1 6 4.6 9.6 1 11 2.4 7.4 6 11 9.6 9.6 11 6 7.4 2.4 11 1 9.6 4.6 6 1 2.4Z',
  off: 'M6 2.2a3.8 3.8 0 1 0 0 7.6a3.8 3.8 0 0 0 0-7.6ZM6 1a5 5 0 1 1 0 10A5 5 0 0 1 6 1Z',
};

export const toneOf = (state: string): Tone => TONES[state as AnyState] ?? 'off';

export function Icon({ tone }: { tone: Tone }) {
  return (
    <svg class={`icon ${tone}`} viewBox="0 0 12 12" width="12" height="12" aria-hidden="true">
      <path fill-rule="evenodd" d={SHAPES[tone]} />
    </svg>
  );
}

export function State({ state, note }: { state: string; note?: string | undefined }) {
  const tone = toneOf(state);
  return (
    <span class={`state ${tone}`}>
      <Icon tone={tone} />
      <span>{WORDS[state as AnyState] ?? state}{note ? ` ${note}` : ''}</span>
    </span>
  );
}
