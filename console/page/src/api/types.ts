// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

/** Shapes of the API: those of console/openapi.json by name. `npm run types` makes schema.ts out of it. */

import type { components } from './schema';

type Schemas = components['schemas'];

export type Answer = Pick<Schemas['Hosts'], 'as_of' | 'source'>;
export type AuditEntry = Schemas['AuditDocument'];
export type AuditList = Schemas['AuditList'];
export type Capacity = Schemas['Capacity'];
export type Fit = Schemas['Fit'];
export type Footprint = Schemas['Footprint'];
export type Host = Schemas['Host'];
export type HostCapacity = Schemas['HostCapacity'];
export type HostPlan = Schemas['HostPlan'];
export type Hosts = Schemas['Hosts'];
export type JobRequest = Schemas['JobRequest'];
export type Key = Schemas['Key'];
export type KeyList = Schemas['KeyList'];
export type Model = Schemas['Model'];
export type Models = Schemas['Models'];
export type Plan = Schemas['PlanDocument'];
export type PlanList = Schemas['PlanList'];
export type PlanRequest = Schemas['PlanRequest'];
export type PlannedServer = Schemas['PlannedServer'];
export type Problem = Schemas['ProblemDocument'];
export type Profile = Schemas['ProfileDocument'];
export type ProfileList = Schemas['ProfileList'];
export type SavedProfile = Schemas['SavedProfile'];
export type Server = Schemas['Server'];
export type ServerDetail = Schemas['ServerDetail'];
export type Servers = Schemas['Servers'];
export type Session = Schemas['SessionDocument'];
export type Stages = Schemas['Stages'];
export type Verb = JobRequest['verb'];

export type HostState = Host['state'];
export type JobState = Job['state'];

/** The result document of the job's playbook, of which the page reads the kind and a plan's hash, or a rollout. */
export interface JobResult {
  kind?: string;
  hash?: string | null;
}

export type Job = Omit<Schemas['JobDocument'], 'result'> & { result?: (JobResult & Partial<Rollout>) | null };

// The states of docs/schemas/status.schema.json; more may come, and are shown as they are called.
export type ServerState =
  | 'ready' | 'sleeping' | 'starting' | 'loading' | 'hung' | 'unhealthy' | 'wrong_identity' | 'running' | 'stopping'
  | 'restarting' | 'stopped' | 'failed' | 'absent' | 'unknown';

export interface HostCount {
  ok: number;
  changed: number;
  failed: number;
  unreachable: number;
}

export interface RolloutHost {
  state: 'updated' | 'unchanged' | 'planned' | 'failed' | 'untouched';
  seconds: number | null;
  total_servers: number | null;
  ready_servers: number | null;
  actions: Record<string, number>;
  task: string | null;
  error: string | null;
  rollback: string | null;
}

export interface Rollout {
  is_complete: boolean;
  updated: number;
  unchanged: number;
  planned: number;
  failed: number;
  untouched: number;
  seconds: number;
  hosts: Record<string, RolloutHost>;
}

/** An event of a run, as docs/events.md describes it. */
export interface MagiEvent {
  at: string;
  run: string;
  seq: number;
  type: string;
  check: boolean;
  host?: string;
  data: Record<string, unknown>;
}
