# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
# Note that this module_util is PRIVATE to the collection: it can change in any release. Do not use it from elsewhere.
"""llama-server flags that need special handling: set by the collection, renamed upstream, and so on."""

from __future__ import annotations

import re
from typing import Any

_MODEL = "the model comes from the profile's enabled_models, found in the model folders of the host"
_SECRET = "a key on a command line shows in ps; put the keys in a file on the host and set servers_api_key_file"
DOWNLOAD_REASON = "servers only load files that are on the host; put the file in a model folder"
_TLS = "servers speak plain HTTP, or their health could not be checked; put TLS in a proxy in front of them"
_LOG = "the service manager keeps the log, and a failed start is explained from it"
_ROUTER = "one server serves one model here; list the models in the profile's enabled_models"
_ONCE = "it prints and ends, it does not serve"

# Flags that the plan sets, or that would break it: refused with the alternative. Names from all builds, old and new.
MANAGED_FLAGS: dict[str, str] = {
    "model": _MODEL,
    "alias": "a server answers to its model's id, which proves that the right one answers",
    "host": "the address is the role's input servers_host",
    "port": "the plan gives each server its port, from the port range of the role servers",
    "reuse_port": "two servers would share one port and answer in turn",
    "api_prefix": "the health check would not find the server",
    "api_key": _SECRET,
    "api_key_file": "set servers_api_key_file, so that the health check knows the key too",
    "hf_token": "a token on a command line shows in ps, and servers download nothing",
    "ssl_key_file": _TLS,
    "ssl_cert_file": _TLS,
    "log_file": _LOG,
    "log_disable": _LOG,
    "model_url": DOWNLOAD_REASON,
    "docker_repo": DOWNLOAD_REASON,
    "hf_repo": DOWNLOAD_REASON,
    "hf_file": DOWNLOAD_REASON,
    "hf_repo_v": DOWNLOAD_REASON,
    "hf_file_v": DOWNLOAD_REASON,
    "hf_repo_draft": DOWNLOAD_REASON,
    "spec_draft_hf": DOWNLOAD_REASON,
    "mmproj_url": DOWNLOAD_REASON,
    "models_dir": _ROUTER,
    "models_preset": _ROUTER,
    "models_max": _ROUTER,
    "models_autoload": _ROUTER,
    "config": "a configuration file changes a server without the plan knowing; write its settings as parameters",
    "help": _ONCE,
    "usage": _ONCE,
    "version": _ONCE,
    "license": _ONCE,
    "cache_list": _ONCE,
    "list_devices": _ONCE,
    "completion_bash": _ONCE,
}

# Synonyms: builds list one name or the other, and some accept a name that their --help omits.
SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("n_gpu_layers", "gpu_layers"),
    ("n_predict", "predict"),
    ("embedding", "embeddings"),
    ("reranking", "rerank"),
    ("ui", "webui"),
    ("verbosity", "log_verbosity"),
    ("temp", "temperature"),
    ("spec_draft_model", "model_draft"),
    ("spec_draft_ngl", "n_gpu_layers_draft", "gpu_layers_draft"),
    ("spec_draft_type_k", "cache_type_k_draft"),
    ("spec_draft_type_v", "cache_type_v_draft"),
    ("spec_draft_p_min", "draft_p_min"),
)

# Flags that became values of another flag: too different to translate, similar enough to suggest.
RENAMED_FLAGS: dict[str, tuple[str, ...]] = {
    "mmap": ("load_mode",),
    "no_mmap": ("load_mode",),
    "mlock": ("load_mode",),
    "direct_io": ("load_mode",),
    "load_mode": ("mlock", "no_mmap"),
    "draft_max": ("spec_draft_n_max",),
    "draft_min": ("spec_draft_n_min",),
    "spec_draft_n_max": ("draft_max",),
    "spec_draft_n_min": ("draft_min",),
}

# Flags that take on, off or auto in newer builds. Without a binary to ask, booleans are rendered as on and off.
ON_OFF_FLAGS = ("flash_attn", "fit", "log_colors", "reasoning")

# Presets that download a model.
PRESET_FLAG = re.compile(r"(embd|fim|gpt_oss|tts|vision)_.+_(default|spec)")

# Parameters that give clients power over the host: they run commands, read or write files, or send requests from it. By
# family, since new builds bring new ones.
_POWERFUL_WORDS = {
    *("tool", "tools", "agent", "agents", "mcp", "proxy", "rpc"),
    *("exec", "shell", "command", "commands", "plugin", "plugins", "script", "scripts"),
}
_POWERFUL_ENDS = ("path", "paths", "dir", "dirs", "folder", "directory")
_POWERFUL_NAMES = ("props",)


def is_powerful(name: str, value: Any) -> bool:
    """Return whether a parameter with this value gives clients of a server power over its host."""
    words = name.split("_")
    if words[0] == "no":
        # The opposite is the safe choice, and its own opposite is not.
        words, value = words[1:], value is False
    if value in (None, False, "off", "false", "none", ""):
        return False
    return bool(_POWERFUL_WORDS & set(words)) or words[-1] in _POWERFUL_ENDS or "_".join(words) in _POWERFUL_NAMES
