"""The message of a broken gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.report.figures import shown_value


def explain(records: Sequence[Mapping[str, Any]]) -> str:
    """One line for each broken gate, the first of which also says how many there are."""
    lines = [_line(record) for record in records]
    if len(lines) == 1:
        return lines[0]
    return f"{len(lines)} gates are broken: {records[0]['format']} of {records[0]['model']}\n" + "\n".join(
        f"  {line}" for line in lines
    )


def _line(record: Mapping[str, Any]) -> str:
    said = [f"{record['format']} {record['metric']}"]
    if "value" in record:
        said.append(f"{shown_value(record)}{_behind(record)}")
    if record["verdict"] != "passed":
        said.append(f"{record['verdict']}: {record['reason']}")
    found = record.get("baseline")
    if found is not None and found["verdict"] in ("missing", "regressed", "incomparable"):
        said.append(f"baseline {found['verdict']}: {found['reason']}")
    return "; ".join(said)


def _behind(record: Mapping[str, Any]) -> str:
    """The two numbers that a difference or a ratio was made of."""
    if "reference" not in record or "reference_value" not in record:
        return ""
    return f" ({record['reference']} {record['reference_value']:.4g}, {record['format']} {record['format_value']:.4g})"
