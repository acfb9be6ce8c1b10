"""Which earlier measurement a new one may be compared with, and if none may, why. Pure: no file is touched.

An identity is a nested mapping such as `{"model": {...}, "format": {...}, "reference": ..., "engine": ...,
"metric": {"name": ..., **parameters}, "protocol": {...}}`. Two measurements may be compared if all of it is equal. Its
`metric` part says which question was asked: a test that gates decode and one that gates prefill ask different ones.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pytest_quant.baseline.schema import Entry, File, canonical


@dataclass(frozen=True)
class Match:
    """What a baseline has to say about a measurement.

    `exact`: `entry` may be compared. `incomparable`: `entry` answers the same question (metric, its parameters, format)
    under another identity; `differences` are the lines of `identity_difference` from it to the new one. If there are
    several, it is the one with the fewest. `missing`: no entry answers this question.
    """

    kind: Literal["exact", "incomparable", "missing"]
    entry: Entry | None = None
    differences: tuple[str, ...] = ()


def lookup(
    file: File | None, metric: str, format: str, identity: Mapping[str, Any], *, ignore: Collection[str] = ()
) -> Match:
    """The entry of `file` for this measurement, as a `Match`; no file is `missing`.

    `ignore` names top-level keys of the identity that may differ: `("hardware",)` where a quality metric falls back to
    another device's file. Raises BaselineError if `identity` is not JSON.
    """
    wanted = _without(identity, ignore)
    candidates = [e for e in (file.entries if file else ()) if (e.metric, e.format) == (metric, format)]
    found = [
        (tuple(identity_difference(_without(e.identity, ignore), wanted)), e)
        for e in sorted(candidates, key=lambda e: e.key)
        if canonical({"metric": e.identity.get("metric")}) == canonical({"metric": identity.get("metric")})
    ]
    if not found:
        return Match("missing")
    differences, entry = min(found, key=lambda pair: len(pair[0]))
    return Match("incomparable" if differences else "exact", entry, differences)


def identity_difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for each value that differs, such as `protocol.window: 512 -> 2048`, sorted; empty if none does.

    Values are shown as JSON, a key that one side lacks as `absent`. Raises BaselineError if a value is not JSON.
    """
    before, after = (dict(_leaves(json.loads(canonical(identity)), ())) for identity in (old, new))
    return [
        f"{'.'.join(key)}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]


def _leaves(value: Any, key: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    if isinstance(value, dict) and (value or not key):
        for name, inner in value.items():
            yield from _leaves(inner, (*key, name))
    else:
        yield key, json.dumps(value, sort_keys=True)


def _without(identity: Mapping[str, Any], ignore: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in ignore}
