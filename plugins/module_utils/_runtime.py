# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a llama-server binary is: its version, and the flags that it accepts, from its own --version and --help.

Used by the modules runtime and server_plan. llama.cpp renames and removes flags every few weeks and an unknown one is
fatal, so nothing here knows a list of flags: the binary is asked.
"""

from __future__ import annotations

import difflib
import fnmatch
import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Union

from ._errors import MagiError


class VersionError(MagiError):
    """The output of --version that nobody can read."""


class FlagError(MagiError):
    """A parameter that cannot become a flag."""


class UnknownFlagError(FlagError):
    """A parameter that this binary has no flag for."""

    def __init__(self, key: str, nearest: Sequence[str] = (), reason: str | None = None) -> None:
        self.key = key
        self.nearest = list(nearest)
        text = reason or f'this llama-server has no flag "{key}"'
        if self.nearest:
            text += f"; nearest: {', '.join(self.nearest)}"
        super().__init__(text + ".")


class ManagedFlagError(FlagError):
    """A parameter that the collection sets itself, or that must not stand on a command line."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        super().__init__(f'"{key}" cannot be set as a parameter: {reason}.')


class FlagValueError(FlagError):
    """A value that the flag does not take."""

    def __init__(self, key: str, reason: str) -> None:
        self.key = key
        super().__init__(f'"{key}" {reason}.')


_MODEL = "the model comes from the profile's enabled_models, found in the model folders of the host"
_SECRET = "a key on a command line shows in ps; put the keys in a file on the host and set servers_api_key_file"
_DOWNLOAD = "servers only load files that are on the host; put the file in a model folder"
_TLS = "servers speak plain HTTP, or their health could not be checked; put TLS in a proxy in front of them"
_LOG = "the service manager keeps the log, and a failed start is explained from it"
_ROUTER = "one server serves one model here; list the models in the profile's enabled_models"
_ONCE = "it prints and ends, it does not serve"

# Set by the plan, or harmful to it: refused with what to do instead. Names of every build, old and new.
MANAGED_FLAGS: dict[str, str] = {
    "model": _MODEL,
    "alias": "a server answers to its model's id, which proves that the right one answers",
    "host": "the address is the role's input servers_host",
    "port": "the plan gives each server its port, from the port range of the role servers",
    "reuse_port": "two servers would share one port and answer in turn",
    "api_prefix": "the health check would not find the server",
    "api_key": _SECRET,
    "api_key_file": "set servers_api_key_file, so that the health check knows the key too",
    "hf_token": "a token on a command line shows in ps, and servers download nothing",
    "ssl_key_file": _TLS,
    "ssl_cert_file": _TLS,
    "log_file": _LOG,
    "log_disable": _LOG,
    "model_url": _DOWNLOAD,
    "docker_repo": _DOWNLOAD,
    "hf_repo": _DOWNLOAD,
    "hf_file": _DOWNLOAD,
    "hf_repo_v": _DOWNLOAD,
    "hf_file_v": _DOWNLOAD,
    "hf_repo_draft": _DOWNLOAD,
    "spec_draft_hf": _DOWNLOAD,
    "mmproj_url": _DOWNLOAD,
    "models_dir": _ROUTER,
    "models_preset": _ROUTER,
    "models_max": _ROUTER,
    "models_autoload": _ROUTER,
    "config": "a configuration file changes a server behind the plan's back; write its settings as parameters",
    "help": _ONCE,
    "usage": _ONCE,
    "version": _ONCE,
    "license": _ONCE,
    "cache_list": _ONCE,
    "list_devices": _ONCE,
    "completion_bash": _ONCE,
}

# One flag under several names: builds list one or the other, and some accept a name that their help leaves out.
_SYNONYMS: tuple[tuple[str, ...], ...] = (
    ("n_gpu_layers", "gpu_layers"),
    ("n_predict", "predict"),
    ("embedding", "embeddings"),
    ("reranking", "rerank"),
    ("ui", "webui"),
    ("verbosity", "log_verbosity"),
    ("temp", "temperature"),
    ("spec_draft_model", "model_draft"),
    ("spec_draft_ngl", "n_gpu_layers_draft", "gpu_layers_draft"),
    ("spec_draft_type_k", "cache_type_k_draft"),
    ("spec_draft_type_v", "cache_type_v_draft"),
    ("spec_draft_p_min", "draft_p_min"),
)

# Flags that became a value of another one: too different to translate, near enough to name.
_BECAME: dict[str, tuple[str, ...]] = {
    "mmap": ("load_mode",),
    "no_mmap": ("load_mode",),
    "mlock": ("load_mode",),
    "direct_io": ("load_mode",),
    "load_mode": ("mlock", "no_mmap"),
    "draft_max": ("spec_draft_n_max",),
    "draft_min": ("spec_draft_n_min",),
    "spec_draft_n_max": ("draft_max",),
    "spec_draft_n_min": ("draft_min",),
}

# Flags that take on, off or auto in newer builds: what booleans become while no binary can be asked.
_ON_OFF = ("flash_attn", "fit", "log_colors", "reasoning")

# Presets that fetch a model of their own.
_PRESET = re.compile(r"(embd|fim|gpt_oss|tts|vision)_.+_(default|spec)")

_SPELLING = re.compile(r"-{1,2}[A-Za-z0-9][A-Za-z0-9._-]*")
_ENTRY = re.compile(r"(?P<indent> {0,12})(?=-{1,2}[A-Za-z])")
_ENV = re.compile(r"\(env: (?:LLAMA_ARG_)?([A-Z0-9_]+)\)")
_REMOVED = re.compile(r"argument has been removed", re.IGNORECASE)
_NEW_VERSION = re.compile(r"^version:\s*(\S+)\s+\(build\s+(\d+)(?:,\s*commit\s+([^)\s]+))?\)", re.MULTILINE)
_OLD_VERSION = re.compile(r"^version:\s*(\d+)(?:\s+\(([^)\s]+)\))?", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{6,40}")


@dataclass(frozen=True)
class Version:
    """What --version says. build is upstream's running number, the only thing that can be compared."""

    version: str
    build: int | None
    commit: str | None


@dataclass(frozen=True)
class Flag:
    """One flag of one binary. Names are the long spellings in snake_case, without the dashes."""

    name: str
    spelling: str
    value: bool
    # How many words follow: almost always none or one.
    words: int = 0
    choices: tuple[str, ...] = ()
    # "auto" is a value beside numbers.
    auto: bool = False
    # Several values go into one word with commas: given twice, the last one wins.
    joined: bool = False
    negation: str | None = None
    # Other long names; those that begin with no_ mean the opposite when the flag has a negation.
    aliases: tuple[str, ...] = ()
    shorts: tuple[str, ...] = ()
    # Listed only to say what took its place.
    removed: bool = False
    instead: tuple[str, ...] = ()

    def to_fact(self) -> dict[str, Any]:
        """The flag as plain data; what is empty is left out, since a fact of 250 flags travels."""
        fact: dict[str, Any] = {"spelling": self.spelling, "value": self.value}
        if self.words > 1:
            fact["words"] = self.words
        for key in ("choices", "aliases", "shorts", "instead"):
            if getattr(self, key):
                fact[key] = list(getattr(self, key))
        for key in ("auto", "joined", "removed", "negation"):
            if getattr(self, key):
                fact[key] = getattr(self, key)
        return fact

    @classmethod
    def from_fact(cls, name: str, fact: Mapping[str, Any]) -> Flag:
        """The reverse of to_fact."""
        value = bool(fact["value"])
        return cls(
            name=name,
            spelling=str(fact["spelling"]),
            value=value,
            words=int(fact.get("words", 1 if value else 0)),
            choices=tuple(fact.get("choices", ())),
            auto=bool(fact.get("auto", False)),
            joined=bool(fact.get("joined", False)),
            negation=fact.get("negation"),
            aliases=tuple(fact.get("aliases", ())),
            shorts=tuple(fact.get("shorts", ())),
            removed=bool(fact.get("removed", False)),
            instead=tuple(fact.get("instead", ())),
        )


Flags = Mapping[str, Union[Flag, Mapping[str, Any]]]


def parse_version(text: str) -> Version:
    """Read the output of --version, in the old format (9305 (63248fc3e)) or the new (0.7.0 (build 11669, commit …))."""
    new = _NEW_VERSION.search(text)
    if new:
        return Version(new[1], int(new[2]) or None, _commit(new[3]))
    old = _OLD_VERSION.search(text)
    if old:
        # Built without git, it calls itself 0 (unknown): that is no build number to compare.
        return Version(old[1], int(old[1]) or None, _commit(old[2]))
    shown = next((line.strip()[:200] for line in text.splitlines() if line.strip()), "nothing")
    raise VersionError(f"the output of --version is not that of llama-server; it printed: {shown}")


def _commit(text: str | None) -> str | None:
    # Distributions print their own name here.
    return text if text and _COMMIT.fullmatch(text) else None


def parse_help(text: str) -> dict[str, Flag]:
    """Read the output of --help: every flag by its canonical long name in snake_case."""
    found = [flag for flag in map(_entry_flag, _entries(text)) if flag]
    flags = {flag.name: flag for flag in found}
    for flag in found:
        opposite = flags.get(flag.name[3:]) if flag.name.startswith("no_") else None
        # Older builds list a flag and its negation apart.
        if opposite and not flag.value and not opposite.value and not opposite.negation:
            flags[opposite.name] = _replace(opposite, negation=flag.spelling, shorts=opposite.shorts)
            del flags[flag.name]
    return {name: _resolve_instead(flag, flags) for name, flag in flags.items()}


def _replace(flag: Flag, **changes: Any) -> Flag:
    return Flag(**{**flag.__dict__, **changes})


def _resolve_instead(flag: Flag, flags: Mapping[str, Flag]) -> Flag:
    """Name what took a removed flag's place by flags that exist: the help may say --spec-ngram-*-size-n."""
    if not flag.removed:
        return flag
    present = sorted(name for name, other in flags.items() if not other.removed)
    instead = [name for pattern in flag.instead for name in fnmatch.filter(present, pattern)]
    return _replace(flag, instead=tuple(dict.fromkeys(instead)))


def _entries(text: str) -> list[tuple[str, str]]:
    """Split the help into (names and value, description)."""
    lines = text.splitlines()
    column = _description_column(lines)
    entries: list[tuple[str, list[str]]] = []
    for line in lines:
        if _ENTRY.match(line):
            head, description = _split_head(line, column)
            entries.append((head, [description] if description else []))
        elif not line.strip():
            continue
        elif entries and line.startswith(" "):
            entries[-1][1].append(line.strip())
    return [(head, " ".join(description)) for head, description in entries]


def _description_column(lines: Iterable[str]) -> int:
    """Where descriptions begin: the most common indent of the lines that go on with one."""
    indents = Counter(len(line) - len(line.lstrip()) for line in lines if line.strip() and not _ENTRY.match(line))
    indents.pop(0, None)
    return indents.most_common(1)[0][0] if indents else 40


def _split_head(line: str, column: int) -> tuple[str, str]:
    """Part the names and value of a flag from its description, which two spaces or the column sets off."""
    indent = len(line) - len(line.lstrip())
    for gap in re.finditer(r" {2,}", line[indent:]):
        start, end = indent + gap.start(), indent + gap.end()
        # Short names are padded, so a gap after a comma is still between names.
        if line[start - 1] != "," or not _SPELLING.match(line, end):
            return line[indent:start], line[end:]
    head = line[indent:column].rstrip()
    # Names that fill the column leave one space; a head that is longer has its description on the next line.
    filled = len(line) > column and line[column - 1 : column] == " " and line[column] not in " -"
    if filled and indent + len(head) == column - 1 and not head.endswith(",") and head.count("<") == head.count(">"):
        return head, line[column:]
    return line[indent:].rstrip(), ""


def _entry_flag(entry: tuple[str, str]) -> Flag | None:
    """Make a flag of one entry of the help; None where it has no long name."""
    head, description = entry
    spellings, hint = _spellings(head)
    positive, negative = _part_negations(spellings)
    longs = [spelling for spelling in positive if spelling.startswith("--")]
    if not longs:
        return None
    spelling = _canonical(longs, description)
    negations = [name for name in negative if name.startswith("--")]
    preferred = "--no-" + spelling[2:]
    negation = preferred if preferred in negations else next(iter(negations), None)
    removed = bool(_REMOVED.search(description))
    others = [_name(name) for name in (*longs, *negations) if name not in (spelling, negation)]
    return Flag(
        name=_name(spelling),
        spelling=spelling,
        value=bool(hint),
        words=_words(hint),
        choices=() if removed else _choices(hint, description),
        auto=bool(hint) and not _choices(hint, "") and bool(re.search(r"'auto'|default: auto\b", description)),
        joined=bool(hint) and (hint.endswith(",...") or "comma-separated" in description),
        negation=negation,
        aliases=tuple(others),
        shorts=tuple(name.lstrip("-") for name in positive if not name.startswith("--")),
        removed=removed,
        instead=tuple(_name(name) for name in re.findall(r"--[a-z0-9*-]+", description)) if removed else (),
    )


def _name(spelling: str) -> str:
    return spelling.lstrip("-").replace("-", "_")


def _spellings(head: str) -> tuple[list[str], str]:
    """Read "-c, --ctx-size N" as its spellings and the hint of its value. Old help repeats the hint after each one."""
    spellings: list[str] = []
    hint = ""
    position = 0
    while True:
        match = _SPELLING.match(head, position)
        if not match:
            return spellings, hint
        spellings.append(match[0])
        rest = head[match.end() :]
        following = re.search(r",\s*(?=-{1,2}[A-Za-z])", rest)
        hint = (rest[: following.start()] if following else rest).strip().rstrip(",") or hint
        if not following:
            return spellings, hint
        position = match.end() + following.end()


def _part_negations(spellings: Sequence[str]) -> tuple[list[str], list[str]]:
    """Part what turns a flag on from what turns it off: "-kvo, --kv-offload, -nkvo, --no-kv-offload"."""
    for index, spelling in enumerate(spellings):
        if not spelling.startswith("--no-") or not any(s.startswith("--") for s in spellings[:index]):
            continue
        start = index
        while start > 1 and spellings[start - 1].startswith("-n"):
            start -= 1
        return list(spellings[:start]), list(spellings[start:])
    return list(spellings), []


def _canonical(longs: Sequence[str], description: str) -> str:
    """The spelling that the flag's environment variable is named after, or the first: both are upstream's choice."""
    env = _ENV.search(description)
    named = "--" + env[1].lower().replace("_", "-") if env else ""
    return named if named in longs else longs[0]


def _words(hint: str) -> int:
    if not hint:
        return 0
    return len(hint.split()) if re.fullmatch(r"[A-Z]+( [A-Z]+)+", hint) else 1


def _choices(hint: str, description: str) -> tuple[str, ...]:
    """The values that a flag takes, where the help lists them: [on|off], {none,layer}, <0|1>, allowed values: …"""
    bracketed = re.fullmatch(r"[\[{<]([\w.+-]+(?:[|,][\w.+-]+)+)[\]}>]", hint)
    if bracketed and ".." not in hint and not re.search(r"\d,", bracketed[1]):
        return tuple(re.split(r"[|,]", bracketed[1]))
    allowed = re.search(r"allowed values: ((?:[\w.]+, )*[\w.]+)", description)
    return tuple(allowed[1].split(", ")) if allowed else ()


def flags_to_fact(flags: Mapping[str, Flag]) -> dict[str, dict[str, Any]]:
    """The flags as plain data, sorted by name."""
    return {name: flags[name].to_fact() for name in sorted(flags)}


def flags_from_fact(fact: Flags) -> dict[str, Flag]:
    """The reverse of flags_to_fact; flags that already are flags are kept."""
    return {name: flag if isinstance(flag, Flag) else Flag.from_fact(name, flag) for name, flag in fact.items()}


def canonical_parameters(parameters: Mapping[str, Any], flags: Flags) -> dict[str, Any]:
    """The same parameters under the names that this binary calls canonical; negated ones turned to the positive name.

    So {"gpu_layers": 9, "no_mmap": true} becomes {"n_gpu_layers": 9, "mmap": false} where the binary knows it so.
    Without flags the parameters are returned as they are. Raises FlagError.
    """
    if not flags:
        return dict(parameters)
    known = flags_from_fact(flags)
    index = _index(known)
    result: dict[str, Any] = {}
    for key, given in parameters.items():
        flag, inverted = _find(key, known, index)
        value = not given if inverted and isinstance(given, bool) else given
        if flag.name in result and result[flag.name] != value:
            raise FlagValueError(key, f"is set twice, also under another of its names (canonical: {flag.name})")
        result[flag.name] = value
    return result


def render_flags(parameters: Mapping[str, Any], flags: Flags) -> list[str]:
    """Render llama-server's long flags in snake_case as its arguments, sorted by name.

    flags is what parse_help returns, or the fact made from it. Without flags (nothing installed yet, check mode) all is
    rendered as it stands, unvalidated. Raises FlagError: UnknownFlagError, ManagedFlagError or FlagValueError.
    """
    if not flags:
        return _render_unknown(parameters)
    known = flags_from_fact(flags)
    # Before anything else, since a managed flag may be unknown to this build and still has a better answer.
    for key in parameters:
        _refuse_managed(key)
    canonical = canonical_parameters(parameters, known)
    argv: list[str] = []
    for name in sorted(canonical):
        _refuse_managed(name)
        argv += _render(known[name], canonical[name])
    return argv


def _refuse_managed(key: str) -> None:
    reason = MANAGED_FLAGS.get(key) or (_DOWNLOAD if _PRESET.fullmatch(key) else None)
    if reason:
        raise ManagedFlagError(key, reason)


def _index(flags: Mapping[str, Flag]) -> dict[str, tuple[Flag, bool]]:
    """Every name that may be written for a flag, and whether it means the opposite."""
    index: dict[str, tuple[Flag, bool]] = {}
    for flag in flags.values():
        for alias in flag.aliases:
            index[alias] = (flag, bool(flag.negation) and alias.startswith("no_"))
        if flag.negation:
            index[_name(flag.negation)] = (flag, True)
        elif not flag.value:
            # A switch that has only one spelling: its opposite is to leave it away.
            opposite = flag.name[3:] if flag.name.startswith("no_") else "no_" + flag.name
            index.setdefault(opposite, (flag, True))
    # A flag's own name wins over another's alias or opposite.
    index.update({name: (flag, False) for name, flag in flags.items()})
    for group in _SYNONYMS:
        present = next((index[name] for name in group if name in index and not index[name][0].removed), None)
        for name in group if present else ():
            index.setdefault(name, present)  # type: ignore[arg-type]
    return index


def _find(key: str, flags: Mapping[str, Flag], index: Mapping[str, tuple[Flag, bool]]) -> tuple[Flag, bool]:
    """The flag that key means, and whether it means its opposite. Raises UnknownFlagError."""
    if key in index:
        flag, inverted = index[key]
        if flag.removed:
            raise UnknownFlagError(key, flag.instead, f'"{key}" was removed from this llama-server')
        return flag, inverted
    became = [name for name in _BECAME.get(key, ()) if name in index and not index[name][0].removed]
    if became:
        raise UnknownFlagError(key, became)
    plain = key.lstrip("-").replace("-", "_")
    short = next((name for name, flag in flags.items() if plain in flag.shorts or plain == name), None)
    if short:
        raise UnknownFlagError(key, [short], f'"{key}" is not a long flag in snake_case')
    candidates = [name for name, (flag, _inverted) in index.items() if not flag.removed]
    raise UnknownFlagError(key, difflib.get_close_matches(plain, candidates, n=3, cutoff=0.6))


def _render(flag: Flag, value: Any) -> list[str]:
    if value is None:
        return []
    if not flag.value:
        return _render_switch(flag, value)
    if value == "auto" and flag.name in ("n_gpu_layers", "gpu_layers") and not flag.auto:
        # Older builds know a number only; they offload what fits when nothing is said, or nothing at all.
        return []
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if not values:
        return []
    words = [_word(flag, item) for item in values]
    if flag.words > 1:
        if len(words) != flag.words:
            raise FlagValueError(flag.name, f"takes {flag.words} values as a list, not {len(words)}")
        return [flag.spelling, *words]
    if flag.joined:
        return [flag.spelling, ",".join(words)]
    return [part for word in words for part in (flag.spelling, word)]


def _render_switch(flag: Flag, value: Any) -> list[str]:
    # What newer builds call on, off and auto: one profile serves hosts with either.
    state = {"on": True, "off": False, "auto": None}.get(value, value) if isinstance(value, str) else value
    if state is True:
        return [flag.spelling]
    if state is False:
        return [flag.negation] if flag.negation else []
    if state is None:
        return []
    raise FlagValueError(flag.name, f"takes true or false, not {value!r}")


def _word(flag: Flag, value: Any) -> str:
    """One value as one word, checked against the choices of the flag."""
    if isinstance(value, bool):
        for true, false in (("on", "off"), ("1", "0"), ("true", "false")):
            if true in flag.choices and false in flag.choices:
                return true if value else false
        raise FlagValueError(flag.name, f"takes a value, not {str(value).lower()}")
    word = _text(flag.name, value)
    if flag.choices and word not in flag.choices:
        raise FlagValueError(flag.name, f"takes one of {', '.join(flag.choices)}, not {word}")
    return word


def _text(key: str, value: Any) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise FlagValueError(key, f"takes a number, not {value}")
        # 4096.0 and 4096 are one value, and 1e-05 is written out.
        return str(int(value)) if value.is_integer() else format(Decimal(repr(value)), "f")
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True, separators=(",", ":"))
    if not isinstance(value, (str, int)):
        raise FlagValueError(key, f"takes text, a number, true or false, a list or a mapping, not {value!r}")
    if "\0" in str(value):
        raise FlagValueError(key, "holds a NUL byte, which no command line can carry")
    return str(value)


def _render_unknown(parameters: Mapping[str, Any]) -> list[str]:
    """Render with nothing to ask: what the plan shows on a host where llama-server is not installed yet."""
    argv: list[str] = []
    for key in sorted(parameters):
        _refuse_managed(key)
        value = parameters[key]
        spelling = "--" + key.replace("_", "-")
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, bool) and key in _ON_OFF:
                argv += [spelling, "on" if item else "off"]
            elif item is True:
                argv.append(spelling)
            elif item is not None and item is not False:
                argv += [spelling, _text(key, item)]
    return argv
