"""The parser of ``pytest-quant``: help grouped by question, and mistakes told in one line with the next step."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from pytest_quant.errors import UsageError, like

EPILOG = """first step:
  pytest-quant doctor            what this machine can run, and what is missing
  pytest-quant COMMAND --help    what a command answers, with examples

exit codes:
  0 all held, 1 a gate broke or a budget is not kept, 2 could not judge
  (a mistake in the command line too), 130 interrupted"""


class Help(argparse.HelpFormatter):
    """Paragraphs are filled to the width of the terminal; those with an indented line stay as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        parts = re.split(r"\n\s*\n", text.strip("\n"))
        return "\n\n".join(
            "\n".join(indent + line for line in part.splitlines())
            if re.search(r"^[ \t]", part, re.MULTILINE)
            else "\n".join(indent + line for line in self._split_lines(part, width - len(indent)))
            for part in parts
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        # a name such as [tool.pytest-quant] stays in one line, so that it can be searched for and copied
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False, break_long_words=False)


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, raises :class:`UsageError` for a mistake, and has its help formatted by :class:`Help`,
    whatever formatter a subcommand names."""

    def __init__(self, **told: Any) -> None:
        # A script must not break when an option of a like name is added: no abbreviations.
        super().__init__(**{**told, "formatter_class": Help, "allow_abbrev": False})
        self.set_defaults(parser=self)  # of the innermost subcommand, once all is parsed

    def format_help(self) -> str:
        """With a usage of one line: the options are listed below it."""
        self.usage = self.usage or self.synopsis().replace("%", "%%")
        return super().format_help()

    def parse_args(  # type: ignore[override]
        self, arguments: Sequence[str] | None = None, namespace: Any = None
    ) -> argparse.Namespace:
        """As argparse does, but what is left over is told by the subcommand that it was given to."""
        told, rest = self.parse_known_args(arguments, namespace)
        if rest:
            told.parser.unknown(rest)
        assert isinstance(told, argparse.Namespace)
        return told

    def unknown(self, words: Sequence[str]) -> NoReturn:
        """Raise :class:`UsageError` for words that this command does not know."""
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                self.error(
                    f"give {'an action' if action.metavar == 'ACTION' else 'a command'}; {_among(action.choices)}"
                )
        option = next((word for word in words if word.startswith("-") and word != "-"), None)
        if option is None:
            self.error(f"{' '.join(map(repr, words))} is more than it takes")
        name = option.partition("=")[0]
        known = [text for action in self._actions for text in action.option_strings]
        self.error(f"no option {name}{like(name, known)}")

    def error(self, message: str) -> NoReturn:
        """Raise :class:`UsageError`: what was wrong, the usage and where to read on, in one line."""
        message = re.sub(r"^argument ([^:]+): ", r"\1: ", message)
        message = re.sub(r"ignored explicit argument .*", "takes no value", message)
        message = re.sub(r"^the following arguments are required: (.*)", r"\1 must be given", message)
        raise UsageError(f"{message} (usage: {self.synopsis()}; more: {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        """As argparse does, but what cannot be written is an error."""
        (file or sys.stderr).write(message)

    def synopsis(self) -> str:
        """What must be given, in one line."""
        words = [self.prog]
        groups = [group for group in self._mutually_exclusive_groups if group.required]
        if any(action.option_strings and not action.required for action in self._actions):
            words.append("[OPTIONS]")
        for action in self._actions:
            if action.option_strings:
                if action.required:
                    words += [action.option_strings[-1], *([] if action.nargs == 0 else [_named(action)])]
            elif action.nargs == argparse.PARSER:
                words += [_named(action), "..."]
            else:
                shown = {"?": "[{}]", "*": "[{} ...]", "+": "{} [{} ...]"}.get(str(action.nargs), "{}")
                words.append(shown.replace("{}", _named(action)))
        words += ["|".join(action.option_strings[-1] for action in group._group_actions) for group in groups]
        return " ".join(words)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        known = [str(choice) for choice in action.choices]
        if action.nargs == argparse.PARSER:
            noun = "action" if action.metavar == "ACTION" else "command"
            raise argparse.ArgumentError(None, f"no {noun} {value!r}{like(str(value), known) or f'; {_among(known)}'}")
        raise argparse.ArgumentError(action, f"no {value!r}{like(str(value), known, _among(known))}")

    def _get_value(self, action: argparse.Action, text: str) -> Any:
        try:
            return super()._get_value(action, text)
        except argparse.ArgumentError:
            kind = {int: "a whole number", float: "a number"}.get(action.type)  # type: ignore[call-overload]
            if kind is None:
                raise
            raise argparse.ArgumentError(action, f"{text!r} is not {kind}") from None


class Groups(Parser):
    """The outermost one, whose help has its commands under the questions that they answer."""

    def __init__(self, **told: Any) -> None:
        super().__init__(**told)
        self.commands = self.add_subparsers(metavar="COMMAND", parser_class=Parser)
        self._groups: list[tuple[str, list[str]]] = []

    def add_group(self, question: str, modules: Iterable[Any]) -> None:
        """Let each module add its commands, and show them under a question."""
        before = set(self.commands.choices)
        for module in modules:
            module.add(self.commands)
        self._groups.append((question, [name for name in self.commands.choices if name not in before]))

    def format_help(self) -> str:
        """As argparse's, with the commands in groups."""
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        formatter.add_usage("%(prog)s COMMAND ...", [], [], "usage: ")
        helped = {action.dest: action for action in self.commands._choices_actions}
        for question, names in self._groups:
            formatter.start_section(question)
            formatter.add_arguments([helped[name] for name in names])
            formatter.end_section()
        formatter.start_section("options")
        formatter.add_arguments([action for action in self._actions if action.option_strings])
        formatter.end_section()
        formatter.add_text(self.epilog)
        return formatter.format_help().replace("?:", "?").rstrip("\n") + "\n"


def _among(known: Iterable[str]) -> str:
    return f"there are {', '.join(known)}"


def _named(action: argparse.Action) -> str:
    name = action.metavar or action.dest.upper()
    return name if isinstance(name, str) else name[0]
