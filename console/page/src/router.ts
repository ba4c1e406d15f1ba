// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { computed, signal } from '@preact/signals';

/** Where the page is: `#/server/gpu1/qwen3?tab=log`. Hash routing wants nothing of the server, also behind a prefix. */
export interface Place {
  path: string[];
  query: URLSearchParams;
}

function read(hash: string): Place {
  const [path = '', query = ''] = hash.replace(/^#\/?/, '').split('?', 2);
  const parts = path.split('/').filter(Boolean).map((part) => {
    try {
      return decodeURIComponent(part);
    } catch {
      return part;
    }
  });
  return { path: parts.length === 0 ? ['fleet'] : parts, query: new URLSearchParams(query) };
}

export const place = signal<Place>(read(location.hash));
export const view = computed(() => place.value.path[0] ?? 'fleet');

window.addEventListener('hashchange', () => {
  place.value = read(location.hash);
});

export function link(path: string[], query: Record<string, string | null | undefined> = {}): string {
  const params = new URLSearchParams();
  for (const [key, value] of Object.entries(query)) if (value) params.set(key, value);
  const text = params.toString();
  return `#/${path.map(encodeURIComponent).join('/')}${text === '' ? '' : `?${text}`}`;
}

export const go = (path: string[], query: Record<string, string | null | undefined> = {}): void => {
  location.hash = link(path, query);
};

/** Names that were typed with commas between them. */
export const names = (text: string): string[] => text.split(',').map((name) => name.trim()).filter(Boolean);

/** Change parameters of the address in place, without a new entry in the history. */
export function setQuery(changes: Record<string, string | null>): void {
  const query = new URLSearchParams(place.value.query);
  for (const [key, value] of Object.entries(changes)) {
    if (value) query.set(key, value);
    else query.delete(key);
  }
  history.replaceState(null, '', link(place.value.path, Object.fromEntries(query)));
  place.value = { path: place.value.path, query };
}
