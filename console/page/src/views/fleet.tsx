// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { computed, useComputed } from '@preact/signals';
import { useShortcuts } from '../state/shortcuts';
import type { Host } from '../api/types';
import { bytes, count, duration, hasVram, sum } from '../format';
import { link, place, setQuery } from '../router';
import {
  answer, hostNames, hostSignal, keysOfHost, loadError, serverKeys, serverSignal, type LiveServer,
} from '../state/fleet';
import { Bar, Sparkline } from '../ui/charts';
import { Empty, Failure, Time } from '../ui/parts';
import { State, toneOf } from '../ui/state';

const filter = computed(() => {
  const query = place.value.query;
  const get = (key: string): string => query.get(key) ?? '';
  return { host: get('host').toLowerCase(), model: get('model').toLowerCase(), tier: get('tier'), state: get('state') };
});

const isShown = (server: LiveServer): boolean => {
  const { host, model, tier, state } = filter.value;
  return server.host.toLowerCase().includes(host)
    && (model === '' || server.model_id.includes(model) || (server.display_name ?? '').toLowerCase().includes(model))
    && (tier === '' || server.tier === tier)
    && (state === '' || (state === 'not-ready' ? !server.is_ready : server.state === state));
};

const isFiltered = computed(() => Object.values(filter.value).some((value) => value !== ''));

/** A computed list that keeps its identity while its items do, so that a change of one server renders no list. */
function stable<T>(compute: () => readonly T[]) {
  let last: readonly T[] = [];
  return computed(() => {
    const next = compute();
    if (next.length !== last.length || next.some((item, i) => item !== last[i])) last = next;
    return last;
  });
}

const shownOf = (host: string): readonly string[] =>
  (keysOfHost.value.get(host) ?? []).filter((key) => {
    const server = serverSignal(key)?.value;
    return server !== undefined && isShown(server);
  });

const shownHosts = stable(() => hostNames.value.filter((name) => {
  if (shownOf(name).length > 0) return true;
  const { host, model, tier, state } = filter.value;
  // A host without servers is shown unless a filter is about servers.
  return model === '' && tier === '' && state === '' && name.toLowerCase().includes(host)
    && (keysOfHost.value.get(name) ?? []).length === 0;
}));

const distinct = (pick: (server: LiveServer) => string | null) => stable(() =>
  [...new Set(serverKeys.value.map((key) => serverSignal(key)?.value).flatMap((server) => (server ? [pick(server) ?? ''] : [])))]
    .filter(Boolean).sort());
const tiers = distinct((server) => server.tier);
const states = distinct((server) => server.state);

function Filters() {
  const query = place.value.query;
  const field = (key: string, label: string) => (
    <label>
      {label}
      <input type="search" value={query.get(key) ?? ''} spellcheck={false} autocomplete="off"
        {...(key === 'host' ? { 'data-filter': '' } : {})}
        onInput={(e) => setQuery({ [key]: e.currentTarget.value })} />
    </label>
  );
  const choice = (key: string, label: string, options: readonly string[]) => (
    <label>
      {label}
      <select value={query.get(key) ?? ''} onChange={(e) => setQuery({ [key]: e.currentTarget.value })}>
        <option value="">any</option>
        {options.map((option) => <option key={option} value={option}>{option.replace('_', ' ').replace('-', ' ')}</option>)}
      </select>
    </label>
  );
  return (
    <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>
      {field('host', 'Host')}
      {field('model', 'Model')}
      {choice('tier', 'Tier', tiers.value)}
      {choice('state', 'State', ['not-ready', ...states.value])}
      {isFiltered.value && (
        <button type="button" class="quiet" onClick={() => setQuery({ host: null, model: null, tier: null, state: null })}>Clear</button>
      )}
    </form>
  );
}

const totals = computed(() => {
  let ready = 0;
  let bad = 0;
  for (const key of serverKeys.value) {
    const server = serverSignal(key)?.value;
    if (server?.is_ready) ready += 1;
    else if (server && toneOf(server.state) === 'bad') bad += 1;
  }
  return `${ready}/${serverKeys.value.length}/${bad}`;
});

function Summary() {
  const [ready = '0', total = '0', bad = '0'] = totals.value.split('/');
  const as = answer.value;
  return (
    <p class="summary">
      <b>{hostNames.value.length}</b> hosts · <b>{ready}</b> of <b>{total}</b> servers ready
      {bad !== '0' && <> · <a class="bad" href={link(['fleet'], { state: 'failed' })}>{bad} failed</a></>}
      {as && <span class="muted"> · as of <Time at={as.as_of} /> from {as.source}</span>}
    </p>
  );
}

const used = (memory: { total: number | null; free: number | null } | null): number | null =>
  memory === null || memory.total === null || memory.free === null ? null : memory.total - memory.free;

function HostHead({ host }: { host: Host }) {
  const vram = host.gpus.length === 0 ? null : {
    total: sum(host.gpus.map((gpu) => gpu.total)), free: sum(host.gpus.map((gpu) => gpu.free)), planned: sum(host.gpus.map((gpu) => gpu.planned)),
  };
  return (
    <header class="host-head">
      <h2><a href={link(['fleet'], { host: host.name })}>{host.name}</a></h2>
      <State state={host.state} note={`${host.servers_ready}/${host.servers_total}`} />
      <span class="host-notes muted">
        {host.profile && <span>profile <a href={link(['profiles', host.profile])}>{host.profile}</a></span>}
        {host.drift && host.drift.length > 0 && (
          <span class="warn" title={host.drift.join('\n')}>drift: {count(host.drift.length, 'difference')}{host.drift_since && <> since <Time at={host.drift_since} /></>}</span>
        )}
        {host.job && <a href={link(['job', host.job])}>job {host.job.slice(-8)}</a>}
        {host.stale_since && <span class="warn">stale since <Time at={host.stale_since} /></span>}
      </span>
      <div class="host-memory">
        {host.ram && <Bar label="RAM" used={used(host.ram)} planned={host.ram.planned} total={host.ram.total} />}
        {vram && <Bar label="VRAM" used={used(vram)} planned={vram.planned} total={vram.total} />}
      </div>
    </header>
  );
}

function Held({ label, planned, real }: { label: string; planned: number | null; real: number | null }) {
  return (
    <span class="held">
      <span class="muted">{label}</span> <span title="planned">{bytes(planned)}</span> <span class="muted">/</span> <span title="real">{bytes(real)}</span>
    </span>
  );
}

function ServerRow({ id }: { id: string }) {
  const server = serverSignal(id)?.value;
  if (!server) return null;
  return (
    <tr role="row" class={toneOf(server.state)}>
      <td role="cell" class="c-name">
        <a data-row href={link(['server', server.host, server.name])}>{server.name}</a>
        {server.reason && <span class="reason">{server.reason}</span>}
      </td>
      <td role="cell" class="c-state"><State state={server.state} /></td>
      <td role="cell" class="c-tier">{server.tier ?? '–'}</td>
      <td role="cell" class="c-rate"><Sparkline values={server.history} /></td>
      <td role="cell" class="c-memory number">
        <Held label="RAM" planned={server.planned_ram_bytes} real={server.rss_bytes} />
        {hasVram(server) && <Held label="VRAM" planned={server.planned_vram_bytes} real={server.vram_bytes} />}
      </td>
      <td role="cell" class="c-up number">{duration(server.uptime_seconds)}</td>
      <td role="cell" class="c-port number">{server.port ?? '–'}</td>
      <td role="cell" class="c-restarts number">{server.restarts > 0 ? `${server.restarts} ↻` : ''}</td>
    </tr>
  );
}

const HEADS: [string, string][] = [
  ['Server', 'c-name'], ['State', 'c-state'], ['Tier', 'c-tier'], ['tok/s', 'c-rate'], ['Planned / real', 'c-memory'],
  ['Up', 'c-up'], ['Port', 'c-port'], ['Restarts', 'c-restarts'],
];

function HostGroup({ name }: { name: string }) {
  const host = hostSignal(name)?.value;
  const keys = useComputed(() => shownOf(name).join('\n')).value;
  if (!host) return null;
  return (
    <section class="card host" data-host={name}>
      <HostHead host={host} />
      {keys !== '' && (
        <table role="table" class="servers" aria-label={`Servers of ${name}`}>
          <colgroup>{HEADS.map(([label, cell]) => <col key={label} class={cell} />)}</colgroup>
          <thead role="rowgroup">
            <tr role="row">{HEADS.map(([label, cell]) => <th key={label} role="columnheader" scope="col" class={cell}>{label}</th>)}</tr>
          </thead>
          <tbody role="rowgroup">{keys.split('\n').map((key) => <ServerRow key={key} id={key} />)}</tbody>
        </table>
      )}
    </section>
  );
}

export function FleetView() {
  useShortcuts([
    { keys: 'c', label: 'Clear the filter', run: () => setQuery({ host: null, model: null, tier: null, state: null }) },
    { keys: 'n', label: 'Show what is not ready', run: () => setQuery({ state: 'not-ready' }) },
  ], []);
  return (
    <>
      <div class="page-head"><h1>Fleet</h1><Summary /></div>
      <Filters />
      <Failure error={loadError.value} />
      <div class="hosts">{shownHosts.value.map((name) => <HostGroup key={name} name={name} />)}</div>
      {hostNames.value.length > 0 && shownHosts.value.length === 0 && <Empty>No server matches the filter.</Empty>}
      {hostNames.value.length === 0 && !loadError.value && answer.value && (
        <Empty>The inventory has no host in group <code>models</code>.</Empty>
      )}
    </>
  );
}
