"""``pytest-quant completion``: a script by which a shell completes commands, options, formats, devices and paths."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from pytest_quant import answering
from pytest_quant.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from pytest_quant.parsing import Groups
    from pytest_quant.reference.commands import Subparsers

SHELLS = ("bash", "zsh", "fish", "tcsh")

_DESCRIPTION = """Prints a script that completes commands, options, formats, devices and paths of pytest-quant when the
tab key is pressed. Print it again after an upgrade.

Options of pytest itself (--quant-...) are completed by argcomplete, as pytest's documentation tells."""
_EXAMPLES = """examples:
  pytest-quant completion bash > ~/.pytest-quant.bash
  pytest-quant completion zsh > ~/.zfunc/_pytest-quant
  pytest-quant completion fish > ~/.config/fish/completions/pytest-quant.fish
  pytest-quant completion tcsh > ~/.pytest-quant.csh

what a shell needs besides:
  bash  in ~/.bashrc: source ~/.pytest-quant.bash
  zsh   in ~/.zshrc:  fpath+=~/.zfunc; autoload -Uz compinit; compinit
  fish  nothing
  tcsh  in ~/.tcshrc: source ~/.pytest-quant.csh"""

_FILES = frozenset({"FILE", "PATH", "PART", "OLD", "NEW", "RUN"})
_FOLDERS = frozenset({"DIR", "MODEL"})
_PROTOCOLS = ("gptq-2048", "gptq-512", "hf-strided-1024-512", "llamacpp-512", "lm-eval-word")
_CORPORA = ("python-docs", "python-docstrings", "wikitext2")


def add(commands: Subparsers) -> None:
    """Add ``completion`` to the command's subcommands."""
    command = commands.add_parser(
        "completion", help="what a shell needs to complete this command", description=_DESCRIPTION, epilog=_EXAMPLES
    )
    command.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    answering.add_json(command)
    command.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Print the script."""
    found = script(told.shell)
    if told.json:
        return answering.answer({"shell": told.shell, "script": found})
    print(found)
    return 0


def script(shell: str) -> str:
    """The completion script for one of :data:`SHELLS`. :class:`UsageError` where the installed shtab cannot do it."""
    try:
        import shtab
    except ImportError:
        raise UsageError("completion needs the library shtab: pip install shtab") from None
    from pytest_quant import cli

    if shell not in shtab.SUPPORTED_SHELLS:
        raise UsageError(f"shtab {shtab.__version__} knows no {shell}: pip install --upgrade shtab")
    parser = cli.parser()
    _teach(parser, shtab.FILE, shtab.DIRECTORY)
    return str(shtab.complete(parser, shell=shell)).rstrip("\n")


def _teach(parser: Groups, file: Any, folder: Any) -> None:
    """Tell each argument what may stand there. Only of this parser: what is parsed is not limited to it."""
    words = _words()
    for action in _arguments(parser):
        if action.choices is not None or action.nargs == 0:
            continue
        name = action.metavar if isinstance(action.metavar, str) else action.dest.upper()
        if action.dest in words and name not in _FILES | _FOLDERS:
            action.choices = words[action.dest]
        elif name in _FILES:
            action.complete = file  # type: ignore[attr-defined]
        elif name in _FOLDERS:
            action.complete = folder  # type: ignore[attr-defined]
    helped = parser.commands.add_parser("help", help="what a command answers")
    helped.add_argument("command", choices=[name for name in parser.commands.choices if name != "help"])


def _arguments(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for shown in action._choices_actions:
                action.choices[shown.dest].description = shown.help  # one line beside a command, not a paragraph
            for each in action.choices.values():
                yield from _arguments(each)
        else:
            yield action


def _words() -> dict[str, Iterable[str]]:
    """What the names of arguments stand for."""
    from pytest_quant.formats import registry
    from pytest_quant.hardware import specs

    formats = list(registry.formats())
    devices = [*specs.short_names(), *(name.removeprefix("NVIDIA ") for name in specs.names())]
    plain = [name for name, each in registry.formats().items() if not each.quantized]
    return {
        "format": formats,
        "formats": formats,
        "reference": plain,
        "dtype": plain,
        "device": ["here", *dict.fromkeys(name for name in devices if " " not in name)],
        "protocol": _PROTOCOLS,
        "corpus": _CORPORA,
        "matrix": ["corrected", "lesson"],
        "diff": ["corrected", "lesson"],
        "strategy": ["tensor", "channel", "group"],
        "numeric": [*(f"int{bits}" for bits in range(2, 9)), "fp8", "nf4", "fp4"],
    }
