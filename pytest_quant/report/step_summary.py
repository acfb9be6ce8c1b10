"""The summary of a step of GitHub Actions: a file that all commands of the step append to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quant.report.markdown import render

VARIABLE = "GITHUB_STEP_SUMMARY"
"""Names the file
(https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands#adding-a-job-summary)."""
MOST = 1024 * 1024
"""Bytes that GitHub takes of a step; a larger file is not shown at all."""


def append(place: Path, record: Mapping[str, Any]) -> list[str]:
    """Add the run to what the step has written already. A run that has nothing to say of quantization adds nothing.

    The file is GitHub's: where it cannot be written, or is full, that is a line to be said, and no error.
    """
    if not any(record.get(name) for name in ("measurements", "skipped", "failed", "troubles")):
        return []
    try:
        with place.open("ab") as stream:
            before = stream.tell()
            text = render(record, MOST - before - 2)
            if not text:
                return [f"{VARIABLE}: {before} bytes are in it already, and GitHub shows {MOST} at most: nothing added"]
            stream.write((b"\n\n" if before else b"") + text.encode("utf-8"))
    except OSError as error:
        return [f"{VARIABLE}: {place} cannot be written: {error.strerror or error}"]
    return []
