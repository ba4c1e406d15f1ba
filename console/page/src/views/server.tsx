// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { useEffect, useState } from 'preact/hooks';
import { api } from '../api/client';
import type { Footprint, ServerDetail, Verb } from '../api/types';
import { bytes, count, DASH, duration, hasVram, shellQuote } from '../format';
import { go, link } from '../router';
import { serverKey, serverSignal } from '../state/fleet';
import { mayOperate } from '../state/session';
import { useShortcuts } from '../state/shortcuts';
import { Bar, Series, Sparkline } from '../ui/charts';
import { Card, Confirm, Copy, Empty, Failure, Log, Time, useLoad, type Question } from '../ui/parts';
import { Icon, State, toneOf } from '../ui/state';
import { LogCard } from './server_log';

// The log and the slots are not in the stream, so they are asked for again while the view is open.
const RELOAD_MS = 5000;

function Argv({ argv }: { argv: string[] }) {
  const [program = '', ...rest] = argv;
  // A flag and its values on one line, as in a unit file.
  const lines = rest.reduce<string[]>((all, word) => {
    const last = all[all.length - 1];
    if (word.startsWith('-') && !/^-[\d.]+$/.test(word)) all.push(shellQuote(word));
    else if (last === undefined) all.push(shellQuote(word));
    else all[all.length - 1] = `${last} ${shellQuote(word)}`;
    return all;
  }, []);
  return (
    <Card title="Command line" extra={<Copy text={argv.map(shellQuote).join(' ')} />}>
      <pre class="log argv" tabIndex={0} role="group" aria-label="Command line">{[shellQuote(program), ...lines.map((line) => `  ${line}`)].join('\n')}</pre>
    </Card>
  );
}

function Truth({ estimate, truth }: { estimate: Footprint | null; truth: Footprint | null }) {
  const row = (label: string, planned: number | null, real: number | null) => (
    <Bar label={label} used={real} planned={planned} total={Math.max(real ?? 0, planned ?? 0) * 1.15 || null}
      text={`${bytes(planned)} estimated, ${bytes(real)} real${difference(planned, real)}`} />
  );
  return (
    <Card title="Memory: estimate against truth">
      {estimate === null && truth === null ? <Empty>Known once the server is ready.</Empty> : (
        <div class="stack">
          {row('RAM', estimate?.ram_bytes ?? null, truth?.ram_bytes ?? null)}
          {row('VRAM', estimate?.vram_bytes ?? null, truth?.vram_bytes ?? null)}
        </div>
      )}
    </Card>
  );
}

const difference = (planned: number | null, real: number | null): string => {
  if (!planned || !real) return '';
  const percent = Math.round((real / planned - 1) * 100);
  return ` (${percent > 0 ? '+' : ''}${percent} %)`;
};

/** Its speed in all runs that the console has seen. */
function Speed({ rates }: { rates: ServerDetail['rates'] }) {
  return (
    <Card title="Speed">
      {rates.length < 2 ? <Empty>{rates.length === 0 ? 'No run has measured it yet: verify does.' : 'Only one run has measured it so far.'}</Empty>
        : <Series unit="tok/s" points={rates.map(({ at, tokens_per_second: value }) => ({ at, value }))} />}
    </Card>
  );
}

function Slots({ slots, total }: { slots: ServerDetail['slots']; total: number | null }) {
  return (
    <Card title="Slots">
      {slots === null ? <Empty>{total === null ? '' : `${count(total, 'slot')}. `}The server does not show what they do.</Empty> : (
        <ul class="slots">
          {slots.map((slot) => (
            <li key={slot.id}>
              <Icon tone={slot.is_processing ? 'busy' : 'off'} />
              <span>slot {slot.id}</span>
              <span class="muted">{slot.is_processing ? 'working' : 'free'}</span>
              <span class="number muted">{slot.n_ctx ?? DASH} tokens</span>
            </li>
          ))}
        </ul>
      )}
    </Card>
  );
}

const WORDS: Record<'start' | 'stop' | 'restart', [string, string]> = {
  start: ['Start', 's'], stop: ['Stop', 'x'], restart: ['Restart', 'r'],
};

function useActions(host: string, name: string) {
  const [question, ask] = useState<Question | null>(null);
  const [error, setError] = useState<unknown>(null);
  const run = (verb: Verb): void => {
    api.startJob({ verb, servers: [name], limit: [host] }).then((id) => go(['job', id]), setError);
  };
  const act = (verb: 'start' | 'stop' | 'restart'): void => {
    if (verb === 'start') {
      run(verb);
      return;
    }
    ask({
      title: `${WORDS[verb][0]} ${name}?`,
      text: <p>On {host}. Requests that it is answering are finished first where a gateway is in front of it, and cut off otherwise.</p>,
      action: WORDS[verb][0], isDangerous: verb === 'stop', run: () => run(verb),
    });
  };
  return { question, close: () => ask(null), error, act };
}

export function ServerView({ host, name }: { host: string; name: string }) {
  const { data, error, reload } = useLoad(() => api.server(host, name), [host, name]);
  const { question, close, error: failed, act } = useActions(host, name);
  const live = serverSignal(serverKey(host, name))?.value;
  useEffect(() => {
    const timer = window.setInterval(reload, RELOAD_MS);
    return () => window.clearInterval(timer);
  }, [host, name]);
  // A change of state is worth a look at the log at once.
  useEffect(reload, [live?.state]);
  const verbs = Object.keys(WORDS) as (keyof typeof WORDS)[];
  useShortcuts(mayOperate.value ? verbs.map((verb) => ({
    keys: WORDS[verb][1], label: `${WORDS[verb][0]} this server`, run: () => act(verb),
  })) : [], [host, name, mayOperate.value]);
  const server = live ?? data;
  return (
    <>
      <p class="trail"><a href={link(['fleet'])}>Fleet</a> / <a href={link(['fleet'], { host })}>{host}</a></p>
      <div class="page-head">
        <h1>{name}</h1>
        {server && <State state={server.state} />}
        {mayOperate.value && (
          <div class="actions">
            {verbs.map((verb) => (
              <button key={verb} type="button" class={verb === 'stop' ? 'danger' : ''} onClick={() => act(verb)}
                disabled={verb === 'start' ? server?.is_ready === true : server?.state === 'stopped'}>{WORDS[verb][0]}</button>
            ))}
          </div>
        )}
      </div>
      <Failure error={failed ?? error} />
      {server && server.reason && (
        <div class={`notice ${toneOf(server.state)}`}>
          <strong>{server.reason}</strong>
          {server.fix && <p><b>Fix:</b> {server.fix}</p>}
        </div>
      )}
      {server && (
        <Card title="Now" extra={data && <span class="muted">as of <Time at={data.as_of} /> from {data.source}</span>}>
          <dl class="facts">
            <div><dt>Model</dt><dd><a href={link(['models'], { q: server.model_id })}>{server.display_name ?? server.model_id}</a></dd></div>
            <div><dt>Tier</dt><dd>{server.tier ?? DASH}</dd></div>
            <div><dt>tok/s</dt><dd>{live ? <Sparkline values={live.history} /> : DASH}</dd></div>
            <div><dt>Port</dt><dd class="number">{server.port ?? DASH}</dd></div>
            <div><dt>Process</dt><dd class="number">{server.pid ?? DASH}</dd></div>
            <div><dt>Up</dt><dd class="number">{duration(server.uptime_seconds)}</dd></div>
            <div><dt>Restarts</dt><dd class="number">{server.restarts}</dd></div>
            <div><dt>RAM planned / real</dt><dd class="number">{bytes(server.planned_ram_bytes)} / {bytes(server.rss_bytes)}</dd></div>
            {hasVram(server) && <div><dt>VRAM planned / real</dt><dd class="number">{bytes(server.planned_vram_bytes)} / {bytes(server.vram_bytes)}</dd></div>}
            {data?.revision && <div><dt>Revision</dt><dd><code>{data.revision.slice(0, 12)}</code></dd></div>}
          </dl>
        </Card>
      )}
      {data && (
        <div class="columns">
          <div class="stack">
            <Speed rates={data.rates} />
            <Truth estimate={data.estimate} truth={data.truth} />
            <Slots slots={data.slots} total={data.slots_total ?? null} />
            {data.argv && <Argv argv={data.argv} />}
            {data.environment_names && data.environment_names.length > 0 && (
              <Card title="Environment (names only)"><p class="names">{data.environment_names.map((key) => <code key={key}>{key}</code>)}</p></Card>
            )}
          </div>
          <div class="stack">
            <LogCard host={host} name={name} lines={data.log_tail} asOf={data.log_tail_as_of} onRead={reload} />
            <Card title="What runs have said of it" extra={<Copy text={data.log.join('\n')} />}>
              <Log lines={data.log} label={`Lines of runs about ${name}`} follow />
            </Card>
          </div>
        </div>
      )}
      <Confirm question={question} onClose={close} />
    </>
  );
}
