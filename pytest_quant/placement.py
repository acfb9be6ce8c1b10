"""Where the parts of a model go, as a test asks for it: one device of several, several, or some of it on none."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_quant.errors import UsageError

WORDS = ("auto", "balanced", "balanced_low_0", "sequential")
"""What has the library spread a model over all visible devices, and offload what finds no room on them."""
_EXAMPLE = '{"": 0} or {"model.embed_tokens": 0, "model.layers": 1, ...}'
_UNITS = {f"{u}{i}B": base**n for i, base in (("", 1000), ("i", 1024)) for n, u in enumerate("KMGT", 1)} | {"": 1}

Place = int | str
"""The number of an accelerator, ``cpu``, ``disk``, ``mps``, or ``cuda:1``, which is 1."""


@dataclass(frozen=True)
class Placement:
    """A ``device_map`` as transformers and accelerate understand it, in a form that can be compared and hashed."""

    map: str | tuple[tuple[str, Place], ...]
    """One of :data:`WORDS`, or a place for each part of the model by its full name, ``""`` for all that no other
    names."""
    max_memory: tuple[tuple[Place, int], ...] = ()
    """Bytes that a word may use of each place; places that are not named are not used."""

    @property
    def spills(self) -> bool:
        """Whether what finds no room is offloaded instead of refused."""
        return isinstance(self.map, str)

    @property
    def places(self) -> tuple[Place, ...]:
        """The places that it names; none where a word leaves that to the library."""
        named = self.max_memory if isinstance(self.map, str) else [(place, None) for _, place in self.map]
        return tuple(dict.fromkeys(place for place, _ in named))

    @property
    def accelerators(self) -> tuple[int, ...]:
        """Of these, the numbers of accelerators."""
        return tuple(place for place in self.places if isinstance(place, int))

    @property
    def plain(self) -> Any:
        """As it goes into identities: plain data."""
        map = self.map if isinstance(self.map, str) else dict(self.map)
        if not self.max_memory:
            return map
        return {"map": map, "max_memory": {str(place): size for place, size in self.max_memory}}

    def __str__(self) -> str:
        text = self.map if isinstance(self.map, str) else json.dumps(dict(self.map))
        return f"device_map={text}"


def parse(device_map: Any, max_memory: Any = None) -> Placement:
    """What a marker or an option says. :class:`UsageError` where it is no map, or ``max_memory`` has none to limit."""
    if isinstance(device_map, str) and device_map.lstrip().startswith("{"):
        try:
            device_map = json.loads(device_map, object_pairs_hook=lambda pairs: _once("device_map", pairs))
        except json.JSONDecodeError as error:
            raise UsageError(f"device_map: no JSON ({error}); write {_EXAMPLE}") from None
    if isinstance(device_map, str) and device_map in WORDS:
        return Placement(device_map, _limits(max_memory))
    if max_memory is not None:
        raise UsageError(f"max_memory goes with a device_map that the library chooses: {', '.join(WORDS)}")
    if not isinstance(device_map, Mapping):
        device_map = {"": device_map}
    if not device_map or not all(isinstance(name, str) for name in device_map):
        raise UsageError(f"device_map must be {', '.join(WORDS)}, or a place for each part by its name: {_EXAMPLE}")
    parts = _once("device_map", [(name.strip("."), _place(place)) for name, place in device_map.items()])
    return Placement(tuple(sorted(parts.items())))


def _once(what: str, pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any]:
    """The pairs as a dict; :class:`UsageError` where a key is there twice."""
    if twice := [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]:
        raise UsageError(f"{what} names {twice[0]!r} twice; name each part and each place once")
    return dict(pairs)


def _place(value: Any) -> Place:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str):
        if found := re.fullmatch(r"(?:(?:cuda|xpu):)?(\d+)", value):
            return int(found[1])
        if value in ("cuda", "xpu"):
            return 0
        if value in ("cpu", "disk", "mps"):
            return value
    raise UsageError(
        f"device_map: {value!r} is no place; give the number of a device, cpu or disk, or as a whole one of "
        f"{', '.join(WORDS)}"
    )


def _limits(max_memory: Any) -> tuple[tuple[Place, int], ...]:
    if max_memory is None:
        return ()
    if not isinstance(max_memory, Mapping) or not max_memory:
        raise UsageError('max_memory must name bytes for places, as {0: "20GiB", "cpu": "0GiB"}')
    found = _once("max_memory", [(_place(place), _bytes(size)) for place, size in max_memory.items()])
    return tuple(sorted(found.items(), key=lambda pair: (isinstance(pair[0], str), str(pair[0]))))


def _bytes(size: Any) -> int:
    if isinstance(size, int) and not isinstance(size, bool) and size >= 0:
        return size
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|)\s*", size) if isinstance(size, str) else None
    if found is None:
        raise UsageError(f"max_memory: {size!r} is no number of bytes; write 20GiB, 20GB or a whole number")
    return int(float(found[1]) * _UNITS[found[2]])
