"""Speed, bound, memory and energy of a model in several formats, as a Markdown table.

    python benchmarks/speed.py MODEL --formats int8,nf4,fp8 --reference fp16 --batch 1,8,64 --prompt 2048 [--energy]
    python benchmarks/speed.py FOLDER --random llama-3-8b --formats int8,nf4,fp8    # makes the model first, once

Each format is timed beside the reference, in rounds of both, until the ratio is known to a tenth or ``--budget`` is
spent: decode of ``--new`` tokens after ``--context`` at each batch size, and a prefill of ``--prompt`` tokens. Values
are medians over the rounds, with their 99 % interval; a share is of what the hardware allows at best. Memory is that
of the weights and of the KV cache at the end. ``--energy`` takes a second or more for each of its rounds.
"""

from __future__ import annotations

import argparse
import datetime
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from random_models import SHAPES, save

from pytest_quant.cache import user_cache
from pytest_quant.engines.source import ModelSource
from pytest_quant.environment import describe_hardware, packages
from pytest_quant.errors import QuantError, Unsupported
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.markers import gate
from pytest_quant.metrics.cost import dollars
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

UNKNOWN = "–"
PRICE = 1.0
SHOWN = ("torch", "transformers", "bitsandbytes", "torchao")
HEAD = (
    "format",
    "phase",
    "batch",
    "tokens/s",
    "at best",
    "share",
    "limited by",
    "weights, GB",
    "KV cache, GB",
    "J/token",
    "ratio",
)


@dataclass(frozen=True)
class Row:
    """One line: a format in one workload."""

    format: str
    phase: str
    batch_size: int
    speed: str
    bound: Mapping[str, Any]
    weight_bytes: int
    kv_bytes: float
    joules: float | None
    ratio: str

    def cells(self) -> Iterator[str]:
        at_best = self.bound.get("tokens_per_second")
        share = self.bound.get("share")
        yield from (f"`{self.format}`", self.phase, str(self.batch_size), self.speed)
        yield UNKNOWN if at_best is None else number(at_best)
        yield UNKNOWN if share is None else f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
        yield self.bound.get("regime", UNKNOWN)
        yield from (f"{self.weight_bytes / 1e9:.3g}", f"{self.kv_bytes / 1e9:.2g}")
        yield UNKNOWN if self.joules is None else f"{self.joules:.3g}"
        yield self.ratio


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spread(quantity: Quantity) -> str:
    return f"{quantity.value:.3g} ({quantity.low:.3g} to {quantity.high:.3g})"


def speed(cost: Measurement) -> str:
    """Tokens a second with their interval, which a cost of a token at a known price tells."""
    low, value, high = (dollars(usd, PRICE) for usd in quantity_ends(cost.quantities["usd"]))
    return f"{number(value)} ({number(low)} to {number(high)})"


def quantity_ends(quantity: Quantity) -> tuple[float, float, float]:
    return quantity.high, quantity.value, quantity.low


def rows(session: Session, spec: ModelSpec, name: str, works: list[dict[str, Any]], *, energy: bool) -> Iterator[Row]:
    """The format's lines, each followed by the reference's in the same rounds."""
    for work in works:
        timed = session.measure(spec, name, gate("throughput_ratio", work, limits_required=False))
        priced = session.measure(spec, name, gate("cost_ratio", {**work, "price": PRICE}, limits_required=False))
        joules: dict[str, float] = {}
        if energy:
            counted = session.measure(spec, name, gate("energy_ratio", work, limits_required=False))
            joules = {"format": counted.quantities["joules"].value, "reference": counted.figures["reference_value"]}
        context = work["prompt_tokens"] + work.get("new_tokens", 0)
        asked = {"of": "kv_cache", "batch_size": work["batch_size"], "context": context}
        for which, of in (("format", name), ("reference", spec.reference)):
            kept = session.measure(spec, of, gate("memory_budget", asked, limits_required=False)).value
            told = speed(priced) if which == "format" else number(timed.figures["reference_value"])
            yield Row(
                format=of,
                phase=work["phase"],
                batch_size=work["batch_size"],
                speed=told,
                bound=timed.bounds.get(which, {}),
                weight_bytes=session.model(spec, of).weight_bytes,
                kv_bytes=kept,
                joules=joules.get(which),
                ratio=spread(timed.quantity) if which == "format" else "1",
            )
        for _, text in timed.conditions:
            print(f"{name}, {work['phase']} at batch {work['batch_size']}: measured while {text}", flush=True)


def counts_energy(session: Session) -> bool:
    from pytest_quant.hardware.energy import counter

    try:
        counter(session.device)
    except Unsupported as reason:
        print(f"no energy: {reason}")
        return False
    return True


def main(told: argparse.Namespace) -> None:
    if told.random and not (told.model / "config.json").is_file():
        save(told.model, SHAPES[told.random])
    settings = Settings(cache_dir=user_cache(), speed_budget=told.budget)
    session, spec = Session(settings, Quiet()), ModelSpec(ModelSource(str(told.model)), told.reference)
    decode = {"phase": "decode", "prompt_tokens": told.context, "new_tokens": told.new}
    works: list[dict[str, Any]] = [{**decode, "batch_size": size} for size in told.batch]
    works.append({"phase": "prefill", "prompt_tokens": told.prompt, "batch_size": 1})
    energy = told.energy and counts_energy(session)
    found: list[Row] = []
    skipped: list[str] = []
    for name in (name for name in told.formats if name != told.reference):
        try:
            for row in rows(session, spec, name, works, energy=energy):
                if row.format == name or not any((row.format, row.phase, row.batch_size) == of(old) for old in found):
                    found.append(row)
                    print(" | ".join(row.cells()), flush=True)
        except QuantError as error:
            skipped.append(f"- `{name}`: {error}")
        session.models.keep({(spec, spec.reference)})
    print("\n".join(table(session, told, sorted(found, key=lambda row: row.format != told.reference)) + skipped))


def of(row: Row) -> tuple[str, str, int]:
    return row.format, row.phase, row.batch_size


def table(session: Session, told: argparse.Namespace, found: list[Row]) -> list[str]:
    """The Markdown lines, with what the numbers were made with."""
    known = packages()
    versions = ", ".join(f"{name} {known[name]}" for name in SHOWN if name in known)
    hardware = describe_hardware(session.device)
    driver = f", driver {hardware['driver']}" if "driver" in hardware else ""
    name = told.random or told.model.name
    made = f"{name} on {session.device.name}{driver}, {versions}, {datetime.date.today().isoformat()}."
    return [
        "",
        f"{made} Decode of {told.new} tokens after {told.context}; prefill of {told.prompt}.",
        "",
        f"| {' | '.join(HEAD)} |",
        f"|{'---|' * len(HEAD)}",
        *(f"| {' | '.join(row.cells())} |" for row in found),
        "",
    ]


def names(text: str) -> list[str]:
    return text.split(",")


def sizes(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--random", choices=sorted(SHAPES), help="make MODEL of random weights in this shape")
    parser.add_argument("--formats", type=names, default=["int8", "nf4", "fp8"])
    parser.add_argument("--reference", default="fp16")
    parser.add_argument("--batch", type=sizes, default=[1, 8, 64])
    parser.add_argument("--prompt", type=int, default=2048, help="tokens of the prefill")
    parser.add_argument("--context", type=int, default=64, help="tokens before a decode")
    parser.add_argument("--new", type=int, default=32, help="tokens of a decode")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds for the rounds of one line")
    parser.add_argument("--energy", action="store_true")
    main(parser.parse_args())
