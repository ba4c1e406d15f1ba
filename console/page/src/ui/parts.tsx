// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import type { ComponentChildren } from 'preact';
import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import { ApiError } from '../api/client';
import { ago, dateTime } from '../format';
import { now } from '../state/now';

/** A card: a heading and what belongs to it. */
export function Card({ title, extra, children, id }: {
  title: ComponentChildren; extra?: ComponentChildren; children: ComponentChildren; id?: string;
}) {
  return (
    <section class="card" id={id}>
      <header class="card-head"><h2>{title}</h2>{extra}</header>
      {children}
    </section>
  );
}

export function Time({ at }: { at: string | null | undefined }) {
  if (!at) return <span class="muted">never</span>;
  return <time dateTime={at} title={dateTime(at)}>{ago(at, now.value)}</time>;
}

export function Empty({ children }: { children: ComponentChildren }) {
  return <p class="empty">{children}</p>;
}

/** What went wrong, and what to do about it. */
export function Failure({ error }: { error: unknown }) {
  if (!error) return null;
  const problem = error instanceof ApiError ? error.problem : null;
  return (
    <div class="notice bad" role="alert">
      <strong>{problem?.title ?? 'This did not work'}</strong>
      {problem?.detail !== '' && <p>{problem?.detail ?? (error instanceof Error ? error.message : String(error))}</p>}
      {problem?.fix && <p><b>Fix:</b> {problem.fix}</p>}
      {problem?.nearest && problem.nearest.length > 0 && <p><b>Nearest:</b> {problem.nearest.join(', ')}</p>}
    </div>
  );
}

/** A unified diff, or the lines of one: + and - stay readable without colour. */
export function Diff({ lines, label }: { lines: string[]; label: string }) {
  const kind = (line: string): string =>
    line.startsWith('+') ? 'add' : line.startsWith('-') ? 'del' : line.startsWith('@@') ? 'hunk' : '';
  return (
    <pre class="diff" tabIndex={0} role="group" aria-label={label}>
      {lines.map((line, i) => <span key={i} class={kind(line)}>{line}{'\n'}</span>)}
    </pre>
  );
}

export function Log({ lines, label, follow = false }: { lines: readonly string[]; label: string; follow?: boolean }) {
  const box = useRef<HTMLPreElement>(null);
  const isAtEnd = useRef(true);
  useEffect(() => {
    if (follow && isAtEnd.current && box.current) box.current.scrollTop = box.current.scrollHeight;
  });
  const scrolled = (): void => {
    const pre = box.current;
    if (pre) isAtEnd.current = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 24;
  };
  return (
    <pre class="log" ref={box} onScroll={scrolled} tabIndex={0} role={follow ? 'log' : 'group'} aria-live="off" aria-label={label}>
      {lines.length === 0 ? <span class="muted">No lines.</span> : lines.map((line, i) => <span key={i}>{line}{'\n'}</span>)}
    </pre>
  );
}

export interface Question {
  title: string;
  text: ComponentChildren;
  action: string;
  isDangerous?: boolean;
  run: () => void;
}

/** Ask before something is done that people notice. */
export function Confirm({ question, onClose }: { question: Question | null; onClose: () => void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  // Before the next key: users who know the keys press Enter at once.
  useLayoutEffect(() => {
    if (question && !dialog.current?.open) dialog.current?.showModal();
  }, [question]);
  if (!question) return null;
  const yes = (): void => {
    onClose();
    question.run();
  };
  return (
    <dialog ref={dialog} onClose={onClose} aria-labelledby="confirm-title">
      <h2 id="confirm-title">{question.title}</h2>
      <div>{question.text}</div>
      <div class="actions">
        <button type="button" onClick={onClose}>Cancel</button>
        <button type="button" class={question.isDangerous ? 'danger' : 'primary'} onClick={yes} autofocus>{question.action}</button>
      </div>
    </dialog>
  );
}

/** Load something when the view opens or its inputs change. */
export function useLoad<T>(load: () => Promise<T>, inputs: unknown[]): {
  data: T | null; error: unknown; reload: () => void;
} {
  const [data, setData] = useState<T | null>(null);
  const [error, setError] = useState<unknown>(null);
  const [turn, setTurn] = useState(0);
  useEffect(() => {
    let isCurrent = true;
    load().then(
      (loaded) => {
        if (!isCurrent) return;
        setData(loaded);
        setError(null);
      },
      (failure: unknown) => {
        if (isCurrent) setError(failure);
      },
    );
    return () => {
      isCurrent = false;
    };
  }, [...inputs, turn]);
  return { data, error, reload: () => setTurn((value) => value + 1) };
}

/** Copy a text; the button says that it was done. */
export function Copy({ text, label = 'Copy' }: { text: string; label?: string }) {
  const [isDone, setDone] = useState(false);
  const copy = (): void => {
    void navigator.clipboard?.writeText(text).then(() => {
      setDone(true);
      window.setTimeout(() => setDone(false), 1500);
    });
  };
  return <button type="button" class="quiet" onClick={copy}>{isDone ? 'Copied' : label}</button>;
}
