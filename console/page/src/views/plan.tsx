// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useState } from 'preact/hooks';
import { api } from '../api/client';
import type { HostPlan, Plan, PlannedServer, Stages as StageBytes } from '../api/types';
import { bytes, count, dateTime, DASH, duration } from '../format';
import { go, link, names, place } from '../router';
import { hostNames } from '../state/fleet';
import { jobSignal } from '../state/jobs';
import { mayOperate } from '../state/session';
import { useShortcuts } from '../state/shortcuts';
import { Bar } from '../ui/charts';
import { Card, Confirm, Diff, Empty, Failure, Log, Time, useLoad, type Question } from '../ui/parts';
import { Icon, State, type Tone } from '../ui/state';
import { useJobSteps } from './job_follow';

const ACTIONS: Record<string, Tone> = { start: 'ok', restart: 'warn', stop: 'bad', keep: 'off' };

/** The job that makes a plan; the view moves to the plan once there is one. */
function Making({ id }: { id: string }) {
  const [error, setError] = useState<unknown>(null);
  const steps = useJobSteps(id, setError, () => {
    const job = jobSignal(id)?.peek();
    if (job?.state === 'finished' && job.result?.hash) go(['plan', job.result.hash]);
  });
  const job = jobSignal(id)?.value;
  return (
    <Card title="Making the plan" extra={<a href={link(['job', id])}>job {id.slice(-8)}</a>}>
      <Failure error={error} />
      {job && <p><State state={job.state} /> <span class="muted">{steps.value.task}</span></p>}
      {job && job.state === 'failed' && <p class="notice bad">There is no plan: the last lines say why.</p>}
      <Log lines={steps.value.lines} label="Output of the plan" follow />
    </Card>
  );
}

export function MakePlanView() {
  const [error, setError] = useState<unknown>(null);
  const profiles = useLoad(() => api.profiles(), []);
  const plans = useLoad(() => api.plans(), []);
  const making = place.value.query.get('job');
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const profile = String(form.get('profile') ?? '');
    const limit = names(String(form.get('limit') ?? ''));
    setError(null);
    api.makePlan({ ...(profile ? { profile } : {}), ...(limit.length > 0 ? { limit } : {}) })
      .then((id) => go(['plan'], { job: id }), setError);
  };
  const asked = place.value.query;
  return (
    <>
      <div class="page-head"><h1>Plan</h1><p class="summary">What a change would do on every host, before anything is touched.</p></div>
      <Card title="Make a plan">
        <form class="fields" onSubmit={submit}>
          <label>
            Profile
            <select name="profile" data-filter="">
              <option value="">each host's own</option>
              {(profiles.data?.profiles ?? []).map(({ name }) => <option key={name} selected={name === asked.get('profile')}>{name}</option>)}
            </select>
          </label>
          <label>
            Limit: hosts or groups, with commas
            <input name="limit" list="hosts" placeholder="all hosts" defaultValue={asked.get('limit') ?? ''} autocomplete="off" spellcheck={false} />
          </label>
          <datalist id="hosts">{hostNames.value.map((name) => <option key={name} value={name} />)}</datalist>
          <button type="submit" class="primary" disabled={!mayOperate.value}>Make the plan</button>
        </form>
        <Failure error={error ?? profiles.error} />
      </Card>
      {making && <Making id={making} key={making} />}
      <Card title="Plans">
        <Failure error={plans.error} />
        {plans.data?.plans.length === 0 && <Empty>No plan has been made yet.</Empty>}
        <ul class="list">
          {(plans.data?.plans ?? []).map((plan) => (
            <li key={plan.hash}>
              <a data-row href={link(['plan', plan.hash])}><code>{plan.hash.slice(0, 12)}</code></a>
              <span>{plan.profile ? `profile ${plan.profile}` : "each host's profile"}</span>
              <span class="muted">{plan.limit ?? 'all hosts'}</span>
              <span class="muted"><Time at={plan.made_at} /></span>
            </li>
          ))}
        </ul>
      </Card>
    </>
  );
}

function Stages({ label, memory }: { label: string; memory: StageBytes }) {
  const total = memory.total ?? (Math.max(memory.now ?? 0, memory.peak ?? 0, memory.after ?? 0) || null);
  const row = (stage: 'now' | 'peak' | 'after') => (
    <Bar key={stage} label={stage} used={memory[stage]} total={total} text={bytes(memory[stage])} />
  );
  return (
    <div class="stages">
      <h3>{label}{memory.total ? <span class="muted"> of {bytes(memory.total)}</span> : null}</h3>
      {(['now', 'peak', 'after'] as const).map(row)}
    </div>
  );
}

/** A new server's whole command line is there to open; what differs is shown. */
function ArgvDiff({ server }: { server: PlannedServer }) {
  const lines = server.argv_diff;
  if (lines.length === 0) return null;
  const diff = <Diff lines={lines} label={`Command line of ${server.name}`} />;
  const isNew = lines.length > 4 && lines.every((line) => line.startsWith('+'));
  return isNew ? <details><summary>command line</summary>{diff}</details> : diff;
}

function PlannedRow({ server }: { server: PlannedServer }) {
  const isKept = server.action === 'keep';
  return (
    <li class={isKept ? 'kept' : ''}>
      <p class="planned">
        <span class={`state ${ACTIONS[server.action] ?? 'off'}`}><Icon tone={ACTIONS[server.action] ?? 'off'} />{server.action}</span>
        <b>{server.name}</b>
        <span class="muted">{server.reason}</span>
        {server.downtime_seconds ? <span class="warn">away {duration(server.downtime_seconds)}</span> : null}
      </p>
      <ArgvDiff server={server} />
    </li>
  );
}

function HostPlanCard({ name, plan }: { name: string; plan: HostPlan }) {
  const { ram, gpu, gpus } = plan.memory;
  const changed = plan.servers.filter((server) => server.action !== 'keep');
  const kept = plan.servers.filter((server) => server.action === 'keep');
  const gpuBars = gpus && gpus.length > 1 ? gpus.map((one) => ({ label: `GPU ${one.index}: ${one.name}`, memory: one })) : gpu ? [{ label: 'VRAM', memory: gpu }] : [];
  return (
    <Card title={name} extra={<span class={changed.length > 0 ? '' : 'muted'}>{plan.summary}{plan.downtime_seconds ? ` · away for ${duration(plan.downtime_seconds)}` : ''}</span>}>
      {plan.error && <p class="notice bad">{plan.error}</p>}
      {(plan.warnings ?? []).map((warning) => <p class="notice warn" key={warning}>{warning}</p>)}
      <div class="memory">
        {ram && <Stages label="RAM" memory={ram} />}
        {gpuBars.map(({ label, memory }) => <Stages key={label} label={label} memory={memory} />)}
      </div>
      <ul class="planned-list">{changed.map((server) => <PlannedRow key={server.name} server={server} />)}</ul>
      {kept.length > 0 && (
        <details>
          <summary>{count(kept.length, 'server')} kept</summary>
          <ul class="planned-list">{kept.map((server) => <PlannedRow key={server.name} server={server} />)}</ul>
        </details>
      )}
    </Card>
  );
}

const changes = (plan: Plan): number =>
  Object.values(plan.hosts).reduce((all, host) => all + host.servers.filter((server) => server.action !== 'keep').length, 0);

const downtime = (plan: Plan): number => Math.max(0, ...Object.values(plan.hosts).map((host) => host.downtime_seconds ?? 0));

function useApply(plan: Plan | null) {
  const [question, ask] = useState<Question | null>(null);
  const [error, setError] = useState<unknown>(null);
  const away = plan ? downtime(plan) : 0;
  const canApply = plan !== null && mayOperate.value && changes(plan) > 0;
  const apply = (): void => {
    if (!plan || !canApply) return;
    ask({
      title: 'Apply this plan?',
      text: (
        <>
          <p>{count(changes(plan), 'server')} on {count(Object.keys(plan.hosts).length, 'host')} will change. It is refused where a host has changed since the plan was made.</p>
          {away > 0 && <p class="notice warn">Models are away for up to {duration(away)}.</p>}
        </>
      ),
      action: away > 0 ? 'Apply, and accept the downtime' : 'Apply', isDangerous: away > 0,
      run: () => void api.applyPlan(plan.hash, away > 0).then((id) => go(['job', id]), setError),
    });
  };
  return { question, close: () => ask(null), error, apply, canApply };
}

export function PlanView({ hash }: { hash: string }) {
  const { data: plan, error } = useLoad(() => api.plan(hash), [hash]);
  const { question, close, error: refused, apply, canApply } = useApply(plan);
  useShortcuts(canApply ? [{ keys: 'a', label: 'Apply this plan', run: apply }] : [], [hash, canApply]);
  const hosts = Object.entries(plan?.hosts ?? {});
  // What changes comes first: on a fleet most hosts change nothing.
  const moved = hosts.filter(([, host]) => host.error || host.servers.some((server) => server.action !== 'keep'));
  const still = hosts.filter((entry) => !moved.includes(entry));
  return (
    <>
      <p class="trail"><a href={link(['plan'])}>Plans</a></p>
      <div class="page-head">
        <h1>Plan <code>{hash.slice(0, 12)}</code></h1>
        {plan && <p class="summary">{plan.profile ? `profile ${plan.profile}` : "each host's profile"} · {plan.limit ?? 'all hosts'} · made <Time at={plan.made_at} /></p>}
        {plan && (
          <div class="actions">
            <a class="button" href={link(['plan'], { profile: plan.profile, limit: plan.limit })}>Make it again</a>
            <button type="button" class="primary" onClick={apply} disabled={!canApply}>Apply</button>
          </div>
        )}
      </div>
      <Failure error={refused ?? error} />
      {plan && (
        <Card title="In all">
          <dl class="facts">
            <div><dt>Hosts that change</dt><dd class="number">{moved.length} of {hosts.length}</dd></div>
            <div><dt>Servers that change</dt><dd class="number">{changes(plan)}</dd></div>
            <div><dt>Longest downtime</dt><dd class="number">{downtime(plan) > 0 ? duration(downtime(plan)) : DASH}</dd></div>
            <div><dt>Hosts as of</dt><dd>{dateTime(plan.as_of)}</dd></div>
          </dl>
        </Card>
      )}
      {moved.map(([name, host]) => <HostPlanCard key={name} name={name} plan={host} />)}
      {still.length > 0 && (
        <Card title={`${count(still.length, 'host')} without a change`}><p class="names muted">{still.map(([name]) => <span key={name}>{name}</span>)}</p></Card>
      )}
      <Confirm question={question} onClose={close} />
    </>
  );
}
