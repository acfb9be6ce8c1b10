"""Parquet: one document a row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_quant.corpora import rows
from pytest_quant.corpora.corpus import Conversation
from pytest_quant.corpora.libraries import require
from pytest_quant.errors import UsageError


def read(path: Path, column: str | None) -> tuple[str, ...] | tuple[Conversation, ...]:
    """Documents of all rows. :class:`UsageError` names the row of a mistake."""
    _, values = read_column(path, column)
    return rows.documents((f"{path.name}, row {number},", value) for number, value in enumerate(values, 1))


def read_column(path: Path, column: str | None) -> tuple[str, list[Any]]:
    """Name and values of a column: the one asked for, else the first that may hold documents."""
    pyarrow = require("pyarrow", f"the corpus {path.name!r}")
    parquet = require("pyarrow.parquet", f"the corpus {path.name!r}")
    try:
        with parquet.ParquetFile(path) as file:
            found = rows.column_of(file.schema_arrow.names, column, path.name)
            return found, file.read(columns=[found]).column(found).to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(f"the corpus {path.name!r} cannot be read as Parquet: {reason}") from None
