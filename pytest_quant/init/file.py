"""The test file, as a person would have written it."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pytest_quant.init.limits import Limit, Refused
from pytest_quant.init.measure import Finding

_PLAIN = re.compile(r"[\w.+/ -]+")


@dataclass(frozen=True)
class Written:
    """What the file says besides its limits."""

    model: str
    """As the marker names it."""
    short: str
    reference: str
    text: str
    """What models were scored on, in words."""
    machine: str
    date: str
    source: Mapping[str, object]
    """Further arguments of the ``quant`` marker: ``revision``, ``trust_remote_code``."""


def render(told: Written, formats: Sequence[tuple[str, Sequence[Finding]]]) -> str:
    """The source of a test file with one test a format, each marked with its limits and what was measured."""
    short = told.short if _PLAIN.fullmatch(told.short) else "a model"
    arguments = {"reference": told.reference, **told.source}
    quoted = "".join(f", {name}={_literal(value)}" for name, value in arguments.items())
    about = (
        f"The limits are what `pytest-quant init` measured on {told.date} on {told.machine}, with room for what may "
        f"change: {told.text}, beside {told.reference}. They are yours now: set what your product needs."
    )
    head = f'''"""Quantization gates of {short}.

{textwrap.fill(_plain(about), 100, break_long_words=False, break_on_hyphens=False)}
"""

import pytest

MODEL = {_literal(told.model)}

pytestmark = pytest.mark.quant(model=MODEL{quoted})
'''
    return head + "".join(f"\n\n{_test(name, findings)}" for name, findings in formats)


def figures(finding: Finding) -> str:
    """What was measured, for people: the value, its interval and what it comes from."""
    found = finding.quantity
    if found is None:
        return "not measured"
    digits = 4 if found.unit == "x" else 3
    unit = {"x": "x", "share": ""}.get(found.unit, f" {found.unit}")
    said = f"{found.value:.{digits}g}{unit}"
    if not found.is_exact:
        said += f" [{found.low:.{digits}g}, {found.high:.{digits}g}]"
    if finding.windows is not None:
        said += f", {finding.windows[0]} of {finding.windows[1]} windows"
    if finding.rounds is not None:
        said += f", {finding.rounds} rounds"
    return said


def reason(finding: Finding) -> str | None:
    """Why a metric has no limit; None where it has one."""
    if isinstance(finding.result, Limit):
        return None
    return finding.result.reason if isinstance(finding.result, Refused) else finding.result


def _test(name: str, findings: Sequence[Finding]) -> str:
    """One format's test; where it has no limit at all, only why: a test without gates would always be green."""
    if not any(isinstance(finding.result, Limit) for finding in findings):
        return _comment(f"{name} has no test; " + "; ".join(f"{one.metric}: {reason(one)}" for one in findings))
    lines = [f"@pytest.mark.quant(formats=[{_literal(name)}])\n"]
    for finding in findings:
        if isinstance(finding.result, Limit):
            limit = f"{finding.result.argument}={finding.result.value!r}"
            lines.append(f"@pytest.mark.{finding.metric}({limit})  # measured {figures(finding)}\n")
        else:
            lines.append(_comment(f"no {finding.metric}: {reason(finding)}"))
    function = re.sub(r"\W+", "_", name).strip("_").lower()
    return "".join([*lines, f"def test_{function}(quant_model): ...\n"])


def _comment(text: str) -> str:
    lines = textwrap.wrap(" ".join(text.split()), 117, initial_indent="# ", subsequent_indent="#   ")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Text that a docstring may hold, wherever its words came from."""
    return "".join(each if each.isprintable() and each not in '"\\' else " " for each in text)


def _literal(value: object) -> str:
    """A Python literal with double quotes."""
    return json.dumps(value, ensure_ascii=True) if isinstance(value, str) else repr(value)
