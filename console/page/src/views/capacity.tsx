// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { api } from '../api/client';
import type { Fit, HostCapacity } from '../api/types';
import { bytes, sum } from '../format';
import { link, place, setQuery } from '../router';
import { Empty, Failure, Time, useLoad } from '../ui/parts';
import { Icon, type Tone } from '../ui/state';

const FITS: Record<Fit['fits'], [Tone, string, string]> = {
  gpu: ['ok', 'GPU', 'fits on a GPU'],
  ram: ['busy', 'RAM', 'fits in RAM'],
  no: ['bad', 'no', 'does not fit'],
  unknown: ['off', '?', 'free memory is not known'],
};

function Cell({ fit }: { fit: Fit | undefined }) {
  if (!fit) return <td class="muted">–</td>;
  const [tone, word, meaning] = FITS[fit.fits];
  return (
    <td>
      <span class={`state ${tone === 'bad' ? 'off' : tone}`} title={`${meaning}; needs ${bytes(fit.needs_bytes)}`}>
        <Icon tone={tone} />{word}{fit.is_on_host ? '' : <span class="muted" title="The host does not have the file"> no file</span>}
      </span>
    </td>
  );
}

function HostRow({ host, models }: { host: HostCapacity; models: string[] }) {
  const fits = new Map(host.models.map((fit) => [fit.model_id, fit]));
  return (
    <tr>
      <th scope="row"><a data-row href={link(['fleet'], { host: host.host })}>{host.host}</a></th>
      <td class="number">{bytes(host.ram_free_bytes)}</td>
      <td class="number">{bytes(sum(host.vram_free_bytes))}</td>
      {models.map((model) => <Cell key={model} fit={fits.get(model)} />)}
    </tr>
  );
}

export function CapacityView() {
  const { data, error, reload } = useLoad(() => api.capacity(), []);
  const host = (place.value.query.get('host') ?? '').toLowerCase();
  const model = (place.value.query.get('model') ?? '').toLowerCase();
  const hosts = (data?.hosts ?? []).filter((one) => one.host.toLowerCase().includes(host));
  const needs = new Map((data?.hosts ?? []).flatMap((one) => one.models.map((fit) => [fit.model_id, fit] as const)));
  const models = [...needs.keys()].filter((id) => id.includes(model)).sort();
  const field = (key: string, label: string) => (
    <label>
      {label}
      <input type="search" {...(key === 'host' ? { 'data-filter': '' } : {})} value={place.value.query.get(key) ?? ''} autocomplete="off" spellcheck={false}
        onInput={(e) => setQuery({ [key]: e.currentTarget.value })} />
    </label>
  );
  return (
    <>
      <div class="page-head">
        <h1>What fits where</h1>
        {data && <p class="summary">One more server of each model, in the memory that is free now · as of <Time at={data.as_of} /></p>}
        <div class="actions"><button type="button" onClick={reload}>Look again</button></div>
      </div>
      <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>{field('host', 'Host')}{field('model', 'Model')}</form>
      <Failure error={error} />
      {hosts.length > 0 && models.length > 0 && (
        <section class="card flat">
          <div class="scroll" tabIndex={0} role="region" aria-label="What fits where">
            <table class="capacity">
              <thead>
                <tr>
                  <th scope="col">Host</th><th scope="col" class="number">RAM free</th><th scope="col" class="number">VRAM free</th>
                  {models.map((id) => <th key={id} scope="col" class="model">{id}<span class="reason">{bytes(needs.get(id)?.needs_bytes)}{needs.get(id)?.basis === 'file' ? ' at least' : ''}</span></th>)}
                </tr>
              </thead>
              <tbody>{hosts.map((one) => <HostRow key={one.host} host={one} models={models} />)}</tbody>
            </table>
          </div>
        </section>
      )}
      {data && (hosts.length === 0 || models.length === 0) && <Empty>{data.hosts.length === 0 ? 'No host is known yet.' : 'Nothing matches, or no model is known yet: run a scan.'}</Empty>}
    </>
  );
}
