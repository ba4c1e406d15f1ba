// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import type { Job } from '../api/types';

const text = (value: unknown): string => (Array.isArray(value) ? value.join(', ') : String(value));

/** What a job does, in a line: "restart qwen3, profile production, on gpu1". */
export function describeJob(job: Job): string {
  const { profile, servers, limit } = job.variables;
  return [
    job.verb + (job.check ? ' (preview)' : ''),
    servers ? text(servers) : '',
    profile ? `profile ${text(profile)}` : '',
    limit ? `on ${text(limit)}` : '',
  ].filter(Boolean).join(' · ');
}

export function jobSeconds(job: Job, now: number): number | null {
  if (!job.started_at) return null;
  const end = job.ended_at ? Date.parse(job.ended_at) : now;
  return Math.max(0, (end - Date.parse(job.started_at)) / 1000);
}
