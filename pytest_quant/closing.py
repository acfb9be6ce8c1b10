"""The end of a run: what is written to files, and what keeps it from being green besides failed tests."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from pytest_quant.baseline import BaselineError
from pytest_quant.counting import counted
from pytest_quant.ledger import Ledger
from pytest_quant.options import Options
from pytest_quant.publishing import Record, publish

_SHOWN = 10
"""Tests and files that are named, of those that never ran or could not be collected."""


def close(
    ledger: Ledger,
    told: Options,
    known_tests: Collection[str],
    whole: Collection[str],
    *,
    complete: bool,
    record: Callable[[Sequence[str]], Record],
    never_ran: Sequence[str] = (),
    uncollected: Sequence[str] = (),
) -> tuple[list[str], list[str], bool]:
    """Write baselines, run record and reports; returns good news and troubles, a line each, and whether all of it
    was written.

    ``known_tests`` were collected; ``whole`` are those whose files were collected as a whole, so that a test of them
    that is not known is gone. Nothing is pruned after a run that was not ``complete``. ``record`` makes the run record
    from all troubles but those in writing it. Those that ``never_ran`` have no number, which is red where a missing one
    is; what is ``uncollected`` made the run red already, and nobody knows which gates it holds.
    """
    ledger.settle()
    messages: list[str] = []
    troubles: list[str] = []
    if told.baseline and ledger.outcomes:
        try:
            messages += ledger.write(told.baseline_path)
            if told.update == "prune" and complete:
                # with some formats only, tests of the others were never made
                files = set() if told.selected else {test.split("::")[0] for test in whole}
                messages += ledger.prune(told.baseline_path, known_tests, files)
        except BaselineError as error:
            troubles.append(str(error))
    unwritten = len(troubles)
    troubles += _not_measured(ledger, told)
    if never_ran:
        (troubles if told.baseline and told.missing == "fail" else messages).append(
            f"{counted(len(never_ran), 'test')} never ran: {_named(never_ran)}"
        )
    if uncollected:
        troubles.append(f"{counted(len(uncollected), 'file')} could not be collected: {_named(uncollected)}")
    said, failed = publish(lambda: record(troubles), told)
    messages += said
    troubles += failed
    unwritten += len(failed)
    return messages, troubles, not unwritten


def _named(tests: Sequence[str]) -> str:
    more = f" and {len(tests) - _SHOWN} more" if len(tests) > _SHOWN else ""
    return f"{', '.join(tests[:_SHOWN])}{more}"


def _not_measured(ledger: Ledger, told: Options) -> list[str]:
    """What was required and has no number."""
    troubles = [
        f"--quant-require: {name} was not measured ({_why_not(ledger, name)})"
        for name in told.require
        if name not in ledger.measured_formats
    ]
    if told.baseline and told.missing == "fail" and ledger.skipped and not ledger.measured_formats:
        troubles.append(
            f"nothing was measured: all {len(ledger.skipped)} quantization tests were skipped "
            f"(--quant-missing=record lets that pass)"
        )
    return troubles


def _why_not(ledger: Ledger, name: str) -> str:
    reasons: list[str] = [skip["reason"] for skip in ledger.skipped.values() if skip.get("format") == name]
    failed: list[str] = [r["reason"] for r in ledger.records if r["format"] == name and "reason" in r]
    return (reasons + failed or ["no test that ran asked for it"])[0]
