// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useEffect, useState } from 'preact/hooks';
import { api } from '../api/client';
import type { Verb } from '../api/types';
import { duration } from '../format';
import { go, link, names, place, setQuery } from '../router';
import { mayOperate } from '../state/session';
import { isActive, jobIds, jobsError, jobSignal, jobsLoaded, refreshJobs } from '../state/jobs';
import { now } from '../state/now';
import { describeJob, jobSeconds } from '../ui/job_words';
import { Empty, Failure, Time } from '../ui/parts';
import { State } from '../ui/state';

export function JobRow({ id }: { id: string }) {
  const job = jobSignal(id)?.value;
  if (!job) return null;
  return (
    <tr role="row">
      <td role="cell" class="c-job"><a data-row href={link(['job', id])}>{describeJob(job)}</a>
        {job.waits_for && <span class="reason">waits for <a href={link(['job', job.waits_for.job])}>job {job.waits_for.job.slice(-8)}</a> on {job.waits_for.host}</span>}
      </td>
      <td role="cell" class="c-state"><State state={job.state} note={job.rc ? `(rc ${job.rc})` : undefined} /></td>
      <td role="cell" class="c-hosts muted">{job.hosts.length > 3 ? `${job.hosts.length} hosts` : job.hosts.join(', ')}</td>
      <td role="cell" class="c-when muted"><Time at={job.created_at} /></td>
      <td role="cell" class="c-up number">{duration(jobSeconds(job, isActive(job) ? now.value : 0))}</td>
      <td role="cell" class="c-by muted">{job.by ?? ''}</td>
    </tr>
  );
}

export function JobTable({ ids, label }: { ids: readonly string[]; label: string }) {
  const heads: [string, string][] = [
    ['Job', 'c-job'], ['State', 'c-state'], ['Hosts', 'c-hosts'], ['Created', 'c-when'], ['Took', 'c-up'], ['By', 'c-by'],
  ];
  return (
    <table role="table" class="jobs" aria-label={label}>
      <thead role="rowgroup"><tr role="row">{heads.map(([head, cell]) => <th key={head} role="columnheader" scope="col" class={cell}>{head}</th>)}</tr></thead>
      <tbody role="rowgroup">{ids.map((id) => <JobRow key={id} id={id} />)}</tbody>
    </table>
  );
}

const LOOKS: [Verb, string][] = [['status', 'Read the state of all servers'], ['verify', 'Probe every server with a token'], ['scan', 'Scan the models']];

/** Jobs that only look. Those that change something begin where it is seen what they change. */
function Look() {
  const [error, setError] = useState<unknown>(null);
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const limit = names(String(form.get('limit') ?? ''));
    api.startJob({ verb: form.get('verb') as Verb, ...(limit.length > 0 ? { limit } : {}) }).then((id) => go(['job', id]), setError);
  };
  return (
    <details class="card">
      <summary>Run a job that looks: status, verify, scan</summary>
      <form class="fields" onSubmit={submit}>
        <label>Job<select name="verb">{LOOKS.map(([name, label]) => <option key={name} value={name}>{name}: {label}</option>)}</select></label>
        <label>Limit: hosts or groups, with commas<input name="limit" placeholder="all hosts" autocomplete="off" spellcheck={false} /></label>
        <button type="submit">Run</button>
      </form>
      <Failure error={error} />
    </details>
  );
}

export function JobsView() {
  useEffect(() => void refreshJobs(), []);
  const state = place.value.query.get('state') ?? '';
  const verb = place.value.query.get('verb') ?? '';
  const all = jobIds.value.map((id) => jobSignal(id)?.value).filter((job) => job !== undefined);
  const shown = all.filter((job) => (state === '' || job.state === state) && (verb === '' || job.verb === verb));
  const choice = (key: string, label: string, options: string[]) => (
    <label>
      {label}
      <select value={place.value.query.get(key) ?? ''} {...(key === 'state' ? { 'data-filter': '' } : {})}
        onChange={(e) => setQuery({ [key]: e.currentTarget.value })}>
        <option value="">any</option>
        {options.map((option) => <option key={option}>{option}</option>)}
      </select>
    </label>
  );
  return (
    <>
      <div class="page-head"><h1>Jobs</h1><p class="summary"><b>{all.filter(isActive).length}</b> active · <b>{all.length}</b> kept</p></div>
      <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>
        {choice('state', 'State', ['queued', 'running', 'finished', 'failed', 'cancelled', 'lost'])}
        {choice('verb', 'Verb', [...new Set(all.map((job) => job.verb))].sort())}
      </form>
      <Failure error={jobsError.value} />
      {shown.length > 0 && <section class="card flat"><JobTable ids={shown.map((job) => job.id)} label="Jobs" /></section>}
      {mayOperate.value && <Look />}
      {jobsLoaded.value && shown.length === 0 && <Empty>{all.length === 0 ? 'No job has run yet.' : 'No job matches the filter.'}</Empty>}
    </>
  );
}
