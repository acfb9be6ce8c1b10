"""Which of the devices an environment variable leaves visible."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

Place = tuple[int, int | None]
"""A device's index, and the index of a slice (MIG) in it or ``None``."""

_LEADING_NUMBER = re.compile(r"\s*([+-]?\d+)")


def select(value: str | None, uuids: Sequence[str], slices: Mapping[str, Place] | None = None) -> list[Place]:
    """The places that a value of ``CUDA_VISIBLE_DEVICES`` (or ``ROCR_``/``HIP_VISIBLE_DEVICES``) names, in its order.

    ``None`` (unset) leaves all visible, an empty value none. Otherwise the rules of the CUDA Programming Guide,
    "CUDA Environment Variables", with PyTorch's reading (``torch.cuda._parse_visible_devices``) where that is silent:
    entries are indices (only the leading number of an entry counts), UUIDs ``GPU-...`` or unique beginnings of one,
    or slices ``MIG-...`` in full; the first entry that names no device, or is of another sort than the first, hides
    itself and all after it; an entry that comes twice hides everything.
    """
    if value is None:
        return [(index, None) for index in range(len(uuids))]
    sort = _sort(value.strip())
    found: list[Place] = []
    for entry in value.split(","):
        entry = entry.strip()
        place = _place(entry, uuids, slices or {}) if _sort(entry) == sort else None
        if place is None:
            break
        if place in found:
            return []
        found.append(place)
    return found


def _sort(entry: str) -> str:
    return entry[:4] if entry.startswith(("GPU-", "MIG-")) else "index"


def _place(entry: str, uuids: Sequence[str], slices: Mapping[str, Place]) -> Place | None:
    if entry.startswith("MIG-"):
        return slices.get(entry)
    if entry.startswith("GPU-"):
        matching = [index for index, uuid in enumerate(uuids) if uuid.startswith(entry)]
        return (matching[0], None) if len(matching) == 1 and entry != "GPU-" else None
    number = _LEADING_NUMBER.match(entry)
    if number is None or not 0 <= int(number[1]) < len(uuids):
        return None
    return int(number[1]), None
