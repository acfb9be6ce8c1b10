"""Every format that this machine can run, on one model: what it costs in quality, and what it takes.

    python benchmarks/formats.py .models/SmolLM2-135M-Instruct .models/formats.json [--windows 24]
        [--checkpoint gptq=DIR ...] [--quantize] [--only nf4,gptq] [--write docs/formats.md]

Each format is measured once and kept in the JSON file, so that an interrupted run goes on where it was. Formats that
are made beforehand come from ``--checkpoint``, from the cache, or with ``--quantize`` are made (minutes to hours). A
format that cannot run here is a line with its reason. A model whose widths 128 does not divide needs some of them made
with other groups: ``pytest-quant quantize MODEL --dtype fp32 --format int4@auto-round --set group_size=64``, and so
``w4a16``; those of compressed-tensors in an environment with llm-compressor. The table goes to standard output, and
with ``--write`` between the two comments of that file. Intervals are 99 %, of the windows as a sample of all that the
corpus has.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from pytest_quant.cache import user_cache
from pytest_quant.corpora import protocols, texts
from pytest_quant.engines.loading import open_tokens
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import QuantError
from pytest_quant.formats import registry, variant
from pytest_quant.markers import gate
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Calibration, Settings
from pytest_quant.spec import ModelSpec
from pytest_quant.stats import sequence

PROTOCOL = "gptq-512"
REFERENCE = "fp32"
CACHES = ("fp32+kv-int4", "fp32+kv-int2")
ALPHA = 0.01
BEGIN, END = "<!-- table: benchmarks/formats.py -->", "<!-- end of the table -->"
PAIRS = (
    ("gptq", "int4-unpacked", "GPTQ against round to nearest, symmetric, group 64"),
    ("awq", "int4-asymmetric", "AWQ against round to nearest, asymmetric, group 64"),
    ("nf4", "int4-unpacked", "NF4 against uniform int4, blocks of 64"),
)
"""Formats of the same bits: the difference of their mean NLL, window by window."""


def measure(session: Session, spec: ModelSpec, name: str) -> dict[str, Any]:
    """One line of the table."""
    session.check(spec, name)
    started = time.perf_counter()
    handle = session.model(spec, name)
    seconds = time.perf_counter() - started
    found: dict[str, Any] = {
        "support": handle.support.status,
        "seconds": seconds,
        "bits": handle.proof.bits_per_weight,
        "bytes": handle.proof.weight_bytes,
        "held": handle.proof.held_bytes,
        "reported": int(handle.model.get_memory_footprint()),
        "kernels": dict(handle.proof.kernels),
        "parameters": dict(handle.proof.parameters),
    }
    if name == REFERENCE:
        return found
    divergence = session.measure(spec, name, gate("kl_divergence", {"max": 100.0}))
    perplexity = session.measure(spec, name, gate("perplexity_delta", {"max": 1e9}))
    found["kl"] = divergence.value
    found["nll"] = list(perplexity.scores or ())
    found["reference_nll"] = list(perplexity.reference_scores or ())
    return found


def all_windows(source: ModelSource) -> int:
    """How many windows the corpus has."""
    tokens, longest = open_tokens(source)
    drawn = protocols.draw(texts.load("python-docs"), protocols.parse(PROTOCOL), tokens, max_length=longest)
    return len(drawn.drawn)


def half(values: Any, total: int) -> float:
    values = np.asarray(values, dtype=np.float64)
    return sequence.half_width(values - values.mean(), total, ALPHA)


def table(found: dict[str, Any], total: int) -> list[str]:
    """The Markdown lines."""
    lines = [
        "| format | runs | perplexity | delta | ln ratio, nats | KL, nats | bits/weight | bytes stored | in memory | "
        "reported | load, s |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    reference = next(line["reference_nll"] for line in found.values() if "reference_nll" in line)
    base = math.exp(np.mean(reference))
    for name, line in found.items():
        if "skip" in line:
            continue
        if name == REFERENCE:
            quality = f"{base:.3f} | | | "
        else:
            difference = np.subtract(line["nll"], line["reference_nll"])
            perplexity = math.exp(np.mean(line["nll"]))
            ratio = f"{difference.mean():+.4f} ± {half(difference, total):.4f}"
            quality = f"{perplexity:.3f} | {perplexity - base:+.3f} | {ratio} | {line['kl']:.4f}"
        size = f"{line['bits']:.2f} | {line['bytes']:,} | {line['held']:,} | {line['reported']:,}"
        lines.append(f"| `{name}` | {line['support']} | {quality} | {size} | {line['seconds']:.1f} |")
    skipped = [(name, line["skip"]) for name, line in found.items() if "skip" in line]
    if skipped:
        lines += ["", "Not on this machine:", ""]
        lines += [f"- `{name}`: {reason}" for name, reason in skipped]
    return lines


def comparisons(found: dict[str, Any], total: int) -> list[str]:
    """Formats of the same bits against each other."""
    lines = []
    for one, other, what in PAIRS:
        if {one, other} <= {name for name, line in found.items() if "nll" in line}:
            difference = np.subtract(found[one]["nll"], found[other]["nll"])
            width = half(difference, total)
            word = "better" if difference.mean() + width < 0 else "worse" if difference.mean() > width else "undecided"
            lines.append(f"- {what}: {difference.mean():+.4f} ± {width:.4f} nats, {word}")
    return lines


def write(target: Path, lines: list[str]) -> None:
    text = target.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    target.write_text("\n".join([before + BEGIN, "", *lines, "", END + after]), encoding="utf-8")


def main(told: argparse.Namespace) -> None:
    registry.add(variant("int4-unpacked", "int4-asymmetric", symmetric=False))
    found: dict[str, Any] = json.loads(told.results.read_text()) if told.results.is_file() else {}
    source = ModelSource(str(told.model))
    places = tuple(sorted(tuple(text.split("=", 1)) for text in told.checkpoint))
    settings = Settings(
        protocol=PROTOCOL,
        max_windows=told.windows,
        full=True,
        cache_dir=user_cache(),
        checkpoints=places,
        quantize=told.quantize,
        calibration=Calibration(samples=32, tokens=512) if told.quantize else None,
    )
    session = Session(settings, Quiet())
    spec = ModelSpec(source, REFERENCE, require_native=False)
    names = told.only.split(",") if told.only else [*registry.formats(), *CACHES]
    for name in names:
        if "skip" not in found.get(name, {"skip": ""}) and not told.only:
            continue
        try:
            found[name] = measure(session, spec, name)
            said = f"{found[name]['bits']:.2f} bits, {found[name]['seconds']:.1f} s"
        except QuantError as error:
            found[name] = {"skip": str(error)}
            said = str(error)
        print(f"{name}: {said}", flush=True)
        session.models.keep({(spec, REFERENCE)})
        gc.collect()
        told.results.write_text(json.dumps(found))
    found = {name: found[name] for name in [*registry.formats(), *CACHES] if name in found}
    total = all_windows(source)
    lines = [*table(found, total), "", *comparisons(found, total)]
    print("\n".join(lines))
    if told.write:
        write(told.write, lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("results", type=Path)
    parser.add_argument("--windows", type=int, default=24)
    parser.add_argument("--checkpoint", metavar="FORMAT=PLACE", action="append", default=[])
    parser.add_argument("--quantize", action="store_true")
    parser.add_argument("--only", metavar="A,B", help="measure these again")
    parser.add_argument("--write", metavar="FILE", type=Path)
    main(parser.parse_args())
