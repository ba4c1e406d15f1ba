// Copyright (c) the magi.llama contributors
// GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
// SPDX-License-Identifier: GPL-3.0-or-later
// Reads one header with a package that is installed in the folder given as first argument, and prints JSON.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { pathToFileURL } from "node:url";

const [folder, name, path] = process.argv.slice(2);
const found = createRequire(join(folder, "package.json")).resolve(name);
const peer = await import(pathToFileURL(found));
const readers = {
  "@huggingface/gguf": () => (peer.gguf ?? peer.default.gguf)(path, { allowLocalFile: true }),
  // hyllama takes the bytes and reads no tensor infos.
  hyllama: () => peer.ggufMetadata(new Uint8Array(readFileSync(path)).buffer),
};

const counted = () => Number(/syscr: (\d+)/.exec(readFileSync("/proc/self/io", "utf8"))[1]);
counted();
const first = counted();
const between = counted() - first;
const before = counted();
const began = performance.now();
await readers[name]();
const seconds = (performance.now() - began) / 1000;
const reads = counted() - before - between;
const peak = Number(/VmHWM:\s+(\d+)/.exec(readFileSync("/proc/self/status", "utf8"))[1]) * 1024;
console.log(JSON.stringify({ seconds, peak_bytes: peak, reads }));
