"""A scan of layers as text: the worst ones, sums by kind and depth, and what to keep wide."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from itertools import pairwise

from pytest_quant import pasting
from pytest_quant.errors import Unsupported
from pytest_quant.formats import registry
from pytest_quant.metrics.evidence import perplexity
from pytest_quant.metrics.keeping import Kept
from pytest_quant.metrics.sensitivity import Group, Row, Scan
from pytest_quant.report.wrapping import WIDTH, filled
from pytest_quant.sizes import shown_bytes
from pytest_quant.stats.sequence import Estimate

_BARS = "▁▂▃▄▅▆▇█"


def render(scan: Scan, top: int) -> str:
    """The scan with its ``top`` worst layers."""
    windows = f"{scan.sample.used} window" + ("s" if scan.sample.used > 1 else "")
    what = f"{scan.format}{_smaller_groups(scan)}"
    lines = [f"{scan.model}, one {scan.of} at a time in {what}, against {scan.reference}; {windows}"]
    lines += filled(f"all of {scan.format}: {_whole(scan)}", "", "  ")
    if any(row.text is not None for row in scan.rows):
        lines += filled(f"intervals: of the whole text, {1.0 - scan.sample.alpha:.0%} for each by itself", "", "  ")
    lines += ["", *_table(scan.rows[:top], scan.of)]
    if len(scan.rows) > top:
        rest = scan.rows[top:]
        lines.append(f"{len(rest)} more, KL {math.fsum(row.kl.value for row in rest):.3g} in all")
    if len(scan.kinds) > 1:
        lines += ["", *_groups(scan)]
    if len(scan.depths) > 1:
        lines += ["", *_depths(scan.depths)]
    if scan.left_out:
        lines += ["", *filled(_left_out(scan.left_out), "", "  ")]
    if not scan.reused:
        lines += [
            "",
            "Each run was a whole one: the blocks before a layer could not be taken from the reference's run.",
        ]
    return "\n".join(lines)


def render_kept(scan: Scan, kept: Kept) -> str:
    """What to keep wide for a budget, with what was measured of it and lines to paste."""
    mixed = f"{_nats(kept.nats)}, KL {_kl(kept.kl)}, perplexity {_number(kept.perplexity)}"
    budget = f"{kept.budget} ({kept.limit:.4g} nats)" if kept.budget.max_nats is None else str(kept.budget)
    if not kept.holds:
        return "\n".join(
            filled(f"The budget of {budget} is not kept even with all {len(scan.parts)} kept wide: {mixed}.", "", "  ")
        )
    if not kept.rows:
        return f"{scan.format} keeps the budget of {budget} as it is: {mixed}. Nothing needs to stay wide."
    cost = "" if kept.bytes_back is None else f", for {shown_bytes(kept.bytes_back)} more"
    what = scan.of if len(kept.rows) == 1 else f"{scan.of}s"
    said = f"Keep {len(kept.rows)} {what} wide{cost}, and the rest keeps the budget of {budget}: {mixed}, measured."
    return "\n".join([*filled(said, "", "  "), *_tried(kept), "", *_to_paste(scan, kept)])


def patterns(scan: Scan, kept: Kept) -> list[str]:
    """Exclusions that mean exactly the kept modules: the last part of a name where all that end so are kept, or a whole
    block's; full names where the scan was of some layers only, or where a block has matrices that were not scanned."""
    if not scan.complete:
        return [name for row in kept.rows for name in row.layer.modules]
    if scan.of == "block":
        return [pattern for row in kept.rows for pattern in _of_block(scan, row)]
    names = {row.layer.name for row in kept.rows}
    found: list[str] = []
    for row in kept.rows:
        leaf = row.layer.name.rpartition(".")[2]
        alike = {other.layer.name for other in scan.rows if other.layer.name.endswith(f".{leaf}")}
        pattern = leaf if len(alike) > 1 and alike <= names else row.layer.name
        if pattern not in found:
            found.append(pattern)
    return found


def _of_block(scan: Scan, row: Row) -> Sequence[str]:
    more = any(name.startswith(f"{row.layer.name}.") for name in scan.left_out)
    return row.layer.modules if more else [f"{row.layer.name}.*"]


def _tried(kept: Kept) -> list[str]:
    """What was measured, in each order from none kept on."""
    said = []
    for order in ("kl", "nats"):
        mixes = sorted((each.kept, each.nats) for each in kept.tried if each.order == order)
        if mixes:
            by = {"kl": "KL", "nats": "nats"}[order]
            said.append(f"sorted by {by}, {'; '.join(f'{count} kept {nats:+.4f}' for count, nats in mixes)}")
    return filled(f"Tried, in nats: {'. And '.join(said)}.", "", "  ")


def _smaller_groups(scan: Scan) -> str:
    if not scan.smaller_groups:
        return ""
    return f" ({' and '.join(map(str, scan.smaller_groups))} where {scan.group_size} does not fit)"


def _to_paste(scan: Scan, kept: Kept) -> list[str]:
    found = patterns(scan, kept)
    if scan.format not in registry.formats():  # a rounding, which no library makes
        return ["keep:", *(f"  {name}" for name in found)]
    format = registry.get(scan.format)
    call = pasting.mixed(format, found, width=WIDTH - 12)
    lines = ["conftest.py:", "", "from pytest_quant.formats import variant", "", "", "def pytest_quant_formats():"]
    if len(call) == 1:
        lines.append(f"    return [{call[0]}]")
    else:
        lines += ["    return [", *(f"        {line}" for line in call[:-1]), f"        {call[-1]},", "    ]"]
    modules = [name for row in kept.rows for name in row.layer.modules]
    lines += ["", "the library:", *_library(scan, modules)]
    if format.from_checkpoint:
        command = [shlex.join(words) for words in pasting.quantize(scan.source, format, found)]
        lines += ["", " \\\n  ".join(command)]
    return lines


def _library(scan: Scan, names: Sequence[str]) -> list[str]:
    backend = registry.backend(registry.get(scan.format))
    try:
        return [backend.excluding(names) if scan.head is None else backend.excluding(names, scan.head)]
    except Unsupported as reason:
        return filled(f"has no word for it: {reason}", "", "  ")


def _whole(scan: Scan) -> str:
    if not scan.whole.finite:
        return "NaN or infinity"
    base = scan.sample.reference_perplexity
    value = perplexity(math.log(base) + scan.whole.nats.value)
    parts = math.fsum(row.nats.value for row in scan.parts)
    return (
        f"{_nats(scan.whole.nats)}, KL {_kl(scan.whole.kl)}, perplexity {_number(base)} -> {_number(value)}; the "
        f"{len(scan.parts)} {scan.of}s by themselves add up to {parts:+.4f} nats"
    )


def _table(rows: Sequence[Row], of: str) -> list[str]:
    cells = [(of.upper(), "KIND", "KL", "NATS", "SAVED")]
    for row in rows:
        saved = "" if row.layer.bytes_saved is None else shown_bytes(row.layer.bytes_saved)
        cells.append((row.layer.name, row.layer.kind, *_cost(row), saved))
    return _aligned(cells, left=2)


def _cost(row: Row) -> tuple[str, str]:
    """KL and nats of a row, each with its interval of the whole text where there is one."""
    if not row.finite:
        return "NaN", "NaN"
    nats, kl = row.text or (row.nats, row.kl)
    return f"{_short(row.kl.value)}{_ends(kl, '.3g')}", f"{row.nats.value:+.4f}{_ends(nats, '+.4f')}"


def _groups(scan: Scan) -> list[str]:
    whole = math.fsum(group.kl for group in scan.kinds)
    cells = [("BY KIND", "LAYERS", "WEIGHTS", "KL", "NATS", "OF KL")]
    for group in scan.kinds:
        share = f"{group.kl / whole:.0%}" if whole > 0 and math.isfinite(whole) else ""
        cells.append(
            (group.name, str(group.layers), f"{group.weights:,}", _short(group.kl), f"{group.nats:+.4f}", share)
        )
    return _aligned(cells, left=1)


def _depths(depths: Sequence[Group]) -> list[str]:
    """A bar for each block, and the thirds of the model."""
    highest = max((group.kl for group in depths if math.isfinite(group.kl)), default=0.0)
    bars = "".join(_bar(group.kl, highest) for group in depths)
    lines = [f"BY DEPTH  {bars}  KL of blocks {depths[0].name} to {depths[-1].name}, highest {_short(highest)}"]
    if len(depths) >= 3:
        ends = [0, math.ceil(len(depths) / 3), math.ceil(2 * len(depths) / 3), len(depths)]
        sums = [math.fsum(group.kl for group in depths[a:b]) for a, b in pairwise(ends)]
        names = ("first", "middle", "last")
        lines.append(f"  thirds: {', '.join(f'{name} {_short(kl)}' for name, kl in zip(names, sums, strict=True))}")
    return lines


def _bar(value: float, highest: float) -> str:
    if not math.isfinite(value):
        return "!"
    return _BARS[min(int(value / highest * len(_BARS)), len(_BARS) - 1)] if highest > 0 else _BARS[0]


def _left_out(names: Sequence[str]) -> str:
    some = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    return f"Not scanned: {len(names)} matrices that are no linear layers of their own: {some}"


def _aligned(cells: Sequence[Sequence[str]], left: int) -> list[str]:
    """Columns of one width each, the first ``left`` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if place < left else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    ]


def _nats(found: Estimate) -> str:
    if not math.isfinite(found.value):
        return "NaN nats"
    return f"{found.value:+.4f} nats"


def _kl(found: Estimate) -> str:
    return _short(found.value)


def _ends(found: Estimate, digits: str) -> str:
    return "" if found.low == found.high else f" [{found.low:{digits}}, {found.high:{digits}}]"


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "NaN"


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "NaN"
