"""The page of pytest's options, as the plugin declares them."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_quant.declarations import GROUPS, OPTIONS, Option
from quantdocs import rst

INTRODUCTION = """
What can be told to a run. One with an ini name can also be set in pytest's ini file, and one with a key in
``[tool.pytest-quant]`` of ``pyproject.toml``; the command line goes before both, and a marker before all.
``pytest-quant config`` prints what is in force. No option takes an optional value, so none swallows a path behind it.
"""


def page() -> str:
    """Every option, in its group."""
    parts = [rst.title("Options"), INTRODUCTION]
    for group, title in GROUPS.items():
        parts.append(rst.title(f"{title[0].upper()}{title[1:]}", "-"))
        for option in OPTIONS:
            if option.group == group:
                parts += _told(option)
    return rst.page(*parts)


def _told(option: Option) -> Iterable[str]:
    if option.on_command_line:
        yield f".. option:: {' '.join(filter(None, (option.flag, _value(option))))}\n"
    else:
        yield f".. confval:: {option.ini}\n"
    yield f"   {_sentence(option.full_help)}\n"
    if option.in_files:
        yield f"   ini: ``{option.ini}``, key: ``{option.key}``\n"


def _value(option: Option) -> str:
    return "|".join(option.choices) or option.metavar or ""


def _sentence(text: str) -> str:
    """A help text as a sentence, its signs as they stand."""
    text = "".join(f"\\{sign}" if sign in "*`|_\\" else sign for sign in text)
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
