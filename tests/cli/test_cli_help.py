"""What ``pytest-quant`` says of itself."""

from __future__ import annotations

import pytest
from command_lines import examples, leaves, parsers, subcommands

from pytest_quant import cli

NEEDS_NOTHING = ("doctor", "matrix", "completion")
"""Commands whose examples need neither a model nor a file."""


def name(parser) -> str:
    return parser.prog


def test_alone_it_lists_every_command_under_a_question_and_has_judged_nothing(capsys):
    assert cli.main([]) == 2
    out = capsys.readouterr().out
    questions = [question for question, _ in cli.GROUPS]
    assert [line for line in out.splitlines() if line in {*questions, *(f"{each}:" for each in questions)}] != []
    for command in subcommands(cli.parser()):
        assert sum(line.split()[:1] == [command] for line in out.splitlines()) == 1, command
    assert "pytest-quant doctor" in out
    assert "exit codes:" in out
    assert out.endswith("interrupted\n")


@pytest.mark.parametrize("words", [["baseline"], ["reference"]])
def test_a_command_with_actions_lists_them(words, capsys):
    assert cli.main(words) == 2
    out = capsys.readouterr().out
    assert out.startswith(f"usage: pytest-quant {words[0]} ")
    for action in subcommands(subcommands(cli.parser())[words[0]]):
        assert f"    {action} " in out


def test_help_of_a_command_in_two_ways(capsys):
    told = []
    for words in (["help", "baseline", "merge"], ["baseline", "merge", "--help"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(words)
        assert stopped.value.code == 0
        told.append(capsys.readouterr().out)
    assert told[0] == told[1]
    assert told[0].startswith("usage: pytest-quant baseline merge [OPTIONS] PART [PART ...] --into DIR")


@pytest.mark.parametrize("parser", list(parsers()), ids=name)
def test_every_help_fits_into_80_columns_and_explains_each_argument(parser, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = parser.format_help()
    assert [line for line in text.splitlines() if len(line) > 80] == []
    unexplained = [action.dest for action in parser._actions if not action.help and not subcommands(parser)]
    assert unexplained == []


@pytest.mark.parametrize("parser", leaves(), ids=name)
def test_every_command_says_what_it_answers_and_how_it_is_called(parser):
    assert parser.description
    called = [line for line in (parser.epilog or "").splitlines() if line.startswith(f"  {parser.prog}")]
    assert called, f"{parser.prog} has no example"
    told = {
        option for action in parser._actions for option in action.option_strings if action.default not in (None, [])
    }
    shown = parser.format_help()
    for option in told - {"-h", "--help"}:
        action = parser._option_string_actions[option]
        if action.nargs != 0:
            assert "default" in (action.help or ""), f"{parser.prog} {option} does not tell its default:\n{shown}"


@pytest.mark.parametrize("words", examples(), ids=" ".join)
def test_every_example_is_understood(words):
    assert callable(cli.parser().parse_args(words).run)


@pytest.mark.parametrize("words", [each for each in examples() if each[0] in NEEDS_NOTHING], ids=" ".join)
def test_examples_that_need_nothing_work(words, capsys):
    assert cli.main(words) == 0
    assert capsys.readouterr().out


def test_examples_with_a_number_of_parameters_work(capsys):
    for words in examples():
        if "--parameters" in words:
            assert cli.main(words) in (0, 1)
            assert capsys.readouterr().out


def test_a_narrow_terminal_is_respected(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "50")
    cli.main([])
    out = capsys.readouterr().out
    listed = out.partition("first step:")[0]
    assert max(map(len, listed.splitlines())) <= 50
