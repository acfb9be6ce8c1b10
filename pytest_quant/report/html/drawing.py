"""Pictures: an altair chart becomes an SVG that follows the page's theme and speaks to a screen reader.

Colours are the page's own variables (style.css), which vega passes on unchanged. Marks that stand for something that
was measured carry a description; those can be reached with the keyboard.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

from pytest_quant.errors import QuantError
from pytest_quant.visible import all_visible, visible

SVG = "http://www.w3.org/2000/svg"
INK, FAINT, GRID, ACCENT, BAD, ALLOWED = (
    f"var(--{name})" for name in ("ink", "muted", "grid", "accent", "bad", "allowed")
)
SERIES = tuple(f"var(--series-{number})" for number in range(1, 7))
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")
_DROPPED = ("style", "pointer-events", "class")


@dataclass(frozen=True)
class Table:
    """The data of a picture, for those who cannot see it."""

    caption: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Plot:
    """What a picture shows, before it is drawn."""

    title: str
    description: str
    """What is to be seen, in a sentence or two."""
    chart: Any
    """An altair chart."""
    table: Table
    wide: bool = False


@dataclass(frozen=True)
class Picture:
    """A drawn picture."""

    title: str
    description: str
    svg: str
    table: Table
    wide: bool


def values(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Rows as inline data of a chart."""
    import altair

    return altair.Data(values=[dict(row) for row in rows])


def draw(plot: Plot, name: str) -> Picture:
    """Draw a picture; ``name`` begins every id in it, so that several may stand in one page."""
    import vl_convert

    spec = {**all_visible(plot.chart.to_dict(validate=False)), "config": _config()}
    try:
        drawn = vl_convert.vegalite_to_svg(json.dumps(spec), vl_version=_version(spec))
    except ValueError as error:
        raise QuantError(f"{plot.title}: cannot be drawn: {str(error).splitlines()[0]}") from error
    return Picture(plot.title, plot.description, accessible(drawn, plot, name), plot.table, plot.wide)


def accessible(svg: str, plot: Plot, name: str) -> str:
    """The same drawing with a title and a description, without inline styles, with ids of its own, and with
    descriptions of axes and bands hidden from screen readers (the table has their words)."""
    ElementTree.register_namespace("", SVG)
    root = ElementTree.fromstring(svg)
    ids = {found.get("id"): f"{name}-{place}" for place, found in enumerate(_with_id(root))}
    for element in root.iter():
        _clean(element, ids)
    width, height = root.get("width", "0"), root.get("height", "0")
    for attribute in ("width", "height"):
        root.attrib.pop(attribute, None)
    root.set("viewBox", root.get("viewBox") or f"0 0 {width} {height}")
    root.set("role", "graphics-document")
    root.set("aria-labelledby", f"{name}-title")
    root.set("aria-describedby", f"{name}-desc")
    for place, (tag, text) in enumerate((("title", plot.title), ("desc", plot.description))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = visible(text)
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _with_id(root: ElementTree.Element) -> list[ElementTree.Element]:
    return [element for element in root.iter() if element.get("id")]


def _clean(element: ElementTree.Element, ids: Mapping[str | None, str]) -> None:
    for attribute in _DROPPED:
        element.attrib.pop(attribute, None)
    if element.get("id"):
        element.set("id", ids[element.get("id")])
    for attribute, value in list(element.attrib.items()):
        if (found := re.fullmatch(r"url\(#(.+)\)", value)) and found[1] in ids:
            element.set(attribute, f"url(#{ids[found[1]]})")
    if element.get("aria-roledescription") == "point":
        element.set("tabindex", "0")
        element.set("role", "img")
        element.attrib.pop("aria-roledescription")
        title = ElementTree.SubElement(element, f"{{{SVG}}}title")
        title.text = element.get("aria-label")
    elif element.tag != f"{{{SVG}}}svg":
        for attribute in ("role", "aria-roledescription", "aria-label"):
            element.attrib.pop(attribute, None)
    if element.tag == f"{{{SVG}}}text":
        element.set("aria-hidden", "true")


def _version(spec: Mapping[str, Any]) -> str:
    """The grammar that altair writes, as vl_convert names it: 6.1 of a schema v6.1.0."""
    found = re.search(r"/v(\d+)\.(\d+)", str(spec.get("$schema", "")))
    return f"{found[1]}.{found[2]}" if found else ""


def _config() -> dict[str, Any]:
    label = {"labelColor": FAINT, "titleColor": INK, "labelFontSize": 11, "titleFontSize": 12, "titleFontWeight": 500}
    return {
        "background": "transparent",
        "font": "sans-serif",
        "aria": True,
        "padding": 4,
        "view": {"stroke": None},
        "axis": {
            **label,
            "gridColor": GRID,
            "domainColor": FAINT,
            "tickColor": FAINT,
            "labelPadding": 4,
            "titlePadding": 8,
            "tickSize": 4,
            "aria": False,
        },
        "legend": {**label, "orient": "bottom", "symbolSize": 70, "aria": False},
        "text": {"color": INK, "fontSize": 12, "aria": False},
        "rule": {"color": INK, "aria": False},
        "rect": {"aria": False},
        "line": {"aria": False},
        "area": {"aria": False},
        "header": {"labelColor": INK, "labelFontSize": 12, "title": None},
    }
