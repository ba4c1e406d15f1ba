// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { batch, computed, signal, type Signal } from '@preact/signals';
import { api } from '../api/client';
import type { Arrived } from '../api/stream';
import type { Job } from '../api/types';

const jobs = new Map<string, Signal<Job>>();
/** Newest first. */
export const jobIds = signal<readonly string[]>([]);
export const jobsLoaded = signal(false);
export const jobsError = signal<unknown>(null);
export const jobSignal = (id: string): Signal<Job> | undefined => jobs.get(id);
export const isActive = (job: Job): boolean => job.state === 'queued' || job.state === 'running';
export const activeCount = computed(() => {
  void jobIds.value;
  return [...jobs.values()].filter((job) => isActive(job.value)).length;
});

function order(): void {
  const sorted = [...jobs.values()].map((job) => job.peek());
  sorted.sort((a, b) => b.created_at.localeCompare(a.created_at) || b.id.localeCompare(a.id));
  const ids = sorted.map((job) => job.id);
  if (ids.join() !== jobIds.peek().join()) jobIds.value = ids;
}

export function keepJob(job: Job): void {
  const known = jobs.get(job.id);
  if (!known) jobs.set(job.id, signal(job));
  else if (JSON.stringify(known.peek()) !== JSON.stringify(job)) known.value = job;
  order();
}

export async function refreshJobs(): Promise<void> {
  try {
    const answer = await api.jobs();
    // The list has no results; those that are known are kept.
    batch(() => answer.jobs.forEach((job) => keepJob({ ...job, result: job.result ?? jobs.get(job.id)?.peek().result ?? null })));
    jobsError.value = null;
  } catch (error) {
    jobsError.value = error;
  }
  jobsLoaded.value = true;
}

export async function refreshJob(id: string): Promise<void> {
  keepJob(await api.job(id));
}

let timer: number | undefined;
export function refreshJobsSoon(): void {
  timer ??= window.setTimeout(() => {
    timer = undefined;
    void refreshJobs();
  }, 500);
}

export function foldJobs({ events, jobs: changed }: Arrived): void {
  batch(() => changed.forEach((job) => keepJob({ ...job, result: job.result ?? jobs.get(job.id)?.peek().result ?? null })));
  if (events.some((event) => event.type === 'run_started' || event.type === 'run_ended')) refreshJobsSoon();
}
