// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

/** Shapes of the API, as docs/console.md and console/openapi.json describe them. Sizes are bytes, times RFC 3339. */

export type ServerState =
  | 'ready' | 'sleeping' | 'starting' | 'loading' | 'hung' | 'unhealthy' | 'wrong_identity' | 'running' | 'stopping'
  | 'restarting' | 'stopped' | 'failed' | 'absent' | 'unknown';
export type HostState = 'ok' | 'degraded' | 'failed' | 'unreachable' | 'unknown';
export type JobState = 'queued' | 'running' | 'finished' | 'failed' | 'cancelled' | 'lost';
export type Source = 'events' | 'sweep' | 'gateway' | 'status' | 'none';
export type Verb =
  | 'site' | 'plan' | 'start' | 'stop' | 'restart' | 'status' | 'verify' | 'rollout' | 'rollback' | 'scan';

export interface Answer {
  as_of: string | null;
  source: Source;
}

export interface Memory {
  total: number | null;
  free: number | null;
  planned: number | null;
}

export interface Gpu extends Memory {
  index: number;
  name: string;
}

export interface Host {
  name: string;
  address: string | null;
  groups: string[];
  state: HostState;
  stale_since: string | null;
  servers_total: number;
  servers_ready: number;
  ram: Memory | null;
  gpus: Gpu[];
  drift: string[] | null;
  drift_since: string | null;
  profile: string | null;
  lock: { holder: string; since: string | null } | null;
  job: string | null;
}

export interface Server {
  host: string;
  name: string;
  model_id: string;
  display_name: string | null;
  tier: string | null;
  port: number | null;
  pid: number | null;
  state: ServerState;
  is_ready: boolean;
  uptime_seconds: number | null;
  rss_bytes: number | null;
  vram_bytes: number | null;
  planned_bytes: number | null;
  restarts: number;
  tokens_per_second: number | null;
  reason: string | null;
  fix: string | null;
}

export interface Slot {
  id: number;
  is_processing: boolean;
  n_ctx: number | null;
  n_past?: number | null;
}

export interface Footprint {
  ram_bytes: number | null;
  vram_bytes: number | null;
}

export interface ServerDetail extends Server, Answer {
  argv: string[] | null;
  environment_names: string[] | null;
  slots_total?: number | null;
  slots: Slot[] | null;
  context_size?: number | null;
  log: string[];
  estimate: Footprint | null;
  truth: Footprint | null;
  revision: string | null;
}

export interface Model {
  id: string;
  display_name?: string | null;
  hosts: string[];
  kind: string | null;
  tier: string | null;
  architecture: string | null;
  size_bytes: number | null;
  path: string | null;
  context_length: number | null;
  provenance: Record<string, unknown> | null;
}

export interface RejectedModel {
  host: string;
  path: string;
  reason: string;
}

export interface Profile {
  name: string;
  path: string;
  description: string | null;
  builtin: boolean;
  active_on: string[];
  text: string;
  sha256?: string;
}

/** What a profile selects on a host. */
export interface Selected {
  models: string[];
  missing: string[];
  needs_bytes: number | null;
}

export interface SavedProfile {
  diff: string;
  errors: string[];
  warnings?: string[];
  saved: boolean;
  path?: string;
  selects?: Record<string, Selected>;
  commit?: string | null;
}

export interface MemoryChange {
  total?: number | null;
  free?: number | null;
  now: number | null;
  peak: number | null;
  after: number | null;
}

export interface PlannedServer {
  name: string;
  model_id?: string;
  action: string;
  reason: string | null;
  downtime_seconds?: number | null;
  argv_diff: string[];
  estimate: Record<string, unknown> | null;
}

export interface HostPlan {
  summary: string;
  downtime_seconds: number | null;
  memory: { ram?: MemoryChange | null; gpu?: MemoryChange | null; gpus?: (MemoryChange & { index: number; name: string })[] };
  warnings?: string[];
  error?: string | null;
  servers: PlannedServer[];
}

export interface PlanHead {
  hash: string;
  job?: string;
  profile: string | null;
  limit: string | null;
  made_at: string;
}

export interface Plan extends PlanHead {
  as_of: string | null;
  hosts: Record<string, HostPlan>;
}

export interface Job {
  id: string;
  verb: Verb;
  variables: Record<string, unknown>;
  state: JobState;
  waits_for: { host: string; job: string } | null;
  hosts: string[];
  rc: number | null;
  created_at: string;
  started_at: string | null;
  ended_at: string | null;
  by: string | null;
  check: boolean;
  result: JobResult | null;
}

/** The result document of the job's playbook. */
export interface JobResult {
  kind?: string;
  hash?: string | null;
  [key: string]: unknown;
}

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

export interface Fit {
  model_id: string;
  needs_bytes: number;
  basis: 'plan' | 'file';
  is_on_host: boolean;
  fits: 'gpu' | 'ram' | 'no' | 'unknown';
}

export interface HostCapacity {
  host: string;
  ram_free_bytes: number | null;
  vram_free_bytes: (number | null)[];
  models: Fit[];
}

export interface JobRequest {
  verb: Verb;
  profile?: string;
  servers?: string[];
  limit?: string[];
  check?: boolean;
  allow_downtime?: boolean;
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

export interface Session {
  name: string | null;
  role: 'read' | 'operate' | null;
}

export interface Problem {
  type: string;
  title: string;
  status: number;
  detail?: string;
  fix?: string | null;
  nearest?: string[];
}
