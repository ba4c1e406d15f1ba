// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { batch, computed, signal, type Signal } from '@preact/signals';
import { api } from '../api/client';
import type { Job, MagiEvent } from '../api/types';

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
    batch(() => answer.jobs.forEach(keepJob));
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

export function foldJobEvents(events: MagiEvent[]): void {
  for (const event of events) {
    if (event.type === 'job') {
      const known = jobs.get(String(event.data['id'] ?? event.run));
      if (known) keepJob({ ...known.peek(), ...(event.data as Partial<Job>) });
      else refreshJobsSoon();
    } else if (event.type === 'run_started' || event.type === 'run_ended') refreshJobsSoon();
  }
}
