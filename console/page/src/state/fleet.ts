// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { batch, computed, signal, type Signal } from '@preact/signals';
import { api } from '../api/client';
import type { Arrived } from '../api/stream';
import type { Answer, Host, MagiEvent, Server, ServerState } from '../api/types';

/** A server as the page shows it: what the API says, and its last rates for the sparkline. */
export interface LiveServer extends Server {
  history: readonly number[];
}

const HISTORY = 30;

export const serverKey = (host: string, name: string): string => `${host}/${name}`;

// One signal for each host and server: a change renders one row and nothing else.
const hosts = new Map<string, Signal<Host>>();
const servers = new Map<string, Signal<LiveServer>>();
export const hostNames = signal<readonly string[]>([]);
export const serverKeys = signal<readonly string[]>([]);
export const answer = signal<Answer | null>(null);
export const loadError = signal<unknown>(null);

export const hostSignal = (name: string): Signal<Host> | undefined => hosts.get(name);
export const serverSignal = (key: string): Signal<LiveServer> | undefined => servers.get(key);
export const keysOfHost = computed(() => {
  const byHost = new Map<string, string[]>();
  for (const key of serverKeys.value) {
    const host = servers.get(key)?.peek().host ?? '';
    byHost.set(host, [...(byHost.get(host) ?? []), key]);
  }
  return byHost;
});

const natural = new Intl.Collator('en', { numeric: true }).compare;
const isSame = (a: unknown, b: unknown): boolean =>
  a === b || (typeof a === 'object' && typeof b === 'object' && JSON.stringify(a) === JSON.stringify(b));

function changed<T extends object>(old: T, patch: Partial<T>): boolean {
  return (Object.keys(patch) as (keyof T)[]).some((key) => !isSame(old[key], patch[key]));
}

const withRate = (history: readonly number[], value: number | null | undefined): readonly number[] =>
  typeof value === 'number' ? [...history.slice(1 - HISTORY), value] : history;

function patchServer(key: string, patch: Partial<Server>): void {
  const known = servers.get(key);
  if (!known) {
    refreshSoon();
    return;
  }
  const old = known.peek();
  if (!changed(old, patch)) return;
  const history = 'tokens_per_second' in patch ? withRate(old.history, patch.tokens_per_second) : old.history;
  known.value = { ...old, ...patch, history };
}

function patchHost(name: string, patch: Partial<Host>): void {
  const known = hosts.get(name);
  if (!known) refreshSoon();
  else if (changed(known.peek(), patch)) known.value = { ...known.peek(), ...patch };
}

function replaceAll(newHosts: Host[], newServers: Server[]): void {
  batch(() => {
    const names = newHosts.map((host) => host.name).sort(natural);
    for (const host of newHosts) {
      const known = hosts.get(host.name);
      if (!known) hosts.set(host.name, signal(host));
      else if (changed(known.peek(), host)) known.value = host;
    }
    const keys: string[] = [];
    for (const server of newServers) {
      const key = serverKey(server.host, server.name);
      keys.push(key);
      const known = servers.get(key);
      if (!known) servers.set(key, signal({ ...server, history: withRate([], server.tokens_per_second) }));
      else if (changed<Server>(known.peek(), server)) {
        known.value = { ...server, history: withRate(known.peek().history, server.tokens_per_second) };
      }
    }
    keys.sort(natural);
    const gone = new Set(keys);
    for (const key of servers.keys()) if (!gone.has(key)) servers.delete(key);
    if (!isSame(keys, serverKeys.peek())) serverKeys.value = keys;
    if (!isSame(names, hostNames.peek())) hostNames.value = names;
  });
}

export async function refresh(): Promise<void> {
  try {
    const [hostAnswer, serverAnswer] = await Promise.all([api.hosts(), api.servers()]);
    replaceAll(hostAnswer.hosts, serverAnswer.servers);
    answer.value = { as_of: hostAnswer.as_of, source: hostAnswer.source };
    loadError.value = null;
  } catch (error) {
    loadError.value = error;
  }
}

let timer: number | undefined;
/** Ask again, once for all that happens within a second. */
export function refreshSoon(): void {
  timer ??= window.setTimeout(() => {
    timer = undefined;
    void refresh();
  }, 1000);
}

const OUTCOMES: Record<string, ServerState> = { server_ready: 'ready', server_failed: 'failed', server_stopped: 'stopped' };

type Data = Record<string, unknown>;

const OWN: ReadonlySet<string> = new Set(['host', 'name', 'history']);

const isValue = (name: string, value: unknown): boolean => !OWN.has(name) && (value === null || typeof value !== 'object');

function foldStatus(host: string, status: Data): void {
  const listed = Array.isArray(status['servers']) ? (status['servers'] as Partial<Server>[]) : [];
  for (const server of listed) {
    const key = serverKey(host, server.name ?? '');
    const known = servers.get(key)?.peek();
    // A status has more keys than a row; only those that the row has are taken, never those that say which row it is.
    if (!known) refreshSoon();
    else patchServer(key, Object.fromEntries(Object.entries(server).filter(([name, value]) => name in known && isValue(name, value))));
  }
}

function fold(event: MagiEvent): void {
  const { type, host, data } = event;
  if (event.check) return; // A preview never says what is deployed.
  if (type in OUTCOMES && host) {
    const state = OUTCOMES[type] ?? 'unknown';
    const reason = (data['reason'] as string | null | undefined) ?? null;
    const fix = (data['fix'] as string | null | undefined) ?? null;
    patchServer(serverKey(host, String(data['server'])), { state, is_ready: state === 'ready', reason, fix });
    refreshSoon();
  } else if (type === 'status' && host) foldStatus(host, (data['status'] ?? {}) as Data);
  else if (type === 'run_ended' || type === 'unreachable' || type === 'run_started') refreshSoon();
}

/** Take what came in the stream into what is shown. */
export function foldFleet({ events, hosts: changedHosts, servers: changedServers }: Arrived): void {
  batch(() => {
    for (const event of events) fold(event);
    for (const server of changedServers) patchServer(serverKey(server.host, server.name), server);
    for (const host of changedHosts) patchHost(host.name, host);
  });
}
