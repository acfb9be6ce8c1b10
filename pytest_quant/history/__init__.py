"""Runs across commits: kept, read, and searched for the commit at which a metric moved."""

from pytest_quant.history.reading import read
from pytest_quant.history.series import History, Point, Series
from pytest_quant.history.store import keep

__all__ = ["History", "Point", "Series", "keep", "read"]
