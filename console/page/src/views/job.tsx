// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useComputed } from '@preact/signals';
import { useState } from 'preact/hooks';
import { api } from '../api/client';
import type { Job } from '../api/types';
import { clock, dateTime, duration } from '../format';
import { link } from '../router';
import { isActive, jobIds, jobSignal, refreshJob } from '../state/jobs';
import { now } from '../state/now';
import { mayOperate } from '../state/session';
import { useShortcuts } from '../state/shortcuts';
import { describeJob, jobSeconds } from '../ui/job_words';
import { Card, Confirm, Empty, Failure, Log, type Question } from '../ui/parts';
import { useJobSteps } from './job_follow';
import type { HostSteps } from './job_steps';
import { State } from '../ui/state';

function HostCard({ name, steps }: { name: string; steps: HostSteps }) {
  return (
    <li class="host-steps">
      <div class="host-steps-head">
        <h3>{name}</h3>
        <State state={steps.state} note={steps.counts} />
      </div>
      <ol>
        {steps.steps.map((step, i) => (
          <li key={i} class={step.tone}>
            <time class="muted number" dateTime={step.at}>{clock(step.at)}</time>
            <span>{step.text}{step.fix && <span class="fix"><b>Fix:</b> {step.fix}</span>}</span>
          </li>
        ))}
      </ol>
    </li>
  );
}

function Facts({ job }: { job: Job }) {
  const plan = job.result?.kind === 'plan' ? job.result.hash : null;
  return (
    <Card title="Job" extra={<code class="muted">{job.id}</code>}>
      <dl class="facts">
        <div><dt>State</dt><dd><State state={job.state} note={job.rc !== null ? `(rc ${job.rc})` : undefined} /></dd></div>
        <div><dt>Started</dt><dd>{dateTime(job.started_at)}</dd></div>
        <div><dt>Took</dt><dd class="number">{duration(jobSeconds(job, isActive(job) ? now.value : 0))}</dd></div>
        <div><dt>By</dt><dd>{job.by ?? '–'}</dd></div>
        <div><dt>Hosts</dt><dd>{job.hosts.length > 8 ? `${job.hosts.length} hosts` : job.hosts.join(', ') || '–'}</dd></div>
        {plan && <div><dt>Plan</dt><dd><a href={link(['plan', plan])}>{plan.slice(0, 12)}</a></dd></div>}
        {job.verb === 'rollout' && <div><dt>Rollout</dt><dd><a href={link(['rollouts', job.id])}>batches and gates</a></dd></div>}
      </dl>
      {job.waits_for && (
        <p class="notice warn">Waits for <a href={link(['job', job.waits_for.job])}>job {job.waits_for.job.slice(-8)}</a>, which has {job.waits_for.host}.</p>
      )}
    </Card>
  );
}

export function JobView({ id }: { id: string }) {
  const [error, setError] = useState<unknown>(null);
  const [question, ask] = useState<Question | null>(null);
  const steps = useJobSteps(id, setError);
  void jobIds.value; // A job that is not known yet is in the list once it is.
  const job = jobSignal(id)?.value;
  const canCancel = job !== undefined && isActive(job) && mayOperate.value;
  const cancel = (): void => {
    if (!canCancel) return;
    ask({
      title: 'Cancel this job?',
      text: <p>Ansible is interrupted. A change that has begun on a host is repaired by the next run there.</p>,
      action: 'Cancel the job', isDangerous: true,
      run: () => void api.cancelJob(id).then(() => refreshJob(id)).catch(setError),
    });
  };
  useShortcuts(canCancel ? [{ keys: 'x', label: 'Cancel this job', run: cancel }] : [], [id, canCancel]);
  const hosts = useComputed(() => [...steps.value.hosts.entries()]).value;
  return (
    <>
      <p class="trail"><a href={link(['jobs'])}>Jobs</a></p>
      <div class="page-head">
        <h1>{job ? describeJob(job) : `Job ${id}`}</h1>
        {canCancel && <div class="actions"><button type="button" class="danger" onClick={cancel}>Cancel</button></div>}
      </div>
      <Failure error={error} />
      {job && <Facts job={job} />}
      <div class="columns wide-left">
        <Card title="Steps by host" extra={<span class="muted">{steps.value.task}</span>}>
          {hosts.map(([name, { lock }]) => lock && (
            <p class="notice warn" key={name}>
              {name} waits for the lock of <b>{lock.holder}</b> since <time dateTime={lock.since}>{clock(lock.since)}</time>, {duration((now.value - Date.parse(lock.since)) / 1000)} by now.
            </p>
          ))}
          {hosts.length === 0 ? <Empty>{job && isActive(job) ? 'Nothing has happened yet.' : 'No step was recorded.'}</Empty>
            : <ul class="steps">{hosts.map(([name, host]) => <HostCard key={name} name={name} steps={host} />)}</ul>}
        </Card>
        <Card title="Output" extra={<a href={new URL(`api/v1/jobs/${encodeURIComponent(id)}/output`, document.baseURI).href}>whole output</a>}>
          <Log lines={steps.value.lines} label="Output of the job" follow />
        </Card>
      </div>
      <Confirm question={question} onClose={() => ask(null)} />
    </>
  );
}
