# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of other programs as a profile: what is taken over, and what is left out with which reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._export.formats import FORMATS
from ansible_collections.magi.llama.plugins.module_utils._export.workloads import HostPlan, Settings, workloads_of
from ansible_collections.magi.llama.plugins.module_utils._import.known_flags import OPPOSITES, known_flags
from ansible_collections.magi.llama.plugins.module_utils._import.proposal import Proposal, proposal_of
from ansible_collections.magi.llama.plugins.module_utils._import.settings import ImportFault, Server, parse_command
from ansible_collections.magi.llama.plugins.module_utils._import.sources import (
    llama_swap,
    lm_studio,
    models_preset,
    ollama,
)
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import select, validate
from ansible_collections.magi.llama.plugins.module_utils._runtime.help_text import parse_help
from ansible_collections.magi.llama.plugins.module_utils._runtime.render_flags import index_flags, render_flags
from ansible_collections.magi.llama.plugins.plugin_utils.export_text import to_text

HELP = Path(__file__).resolve().parents[1] / "_runtime/outputs/help-11669.txt"
MODELS = [{"id": name, "kind": "model", "path": f"/models/{name}.gguf"} for name in ("qwen3-8b-q4_k_m", "bge-m3")]


def proposal(servers: list[Server]) -> Proposal:
    made = proposal_of(servers, "a source")
    # What is proposed is a profile.
    validate("imported", "imported.yml", made.profile)
    return made


def test_known_flags_are_those_of_the_build() -> None:
    asked = {name: flag for name, flag in parse_help(HELP.read_text()).items() if not flag.removed}
    plain = {
        name: (one.spelling, one.value, one.words, one.negation, one.shorts, one.aliases) for name, one in asked.items()
    }
    assert plain == {
        name: (one.spelling, one.value, one.words, one.negation, one.shorts, one.aliases)
        for name, one in known_flags().items()
    }
    index = index_flags(asked)
    assert all(f"-{short}" in HELP.read_text() and index[name][1] for short, name in OPPOSITES.items())


COMMAND = """CUDA_VISIBLE_DEVICES=0 /opt/llama/llama-server -m /srv/gguf/Qwen3-8B-Q4_K_M.gguf -c 8192 -ngl 99 -fa \\
  --temp 0.7 -nocb --no-webui --jinja --lora /a.gguf --lora /b.gguf --host 192.0.2.7 --port 9000 --api-key s3cret \\
  -ctk q8_0 --seed -1 --mlock --ctx-sise 5 --chat-template-kwargs '{"a": "b c"}' -hf some/repo
"""


def test_command_line_becomes_an_entry_and_says_what_is_left_out() -> None:
    made = proposal([parse_command("pasted", COMMAND)])
    (entry,) = made.profile["enabled_models"]
    assert entry["model"] == "qwen3-8b-q4_k_m" and entry["port"] == 9000
    assert entry["parameters"] == {
        **{"ctx_size": 8192, "n_gpu_layers": 99, "flash_attn": "on", "temperature": 0.7, "cont_batching": False},
        **{"ui": False, "jinja": True, "lora": ["/a.gguf", "/b.gguf"], "cache_type_k": "q8_0", "seed": -1},
        "chat_template_kwargs": '{"a": "b c"}',
    }
    assert made.variables == {
        **{"registry_scan_paths": ["/srv/gguf"], "servers_host": "192.0.2.7"},
        **{"servers_port_range_start": 9000, "servers_port_range_end": 9019},
    }
    reasons = dict(text.removeprefix("pasted: ").split(": ", 1) for text in made.left_out)
    assert reasons.keys() == {"api-key", "mlock", "ctx-sise", "hf", "the variable CUDA_VISIBLE_DEVICES"}
    assert "servers_api_key_file" in reasons["api-key"] and "s3cret" not in str(made)
    assert "nearest: load_mode" in reasons["mlock"] and "nearest: ctx_size" in reasons["ctx-sise"]


@pytest.mark.parametrize(
    ("line", "reasons"),
    [
        ("docker run --env=LLAMA_API_KEY=s3cret llama-server -m /m/a.gguf", ["docker", "run", "--env"]),
        ("docker run -e LLAMA_API_KEY=s3cret llama-server -m /m/a.gguf", ["docker", "run", "-e", "the variable"]),
        ("start key:s3cret --password s3cret llama-server -m /m/a.gguf", ["start", "key", "--password"]),
        (
            "llama-server -m /m/a.gguf --api-key=s3cret --no-such=s3cret --no-flag s3cret",
            ["api-key", "no-such", "no-flag"],
        ),
        ("llama-server -m /m/a.gguf --api-key my s3cret", ["a word after --api-key", "api-key"]),
        ("llama-server s3cret -m /m/a.gguf", ["a word after llama-server"]),
    ],
)
def test_values_of_words_that_are_left_out_are_not_shown(line: str, reasons: list[str]) -> None:
    made = proposal([parse_command("pasted", line)])
    assert "s3cret" not in str(made) and len(made.left_out) == len(reasons)
    for text, reason in zip(sorted(made.left_out), sorted(reasons), strict=True):
        assert re.match(rf"pasted: {reason}[ :]", text), made.left_out


def test_value_behind_an_equals_sign_is_as_llama_server_takes_it() -> None:
    made = proposal([parse_command("pasted", "llama-server -m /m/a.gguf --ctx-size=4096")])
    assert made.left_out == [
        "pasted: ctx-size: its value has to come after a space on a command line, and after = in a file."
    ]
    assert made.profile["enabled_models"] == ["a"]


def test_values_in_files_are_not_shown() -> None:
    """Also where a file has them in another way than its format."""
    made = proposal(models_preset("[a]\nmodel = /m/a.gguf\napi-key s3cret\nno-such: s3cret\n"))
    assert "s3cret" not in str(made) and len(made.left_out) == 2
    swapped = {"cmd": "llama-server -m /m/a.gguf", "env": [{"LLAMA_API_KEY": "s3cret"}, "LLAMA_API_KEY: s3cret"]}
    made = proposal(llama_swap({"models": {"a": swapped}}))
    assert "s3cret" not in str(made) and len(made.left_out) == 2
    with pytest.raises(ImportFault, match=r"It is not an INI file, see its line 2\. Nothing was written") as refused:
        models_preset("[a]\n= s3cret\n")
    assert "s3cret" not in str(refused.value)


def test_imported_parameters_render_to_the_flags_that_they_were_read_from() -> None:
    flags = parse_help(HELP.read_text())
    server = parse_command("a", "llama-server -m /m/a.gguf --ctx-size 4096 --no-warmup -ctk q8_0 --metrics")
    words = render_flags(server.parameters, flags)
    assert sorted(words) == sorted(["--ctx-size", "4096", "--no-warmup", "--cache-type-k", "q8_0", "--metrics"])


@pytest.mark.parametrize(
    "text", ["docker run x:server -m /a.gguf", "", "llama-server -m 'a", "llama-server --ctx-size 1"]
)
def test_command_line_without_a_server_or_a_model_is_refused(text: str) -> None:
    with pytest.raises(ImportFault, match="Nothing was written"):
        proposal_of([parse_command("pasted", text)], "a source")


def planned(name: str, model: str, port: int, **more: Any) -> dict[str, Any]:
    argv = ["/opt/llama/bin/llama-server", "--model", f"/models/{model}.gguf", "--alias", model, "--host", "127.0.0.1"]
    argv += [
        "--port",
        str(port),
        "--ctx-size",
        "4096",
        "--parallel",
        "2",
        "--n-gpu-layers",
        "all",
        "--metrics",
        "--no-ui",
    ]
    return {
        **{
            "name": name,
            "model_id": model,
            "port": port,
            "host": "127.0.0.1",
            "argv": argv,
            "env": {"XDG_CONFIG_HOME": "/nonexistent"},
            "action": "keep",
        },
        **{"memory": {"ram_bytes": 100}, "memory_max_bytes": 200, "max_startup_time": 60, "stop_timeout": 30},
        **{"revision": "0" * 12, **more},
    }


def test_our_own_llama_swap_file_gives_the_same_selection() -> None:
    servers = [
        planned("qwen3-8b-q4_k_m", "qwen3-8b-q4_k_m", 8080),
        planned("qwen3-8b-q4_k_m-2", "qwen3-8b-q4_k_m", 8081),
        planned("bge-m3", "bge-m3", 8082),
    ]
    servers[2]["argv"] += ["--embeddings"]
    settings = Settings("i:1", "h:1", "llama-server", "models", "key")
    workloads, _warnings = workloads_of([HostPlan("h", "h", {"servers": servers, "start": {}}, ["/models"])], settings)
    (content,) = FORMATS["llama-swap"].render(workloads, settings).values()
    made = proposal(llama_swap(yaml.safe_load(to_text("llama-swap.yaml", content))))
    profile = validate("imported", "imported.yml", made.profile)
    flags = parse_help(HELP.read_text())
    got = {
        (one.model["id"], one.instance, one.port): render_flags(one.parameters, flags)
        for one in select(profile, MODELS).servers
    }
    wanted = {
        (one["model_id"], number, one["port"]): one["argv"][9:] for one, number in zip(servers, (1, 2, 1), strict=True)
    }
    assert {key: sorted(words) for key, words in got.items()} == {key: sorted(words) for key, words in wanted.items()}
    assert made.variables == {"registry_scan_paths": ["/models"]}
    assert made.left_out == []


def test_llama_swap_macros_and_keys_of_its_own() -> None:
    content = {
        "macros": {"server": "/bin/llama-server --port ${PORT} ${common}", "common": "-fa on"},
        "models": {
            "a": {"cmd": "${server} \\\n -m /m/A.gguf # no comment\n", "ttl": 300, "aliases": ["x"]},
            "b": {"cmd": "${server}\n# a comment\n--model /m/sub/b.gguf\n-c 100", "proxy": "http://127.0.0.1:8083"},
        },
    }
    made = proposal(llama_swap(content))
    a, b = made.profile["enabled_models"]
    assert a == "a" and b == {"model": "b", "port": 8083, "parameters": {"ctx_size": 100}}
    assert made.profile["parameters"] == {"flash_attn": "on"} and made.variables["registry_scan_paths"] == ["/m"]
    texts = " ".join(made.left_out)
    assert "a: ttl: servers run all the time" in texts and "on_demand" in texts and "gateway_aliases" in texts


@pytest.mark.parametrize("content", [[], {}, {"models": {}}, {"models": {"a": {}}}, {"models": {"a": {"cmd": ["x"]}}}])
def test_file_that_is_not_llama_swaps_is_refused(content: Any) -> None:
    with pytest.raises(ImportFault, match="Nothing was written"):
        llama_swap(content)


def test_preset_has_settings_for_all_models_and_for_one() -> None:
    text = """version = 1
; all of them
[*]
c = 8192
LLAMA_ARG_N_GPU_LAYERS = 12
[mine]
model = /srv/gguf/mine-Q4_0.gguf
jinja = false
c = 4096
load-on-startup = true
temperature-of = 1
[org/repo-GGUF:Q8_0]
chat-template = chatml
"""
    made = proposal(models_preset(text))
    assert made.profile["enabled_models"] == [
        {"model": "mine-q4_0", "parameters": {"ctx_size": 4096, "n_gpu_layers": 12, "jinja": False}}
    ]
    assert any(text.startswith("org/repo-GGUF:Q8_0: it names no model file") for text in made.left_out)
    assert any(
        "mine: temperature-of: llama-server 11669 has no such flag; nearest: temperature" in text
        for text in made.left_out
    )


@pytest.mark.parametrize("text", ["", "version = 1", "[a\n", "[a]\nc = 1\nc = 2\n"])
def test_file_that_is_not_a_preset_is_refused(text: str) -> None:
    with pytest.raises(ImportFault, match="Nothing was written"):
        models_preset(text)


def test_models_of_ollama_have_the_names_of_their_manifests(tmp_path: Path) -> None:
    blob = tmp_path / "models/blobs" / f"sha256-{'a' * 64}"
    tag = tmp_path / "models/manifests/registry/library/qwen3/8b-q4_K_M"
    for path in (blob, tag):
        path.parent.mkdir(parents=True)
    blob.write_bytes(b"GGUF")
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{'a' * 64}"}
    tag.write_text(json.dumps({"layers": [layer]}))
    made = proposal(ollama(str(tmp_path)))
    assert made.profile["enabled_models"] == ["qwen3-8b-q4_k_m"]
    assert made.variables == {"registry_scan_paths": [str(blob.parent)]}
    with pytest.raises(ImportFault, match="has no folders manifests and blobs"):
        ollama(str(blob.parent))


def test_models_of_lm_studio_are_its_files_without_projectors_and_later_shards(tmp_path: Path) -> None:
    folder = tmp_path / "models/pub/Qwen3-8B-GGUF"
    folder.mkdir(parents=True)
    for name in ("Qwen3-8B-Q4_K_M", "mmproj-Qwen3", "Big-00001-of-00002", "Big-00002-of-00002"):
        (folder / f"{name}.gguf").write_bytes(b"GGUF")
    made = proposal(lm_studio(str(tmp_path)))
    assert made.profile["enabled_models"] == ["big", "qwen3-8b-q4_k_m"]
    (folder / "none").mkdir()
    with pytest.raises(ImportFault, match="has no models"):
        lm_studio(str(folder / "none"))


def test_other_alias_than_the_models_id_is_named() -> None:
    made = proposal([parse_command("s", "llama-server -m /m/a.gguf --alias gpt-4")])
    (text,) = made.left_out
    assert text.startswith("s: alias: a server answers to its model's id") and "gateway_aliases" in text
    assert proposal([parse_command("s", "llama-server -m /m/a.gguf --alias a")]).left_out == []


def test_second_server_of_a_model_with_other_parameters_is_named() -> None:
    lines = [f"llama-server -m /m/a.gguf -c {size} --port {port}" for size, port in ((1, 8080), (2, 8081))]
    made = proposal([parse_command(f"s{number}", line) for number, line in enumerate(lines)])
    assert made.profile["enabled_models"] == [{"model": "a", "port": 8080, "parameters": {"ctx_size": 1}}]
    assert made.left_out == ["s1: a profile names a model once, and s0 has the same one with other parameters."]
