"""The page of the markers: each argument with its unit, its default and what it may be."""

from __future__ import annotations

from dataclasses import Field, fields
from inspect import getdoc
from typing import Any

from pytest_quant import declarations
from pytest_quant.gates.gate import LIMITS
from pytest_quant.gates.regression import MIN_EFFECT
from pytest_quant.markers import CHOICES
from pytest_quant.schemas import GATES, Quant
from quantdocs import rst
from quantdocs.attributes import docstring

INTRODUCTION = """
Every argument is given by its name. Limits are those with a unit; a gate needs at least one of them. What a marker
leaves out comes from one farther out (class, module), then from the command line, then from the configuration.
"""


def page() -> str:
    """Every marker, ``quant`` first."""
    parts = [rst.title("Markers"), INTRODUCTION]
    for name, schema in {"quant": Quant, **GATES}.items():
        parts += [rst.title(name, "-"), rst.block("python", f"@pytest.mark.{_signature(name, schema)}")]
        parts += [f"{getdoc(schema)}\n", _arguments(name, schema)]
    return rst.page(*parts)


def _signature(name: str, schema: type) -> str:
    arguments = [f"{field.name}={field.default!r}" for field in _ordered(name, schema)]
    line = f"{name}({', '.join(arguments)})"
    return line if len(line) < 70 else "\n".join([f"{name}(", *(f"    {argument}," for argument in arguments), ")"])


def _ordered(name: str, schema: type) -> list[Field[Any]]:
    """Limits first, as people write them; of the others those that the marker itself adds."""
    limits = LIMITS.get(name, {})
    return sorted(fields(schema), key=lambda field: field.name not in limits)


def _arguments(marker: str, schema: type) -> str:
    rows = [
        (rst.code(field.name), _default(marker, field), _unit(marker, field.name), _told(marker, schema, field.name))
        for field in _ordered(marker, schema)
    ]
    if marker == "quant":
        return rst.table(("argument", "without it", "what it says"), [(row[0], row[1], row[3]) for row in rows])
    return rst.table(("argument", "without it", "unit", "what it says"), rows)


def _default(marker: str, field: Field[Any]) -> str:
    if marker == "quant":
        ini = f"quant_{field.name}"
        return f"``{ini}``" if ini in {option.ini for option in declarations.OPTIONS} else ""
    if field.name == "min_effect":
        return f"{MIN_EFFECT[marker]:g}"
    return "" if field.default is None else rst.code(repr(field.default))


def _unit(marker: str, name: str) -> str:
    kind = LIMITS[marker].get(name) if marker in LIMITS else None
    if kind is None:
        return ""
    return {"x": "ratio", "": "share"}.get(kind.symbol, kind.symbol)


def _told(marker: str, schema: type, name: str) -> str:
    told = [docstring(schema, name)]
    if (kind := LIMITS.get(marker, {}).get(name)) is not None:
        told.insert(0, "At most." if kind.smaller_is_better(name) else "At least.")
    if choices := [choice for choice in CHOICES.get(marker, {}).get(name, ()) if choice is not None]:
        told.append(f"One of {', '.join(rst.code(repr(choice)) for choice in choices)}.")
    return " ".join(filter(None, told))
