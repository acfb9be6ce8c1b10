"""What the page has of :mod:`pytest_quant.visible`."""

from __future__ import annotations

from pytest_quant.visible import all_visible, visible

__all__ = ["all_visible", "visible"]
