"""Accepted measurements of earlier commits: one reviewable JSON file for each hardware and model."""

from pytest_quant.baseline.checking import Checked, Finding, check, files_at
from pytest_quant.baseline.compare import Match, identity_difference, lookup
from pytest_quant.baseline.folder import Contents, contents
from pytest_quant.baseline.joining import Conflict, Joined, Source, join, place
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
    "Checked",
    "Conflict",
    "Contents",
    "Entry",
    "File",
    "Finding",
    "Joined",
    "Match",
    "Source",
    "canonical",
    "check",
    "contents",
    "files_at",
    "find_other_hardware",
    "identity_difference",
    "identity_hash",
    "join",
    "lookup",
    "merge",
    "parse",
    "path_for",
    "place",
    "prune",
    "read",
    "render",
    "write",
]
