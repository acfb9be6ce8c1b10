"""The page of the fixtures."""

from __future__ import annotations

from collections.abc import Iterator
from inspect import cleandoc
from typing import Any

from pytest_quant import fixtures
from pytest_quant.declarations import FORMAT_FIXTURES
from quantdocs import rst

INTRODUCTION = """
A test that asks for one of these needs no marker; :doc:`what they yield <api>` is with the Python interface.
"""


def page() -> str:
    """A table of the fixtures, and one of those that are named after a format."""
    rows = [(rst.code(name), scope, told) for name, scope, told in found() if name not in FORMAT_FIXTURES]
    named = [(rst.code(name), rst.code(format)) for name, format in FORMAT_FIXTURES.items()]
    return rst.page(
        rst.title("Fixtures"),
        INTRODUCTION,
        rst.table(("fixture", "scope", "what it yields"), rows),
        rst.title("One for each format", "-"),
        "Each yields the test's model in that format, as ``quant_model`` does in the parametrized one.\n",
        rst.table(("fixture", "format"), named),
    )


def found() -> Iterator[tuple[str, str, str]]:
    """Name, scope and docstring of each fixture that the plugin has."""
    for name, value in vars(fixtures).items():
        marker: Any = getattr(value, "_fixture_function_marker", None)
        if marker is not None:
            told = value._fixture_function.__doc__ or ""
            yield marker.name or name, str(marker.scope), cleandoc(told)
