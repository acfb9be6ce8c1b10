"""The page of the verdicts."""

from __future__ import annotations

from pytest_quant.gates.verdict import Verdict
from quantdocs import rst
from quantdocs.attributes import docstring

INTRODUCTION = """
Every gate ends with one of these, and every comparison with a baseline. None of them is ``passed`` by default.
In CI means: the environment variable ``CI`` is set; ``--quant-missing`` and ``--quant-inconclusive`` say it otherwise.
"""


def page() -> str:
    """A table of all verdicts."""
    rows = [(rst.code(verdict.value), docstring(Verdict, verdict.name)) for verdict in Verdict]
    return rst.page(rst.title("Verdicts"), INTRODUCTION, rst.table(("verdict", "means"), rows))
