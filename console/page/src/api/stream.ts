// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { signal } from '@preact/signals';
import { apiUrl } from './client';
import type { MagiEvent } from './types';

/** Since when the page shows old state; null while the stream is open. */
export const staleSince = signal<string | null>(null);

// Events may carry their type as the name of the message as well; unnamed ones are "message".
const NAMES = [
  'message', 'run_started', 'play_started', 'task_started', 'plan', 'status', 'server_ready', 'server_failed',
  'server_stopped', 'drained', 'lock_waited', 'line', 'warning', 'task_failed', 'unreachable', 'registry', 'rollout',
  'run_ended', 'server', 'host', 'job',
];
// What arrives is handed on a few times a second, not event by event: a burst costs one update of the page.
const HAND_ON_MS = 200;
// EventSource gives up when an answer is not a stream, for example while the console restarts behind a proxy.
const RETRY_MS = 3000;

/** Follow a stream of events until the returned function is called; EventSource resumes it by Last-Event-ID. */
export function follow(path: string, onEvents: (events: MagiEvent[]) => void, onOpen?: () => void, main = false): () => void {
  let source: EventSource | undefined;
  let waiting: MagiEvent[] = [];
  let timer: number | undefined;
  let retry: number | undefined;
  let closed = false;

  const handOn = (): void => {
    timer = undefined;
    const events = waiting;
    waiting = [];
    if (events.length > 0 && !closed) onEvents(events);
  };
  const receive = (message: MessageEvent<string>): void => {
    try {
      waiting.push(JSON.parse(message.data) as MagiEvent);
    } catch {
      return;
    }
    timer ??= window.setTimeout(handOn, HAND_ON_MS);
  };
  const connect = (): void => {
    source = new EventSource(apiUrl(path), { withCredentials: true });
    for (const name of NAMES) source.addEventListener(name, receive);
    source.onopen = () => {
      if (main) staleSince.value = null;
      onOpen?.();
    };
    source.onerror = () => {
      if (main) staleSince.value ??= new Date().toISOString();
      if (source?.readyState === EventSource.CLOSED && !closed) {
        window.clearTimeout(retry);
        retry = window.setTimeout(connect, RETRY_MS);
      }
    };
  };
  connect();
  return () => {
    closed = true;
    window.clearTimeout(timer);
    window.clearTimeout(retry);
    source?.close();
  };
}
