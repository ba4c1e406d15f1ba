# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Quadlet files: the text that podman's generator reads, and the folders that a container mounts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._launch import mounts, quadlet
from ansible_collections.magi.llama.plugins.module_utils._launch.quoting import QuoteError

IMAGE = {"id": "ab" * 32, "reference": "r/llama-server@sha256:00", "devices": ["nvidia.com/gpu=all"], "unset": []}
NASTY = [
    "a b",
    "100%",
    "%h",
    "$HOME",
    "${HOME}",
    "$(reboot)",
    "`reboot`",
    'say "hi"',
    "it's",
    "back\\slash",
    "a;b",
    "a\nExecStartPre=/bin/reboot",
    "a\n[Service]\nUser=root",
    "#no comment",
    "tab\there",
    "ä→🙂",
    "\\",
    "ends with \\",
    "--flag-like",
]


def server(**changes: Any) -> dict[str, Any]:
    return {
        "name": "m",
        "argv": ["/opt/magi-llama/runtime/bin/llama-server", "--model", "/models/m.gguf", "--port", "8080"],
        "env": {"MAGI_LLAMA_SERVER": "m"},
        "host": "127.0.0.1",
        "port": 8080,
        "stop_timeout": 30,
        "memory": {"vram_bytes": 0},
        "memory_max_bytes": 1000,
        "sandbox": {"shows": [{"path": "/models", "source": "/models", "writable": False}]},
        **changes,
    }


def words_of(text: str) -> Iterator[str]:
    """Words as systemd splits them in a command line: quotes, C escapes, specifiers, variables."""
    for match in re.finditer(r'"((?:\\.|[^"\\])*)"|(\S+)', text):
        word = match[2] if match[1] is None else match[1]
        if match[1] is not None:
            raw = re.sub(
                rb"\\x([0-9a-f]{2})|\\(.)",
                lambda found: bytes([int(found[1], 16)]) if found[1] else found[2],
                word.encode("utf-8", "surrogateescape"),
            )
            word = raw.decode("utf-8", "surrogateescape")
        yield word.replace("%%", "%").replace("$$", "$")


def section(text: str) -> dict[str, list[str]]:
    """The settings of a section by key, with continued lines joined, as quadlets are read."""
    found: dict[str, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        key, _equals, value = line.partition("=")
        found.setdefault(key, []).append(value)
    return found


def options_of(text: str) -> list[str]:
    return [word for value in section(text)["PodmanArgs"] for word in words_of(value)]


def test_empty_word_at_which_podmans_generator_ends_a_command_line_is_refused() -> None:
    argv = [*server()["argv"], "--alias", "", "--metrics"]
    with pytest.raises(QuoteError, match="--alias has an empty value"):
        quadlet.quadlet_container(server(argv=argv), IMAGE, [1, 2])


@pytest.mark.parametrize("value", NASTY)
def test_command_line_and_environment_survive_any_text(value: str) -> None:
    argv = [*server()["argv"], "--alias", value, value]
    text = quadlet.quadlet_container(server(argv=argv, env={"A": value}), IMAGE, [1, 2])
    parsed = section(text)
    assert list(words_of(parsed["Exec"][0])) == argv[1:]
    assert f"A={value}" in [word for line in parsed["Environment"] for word in words_of(line)]
    assert set(parsed) == {
        *("Image", "ContainerName", "Environment", "Network", "ReadOnly", "NoNewPrivileges", "DropCapability"),
        *("User", "Group", "PodmanArgs", "Exec"),
    }
    # No unescaped specifier or variable is left for systemd.
    assert not re.search(r"(?<!%)%(?:%%)*(?!%)", parsed["Exec"][0])
    assert not re.search(r"(?<!\$)\$(?:\$\$)*(?!\$)", parsed["Exec"][0])


def test_container_is_confined() -> None:
    text = quadlet.quadlet_container(server(), IMAGE, [997, 996, 44])
    parsed, options = section(text), options_of(text)
    assert parsed["Image"] == ["ab" * 32]
    assert (parsed["User"], parsed["Group"]) == (["997"], ["996"])
    assert (parsed["ReadOnly"], parsed["NoNewPrivileges"], parsed["DropCapability"]) == (["true"], ["true"], ["all"])
    assert parsed["Network"] == ["host"]
    assert "--group-add=44" in options
    assert "--pull=never" in options
    assert not [option for option in options if option.startswith("--device")]
    assert [option for option in options if option.startswith("--mount")] == [
        "--mount=type=bind,source=/opt/magi-llama/runtime/image-bin,destination=/opt/magi-llama/runtime/bin,ro=true",
        "--mount=type=bind,source=/models,destination=/models,ro=true",
    ]


def test_command_line_is_the_planned_one() -> None:
    text = quadlet.quadlet_container(server(), IMAGE, [1, 2])
    assert f"--entrypoint={server()['argv'][0]}" in options_of(text)
    assert list(words_of(section(text)["Exec"][0])) == server()["argv"][1:]


def test_gpu_is_given_where_layers_are_planned_on_it() -> None:
    on_gpu = server(memory={"vram_bytes": 1})
    assert "--device=nvidia.com/gpu=all" in options_of(quadlet.quadlet_container(on_gpu, IMAGE, [1, 2]))
    refused = options_of(quadlet.quadlet_container(on_gpu, IMAGE, [1, 2], gpu_access=False))
    assert not [option for option in refused if option.startswith("--device")]


def test_variables_of_the_image_that_llama_server_obeys_are_left_out() -> None:
    image = {**IMAGE, "unset": ["LLAMA_ARG_HOST"]}
    assert "--unsetenv=LLAMA_ARG_HOST" in options_of(quadlet.quadlet_container(server(), image, [1, 2]))


@pytest.mark.parametrize("path", ["/models/a,ro=false", '/models/a"b', "/models/a\nb"])
def test_path_that_cannot_be_mounted_is_refused(path: str) -> None:
    shows = [{"path": path, "source": path, "writable": False}]
    with pytest.raises(QuoteError, match=r"cannot be mounted in a container: .* Rename the file or folder\."):
        quadlet.quadlet_container(server(sandbox={"shows": shows}), IMAGE, [1, 2])


def test_path_with_spaces_and_percent_is_mounted() -> None:
    shows = [{"path": "/m/50% a:b $x", "source": "/m/50% a:b $x", "writable": True}]
    options = options_of(quadlet.quadlet_container(server(sandbox={"shows": shows}), IMAGE, [1, 2]))
    assert "--mount=type=bind,source=/m/50% a:b $x,destination=/m/50% a:b $x,ro=false" in options


def test_limits_are_those_of_a_unit_and_nothing_confines_podman() -> None:
    settings = quadlet.quadlet_service(server(memory_max_bytes=12345), numa_policy="bind", numa_mask="0")
    assert (settings["MemoryMax"], settings["MemorySwapMax"], settings["TasksMax"]) == (12345, 0, 4096)
    assert (settings["NUMAPolicy"], settings["NUMAMask"]) == ("bind", "0")
    assert settings["SocketBindAllow"] == "tcp:8080"
    assert settings["IPAddressDeny"] == "any"
    assert not {"SystemCallFilter", "PrivateDevices", "ProtectHome", "PrivateUsers", "DeviceAllow"} & set(settings)


def test_stop_leaves_podman_the_time_for_its_signals() -> None:
    settings = quadlet.quadlet_service(server(stop_timeout=30))
    assert settings["ExecStop"].startswith("-/bin/sh -c ")
    assert settings["TimeoutStopSec"] == 45
    assert "--stop-timeout=20" in options_of(quadlet.quadlet_container(server(), IMAGE, [1, 2]))


# --- mounts -----------------------------------------------------------------------------------------------------------


def test_mounts_are_the_folders_of_models_read_only(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    model = tmp_path / "models" / "a-00001-of-00002.gguf"
    for file in (model, tmp_path / "models" / "a-00002-of-00002.gguf"):
        file.write_text("")
    found = mounts.mounted_files(["/x/llama-server", "--model", str(model)])
    assert found["shows"] == [{"path": str(model.parent), "source": str(model.parent), "writable": False}]
    assert str(model.parent) in found["folders"]


def test_mounts_follow_links_of_models(tmp_path: Path) -> None:
    for name in ("blobs", "snapshot"):
        (tmp_path / name).mkdir()
    (tmp_path / "blobs/x").write_text("")
    (tmp_path / "snapshot/m.gguf").symlink_to("../blobs/x")
    found = mounts.mounted_files(["/x/llama-server", "--model", str(tmp_path / "snapshot/m.gguf")])
    assert [show["path"] for show in found["shows"]] == [str(tmp_path / "blobs"), str(tmp_path / "snapshot")]


def test_key_file_is_mounted_alone(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("k\n")
    (tmp_path / "secret").write_text("s\n")
    found = mounts.mounted_files(["/x/llama-server", "--api-key-file", str(tmp_path / "keys")])
    assert [(show["path"], show["writable"]) for show in found["shows"]] == [(str(tmp_path / "keys"), False)]


def test_folder_that_is_written_to_is_writable(tmp_path: Path) -> None:
    (tmp_path / "slots").mkdir()
    found = mounts.mounted_files(["/x/llama-server", "--slot-save-path", str(tmp_path / "slots")])
    assert found["shows"] == [{"path": str(tmp_path / "slots"), "source": str(tmp_path / "slots"), "writable": True}]


def test_folders_of_the_image_are_not_mounted_over() -> None:
    found = mounts.mounted_files(["/x/llama-server", "--chat-template-file", "/etc/hostname"])
    assert [show["path"] for show in found["shows"]] == ["/etc/hostname"]
