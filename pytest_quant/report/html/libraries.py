"""What the page is drawn with; nothing of it is imported here."""

from __future__ import annotations

from importlib.util import find_spec

from pytest_quant.errors import UsageError

LIBRARIES = ("altair", "vl_convert", "jinja2")


def check() -> None:
    """:class:`UsageError` where one of the libraries is not installed."""
    if missing := [name for name in LIBRARIES if find_spec(name) is None]:
        raise UsageError(f"an HTML report needs {', '.join(missing)}: pip install 'pytest-quant[report]'")
