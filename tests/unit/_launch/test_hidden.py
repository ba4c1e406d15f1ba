# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a unit's sandbox would hide of a server's files, by where their paths lead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core.links import stages
from ansible_collections.magi.llama.plugins.module_utils._launch import hidden, quoting, units
from ansible_collections.magi.llama.plugins.module_utils._output import report


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host's folders below a temporary one."""
    for name in (
        "home/me/models",
        "home/me/llama.cpp/build/bin",
        "root",
        "tmp",
        "opt",
        "usr/local/bin",
        "etc/llama.cpp",
    ):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(hidden, "HOMES", (f"{tmp_path}/home", f"{tmp_path}/root"))
    monkeypatch.setattr(units, "HOMES", (f"{tmp_path}/home", f"{tmp_path}/root"))
    monkeypatch.setattr(hidden, "USERS", (f"{tmp_path}/home",))
    monkeypatch.setattr(hidden, "TEMPORARY", (f"{tmp_path}/tmp",))
    monkeypatch.setattr(hidden, "CLOSED", (f"{tmp_path}/etc/llama.cpp",))
    (tmp_path / "usr/local/bin/llama-server").touch()
    return tmp_path


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def linked(link: Path, target: Path | str) -> Path:
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    return link


def found(root: Path, *argv: object, program: object = None, loaded: tuple[object, ...] = ()) -> dict[str, Any]:
    words = [str(program or root / "usr/local/bin/llama-server"), *map(str, argv)]
    return hidden.shown_files(words, [str(path) for path in loaded])


def shows(root: Path, sandbox: dict[str, Any]) -> dict[str, str]:
    """Path → source, both below the root."""
    return {
        str(Path(show["path"]).relative_to(root)): str(Path(show["source"]).relative_to(root))
        for show in sandbox.get("shows", [])
    }


def test_files_outside_of_hidden_folders_need_nothing(root: Path) -> None:
    model = made(root / "opt/models/x.gguf")
    sandbox = found(root, "--model", model, "--alias", f"{root}/home/me/no-such-file")
    assert set(sandbox) == {"folders"}
    assert f"{root}/opt/models" in sandbox["folders"]


def test_link_into_home_is_shown_at_what_it_leads_to(root: Path) -> None:
    made(root / "home/me/models/x.gguf")
    linked(root / "models", root / "home/me/models")
    sandbox = found(root, "--model", root / "models/x.gguf")
    assert shows(root, sandbox) == {"home/me/models/x.gguf": "home/me/models/x.gguf"}
    # The mounts of both are waited for at boot.
    assert {f"{root}/models", f"{root}/home/me/models"} <= set(sandbox["folders"])


def test_links_within_home_are_shown_at_the_name_in_the_command_line(root: Path) -> None:
    cache = root / "home/me/.cache/hub"
    made(cache / "blobs/abc")
    linked(cache / "snapshots/1/x.gguf", "../../blobs/abc")
    linked(root / "home/me/m", cache / "snapshots/1")
    sandbox = found(root, "--model", root / "home/me/m/x.gguf")
    assert shows(root, sandbox) == {"home/me/m/x.gguf": "home/me/.cache/hub/blobs/abc"}


def test_link_out_of_home_is_shown(root: Path) -> None:
    made(root / "opt/big/x.gguf")
    linked(root / "home/me/models/x.gguf", root / "opt/big/x.gguf")
    assert shows(root, found(root, "--model", root / "home/me/models/x.gguf")) == {
        "home/me/models/x.gguf": "opt/big/x.gguf"
    }


def test_all_shards_and_companions_are_shown(root: Path) -> None:
    folder = root / "tmp/models"
    shards = [made(folder / f"x-{number:05d}-of-00003.gguf") for number in (1, 2, 3)]
    others = [made(root / "home/me" / name) for name in ("mm.gguf", "a.gguf", "b.gguf", "chat.jinja")]
    argv = ["--model", shards[0], "--mmproj", others[0], "--lora", f"{others[1]},{others[2]}:0.5"]
    assert set(shows(root, found(root, *argv, "--chat-template-file", others[3]))) == {
        str(path.relative_to(root)) for path in (*shards, *others)
    }


def test_folder_that_a_server_writes_is_shown_writable_before_it_exists(root: Path) -> None:
    linked(root / "opt/slots", root / "home/me/slots")
    sandbox = found(root, "--slot-save-path", root / "opt/slots")
    assert [(show["path"], show["writable"]) for show in sandbox["shows"]] == [(f"{root}/home/me/slots", True)]
    assert {f"{root}/opt/slots", f"{root}/home/me/slots"} <= set(sandbox["folders"])


def test_program_is_shown_with_the_folders_of_its_libraries(root: Path) -> None:
    program = made(root / "home/me/llama.cpp/build/bin/llama-server")
    link = linked(root / "usr/local/bin/server", program)
    library = made(root / "home/me/cuda/lib/libcudart.so.12.1")
    linked(root / "home/me/cuda/lib/libcudart.so.12", "libcudart.so.12.1")
    inside = made(root / "home/me/llama.cpp/build/bin/libllama.so")
    sandbox = found(
        root, program=link, loaded=(library.with_name("libcudart.so.12"), inside, "/usr/lib/libc.so.6", library)
    )
    # The build's own libraries are in its folder.
    assert shows(root, sandbox) == {path: path for path in ("home/me/llama.cpp/build", "home/me/cuda/lib")}


def test_program_outside_with_libraries_in_home_shows_them(root: Path) -> None:
    library = made(root / "home/me/llama.cpp/build/bin/libllama.so")
    assert shows(root, found(root, loaded=(library,))) == {"home/me/llama.cpp/build/bin": "home/me/llama.cpp/build/bin"}


def test_program_directly_in_home_does_not_show_the_whole_home(root: Path) -> None:
    program = made(root / "home/me/llama-server")
    made(root / "home/me/libllama.so")
    made(root / "home/me/secret")
    assert set(shows(root, found(root, program=program))) == {"home/me/llama-server", "home/me/libllama.so"}


def test_link_directly_in_home_starts_its_target_without_the_rest_of_the_home(root: Path) -> None:
    program = made(root / "home/me/llama.cpp/build/bin/llama-server")
    link = linked(root / "home/me/llama-server", program)
    made(root / "home/me/secret")
    for path in (link, linked(root / "usr/local/bin/server", link)):
        sandbox = found(root, program=path)
        assert shows(root, sandbox) == {"home/me/llama.cpp/build": "home/me/llama.cpp/build"}
        assert sandbox["program"] == str(program)
        assert "opens" not in sandbox


def test_home_that_is_a_link_is_not_shown_for_a_program(root: Path) -> None:
    program = made(root / "data/you/llama-server")
    linked(root / "home/you", root / "data/you")
    sandbox = found(root, program=root / "home/you/llama-server")
    assert "shows" not in sandbox
    assert sandbox["program"] == str(program)


def test_library_linked_directly_in_home_is_shown_alone(root: Path) -> None:
    made(root / "home/me/cuda/lib/libcudart.so.12.1")
    library = linked(root / "home/me/libcudart.so.12", "cuda/lib/libcudart.so.12.1")
    assert shows(root, found(root, loaded=(library,))) == {
        "home/me/libcudart.so.12": "home/me/cuda/lib/libcudart.so.12.1",
        "home/me/cuda/lib": "home/me/cuda/lib",
    }


def test_link_to_a_program_that_systemd_does_not_start_opens_homes_with_a_warning(root: Path) -> None:
    link = linked(root / "home/me/llama-server", made(root / "home/me/a$b/llama-server"))
    sandbox = found(root, program=link)
    assert (sandbox["opens"], sandbox.get("program")) == (["homes"], None)
    assert "dollar sign" in hidden.sandbox_warnings([{"name": "m", "sandbox": sandbox}])[0]


def test_what_cannot_be_shown_opens_its_part_and_is_warned_of(root: Path) -> None:
    awkward = made(root / "home/me/a:b.gguf")
    closed = made(root / "etc/llama.cpp/chat.jinja")
    server = {"name": "m", "sandbox": found(root, "--model", awkward, "--chat-template-file", closed)}
    assert server["sandbox"]["opens"] == ["homes"]
    first, second = hidden.sandbox_warnings([server, {"name": "n", "sandbox": {}}, {"name": "o"}])
    assert f"{closed} is in" in first
    assert "does not hide the host's homes" in second
    settings = units.systemd_sandbox(unit_server(root, server["sandbox"]))
    assert (settings["ProtectHome"], settings["PrivateTmp"]) == ("read-only", True)


def unit_server(root: Path, sandbox: dict[str, Any], *argv: object) -> dict[str, Any]:
    words = [str(root / "usr/local/bin/llama-server"), *map(str, argv)]
    return {
        "name": "m",
        "argv": words,
        "host": "127.0.0.1",
        "port": 1,
        "memory": {"vram_bytes": 0},
        "sandbox": sandbox,
    }


def test_unit_shows_a_home_s_files_alone(root: Path) -> None:
    model = made(root / "home/me/my models/x.gguf")
    slots = linked(root / "opt/slots", root / "home/me/slots")
    argv = ("--model", model, "--slot-save-path", slots)
    server = unit_server(root, found(root, *argv), *argv)
    settings = units.systemd_sandbox(server)
    assert settings["ProtectHome"] == "tmpfs"
    assert settings["PrivateTmp"] is True
    assert settings["BindReadOnlyPaths"] == [f'"-{model}"']
    assert settings["BindPaths"] == [f"-{root}/home/me/slots"]
    assert f"{root}/home/me" in units.systemd_dependencies(server)["RequiresMountsFor"]


def test_unit_of_files_in_temporary_folders_keeps_homes_hidden(root: Path) -> None:
    model = made(root / "tmp/x.gguf")
    settings = units.systemd_sandbox(unit_server(root, found(root, "--model", model), "--model", model))
    assert (settings["ProtectHome"], settings["PrivateTmp"]) == (True, True)
    assert settings["BindReadOnlyPaths"] == [f"-{model}"]


def test_bind_of_another_place_has_both_paths() -> None:
    assert quoting.systemd_binds([{"path": "/home/a b/x", "source": "/data/50%"}]) == ['"-/data/50%%:/home/a b/x"']


def test_shown_text_names_where_a_path_leads(root: Path) -> None:
    made(root / "opt/big/x.gguf")
    link = linked(root / "home/me/models/x.gguf", root / "opt/big/x.gguf")
    text = hidden.shown_text({"sandbox": found(root, "--model", link)})
    assert text == f"its sandbox shows {link} (which is {root}/opt/big/x.gguf)"
    assert hidden.shown_text({"sandbox": {}}) is None


def test_stages_follow_links_one_by_one(root: Path) -> None:
    made(root / "opt/x")
    linked(root / "b", "opt")
    linked(root / "a", root / "b")
    assert stages(f"{root}/a/x") == [f"{root}/{name}/x" for name in ("a", "b", "opt")]
    linked(root / "circle", root / "circle")
    assert len(stages(f"{root}/circle")) == 41
    assert stages(f"{root}/none/x") == [f"{root}/none/x"]


def test_plan_says_what_a_changed_server_is_shown() -> None:
    sandbox = {"shows": [{"path": "/home/me/x.gguf", "source": "/data/x.gguf", "writable": False}]}
    servers = [
        {"name": action, "port": 1, "action": action, "reason": "r", "sandbox": sandbox}
        for action in ("start", "keep", "stop")
    ]
    lines = report.launch_lines({"servers": servers})
    assert [line.strip() for line in lines if "sandbox" in line] == [
        "start: its sandbox shows /home/me/x.gguf (which is /data/x.gguf)"
    ]


def test_next_run_finds_the_same_folders(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a start or a new release changes does not change the launch config."""
    monkeypatch.setattr(hidden, "CREDENTIALS", f"{root}/run/credentials")
    key = root / "run/credentials/m.service/api-keys"
    program = linked(root / "opt/runtime/bin/llama-server", root / "opt/runtime/llama-b1/llama-server")
    made(root / "opt/runtime/llama-b1/llama-server")
    before = found(root, "--api-key-file", key, program=program)
    made(key)
    program.unlink()
    linked(program, made(root / "opt/runtime/llama-b2/llama-server"))
    assert found(root, "--api-key-file", key, program=program) == before
    assert before == {"folders": [f"{root}/opt/runtime/bin"]}
