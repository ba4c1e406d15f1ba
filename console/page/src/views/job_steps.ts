// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import type { HostCount, MagiEvent, Rollout } from '../api/types';
import { duration } from '../format';
import type { Tone } from '../ui/state';

export interface Step {
  at: string;
  text: string;
  tone: Tone;
  fix?: string;
  /** It replaces the previous step if that has the same one. */
  topic?: string;
}

/** The lock of another run that a host waits for. */
export interface LockWait {
  holder: string;
  since: string;
}

export interface HostSteps {
  state: 'running' | 'ok' | 'failed' | 'unreachable';
  counts: string;
  steps: Step[];
  lock: LockWait | null;
}

/** The hosts that a play or a batch of it began with. */
export interface Play {
  name: string;
  at: string;
  check: boolean;
  hosts: string[];
}

export interface Steps {
  plays: readonly Play[];
  rollout: Rollout | null;
  hosts: Map<string, HostSteps>;
  lines: readonly string[];
  /** The same lines by host; those of the run itself have an empty name. */
  linesOf: ReadonlyMap<string, readonly string[]>;
  task: string;
}

const MAX_LINES = 2000;

export const newSteps = (): Steps => ({ hosts: new Map(), lines: [], linesOf: new Map(), task: '', plays: [], rollout: null });

const text = (value: unknown): string => (value === null || value === undefined ? '' : String(value));

/** What an event says about its host; null for those that say nothing to people. */
function stepOf({ type, at, data, check }: MagiEvent): Step | null {
  const fix = text(data['fix']);
  const made = (tone: Tone, words: string): Step => ({ at, text: words, tone, ...(fix ? { fix } : {}) });
  const seconds = typeof data['seconds'] === 'number' ? ` after ${duration(data['seconds'])}` : '';
  switch (type) {
    case 'plan': return made('busy', `planned${summaryOf(data['plan'])}`);
    case 'status': return made('off', `status${readyOf(data['status'])}`);
    case 'server_ready': return made('ok', `${text(data['server'])} ${check ? 'would be started' : `is ready${seconds}`}`);
    case 'server_failed': return made('bad', `${text(data['server'])} failed${seconds}: ${text(data['reason'])}`);
    case 'server_stopped': return made('off', `${text(data['server'])} stopped`);
    case 'drained': return made('busy', `${text(data['server'])} drained${seconds}`);
    case 'lock_waited': {
      const waits = data['has_lock'] === true ? `waited ${duration(data['seconds'] as number)}` : 'waits';
      return { ...made('warn', `${waits} for the lock of ${text(data['holder'])}`), topic: 'lock' };
    }
    case 'task_failed': return made('bad', `${text(data['task'])}: ${text(data['msg'])}`);
    case 'unreachable': return made('bad', `unreachable: ${text(data['msg'])}`);
    case 'warning': return made('warn', text(data['text']));
    default: return null;
  }
}

function summaryOf(plan: unknown): string {
  const servers = (plan as { servers?: { action?: string }[] } | null)?.servers ?? [];
  const actions = new Map<string, number>();
  for (const { action = 'keep' } of servers) actions.set(action, (actions.get(action) ?? 0) + 1);
  const parts = [...actions].map(([action, n]) => `${n} ${action}`);
  return parts.length === 0 ? '' : `: ${parts.join(', ')}`;
}

function readyOf(status: unknown): string {
  const { ready_servers: ready, total_servers: total } = (status ?? {}) as Record<string, unknown>;
  return typeof ready === 'number' ? `: ${ready} of ${text(total)} ready` : '';
}

function ended(hosts: Map<string, HostSteps>, counts: Record<string, HostCount>): void {
  for (const [name, n] of Object.entries(counts)) {
    const known = hosts.get(name) ?? { state: 'ok', counts: '', steps: [], lock: null };
    const state = n.unreachable > 0 ? 'unreachable' : n.failed > 0 ? 'failed' : 'ok';
    hosts.set(name, { ...known, state, counts: `(${n.changed} changed)`, lock: null });
  }
}

/** The lock that a host waits for after an event. */
function lockAfter({ type, data }: MagiEvent, old: LockWait | null): LockWait | null {
  if (type === 'task_failed' || type === 'unreachable') return null;
  if (type !== 'lock_waited') return old;
  return data['has_lock'] === true ? null : { holder: text(data['holder']), since: text(data['since']) };
}

/** A rollout's document comes host by host, and once for all at the end. */
function withRollout(old: Rollout | null, found: Rollout): Rollout {
  return { ...found, hosts: { ...old?.hosts, ...found.hosts } };
}

/** Add events to what is shown; returns a new value, with the hosts that did not change as they were. */
export function foldSteps(old: Steps, events: MagiEvent[]): Steps {
  const hosts = new Map(old.hosts);
  const lines: string[] = [];
  const linesOf = new Map(old.linesOf);
  let { task, plays, rollout } = old;
  for (const event of events) {
    const { type, host, data } = event;
    if (type === 'line') {
      const said = text(data['text']).split('\n');
      lines.push(...said);
      linesOf.set(host ?? '', [...linesOf.get(host ?? '') ?? [], ...said].slice(-MAX_LINES));
    } else if (type === 'warning' && !host) lines.push(`warning: ${text(data['text'])}`);
    else if (type === 'play_started') {
      plays = [...plays, { name: text(data['name']), at: event.at, check: event.check, hosts: (data['hosts'] ?? []) as string[] }];
    } else if (type === 'rollout') rollout = withRollout(rollout, data['rollout'] as Rollout);
    else if (type === 'task_started') task = text(data['name']);
    else if (type === 'run_ended') {
      task = '';
      ended(hosts, (data['hosts'] ?? {}) as Record<string, HostCount>);
    }
    const step = host ? stepOf(event) : null;
    if (!host || !step) continue;
    const known: HostSteps = hosts.get(host) ?? { state: 'running', counts: '', steps: [], lock: null };
    const state = type === 'unreachable' ? 'unreachable' : type === 'task_failed' || type === 'server_failed' ? 'failed' : known.state;
    const before = step.topic && known.steps.at(-1)?.topic === step.topic ? known.steps.slice(0, -1) : known.steps;
    hosts.set(host, { ...known, state, steps: [...before, step], lock: lockAfter(event, known.lock) });
  }
  return { hosts, lines: lines.length === 0 ? old.lines : [...old.lines, ...lines].slice(-MAX_LINES), linesOf, task, plays, rollout };
}
