// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useState } from 'preact/hooks';
import { api } from '../api/client';
import type { Model } from '../api/types';
import { bytes, count, DASH } from '../format';
import { go, link, place, setQuery } from '../router';
import { mayOperate } from '../state/session';
import { useShortcuts } from '../state/shortcuts';
import { Card, Empty, Failure, Time, useLoad } from '../ui/parts';
import { Icon } from '../ui/state';

const text = (value: unknown): string => (typeof value === 'object' && value !== null ? JSON.stringify(value) : String(value));

function Provenance({ model }: { model: Model }) {
  const entries = Object.entries(model.provenance ?? {});
  return (
    <details class="provenance">
      <summary>{entries.length === 0 ? 'origin unknown' : 'where it is from'}</summary>
      <dl>
        {model.path && <div><dt>path</dt><dd><code>{model.path}</code></dd></div>}
        {entries.map(([key, value]) => <div key={key}><dt>{key.replaceAll('_', ' ')}</dt><dd><code>{text(value)}</code></dd></div>)}
        <div><dt>hosts</dt><dd>{model.hosts.join(', ')}</dd></div>
      </dl>
      {entries.length === 0 && <p class="muted">The manifest models.lock.yml has no entry for its file: the playbook manifest writes one.</p>}
    </details>
  );
}

function ModelRow({ model }: { model: Model }) {
  return (
    <tr role="row">
      <td role="cell" class="c-name">
        <b>{model.id}</b>
        {model.display_name && <span class="reason">{model.display_name}</span>}
        <Provenance model={model} />
      </td>
      <td role="cell" class="c-tier">{model.tier ?? DASH}</td>
      <td role="cell" class="c-kind">{model.kind ?? DASH}</td>
      <td role="cell" class="c-arch">{model.architecture ?? DASH}</td>
      <td role="cell" class="c-size number">{bytes(model.size_bytes)}</td>
      <td role="cell" class="c-context number">{model.context_length ? model.context_length.toLocaleString('en') : DASH}</td>
      <td role="cell" class="c-on"><a data-row href={link(['fleet'], { model: model.id })} aria-label={`${count(model.hosts.length, 'host')} with ${model.id}`}>{count(model.hosts.length, 'host')}</a></td>
    </tr>
  );
}

const HEADS: [string, string][] = [
  ['Model', 'c-name'], ['Tier', 'c-tier'], ['Kind', 'c-kind'], ['Architecture', 'c-arch'], ['Size', 'c-size'], ['Context', 'c-context'], ['On', 'c-on'],
];

export function ModelsView() {
  const { data, error } = useLoad(() => api.models(), []);
  const [failed, setFailed] = useState<unknown>(null);
  const scan = (): void => void api.startJob({ verb: 'scan' }).then((id) => go(['job', id]), setFailed);
  useShortcuts(mayOperate.value ? [{ keys: 's', label: 'Scan the models of all hosts', run: scan }] : [], [mayOperate.value]);
  const q = (place.value.query.get('q') ?? '').toLowerCase();
  const tier = place.value.query.get('tier') ?? '';
  const models = data?.models ?? [];
  const shown = models.filter((model) => (tier === '' || model.tier === tier)
    && (q === '' || model.id.includes(q) || (model.display_name ?? '').toLowerCase().includes(q)));
  const tiers = [...new Set(models.map((model) => model.tier).filter((one) => one !== null))].sort();
  return (
    <>
      <div class="page-head">
        <h1>Models</h1>
        {data && <p class="summary"><b>{models.length}</b> models{data.rejected.length > 0 && <> · <a class="bad" href="#rejected" onClick={(e) => { e.preventDefault(); document.getElementById('rejected')?.scrollIntoView(); }}>{data.rejected.length} rejected</a></>} · as of <Time at={data.as_of} /></p>}
        {mayOperate.value && <div class="actions"><button type="button" onClick={scan}>Scan all hosts</button></div>}
      </div>
      <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>
        <label>Model<input type="search" data-filter="" value={place.value.query.get('q') ?? ''} spellcheck={false} autocomplete="off" onInput={(e) => setQuery({ q: e.currentTarget.value })} /></label>
        <label>
          Tier
          <select value={tier} onChange={(e) => setQuery({ tier: e.currentTarget.value })}>
            <option value="">any</option>
            {tiers.map((one) => <option key={one}>{one}</option>)}
          </select>
        </label>
      </form>
      <Failure error={failed ?? error} />
      {shown.length > 0 && (
        <section class="card flat">
          <table role="table" class="models" aria-label="Models">
            <thead role="rowgroup"><tr role="row">{HEADS.map(([head, cell]) => <th key={head} role="columnheader" scope="col" class={cell}>{head}</th>)}</tr></thead>
            <tbody role="rowgroup">{shown.map((model) => <ModelRow key={model.id} model={model} />)}</tbody>
          </table>
        </section>
      )}
      {data && shown.length === 0 && <Empty>{models.length === 0 ? 'No model is known yet: run a scan.' : 'No model matches the filter.'}</Empty>}
      {data && data.rejected.length > 0 && (
        <Card title="Rejected files" id="rejected">
          <ul class="planned-list">
            {data.rejected.map((file) => (
              <li key={`${file.host} ${file.path}`}>
                <p class="planned"><span class="state bad"><Icon tone="bad" /><code>{file.path}</code></span><span class="muted">{file.host}</span></p>
                <p>{file.reason}</p>
              </li>
            ))}
          </ul>
        </Card>
      )}
    </>
  );
}
