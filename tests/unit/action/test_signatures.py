# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Signed manifests, with the real minisign: which are refused, and what the user reads then."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ansible.errors import AnsibleActionFail
from ansible_collections.magi.llama.plugins.module_utils._core.commands import Completed
from ansible_collections.magi.llama.plugins.plugin_utils import signatures
from ansible_collections.magi.llama.plugins.plugin_utils.yaml_files import load_manifest

UNPACKED = Path(__file__).resolve().parents[3] / ".cache/debian/bin"
TEXT = "---\nschema_version: 1\nfiles: {}\n"


class Keys:
    """A pair of keys in a folder."""

    def __init__(self, folder: Path, password: str = "") -> None:
        folder.mkdir(exist_ok=True)
        self.secret, self.public_file = str(folder / "secret"), str(folder / "public")
        command = ["minisign", "-G", "-p", self.public_file, "-s", self.secret, *([] if password else ["-W"])]
        subprocess.run(command, input=f"{password}\n{password}\n", text=True, check=True, capture_output=True)
        self.public = Path(self.public_file).read_text().splitlines()[1]


@pytest.fixture(autouse=True)
def minisign(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{UNPACKED}{os.pathsep}{os.environ['PATH']}")
    if not shutil.which("minisign"):
        pytest.skip("minisign is missing: make .cache/bin/.export")


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    return Keys(tmp_path / "keys")


@pytest.fixture
def manifest(tmp_path: Path, keys: Keys) -> Path:
    path = tmp_path / "models.lock.yml"
    path.write_text(TEXT)
    Path(f"{path}.minisig").write_bytes(signatures.sign(str(path), keys.secret))
    return path


def test_signed_manifest_is_read_with_the_key_or_its_file(manifest: Path, keys: Keys) -> None:
    for key in (keys.public, f" {keys.public}\n", keys.public_file):
        assert load_manifest(str(manifest), public_key=key) == {"schema_version": 1, "files": {}}


def test_what_is_read_is_what_was_signed(manifest: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    run = signatures._run

    def changed_afterwards(arguments: list[str], text: str = "") -> Completed:
        done = run(arguments, text)
        manifest.write_text(TEXT.replace("{}", "{a.gguf: {}}"))
        return done

    monkeypatch.setattr(signatures, "_run", changed_afterwards)
    assert load_manifest(str(manifest), public_key=keys.public) == {"schema_version": 1, "files": {}}
    # The next one reads what is there now.
    with pytest.raises(AnsibleActionFail, match="was changed since it was signed"):
        load_manifest(str(manifest), public_key=keys.public)


def test_signed_manifest_that_is_no_yaml_is_named_by_its_own_path(manifest: Path, keys: Keys) -> None:
    manifest.write_text("files: [\n")
    Path(f"{manifest}.minisig").write_bytes(signatures.sign(str(manifest), keys.secret))
    with pytest.raises(AnsibleActionFail) as refused:
        load_manifest(str(manifest), public_key=keys.public)
    text = str(refused.value)
    assert text.startswith(f"manifest ({manifest}, line ") and text.count("models.lock.yml") == text.count(
        str(manifest)
    )


def test_same_manifest_and_key_give_the_same_signature(manifest: Path, keys: Keys) -> None:
    assert signatures.sign(str(manifest), keys.secret) == Path(f"{manifest}.minisig").read_bytes()


def test_changed_manifest_is_refused_by_name(manifest: Path, keys: Keys) -> None:
    manifest.write_text(TEXT.replace("{}", "{a.gguf: {}}"))
    with pytest.raises(AnsibleActionFail) as refused:
        load_manifest(str(manifest), public_key=keys.public)
    text = str(refused.value)
    assert text.startswith(f"{manifest} was changed since it was signed") and "sign_with" in text
    assert "registry_manifest_public_key" in text and "Signature verification failed" in text


def test_manifest_that_another_key_signed_is_refused(manifest: Path, tmp_path: Path) -> None:
    with pytest.raises(AnsibleActionFail, match="not signed with the key of registry_manifest_public_key"):
        load_manifest(str(manifest), public_key=Keys(tmp_path / "others").public)


@pytest.mark.parametrize("gone", ["models.lock.yml", "models.lock.yml.minisig"])
def test_missing_manifest_or_signature_is_refused(manifest: Path, keys: Keys, gone: str) -> None:
    (manifest.parent / gone).unlink()
    with pytest.raises(AnsibleActionFail, match=f"{gone} does not exist, and registry_manifest_public_key wants"):
        load_manifest(str(manifest), public_key=keys.public)


@pytest.mark.parametrize("key", ["RWshort", "/none/key.pub", "keys/public"])
def test_public_key_that_is_none_is_named(manifest: Path, key: str) -> None:
    with pytest.raises(AnsibleActionFail, match=f'registry_manifest_public_key is "{key}", which is neither'):
        load_manifest(str(manifest), public_key=key)


def test_file_without_a_public_key_is_refused(manifest: Path, tmp_path: Path) -> None:
    (tmp_path / "no.pub").write_text("no key\n")
    with pytest.raises(AnsibleActionFail, match="not signed with the key of"):
        load_manifest(str(manifest), public_key=str(tmp_path / "no.pub"))


def test_key_with_a_password_signs_with_it_alone(manifest: Path, tmp_path: Path) -> None:
    locked = Keys(tmp_path / "locked", "pass word")
    Path(f"{manifest}.minisig").write_bytes(signatures.sign(str(manifest), locked.secret, "pass word"))
    signatures.verify(str(manifest), locked.public)
    for password in (None, "other"):
        with pytest.raises(
            AnsibleActionFail, match=r"could not be signed with .*/secret: .*Wrong password.*sign_password"
        ):
            signatures.sign(str(manifest), locked.secret, password)


def test_missing_program_and_missing_key_say_what_to_do(
    manifest: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(AnsibleActionFail, match='sign_with is "/none/secret", and this file does not exist'):
        signatures.sign(str(manifest), "/none/secret")
    monkeypatch.setenv("PATH", "/none")
    with pytest.raises(AnsibleActionFail, match=r"minisign is missing on the controller.*apt install minisign"):
        load_manifest(str(manifest), public_key=keys.public)


def test_scan_reads_no_manifest_without_a_valid_signature(run_action: Any, manifest: Path, keys: Keys) -> None:
    arguments = {"manifest_file": manifest.name, "manifest_public_key": keys.public}
    place = {"inventory_dir": str(manifest.parent)}
    answer = {"failed": True, "msg": "no more is asked here"}
    run = run_action("gguf_registry", arguments, answers=[answer], **place)
    ((_name, sent),) = run.calls
    assert sent["manifest"]["schema_version"] == 1 and "manifest_public_key" not in sent
    manifest.write_text(f"{TEXT}# more\n")
    with pytest.raises(AnsibleActionFail, match="was changed since it was signed"):
        run_action("gguf_registry", arguments, **place)
    manifest.unlink()
    with pytest.raises(AnsibleActionFail, match="does not exist, and registry_manifest_public_key wants"):
        run_action("gguf_registry", arguments, **place)


def test_sign_manifest_writes_what_differs(run_action: Any, manifest: Path, keys: Keys) -> None:
    arguments = {"path": str(manifest), "secret_key": keys.secret, "public_key": keys.public}
    assert not run_action("sign_manifest", arguments).result["changed"]
    manifest.write_text(f"{TEXT}# more\n")
    before = Path(f"{manifest}.minisig").read_bytes()
    assert run_action("sign_manifest", arguments, check=True).result["changed"]
    assert Path(f"{manifest}.minisig").read_bytes() == before
    run = run_action("sign_manifest", arguments)
    assert run.result["changed"] and run.lines == [f"      signed  {manifest}.minisig"]
    load_manifest(str(manifest), public_key=keys.public)


def test_sign_manifest_refuses_a_pair_of_keys_that_does_not_match(
    run_action: Any, manifest: Path, tmp_path: Path
) -> None:
    other = Keys(tmp_path / "others")
    arguments = {"path": str(manifest), "secret_key": other.secret, "public_key": Keys(tmp_path / "third").public}
    with pytest.raises(AnsibleActionFail, match="not signed with the key of registry_manifest_public_key"):
        run_action("sign_manifest", arguments)
