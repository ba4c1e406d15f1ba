// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later

/** Numbers and times as people read them. A missing value is a dash, never a zero. */

export const DASH = '–';
const UNITS = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];

export function bytes(value: number | null | undefined): string {
  if (value === null || value === undefined) return DASH;
  let size = value;
  let unit = 0;
  while (Math.abs(size) >= 1024 && unit < UNITS.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${size.toFixed(unit > 1 && size < 100 ? 1 : 0)} ${UNITS[unit]}`;
}

export function duration(seconds: number | null | undefined): string {
  if (seconds === null || seconds === undefined) return DASH;
  if (seconds < 10) return `${seconds.toFixed(seconds < 1 && seconds > 0 ? 1 : 0)} s`;
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

export function ago(time: string | null | undefined, now: number): string {
  if (!time) return DASH;
  const seconds = Math.max(0, (now - Date.parse(time)) / 1000);
  return Number.isNaN(seconds) ? DASH : seconds < 5 ? 'just now' : `${duration(seconds)} ago`;
}

export function clock(time: string | null | undefined): string {
  if (!time) return DASH;
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? DASH : date.toLocaleTimeString('en-GB');
}

export function dateTime(time: string | null | undefined): string {
  if (!time) return DASH;
  const date = new Date(time);
  return Number.isNaN(date.getTime()) ? DASH : date.toISOString().slice(0, 19).replace('T', ' ') + ' UTC';
}

export const rate = (value: number | null | undefined): string =>
  value === null || value === undefined ? DASH : value.toFixed(value < 10 ? 1 : 0);

export const count = (n: number, one: string, many = `${one}s`): string => `${n} ${n === 1 ? one : many}`;

/** A sum in which a missing part is left out; null where all are missing. */
export function sum(values: (number | null | undefined)[]): number | null {
  const known = values.filter((value): value is number => typeof value === 'number');
  return known.length === 0 ? null : known.reduce((a, b) => a + b, 0);
}

/** Whether a server holds memory of GPUs or was planned with some. */
export const hasVram = (server: { planned_vram_bytes: number | null; vram_bytes: number | null }): boolean =>
  (server.planned_vram_bytes ?? 0) > 0 || (server.vram_bytes ?? 0) > 0;

/** A command line to copy: only what a shell would misread is quoted. */
export const shellQuote = (word: string): string =>
  /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
