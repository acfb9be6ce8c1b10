"""A diagnosis as plain text, at most 100 columns wide. Pure: nothing is detected here."""

from __future__ import annotations

from pytest_quant.doctor import LIBRARY, Diagnosis, Library, Line, NotUsed
from pytest_quant.report.figures import shown_bytes
from pytest_quant.report.wrapping import filled

_VERDICTS = {"native": "runs natively", "dequantized": "runs dequantized", "unsupported": "cannot run"}
_VERDICT = max(map(len, _VERDICTS.values()))


def render(found: Diagnosis, *, verbose: bool = False) -> str:
    """The hardware, the libraries, every format with its reason, and what is not used. ``verbose``: with sources."""
    lines = [*_hardware(found), ""]
    if found.here:
        lines += ["Libraries", *_libraries(found), ""]
    lines += [*_formats(found, verbose), ""]
    if found.broken:
        lines += ["Broken backends of other packages: no test can run until they are mended"]
        lines += [text for message in found.broken for text in filled(message, "  ")]
        lines.append("")
    lines += ["Not used, and what to use instead"]
    lines += [text for way in found.not_used for text in _way(way, found.here, verbose)]
    return "\n".join(lines) + "\n"


def _hardware(found: Diagnosis) -> list[str]:
    device = found.device
    memory = "unknown memory" if device.memory_bytes is None else shown_bytes(device.memory_bytes)
    bandwidth = "unknown bandwidth" if device.bandwidth is None else f"{device.bandwidth / 1e9:,.0f} GB/s"
    features = f", {' '.join(sorted(device.features))}" if device.features else ""
    driver = f", driver {device.driver}" if device.driver else ""
    lines = filled(f"{device}: {memory}, {bandwidth}{features}{driver}", "", "  ")
    lines += [text for note in device.notes for text in filled(note, "  ", "  ")]
    if not found.here:
        lines += ["  Its libraries are not judged: they are not here."]
    if found.matrix != "corrected":
        lines += [f"  Support matrix: {found.matrix}"]
    return lines


def _libraries(found: Diagnosis) -> list[str]:
    names = max((len(library.name) for library in found.libraries), default=0)
    versions = max((len(library.version or "-") for library in found.libraries), default=0)
    backends = {line.backend for line in found.lines}
    lines = []
    for library in found.libraries:
        head = f"  {library.name.ljust(names)}  {(library.version or '-').ljust(versions)}  "
        lines += filled(_needed(library, backends), head, " " * len(head))
    return lines


def _needed(library: Library, backends: set[str]) -> str:
    if not library.backends:
        return f"optional: {library.purpose}"
    everyone = backends <= set(library.backends) and len(backends) > 1
    who = "for every format" if everyone else f"for {', '.join(library.backends)}"
    return f"{who}; needed: {library.name}{library.wanted}" if library.wanted else who


def _formats(found: Diagnosis, verbose: bool) -> list[str]:
    counts = {status: sum(line.status == status for line in found.lines) for status in _VERDICTS}
    summary = "{native} run natively, {dequantized} run dequantized, {unsupported} cannot run".format(**counts)
    name = max((len(line.format) for line in found.lines), default=0)
    return [f"Formats: {summary}", *(text for line in found.lines for text in _format(line, name, verbose))]


def _format(line: Line, name: int, verbose: bool) -> list[str]:
    head = f"  {line.format.ljust(name)}  {_VERDICTS[line.status].ljust(_VERDICT)}  "
    margin = " " * len(head)
    made = "from a checkpoint: " if line.from_checkpoint and line.runs else ""
    lines = filled(f"{made}{line.reason}", head, margin)
    if line.remedy and (verbose or not line.runs):
        words = "to change it" if line.cause == LIBRARY else "needs" if not line.runs else "natively with"
        lines += filled(f"{words}: {line.remedy}", margin, margin + "  ")
    if verbose:
        lines += filled(f"source: {line.source}", "      ", "        ")
    return lines


def _way(way: NotUsed, here: bool, verbose: bool) -> list[str]:
    there = f" ({way.distribution} {way.version} is installed)" if here and way.version else ""
    lines = filled(f"{way.name}{there}: {way.why}", "  ", "    ")
    lines += filled(f"works with: {way.works_with}; use {way.instead}", "    ", "      ")
    return lines + (filled(f"source: {way.source}", "    ", "      ") if verbose else [])
