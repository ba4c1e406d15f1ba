# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A systemd host whose llama-server and models are in a home and in /tmp, behind links."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bed import ALL, MODELS, PARAMETERS, PROJECT, Outcome
from support.nodes import one_node

BED = "links"
PROFILE = f"description: d\nenabled_models: [{{tier: Q4}}, {{tier: Q3}}, {{tier: Q2}}]\nparameters: {PARAMETERS}\n"
# As left by a user who built llama.cpp and downloaded models, and who keeps other things in that home.
PREPARE = f"""
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.shell: |
        useradd --create-home me && chmod 755 /home/me && echo secret > /home/me/secret
        mkdir -p /home/me/llama.cpp/build/bin /home/me/models /home/me/hub/blobs /tmp/models
        cp /usr/bin/llama-server /home/me/llama.cpp/build/bin/
        ln -s llama.cpp/build/bin/llama-server /home/me/llama-server
        ln -s /home/me/llama-server /usr/local/bin/llama-server
        ln -s /home/me/models /models
        ln -s ../hub/blobs/abc /home/me/models/tiny-llama-Q3_K_M.gguf
        chown -R me: /home/me
    - ansible.builtin.copy: {{src: "{MODELS}/{{{{ item[0] }}}}", dest: "{{{{ item[1] }}}}", owner: me}}
      loop:
        - [tiny-llama-Q4_K_M.gguf, /home/me/models/]
        - [tiny-llama-Q3_K_M.gguf, /home/me/hub/blobs/abc]
        - [tiny-llama-Q2_K.gguf, /tmp/models/]
"""
ARGUMENTS = (
    *("-e", "profile=linked", "-e", "runtime_install_method=existing", "-e", "runtime_binary_owner=me"),
    *("-e", '{"registry_scan_paths": ["/models", "/tmp/models"], "registry_follow_links": true}'),
)


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """The inventory of a prepared node."""
    inventory = tmp_path / "nodes.yml"
    with one_node(BED, inventory):
        (tmp_path / "profiles").mkdir()
        (tmp_path / "profiles/linked.yml").write_text(PROFILE)
        (tmp_path / "prepare.yml").write_text(PREPARE)
        assert play(inventory, str(tmp_path / "prepare.yml")).code == 0
        yield inventory


def play(inventory: Path, playbook: str, *arguments: str) -> Outcome:
    command = ["ansible-playbook", "-i", str(inventory), playbook, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=PROJECT)
    return Outcome(done.returncode, done.stdout + done.stderr)


def shell(inventory: Path, script: str) -> str:
    command = ["ansible", "-i", str(inventory), "all", "-m", "ansible.builtin.shell", "-a", script]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=PROJECT).stdout


def test_servers_start_from_links_into_a_home_and_see_nothing_else_of_it(host: Path) -> None:
    check = play(host, "site.yml", "--check", *ARGUMENTS)
    assert check.code == 0, check.output
    check.expect("its sandbox shows /home/me/llama.cpp/build", "/tmp/models/tiny-llama-Q2_K.gguf")

    first = play(host, "site.yml", *ARGUMENTS)
    assert first.code == 0, first.output
    first.expect("3 ready")
    seen = shell(host, "for pid in $(pgrep -x llama-server); do nsenter -t $pid -m find /home /tmp -type f; done")
    assert set(seen.split()) & {"/home/me/secret", "/home/me/models/tiny-llama-Q4_K_M.gguf"} == {
        "/home/me/models/tiny-llama-Q4_K_M.gguf"
    }
    again = play(host, "site.yml", *ARGUMENTS)
    assert (again.code, again.changed) == (0, 0), again.output

    # The units follow the link as it was.
    shell(host, "mv /home/me/models /home/me/others && ln -sfn /home/me/others /models")
    restart = play(host, "playbooks/restart.yml", *ALL)
    assert restart.code != 0
    restart.expect("but the sandbox of the unit hides it: run site.yml")
    # A user of that host, without root.
    me = ("--become", "--become-user", "me", "--become-method", "su", "-e", "servers_state_dir=/home/me/llama")
    own = (*me, "-e", "registry_path=/home/me/llama/registry.json", "-e", "servers_service_manager=supervisor")
    refused = play(host, "site.yml", *ARGUMENTS, *own, "-e", "servers_supervisor_from_pypi=true")
    assert refused.code != 0
    refused.expect("apt install python3-venv")
    removed = play(host, "playbooks/teardown.yml", *me)
    assert removed.code == 0, removed.output
    removed.expect("/var/cache/magi-llama/runtime.json stays, as it belongs to the user root")
    assert "still" in shell(host, "test -f /var/cache/magi-llama/runtime.json && echo still")

    repaired = play(host, "site.yml", *ARGUMENTS)
    assert repaired.code == 0, repaired.output
    repaired.expect("3 ready", "its sandbox shows /home/me/llama.cpp/build, /home/me/others/tiny-llama-Q4_K_M.gguf")
