// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { computed } from '@preact/signals';
import type { ComponentChildren } from 'preact';
import { useEffect } from 'preact/hooks';
import { api, signedOut } from './api/client';
import { follow, staleSince } from './api/stream';
import { clock } from './format';
import { go, link, place, view } from './router';
import { foldEvents, refresh } from './state/fleet';
import { activeCount, foldJobEvents, refreshJobs } from './state/jobs';
import { role } from './state/session';
import { moveFocus, useShortcuts, type Shortcut } from './state/shortcuts';
import { nextTheme, theme } from './state/theme';
import { Help, helpOpen } from './ui/help';
import { Icon } from './ui/state';
import { FleetView } from './views/fleet';
import { JobView } from './views/job';
import { JobsView } from './views/jobs';
import { ServerView } from './views/server';
import { SignInView } from './views/sign_in';

const TABS: [string, string, string][] = [
  ['fleet', 'Fleet', 'f'], ['jobs', 'Jobs', 'j'],
];

const VIEWS: Record<string, () => ComponentChildren> = {
  fleet: () => <FleetView />,
  server: () => <ServerView host={place.value.path[1] ?? ''} name={place.value.path[2] ?? ''} />,
  jobs: () => <JobsView />,
  job: () => <JobView id={place.value.path[1] ?? ''} key={place.value.path[1]} />,
};
// Views that belong to a tab without being it.
const PARENTS: Record<string, string> = { server: 'fleet', job: 'jobs' };
const tab = computed(() => PARENTS[view.value] ?? view.value);

const SHORTCUTS: Shortcut[] = [
  { keys: '?', label: 'Show this list', run: () => { helpOpen.value = true; } },
  ...TABS.map(([name, label, key]) => ({ keys: `g ${key}`, label: `Open ${label.toLowerCase()}`, run: () => go([name]) })),
  { keys: 'j', label: 'Next row', run: () => moveFocus(1) },
  { keys: 'k', label: 'Previous row', run: () => moveFocus(-1) },
  { keys: '/', label: 'Filter', run: () => document.querySelector<HTMLElement>('[data-filter]')?.focus() },
  { keys: 't', label: 'Change the theme: system, light, dark', run: nextTheme },
];

function Connection() {
  const stale = staleSince.value;
  return (
    <span class={stale ? 'live warn' : 'live ok'} role="status">
      <Icon tone={stale ? 'warn' : 'ok'} />
      {stale ? <span>stale since <time dateTime={stale}>{clock(stale)}</time></span> : <span>live</span>}
    </span>
  );
}

async function signOut(): Promise<void> {
  await api.signOut().catch(() => undefined);
  signedOut.value = true;
}

function Header() {
  return (
    <header class="top">
      <a class="brand" href={link(['fleet'])}>magi.llama</a>
      <nav aria-label="Views">
        {TABS.map(([name, label]) => (
          <a key={name} href={link([name])} aria-current={tab.value === name ? 'page' : undefined}>
            {label}{name === 'jobs' && activeCount.value > 0 ? <span class="count" aria-label={`${activeCount.value} active`}>{activeCount.value}</span> : null}
          </a>
        ))}
      </nav>
      <div class="tools">
        <Connection />
        <button type="button" class="quiet" onClick={nextTheme} aria-label={`Theme: ${theme.value}. Change it`}>◐ {theme.value}</button>
        <button type="button" class="quiet" onClick={() => { helpOpen.value = true; }} aria-label="Keyboard shortcuts">?</button>
        <button type="button" class="quiet" onClick={() => void signOut()}>Sign out</button>
      </div>
    </header>
  );
}

/** What follows the stream while someone is signed in. */
function useLive(): void {
  useEffect(() => {
    const load = (): void => {
      void refresh();
      void refreshJobs();
    };
    api.session().then((session) => { role.value = session.role; }, () => undefined);
    load();
    return follow('events', (events) => {
      foldEvents(events);
      foldJobEvents(events);
    }, load, true);
  }, []);
}

const TITLES: Record<string, string> = { server: 'Server', job: 'Job' };

function Signed() {
  useLive();
  useShortcuts(SHORTCUTS, []);
  const name = VIEWS[view.value] ? view.value : 'fleet';
  useEffect(() => {
    const title = TITLES[name] ?? TABS.find(([key]) => key === name)?.[1] ?? 'Fleet';
    document.title = [...place.value.path.slice(1), title, 'magi.llama'].join(' · ');
  }, [place.value]);
  return (
    <>
      <a class="skip" href="#main" onClick={(e) => { e.preventDefault(); document.getElementById('main')?.focus(); }}>Skip to content</a>
      <Header />
      <main id="main" tabIndex={-1}>{VIEWS[name]?.()}</main>
      <Help />
    </>
  );
}

export function App() {
  return signedOut.value ? <SignInView /> : <Signed />;
}
