// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Reads one header with @huggingface/gguf, which is installed in the folder of the first argument, and prints JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";

const [folder, path] = process.argv.slice(2);
const { gguf } = createRequire(join(folder, "package.json"))("@huggingface/gguf");

const counted = () => Number(/syscr: (\d+)/.exec(readFileSync("/proc/self/io", "utf8"))[1]);
counted();
const first = counted();
const between = counted() - first;
const before = counted();
const began = performance.now();
await gguf(path, { allowLocalFile: true });
const seconds = (performance.now() - began) / 1000;
const reads = counted() - before - between;
const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
console.log(JSON.stringify({ seconds, peak_bytes: peak, reads }));
