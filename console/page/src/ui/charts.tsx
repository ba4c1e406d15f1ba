// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

import { bytes, DASH, rate } from '../format';

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
