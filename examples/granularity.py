"""What the granularity of scales costs: every linear layer of a model's blocks rounded in one way, weights only.

    python examples/granularity.py .models/SmolLM2-135M-Instruct [--windows 32] [--protocol gptq-512] [--dtype fp32]

One scale for a tensor, for a channel, for a group of 128, 64 or 32 weights; 8 and 4 bits, with zero points and without;
NF4 and FP4 beside uniform INT4. Of each: perplexity and its paired difference from the unrounded model, KL divergence,
bits a weight. Below the table, what is often said about it, beside what this model says.

The unrounded model is run once: its hidden states are kept, and its head, which is not rounded, is that of every
variant. For a variant, modules with rounded weights stand in for the model's own, whose weights stay as they are; at
the end the model has to answer as before, to the bit.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pytest_quant import environment
from pytest_quant.asking import Line
from pytest_quant.corpora.windows import Window, Windows
from pytest_quant.engines import candidates, loading, predictions
from pytest_quant.engines.replay import swapped
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotMeasured, QuantError, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.rounding import Rounding
from pytest_quant.gates.measurement import Quantity
from pytest_quant.hardware import detect
from pytest_quant.metrics import divergence, pairing
from pytest_quant.metrics.evidence import Evidence
from pytest_quant.metrics.pairing import WindowScore
from pytest_quant.metrics.perplexity import perplexity_delta
from pytest_quant.population import Population
from pytest_quant.settings import Settings
from pytest_quant.stats.sequence import MIN_WINDOWS
from pytest_quant.writing import json_file, write_json

VARIANTS = (
    *(Rounding("int8", "tensor", symmetric=symmetric) for symmetric in (True, False)),
    Rounding("int8", "channel"),
    Rounding("int8", "group", 64),
    Rounding("fp8", "tensor"),
    Rounding("fp8", "channel"),
    *(Rounding("int4", "tensor", symmetric=symmetric) for symmetric in (True, False)),
    *(Rounding("int4", "channel", symmetric=symmetric) for symmetric in (True, False)),
    *(Rounding("int4", "group", size, symmetric) for size in (128, 64, 32) for symmetric in (True, False)),
    Rounding("nf4", "group", 64),
    Rounding("nf4", "group", 32),
    Rounding("fp4", "group", 64),
)


@dataclass(frozen=True)
class Row:
    """One way of rounding, and what the model then says of the windows."""

    rounding: Rounding
    sizes: tuple[int, ...]
    """Groups that were really used, where the rounding's own do not divide every layer."""
    bits: float
    """A weight of the rounded layers, with its share of 16-bit scales."""
    scores: tuple[WindowScore, ...]


@dataclass(frozen=True)
class Sample:
    """The windows that all rows share."""

    reference: str
    total: int
    unit: str
    alpha: float

    def evidence(self, name: str, scores: Sequence[WindowScore], against: str | None = None) -> Evidence:
        return Evidence(name, against or self.reference, tuple(scores), self.total, self.unit)

    def delta(self, row: Row) -> tuple[Quantity, Mapping[str, float]]:
        """Perplexity above the unrounded model's, for all windows of the text."""
        quantities, figures = perplexity_delta(self.evidence(row.rounding.name, row.scores), self.alpha)
        return quantities["delta"], figures

    def kl(self, row: Row) -> Quantity:
        """KL(unrounded || rounded), nats a token."""
        found, _ = divergence.kl_divergence(self.evidence(row.rounding.name, row.scores), self.alpha, ["mean"])
        return found["mean"]

    def between(self, worse: Row, better: Row) -> Quantity:
        """Perplexity of one rounding above another's, paired by window."""
        pairs = zip(worse.scores, better.scores, strict=True)
        scores = [replace(ours, reference_nll=theirs.nll) for ours, theirs in pairs]
        found, _ = perplexity_delta(self.evidence(worse.rounding.name, scores, better.rounding.name), self.alpha)
        return found["delta"]


@dataclass(frozen=True)
class Claim:
    """So many perplexity points between two rows; the unrounded model where ``better`` is None."""

    says: str
    worse: str
    better: str | None
    low: float
    high: float


CLAIMS = (
    Claim("NF4 is better than uniform INT4 by 0.5 to 1.5", "int4-group-64", "nf4-group-64", 0.5, 1.5),
    Claim("the same, INT4 with zero points", "int4-group-64-asymmetric", "nf4-group-64", 0.5, 1.5),
    Claim("one scale a tensor loses 1 to 3 (8 bits, against a channel)", "int8-tensor", "int8-channel", 1.0, 3.0),
    Claim("one scale a tensor loses 1 to 3 (4 bits, against a channel)", "int4-tensor", "int4-channel", 1.0, 3.0),
    Claim("NF4 costs 0.3 to 1.0", "nf4-group-64", None, 0.3, 1.0),
)
"""Those of a widely read lesson that are about weights; the others (W8A8, activation outliers) need another study."""


class Kept:
    """The unrounded model's answers: those of windows that it was asked about once come back as they were."""

    def __init__(self, loaded: Any) -> None:
        self._loaded = loaded
        self._kept: dict[tuple[bytes, int], predictions.Predictions] = {}

    def predict(self, tokens: Any, scored_from: int) -> predictions.Predictions:
        key = (tokens.tobytes(), scored_from)
        if key not in self._kept:
            self._kept[key] = self._loaded.predict(tokens, scored_from)
        return self._kept[key]

    def top(self, tokens: Any, scored_from: int, count: int) -> Any:
        import torch

        with torch.inference_mode():
            return predictions.top(self.predict(tokens, scored_from), count)


class Layers:
    """The linear layers of a model's blocks, and how each is rounded."""

    def __init__(self, loaded: Any, rounding: Rounding) -> None:
        self._found = candidates.of_rounding(loaded, rounding)
        self._modules = {
            layer.name: loaded.model.get_submodule(layer.name)
            for layer in self._found.layers
            if layer.kind not in candidates.TABLES
        }
        if not self._modules:
            raise UsageError(f"{type(loaded.model).__name__} has no linear layers in its blocks: nothing to round")

    @property
    def left_out(self) -> tuple[str, ...]:
        """Matrices that are no linear layers of their own, such as fused experts: they stay as they are."""
        return self._found.left_out

    def twins(self) -> dict[str, Any]:
        """Modules with rounded weights, to stand in for the model's own of these names."""
        return {name: self._found.stand_ins[name] for name in self._modules}

    @property
    def bits(self) -> float:
        """Mean over all weights."""
        counts = {name: module.weight.numel() for name, module in self._modules.items()}
        roundings = {name: self._found.roundings[name] for name in self._modules}
        bits = (counts[name] * roundings[name].bits(candidates.columns(self._modules[name])) for name in counts)
        return sum(bits) / sum(counts.values())

    @property
    def sizes(self) -> tuple[int, ...]:
        """Groups in use, the largest first."""
        sizes = {self._found.roundings[name].size for name in self._modules}
        return tuple(sorted((size for size in sizes if size is not None), reverse=True))


def study(
    loaded: Any,
    windows: Windows,
    variants: Sequence[Rounding] = VARIANTS,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Row]:
    """Score the windows with the model rounded in each way. :class:`NotMeasured` if it is not as it was afterwards."""
    pairing.check_fits(loaded, windows)
    count = len(windows.drawn)
    kept: Any = Kept(loaded)
    batches = list(_batches(loaded, windows))
    for number, batch in enumerate(batches):
        tell(f"unrounded: {number}/{len(batches)} batches")
        pairing.score_reference(kept, batch, 1)
    rows = []
    for number, rounding in enumerate(variants, 1):
        scores: list[WindowScore] = []
        layers = Layers(loaded, rounding)
        with swapped(loaded.model, layers.twins()):
            for batch in batches:
                tell(f"{rounding.name} ({number}/{len(variants)}): {len(scores)}/{count} windows")
                scores += [score for score, _ in pairing.score_beside(loaded, kept, batch, pairing.TOP_K)]
        rows.append(Row(rounding, layers.sizes, layers.bits, tuple(scores)))
    again = pairing.score_beside(loaded, kept, batches[0], 1)
    if any((score.nll != score.reference_nll).any() for score, _ in again):
        raise NotMeasured("the model does not answer as before the first rounding")
    return rows


def _batches(loaded: Any, windows: Windows) -> Iterator[Sequence[Window]]:
    longest = max(len(piece.tokens) for window in windows.drawn for piece in window.pieces)
    done, size = 0, loaded.windows_at_once(longest)
    while done < len(windows.drawn):
        yield (batch := pairing.next_batch(windows, done, size))
        done += len(batch)


def judged(claim: Claim, rows: Mapping[str, Row], sample: Sample) -> tuple[Quantity, str] | None:
    """What was measured, and whether the claim held; None where the rows were not measured."""
    if claim.worse not in rows or (claim.better is not None and claim.better not in rows):
        return None
    worse = rows[claim.worse]
    found = sample.delta(worse)[0] if claim.better is None else sample.between(worse, rows[claim.better])
    if not _is_bounded(found):
        return found, "undecided: no interval from so few windows"
    if claim.low <= found.low and found.high <= claim.high:
        return found, "held"
    if found.high < claim.low:
        return found, "did not hold: " + ("the other way round" if found.high < 0.0 else "it is less")
    if found.low > claim.high:
        return found, "did not hold: it is more"
    inside = "held" if claim.low <= found.value <= claim.high else "did not hold"
    return found, f"{inside} on these windows, not decided for all"


def table(rows: Sequence[Row], sample: Sample) -> list[str]:
    """Lines of the table, the unrounded model first."""
    confidence = f"{1.0 - sample.alpha:.0%}"
    base = _number(sample.delta(rows[0])[1]["reference_value"], ".2f")
    measured = ["perplexity", f"delta ({confidence})", f"KL ({confidence})"]
    head = ["weights", "one scale for", "zero point", "bits", *measured]
    lines = [head, [sample.reference, "", "", "", base, "", ""]]
    for row in rows:
        rounding, (delta, figures) = row.rounding, sample.delta(row)
        groups = f"{'/'.join(map(str, row.sizes))} weights"
        lines.append(
            [
                rounding.numeric,
                groups if row.sizes else {"tensor": "a tensor", "channel": "a channel"}[rounding.strategy],
                {"int": "no"}.get(rounding.numeric[:3], "") if rounding.symmetric else "yes",
                f"{row.bits:.2f}",
                _number(figures["format_value"], ".2f"),
                _interval(delta, "+.2f"),
                _interval(sample.kl(row), ".4f"),
            ]
        )
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _interval(quantity: Quantity, form: str) -> str:
    value, low, high = (_number(number, form) for number in (quantity.value, quantity.low, quantity.high))
    if not _is_bounded(quantity):
        return f"{value}, no interval"
    return value if quantity.is_exact else f"{value} [{low}, {high}]"


def _is_bounded(quantity: Quantity) -> bool:
    return math.isfinite(quantity.low) and math.isfinite(quantity.high)


def _number(value: float, form: str) -> str:
    """In as few digits as people read, where a model is broken altogether."""
    return f"{value:{form}}" if abs(value) < 1e4 else f"{value:{'+' if form.startswith('+') else ''}.2g}"


def verdicts(rows: Sequence[Row], sample: Sample) -> list[str]:
    """A line for each claim."""
    named, lines = {row.rounding.name: row for row in rows}, []
    for claim in CLAIMS:
        if (found := judged(claim, named, sample)) is not None:
            quantity, verdict = found
            than = claim.better or sample.reference
            lines.append(f"- {claim.says}: {verdict}; {claim.worse} over {than} {_interval(quantity, '+.2f')}")
    return lines


def record(rows: Sequence[Row], sample: Sample, about: Mapping[str, Any]) -> dict[str, Any]:
    """All of it as JSON; an end that is not bounded is absent."""
    named, found, claims = {row.rounding.name: row for row in rows}, [], []
    for row in rows:
        delta, figures = sample.delta(row)
        shape = {"name": row.rounding.name, "bits_per_weight": row.bits, "perplexity": figures["format_value"]}
        if row.sizes:
            shape["group_sizes"] = list(row.sizes)
        found.append({**shape, "delta": _plain(delta), "kl_divergence": _plain(sample.kl(row))})
    for claim in CLAIMS:
        if (told := judged(claim, named, sample)) is not None:
            measured = {"claim": claim.says, "low": claim.low, "high": claim.high, "worse": claim.worse}
            measured |= {"than": claim.better or sample.reference, "measured": _plain(told[0]), "verdict": told[1]}
            claims.append(measured)
    reference = sample.delta(rows[0])[1]["reference_value"]
    return {**about, "reference": {"name": sample.reference, "perplexity": reference}, "rows": found, "claims": claims}


def _plain(quantity: Quantity) -> dict[str, Any]:
    ends = {"value": quantity.value, "low": quantity.low, "high": quantity.high}
    return {**{name: value for name, value in ends.items() if math.isfinite(value)}, "unit": quantity.unit}


def run(told: argparse.Namespace) -> None:
    """Open, measure, print."""
    if told.windows < 1:
        raise UsageError("--windows must be 1 or more")
    if registry.get(told.dtype).name not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"--dtype={told.dtype}: the unrounded model is opened in fp32, bf16 or fp16")
    if not 0.0 < told.confidence < 1.0:
        raise UsageError(f"--confidence={told.confidence}: it must lie between 0 and 1")
    place = json_file(told.json, "--json") if told.json else None
    source, device, format = ModelSource(told.model), detect(), registry.get(told.dtype)
    population = Population(Settings(corpus=told.corpus, protocol=told.protocol))
    whole = population.windows(source)
    loading.require_torch_for(device, f"{source.short} in {told.dtype}")
    line = Line() if sys.stderr.isatty() else None
    try:
        loaded = loading.load(source, format, registry.backend(format), format.name, device)
        population.check(source, loaded.vocabulary)
        windows = replace(whole, drawn=whole.drawn[: told.windows])
        left_out = Layers(loaded, VARIANTS[0]).left_out
        rows = study(loaded, windows, tell=line.show if line else _lines())
    finally:
        if line:
            line.clear()
    sample = Sample(told.dtype, len(whole.drawn), whole.unit, 1.0 - told.confidence)
    used, versions = len(windows.drawn), environment.packages()
    libraries = ", ".join(
        f"{name} {versions[name]}" for name in ("torch", "compressed-tensors", "bitsandbytes") if name in versions
    )
    print(f"{source.short} in {told.dtype} on {device.name}; {libraries}")
    print(f"{used} of {len(whole.drawn)} windows of {told.corpus}, {told.protocol}; linear layers of the blocks")
    if left_out:
        print(f"left out, being no linear layers of their own: {', '.join(left_out[:3])}{_more(len(left_out) - 3)}")
    if used < min(MIN_WINDOWS, len(whole.drawn)):
        print(f"fewer than {MIN_WINDOWS} windows: intervals are wide, or there is none")
    print()
    print("\n".join(table(rows, sample)))
    print("\nWhat is often said, in points of perplexity:")
    print("\n".join(verdicts(rows, sample)))
    if place is not None:
        about = {
            "model": source.short,
            "hardware": environment.describe_hardware(device),
            "packages": versions,
            "protocol": dict(whole.identity),
            "windows": {"used": used, "total": len(whole.drawn)},
            "confidence": told.confidence,
            "left_out": list(left_out),
        }
        write_json(place, record(rows, sample, about))


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""


def _lines() -> Callable[[str], None]:
    """Progress into a pipe: a line for each variant."""
    last = ""

    def tell(text: str) -> None:
        nonlocal last
        if (name := text.partition(":")[0]) != last:
            print(name, file=sys.stderr, flush=True)
            last = name

    return tell


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 2 where it could not be measured, 130 where it was interrupted."""
    parser = argparse.ArgumentParser(prog="granularity.py", description="What the granularity of scales costs.")
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--windows", metavar="N", type=int, default=32, help="windows to score (%(default)s)")
    parser.add_argument("--protocol", metavar="NAME", default="gptq-512", help="as --quant-protocol (%(default)s)")
    parser.add_argument("--corpus", metavar="NAME", default="python-docs", help="as --quant-corpus (%(default)s)")
    parser.add_argument("--dtype", metavar="FORMAT", default="fp32", help="fp32 (default), bf16 or fp16")
    parser.add_argument("--confidence", metavar="P", type=float, default=0.99, help="of each interval (%(default)s)")
    parser.add_argument("--json", metavar="PATH", help="write all of it there too")
    try:
        run(parser.parse_args(arguments))
    except (QuantError, OSError) as error:
        print(f"granularity.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("granularity.py: interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
