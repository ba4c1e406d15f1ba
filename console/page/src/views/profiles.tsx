// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useEffect, useRef, useState } from 'preact/hooks';
import { api } from '../api/client';
import type { Profile, SavedProfile } from '../api/types';
import { bytes, count } from '../format';
import { go, link, place } from '../router';
import { hostSignal } from '../state/fleet';
import { mayOperate } from '../state/session';
import { Card, Confirm, Diff, Empty, Failure, useLoad, type Question } from '../ui/parts';
import { Icon } from '../ui/state';

const PREVIEW_MS = 400;

const lines = (diff: string): string[] => (diff === '' ? [] : diff.replace(/\n$/, '').split('\n'));

/** What the text would select and need, asked for while it is typed: by those who may, as readers get no answer. */
function usePreview(name: string, text: string, saved: string | undefined): { preview: SavedProfile | null; error: unknown; isBusy: boolean } {
  const [preview, setPreview] = useState<SavedProfile | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [isBusy, setBusy] = useState(false);
  const may = mayOperate.value;
  useEffect(() => {
    if (!may) return undefined;
    let isCurrent = true;
    setBusy(true);
    const timer = window.setTimeout(() => {
      api.previewProfile(name, text).then((found) => {
        if (!isCurrent) return;
        setPreview(found);
        setError(null);
        setBusy(false);
      }, (failure: unknown) => {
        if (!isCurrent) return;
        setError(failure);
        setBusy(false);
      });
    }, PREVIEW_MS);
    return () => {
      isCurrent = false;
      window.clearTimeout(timer);
    };
  }, [name, text, saved, may]);
  return { preview, error, isBusy };
}

function Selects({ selects }: { selects: NonNullable<SavedProfile['selects']> }) {
  const hosts = Object.entries(selects);
  if (hosts.length === 0) return <Empty>No host's models are known yet: run a scan.</Empty>;
  return (
    <ul class="planned-list">
      {hosts.map(([name, selected]) => {
        const host = hostSignal(name)?.value;
        const total = [host?.ram?.total, ...(host?.gpus ?? []).map((gpu) => gpu.total)].reduce<number>((all, one) => all + (one ?? 0), 0);
        const isOver = total > 0 && (selected.needs_bytes ?? 0) > total;
        return (
          <li key={name}>
            <p class="planned">
              <b>{name}</b>
              <span>{count(selected.models.length, 'server')}</span>
              <span class={isOver ? 'warn number' : 'muted number'}>{isOver ? 'too much: ' : ''}needs {bytes(selected.needs_bytes)}{total > 0 ? ` of ${bytes(total)}` : ''}</span>
              {selected.missing.length > 0 && <span class="warn"><Icon tone="warn" /> not there: {selected.missing.join(', ')}</span>}
            </p>
            <p class="names muted">{selected.models.map((model) => <code key={model}>{model}</code>)}</p>
          </li>
        );
      })}
    </ul>
  );
}

function Verdict({ preview, isBusy }: { preview: SavedProfile | null; isBusy: boolean }) {
  if (!mayOperate.value) return <span class="muted">read only</span>;
  if (isBusy || !preview) return <span class="muted" role="status">checking…</span>;
  const bad = preview.errors.length > 0;
  return <span class={`state ${bad ? 'bad' : 'ok'}`} role="status"><Icon tone={bad ? 'bad' : 'ok'} />{bad ? count(preview.errors.length, 'error') : 'valid'}</span>;
}

function Editor({ profile, onSaved }: { profile: Profile; onSaved: () => void }) {
  const [text, setText] = useState(profile.text);
  const [question, ask] = useState<Question | null>(null);
  const [failed, setFailed] = useState<unknown>(null);
  const [note, setNote] = useState('');
  const { preview, error, isBusy } = usePreview(profile.name, text, profile.sha256);
  const form = useRef<HTMLFormElement>(null);
  const canSave = mayOperate.value && !isBusy && preview !== null && preview.errors.length === 0 && preview.diff !== '';
  const save = (): void => {
    if (!preview || !canSave) return;
    ask({
      title: `Save ${profile.name}?`,
      text: <><p class="muted">{preview.path ?? profile.path}</p><Diff lines={lines(preview.diff)} label="Difference" /></>,
      action: 'Save',
      run: () => void api.saveProfile(profile.name, text, profile.sha256 ?? '').then((saved) => {
        setFailed(null);
        setNote(saved.saved ? `Saved${saved.commit ? `, commit ${saved.commit.slice(0, 10)}` : ''}. Nothing runs with it until a plan is applied.` : '');
        if (saved.saved) onSaved();
      }, setFailed),
    });
  };
  const pressed = (event: KeyboardEvent): void => {
    if ((event.ctrlKey || event.metaKey) && event.key === 's') {
      event.preventDefault();
      save();
    }
  };
  return (
    <div class="stack">
      <Card title={profile.name} extra={<Verdict preview={preview} isBusy={isBusy} />}>
        <p class="muted">{preview?.path ?? profile.path}{profile.builtin ? ' · built in: saving makes your own file next to the inventory' : ''}</p>
        <form ref={form} onSubmit={(e) => { e.preventDefault(); save(); }}>
          <textarea class="editor" aria-label={`Text of ${profile.name}`} spellcheck={false} value={text} onKeyDown={pressed}
            readOnly={!mayOperate.value} onInput={(e) => { setText(e.currentTarget.value); setNote(''); }} rows={Math.min(32, Math.max(14, text.split('\n').length + 1))} />
          <div class="actions">
            <button type="submit" class="primary" disabled={!canSave}>Save…</button>
            <button type="button" disabled={text === profile.text} onClick={() => setText(profile.text)}>Revert</button>
            <a class="button" href={link(['plan'], { profile: profile.name })}>Plan with it</a>
            <span class="muted">Ctrl+S saves</span>
          </div>
        </form>
        {note && <p class="notice ok" role="status">{note}</p>}
        <Failure error={failed ?? error} />
        {preview?.errors.map((message) => <p class="notice bad lines" key={message}>{message}</p>)}
        {preview?.warnings?.map((message) => <p class="notice warn lines" key={message}>{message}</p>)}
      </Card>
      {preview && preview.diff !== '' && <Card title="Difference to the file"><Diff lines={lines(preview.diff)} label="Difference to the file" /></Card>}
      {preview?.selects && <Card title="What it selects and needs"><Selects selects={preview.selects} /></Card>}
      <Confirm question={question} onClose={() => ask(null)} />
    </div>
  );
}

const TEMPLATE = 'description: \nenabled_models:\n  - {tier: Q4}\nparameters:\n  ctx_size: 8192\n';

function fresh(name: string, from: Profile | undefined): Profile {
  return { name, path: '', description: '', builtin: false, active_on: [], text: from?.text ?? TEMPLATE, sha256: '' };
}

export function ProfilesView({ name }: { name: string }) {
  const { data, error, reload } = useLoad(() => api.profiles(), []);
  const profiles = data?.profiles ?? [];
  const from = profiles.find((profile) => profile.name === place.value.query.get('from'));
  const chosen = profiles.find((profile) => profile.name === name) ?? (name && data ? fresh(name, from) : undefined);
  const create = (event: SubmitEvent): void => {
    event.preventDefault();
    const form = event.currentTarget as HTMLFormElement;
    const made = String(new FormData(form).get('name') ?? '').trim();
    if (made) go(['profiles', made], { from: name });
    form.reset();
  };
  return (
    <>
      <div class="page-head"><h1>Profiles</h1><p class="summary">Which models get a server, and with which parameters.</p></div>
      <Failure error={error} />
      <div class="columns side">
        <Card title="Profiles">
          <ul class="list tall">
            {profiles.map((profile) => (
              <li key={profile.name}>
                <a data-row href={link(['profiles', profile.name])} aria-current={profile.name === name ? 'page' : undefined}>{profile.name}</a>
                <span class="muted">{profile.builtin ? 'built in' : 'own'}{profile.active_on.length > 0 ? ` · on ${count(profile.active_on.length, 'host')}` : ''}</span>
                {profile.description && <span class="reason">{profile.description}</span>}
              </li>
            ))}
          </ul>
          {mayOperate.value && (
            <form class="fields new" onSubmit={create}>
              <label>New profile{name ? `, from ${name}` : ''}<input name="name" pattern="[A-Za-z0-9][A-Za-z0-9._\-]*" maxLength={64} required autocomplete="off" spellcheck={false} data-filter="" /></label>
              <button type="submit">Create</button>
            </form>
          )}
        </Card>
        {chosen ? <Editor key={chosen.name} profile={chosen} onSaved={reload} /> : <Card title="Profile"><Empty>Choose one to read or change it.</Empty></Card>}
      </div>
    </>
  );
}
