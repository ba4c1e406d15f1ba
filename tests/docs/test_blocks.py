# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every block of the documentation is run or parsed, or says why not."""

from __future__ import annotations

import configparser
import json
import re
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from ansible_collections.magi.llama.plugins.module_utils._plan.profile import validate
from ansible_collections.magi.llama.plugins.module_utils._runtime.help_text import parse_help
from ansible_collections.magi.llama.plugins.module_utils._runtime.render_flags import render_flags
from support.bed import free_ports
from support.doc_blocks import PAGES, ROOT, SHELLS, Block, all_blocks, blocks_of, commands, unchecked
from support.runs import BIN, execute, host_variables, play, server_path, write_inventory

BLOCKS = all_blocks()
SHELL = [block for block in BLOCKS if block.language in SHELLS]
YAML = [block for block in BLOCKS if block.language in ("yaml", "yml")]
HAPROXY = Path("/usr/sbin/haproxy")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
CHECKOUT = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / "collections")}
HELP = (ROOT / "tests/unit/_runtime/outputs/help-11669.txt").read_text()


def known_variables() -> set[str]:
    """Every variable of a role or playbook."""
    found = set(yaml.safe_load((ROOT / "meta/extra_vars.yml").read_text())["variables"])
    for path in ROOT.glob("roles/*/meta/argument_specs.yml"):
        for entry in yaml.safe_load(path.read_text())["argument_specs"].values():
            found |= set(entry["options"])
    return found


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_is_checked_or_says_why_not(block: Block) -> None:
    assert unchecked(block) == []


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_the_commands_of_a_shell_block_exist(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    for command in commands(block.text):
        if command[0] == "make":
            assert {word for word in command[1:] if "=" not in word} <= TARGETS
        elif command[0] == "ansible-playbook":
            check_playbook_command(command[1:], tmp_path)


def check_playbook_command(words: list[str], folder: Path) -> None:
    """The playbook and the inventory exist, its syntax is right, and each extra variable is one of ours."""
    arguments = ["--syntax-check"]
    for option, word in zip(["", *words], words):
        if option in ("-e", "--extra-vars") and not word.startswith("@"):
            assert word.partition("=")[0] in known_variables(), word
        elif option in ("-i", "--inventory"):
            # Copied from the example, as the quick start says.
            assert (ROOT / word).exists() or word == "inventories/fleet/hosts.yml", word
            arguments += ["-i", str(ROOT / "inventories/example/hosts.yml")]
        elif word.endswith(".yml") and not option.startswith("-"):
            assert (ROOT / word).is_file(), word
            arguments.append(str(ROOT / word))
        elif word.startswith("-"):
            assert word in ("-e", "-i", "--limit", "--check", "--diff", "--tags", "--become"), word
    done = execute([BIN / "ansible-playbook", *arguments], folder, **CHECKOUT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", YAML, ids=str)
def test_a_yaml_block_is_what_it_says(block: Block, tmp_path: Path) -> None:
    data = yaml.safe_load(block.text)
    kind = block.mark[1] if block.mark and block.mark[0] == "yaml" else "playbook"
    file = tmp_path / "block.yml"
    file.write_text(block.text)
    if block.mark and block.mark[0] == "not run":
        return
    if kind == "profile":
        profile = validate("block", block.place, data)
        entries = [profile, *profile["enabled_models"]]
        for entry in entries:
            render_flags(entry.get("parameters") or {}, parse_help(HELP))
    elif kind == "variables":
        assert {name for name in data if not name.startswith("ansible_")} <= known_variables()
    elif kind == "inventory":
        done = execute([BIN / "ansible-inventory", "-i", file, "--list"], tmp_path, **CHECKOUT)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert kind == "playbook"
        done = execute([BIN / "ansible-playbook", "--syntax-check", "-i", "localhost,", file], tmp_path, **CHECKOUT)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "json"], ids=str)
def test_a_json_block_is_json(block: Block) -> None:
    json.loads(block.text)


@dataclass(frozen=True)
class Demo:
    """Where the demo's servers and gateway are here, and the gateway's key."""

    first_port: int
    gateway_port: int
    key: Path

    def script(self, text: str) -> str:
        """The commands of a block, for this demo."""
        text = text.replace("127.0.0.1:8080", f"127.0.0.1:{self.first_port}").replace("curl -s ", "curl -sS --fail ")
        return text.replace("127.0.0.1:8070", f"127.0.0.1:{self.gateway_port}").replace(
            ".cache/demo/gateway.key", str(self.key)
        )


@pytest.fixture(scope="module")
def demo() -> Iterator[Demo]:
    """The same runs as `make demo`, in a folder and on ports of their own."""
    with tempfile.TemporaryDirectory(prefix="magi-") as name:
        folder, port = Path(name), free_ports(6)
        local = yaml.safe_load((ROOT / "inventories/local/group_vars/all.yml").read_text())
        variables = host_variables(folder, port, port + 3)
        variables |= {
            "local_cache": name,
            "gateway_state_dir": f"{name}/gateway",
            "gateway_service_manager": "supervisor",
            "gateway_supervisord_path": variables["servers_supervisord_path"],
            "gateway_user": variables["servers_user"],
            "gateway_port": port + 4,
            "gateway_metrics_port": port + 5,
            # As the demo has it.
            "gateway_api_keys": local["gateway_api_keys"],
        }
        inventory = folder / "hosts.yml"
        write_inventory(inventory, {"localhost": variables})
        groups = yaml.safe_load(inventory.read_text())
        groups["all"]["children"] = {group: {"hosts": {"localhost": {}}} for group in ("models", "gateways")}
        inventory.write_text(yaml.safe_dump(groups))
        gateway = [ROOT / "playbooks/gateway.yml"] if HAPROXY.exists() else []
        try:
            play(["-i", inventory, ROOT / "site.yml", *gateway, "-e", "profile=development"], folder, **CHECKOUT)
            yield Demo(port, port + 4, folder / "demo/gateway.key")
        finally:
            play(["-i", inventory, ROOT / "playbooks/teardown.yml"], folder, **CHECKOUT)
            play(["-i", inventory, ROOT / "playbooks/gateway.yml", "-e", "gateway_remove=true"], folder, **CHECKOUT)


@pytest.mark.skipif(not server_path().exists(), reason="no llama-server: run make binaries")
@pytest.mark.parametrize("block", [block for block in SHELL if block.mark == ("run", "demo")], ids=str)
def test_a_block_for_the_demo_gets_an_answer(block: Block, demo: Demo) -> None:
    if "gateway.key" in block.text and not HAPROXY.exists():
        pytest.skip("no HAProxy: apt-get install haproxy")
    command = ["bash", "-euc", demo.script(block.text)]
    deadline = time.monotonic() + 10
    while (done := subprocess.run(command, capture_output=True, timeout=60, check=False)).returncode:
        # A gateway that has just started has not checked its servers yet.
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)
    assert stat.S_IMODE(demo.key.stat().st_mode) == 0o600 or "gateway.key" not in block.text
    [choice] = json.loads(done.stdout)["choices"]
    assert choice["finish_reason"] in ("stop", "length")


def test_recommended_ansible_cfg_is_that_of_the_checkout() -> None:
    [block] = [block for block in BLOCKS if block.place.startswith("README.md") and "[defaults]" in block.text]
    recommended, own = configparser.ConfigParser(), configparser.ConfigParser()
    recommended.read_string(block.text)
    own.read(ROOT / "ansible.cfg")
    for section in recommended.sections():
        assert dict(recommended[section]).items() <= dict(own[section]).items()
    # These are paths in the checkout.
    assert not {"collections_path", "inventory"} & set(recommended["defaults"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_a_path_of_this_repository_that_a_page_names_exists(page: Path) -> None:
    tops = "plugins|roles|playbooks|tests|docs|inventories|molecule|changelogs"
    named = re.findall(rf"`((?:{tops})/[^`<>*…]*)`", page.read_text())
    placeholders = ("NAME", "inventories/fleet")
    assert [path for path in named if not (ROOT / path).exists() and not any(p in path for p in placeholders)] == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("```sh\nmake demo  # and more\n```\n", []),
        ("```sh\nX=1 ansible-playbook site.yml && rm -rf /\n```\n", ["`rm -rf /` needs a mark"]),
        ("<!-- not run: needs a fleet -->\n```sh\nreboot\n```\n", []),
        ("<!-- not run: needs a fleet -->\nText.\n\n```sh\nreboot\n```\n", ["`reboot` needs a mark"]),
        ("```yaml\nkey: value\n```\n", ["YAML needs a mark"]),
        ("```yaml\n---\n- name: Play\n  hosts: all\n```\n", []),
        ("```\nwhat\n```\n", ["the language '' is not one of"]),
    ],
)
def test_a_block_that_nothing_checks_is_found(text: str, expected: list[str]) -> None:
    [block] = blocks_of("page.md", text)
    found = unchecked(block)
    assert len(found) == len(expected) and all(map(str.startswith, found, expected))
