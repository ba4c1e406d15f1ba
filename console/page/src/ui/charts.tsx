// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { bytes, DASH, dateTime, rate } from '../format';

const WIDTH = 72;
const HEIGHT = 18;

/** The last values as a line; the number next to it says what the newest is. */
export function Sparkline({ values }: { values: readonly number[] }) {
  const last = values[values.length - 1];
  const top = Math.max(1, ...values) * 1.15;
  const step = WIDTH / Math.max(1, values.length - 1);
  const points = values.map((value, i) => `${(i * step).toFixed(1)},${(HEIGHT - 1 - (value / top) * (HEIGHT - 2)).toFixed(1)}`);
  return (
    <span class="spark">
      <svg viewBox={`0 0 ${WIDTH} ${HEIGHT}`} width={WIDTH} height={HEIGHT} aria-hidden="true">
        {values.length > 1 && <polyline points={points.join(' ')} />}
      </svg>
      <span class="number">{rate(last)}</span>
    </span>
  );
}

export interface Point {
  at: string;
  value: number;
}

/** Values over time, with the least and the greatest, and from when to when they are. */
export function Series({ points, unit }: { points: readonly Point[]; unit: string }) {
  const times = points.map(({ at }) => Date.parse(at));
  const values = points.map(({ value }) => value);
  const [first = 0, last = 0] = [times[0], times[times.length - 1]];
  const top = Math.max(...values) * 1.1 || 1;
  const x = (time: number): number => (last === first ? 100 : ((time - first) / (last - first)) * 100);
  const line = points.map(({ value }, i) => `${x(times[i] ?? first).toFixed(2)},${(40 - (value / top) * 40).toFixed(2)}`).join(' ');
  return (
    <figure class="series">
      <svg viewBox="0 0 100 40" preserveAspectRatio="none" aria-hidden="true"><polyline points={line} /></svg>
      <figcaption class="muted">
        <time dateTime={points[0]?.at}>{dateTime(points[0]?.at)}</time>
        <span class="number">{rate(Math.min(...values))} to {rate(Math.max(...values))} {unit}, now {rate(values[values.length - 1])}</span>
        <time dateTime={points.at(-1)?.at}>{dateTime(points.at(-1)?.at)}</time>
      </figcaption>
    </figure>
  );
}

export interface BarProps {
  label: string;
  /** What is held now. */
  used: number | null;
  /** What the plan says that is needed: a mark on the bar. */
  planned?: number | null;
  total: number | null;
  text?: string;
}

const share = (value: number, total: number): number => Math.max(0, Math.min(100, (value / total) * 100));

/** Memory: used of total as a bar, what is planned as a mark. */
export function Bar({ label, used, planned = null, total, text }: BarProps) {
  const limit = total ?? Math.max(used ?? 0, planned ?? 0, 1);
  const isOver = total !== null && Math.max(used ?? 0, planned ?? 0) > total;
  const said = text ?? `${bytes(used)}${total === null ? '' : ` of ${bytes(total)}`}`;
  return (
    <div class={isOver ? 'bar over' : 'bar'}>
      <span class="bar-label">{label}</span>
      <svg class="bar-track" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
        <rect class="track" x="0" y="0" width="100" height="8" />
        <rect class="used" x="0" y="0" width={used === null ? 0 : share(used, limit)} height="8" />
        {planned !== null && planned > 0 && <rect class="mark" x={Math.min(98.5, share(planned, limit))} y="0" width="1.5" height="8" />}
      </svg>
      <span class="number">{used === null && total === null ? DASH : said}{isOver ? ' (too much)' : ''}</span>
    </div>
  );
}
