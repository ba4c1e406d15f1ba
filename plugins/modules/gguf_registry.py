#!/usr/bin/python
# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
---
module: gguf_registry
short_description: Keep a registry of the GGUF models on a host
version_added: 0.1.0
description:
  - Searches folders for GGUF files, reads their headers, and records the models in a registry file and the fact
    C(llama_registry).
  - Files whose size, modification time and inode match the registry are not read again.
  - A broken file is listed under C(rejected) with the reason and does not affect other files. Only headers are read.
  - A path keeps its id, even if its file is broken or missing for a time, unless another file takes the name.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.attributes.facts
options:
  scan_paths:
    description:
      - Folders to search recursively. It is an error if none of them exists or none contains a GGUF file, and a warning
        if one of several does not exist.
    type: list
    elements: path
    default: [/models]
  registry_path:
    description:
      - The registry file (JSON). Its folder is created if it is missing. A folder is an error.
      - If the file is missing or damaged, every model file is read again, with a warning.
    type: path
    default: /var/lib/magi-llama/registry.json
  force:
    description: Read every file again, changed or not. Ids are kept.
    type: bool
    default: false
  follow_links:
    description:
      - Follow symlinks that lead out of O(scan_paths). Otherwise such a link is listed under C(rejected).
      - Links to files within O(scan_paths) are always treated as their target.
    type: bool
    default: false
  fact:
    description:
      - How much of each model to include in the fact. Ansible copies facts several times per task, so full facts of
        thousands of models slow down the whole run.
      - V(full) is the content of the registry file; V(short) is id, kind, path, architecture and tier; V(auto) is
        V(full) for up to 500 models, V(short) for more.
      - In check mode it is always V(full) if something changed, since the registry file is not written.
    type: str
    choices: [auto, full, short]
    default: auto
  checksums:
    description:
      - Compute the SHA-256 of every file, several in parallel. It is kept while the file is unchanged.
      - Without this option, known checksums stay in the registry. With O(force) they are computed again.
    type: bool
    default: false
  manifest:
    description:
      - The expected files. Implies O(checksums).
      - C(files) holds, by path relative to the scan path or by absolute path, the C(sha256), C(size) and C(source) of
        each file.
      - A file that differs is an error that names it, after the registry has been written.
      - A file that is missing on the host or not in the manifest is a warning, since a manifest covers a whole fleet
        and not every host needs every file. See O(manifest_strict).
    type: dict
  manifest_file:
    description:
      - The O(manifest) as a YAML file on the controller, such as C(models.lock.yml); searched for next to the
        inventory, then in the usual folders for files.
      - Read by the action plugin of this name.
    type: path
  manifest_public_key:
    description:
      - A public key of minisign, or the absolute path of its file on the controller. O(manifest_file) must then have a
        valid signature next to it, with the same name and C(.minisig); otherwise nothing is scanned.
      - Read by the action plugin of this name.
    type: str
  manifest_strict:
    description: Treat files that are missing, or not in the manifest, as errors.
    type: bool
    default: false
  time_limit:
    description:
      - Stop reading after this many seconds, save the partial result next to O(registry_path), and return
        RV(complete=false). The next call continues from there. The action plugin repeats the calls and shows progress.
      - Without it, and in check mode, a single call scans everything.
    type: float
  state_dir:
    description: State directory whose run lock is renewed during a long scan.
    type: path
  resume:
    description:
      - RV(resume) of the call that this one continues. Without it, a scan with O(force) starts again, and a file that
        cannot be read is tried again in each call.
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
  facts:
    support: full
"""

EXAMPLES = r"""
- name: Find the models
  magi.llama.gguf_registry:
    scan_paths:
      - /models
      - /srv/more-models
    registry_path: /var/lib/magi-llama/registry.json

- name: Check every file against the manifest next to the inventory
  magi.llama.gguf_registry:
    scan_paths: [/models]
    manifest_file: models.lock.yml

- name: Show the ids of all models
  ansible.builtin.debug:
    msg: "{{ ansible_facts['llama_registry'].models | map(attribute='id') }}"
"""

RETURN = r"""
ansible_facts:
  description: The fact C(llama_registry), the same as the registry file.
  returned: when the scan is complete
  type: dict
  contains:
    llama_registry:
      description: The registry.
      type: dict
      contains:
        schema_version:
          description: Version of this layout.
          type: int
          sample: 1
        collection_version:
          description: Version of the collection that wrote it.
          type: str
          sample: 0.1.0
        reader_version:
          description: Version of the reader that made the records. Another version reads every file again.
          type: int
          sample: 1
        scan_paths:
          description: The folders that were searched.
          type: list
          elements: str
          sample: [/models]
        updated_at:
          description: When the content last changed, in UTC.
          type: str
          sample: "2026-11-22T02:00:00Z"
        total:
          description: Number of models.
          type: int
          sample: 8
        ids:
          description: Last ids of up to 2,000 paths without a model now. Empty in a short fact.
          type: dict
          sample: {/models/gone.gguf: gone}
        models:
          description: Models that llama-server can serve, sorted by id.
          type: list
          elements: dict
          contains:
            id:
              description:
                - Unique name, derived from the file name, with characters C(a-z0-9._-).
                - If files have the same name, a suffix derived from the path is added.
              type: str
              sample: deepseek-r1-qwen3-8b-q4_k_m
            display_name:
              description: Human-readable name, one printable line.
              type: str
              sample: DeepSeek R1 Qwen3 8B (Q4_K_M)
            kind:
              description: C(model), C(embedding), C(reranker) or C(decision).
              type: str
              sample: model
            path:
              description: The file, or the first shard, to start llama-server with.
              type: str
            files:
              description: The file, or all shards in order.
              type: list
              elements: str
            size_bytes:
              description: Size of all files together.
              type: int
            shards:
              description: Number of files.
              type: int
            architecture:
              description: C(general.architecture).
              type: str
              sample: qwen3
            name:
              description: C(general.name) on one printable line, or V(null).
              type: str
            size_label:
              description: C(general.size_label), or V(null).
              type: str
              sample: 8B
            parameter_count:
              description: Number of weights, counted in the tensor infos.
              type: int
            quantization:
              description: From the file name, else from C(general.file_type) or the tensors.
              type: str
              sample: Q4_K_M
            tier:
              description: C(Q1), C(Q2), C(Q3), C(Q4), C(Q5), C(Q6), C(Q8), C(F16) or C(F32).
              type: str
              sample: Q4
            bits_per_weight:
              description: Measured over all tensors.
              type: float
              sample: 4.85
            context_length:
              description: Training context in tokens.
              type: int
            block_count:
              description: Number of layers.
              type: int
            embedding_length:
              description: Width of the model.
              type: int
            head_count:
              description: Attention heads; a list with one number per layer if the layers differ.
              type: raw
            head_count_kv:
              description: Key and value heads; a list with one number per layer if the layers differ.
              type: raw
            expert_count:
              description: Experts per layer, 0 if there are none.
              type: int
            expert_used_count:
              description: Experts used per token.
              type: int
            sliding_window:
              description:
                - C(attention.sliding_window) in tokens, 0 if the file has none.
                - llama.cpp uses it depending on the architecture; C(memory) has the window of each layer.
              type: int
            tokenizer:
              description: C(tokenizer.ggml.model), or V(null).
              type: str
              sample: gpt2
            chat_template_sha256:
              description: SHA-256 of the chat template, or V(null).
              type: str
            base_model:
              description: Repository or name of the base model, or V(null).
              type: str
            license:
              description: C(general.license), or V(null).
              type: str
              sample: apache-2.0
            source:
              description: Source given in the file's metadata, or V(null).
              type: str
            sha256:
              description: SHA-256 of each of C(files), if requested; V(null) for a file that cannot be read.
              type: list
              elements: str
            mmproj:
              description: The matching multimodal projector in the same folder, or V(null).
              type: str
            memory:
              description: Input for the memory estimate of M(magi.llama.server_plan).
              type: dict
              contains:
                kinds:
                  description:
                    - The distinct layers, each with its non-zero values of C(weights) and C(experts) (bytes), C(k),
                      C(v) and C(indexer) (elements of a cache cell), C(window) (sliding window in tokens), C(state)
                      (elements of a sequence's recurrent state) and C(ahead) (1 if it only predicts ahead).
                  type: list
                  elements: dict
                layers:
                  description: The index in C(kinds) of each layer.
                  type: list
                  elements: int
            fingerprint:
              description:
                - Size, modification time, inode and time of the last change of the file or its attributes.
                - For shards the total, the newest and the first, and the values of each shard under C(shards).
              type: dict
              sample: {size: 5027783488, mtime_ns: 1795322818849461308, inode: 2179077, ctime_ns: 1795322818849461308}
            warnings:
              description: Inconsistencies. Each begins with its topic.
              type: list
              elements: str
              sample: ["tier: the file name says UD-IQ2_M, general.file_type says Q4_K_S"]
        companions:
          description: Files that belong to models and are not served themselves.
          type: list
          elements: dict
          contains:
            kind:
              description: C(mmproj), C(adapter), C(imatrix), C(vocab), C(draft) or C(vocoder).
              type: str
              sample: mmproj
            path:
              description: The file. The other keys are as in C(models).
              type: str
        rejected:
          description: Files that llama-server could not load, or that could not be read.
          type: list
          elements: dict
          contains:
            path:
              description: The file, with unprintable characters as escapes.
              type: str
            reason:
              description: The reason for the rejection.
              type: str
              sample: truncated, tensor data ends at byte 512, the file has 400
changes:
  description: Ids of models that were added, removed or replaced since the previous registry file.
  returned: when the scan is complete
  type: dict
  contains:
    added:
      description: New ids.
      type: list
      elements: str
    removed:
      description: Removed ids.
      type: list
      elements: str
    replaced:
      description: Ids whose files changed.
      type: list
      elements: str
warned:
  description: Warnings of the scan, as shown by Ansible, which does not include them in registered results.
  returned: when the scan is complete
  type: list
  elements: str
  sample: ["The scan path /mnt/models does not exist."]
manifest:
  description: The registry as a manifest, to be written to C(models.lock.yml).
  returned: with O(checksums) or O(manifest)
  type: dict
  contains:
    schema_version:
      description: Version of this layout.
      type: int
      sample: 1
    files:
      description:
        - By path relative to the scan path, the C(sha256), C(size) in bytes, and C(source) or V(null).
        - Files with the same relative path in two scan paths are listed by absolute path.
      type: dict
without_checksum:
  description: Files left out of the manifest because they could not be read completely or changed while being read.
  returned: with O(checksums) or O(manifest)
  type: list
  elements: str
differences:
  description: Differences between the files and the manifest.
  returned: with O(manifest)
  type: dict
  contains:
    differing:
      description: A sentence for each file that differs from the manifest.
      type: list
      elements: str
    missing:
      description: Relative paths in the manifest that are missing on the host.
      type: list
      elements: str
    unlisted:
      description: Files that are not in the manifest.
      type: list
      elements: str
complete:
  description: Whether every file was scanned. False only with O(time_limit).
  returned: success
  type: bool
progress:
  description:
    - Number of known files, of all files (a model's shards count once), and of files read by this call.
    - With O(checksums) also the number of files (each shard counts) and bytes with a known checksum.
  returned: success
  type: dict
  sample: {done: 120, total: 200, read: 40}
resume:
  description: What to pass as O(resume) in the next call.
  returned: when the scan is not complete
  type: str
msg:
  description: The scan in one sentence.
  returned: success
  type: str
  sample: 8 models, 1 companion, 1 rejected
"""

import contextlib
import os
import uuid
from typing import TYPE_CHECKING, Any

from ansible_collections.magi.llama.plugins.module_utils._arguments.gguf_registry import ARGUMENTS
from ansible_collections.magi.llama.plugins.module_utils._core.basic import Module, run_module
from ansible_collections.magi.llama.plugins.module_utils._core.errors import MagiError
from ansible_collections.magi.llama.plugins.module_utils._core.files import require_file_path
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
from ansible_collections.magi.llama.plugins.module_utils._core.text import bounded
from ansible_collections.magi.llama.plugins.module_utils._models.registry_file import (
    diff_lines,
    load,
    partial_path,
    save,
    short_content,
)
from ansible_collections.magi.llama.plugins.module_utils._models.scan import Scan, scan

if TYPE_CHECKING:
    from ansible_collections.magi.llama.plugins.module_utils._models.checksums import Differences

SHORT_FROM = 501
# Of the scan, and rejected files in the fact: the registry file has all of them.
MAX_WARNINGS = 50
MAX_REJECTED = 100


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict[str, Any]:
    params = module.params
    require_file_path(params["registry_path"], "registry_path")
    if params["state_dir"] and params["run_id"] and not module.check_mode:
        renew(params["state_dir"], params["run_id"])
    if params["manifest_file"]:
        raise MagiError(
            "manifest_file is read on the controller by the action plugin of this module. Pass manifest here."
        )
    manifest = params["manifest"]
    if manifest is not None:
        # Imported only when needed, since each module call compiles its imports.
        from ansible_collections.magi.llama.plugins.module_utils._models.checksums import check_manifest

        check_manifest(manifest)
    checksums = params["checksums"] or manifest is not None
    registry_path = params["registry_path"]
    unfinished = partial_path(registry_path)
    kept = load(registry_path)
    partial = load(unfinished, params["resume"])
    # The partial result of an interrupted scan is reused, but a forced scan uses only its own.
    usable = partial.content is not None and (
        not params["force"] or partial.content.get("resume") == (params["resume"] or "")
    )
    result = scan(
        params["scan_paths"],
        kept,
        partial=partial if usable else None,
        force=params["force"],
        follow_links=params["follow_links"],
        checksums=checksums,
        time_limit=params["time_limit"] if not module.check_mode else None,
    )
    if not result.complete:
        resume = params["resume"] or uuid.uuid4().hex
        save(unfinished, result.unfinished(resume))
        return unfinished_answer(result, resume)
    warned = bounded([warning for warning in (kept.warning, *result.warnings) if warning], MAX_WARNINGS)
    for warning in warned:
        module.warn(warning)
    changed = kept.content != result.content
    if changed and not module.check_mode:
        save(registry_path, result.content)
    if partial.content is not None and not module.check_mode:
        # A concurrent scan may have removed it.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(unfinished)
    return finish(module, result, kept.content, changed, checksums, warned)


def unfinished_answer(result: Scan, resume: str) -> dict[str, Any]:
    return {
        "changed": False,
        "complete": False,
        "progress": progress_of(result),
        "resume": resume,
        "msg": f"{result.done} of {result.total} files read",
    }


def progress_of(result: Scan) -> dict[str, int]:
    progress = {"done": result.done, "total": result.total, "read": result.read}
    if result.checksums:
        progress["checksums_done"] = result.checksums.files
        progress["checksums_total"] = result.checksums.total_files
        progress["checksums_bytes"] = result.checksums.size
        progress["checksums_total_bytes"] = result.checksums.total_size
    return progress


def finish(
    module: Module,
    result: Scan,
    before: dict[str, Any] | None,
    changed: bool,
    checksums: bool,
    warned: list[str],
) -> dict[str, Any]:
    content = result.content
    numbers = [(len(content["models"]), "model"), (len(content["companions"]), "companion")]
    parts = [f"{number} {word}{'' if number == 1 else 's'}" for number, word in numbers]
    wanted = module.params["fact"]
    # In check mode the registry file is outdated or missing, so the plan needs the full fact.
    is_written = not (module.check_mode and changed)
    short = is_written and (wanted == "short" or (wanted == "auto" and content["total"] >= SHORT_FROM))
    returned: dict[str, Any] = {
        "changed": changed,
        "complete": True,
        "progress": progress_of(result),
        "changes": result.changes,
        "warned": warned,
        "msg": ", ".join([*parts, f"{len(content['rejected'])} rejected"]),
    }
    if checksums:
        from ansible_collections.magi.llama.plugins.module_utils._models.checksums import manifest_of, without_checksum

        returned["manifest"] = manifest_of(content)
        returned["without_checksum"] = without_checksum(content)
    if module._diff:
        returned["diff"] = {
            "before_header": module.params["registry_path"],
            "after_header": module.params["registry_path"],
            "before": diff_lines(before),
            "after": diff_lines(content),
        }
    if module.params["manifest"] is not None:
        from ansible_collections.magi.llama.plugins.module_utils._models.checksums import differences

        found = differences(content, module.params["manifest"])
        returned["differences"] = vars(found)
        report(module, found, returned)
        if returned.get("failed"):
            return returned
    fact = short_content(content) if short else content
    if is_written and len(content["rejected"]) > MAX_REJECTED:
        fact = {**fact, "rejected": content["rejected"][:MAX_REJECTED], "rejected_total": len(content["rejected"])}
    return {"ansible_facts": {"llama_registry": fact}, **returned}


def report(module: Module, found: Differences, returned: dict[str, Any]) -> None:
    """Fail on files that differ from the manifest, warn of other differences."""
    missing = [f"{name} is in the manifest, but not on this host" for name in found.missing]
    unlisted = [f"{path} is not in the manifest" for path in found.unlisted]
    errors = list(found.differing)
    if module.params["manifest_strict"]:
        errors += missing + unlisted
    else:
        for name, sentences in (("missing", missing), ("unlisted", unlisted)):
            if sentences:
                more = f" ({len(sentences) - 1} more in differences.{name})" if len(sentences) > 1 else ""
                module.warn(sentences[0] + more + ".")
    if errors:
        more = f" And {len(errors) - 10} more." if len(errors) > 10 else ""
        returned["msg"] = (
            f"{'. '.join(errors[:10])}.{more} Bring the right files, or write the manifest again if these are right."
        )
        returned.pop("manifest")
        returned["failed"] = True


if __name__ == "__main__":
    main()
