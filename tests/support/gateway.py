# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A bed with a gateway before its servers, for tests."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml
from ansible_collections.magi.llama.plugins.module_utils._core.arguments import fill_in
from ansible_collections.magi.llama.plugins.module_utils._deployment.record import read_record
from ansible_collections.magi.llama.plugins.module_utils._gateway.admin_socket import AdminSocket
from ansible_collections.magi.llama.plugins.module_utils._gateway.fleet import server_key
from support import reaper
from support.bed import PARAMETERS, Bed

KEY, OTHER_KEY, SERVER_KEY = "gateway-key-of-alice", "gateway-key-of-bob", "key-of-the-servers-7f3a"
Q2, Q3, Q4 = "tiny-llama-q2_k", "tiny-llama-q3_k_m", "tiny-llama-q4_k_m"
# Room for long streams.
SLOTS = {**PARAMETERS, "parallel": 2, "ctx_size": 8192}
PROFILES: dict[str, Any] = {
    "four": {"enabled_models": [{"model": Q4, "instances": 2}, Q3, Q2], "parameters": SLOTS},
    "three": {"enabled_models": [Q4, Q3, Q2], "parameters": SLOTS},
    "two": {"enabled_models": [Q3, Q2], "parameters": SLOTS},
}
CLIENTS = [
    {"name": "alice", "key": KEY},
    {"name": "bob", "key": OTHER_KEY, "models": [Q2], "rate_per_minute": 5},
]
# A chat template with tools, as those of common models.
TOOLS_TEMPLATE = """\
{%- if tools %}<|im_start|>system
# Tools
You are provided with function signatures within <tools></tools> XML tags:
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
For each function call, return a json object within <tool_call></tool_call> XML tags:
<tool_call>
{"name": <function-name>, "arguments": <args-json-object>}
</tool_call><|im_end|>
{% endif %}
{%- for message in messages %}
{%- if message.role == "tool" %}<|im_start|>user
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif message.tool_calls %}<|im_start|>assistant
{%- if message.content %}
{{ message.content }}
{%- endif %}
{%- for call in message.tool_calls %}
<tool_call>
{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}
</tool_call>
{%- endfor %}<|im_end|>
{% else %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}
"""


@dataclass
class Gateway:
    """A bed with a gateway."""

    bed: Bed
    url: str
    metrics: str
    state: Path
    # Whether the variables may differ from what HAProxy has.
    has_new_settings: bool = False

    def client(self, key: str | None = KEY, **more: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=20, trust_env=False, **more)

    def complete(self, model: str, key: str = KEY, **more: Any) -> httpx.Response:
        with self.client(key) as client:
            return client.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 2, **more})

    def served_by(self, model: str) -> str:
        answer = self.complete(model)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-magi-model"]

    @property
    def admin(self) -> AdminSocket:
        return AdminSocket(str(self.state / "run/admin.sock"))

    def checks(self) -> dict[tuple[str, str], str]:
        return self.admin.checks()

    def set(self, **variables: Any) -> None:
        known = self.bed.variables
        self.has_new_settings |= any(
            name.startswith("gateway_") and known.get(name) != variables[name] for name in variables
        )
        self.bed.variables.update(variables)
        write_inventory(self.bed)

    def update(
        self, draining: Sequence[str] = (), away: Mapping[str, int] | None = None, seconds: float = 10
    ) -> dict[str, Any]:
        """Bring the gateway to the host's servers, of which these drain; the result of gateway_state."""
        options = {"draining": list(draining), "away_seconds": dict(away or {})}
        ports = {"port_range_start": self.bed.port, "port_range_end": self.bed.port + 5}
        found = self.bed.module("gateway_members", state_dir=str(self.bed.state), address="", **ports, **options)
        return self.state_module(
            {"state": "updated", "ready_timeout": seconds},
            hosts={"bed": found["members"]},
            keys=json.dumps({"bed": found["api_keys"]}),
            inventory=["bed"],
        )

    def state_module(self, options: Mapping[str, Any], **filled_in: Any) -> dict[str, Any]:
        supervisord = self.bed.variables["gateway_supervisord_path"]
        places = {"state_dir": str(self.state), "name": "bed", "supervisord_path": supervisord}
        return self.bed.module("gateway_state", **fill_in({**places, **options}, **filled_in))

    def server(self, name: str) -> tuple[str, str]:
        """The backend of a server, and its name there."""
        found = next(server for server in read_record(str(self.bed.state))["servers"] if server["name"] == name)
        return server_key("bed", found)

    @contextmanager
    def stream(self, model: str) -> Iterator[Stream]:
        """A stream of which some lines have arrived, and that continues slowly until its end is asked for."""
        body = {"model": model, "prompt": "a", "max_tokens": 3000, "stream": True, "ignore_eos": True}
        slow = Slow([pid for name, pid in self.bed.pids().items() if self.server(name)[0] == model])
        with slow, self.client() as client, client.stream("POST", "/v1/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            yield Stream(lines, slow)

    def wait_up(self, count: int, seconds: float = 15.0) -> None:
        """Wait until this number of servers is in the gateway, healthy, and gets requests."""
        deadline = time.monotonic() + seconds
        # One that was down has passed a check before it is up: it takes two.
        while sum(is_up(row) for row in self.admin.statistics().values()) != count:
            assert time.monotonic() < deadline, self.checks()
            time.sleep(0.1)


def is_up(row: Mapping[str, str]) -> bool:
    """Whether a server gets requests and has passed its last check, by HAProxy's statistics of it."""
    return row["status"] == "UP" and row["check_status"].lstrip("* ") == "L7OK"


class Slow:
    """Lets processes run for about a millisecond between pauses: a tiny model's stream is over in no time otherwise."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._pulse)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._end.set()
        self._thread.join()
        self._send(signal.SIGCONT)

    def _pulse(self) -> None:
        while not self._end.is_set():
            self._send(signal.SIGCONT)
            time.sleep(0.001)
            self._send(signal.SIGSTOP)
            self._end.wait(0.1)

    def _send(self, number: int) -> None:
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Stream:
    """A stream under way."""

    lines: Iterator[str]
    slow: Slow

    def ends_whole(self) -> bool:
        """Whether it has its last line, after many others; read at full speed."""
        self.slow.stop()
        rest = [line for line in self.lines if line]
        assert len(rest) > 1000, rest[-3:]
        return rest[-1] == "data: [DONE]"


def write_inventory(bed: Bed) -> None:
    hosts = {
        "hosts": {"bed": bed.variables},
        "children": {name: {"hosts": {"bed": {}}} for name in ("models", "gateways")},
    }
    (bed.inventory / "hosts.yml").write_text(yaml.safe_dump({"all": hosts}))


@contextmanager
def deployed_gateway(folder: Path) -> Iterator[Gateway]:
    """Four servers of three models and a gateway before them, in one folder on this machine; both are removed."""
    bed = Bed(folder)
    for name, content in PROFILES.items():
        (bed.inventory / "profiles" / f"{name}.yml").write_text(json.dumps(content))
    keys = folder / "keys"
    keys.write_text(f"# The servers' own.\n{SERVER_KEY}\n")
    keys.chmod(0o640)
    state = folder / "g"
    reaper.watch(state)
    bed.variables.update(
        profile="four",
        servers_api_key_file=str(keys),
        gateway_state_dir=str(state),
        gateway_service_manager="supervisor",
        gateway_supervisord_path=bed.variables["servers_supervisord_path"],
        gateway_user=bed.variables["servers_user"],
        gateway_port=bed.port + 7,
        gateway_metrics_port=bed.port + 8,
        gateway_api_keys=CLIENTS,
        gateway_aliases={"best": [Q4, Q2], "mix": {Q4: 50, Q2: 50}},
    )
    write_inventory(bed)
    gateway = Gateway(bed, f"http://127.0.0.1:{bed.port + 7}", f"http://127.0.0.1:{bed.port + 8}", state)
    try:
        bed.run("site")
        bed.run("gateway")
        yield gateway
    finally:
        bed.run("teardown")
        bed.run("gateway", "-e", "gateway_remove=true")
        # Nothing of the gateway is left, and none of what the servers' teardown leaves is touched.
        assert not state.exists()
