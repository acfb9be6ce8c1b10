"""The message of a broken gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.report import changes

_UNITS = {"throughput_ratio": " tokens/s", "cost_ratio": " tokens/s", "energy_ratio": " J/tok"}
"""Of the two numbers that a ratio was made of, where they are not plain."""
_BREAKING = ("missing", "regressed", "incomparable")


def explain(records: Sequence[Mapping[str, Any]]) -> str:
    """One line for each broken gate, the first of which also says how many there are."""
    lines = [_line(record) for record in records]
    if len(lines) > 1:
        said = f"{len(lines)} gates are broken: {records[0]['format']} of {records[0]['model']}\n"
        lines = [said + "\n".join(f"  {line}" for line in lines)]
    behind = [f"  {line}" for record in records for line in _shown(record)]
    return "\n".join(lines + behind)


def _shown(record: Mapping[str, Any]) -> Sequence[str]:
    """What is behind a broken gate: windows, layers, items, prompts."""
    if "explanation" in record:
        from pytest_quant.report import explanation

        return explanation.lines(record["explanation"])
    broken = record["verdict"] == "failed" or (record.get("baseline") or {}).get("verdict") == "regressed"
    return changes.lines(record) if broken else []


def _line(record: Mapping[str, Any]) -> str:
    name = f"{record['format']} {record['metric']}"
    said = []
    if record["verdict"] != "passed":
        said.append(f"{record['verdict']}: {record['reason']}{_behind(record)}")
        said += [f"measured while {condition['text']}" for condition in record.get("conditions", ())]
    found = record.get("baseline") or {}
    if found.get("verdict") in _BREAKING and not (record["verdict"] == "failed" and found["verdict"] == "missing"):
        said.append(f"{found['verdict']}: {found['reason']}")
    return f"{name} {'; '.join(said)}"


def _behind(record: Mapping[str, Any]) -> str:
    """The two numbers that a difference or a ratio was made of."""
    if "reference" not in record or "format_value" not in record:
        return ""
    unit = _UNITS.get(record["metric"], "")
    values = f"{record['reference']} {record['reference_value']:.4g}, {record['format']} {record['format_value']:.4g}"
    return f" ({values}{unit})"


def plain_failure(excinfo: Any, error: Exception) -> Any:
    """Our message alone: no traceback of ours, and no name of an exception in the short summary."""
    failure = excinfo.getrepr(style="value", chain=False)
    if failure.reprcrash is not None:
        failure.reprcrash.message = str(error)
    return failure
