"""Whether what opens configs and tokenizers is installed: the plugin itself comes without it."""

from __future__ import annotations

from pytest_quant.errors import Unsupported
from pytest_quant.formats.backend import installed

_NEEDED = ("torch", "transformers")


def require(asked: str) -> None:
    """:class:`Unsupported` with the command that installs them, where torch or transformers are not there; ``asked`` is
    what they were needed for."""
    missing = [name for name in _NEEDED if installed(name) is None]
    if missing:
        found = ", ".join(f"{name} not installed" for name in missing)
        raise Unsupported(asked, found, "pip install 'pytest-quant[transformers]'")
