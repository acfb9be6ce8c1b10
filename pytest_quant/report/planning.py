"""A plan as plain text, at most 100 columns wide. Pure: nothing is detected or predicted here."""

from __future__ import annotations

import json
import math
from dataclasses import replace

from pytest_quant.hardware import Device
from pytest_quant.metrics.cost import dollars
from pytest_quant.planning.grades import tolerance
from pytest_quant.planning.planner import Plan
from pytest_quant.planning.predict import Machine, Prediction
from pytest_quant.report.figures import shown_bytes
from pytest_quant.report.wrapping import filled
from pytest_quant.roofline.bound import Bound, scaled

_WORDS = {"native": "native", "dequantized": "dequant"}
_LEGEND = (
    "native: the units multiply in this type. dequant: unpacked or emulated, and multiplied in this type. unpacked: "
    "the library makes wide weights of the stored ones first. total: with activations and runtime, of each device. "
    "decode: one step of the whole batch, prefill: its prompts; b: bandwidth limits it, c: compute does, ?: as far as "
    "is known."
)
_EXPERTS = (
    "experts: bytes read are those that a batch is expected to touch where the router prefers none; one that touches "
    "fewer may be faster"
)
_MARGIN = 1.02
"""What a suggested budget leaves above the prediction."""


def render(plan: Plan, price: float | None = None) -> str:
    """The whole plan; ``price`` is dollars an hour for one device."""
    parts = [_head(plan), _nominal(plan), _table(plan, price), _out(plan), _refused(plan), _advice(plan, price)]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def describe(device: Device, bandwidth: float | None = None, count: int = 1) -> str:
    """So many of the devices that are there, the memory of each and its bandwidth (or one that was given or measured),
    in one line."""
    rate = device.bandwidth if bandwidth is None else bandwidth
    memory = "unknown memory" if device.memory_bytes is None else shown_bytes(device.memory_bytes)
    speed = "unknown bandwidth" if rate is None else f"{rate / 1e9:,.0f} GB/s"
    several = "" if device.count == count == 1 else "one of " if count == 1 else f"{count} of "
    there = device if count <= device.count else replace(device, count=1)  # not so many are here
    return f"{several}{there}: {memory}, {speed}{' each' if count > 1 else ''}"


def gates(plan: Plan) -> list[str]:
    """Marker lines that would verify the recommended format: limits to begin with. None for several devices: a run of
    this plugin uses one."""
    row, question = plan.advice.chosen, plan.question
    if row is None or plan.machine.count > 1:
        return []
    marks = [
        f"@pytest.mark.quant({_model(plan)}, formats=[{_quoted(row.name)}], reference={_quoted(question.compute.name)})"
    ]
    if row.format.quantized:
        marks.append(f"@pytest.mark.perplexity_delta(max={tolerance(row.format):g})")
        wanted = _half_of_the_gain(plan, row)
        if wanted is not None:
            batch = "" if row.load.batch_size == 1 else f", batch_size={row.load.batch_size}"
            marks.append(f'@pytest.mark.throughput_ratio(min={wanted:g}, phase="decode"{batch})')
    marks.append(f"@pytest.mark.memory_budget(max_gb={_rounded_up(_MARGIN * row.weight_bytes / 1e9):g})")
    return marks


def _model(plan: Plan) -> str:
    """What the marker is told of the model."""
    source = plan.question.source
    said = f"model={_quoted(source.name or '...')}"
    if source.revision is not None:
        said += f", revision={_quoted(source.revision)}"
    return f"{said}, trust_remote_code=True" if source.trust_remote_code else said


def _quoted(text: str) -> str:
    """As a string of Python: its escapes are JSON's."""
    return json.dumps(text, ensure_ascii=False)


def _head(plan: Plan) -> list[str]:
    question, machine, load = plan.question, plan.machine, plan.question.load
    count = f"{question.shape.parameters:,} parameters"
    title = f"{question.source.name}, {count}" if question.source.name else count
    device = machine.device
    lines = filled(f"{title}, on {describe(device, machine.rates.bandwidth, machine.count)}", "", "  ")
    lines += [f"  {text}" for text in _sources(machine)]
    lines += filled(
        f"batch of {load.batch_size}, {load.context} tokens of context, of which {load.prompt} are the prompt; "
        f"what is not quantized is in {question.compute.name}",
        "  ",
    )
    if machine.count > 1:
        lines += filled(
            "ideal tensor parallelism: weights, KV cache and work are split evenly, and nothing is exchanged",
            "  ",
        )
    if not machine.here:
        lines += [text for note in device.notes for text in filled(note, "  ")]
    if any(row.expected for row in plan.rows):
        return [*lines, "  Every time is a bound, for as many experts as a batch is expected to touch."]
    return [*lines, "  Every time is a bound: no run can be faster."]


def _sources(machine: Machine) -> list[str]:
    rates = machine.rates
    return [f"bandwidth: {rates.bandwidth_source}", f"units: {rates.operations_source}"]


def _nominal(plan: Plan) -> list[str]:
    if not plan.nominal:
        return []
    lines = ["Bits alone: no scales, nothing left wide, no KV cache", "  format     bytes  ms a token"]
    for row in plan.nominal:
        time = "-" if row.seconds is None else f"{1e3 * row.seconds:,.1f}"
        lines.append(f"  {row.name.ljust(6)}{scaled(row.bytes).rjust(10)}{time.rjust(12)}")
    return lines


def _table(plan: Plan, price: float | None) -> list[str]:
    if not plan.rows:
        return ["Formats: none can run"]
    heads = ["format", "units", "weights", "KV", "total", "fits", "decode", "prefill", "tokens/s"]
    heads += ["$/Mtok"] if price is not None else []
    cells = [[*_cells(row), *([_dollars(plan, row, price)] if price is not None else [])] for row in plan.rows]
    widths = [max(len(line[place]) for line in (heads, *cells)) for place in range(len(heads))]
    lines = ["Formats that can run, bytes in GB, time in ms"]
    for line in (heads, *cells):
        left = [text.ljust(width) for text, width in zip(line[:2], widths[:2], strict=True)]
        right = [text.rjust(width) for text, width in zip(line[2:], widths[2:], strict=True)]
        lines.append("  " + " ".join([*left, *right]))
    experts = filled(_EXPERTS, "  ") if any(row.expected for row in plan.rows) else []
    return [*lines, *filled(_LEGEND, "  "), *experts]


def _cells(row: Prediction) -> list[str]:
    memory = row.memory
    word = "unpacked" if row.unpacked else _WORDS[row.support.status]
    fits = {True: "yes", False: "no", None: "?"}[memory.fits]
    speed = row.tokens_per_second
    return [
        row.name,
        f"{word} {row.numeric}",
        _gb(row.weight_bytes),
        "-" if memory.kv is None else _gb(memory.kv),
        _gb(memory.total),
        fits,
        _time(row.decode),
        _time(row.prefill),
        "-" if speed is None else f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}",
    ]


def _out(plan: Plan) -> list[str]:
    """What runs, but not so; and what cannot be told."""
    out = [*plan.advice.broken, *((name, f"cannot be told: {why}") for name, why in plan.advice.open)]
    return ["Out", *_named(out)] if out else []


def _refused(plan: Plan) -> list[str]:
    lines = [(name, f"{reason.found}; needed: {reason.needed}") for name, reason in plan.refused]
    return ["Cannot run", *_named(lines)] if lines else []


def _advice(plan: Plan, price: float | None) -> list[str]:
    chosen = plan.advice.chosen
    if chosen is None:
        none = "No format meets this, not even at best" if plan.advice.judged else "It cannot be told what meets this"
        return [none, *(text for reason in plan.advice.reasons for text in filled(reason, "  - ", "    "))]
    need = plan.question.need
    lines = [f"Recommended for {need.goal}: {chosen.name}"]
    lines += [text for reason in plan.advice.reasons for text in filled(reason, "  - ", "    ")]
    if price is not None:
        lines += filled(_cost(plan, chosen, price), "  - ", "    ")
    if plan.machine.count > 1:
        several = "These are predictions, and no gates verify them: tests of this plugin run a model on one device."
        return [*lines, *filled(several, "  ")]
    lines += filled("These are predictions. What would verify them, with limits to begin with:", "  ")
    return [*lines, *(f"    {mark}" for mark in gates(plan))]


def _cost(plan: Plan, row: Prediction, price: float) -> str:
    count = plan.machine.count
    generated, read = row.decode, row.prefill
    tokens = row.load.batch_size * row.load.prompt
    each = "" if count == 1 else f" for each of {count} devices"
    said = f"cost at ${price:g} an hour{each}, at the bound: "
    if generated is None:
        return f"{said}not known, as no speed is"
    said += f"${_money(dollars(row.load.batch_size / generated.seconds, price * count))} a million tokens"
    if read is not None:
        said += f" generated, ${_money(dollars(tokens / read.seconds, price * count))} a million of prompts"
    return said


def _dollars(plan: Plan, row: Prediction, price: float) -> str:
    speed = row.tokens_per_second
    return "-" if speed is None else _money(dollars(speed, price * plan.machine.count))


def _half_of_the_gain(plan: Plan, row: Prediction) -> float | None:
    """Of the speed-up that the bounds allow, rounded down to a tenth; ``None`` where there is next to none."""
    reference = next((other for other in plan.rows if other.name == plan.question.compute.name), None)
    if reference is None or reference.decode_seconds is None or row.decode_seconds is None:
        return None
    best = reference.decode_seconds / row.decode_seconds
    return math.floor(5.0 * (1.0 + best)) / 10.0 if best >= 1.2 else None


def _rounded_up(number: float) -> float:
    """To three digits."""
    scale = 10.0 ** (2 - math.floor(math.log10(number)))
    return math.ceil(number * scale) / scale


def _money(amount: float) -> str:
    return f"{amount:,.2f}" if amount >= 0.1 else f"{amount:.2g}"


def _gb(count: float) -> str:
    number = count / 1e9
    return f"{number:,.1f}" if number >= 10 else f"{number:.2f}" if number >= 0.1 else f"{number:.4f}"


def _time(limit: Bound | None) -> str:
    if limit is None:
        return "-"
    number = 1e3 * limit.seconds
    shown = f"{number:,.0f}" if number >= 1000 else f"{number:.1f}" if number >= 10 else f"{number:.3g}"
    return f"{shown} {limit.regime[0]}{'' if limit.ridge else '?'}"


def _named(pairs: list[tuple[str, str]]) -> list[str]:
    """Each name with its text; several names with one text share it."""
    texts: dict[str, list[str]] = {}
    for name, text in pairs:
        texts.setdefault(text, []).append(name)
    return [line for text, names in texts.items() for line in filled(f"{', '.join(names)}: {text}", "  ", "    ")]
