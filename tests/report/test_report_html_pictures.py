"""What is drawn, before it is drawn and as SVG."""

from __future__ import annotations

from dataclasses import replace
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


def test_two_models_have_a_roofline_each():
    timed = [each for each in recorded()["measurements"] if each["metric"] == "throughput_ratio"]
    others = [{**each, "model": "org/other"} for each in timed]
    plots, unknown = rooflines.plots(timed + others, "a CPU")
    assert [plot.title.rpartition(": ")[2] for plot in plots] == [timed[0]["model"], "org/other"]
    assert [len(plot.table.rows) for plot in plots] == [6, 6]
    assert unknown == []


def test_a_limit_on_the_ratio_of_perplexities_is_drawn_as_one_on_their_difference():
    records = recorded()["measurements"]
    for each in records:
        if each["metric"] == "perplexity_delta":
            each["limit"] = {"max_ratio": 1.2}
    plot = tradeoff.plots(records, [False] * len(records))[0]
    assert f"perplexity delta at most {0.2 * 15.618:.3g} ppl" in plot.description
    assert "var(--allowed)" in str(plot.chart.to_dict(validate=False))
    next(each for each in records if each["metric"] == "perplexity_delta")["reference_value"] *= 1.5
    plot = tradeoff.plots(records, [False] * len(records))[0]
    assert "on something else: perplexity max 1.2x. So no region is tinted." in plot.description
    assert "var(--allowed)" not in str(plot.chart.to_dict(validate=False))


def test_a_limit_on_a_quantile_is_named_and_tints_nothing():
    records = [each for each in recorded()["measurements"] if each["metric"] in ("kl_divergence", "memory_budget")]
    for each in records:
        each["limit"] = {"p99": 3.0} if each["metric"] == "kl_divergence" else {"max_gb": 1.0}
    (plot,) = tradeoff.plots(records, [False] * len(records))
    assert "on something else: KL divergence p99 3 nats. So no region is tinted." in plot.description
    assert "Limits: weight memory at most" in plot.description
    assert "var(--allowed)" not in str(plot.chart.to_dict(validate=False))


def test_an_end_that_is_not_bounded_is_open():
    records = recorded()["measurements"]
    for each in records:
        if each["metric"] == "perplexity_delta":
            del each["high"]
    plot = tradeoff.plots(records, [False] * len(records))[0]
    assert plot.table.rows[1][2] == "5.2 [3.65, ∞]"
    assert plot.description.endswith("An arrow at the edge stands for an end that is not bounded.")
    assert str(plot.chart.to_dict(validate=False)).count("▲") == 2


def test_a_lower_bound_is_said_to_be_one():
    records = [each for each in recorded()["measurements"] if each["metric"] in ("kl_divergence", "memory_budget")]
    for each in records:
        if each["metric"] == "kl_divergence":
            each |= {"lower_bound": True, "limit": {"max_bound": 0.5}}
    (plot,) = tradeoff.plots(records, [False] * len(records))
    assert plot.table.rows[0][2] == "at least 0.0166"
    assert "at least 0.0166 nats" in plot.description
    assert "Limits: KL divergence at most 0.5 nats" in plot.description


def test_two_engines_of_one_format_are_two_points():
    records = recorded()["measurements"]
    others = [{**each, "engine": "vllm"} for each in records]
    plot = tradeoff.plots(records + others, [False] * 2 * len(records))[0]
    assert [row[0] for row in plot.table.rows] == [
        f"{format} on {engine}" for format in ("int8", "nf4") for engine in ("transformers", "vllm")
    ]


def test_a_gate_that_did_not_decide_says_so():
    record = measured("perplexity_delta", "nf4")
    record |= {"verdict": "inconclusive", "limit": {"max": record["value"]}}
    (plot,) = narrowing.plots(narrowing.stories([record])[0])
    assert plot.description.startswith("Not decided: 12 of 24 windows were scored, and the interval holds the limit.")


def test_a_single_look_is_not_said_to_be_missing():
    from pytest_quant.stats import sequence

    record = measured("kl_divergence", "nf4")
    for name in ("scores", "weights"):
        record[name] = record[name][:2]
    record["windows"] = {"used": 2, "total": 2}
    found = sequence.mean(record["scores"], record["weights"], 2, record["alpha"])
    record |= {"value": found.value, "low": found.low, "high": found.high}
    told, untold = narrowing.stories([record])
    assert told == []
    assert untold == ["nf4 KL divergence, max 0.5 nats: 2 windows scored, so there was one look and nothing narrowed."]


def test_a_move_says_since_when_and_from_what():
    known = history()
    points = list(known.series[0].points)
    points[3] = replace(points[3], began="1abcdef0123", before="2abcdef0123", reason="from 0.2 ppl to 0.7 ppl")
    told = replace(known, series=(replace(known.series[0], points=tuple(points)),))
    (plot,), _ = timeline.plots(told)
    assert plot.description == (
        "Worse since commit 3abcdef of 2026-11-13 (+0.5 ppl); drifting since 1abcdef012; 2abcdef was as before; "
        "from 0.2 ppl to 0.7 ppl."
    )
    assert "from 0.2 ppl to 0.7 ppl" in plot.table.rows[3][6]


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


def test_where_formats_have_limits_of_their_own_no_region_is_tinted():
    records = recorded()["measurements"]
    strict = next(each for each in records if (each["metric"], each["format"]) == ("perplexity_delta", "int8"))
    before = tradeoff.plots(records, [False] * len(records))[0]
    assert "var(--allowed)" in str(before.chart.to_dict(validate=False))
    strict["limit"] = {"max": 1.0}
    after = tradeoff.plots(records, [False] * len(records))[0]
    assert "var(--allowed)" not in str(after.chart.to_dict(validate=False))
    assert "limits of their own, so no region is tinted" in after.description
