"""What each layer costs by itself, by its depth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.report.html.drawing import ACCENT, BAD, Plot, Table, values
from pytest_quant.report.html.view import number
from pytest_quant.report.naming import shown_metric
from pytest_quant.sizes import shown_bytes

Record = Mapping[str, Any]
_NAMED = 5
"""The worst layers, which can be reached with the keyboard."""
_COLUMNS = 4


def plots(measurements: Sequence[Record]) -> list[Plot]:
    """A picture for each scan: a panel for each kind of module, a bar for each depth."""
    found: dict[tuple[str, str, str, str], Plot] = {}
    for record in measurements:
        if record["metric"] == "layer_sensitivity" and (record.get("detail") or {}).get("layers"):
            by = "kl" if set(record["limit"]) == {"max_kl"} else "nats"
            key = (str(record["model"]), str(record["format"]), shown_metric(record), by)
            if key not in found and (plot := _plot(record, by)) is not None:
                found[key] = plot
    return list(found.values())


def _plot(record: Record, by: str) -> Plot | None:
    layers = [each for each in record["detail"]["layers"] if by in each]
    if not layers:
        return None
    model, word = str(record["model"]).rsplit("/", 1)[-1], "nats a token" if by == "nats" else "KL divergence"
    title = f"{record['format']} layers of {model}: {word} that each costs, quantized alone"
    ranked = sorted(layers, key=lambda each: -float(each[by]["value"]))
    named = ", ".join(f"{each['name']} {number(each[by]['value'])}" for each in ranked[:3])
    limits = [value for name, value in record["limit"].items() if (name == "max_kl") == (by == "kl")]
    limit = f" The limit for the worst is {number(limits[0])}." if limits else ""
    rows = tuple(
        (
            str(each["name"]),
            str(each["kind"]),
            str(each.get("depth", "-")),
            number(each["nats"]["value"]),
            number(each["kl"]["value"]),
            shown_bytes(each["bytes_saved"]) if "bytes_saved" in each else "-",
        )
        for each in ranked
    )
    headers = ("layer", "kind", "depth", "nats", "KL", "saves")
    deep = [each for each in layers if "depth" in each]
    if not deep:
        return None
    told = f"Worst: {named}. All {len(layers)} are in the table.{limit}"
    return Plot(title, told, _chart(deep, ranked, by, word, limits), Table(title, headers, rows), wide=True)


def panel(name: str) -> str:
    """What a layer is called without its place: ``self_attn.q_proj`` of ``model.layers.3.self_attn.q_proj``."""
    return re.split(r"\.\d+\.?", name)[-1] or "block"


def _chart(layers: Sequence[Record], ranked: Sequence[Record], by: str, word: str, limits: Sequence[float]) -> Any:
    import altair as alt

    worst = {each["name"] for each in ranked[:_NAMED]}
    top = max(float(each[by]["value"]) for each in layers)
    shown = [limit for limit in limits if limit <= 1.5 * top]
    rows: list[dict[str, Any]] = [
        {
            "depth": int(each["depth"]),
            "cost": float(each[by]["value"]),
            "panel": panel(str(each["name"])),
            **(
                {"told": f"{each['name']}: {number(each[by]['value'])} {word}", "worst": True}
                if each["name"] in worst
                else {}
            ),
        }
        for each in layers
    ]
    names = list(dict.fromkeys(row["panel"] for row in sorted(rows, key=lambda row: (row["depth"], row["panel"]))))
    lowest = min(0.0, *(row["cost"] for row in rows))
    highest = max([0.0, top, *shown]) * 1.05 or 1.0
    scale = alt.Scale(domain=[lowest * 1.05, highest], nice=False)
    x = alt.X("depth:Q", title=None, axis=alt.Axis(tickCount=4, format="d", grid=False), scale=alt.Scale(padding=6))
    y = alt.Y("cost:Q", title=None, scale=scale, axis=alt.Axis(tickCount=3, format=".2~g"))
    deepest = max(row["depth"] for row in rows) + 1
    panels = []
    width, height = (200, 96) if len(names) > 1 else (860, 160)
    for name in names:
        mine = [row for row in rows if row["panel"] == name]
        base = alt.Chart(values(mine))
        named = [row for row in mine if "told" in row]
        layered = [
            base.mark_bar(color=ACCENT, opacity=0.65, width=max(2.0, 0.7 * width / deepest)).encode(x=x, y=y),
        ]
        if named:
            layered.append(
                alt.Chart(values(named))
                .mark_point(filled=True, shape="diamond", color=ACCENT, size=46, opacity=1)
                .encode(x=x, y=y, description="told:N")
            )
        for limit in shown:
            layered.append(alt.Chart(values([{"cost": limit}])).mark_rule(color=BAD, strokeDash=[5, 4]).encode(y=y))
        title = alt.TitleParams(name, anchor="start", color="var(--ink)", fontSize=12, fontWeight=500, offset=4)
        panels.append(alt.layer(*layered).properties(width=width, height=height, title=title))
    return alt.concat(*panels, columns=_COLUMNS, spacing=18)
