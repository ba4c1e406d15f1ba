// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useState } from 'preact/hooks';
import { api } from '../api/client';
import type { Host, Job, Rollout, RolloutHost } from '../api/types';
import { clock, count, DASH, duration } from '../format';
import { go, link, names } from '../router';
import { hostNames, hostSignal } from '../state/fleet';
import { isActive, jobIds, jobSignal, jobsLoaded } from '../state/jobs';
import { mayOperate } from '../state/session';
import { useShortcuts } from '../state/shortcuts';
import { describeJob } from '../ui/job_words';
import { Card, Confirm, Diff, Empty, Failure, Time, useLoad, type Question } from '../ui/parts';
import { Icon, State } from '../ui/state';
import { useJobSteps } from './job_follow';
import type { Play, Steps } from './job_steps';
import { JobTable } from './jobs';

export function RolloutsView() {
  const [question, ask] = useState<Question | null>(null);
  const [error, setError] = useState<unknown>(null);
  const profiles = useLoad(() => api.profiles(), []);
  const shown = jobIds.value.filter((id) => ['rollout', 'rollback'].includes(jobSignal(id)?.value.verb ?? ''));
  const submit = (event: SubmitEvent): void => {
    event.preventDefault();
    const form = new FormData(event.currentTarget as HTMLFormElement);
    const profile = String(form.get('profile') ?? '');
    const limit = names(String(form.get('limit') ?? ''));
    const check = form.get('check') !== null;
    const request = { verb: 'rollout' as const, check, ...(profile ? { profile } : {}), ...(limit.length > 0 ? { limit } : {}) };
    const run = (): void => void api.startJob(request).then((id) => go(['rollouts', id]), setError);
    if (check) {
      run();
      return;
    }
    ask({
      title: 'Roll out?',
      text: <p>{limit.length > 0 ? limit.join(', ') : 'All hosts'}, {profile ? `profile ${profile}` : 'each with its own profile'}: one host first, then in batches. The first failure ends it.</p>,
      action: 'Roll out', run,
    });
  };
  return (
    <>
      <div class="page-head"><h1>Rollouts</h1><p class="summary">One host first, then batches; a host that fails ends it.</p></div>
      {mayOperate.value && (
        <Card title="Begin a rollout">
          <form class="fields" onSubmit={submit}>
            <label>
              Profile
              <select name="profile" data-filter="">
                <option value="">each host's own</option>
                {(profiles.data?.profiles ?? []).map(({ name }) => <option key={name}>{name}</option>)}
              </select>
            </label>
            <label>Limit: hosts or groups, with commas<input name="limit" placeholder="all hosts" autocomplete="off" spellcheck={false} /></label>
            <label class="check"><input type="checkbox" name="check" defaultChecked />Only preview</label>
            <button type="submit" class="primary">Begin</button>
          </form>
          <Failure error={error ?? profiles.error} />
        </Card>
      )}
      {shown.length > 0 && <section class="card flat"><JobTable ids={shown} label="Rollouts" /></section>}
      {jobsLoaded.value && shown.length === 0 && <Empty>There was no rollout yet.</Empty>}
      <Confirm question={question} onClose={() => ask(null)} />
    </>
  );
}

// The play of rollout.yml that is run once for each batch.
const BATCH = /batch by batch/;

interface Batch {
  title: string;
  begun: string | null;
  hosts: string[];
}

/** The batches that have begun, and all hosts that wait behind them. */
export function batchesOf(job: Job | undefined, plays: readonly Play[], rollout: Rollout | null): Batch[] {
  const begun = plays.filter((play) => BATCH.test(play.name)).map((play, i) => ({
    title: i === 0 ? 'Canary' : `Batch ${i}`, begun: play.at, hosts: play.hosts,
  }));
  const seen = new Set(begun.flatMap((batch) => batch.hosts));
  const known = Object.keys(rollout?.hosts ?? {});
  const waiting = [...new Set([...(job?.hosts ?? []), ...known])].filter((host) => !seen.has(host));
  return waiting.length === 0 ? begun : [...begun, { title: job && isActive(job) ? 'Waiting' : 'Untouched', begun: null, hosts: waiting }];
}

// A host that failed before anything was changed has nothing to return to.
const mayGoBack = (host: RolloutHost): boolean => host.state === 'updated' || (host.state === 'failed' && host.rollback !== null);

const isDone = (host: RolloutHost | undefined): boolean => host?.state === 'updated' || host?.state === 'unchanged' || host?.state === 'planned';

/** Whether the next batch may begin after this one. */
function Gate({ hosts }: { hosts: (RolloutHost | undefined)[] }) {
  const done = hosts.filter(isDone).length;
  const failed = hosts.filter((host) => host?.state === 'failed').length;
  if (failed > 0) return <span class="state bad"><Icon tone="bad" />gate closed: {count(failed, 'host')} failed</span>;
  if (done === hosts.length) return <span class="state ok"><Icon tone="ok" />gate passed</span>;
  return <span class="state busy"><Icon tone="busy" />{done} of {hosts.length} done</span>;
}

function HostRow({ name, host, steps, onBack }: {
  name: string; host: RolloutHost | undefined; steps: Steps; onBack: ((host: string) => void) | null;
}) {
  const last = steps.hosts.get(name)?.steps.at(-1);
  return (
    <li>
      <p class="planned">
        <b>{name}</b>
        <State state={host?.state ?? (last ? 'running' : 'untouched')} />
        {host && typeof host.total_servers === 'number' && <span class="muted">{host.ready_servers ?? 0} of {host.total_servers} ready</span>}
        {host && Object.entries(host.actions).map(([action, n]) => <span class="muted" key={action}>{n} {action}</span>)}
        <span class="muted number">{duration(host?.seconds)}</span>
        {!host && last && <span class="muted">{last.text}</span>}
        {onBack && host && mayGoBack(host) && <button type="button" class="quiet" onClick={() => onBack(name)}>Roll back…</button>}
      </p>
      {host?.error && <div class="notice bad"><strong>{host.task ?? 'failed'}</strong><p class="lines">{host.error}</p></div>}
    </li>
  );
}

/** Those of these hosts that a later run, of any controller, has deployed: their previous deployment is not that before the rollout. */
function deployedSince(rollout: Job, hosts: readonly string[]): Host[] {
  const since = rollout.ended_at ?? rollout.created_at;
  void hostNames.value; // A host that is not known yet is there once the fleet has been read.
  return hosts.map((name) => hostSignal(name)?.value).filter((host) => host !== undefined).filter((host) => (host.deployed_at ?? '') > since);
}

/** Look at what a rollback would change first; then do it. */
function RollBack({ hosts, rollout, onClose }: { hosts: readonly string[]; rollout: Job; onClose: () => void }) {
  const [id, setId] = useState('');
  const [error, setError] = useState<unknown>(null);
  const start = (check: boolean): void => {
    api.startJob({ verb: 'rollback', limit: [...hosts], check }).then(check ? setId : (job) => go(['job', job]), setError);
  };
  return (
    <Card title={`Roll back ${hosts.length === 1 ? hosts[0] : `all ${hosts.length} hosts`}`} extra={<button type="button" class="quiet" onClick={onClose}>Close</button>}>
      <Failure error={error} />
      {deployedSince(rollout, hosts).map((host) => (
        <p class="notice warn" key={host.name}>
          {host.name} was deployed again after this rollout, <Time at={host.deployed_at} />: it returns to what was before that.
        </p>
      ))}
      {id === '' ? (
        <>
          <p>{hosts.length === 1 ? 'The host returns' : `${hosts.join(', ')} return`} to the deployment that worked before: launch configs, profile and llama-server. All at once, not in batches.</p>
          <div class="actions"><button type="button" class="primary" onClick={() => start(true)}>Show the difference</button></div>
        </>
      ) : <Preview id={id} onError={setError} onApply={() => start(false)} />}
    </Card>
  );
}

function Preview({ id, onError, onApply }: { id: string; onError: (error: unknown) => void; onApply: () => void }) {
  const steps = useJobSteps(id, onError);
  const job = jobSignal(id)?.value;
  return (
    <>
      <p>{job && <State state={job.state} />} <a href={link(['job', id])}>job {id.slice(-8)}</a> <span class="muted">{steps.value.task}</span></p>
      {[...steps.value.linesOf].filter(([host]) => host !== '').map(([host, lines]) => (
        <section key={host}>
          <h3>{host}</h3>
          <Diff lines={[...lines]} label={`What the rollback changes on ${host}`} />
        </section>
      ))}
      <div class="actions">
        <button type="button" class="danger" onClick={onApply} disabled={job?.state !== 'finished'}>Roll back</button>
      </div>
    </>
  );
}

export function RolloutView({ id }: { id: string }) {
  const [error, setError] = useState<unknown>(null);
  const [back, setBack] = useState<readonly string[]>([]);
  const steps = useJobSteps(id, setError).value;
  void jobIds.value;
  const job = jobSignal(id)?.value;
  const rollout = job?.result?.kind === 'rollout' ? (job.result as unknown as Rollout) : steps.rollout;
  const counts = (['updated', 'unchanged', 'planned', 'failed', 'untouched'] as const)
    .map((state) => [state, Object.values(rollout?.hosts ?? {}).filter((host) => host.state === state).length] as const);
  const changed = Object.entries(rollout?.hosts ?? {}).filter(([, host]) => mayGoBack(host)).map(([name]) => name);
  const canGoBack = mayOperate.value && job !== undefined && !isActive(job) && job.verb === 'rollout' && changed.length > 0;
  useShortcuts(canGoBack ? [{ keys: 'b', label: 'Roll back all hosts of this rollout', run: () => setBack(changed) }] : [], [canGoBack, changed.join()]);
  return (
    <>
      <p class="trail"><a href={link(['rollouts'])}>Rollouts</a></p>
      <div class="page-head">
        <h1>{job ? describeJob(job) : `Rollout ${id}`}</h1>
        {job && <State state={job.state} />}
        <p class="summary">began {clock(job?.started_at)} · <a href={link(['job', id])}>steps and output</a></p>
        {canGoBack && <div class="actions"><button type="button" class="danger" onClick={() => setBack(changed)}>Roll back all…</button></div>}
      </div>
      <Failure error={error} />
      <Card title="Hosts">
        <dl class="facts">
          {counts.filter(([, n]) => n > 0).map(([state, n]) => <div key={state}><dt>{state}</dt><dd class="number"><b>{n}</b></dd></div>)}
          <div><dt>Took</dt><dd class="number">{rollout ? duration(rollout.seconds) : DASH}</dd></div>
        </dl>
      </Card>
      {job && back.length > 0 && <RollBack hosts={back} rollout={job} onClose={() => setBack([])} key={back.join()} />}
      <ol class="batches">
        {batchesOf(job, steps.plays, rollout).map((batch) => (
          <li key={batch.title}>
            <Card title={batch.title} extra={batch.begun ? <Gate hosts={batch.hosts.map((name) => rollout?.hosts[name])} /> : <span class="muted">{count(batch.hosts.length, 'host')}</span>}>
              <ul class="planned-list">
                {batch.hosts.map((name) => (
                  <HostRow key={name} name={name} host={rollout?.hosts[name]} steps={steps} onBack={mayOperate.value && job && !isActive(job) ? (host) => setBack([host]) : null} />
                ))}
              </ul>
            </Card>
          </li>
        ))}
      </ol>
    </>
  );
}
