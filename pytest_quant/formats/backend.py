"""The wall between the formats and the libraries that realize them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType
from typing import Any, Protocol

from pytest_quant.errors import Unsupported
from pytest_quant.formats.format import Format


@dataclass(frozen=True)
class Stored:
    """How a loaded module really stores its weight, as far as the backend can tell."""

    num_bits: int
    type: str
    parameters: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


class Backend(Protocol):
    """One library that realizes formats."""

    name: str
    packages: tuple[str, ...]
    """The distributions that it needs."""
    extra: str
    """The extra of this package that installs them."""

    def load_arguments(self, format: Format, compute_dtype: str) -> dict[str, Any]:
        """The keyword arguments that make ``from_pretrained`` load the format."""
        ...

    def stored(self, module: Any) -> Stored | None:
        """How the module stores its weight; ``None`` if not in a format of this backend."""
        ...


_MODULES = {"torch": "torch_native", "bitsandbytes": "bitsandbytes"}


def backend(format: Format) -> Backend:
    """The backend of a known format; imports none of its library."""
    module = import_module(f"pytest_quant.formats.backends.{_MODULES[format.backend]}")
    made: Backend = module.BACKEND
    return made


def missing_packages(format: Format) -> Unsupported | None:
    """The skip if the format is not known yet, or a library that it needs is not installed."""
    if not format.known:
        return Unsupported(
            asked=f"the format {format.name}",
            found="this version of pytest-quant does not know how to load it yet",
            needed="one of the formats " + ", ".join(_known()),
        )
    needs = backend(format)
    absent = [package for package in needs.packages if not _installed(package)]
    if not absent:
        return None
    return Unsupported(
        asked=f"the format {format.name} (backend {needs.name})",
        found=f"{', '.join(absent)} not installed",
        needed=f"pip install 'pytest-quant[{needs.extra}]'",
    )


def _installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def _known() -> list[str]:
    from pytest_quant.formats.registry import FORMATS

    return [name for name, format in FORMATS.items() if format.known]
