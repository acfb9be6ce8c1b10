"""What a worker tells the controller of the tests that it collected, in a file: the controller knows their ids only."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant.distribution.groups import Asked, asked

if TYPE_CHECKING:
    import pytest

    from pytest_quant.run import Run

WORKERS = "quant_workers"
"""The key of ``workerinput`` that holds the folder and the worker's lane."""


@dataclass(frozen=True)
class Told:
    """One worker's word, which is every worker's."""

    kind: str = "cpu"
    """Of the device."""
    count: int = 1
    """Devices that are shared out: each to a worker, or all of them to one."""
    known: tuple[str, ...] = ()
    """Tests that were collected, deselected ones among them."""
    hardware: Mapping[str, Any] = field(default_factory=dict)
    tests: Mapping[str, Asked] = field(default_factory=dict)
    formats: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """For each test what stands in the ledger where its worker dies, but for the reason."""


def tell(run: Run, items: Sequence[pytest.Item], folder: Path, worker: str) -> None:
    """Write what quantization tests were collected; nothing where there are none."""
    wanted = [(item, target) for item in items if (target := run.target(item)) is not None]
    if not wanted:
        return
    folder.mkdir(mode=0o700, exist_ok=True)
    hardware = run.hardware()
    content = {
        "kind": hardware["kind"],
        "count": 1 if run.spreads else hardware["count"],  # then one worker has them all
        "known": sorted(run.known_tests),
        "hardware": hardware,
        "tests": {
            item.nodeid: {
                **vars(asked(target, getattr(item, "fixturenames", ()))),
                "formats": target.formats,
                "lost": run.lost(item),
            }
            for item, target in wanted
        },
    }
    part = folder / f".{worker}.part"
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(folder / f"{worker}.json")


def heard(folder: Path) -> Told | None:
    """What the workers told; None where they told nothing."""
    with contextlib.suppress(OSError):
        for name in sorted(os.listdir(folder)):  # noqa: PTH208
            if name.endswith(".json"):
                return _told(json.loads((folder / name).read_text(encoding="utf-8")))
    return None


def _told(data: dict[str, Any]) -> Told:
    tests = data["tests"]
    return Told(
        kind=data["kind"],
        count=data["count"],
        known=tuple(data["known"]),
        hardware=data["hardware"],
        tests={name: Asked(tuple(each["models"]), each["alone"], each["shares"]) for name, each in tests.items()},
        formats={name: tuple(each["formats"]) for name, each in tests.items()},
        lost={name: each["lost"] for name, each in tests.items()},
    )
