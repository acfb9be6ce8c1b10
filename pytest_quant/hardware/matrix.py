"""The support matrix: on which units a numeric type runs, and whether a backend can run a format.

These are two questions. A GPU may have no unit for a type and still run a format stored in it, because the kernel
unpacks the weights first; and it may have the unit while the library does not use it. ``Matrix.units`` answers the
first, ``Matrix.backend`` the second, ``Matrix.support`` puts them together for a format.

A device is classified by its NVIDIA compute capability, its gfx architecture or its CPU's instruction sets, never by
its marketing name. The one exception is the matrix called ``lesson``, a widely copied table of GPUs by name, kept
for comparison: A10G and RTX 3090 are both compute capability 8.6, L40S and RTX 4090 both 8.9, so that no
two of their columns could differ; that they do is one of the signs that it is wrong.

The answers and their sources are in ``support.toml`` and ``support_lesson.toml``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.hardware import matrix_file
from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix_file import MatrixFile
from pytest_quant.hardware.matrix_rows import NUMERICS, BackendRow, Support, UnitsRow

if TYPE_CHECKING:
    from pytest_quant.formats.format import Format

__all__ = ["NUMERICS", "Difference", "Matrix", "Support", "differences", "explain_skip", "load"]

_DATA = Path(__file__).parent
_SHIPPED = {"corrected": _DATA / "support.toml", "lesson": _DATA / "support_lesson.toml"}
_OWN_ROW = "a row for it in a matrix file of your own (--quant-matrix=FILE)"


@dataclass(frozen=True)
class Matrix:
    """One file's rows in front of those of the corrected matrix: the first row that answers, wins."""

    name: str
    files: tuple[MatrixFile, ...]

    @property
    def unit_rows(self) -> tuple[UnitsRow, ...]:
        return tuple(row for file in self.files for row in file.units)

    @property
    def backend_rows(self) -> tuple[BackendRow, ...]:
        return tuple(row for file in self.files for row in file.backends)

    @property
    def capabilities(self) -> tuple[tuple[str, str], ...]:
        """Every (backend, capability) that some row speaks of."""
        pairs = ((row.backend, capability) for row in self.backend_rows for capability in row.capabilities)
        return tuple(dict.fromkeys(pairs))

    def units(self, numeric: str, device: Device) -> Support:
        """On which units the device multiplies in a numeric type; ``UsageError`` for a type not in ``NUMERICS``."""
        if numeric not in NUMERICS:
            raise UsageError(f"{numeric!r} is not a numeric type of the support matrix: {', '.join(NUMERICS)}")
        for row in self.unit_rows:
            if numeric in row.cells and row.devices.matches(device):
                cell = row.cells[numeric]
                reason = cell.reason or f"{_NATIVE if cell.status == 'native' else cell.status} on {_class_of(device)}"
                reason = self._note(row.origin) + reason
                return replace(cell, reason=reason, needed=cell.needed or self._needed(cell.status, numeric, device))
        reason = f"nobody has verified {numeric} on {_class_of(device)}"
        return Support("unknown", reason, "no row of the matrix", _OWN_ROW)

    def multiplies(self, numeric: str, device: Device) -> bool:
        """Whether the device's units multiply in a type. Where they do not, products run in another, and a rate that
        was measured of this one is no bound."""
        return numeric in NUMERICS and self.units(numeric, device).status == "native"

    def backend(self, backend: str, device: Device, capability: str) -> Support:
        """Whether a backend can run a capability (``int8``, ``nf4``, ...) on the device.

        ``native`` and ``dequantized`` run; they tell whether its kernels multiply in the type or unpack it
        first. ``packages`` are the requirements with their minimum versions.
        """
        for row in self.backend_rows:
            if row.backend == backend and capability in row.capabilities and row.devices.matches(device):
                runs = "multiplies in it" if row.support.status == "native" else "unpacks it before the product"
                reason = row.support.reason or f"{backend} runs {capability} here and {runs}"
                needed = row.support.needed or (_OWN_ROW if row.support.status == "unknown" else "")
                return replace(row.support, reason=reason, needed=needed)
        if (backend, capability) in self.capabilities:
            reason = f"nobody has verified {backend}'s {capability} on {_class_of(device)}"
        else:
            reason = f"the support matrix knows no {capability} of {backend}"
        return Support("unknown", reason, "no row of the matrix", _OWN_ROW)

    def support(self, format: Format, device: Device, *, require_native: bool | None = None) -> Support:
        """Whether, and on which units, the format runs on the device: ``native``, ``dequantized`` or ``unsupported``.

        ``require_native`` ``None``: a format that also quantizes activations is unsupported unless the device has
        units for its type. ``True``: so is any format that would not be native. ``False``: whatever runs, runs.
        A weight-only format is never native, whatever the units: its kernel unpacks the weights first. What nobody
        has verified does not run (backend) and is not native (units).
        """
        runs = self.realized(format, device)
        if not runs.runs:
            reason = f"{format.backend} cannot run {format.name} here: {runs.reason}"
            if runs.status == "unknown":
                reason = f"it is not known that {format.name} runs here: {runs.reason}"
            return replace(runs, status="unsupported", reason=reason)
        units = self.units(format.numeric, device)
        answer = _combined(format, runs, units)
        if require_native is True and answer.status != "native":
            return _refused(format, answer, "native units were required (require_native=True)")
        activations = format.input_activations is not None
        if require_native is None and activations and units.status != "native":
            return _refused(format, answer, "it quantizes activations too, which gains nothing without such units")
        return answer

    def realized(self, format: Format, device: Device) -> Support:
        """What the backend of a format can do with it on the device, whatever the units."""
        return self.backend(format.backend, device, self._capability(format))

    def _capability(self, format: Format) -> str:
        """What the rows call the format: its name, that of the format which it is a variant of, either without ``@...``
        or, where the backend has no such row, its numeric type (with ``-weight-only`` where it is). A KV cache format
        (``+...``) is not asked for here."""
        names = [part for name in (format.base, format.variant_of) for part in (name, name.partition("@")[0])]
        weights = [f"{format.numeric}-weight-only"] if format.weight_only else []
        known = set(self.capabilities)
        return next((name for name in names + weights if (format.backend, name) in known), format.numeric)

    def _note(self, origin: str) -> str:
        first = self.files[0]
        return f"{first.fallback_note}: " if first.fallback_note and origin != first.name else ""

    def _needed(self, status: str, numeric: str, device: Device) -> str:
        if status == "native":
            return ""
        found = (file.needed.get((device.kind, numeric), "") for file in self.files)
        return next((text for text in found if text), _OWN_ROW if status == "unknown" else "other hardware")


@dataclass(frozen=True)
class Difference:
    """One cell where two matrices give different answers about a numeric type's units."""

    label: str
    device: Device
    numeric: str
    first: Support
    second: Support


def load(name_or_path: str = "corrected") -> Matrix:
    """The matrix ``corrected`` (default) or ``lesson``, or a user's TOML file laid over the corrected one.

    Overlaid row by row: the file's rows are searched first, in their order, and where none of them matches the device
    and has the type, the corrected rows answer. Raises ``UsageError`` for a file that is missing or malformed.
    """
    base = _shipped("corrected")
    if name_or_path == "corrected":
        return Matrix("corrected", (base,))
    if name_or_path in _SHIPPED:
        return Matrix(name_or_path, (_shipped(name_or_path), base))
    own = matrix_file.read(Path(name_or_path).expanduser())
    return Matrix(own.name, (own, base))


def differences(a: Matrix, b: Matrix, devices: Iterable[tuple[str, Device]]) -> list[Difference]:
    """The cells of the units table where two matrices disagree about the status, device by device.

    ``fp8_e5m2`` is listed only where it does not differ exactly as ``fp8`` does: tables usually have one cell for both.
    """
    found = []
    for label, device in devices:
        fp8: tuple[str, str] | None = None
        for numeric in NUMERICS:
            first, second = a.units(numeric, device), b.units(numeric, device)
            pair = (first.status, second.status)
            if numeric == "fp8":
                fp8 = pair
            if pair[0] != pair[1] and not (numeric == "fp8_e5m2" and pair == fp8):
                found.append(Difference(label, device, numeric, first, second))
    return found


def explain_skip(format: Format, device: Device, support: Support) -> Unsupported:
    """The skip to raise for a format whose ``support`` is unsupported: what was asked, found and needed."""
    needed = support.needed or "other hardware"
    if support.packages:
        needed += f", with {' and '.join(support.packages)}"
    return Unsupported(
        asked=f"{format.name} ({format.backend})",
        found=f"{device}: {support.reason}",
        needed=needed,
    )


_NATIVE = "multiplied in this type"


@cache
def _shipped(name: str) -> MatrixFile:
    return matrix_file.read(_SHIPPED[name])


def _combined(format: Format, runs: Support, units: Support) -> Support:
    source = "; ".join(_distinct((runs.source, units.source)))
    if format.weight_only:
        reason = f"{format.name} is stored narrow and unpacked before each product: {runs.reason}"
        needed = "a format that quantizes activations too: weight-only formats never run in their own type"
        return Support("dequantized", reason, runs.source, needed, runs.packages)
    if units.status != "native":
        verb = "is not known to run natively" if units.status == "unknown" else "runs in a wider type"
        reason = f"{format.name} {verb}: {units.reason}"
        return Support("dequantized", reason, source, units.needed, runs.packages)
    if runs.status != "native":
        reason = f"the device has units for {format.numeric}, {format.backend} does not use them: {runs.reason}"
        return Support("dequantized", reason, source, runs.needed or "another backend", runs.packages)
    return Support("native", "; ".join(_distinct((units.reason, runs.reason))), source, "", runs.packages)


def _refused(format: Format, answer: Support, why: str) -> Support:
    needed = answer.needed or "other hardware"
    loosen = f"{needed}; or require_native=False to run it without"
    return replace(answer, status="unsupported", reason=f"{answer.reason}; {why}", needed=loosen, packages=())


def _distinct(texts: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(text for text in texts if text))


def _class_of(device: Device) -> str:
    if device.kind == "cuda":
        if device.compute_capability is None:
            return "an NVIDIA GPU of undetected compute capability"
        return "compute capability {}.{}".format(*device.compute_capability)
    features = (
        f" with {' '.join(sorted(device.features)) or 'no known instruction set'}" if device.kind == "cpu" else ""
    )
    return f"{device.kind} {device.architecture}{features}"
