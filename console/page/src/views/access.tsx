// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { api } from '../api/client';
import type { AuditEntry, Key } from '../api/types';
import { dateTime } from '../format';
import { link, place, setQuery } from '../router';
import { useShortcuts } from '../state/shortcuts';
import { Card, Empty, Failure, useLoad } from '../ui/parts';

const ROLES: Record<string, string> = { read: 'looks', operate: 'looks and changes' };

function Keys({ keys }: { keys: Key[] }) {
  return (
    <Card title="Keys" extra={<span class="muted">names and roles only: the keys themselves are kept nowhere</span>}>
      <div class="scroll" tabIndex={0} role="group" aria-label="Keys">
        <table class="access" aria-label="Keys">
          <thead><tr><th scope="col">Name</th><th scope="col">Role</th><th scope="col">Made</th></tr></thead>
          <tbody>
            {keys.map((key) => (
              <tr key={key.name}>
                <th scope="row">{key.name}</th>
                <td>{key.role} <span class="muted">{ROLES[key.role]}</span></td>
                <td class="muted"><time dateTime={key.created_at}>{dateTime(key.created_at)}</time></td>
              </tr>
            ))}
          </tbody>
        </table>
      </div>
    </Card>
  );
}

const words = (value: unknown): string =>
  Array.isArray(value) ? value.map(words).join(', ') : typeof value === 'object' ? JSON.stringify(value) : String(value);

/** What was done, in words: "verb: site, profile: production". */
const detailOf = ({ detail }: AuditEntry): string =>
  Object.entries(detail).map(([name, value]) => `${name}: ${words(value)}`).join(', ');

function Entry({ entry }: { entry: AuditEntry }) {
  return (
    <tr>
      <td class="number"><time dateTime={entry.at}>{dateTime(entry.at)}</time></td>
      <td><b>{entry.by || 'unknown'}</b></td>
      <td><code>{entry.action}</code></td>
      <td>{entry.action.startsWith('job.') ? <a data-row href={link(['job', entry.target])}>{entry.target.slice(-8)}</a> : entry.target}</td>
      <td>{detailOf(entry)}</td>
      <td class="muted">{entry.address}</td>
    </tr>
  );
}

export function AccessView() {
  const keys = useLoad(() => api.keys(), []);
  const audit = useLoad(() => api.audit(), []);
  useShortcuts([{ keys: 'l', label: 'Load the audit log again', run: audit.reload }], []);
  const wanted = (place.value.query.get('q') ?? '').toLowerCase();
  const entries = (audit.data?.entries ?? []).filter((entry) =>
    `${entry.by} ${entry.action} ${entry.target} ${detailOf(entry)} ${entry.address}`.toLowerCase().includes(wanted));
  return (
    <>
      <div class="page-head"><h1>Access</h1><p class="summary">Who may do what, and who did what.</p></div>
      <Failure error={keys.error ?? audit.error} />
      {keys.data && <Keys keys={keys.data.keys} />}
      <form class="filters" role="search" onSubmit={(e) => e.preventDefault()}>
        <label>Who, what or where
          <input type="search" data-filter="" value={place.value.query.get('q') ?? ''} spellcheck={false} autocomplete="off"
            onInput={(e) => setQuery({ q: e.currentTarget.value })} />
        </label>
      </form>
      {audit.data && (
        <Card title="Audit log" extra={<span class="actions"><span class="muted">the newest {audit.data.entries.length}</span><button type="button" class="quiet" onClick={audit.reload}>Load again</button></span>}>
          {entries.length === 0 ? <Empty>{audit.data.entries.length === 0 ? 'Nothing was done yet.' : 'Nothing matches the filter.'}</Empty> : (
            <div class="scroll" tabIndex={0} role="group" aria-label="Audit log">
              <table class="access" aria-label="Audit log">
                <thead><tr>{['At', 'Who', 'What', 'Of', 'With', 'From'].map((head) => <th key={head} scope="col">{head}</th>)}</tr></thead>
                <tbody>{entries.map((entry, i) => <Entry key={`${entry.at} ${i}`} entry={entry} />)}</tbody>
              </table>
            </div>
          )}
        </Card>
      )}
    </>
  );
}
