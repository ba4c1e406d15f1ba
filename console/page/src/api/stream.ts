// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { signal } from '@preact/signals';
import { apiUrl } from './client';
import type { Host, Job, MagiEvent, Server } from './types';

/** Since when the page shows old state; null while the stream is open. */
export const staleSince = signal<string | null>(null);

// What arrives is handed on a few times a second, not event by event: a burst costs one update of the page.
const HAND_ON_MS = 200;
// EventSource gives up when an answer is not a stream, for example while the console restarts behind a proxy.
const RETRY_MS = 3000;

/** What comes in a stream: events of runs, and what the console itself says of a job, a host or a server. */
export interface Arrived {
  events: MagiEvent[];
  jobs: Job[];
  hosts: (Partial<Host> & { name: string })[];
  servers: (Partial<Server> & { host: string; name: string })[];
}

const nothing = (): Arrived => ({ events: [], jobs: [], hosts: [], servers: [] });

export interface Follower {
  onArrived: (arrived: Arrived) => void;
  onOpen?: () => void;
  /** The job of the stream has ended: nothing more comes. */
  onEnd?: () => void;
  /** Whether its state is shown as that of the page. */
  isMain?: boolean;
}

/** Follow a stream until the returned function is called; EventSource resumes it by Last-Event-ID. */
export function follow(path: string, { onArrived, onOpen, onEnd, isMain = false }: Follower): () => void {
  let source: EventSource | undefined;
  let waiting = nothing();
  let timer: number | undefined;
  let retry: number | undefined;
  let isClosed = false;

  const handOn = (): void => {
    timer = undefined;
    const arrived = waiting;
    waiting = nothing();
    if (!isClosed) onArrived(arrived);
  };
  const receive = (list: keyof Arrived) => (message: MessageEvent<string>): void => {
    try {
      (waiting[list] as unknown[]).push(JSON.parse(message.data));
    } catch {
      return;
    }
    timer ??= window.setTimeout(handOn, HAND_ON_MS);
  };
  const close = (): void => {
    isClosed = true;
    window.clearTimeout(timer);
    window.clearTimeout(retry);
    source?.close();
  };
  const end = (): void => {
    handOn();
    close();
    onEnd?.();
  };
  const connect = (): void => {
    source = new EventSource(apiUrl(path), { withCredentials: true });
    source.addEventListener('message', receive('events'));
    source.addEventListener('job', receive('jobs'));
    source.addEventListener('host', receive('hosts'));
    source.addEventListener('server', receive('servers'));
    source.addEventListener('end', end);
    source.onopen = () => {
      if (isMain) staleSince.value = null;
      onOpen?.();
    };
    source.onerror = () => {
      if (isMain) staleSince.value ??= new Date().toISOString();
      if (source?.readyState === EventSource.CLOSED && !isClosed) {
        window.clearTimeout(retry);
        retry = window.setTimeout(connect, RETRY_MS);
      }
    };
  };
  connect();
  return close;
}
