"""The hooks that a test suite may implement in its ``conftest.py``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_quant.formats.backend import Backend
    from pytest_quant.formats.format import Format


@pytest.hookspec(historic=True)
def pytest_quant_formats() -> Iterable[Format | tuple[Format, Backend]]:  # type: ignore[empty-body]
    """Formats of the test suite's own, made by :func:`pytest_quant.formats.variant` and
    :func:`pytest_quant.formats.custom`. Called once, when the ``conftest.py`` is loaded::

        from pytest_quant.formats import variant

        def pytest_quant_formats():
            return [variant("nf4", "nf4-plain", bnb_4bit_use_double_quant=False)]
    """
