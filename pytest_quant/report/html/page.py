"""The page: one file, no network, the same bytes for the same records."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

from pytest_quant import __version__, atomic
from pytest_quant.history.series import History
from pytest_quant.report.html import layers, narrowing, rooflines, timeline, tradeoff, view
from pytest_quant.report.html.drawing import Picture, Plot, draw
from pytest_quant.report.html.told import PROOF_HEADERS, Page
from pytest_quant.report.standing import is_broken
from pytest_quant.visible import visible

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Section:
    """Pictures of one kind."""

    name: str
    """Its anchor."""
    title: str
    lead: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]


def write(place: Path, records: Sequence[Record], history: History | None = None) -> None:
    """Write the page of run records in one piece. :class:`OSError` where the system refuses, and
    :class:`~pytest_quant.errors.QuantError` for a record that is not as docs/run-record.md says."""
    atomic.replace(place, render(records, history).encode("utf-8"), prefix=place.name)


def render(records: Sequence[Record], history: History | None = None) -> str:
    """The page as text."""
    import jinja2
    from markupsafe import Markup

    told = view.page(records, __version__)
    try:
        sections = tuple(_sections(told, history))
    except view.DAMAGE as error:
        raise view.damaged("what the pictures are made of", error) from error
    style, script = _file("style.css"), _file("script.js")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined, finalize=_shown
    )
    return environment.from_string(_file("page.html.jinja")).render(
        page=told,
        sections=sections,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        safe=Markup,
        proof_headers=PROOF_HEADERS,
    )


def _sections(told: Page, history: History | None) -> Iterable[Section]:
    drawn = _Drawn()
    found = [(run.hardware, run.record["measurements"]) for run in told.runs]
    many = len(found) > 1
    plots = []
    for run, (hardware, measurements) in zip(told.runs, found, strict=True):
        spoilt = [is_broken(each, run.record.get("failed")) for each in measurements]
        plots += _of(hardware, tradeoff.plots(measurements, spoilt), many)
    yield drawn.section(
        "tradeoff",
        "What quality costs",
        "Each format by what it loses, against the memory that it takes and the speed that it gains. A tinted region "
        "keeps every limit.",
        plots,
    )
    stories = [narrowing.stories(measurements) for _, measurements in found]
    all_stories = [
        (hardware, story) for (hardware, _), (told_here, _) in zip(found, stories, strict=True) for story in told_here
    ]
    notes = [
        f"On {hardware}: {note}" if many else note
        for (hardware, _), (_, untold) in zip(found, stories, strict=True)
        for note in untold
    ]
    if len(all_stories) > narrowing.MOST:
        notes.append(f"{len(all_stories) - narrowing.MOST} more gates are in the table of verdicts only.")
    yield drawn.section(
        "decisions",
        "How each gate decided",
        "The interval for the whole text after each window, until it lay on one side of the limit. A run looks from 8 "
        "windows on.",
        [
            plot
            for hardware, story in all_stories[: narrowing.MOST]
            for plot in _of(hardware, narrowing.plots([story]), many)
        ],
        notes,
    )
    yield drawn.section(
        "layers",
        "What each layer costs",
        "Each layer quantized alone, by its depth: the first block is on the left. The worst are marked.",
        [plot for hardware, measurements in found for plot in _of(hardware, layers.plots(measurements), many)],
    )
    roofs = [rooflines.plots(measurements, hardware) for hardware, measurements in found]
    yield drawn.section(
        "roofline",
        "How near the hardware's bound",
        "Each speed under what the device allows at best. A dotted line leads from a point to its bound.",
        [plot for plots, _ in roofs for plot in plots],
        [note for _, unknown in roofs for note in unknown],
    )
    if history is not None:
        series, left_out = timeline.plots(history)
        notes = list(history.damaged)
        if left_out:
            notes.append(f"{left_out} series not drawn: of a single run, or beyond the first {timeline.MOST}.")
        yield drawn.section(
            "history",
            "Across commits",
            "Each measurement over the runs that were kept. A marked commit is the first that moved it beyond noise.",
            series,
            notes,
        )


def _of(hardware: str, plots: Sequence[Plot], many: bool) -> list[Plot]:
    """The plots of one run, named after its hardware as the rest of the page names it where there are ``many``."""
    return [_titled(plot, f"{plot.title}, on {hardware}") if many else plot for plot in plots]


def _titled(plot: Plot, title: str) -> Plot:
    return replace(plot, title=title, table=replace(plot.table, caption=title))


class _Drawn:
    """Draws pictures and numbers them, so that no two ids of a page are the same."""

    def __init__(self) -> None:
        self._count = 0
        self._titles: Counter[str] = Counter()

    def section(self, name: str, title: str, lead: str, plots: Sequence[Plot], notes: Sequence[str] = ()) -> Section:
        pictures = []
        for plot in plots:
            self._count += 1
            self._titles[plot.title] += 1
            if (again := self._titles[plot.title]) > 1:  # of several tests
                plot = _titled(plot, f"{plot.title} ({again})")
            pictures.append(draw(plot, f"p{self._count}"))
        return Section(name, title, lead, tuple(pictures), tuple(notes))


def _shown(value: object) -> object:
    """What the template writes of a value; what is markup already is left alone."""
    return visible(value) if type(value) is str else value


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """As a content security policy names an inline text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")
