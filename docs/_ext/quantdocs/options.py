"""The page of pytest's options, as the plugin declares them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_quant import declarations
from quantdocs import rst

INTRODUCTION = """
Options of ``pytest``. One with an ini name can also be set in pytest's ini file, and the command line goes before it.
None takes an optional value, so none swallows a path behind it.
"""


@dataclass
class Declared:
    """In the place of pytest's parser: keeps what is declared."""

    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    """What each option was declared with, by its name."""
    ini: dict[str, str] = field(default_factory=dict)
    """The help of each ini option."""

    def getgroup(self, *_: Any, **__: Any) -> Declared:
        """Every group is this one."""
        return self

    def addoption(self, name: str, **told: Any) -> None:
        """As pytest's."""
        self.options[name] = told

    def addini(self, name: str, help: str, *_: Any, **__: Any) -> None:
        """As pytest's."""
        self.ini[name] = help


def declared() -> Declared:
    """All that the plugin declares."""
    found = Declared()
    declarations.add_options(found)  # type: ignore[arg-type]
    return found


def page() -> str:
    """Every option, and the ini options that no option stands for."""
    found = declared()
    parts = [rst.title("Options"), INTRODUCTION]
    for name, told in found.options.items():
        parts.append(f".. option:: {' '.join(filter(None, (name, _value(told))))}\n")
        parts.append(f"   {_sentence(told['help'])}\n")
        ini = name.removeprefix("--").replace("-", "_")
        if ini in found.ini:
            parts.append(f"   ini: ``{ini}``\n")
    parts += [rst.title("Only in the ini file", "-")]
    rest = {name: help for name, help in found.ini.items() if f"--{name.replace('_', '-')}" not in found.options}
    parts.append(
        rst.table(("name", "what it says"), [(rst.code(name), _sentence(help)) for name, help in rest.items()])
    )
    return rst.page(*parts)


def _value(told: dict[str, Any]) -> str:
    if choices := told.get("choices"):
        return "|".join(choices)
    return "" if told.get("action") == "store_true" else str(told.get("metavar", "VALUE"))


def _sentence(text: str) -> str:
    """A help text as a sentence, its signs as they stand."""
    text = "".join(f"\\{sign}" if sign in "*`|_\\" else sign for sign in text)
    return f"{text[0].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
