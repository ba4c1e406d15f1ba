# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The API key file: llama-server's own rules, asked of the real one, and who may read and write the file."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import (
    KeyFileError,
    Keys,
    check_key_file,
    first_key,
    generate_key_file,
    is_generated,
    parse_keys,
    usable_keys,
    write_key_file,
)
from ansible_collections.magi.llama.plugins.module_utils._launch.api_keys import (
    key_file as key_file_of,
)
from support.architectures import write_model

# A file's content: the keys that a client can use, the lines that none can, and whether the server is open to all.
FILES = {
    "comments": (b"# only\n#a comment\n", (), (), True),
    "empty": (b"\n\n", (), (), True),
    "plain": (b"# a comment\n\nkey1\nkey2", ("key1", "key2"), (), False),
    "inside": (b"key#1\nkey2 # tail\na,b\n", ("key#1", "key2 # tail", "a,b"), (), False),
    "carriage returns": (b"key1\r\n\r\n", (), (1, 2), False),
    "white space": (b"key1  \n\tkey2\n   \n", (), (1, 2, 3), False),
    "indented": (b"  # not a comment\nkey1\n", ("key1",), (1,), False),
    "byte order mark": (b"\xef\xbb\xbf# not a comment\nkey1\n", ("key1",), (1,), False),
}


@pytest.mark.parametrize("name", FILES)
def test_keys_are_parsed_as_llama_server_does(name: str) -> None:
    content, usable, faulty, _is_open = FILES[name]
    assert parse_keys(content) == Keys(usable, faulty)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("MAGI_LLAMA_BIN_DIR"), reason="MAGI_LLAMA_BIN_DIR is not set")
def test_real_llama_server_takes_the_same_keys(tmp_path: Path) -> None:
    model = tmp_path / "m.gguf"
    write_model(model, "llama")

    def ask(name: str) -> None:
        content, usable, _faulty, is_open = FILES[name]
        path = tmp_path / f"{name}.keys"
        path.write_bytes(content)
        with serving(model, path) as port:
            assert (status(port, None) == 200) is is_open, name
            others = {"key1", "key2", "key", "# not a comment", "only", "# only"} - set(usable)
            assert {key for key in usable if status(port, key) == 200} == set(usable), name
            assert is_open or not {key for key in others if status(port, key) == 200}, name

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(ask, FILES))


@contextlib.contextmanager
def serving(model: Path, keys: Path) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(os.environ["MAGI_LLAMA_BIN_DIR"]) / "llama-server"
    argv = [program, "-m", model, "-c", "64", "--host", "127.0.0.1", "--port", str(port), "--api-key-file", keys]
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            until = time.monotonic() + 60
            while status(port, None, "/health") != 200:
                assert process.poll() is None and time.monotonic() < until
                time.sleep(0.05)
            yield port
        finally:
            process.kill()


def status(port: int, key: str | None, path: str = "/props") -> int:
    """The status code of a request with exactly this key; 0 where nothing listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            header = f"Authorization: Bearer {key}\r\n" if key is not None else ""
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n{header}\r\n".encode())
            return int(connection.recv(64).split(b" ")[1])
    except (OSError, IndexError):
        return 0


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys"
    path.write_text("key1\n")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# a comment only\n", "contains no key, so the servers would be open to everyone"),
        (b"\n", "contains no key"),
        (b"key1\r\nkey2\r\n", "in line 1, 2"),
        (b"key1\n  # indented\n", "in line 2"),
        (b"k" * (1024 * 1024 + 1), "larger than 1 MiB"),
    ],
)
def test_keys_that_protect_nothing_are_refused(key_file: Path, content: bytes, message: str) -> None:
    key_file.write_bytes(content)
    with pytest.raises(KeyFileError, match=message):
        check_key_file(str(key_file), None)


def test_first_key_is_not_a_comment(key_file: Path) -> None:
    key_file.write_text("# a comment\n\nkey1\n")
    assert first_key(str(key_file)) == "key1"
    assert first_key(str(key_file) + ".none") is first_key(None) is None


def test_file_that_others_may_change_is_refused_and_one_they_may_read_warned_of(key_file: Path) -> None:
    assert check_key_file(str(key_file), None).warnings == ()
    key_file.chmod(0o644)
    [warning] = check_key_file(str(key_file), None).warnings
    assert warning == f"Every user of the host can read the API key file {key_file}: chmod 640 {key_file}."
    key_file.chmod(0o602)
    with pytest.raises(KeyFileError, match=f"Every user of the host can change .*: chmod o-w {key_file}"):
        check_key_file(str(key_file), None)
    key_file.chmod(0o600)
    folder = key_file.parent
    folder.chmod(0o777)
    with pytest.raises(KeyFileError, match=f"as its folder {folder}: chmod o-w {folder}"):
        check_key_file(str(key_file), None)
    # In a folder like /tmp no other user can replace the file.
    folder.chmod(0o1777)
    assert check_key_file(str(key_file), None).stamp


def test_relative_path_is_refused() -> None:
    with pytest.raises(KeyFileError, match="servers_api_key_file is keys: set it to an absolute path"):
        check_key_file("keys", None)


def test_generated_key_is_kept_and_for_its_owner_only(tmp_path: Path) -> None:
    path = key_file_of("auto", str(tmp_path / "state"))
    assert path == f"{tmp_path}/state/api-keys"
    assert generate_key_file(path, dry_run=True) and not os.path.exists(path)
    assert generate_key_file(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    key = first_key(path)
    assert key is not None and len(key) >= 40
    assert not generate_key_file(path) and first_key(path) == key
    assert check_key_file(path, None).warnings == ()
    assert [key_file_of(given, "/s") for given in (None, "", "/etc/keys")] == [None, None, "/etc/keys"]


KEY, NEXT = "k" * 16, "next-key-of-the-servers"


def test_keys_of_a_variable_are_written_once_and_rotated(tmp_path: Path) -> None:
    path = tmp_path / "new/keys"
    assert write_key_file(str(path), [KEY], dry_run=True) and not path.exists()
    assert write_key_file(str(path), [KEY]) and not write_key_file(str(path), [KEY])
    assert path.stat().st_mode & 0o777 == 0o600 and is_generated(str(path))
    path.chmod(0o644)
    # Both are valid until the clients have the new one.
    assert write_key_file(str(path), [KEY, NEXT, KEY]) and usable_keys(str(path)) == [KEY, NEXT]
    assert path.stat().st_mode & 0o777 == 0o640
    assert write_key_file(str(path), [NEXT]) and usable_keys(str(path)) == [NEXT]


def test_keys_take_the_place_of_generated_ones_and_of_no_others(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    generate_key_file(str(path))
    assert write_key_file(str(path), [KEY])
    path.write_text(f"{NEXT}\n")
    with pytest.raises(KeyFileError, match=r"was not written from servers_api_keys, and its keys would be lost"):
        write_key_file(str(path), [KEY])
    assert path.read_text() == f"{NEXT}\n"
    path.unlink()
    path.symlink_to("/etc/passwd")
    with pytest.raises(KeyFileError, match=r"was not written from"):
        write_key_file(str(path), [KEY])


@pytest.mark.parametrize("key", ["short", "", "#" + "k" * 16, "k" * 16 + " ", "k" * 16 + "\n" + "k" * 16, "ä" * 16])
def test_keys_that_no_client_can_send_are_refused_without_being_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(KeyFileError, match=r"number 2, that is shorter than 16") as error:
        write_key_file(str(tmp_path / "keys"), [KEY, key])
    assert not (tmp_path / "keys").exists() and KEY not in str(error.value)


def test_keys_without_a_file_name_the_variable() -> None:
    with pytest.raises(KeyFileError, match=r"servers_api_key_file is empty: set it to auto or to an absolute path"):
        write_key_file("empty", [KEY])
