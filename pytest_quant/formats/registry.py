"""The formats by name, and the backends that realize them: built in, from other packages, and of a test suite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from pytest_quant.errors import UsageError, like
from pytest_quant.formats.backend import Backend
from pytest_quant.formats.format import Format, QuantizationArgs
from pytest_quant.formats.kv_cache import with_cache

ENTRY_POINTS = "pytest_quant.backends"
_MODULES = (
    "torch_native",
    "bitsandbytes",
    "torchao",
    "quanto",
    "hqq",
    "gptqmodel",
    "auto_round",
    "compressed_tensors",
    "finegrained_fp8",
    "gguf",
)

_own: dict[str, tuple[Format, Backend]] = {}
"""Those of the test suite that is run."""


def get(name: str) -> Format:
    """The format of that name; :class:`UsageError` with the names there are."""
    found = _find(name)
    if found is None:
        known = list(formats())
        raise UsageError(f"unknown format {name!r}{like(name, known, 'the formats are ' + ', '.join(known))}")
    return found


def formats() -> Mapping[str, Format]:
    """Every format by name: the built-in ones, those of other packages, and the test suite's own."""
    everywhere = (*_built_in(), *_of_others())
    known = {format.name: format for backend in everywhere for format in backend.formats}
    return known | {name: format for name, (format, _) in _own.items()}


def backend(format: Format) -> Backend:
    """The backend of a format; imports none of its library."""
    if format.base in _own:
        return _own[format.base][1]
    for known in (*_built_in(), *_of_others()):
        if known.name == format.backend:
            return known
    raise UsageError(f"the format {format.name} names a backend {format.backend!r} that there is not")


def backends() -> tuple[tuple[Backend, ...], tuple[UsageError, ...]]:
    """Every backend that there is, and what is wrong with those of other packages that cannot be imported."""
    sound, broken = _loaded()
    return (*_built_in(), *sound), broken


def add(format: Format, backend: Backend | None = None) -> str:
    """Make a format of a test suite known, until :func:`forget`; returns its name. :class:`UsageError` where that is
    taken."""
    if not isinstance(format, Format):
        raise UsageError(f"{format!r} is not a format: make one with pytest_quant.formats.variant or custom")
    if any(sign in format.name for sign in "+, ") or not format.name:
        raise UsageError(f"{format.name!r} cannot be the name of a format: no comma, space or +")
    if _find(format.name) is not None:
        raise UsageError(f"there is a format {format.name!r} already; give yours another name")
    _own[format.name] = (format, backend or globals()["backend"](format))
    return format.name


def forget(names: Iterable[str]) -> None:
    """Drop formats of a test suite."""
    for name in names:
        _own.pop(name, None)


def describe(format: Format) -> dict[str, Any]:
    """The format and its parameters as they go into a measurement's identity."""
    described: dict[str, Any] = {
        "name": format.name,
        "backend": format.backend,
        "weights": _described(format.weights),
    }
    if format.from_checkpoint:  # what it was made with is the checkpoint's to say, unless a parameter demands it
        for name in ("group_size", "symmetric"):
            described["weights"].pop(name, None)
    if format.kv_cache is not None:
        described["kv_cache"] = format.kv_cache.described()
    if format.parameters:
        described["parameters"] = dict(format.parameters)
    if format.exclude:
        described["exclude"] = list(format.exclude)
    return described


def _described(args: QuantizationArgs) -> dict[str, Any]:
    described: dict[str, Any] = {"num_bits": args.num_bits, "type": args.type, "strategy": args.strategy}
    if args.group_size is not None:
        described["group_size"] = args.group_size
    if not args.symmetric:
        described["symmetric"] = False
    return described


def _find(name: str) -> Format | None:
    base, plus, suffix = name.partition("+")
    if plus:
        found = _find(base)
        return None if found is None else with_cache(found, suffix)
    if name in _own:
        return _own[name][0]
    return _named(_built_in(), name) or _named(_of_others(), name)


def _named(backends: Iterable[Backend], name: str) -> Format | None:
    return next((format for backend in backends for format in backend.formats if format.name == name), None)


@cache
def _built_in() -> tuple[Backend, ...]:
    return tuple(import_module(f"pytest_quant.formats.backends.{name}").BACKEND for name in _MODULES)


@cache
def _of_others() -> tuple[Backend, ...]:
    """Those that other packages bring; one that cannot be imported is an error that names it."""
    sound, broken = _loaded()
    if broken:
        raise broken[0]
    return sound


def _loaded() -> tuple[tuple[Backend, ...], tuple[UsageError, ...]]:
    sound, broken = [], []
    for point in entry_points(group=ENTRY_POINTS):
        try:
            made = point.load()
        except Exception as error:
            wrong = UsageError(
                f"the backend {point.name!r} ({point.value}) of another package cannot be imported: "
                f"{type(error).__name__}: {error}; mend or uninstall it"
            )
            wrong.__cause__ = error
            broken.append(wrong)
            continue
        if isinstance(made, Backend):
            sound.append(made)
        else:
            broken.append(UsageError(f"the entry point {point.name!r} ({point.value}) is no pytest_quant Backend"))
    return tuple(sound), tuple(broken)
