// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { computed } from '@preact/signals';
import type { ComponentChildren } from 'preact';
import { useEffect } from 'preact/hooks';
import { api, ApiError, signedOut } from './api/client';
import { follow, staleSince } from './api/stream';
import { clock } from './format';
import { go, link, place, view } from './router';
import { foldFleet, refresh } from './state/fleet';
import { activeCount, foldJobs, refreshJobs } from './state/jobs';
import { role } from './state/session';
import { moveFocus, useShortcuts, type Shortcut } from './state/shortcuts';
import { nextTheme, theme } from './state/theme';
import { Help, helpOpen } from './ui/help';
import { Icon } from './ui/state';
import { AccessView } from './views/access';
import { CapacityView } from './views/capacity';
import { FleetView } from './views/fleet';
import { JobView } from './views/job';
import { JobsView } from './views/jobs';
import { ModelsView } from './views/models';
import { MakePlanView, PlanView } from './views/plan';
import { ProfilesView } from './views/profiles';
import { RolloutsView, RolloutView } from './views/rollouts';
import { ServerView } from './views/server';
import { SignInView } from './views/sign_in';

const TABS: [string, string, string][] = [
  ['fleet', 'Fleet', 'f'], ['plan', 'Plan', 'p'], ['jobs', 'Jobs', 'j'], ['rollouts', 'Rollouts', 'r'],
  ['profiles', 'Profiles', 'o'], ['models', 'Models', 'm'], ['capacity', 'Capacity', 'c'],
  ['access', 'Access', 'a'],
];

const VIEWS: Record<string, () => ComponentChildren> = {
  fleet: () => <FleetView />,
  server: () => <ServerView host={place.value.path[1] ?? ''} name={place.value.path[2] ?? ''} />,
  jobs: () => <JobsView />,
  plan: () => (place.value.path[1] ? <PlanView hash={place.value.path[1]} key={place.value.path[1]} /> : <MakePlanView />),
  rollouts: () => (place.value.path[1] ? <RolloutView id={place.value.path[1]} key={place.value.path[1]} /> : <RolloutsView />),
  profiles: () => <ProfilesView name={place.value.path[1] ?? ''} />,
  models: () => <ModelsView />,
  capacity: () => <CapacityView />,
  access: () => <AccessView />,
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
      {stale ? <span>no live view, stale since <time dateTime={stale}>{clock(stale)}</time></span> : <span>live</span>}
    </span>
  );
}

async function signOut(): Promise<void> {
  await api.signOut().catch(() => undefined);
  role.value = null;
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

const REFRESH_MS = 10000;

/** What follows the stream while someone is signed in. */
function useLive(): void {
  useEffect(() => {
    const load = (): void => {
      void refresh();
      void refreshJobs();
    };
    load();
    // What the console itself sees between runs, such as a server that stopped answering, is in no event.
    const timer = window.setInterval(() => {
      if (!document.hidden) void refresh();
    }, REFRESH_MS);
    const stop = follow('events', {
      onArrived: (arrived) => {
        foldFleet(arrived);
        foldJobs(arrived);
      },
      onOpen: load,
      isMain: true,
    });
    return () => {
      window.clearInterval(timer);
      stop();
    };
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

/** Ask who is signed in before anything else: a page that is not gets no data, and asks for none. */
function useSession(): boolean {
  useEffect(() => {
    if (signedOut.value || role.value !== null) return;
    api.session().then(
      (session) => { role.value = session.role ?? 'read'; },
      (error: unknown) => {
        // Without an answer the page shows that; what the token may do is up to the API anyway.
        if (error instanceof ApiError && error.problem.status === 0) role.value = 'operate';
        else signedOut.value = true;
      },
    );
  }, [signedOut.value, role.value]);
  return role.value !== null;
}

export function App() {
  const isKnown = useSession();
  if (signedOut.value) return <SignInView />;
  return isKnown ? <Signed /> : null;
}
