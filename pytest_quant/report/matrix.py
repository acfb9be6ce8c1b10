"""The support matrix as plain text, 80 columns wide where names allow. Pure: nothing is detected or measured here."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill

from pytest_quant.hardware.device import Device
from pytest_quant.hardware.matrix import NUMERICS, Difference, Matrix, Support

WIDTH = 80
_WORDS = {"native": "native", "dequantized": "dequant", "unsupported": "-", "unknown": "?"}
_LEGEND = (
    "native: multiplied in this type. dequant: unpacked to a wider type first.\n"
    "-: the type does not exist there. ?: nobody has verified it."
)


def render_matrix(matrix: Matrix, devices: Sequence[tuple[str, Device]]) -> str:
    """The units table of several labelled devices; of a single one, every answer with its reason and source."""
    head = f"Support matrix: {matrix.name}"
    if not devices:
        return f"{head}\nno device\n"
    if len(devices) == 1:
        return "\n".join((head, *_one_device(matrix, *devices[0]))) + "\n"
    lines = [head]
    for group in _groups(devices):
        lines += ["", *_grid(matrix, group)]
    return "\n".join((*lines, "", _LEGEND)) + "\n"


def render_differences(found: Sequence[Difference], first: str, second: str) -> str:
    """The cells where the matrices named ``first`` and ``second`` disagree, each with both reasons and sources."""
    if not found:
        return f"{first} and {second} agree on every cell\n"
    many = "1 cell differs" if len(found) == 1 else f"{len(found)} cells differ"
    lines = [f"{first} against {second}: {many}"]
    for cell in found:
        lines += ["", f"{cell.label}, {cell.numeric} [{cell.device.architecture}]"]
        for name, support in ((first, cell.first), (second, cell.second)):
            lines += [_wrapped(f"{name}: {support.status}, {support.reason}", 2)]
            lines += [_wrapped(f"source: {support.source}", 4)]
    return "\n".join(lines) + "\n"


def _groups(devices: Sequence[tuple[str, Device]]) -> list[list[tuple[str, Device]]]:
    """Devices side by side as long as the line is not full."""
    groups: list[list[tuple[str, Device]]] = [[]]
    used = _first_column()
    for label, device in devices:
        width = _column(label)
        if groups[-1] and used + width > WIDTH:
            groups.append([])
            used = _first_column()
        groups[-1].append((label, device))
        used += width
    return groups


def _grid(matrix: Matrix, devices: Sequence[tuple[str, Device]]) -> list[str]:
    lines = [" " * _first_column() + "".join(label.rjust(_column(label)) for label, _ in devices)]
    for numeric in NUMERICS:
        cells = (_WORDS[matrix.units(numeric, device).status].rjust(_column(label)) for label, device in devices)
        lines.append(numeric.ljust(_first_column()) + "".join(cells))
    return lines


def _first_column() -> int:
    return max(len(numeric) for numeric in NUMERICS)


def _column(label: str) -> int:
    return 2 + max(len(label), *(len(word) for word in _WORDS.values()))


def _one_device(matrix: Matrix, label: str, device: Device) -> list[str]:
    about = str(device) if label in str(device) else f"{label}: {device}"
    lines = [about, "", "On which units a numeric type runs"]
    for numeric in NUMERICS:
        lines += _answer(numeric, matrix.units(numeric, device))
    lines += ["", "What each backend can run (when it is installed)"]
    answers: dict[tuple[str, Support], list[str]] = {}
    for backend, capability in sorted(matrix.capabilities):
        answers.setdefault((backend, matrix.backend(backend, device, capability)), []).append(capability)
    for (backend, support), capabilities in answers.items():
        lines += _answer(f"{backend} {', '.join(capabilities)}", support)
    return lines


def _answer(what: str, support: Support) -> list[str]:
    lines = [_wrapped(f"{what}: {support.status}, {support.reason}", 2)]
    if support.needed and support.status != "native":
        lines.append(_wrapped(f"needed: {support.needed}", 4))
    if support.packages and support.runs:
        lines.append(_wrapped(f"packages: {', '.join(support.packages)}", 4))
    lines.append(_wrapped(f"source: {support.source}", 4))
    return lines


def _wrapped(text: str, indent: int) -> str:
    return fill(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_long_words=False,
        break_on_hyphens=False,
    )
