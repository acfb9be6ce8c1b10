"""Runs across commits: kept, read, and searched for the commit at which a metric moved."""

from pytest_quant.history.series import History, Point, Series

__all__ = ["History", "Point", "Series"]
