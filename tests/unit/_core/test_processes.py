# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import os
import pwd
import socket
import subprocess
import sys
import time

import pytest
from ansible_collections.magi.llama.plugins.module_utils._core import processes
from ansible_collections.magi.llama.plugins.module_utils._launch import units

HEADER = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


class FakeProc:
    """A /proc with a few processes, in the kernel's format."""

    def __init__(self, root):
        self.root = root
        (root / "net").mkdir()
        self.link_namespace("self", 1)
        self.write("uptime", "1000.50 1900.00\n")
        self.write("stat", "cpu  1 2 3\nbtime 1700000000\n")
        self.write("meminfo", "MemTotal:        2048 kB\nMemFree:          512 kB\nMemAvailable:    1024 kB\n")
        self.write("net/tcp", HEADER)
        self.write("net/tcp6", HEADER)

    def write(self, name, text):
        (self.root / name).write_text(text)

    def link_namespace(self, process, number):
        (self.root / process / "ns").mkdir(parents=True)
        (self.root / process / "ns" / "pid").symlink_to(f"pid:[{number}]")

    def add(self, pid, argv, env=(), ppid=1, uid=0, start=50000, sockets=(), comm="llama-server", namespace=1):
        folder = self.root / str(pid)
        self.link_namespace(str(pid), namespace)
        (folder / "fd").mkdir(parents=True)
        (folder / "cmdline").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in argv))
        (folder / "environ").write_bytes(b"".join(os.fsencode(word) + b"\0" for word in env))
        (folder / "comm").write_text(comm + "\n")
        (folder / "status").write_text(f"Name:\t{comm}\nPPid:\t{ppid}\nUid:\t{uid}\t0\t0\t0\nVmRSS:\t  2048 kB\n")
        fields = " ".join(["S", str(ppid), *["0"] * 17, str(start), "0", "0"])
        (folder / "stat").write_text(f"{pid} ({comm}) {fields}\n")
        for number, inode in enumerate(sockets):
            (folder / "fd" / str(number)).symlink_to(f"socket:[{inode}]")

    def listen(self, local, inode, table="tcp", state="0A"):
        row = f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  0 0 {inode} 1 0 100 0\n"
        with (self.root / "net" / table).open("a") as stream:
            stream.write(row)


@pytest.fixture
def fake(tmp_path):
    return FakeProc(tmp_path)


def markers(name, state="/var/lib/magi-llama"):
    return ["PATH=/usr/bin", f"MAGI_LLAMA_STATE={state}", f"MAGI_LLAMA_SERVER={name}", "MAGI_LLAMA_REVISION=abc"]


def test_listeners_return_the_holder(fake):
    fake.listen("0100007F:1F90", "11")
    fake.listen("00000000:1F91", "12")
    fake.listen("00000000000000000000000001000000:1F91", "13", table="tcp6")
    fake.listen("0100007F:1F92", "14", state="01")
    fake.add(40, ["/usr/bin/nginx", "-g", "daemon\noff"], sockets=["99", "11"])
    found = processes.listeners([8080, 8081, 8082], str(fake.root))
    assert found == {
        8080: processes.Listener(8080, ("127.0.0.1",), 40, "/usr/bin/nginx -g daemon\\noff", (40,), (0,)),
        8081: processes.Listener(8081, ("0.0.0.0", "::1"), None, None, (), (0,)),
    }


def test_listeners_of_shared_port_are_all_returned(fake):
    fake.listen("0100007F:1F90", "11")
    fake.listen("0100007F:1F90", "12")
    fake.add(41, ["b"], sockets=["12"])
    fake.add(40, ["a"], sockets=["11"])
    assert processes.listeners([8080], str(fake.root))[8080].pids == (40, 41)
    assert processes.listeners([8080], str(fake.root), first=[41])[8080].pids == (40, 41)


def test_established_connections_are_counted_by_port(fake):
    row = "   {}: 0100007F:{:04X} 0100007F:C001 {} 00000000:00000000 00:00000000 00000000     0        0 1 1\n"
    rows = [(8080, "01"), (8080, "01"), (8080, "0A"), (8080, "08"), (9090, "01")]
    text = "".join(row.format(number, port, state) for number, (port, state) in enumerate(rows))
    (fake.root / "net").mkdir(exist_ok=True)
    (fake.root / "net/tcp").write_text("header\n" + text)
    (fake.root / "net/tcp6").write_text("header\n" + row.format(0, 8080, "01"))
    assert processes.connections([8080, 8081], str(fake.root)) == {8080: 3, 8081: 0}


def test_process_without_command_line_is_named_by_comm(fake):
    fake.listen("0100007F:1F90", "11")
    fake.add(40, [], sockets=["11"], comm="kthread")
    assert processes.listeners([8080], str(fake.root))[8080].command == "kthread"


def test_processes_are_filtered_by_state_dir(fake):
    fake.add(40, ["/usr/bin/llama-server", "--port", "8080"], markers("a"), uid=990, start=90000)
    fake.add(41, ["/usr/bin/llama-server"], markers("b", state="/other"))
    fake.add(42, ["/usr/bin/llama-server"], ["PATH=/usr/bin"])
    fake.add(43, ["helper"], markers("a"), ppid=40)
    fake.add(44, [], markers("zombie"))
    fake.add(45, ["/usr/bin/llama-server"], markers("c", state="/var/lib/magi-llama-2"))
    ticks = os.sysconf("SC_CLK_TCK")
    assert processes.processes("/var/lib/magi-llama", str(fake.root)) == {
        "a": processes.Process(
            pid=40,
            ppid=1,
            name="a",
            argv=("/usr/bin/llama-server", "--port", "8080"),
            env={
                "MAGI_LLAMA_STATE": "/var/lib/magi-llama",
                "MAGI_LLAMA_SERVER": "a",
                "MAGI_LLAMA_REVISION": "abc",
            },
            uid=990,
            started_at=1700000000 + 90000 / ticks,
            uptime_seconds=1000.5 - 90000 / ticks,
            rss_bytes=2048 * 1024,
            children=(43,),
        )
    }


def test_child_of_marked_process_is_the_server(fake):
    fake.add(40, ["a"], markers("a"))
    fake.add(41, ["b"], markers("b"), ppid=40)
    assert sorted(processes.processes("/var/lib/magi-llama", str(fake.root))) == ["a", "b"]


def test_duplicate_name_resolves_to_older_process(fake):
    fake.add(40, ["new"], markers("a"), start=70000)
    fake.add(41, ["old"], markers("a"), start=60000)
    assert processes.processes("/var/lib/magi-llama", str(fake.root))["a"].pid == 41
    assert len(processes.all_processes("/var/lib/magi-llama", str(fake.root))) == 2


def test_server_in_container_is_excluded(fake):
    fake.add(40, ["ours"], markers("a"))
    fake.add(41, ["other"], markers("b"), namespace=2)
    assert set(processes.processes("/var/lib/magi-llama", str(fake.root))) == {"a"}


@pytest.mark.parametrize(
    ("group", "counts"),
    [
        ("0::/system.slice/magi-llama-b.service/libpod-payload-1", True),
        ("4:memory:/x\n1:name=systemd:/system.slice/magi-llama-b.service/libpod-payload-1", True),
        # Of another server, of a unit in a container, and of a container that someone else has started.
        ("0::/system.slice/magi-llama-a.service/libpod-payload-1", False),
        ("0::/machine.slice/libpod-2.scope/system.slice/magi-llama-b.service/libpod-payload-1", False),
        ("0::/machine.slice/libpod-1.scope", False),
        ("0::/system.slice/magi-llama-b.service", False),
        ("", False),
    ],
)
def test_process_in_a_container_counts_if_its_own_unit_has_started_it(fake, group, counts):
    fake.add(41, ["/usr/bin/llama-server"], markers("b"), namespace=2)
    (fake.root / "41" / "cgroup").write_text(group + "\n")
    assert bool(processes.processes("/var/lib/magi-llama", str(fake.root))) is counts


def test_group_of_a_unit_is_named_as_the_unit():
    assert f"/{units.unit_name('b')}/" in processes.UNIT_GROUP.format(name="b")


def test_stat_with_brackets_in_comm_is_parsed(fake):
    fake.add(40, ["x"], markers("a"), comm="a) R 1 (b", ppid=7)
    found = processes.processes("/var/lib/magi-llama", str(fake.root))["a"]
    assert (found.ppid, found.uptime_seconds) == (7, 1000.5 - 50000 / os.sysconf("SC_CLK_TCK"))


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["/usr/bin/llama-server", "--port", "1"], ("/usr/bin/llama-server", "--port", "1")),
        (
            ["/p/ld-linux-x86-64.so.2", "--library-path", "/p:/q", "--argv0", "/p/run", "/p/llama-server", "-c", "4"],
            ("/p/run", "-c", "4"),
        ),
        (
            ["/lib/ld-musl-x86_64.so.1", "--argv0", "n", "--library-path", "/p", "/p/x", "--port", "1"],
            ("n", "--port", "1"),
        ),
        (["/p/ld-linux.so.2", "--library-path", "/p", "/p/llama-server", "--x"], ("/p/llama-server", "--x")),
        (["/usr/bin/llama-server", "--alias", ""], ("/usr/bin/llama-server", "--alias", "")),
        (["/p/ld-linux.so.2"], ("/p/ld-linux.so.2",)),
        (["/opt/old-linux-tool", "--a", "b"], ("/opt/old-linux-tool", "--a", "b")),
    ],
)
def test_argv_is_returned_without_loader(fake, argv, expected):
    fake.add(40, argv, markers("a"))
    assert processes.processes("/var/lib/magi-llama", str(fake.root))["a"].argv == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (None, processes.Memory(2048 * 1024, 1024 * 1024)),
        ("max", processes.Memory(2048 * 1024, 1024 * 1024)),
        ("524288", processes.Memory(524288, 524288)),
        ("9223372036854771712", processes.Memory(2048 * 1024, 1024 * 1024)),
    ],
)
def test_memory_in_container_is_its_limit(fake, limit, expected):
    if limit is not None:
        fake.write("memory.max", limit + "\n")
    assert processes.memory(str(fake.root), str(fake.root)) == expected


def test_started_server_is_found_in_real_proc(tmp_path):
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        child = subprocess.Popen(
            [sys.executable, "-c", "import time; time.sleep(60)", "--marker", "a\nb"],
            env={"MAGI_LLAMA_STATE": str(tmp_path), "MAGI_LLAMA_SERVER": "real"},
        )
        try:
            deadline = time.monotonic() + 5
            while not (found := processes.processes(str(tmp_path))) and time.monotonic() < deadline:
                time.sleep(0.01)
            process = found["real"]
            assert process.pid == child.pid
            assert process.ppid == os.getpid()
            assert process.uid == os.getuid()
            assert process.argv[-2:] == ("--marker", "a\nb")
            assert process.rss_bytes > 0
            assert 0 <= process.uptime_seconds < 10
            assert abs(process.started_at - time.time()) < 10
            listener = processes.listeners([port])[port]
            assert (listener.pid, listener.addresses) == (os.getpid(), ("127.0.0.1",))
        finally:
            child.kill()
            child.wait()
    assert processes.processes(str(tmp_path)) == {}
    assert processes.memory().total_bytes >= processes.memory().available_bytes > 0


@pytest.fixture
def deployed(tmp_path_factory):
    """A state directory whose servers run as the user daemon."""
    folder = tmp_path_factory.mktemp("state")
    (folder / "deployment.json").write_text(json.dumps({"deployed": {"users": ["daemon"]}}))
    return str(folder)


def test_processes_are_ours_by_mark_user_and_name(fake, deployed):
    daemon = pwd.getpwnam("daemon").pw_uid
    mark = f"MAGI_LLAMA_STATE={deployed}"
    for pid, uid, name in [
        (10, daemon, "a"),
        (11, 0, "b"),
        (12, 4711, "c"),
        (13, daemon, "\x1b[2Jd"),
        (14, daemon, "../e"),
    ]:
        fake.add(pid, ["llama-server", "--port", "²"], [mark, f"MAGI_LLAMA_SERVER={name}"], uid=uid)
    assert sorted(processes.processes(deployed, str(fake.root))) == ["a", "b"]
    reported = processes.foreign_marks(deployed, str(fake.root))
    assert [text.split(" (")[0] for text in reported] == ["pid 12", "pid 13", "pid 14"]
    assert "runs as another user (uid 4711)" in reported[0]
    assert r"its name \x1b[2Jd is not one of a server" in reported[1]


@pytest.mark.skipif(os.geteuid() != 0, reason="without root all folders are trusted")
def test_programs_count_by_user_and_trusted_state_directory(fake, deployed, tmp_path_factory):
    untrusted, bare = tmp_path_factory.mktemp("untrusted"), tmp_path_factory.mktemp("bare")
    # Reading it would not end.
    os.mkfifo(untrusted / "deployment.json")
    os.chown(untrusted, 4711, -1)
    daemon = pwd.getpwnam("daemon").pw_uid
    states = [(deployed, 0), (deployed, daemon), (deployed, 4711), (bare, 0), (bare, daemon), (untrusted, 0)]
    for pid, (state, uid) in enumerate([*states, ("/own\udcff\x1b[31m", 4711), ("own", 0), ("", 0)], 10):
        fake.add(pid, [f"/bin/{pid}"], [f"MAGI_LLAMA_STATE={state}"], uid=uid)
    assert processes.programs_by_state(str(fake.root)) == {
        deployed: {"/bin/10", "/bin/11"},
        str(bare): {"/bin/13"},
        "/own\udcff\x1b[31m": set(),
    }


def test_another_users_process_does_not_replace_a_server(fake, deployed):
    """It is older, but not ours."""
    env = [f"MAGI_LLAMA_STATE={deployed}", "MAGI_LLAMA_SERVER=a"]
    fake.add(10, ["x"], env, uid=4711, start=1)
    fake.add(11, ["llama-server"], env, uid=pwd.getpwnam("daemon").pw_uid, start=2)
    assert processes.processes(deployed, str(fake.root))["a"].pid == 11


def test_bytes_that_are_not_utf8_are_left_out(fake, deployed):
    env = [f"MAGI_LLAMA_STATE={deployed}", b"MAGI_LLAMA_REVISION=\xff", "MAGI_LLAMA_SERVER=a"]
    fake.add(10, ["llama-server"], env)
    fake.add(11, ["llama-server"], [env[0], b"MAGI_LLAMA_SERVER=\xff"])
    found = processes.processes(deployed, str(fake.root))
    assert sorted(found) == ["a"] and "MAGI_LLAMA_REVISION" not in found["a"].env
    assert json.dumps(processes.foreign_marks(deployed, str(fake.root))).isascii()
    assert r"its name \xff" in processes.foreign_marks(deployed, str(fake.root))[0]
