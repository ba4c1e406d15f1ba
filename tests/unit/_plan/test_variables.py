# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import pytest
from ansible_collections.magi.llama.plugins.module_utils._plan.variables import setting_errors

GOOD = {
    "servers_port_range_start": 8080,
    "servers_port_range_end": "8099",
    "servers_stop_timeout": 30,
    "servers_max_startup_time": "",
    "servers_gpu_access": "auto",
    "servers_concurrent_starts": "",
    "servers_host": "127.0.0.1",
    "servers_api_key_file": "",
    "servers_allow_open": False,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"servers_max_startup_time": "120"},
        {"servers_gpu_access": True},
        {"servers_gpu_access": "off"},
        {"servers_concurrent_starts": False},
        {"servers_host": "localhost"},
        {"servers_host": "::1"},
        {"servers_host": "127.0.0.53"},
        {"servers_host": "::ffff:127.0.0.1"},
        {"servers_host": "0.0.0.0", "servers_api_key_file": "/etc/keys"},
        {"servers_host": "0.0.0.0", "servers_allow_open": True},
        {"servers_port_range_start": 1, "servers_port_range_end": 65535},
        {"servers_cpu_weight": 10000, "servers_lock_wait": 0, "servers_numa_mask": "0-1,3", "servers": "all"},
        {"servers_ports": {"a": 8080, "b": "8081"}},
    ],
)
def test_variables_valid_have_no_error(changes):
    assert setting_errors({**GOOD, **changes}) == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"servers_max_startup_time": "2m"}, "servers_max_startup_time is 2m: set it to a whole number"),
        ({"servers_port_range_start": 9000}, "The port range 9000 to 8099 is empty or not within 1 to 65535"),
        ({"servers_port_range_end": 70000}, "The port range 8080 to 70000 is empty or not within 1 to 65535"),
        ({"servers_ports": {"a": 0}}, "servers_ports.a is 0: set it to a port, a whole number from 1 to 65535."),
        (
            {"servers_ports": {"a": 8080, "b": 8080}},
            "servers_ports sets 8080 for a and for b: a port is for one server.",
        ),
        ({"servers_gpu_access": "ture"}, "servers_gpu_access is ture: set it to auto, true or false"),
        (
            {"servers_concurrent_starts": "maybe"},
            "servers_concurrent_starts is maybe: set it to true or false (or MODEL_CONCURRENT_STARTS).",
        ),
        ({"servers_cpu_weight": 0}, "servers_cpu_weight is 0: set it to a whole number from 1 to 10000."),
        ({"servers_cpu_weight": 10001}, "servers_cpu_weight is 10001: set it to a whole number from 1 to 10000."),
        ({"servers_lock_wait": -1}, "servers_lock_wait is -1: set it to a whole number of at least 0."),
        ({"servers_numa_mask": "a,b"}, "servers_numa_mask is a,b: set it to NUMA nodes such as 0-1,3"),
        ({"servers": " ,"}, "servers names no server"),
        ({"servers_host": "10.0.0.1"}, "servers_host is 10.0.0.1, which other machines can reach"),
        ({"servers_host": "::ffff:10.0.0.1"}, "servers_host is ::ffff:10.0.0.1, which other machines can reach"),
        *(
            (changes, f"servers_host is {changes['servers_host']}: set it to one IP address")
            for changes in (
                # They begin like a loopback address, and are names that other machines may have.
                {"servers_host": "localhost.example.org"},
                {"servers_host": "127.x.example"},
                {"servers_host": "127.0.0.1,0.0.0.0"},
                {"servers_host": "127.1"},
                {"servers_host": "[::1]"},
                {"servers_host": "", "servers_api_key_file": "/etc/keys"},
                {"servers_host": "/run/llama.sock", "servers_allow_open": True},
            )
        ),
    ],
)
def test_variables_invalid_error_names_variable_and_fix(changes, expected):
    [error] = setting_errors({**GOOD, **changes})
    assert error.startswith(expected)


@pytest.mark.parametrize(
    ("name", "variable"),
    [
        ("servers_port_range_start", " (or MODEL_PORT_RANGE_START)"),
        ("servers_port_range_end", " (or MODEL_PORT_RANGE_END)"),
        ("servers_max_startup_time", " (or MODEL_MAX_STARTUP_TIME)"),
        ("servers_stop_timeout", ""),
    ],
)
def test_variables_that_are_no_numbers_name_their_own_environment_variable(name, variable):
    expected = f"{name} is abc: set it to a whole number of at least 1{variable}."
    assert setting_errors({**GOOD, name: "abc"}) == [expected]


def test_variables_errors_are_reported_together():
    assert len(setting_errors({**GOOD, "servers_port_range_start": "808O", "servers_stop_timeout": 0})) == 2
    assert len(setting_errors({**GOOD, "servers_gpu_access": "maybe", "servers_host": "::"})) == 2
    wrong = {
        "servers_stop_timeout": "x",
        "servers_cpu_weight": 0,
        "servers_gpu_access": "maybe",
        "servers_concurrent_starts": "perhaps",
        "servers_port_range_end": 70000,
        "servers_host": "::",
    }
    assert [error.split(" is ")[0] for error in setting_errors({**GOOD, **wrong})] == [
        "servers_stop_timeout",
        "servers_cpu_weight",
        "servers_gpu_access",
        "servers_concurrent_starts",
        "The port range 8080 to 70000",
        "servers_host",
    ]


def test_variables_not_given_are_not_checked():
    assert setting_errors({}) == []
    assert setting_errors({"servers_max_startup_time": "x"})[0].startswith("servers_max_startup_time is x")
    assert setting_errors({"servers_host": "0.0.0.0"}) == []


def test_relative_paths_are_refused():
    given = {"registry_scan_paths": ["/models", "models"], "servers_state_dir": "./state", "runtime_prefix": "~/llama"}
    assert setting_errors({**GOOD, **given, "servers_api_key_file": "auto"}) == [
        "registry_scan_paths is models, a relative path: set it to an absolute path on the host (or MODEL_SCAN_PATH).",
        "servers_state_dir is ./state, a relative path: set it to an absolute path on the host.",
    ]
