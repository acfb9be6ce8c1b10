"""What is drawn, before it is drawn and as SVG."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
from run_records import HOSTILE, history, hostile, recorded

from pytest_quant.report.html import layers, narrowing, rooflines, timeline, tradeoff

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

SVG = "{http://www.w3.org/2000/svg}"


def measured(metric, format, record=None):
    records = (record or recorded())["measurements"]
    return next(each for each in records if (each["metric"], each["format"]) == (metric, format))


@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize("metric, quantity", [("perplexity_delta", "delta"), ("kl_divergence", "mean")])
def test_the_last_look_is_the_interval_that_the_run_wrote(metric, quantity, format):
    record = measured(metric, format)
    last = narrowing.looks(record, quantity)[-1]
    assert last.used == record["windows"]["used"]
    assert (last.value, last.low, last.high) == pytest.approx((record["value"], record["low"], record["high"]))


def test_the_ratio_of_perplexities_and_the_share_of_tokens_too():
    record = measured("perplexity_delta", "nf4")
    ratio = record["statistics"]["ratio"]
    last = narrowing.looks(record, "ratio")[-1]
    assert (last.value, last.low, last.high) == pytest.approx((ratio["value"], ratio["low"], ratio["high"]))
    record = measured("token_agreement", "nf4")
    last = narrowing.looks(record, "share")[-1]
    assert (last.low, last.high) == pytest.approx((record["low"], record["high"]))


def test_what_cannot_be_recomputed_is_said_and_not_drawn():
    record = measured("perplexity_delta", "nf4")
    record["high"] += 1.0
    told, untold = narrowing.stories([record])
    assert told == []
    assert untold == ["nf4 perplexity, max 7 ppl: what single windows say of it is not in the record."]
    record = measured("kl_divergence", "nf4")
    record["limit"] = {"p99": 3.0}
    told, untold = narrowing.stories([record])
    assert not told
    assert len(untold) == 1


def test_how_many_windows_were_spared():
    told, _ = narrowing.stories([measured("perplexity_delta", "nf4")])
    (plot,) = narrowing.plots(told)
    assert plot.description.startswith("Decided after 12 of 24 windows; 12 were spared.")
    looks = told[0].looks
    assert looks[-1].high - looks[-1].low < looks[0].high - looks[0].low


def test_quality_is_drawn_against_memory_and_each_speed():
    records = recorded()["measurements"]
    plots = tradeoff.plots(records, [False] * len(records))
    assert [plot.title for plot in plots] == [
        "Perplexity delta against weight memory",
        "Perplexity delta against decode speed over the reference's",
        "Perplexity delta against prefill speed over the reference's",
    ]
    assert plots[0].table.rows[1] == ("nf4", "168", "5.2 [3.65, 6.88]", "hold")
    assert "weight memory at most 242 MB" in plots[0].description


def test_nothing_is_drawn_where_one_axis_was_not_measured():
    speed = [each for each in recorded()["measurements"] if each["metric"] == "throughput_ratio"]
    assert tradeoff.plots(speed, [False] * len(speed)) == []


def test_layers_are_told_apart_by_panels():
    (plot,) = layers.plots([measured("layer_sensitivity", "nf4")])
    panels = {each["title"]["text"] for each in plot.chart.to_dict()["concat"]}
    assert panels == {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"} | {
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    }
    assert layers.panel("model.layers.3") == "block"


def test_a_point_lies_under_its_roof():
    records = recorded()["measurements"]
    points = rooflines.points([each for each in records if each["metric"] == "throughput_ratio"])
    assert {(point.name, point.phase) for point in points} == {
        (name, phase) for name in ("fp32", "int8", "nf4") for phase in ("decode speed", "prefill speed")
    }
    for point in points:
        roof = min(point.bandwidth * point.intensity, point.peak)
        assert point.reached == pytest.approx(point.share * roof)


def test_no_roofline_of_rates_that_are_not_known():
    record = measured("throughput_ratio", "nf4")
    for bound in record["bounds"].values():
        for name in ("bandwidth", "peak_operations"):
            bound.pop(name, None)
    plots, unknown = rooflines.plots([record], "a CPU")
    assert plots == []
    assert unknown == ["No roofline of nf4 decode speed: the record does not hold the rates of a CPU."]


def test_the_commit_that_moved_a_metric_is_named():
    plots, left_out = timeline.plots(history())
    assert left_out == 1
    (plot,) = plots
    assert plot.description == "Worse since commit 3abcdef of 2026-11-13 (+0.5 ppl)."
    assert plot.table.rows[0][4] == "-"


def test_a_drawing_follows_the_theme_and_names_its_points():
    from pytest_quant.report.html.drawing import draw

    plots, _ = timeline.plots(history())
    svg = draw(plots[0], "p1").svg
    root = ElementTree.fromstring(svg)
    assert root.find(f"{SVG}title").text == plots[0].title
    points = [each for each in root.iter() if each.get("tabindex") == "0"]
    assert len(points) == 6
    assert all(each.get("role") == "img" and each.get("aria-label") for each in points)
    assert "var(--bad)" in svg
    assert "style=" not in svg
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert all(each.startswith("p1-") for each in ids)
    assert len(ids) == len(set(ids))


def test_hostile_names_are_text_in_a_drawing():
    from pytest_quant.report.html.drawing import draw

    records = hostile()["measurements"]
    for plot in tradeoff.plots(records, [False] * len(records)):
        root = ElementTree.fromstring(draw(plot, "p").svg)
        assert not [each for each in root.iter() if each.tag.endswith(("img", "script"))]
        assert HOSTILE[:30] in "".join(root.itertext())
