"""Accepted measurements of earlier commits: one reviewable JSON file for each hardware and model."""

from pytest_quant.baseline.compare import Match, identity_difference, lookup
from pytest_quant.baseline.schema import (
    MIGRATIONS,
    SCHEMA,
    BaselineError,
    Entry,
    File,
    canonical,
    identity_hash,
    parse,
    render,
)
from pytest_quant.baseline.store import find_other_hardware, merge, path_for, prune, read, write

__all__ = [
    "MIGRATIONS",
    "SCHEMA",
    "BaselineError",
    "Entry",
    "File",
    "Match",
    "canonical",
    "find_other_hardware",
    "identity_difference",
    "identity_hash",
    "lookup",
    "merge",
    "parse",
    "path_for",
    "prune",
    "read",
    "render",
    "write",
]
