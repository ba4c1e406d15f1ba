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
  - Searches folders for GGUF files, reads their headers, and keeps what they are in a registry file and the fact
    C(llama_registry).
  - Files whose size, time of change and inode are as in the registry are not read again.
  - A broken file is listed under C(rejected) with the reason and harms no other. Nothing but a file's header is read.
  - A path keeps its id, also when its file is broken or missing for a time and no other file has taken the name.
author: The magi.llama developers (@magi-llama)
extends_documentation_fragment:
  - magi.llama.attributes
  - magi.llama.attributes.facts
options:
  scan_paths:
    description:
      - Folders to search, with all below them. It is an error if none of them exists or none holds a GGUF file, and a
        warning if one of several does not exist.
    type: list
    elements: path
    default: [/models]
  registry_path:
    description:
      - The registry file, JSON. Its folder is made where it is missing.
      - Where the file is missing or damaged, every file is read and a warning is given.
    type: path
    default: /var/lib/magi-llama/registry.json
  force:
    description: Read every file again, changed or not. Ids are kept.
    type: bool
    default: false
  follow_links:
    description:
      - Follow symlinks that lead out of O(scan_paths). Otherwise such a link is listed under C(rejected).
      - Links to files within O(scan_paths) always count as the file that they lead to.
    type: bool
    default: false
  fact:
    description:
      - How much of each model the fact holds. Ansible copies facts several times for every task, so those of thousands
        of models slow down the whole run.
      - V(full) is all that the registry file holds; V(short) is id, kind, path, architecture and tier; V(auto) is
        V(full) for up to 500 models, V(short) for more.
      - In check mode it is always V(full) if something changed, since the registry file is not written.
    type: str
    choices: [auto, full, short]
    default: auto
  checksums:
    description:
      - Compute the SHA-256 of every file, several at once. It is kept for as long as the file does not change.
      - Known checksums stay in the registry without it. With O(force) they are computed again.
    type: bool
    default: false
  manifest:
    description:
      - What the files ought to be. Implies O(checksums).
      - C(files) holds, by path relative to the scan path or by absolute path, the C(sha256), C(size) and C(source) of
        each file.
      - A file that differs is an error that names it, after the registry has been written.
      - A file that is not in the manifest, or that the manifest has and the host has not, is a warning, as a manifest
        is for a whole fleet and not every host has to have every file of it. See O(manifest_strict).
    type: dict
  manifest_file:
    description:
      - The O(manifest) as a YAML file on the controller, such as C(models.lock.yml); looked for next to the inventory,
        then where other files are.
      - Read by the action plugin of this name.
    type: path
  manifest_strict:
    description: Files that are missing, or are not in the manifest, are errors too.
    type: bool
    default: false
  time_limit:
    description:
      - Stop reading after so many seconds, save what was read next to O(registry_path), and return RV(complete=false).
        The next call continues from there. The action plugin of this name does so, and shows the progress.
      - Without it, and in check mode, one call does it all.
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

- name: Show what there is
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
          description: Last ids of up to 2,000 paths that hold no model now. Empty in a short fact.
          type: dict
          sample: {/models/gone.gguf: gone}
        models:
          description: What llama-server can serve, in the order of the ids.
          type: list
          elements: dict
          contains:
            id:
              description:
                - Unique name, made of the file name, from C(a-z0-9._-).
                - Two files of one name have a suffix made of the path.
              type: str
              sample: deepseek-r1-qwen3-8b-q4_k_m
            display_name:
              description: Human-readable name, one printable line.
              type: str
              sample: DeepSeek R1 Qwen3 8B (Q4_K_M)
            kind:
              description: C(model), C(embedding) or C(reranker).
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
              description: Attention heads. A list with one number for each layer where the layers differ.
              type: raw
            head_count_kv:
              description: Key and value heads. A list with one number for each layer where the layers differ.
              type: raw
            expert_count:
              description: Experts of a layer, 0 where there are none.
              type: int
            expert_used_count:
              description: Experts that work on a token.
              type: int
            sliding_window:
              description:
                - C(attention.sliding_window) in tokens, 0 where the file says nothing.
                - What llama.cpp makes of it depends on the architecture; C(memory) has each layer's.
              type: int
            tokenizer:
              description: C(tokenizer.ggml.model), or V(null).
              type: str
              sample: gpt2
            chat_template_sha256:
              description: SHA-256 of the chat template, or V(null).
              type: str
            base_model:
              description: Repository or name of the model that it was made from, or V(null).
              type: str
            license:
              description: C(general.license), or V(null).
              type: str
              sample: apache-2.0
            source:
              description: Where the file says that it comes from, or V(null).
              type: str
            sha256:
              description: SHA-256 of each of C(files), where it was asked for; V(null) for a file that cannot be read.
              type: list
              elements: str
            mmproj:
              description: The multimodal projector in the same folder that fits, or V(null).
              type: str
            memory:
              description: What an estimate of memory needs, for M(magi.llama.server_plan).
              type: dict
              contains:
                kinds:
                  description:
                    - The distinct layers, each with what it has of C(weights) and C(experts) (bytes), C(k), C(v) and
                      C(indexer) (elements of a cell in the cache), C(window) (tokens that a windowed layer sees),
                      C(state) (elements of a sequence's recurrent state) and C(ahead) (1 where it only predicts ahead).
                  type: list
                  elements: dict
                layers:
                  description: For each layer its place in C(kinds).
                  type: list
                  elements: int
            fingerprint:
              description:
                - Size, time of change and inode.
                - For shards the sum, the newest and the first, and each one's own under C(shards).
              type: dict
              sample: {size: 5027783488, mtime_ns: 1795322818849461308, inode: 2179077}
            warnings:
              description: What does not agree. Each begins with its topic.
              type: list
              elements: str
              sample: ["tier: the file name says UD-IQ2_M, general.file_type says Q4_K_S"]
        companions:
          description: What belongs to models and is not served by itself.
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
              description: Why.
              type: str
              sample: truncated, tensor data ends at byte 512, the file has 400
changes:
  description: Ids of models that are new, gone, or other files than in the registry file before.
  returned: when the scan is complete
  type: dict
  contains:
    added:
      description: New ids.
      type: list
      elements: str
    removed:
      description: Ids that are gone.
      type: list
      elements: str
    replaced:
      description: Ids whose files changed.
      type: list
      elements: str
warned:
  description: What the scan warned of. Ansible shows it with this task, and registers no warnings.
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
        - Files of two scan paths that are called the same stand under their absolute paths.
      type: dict
without_checksum:
  description: Files that are not in the manifest, as they could not be read to their end or were written to meanwhile.
  returned: with O(checksums) or O(manifest)
  type: list
  elements: str
differences:
  description: Between the files and the manifest.
  returned: with O(manifest)
  type: dict
  contains:
    differing:
      description: A sentence for each file that is another than the manifest says.
      type: list
      elements: str
    missing:
      description: Relative paths that the manifest has and the host has not.
      type: list
      elements: str
    unlisted:
      description: Files that the manifest does not have.
      type: list
      elements: str
complete:
  description: Whether every file has been looked at. Only ever false with O(time_limit).
  returned: success
  type: bool
progress:
  description:
    - Files known, how many there are (the shards of a model count once), and how many this call has read.
    - With O(checksums) also the files (each shard counts) and bytes of which the checksum is known.
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
from ansible_collections.magi.llama.plugins.module_utils._core.run_lock import renew
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


def main() -> None:
    run_module(ARGUMENTS, run)


def run(module: Module) -> dict[str, Any]:
    params = module.params
    if params["state_dir"] and params["run_id"] and not module.check_mode:
        renew(params["state_dir"], params["run_id"])
    if params["manifest_file"]:
        raise MagiError(
            "manifest_file is read on the controller by the action plugin of this module. Pass manifest here."
        )
    manifest = params["manifest"]
    if manifest is not None:
        # Most scans have no checksums, and a module compiles at every call what it imports.
        from ansible_collections.magi.llama.plugins.module_utils._models.checksums import check_manifest

        check_manifest(manifest)
    checksums = params["checksums"] or manifest is not None
    registry_path = params["registry_path"]
    unfinished = partial_path(registry_path)
    kept = load(registry_path)
    partial = load(unfinished, params["resume"])
    # What an interrupted scan left is as good as the registry, but a forced scan trusts only its own.
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
    warned = [warning for warning in (kept.warning, *result.warnings) if warning]
    for warning in warned:
        module.warn(warning)
    changed = kept.content != result.content
    if changed and not module.check_mode:
        save(registry_path, result.content)
    if partial.content is not None and not module.check_mode:
        # Another scan may have been quicker.
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
    # Where check mode leaves an old registry file, or none, the plan has nothing but the fact to read.
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
    return {"ansible_facts": {"llama_registry": short_content(content) if short else content}, **returned}


def report(module: Module, found: Differences, returned: dict[str, Any]) -> None:
    """Fail on what differs from the manifest, warn of the rest."""
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
