# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Invalid variables are refused before anything is changed, and equivalent spellings of a path are equal."""

from __future__ import annotations

import getpass
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._services.table import CHOICES
from support.bed import ALL, Bed
from support.runs import BIN, CHECKOUT, ROOT, execute


@pytest.mark.parametrize(
    ("arguments", "environment", "says"),
    [
        (["servers_max_startup_time=abc"], {}, "servers_max_startup_time is abc: set it to a whole number"),
        (["servers_max_startup_time=0.5"], {}, "servers_max_startup_time is 0.5"),
        ([], {"MODEL_MAX_STARTUP_TIME": "2m"}, "servers_max_startup_time is 2m"),
        (["servers_stop_timeout=0"], {}, "servers_stop_timeout is 0"),
        (["servers_port_range_start=80.5"], {}, "servers_port_range_start is 80.5"),
        (["servers_gpu_access=ture"], {}, "servers_gpu_access is ture: set it to auto, true or false"),
        (
            ["servers_cpu_weight=abc"],
            {},
            "Argument 'servers_cpu_weight' is of type str and we were unable",
        ),
        (["servers_service_manager=upstart"], {}, f"must be one of: {', '.join(CHOICES)}, got: upstart"),
        (
            ["runtime_install_method=compile"],
            {},
            "Value of runtime_install_method must be one of: auto, existing",
        ),
        (["registry_fact=long"], {}, "Value of registry_fact must be one of: auto, full, short, got: long"),
    ],
)
def test_invalid_variables_are_refused(bed: Bed, arguments: list[str], environment: dict[str, str], says: str) -> None:
    pids = bed.pids()
    given = [word for argument in arguments for word in ("-e", argument)]
    refused = bed.run("site", "-e", "profile=other", *given, env=environment, code=2)
    refused.expect(says)
    assert refused.changed == 0
    assert bed.pids() == pids


def test_state_directory_with_redundant_slashes_is_equal(bed: Bed) -> None:
    pids = bed.pids()
    same = json.dumps({"servers_state_dir": f"//{str(bed.state).replace('/', '//')}/"})
    assert bed.run("site", "-e", same).changed == 0
    bed.run("verify", "-e", same)
    bed.run("restart", "-e", same, "-e", "servers=tiny-llama-q4_k_m").expect("tiny-llama-q4_k_m: restarted")
    assert bed.pids()["tiny-llama-q3_k_m"] == pids["tiny-llama-q3_k_m"]
    assert bed.run("site").changed == 0


def test_teardown_check_mode_lists_managed_paths_only(bed: Bed) -> None:
    foreign = bed.state / "log/access.log"
    foreign.write_text("x")
    removed = bed.module(
        "teardown", state_dir=f"{bed.state}/", registry_path=str(bed.registry), _ansible_check_mode=True
    )
    foreign.unlink()
    assert removed["stopped"] == ["tiny-llama-q3_k_m", "tiny-llama-q4_k_m"]
    assert str(foreign) not in removed["removed"]
    assert str(bed.state / "log/tiny-llama-q4_k_m.log") in removed["removed"]
    assert str(bed.state / "supervisor/supervisord.conf") in removed["removed"]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, because a socket would be in it."""
    with tempfile.TemporaryDirectory(prefix="magi-") as path:
        yield Path(path)


@pytest.mark.parametrize("from_pypi", [True, False])
def test_supervisor_without_package_is_installed_from_pypi_if_allowed(folder: Path, from_pypi: bool) -> None:
    # The files that pip would install.
    program = folder / "state/supervisor/venv/bin/supervisord"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    user = getpass.getuser()
    host = {"user": user, "user_exists": True, "user_is_ours": True, "root": True, "sets_groups": False}
    host.update(service_manager="supervisor", service_manager_missing=True, supervisord=None)
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {
            "servers_state_dir": str(folder / "state"),
            "servers_user": user,
            "servers_service_manager": "supervisor",
            "servers_supervisor_from_pypi": from_pypi,
            "ansible_package_use": "nonesuch",
        },
        "tasks": [
            {"ansible.builtin.set_fact": {"llama_host": host, "cacheable": True}},
            {"ansible.builtin.import_role": {"name": "magi.llama.servers", "tasks_from": "install.yml"}},
            {"ansible.builtin.assert": {"that": f"ansible_facts['llama_host'].supervisord == '{program}'"}},
        ],
    }
    (folder / "play.yml").write_text(json.dumps([play]))
    settings = {"ANSIBLE_CONFIG": f"{ROOT}/ansible.cfg", **CHECKOUT}
    done = execute([BIN / "ansible-playbook", "-i", "localhost,", "play.yml"], folder, **settings)
    assert (done.returncode == 0) is from_pypi, done.stdout + done.stderr
    if not from_pypi:
        assert "set servers_supervisor_from_pypi to let a pinned version" in " ".join(done.stdout.split())
        return
    assert "supervisor is installed from PyPI, as the distribution's package could not be" in done.stdout
    assert "nonesuch" in done.stdout


def _modules(output: str) -> list[str]:
    """The modules that a run with -vvv has sent to its host, in order."""
    return re.findall(r"Using module file \S+/(\w+)\.py", output)


def test_run_without_changes_calls_five_modules(bed: Bed) -> None:
    assert _modules(bed.run("site", "-vvv").output) == [
        *("begin_run", "runtime", "gguf_registry", "server_plan", "wait_for_health"),
    ]
    changed = bed.run("site", "-vvv", "-e", "servers_stop_timeout=29")
    assert {"launch_configs", "server_state"} <= set(_modules(changed.output))
    bed.run("site")


def test_other_tags_skip_checks_of_servers(bed: Bed) -> None:
    missing = ("-e", f"servers_api_key_file={bed.state}/no-such-keys")
    pids = bed.pids()
    for tag in ("runtime", "registry"):
        assert bed.run("site", "--tags", tag, *missing).changed == 0
        assert bed.run("site", "--tags", tag, "--check", *missing).changed == 0
    bed.run("site", "--tags", "servers", *missing, code=2).expect("no-such-keys cannot be read")
    assert bed.pids() == pids
    assert bed.run("site", "--tags", "servers").changed == 0


def test_stopped_server_when_probed_is_not_marked_refused(bed: Bed) -> None:
    ready = bed.state / "observed.json"
    bed.run("stop", "-e", "servers=tiny-llama-q3_k_m")
    bed.run("verify", code=2).expect("tiny-llama-q3_k_m: it is stopped")
    assert "ready_revision" not in json.loads(ready.read_text())["servers"]["tiny-llama-q3_k_m"]
    bed.run("start", *ALL)
    bed.run("site")
    seen = json.loads(ready.read_text())["servers"]["tiny-llama-q3_k_m"]
    known = {"pid", "seconds_to_ready", "ready_since", "restarts", "ready_revision", "started_config", "memory"}
    assert seen.keys() == known
