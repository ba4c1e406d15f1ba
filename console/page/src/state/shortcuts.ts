// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { signal } from '@preact/signals';
import { useLayoutEffect } from 'preact/hooks';

export interface Shortcut {
  keys: string;
  label: string;
  run: () => void;
}

/** What the keyboard does here and now; the help dialog lists it. */
export const shortcuts = signal<readonly Shortcut[]>([]);
const OFF = 'magi.shortcuts.off';
const stored = (): boolean => {
  try {
    return localStorage.getItem(OFF) === '1';
  } catch {
    return false;
  }
};
/** Single keys disturb those who speak to their computer, so they can be switched off. */
export const shortcutsOff = signal(stored());
export function setShortcutsOff(value: boolean): void {
  shortcutsOff.value = value;
  try {
    localStorage.setItem(OFF, value ? '1' : '0');
  } catch {
    // Without storage it holds until the page is closed.
  }
}

export function addShortcuts(added: Shortcut[]): () => void {
  shortcuts.value = [...shortcuts.peek(), ...added];
  return () => {
    shortcuts.value = shortcuts.peek().filter((shortcut) => !added.includes(shortcut));
  };
}

/** Add shortcuts while a component is shown. */
export function useShortcuts(added: Shortcut[], inputs: unknown[]): void {
  useLayoutEffect(() => addShortcuts(added), inputs);
}

let first = '';
let timer: number | undefined;

function pressed(event: KeyboardEvent): void {
  const target = event.target as HTMLElement | null;
  const isTyping = target?.closest('input, textarea, select, [contenteditable]') !== null;
  if (event.key === 'Escape' && isTyping) target?.blur();
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey || shortcutsOff.value) return;
  if (document.querySelector('dialog[open]')) return;
  const keys = first === '' ? event.key : `${first} ${event.key}`;
  first = '';
  window.clearTimeout(timer);
  // The newest wins: a view's own shortcut before the page's.
  const found = [...shortcuts.value].reverse().find((shortcut) => shortcut.keys === keys);
  if (found) {
    event.preventDefault();
    found.run();
  } else if (shortcuts.value.some((shortcut) => shortcut.keys.startsWith(`${keys} `))) {
    first = keys;
    timer = window.setTimeout(() => {
      first = '';
    }, 1500);
  }
}

window.addEventListener('keydown', pressed);

/** Move the focus among the links that are marked as rows. */
export function moveFocus(step: number): void {
  const rows = [...document.querySelectorAll<HTMLElement>('[data-row]')].filter((row) => row.checkVisibility());
  const at = rows.indexOf(document.activeElement as HTMLElement);
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  next?.focus();
  next?.scrollIntoView({ block: 'nearest' });
}
