// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { signal } from '@preact/signals';
import type {
  AuditList, Capacity, Hosts, Job, JobRequest, KeyList, Models, Plan, PlanList, PlanRequest, Problem, ProfileList, SavedProfile, ServerDetail,
  Servers, Session,
} from './types';

/** The API is next to the page, wherever a proxy has put both. */
export const apiUrl = (path: string): string => new URL(`api/v1/${path}`, document.baseURI).href;

export class ApiError extends Error {
  readonly problem: Problem;
  constructor(problem: Problem) {
    super(problem.detail || problem.title);
    this.problem = problem;
  }
}

/** Whether the console wants a token first. */
export const signedOut = signal(false);

const problemOf = (status: number, title: string, fix = ''): Problem =>
  ({ type: 'about:blank', title, status, detail: '', fix, nearest: [], instance: '' });

const asProblem = async (response: Response): Promise<Problem> => {
  const fallback = problemOf(response.status, response.statusText || `HTTP ${response.status}`);
  try {
    return { ...fallback, ...((await response.json()) as Partial<Problem>) };
  } catch {
    return fallback;
  }
};

async function request<T>(method: string, path: string, body?: unknown, headers: Record<string, string> = {}): Promise<T> {
  let response: Response;
  try {
    response = await fetch(apiUrl(path), {
      method,
      credentials: 'same-origin',
      headers: body === undefined ? headers : { 'Content-Type': 'application/json', ...headers },
      body: body === undefined ? null : JSON.stringify(body),
    });
  } catch {
    throw new ApiError(problemOf(0, 'The console does not answer', 'Check that magi-llama-console runs.'));
  }
  if (!response.ok) {
    if (response.status === 401 && path !== 'session') signedOut.value = true;
    throw new ApiError(await asProblem(response));
  }
  if (response.status === 204) return undefined as T;
  const text = await response.text();
  return (text === '' ? undefined : JSON.parse(text)) as T;
}

const quote = encodeURIComponent;
// A second click, or a repeat after a lost answer, must not start a second job.
const idempotent = (): Record<string, string> => ({ 'Idempotency-Key': crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}` });
type Started = { job: Job };
const jobId = (started: Started): string => started.job.id;

export const api = {
  hosts: () => request<Hosts>('GET', 'hosts'),
  servers: () => request<Servers>('GET', 'servers'),
  server: (host: string, name: string) => request<ServerDetail>('GET', `servers/${quote(host)}/${quote(name)}`),
  models: () => request<Models>('GET', 'models'),
  profiles: () => request<ProfileList>('GET', 'profiles'),
  previewProfile: (name: string, text: string) => request<SavedProfile>('PUT', `profiles/${quote(name)}`, { text, preview: true }),
  saveProfile: (name: string, text: string, expected: string) =>
    request<SavedProfile>('PUT', `profiles/${quote(name)}`, { text, preview: false, expected_sha256: expected }),
  keys: () => request<KeyList>('GET', 'keys'),
  audit: () => request<AuditList>('GET', 'audit?limit=500'),
  capacity: () => request<Capacity>('GET', 'capacity'),
  makePlan: async (body: PlanRequest) =>
    jobId(await request<Started>('POST', 'plans', body, idempotent())),
  plan: (hash: string) => request<Plan>('GET', `plans/${quote(hash)}`),
  plans: () => request<PlanList>('GET', 'plans'),
  applyPlan: async (hash: string, allowDowntime: boolean) =>
    jobId(await request<Started>('POST', `plans/${quote(hash)}/apply`, { allow_downtime: allowDowntime }, idempotent())),
  jobs: () => request<{ jobs: Job[] }>('GET', 'jobs?limit=200'),
  job: async (id: string) => (await request<{ job: Job }>('GET', `jobs/${quote(id)}`)).job,
  startJob: async (body: JobRequest) => jobId(await request<Started>('POST', 'jobs', body, idempotent())),
  cancelJob: (id: string) => request<unknown>('POST', `jobs/${quote(id)}/cancel`, {}),
  session: () => request<Session>('GET', 'session'),
  signIn: (token: string) => request<Session>('POST', 'session', { token }),
  signOut: () => request<unknown>('DELETE', 'session'),
};
