# Copyright (c) the magi.llama contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import shlex
import subprocess
import textwrap

import pytest
from ansible_collections.magi.llama.plugins.module_utils._launch import quoting
from hypothesis import given, settings
from hypothesis import strategies as st
from supervisor.options import ServerOptions

NASTY = [
    "plain",
    "",
    "with space",
    " ends ",
    "per%cent %i %(here)s %%",
    "dollar $HOME ${HOME} $$",
    'double "quotes"',
    "single 'quotes'",
    "back\\slash\\",
    "\\x41\\n",
    "new\nline",
    "trailing \n\n  leading",
    "a ;comment",
    "a #comment",
    ";",
    "#",
    "tab\tand\x01\x7f",
    "-dash",
    "ümläut 模型",
    "[section]",
    "key = value",
]

letters = st.characters(exclude_characters="\0\r", exclude_categories=("Cs",))
text = st.lists(st.sampled_from([*"'\"\\ %$;#()\n", "%(here)s"]) | letters, max_size=30).map("".join)


def systemd_unquote(line):
    """systemd's reading of an ExecStart value: word splitting, C escapes, specifiers and variables."""
    line = line.replace("\\\n", " ")
    words, word, at, quoted, started = [], "", 0, False, False
    while at < len(line):
        letter = line[at]
        if letter == "\\":
            following = line[at + 1]
            if following == "x":
                word += chr(int(line[at + 2 : at + 4], 16))
                at += 2
            else:
                assert following in '"\\', f"unknown escape \\{following}"
                word += following
            at += 1
        elif letter == '"':
            quoted, started = not quoted, True
        elif letter in " \t\n" and not quoted:
            if word or started:
                words.append(word)
            word, started = "", False
        else:
            assert letter not in "'\n", "a bare quote or line break"
            word += letter
        at += 1
    assert not quoted
    words += [word] if word or started else []
    return [word.replace("%%", "%").replace("$$", "$") for word in words]


def singles_inside_double_quotes_only(line):
    return line.replace("'", "\\x27")


@pytest.mark.parametrize("word", NASTY)
def test_systemd_round_trip_of_special_words(word):
    quoted = quoting.systemd_argv(["/usr/bin/llama-server", "--model", word, "--port", "8080"])
    words = systemd_unquote(singles_inside_double_quotes_only(quoted))
    assert words == ["/usr/bin/llama-server", "--model", word, "--port", "8080"]


@given(word=text)
def test_systemd_round_trip_of_any_word(word):
    quoted = quoting.systemd_argv(["/p", word])
    assert systemd_unquote(singles_inside_double_quotes_only(quoted)) == ["/p", word]


@pytest.mark.parametrize("program", ["llama-server", "/a\nb", '/a"b', "/a\\b", "/a$b", "/a'b"])
def test_systemd_program_path_invalid_is_refused(program):
    with pytest.raises(quoting.QuoteError, match="path of llama-server"):
        quoting.systemd_argv([program])


def test_systemd_escapes_bytes_not_utf8():
    assert quoting.systemd_argv(["/p", "a\udcffb"]) == '/p "a\\xffb"'


def test_command_has_one_flag_per_line():
    argv = ["/usr/bin/llama-server", "--model", "/m.gguf", "--flash-attn", "--port", "1"]
    assert quoting.systemd_argv(argv) == (
        "/usr/bin/llama-server \\\n    --model /m.gguf \\\n    --flash-attn \\\n    --port 1"
    )
    assert quoting.supervisor_command(argv) == "/usr/bin/llama-server\n  --model /m.gguf\n  --flash-attn\n  --port 1"


@pytest.mark.parametrize(
    ("function", "value", "expected"),
    [
        (quoting.systemd_environment, {"B": "x y", "A": "50%"}, 'Environment=A=50%%\nEnvironment="B=x y"'),
        (quoting.systemd_environment, {"A": "$HOME"}, 'Environment="A=$HOME"'),
        (quoting.systemd_paths, ["/a", "/b c", '/d"e'], '/a "/b c" "/d\\"e"'),
        (
            quoting.systemd_settings,
            {"A": 1, "B": None, "C": [], "D": True, "E": ["x", "y"], "F": ""},
            "A=1\nD=yes\nE=x\nE=y",
        ),
        (quoting.supervisor_environment, {"B": "x,y", "A": 'a"b%'}, 'A=\'a"b%%\',B="x,y"'),
        (quoting.supervisor_value, "/srv/100%/x;y", "/srv/100%%/x;y"),
    ],
)
def test_quoting_of_values(function, value, expected):
    assert function(value) == expected


@pytest.mark.parametrize(
    ("function", "value"),
    [
        (quoting.systemd_paths, ["/a\nb"]),
        (quoting.systemd_argv, ["/p", "a\0b"]),
        (quoting.systemd_argv, []),
        (quoting.systemd_settings, {"A": "x\nExecStart=/bin/sh"}),
        (quoting.systemd_settings, {"A": "x\\"}),
        (quoting.supervisor_command, ["/p", "a\rb"]),
        (quoting.supervisor_command, ["/p", "a\udcffb"]),
        (quoting.supervisor_environment, {"A": "'\""}),
        (quoting.supervisor_environment, {"A": "'x"}),
        (quoting.supervisor_environment, {"A": "x\ny"}),
        (quoting.supervisor_value, "a ;b"),
        (quoting.supervisor_value, "#b"),
        (quoting.supervisor_value, "a\nb"),
        (quoting.supervisor_value, " a"),
        (quoting.supervisor_value, "/a/%(here)s"),
    ],
)
def test_values_not_representable_are_refused(function, value):
    with pytest.raises(quoting.QuoteError):
        function(value)


def supervisor_reads(folder, argv, env):
    """The command and environment that supervisor's own parser reads from a rendered program."""
    program = folder / "program.conf"
    command, environment = quoting.supervisor_command(argv), quoting.supervisor_environment(env)
    program.write_bytes(f"[program:x]\ncommand={command}\nenvironment={environment}\n".encode())
    main = folder / "supervisord.conf"
    main.write_text(f"[supervisord]\nlogfile={folder}/log\npidfile={folder}/pid\n[include]\nfiles=program.conf\n")
    options = ServerOptions()
    options.configfile = str(main)
    options.realize(args=[], doc="")
    [group] = options.process_group_configs
    [process] = group.process_configs
    return shlex.split(process.command), process.environment


@pytest.mark.parametrize("word", NASTY)
def test_supervisor_round_trip_of_special_words(word, tmp_path):
    argv = ["/usr/bin/llama-server", "--model", word, "--port", "8080"]
    assert supervisor_reads(tmp_path, argv, {"A": "x"})[0] == argv


@settings(max_examples=50, deadline=None)
@given(word=text)
def test_supervisor_round_trip_of_any_word(word, tmp_path_factory):
    argv = ["/p", word]
    assert supervisor_reads(tmp_path_factory.mktemp("any"), argv, {"A": "x"})[0] == argv


@pytest.mark.parametrize("value", ["/var/lib/magi llama", "a,b=c", "50%", 'a"b', "a'b", "a;b", "a#b", "ü"])
def test_supervisor_round_trip_of_environment(value, tmp_path):
    env = {"MAGI_LLAMA_STATE": value, "MAGI_LLAMA_SERVER": "x"}
    assert supervisor_reads(tmp_path, ["/p"], env)[1] == env


def test_started_program_may_differ_from_its_name():
    argv = ["/home/me/my server", "--port", "1"]
    assert quoting.systemd_argv(argv, program=argv[0]) == quoting.systemd_argv(argv)
    assert quoting.systemd_argv(argv, program="/home/me/50%/bin/x") == (
        '@/home/me/50%%/bin/x "/home/me/my server" \\\n    --port 1'
    )
    with pytest.raises(quoting.QuoteError, match=r"The path of llama-server, '/home/me/a\$b'"):
        quoting.systemd_argv(argv, program="/home/me/a$b")


@pytest.mark.parametrize("named", [["/bin/true"], ["/home/me/no such file"]])
def test_systemd_analyze_accepts_rendered_unit(tmp_path, named):
    """systemd-analyze reads the unit and reports words that it cannot parse."""
    unit = tmp_path / "nasty.service"
    command = quoting.systemd_argv([*named, *NASTY], program="/bin/true")
    unit.write_text(
        textwrap.dedent("[Service]\nType=exec\nExecStart={}\n{}\n").format(
            command, quoting.systemd_environment({"A": "x\ny %i $HOME \"q\" 'q'"})
        )
    )
    try:
        result = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("systemd-analyze is not installed")
    assert "nasty.service" not in result.stderr, result.stderr
