"""A run record's measurements in words: what each table of a run shows, wherever it is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_quant.model import FLATTERED, NO_RECORD, UNSURE
from pytest_quant.report.figures import shown_value
from pytest_quant.report.naming import shown_metric

HEADERS = ("format", "metric", "value", "limit", "baseline", "verdict")
LOUDEST = (
    "failed",
    "not-measured",
    "regressed",
    "missing",
    "incomparable",
    "inconclusive",
    "new",
    "improved",
    "passed",
)
"""Verdicts, the one that counts most first."""


def verdict(record: Mapping[str, Any]) -> str:
    """One word for the limit's verdict and the baseline's: the louder of the two."""
    found = record.get("baseline")
    words: list[str] = [record["verdict"], *([found["verdict"]] if found else [])]
    return min(words, key=LOUDEST.index)


def title(record: Mapping[str, Any]) -> str:
    """Test and model; the formats of one test stand below one title."""
    engine = "" if record["engine"] == "transformers" else f" on {record['engine']}"
    return f"{record['test'].partition('[')[0]}: {record['model']}{engine}"


def cells(record: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands in a record's row, in the order of :data:`HEADERS`."""
    found = record.get("baseline")
    return (
        record["format"],
        shown_metric(record),
        shown_value(record) if "value" in record else "-",
        record.get("limit_shown") or "-",
        (found.get("change") or "-") if found else "-",
        verdict(record),
    )


def remarks(records: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Verdict (``passed`` for what is only to be known) and line of what is to be said below the tables, each once: why
    a verdict is what it is, what engines make, disturbances, and how checkpoints were made."""
    said = [line for record in records for line in _explanations(record)]
    said += [("inconclusive", f"{r['format']}: {r['engines']}") for r in records if "engines" in r]
    said += [("inconclusive", line) for line in _conditions(records)]
    recipes = [(r["format"], r["proof"]["recipe"]) for r in records if "recipe" in r.get("proof", {})]
    for name, recipe in recipes:
        unsure = any(note in recipe for note in (NO_RECORD, FLATTERED, UNSURE))
        said.append(("inconclusive" if unsure else "passed", f"{name}: {recipe}"))
    return list(dict.fromkeys(said))


def _explanations(record: Mapping[str, Any]) -> Iterable[tuple[str, str]]:
    """Verdict and line for what the table alone does not say; a broken gate has said it in its failure."""
    found = record.get("baseline") or {}
    if "note" in record:
        yield "inconclusive", f"{record['format']} {shown_metric(record)}: {record['note']}"
    if record["verdict"] == "inconclusive":
        yield "inconclusive", f"{record['format']} {shown_metric(record)}: {record['reason']}"
    told = found.get("verdict") == "regressed" or record["verdict"] == "failed"
    told = told or (found.get("verdict") == "missing" and "conditions" in record)
    if found.get("reason") and not told:
        yield found["verdict"], f"{record['format']} {shown_metric(record)}: {found['reason']}"


def _conditions(records: Sequence[Mapping[str, Any]]) -> Iterable[str]:
    """A line for each kind of disturbance: what was seen of it first, and in how many measurements."""
    seen: dict[str, list[tuple[str, str]]] = {}
    for record in records:
        for condition in record.get("conditions", ()):
            seen.setdefault(condition["name"], []).append(
                (f"{record['format']} {shown_metric(record)}", condition["text"])
            )
    for name, found in seen.items():
        where, text = found[0]
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        yield f"{where}{others}: {text}; such numbers become no baselines (--quant-accept={name} if that is usual)"
