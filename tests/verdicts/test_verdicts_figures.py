"""Values as the table shows them."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from verdicts_examples import gate, judge, measured

from pytest_quant.gates.measurement import Quantity
from pytest_quant.report.figures import shown_bytes, shown_value


def row(value: float, low: float, high: float, unit: str, limit=("max",), **more) -> str:
    given = {"value": value, "low": low, "high": high, "unit": unit, "limit": dict.fromkeys(limit, 1.0)}
    return shown_value({**given, **more})


WINDOWS = {"used": 14, "total": 148}


@pytest.mark.parametrize(
    "numbers, unit, limit, more, shown",
    [
        ((0.2134, 0.15, 0.27), "ppl", ("max",), {"windows": WINDOWS}, "+0.213 ppl [0.15, 0.27] 14/148"),
        ((0.2134,) * 3, "ppl", ("max",), {"windows": {"used": 148, "total": 148}}, "+0.213 ppl 148/148"),
        ((-0.2134,) * 3, "ppl", ("max",), {}, "-0.213 ppl"),
        ((0.12, -0.003, 0.24), "ppl", ("max",), {}, "+0.12 ppl [-0.003, 0.24]"),
        ((0.0512, 0.0413, 0.0624), "nats", ("max",), {"windows": WINDOWS}, "0.0512 nats [0.0413, 0.0624] 14/148"),
        ((0.0512,) * 3, "nats", ("max",), {}, "0.0512 nats"),
        ((0.0512,) * 3, "nats", ("max_bound",), {"lower_bound": True}, ">= 0.0512 nats"),
        ((0.912, 0.901, 0.934), "share", ("min",), {"windows": WINDOWS}, "0.912 [0.901, 0.934] 14/148"),
        ((0.912,) * 3, "share", ("min",), {}, "0.912"),
        ((1.45, 1.31, 1.62), "x", ("min",), {}, "1.45x [1.31, 1.62]"),
        ((109_800_000,) * 3, "bytes", ("max_gb",), {}, "109.8 MB"),
        ((109_800_000,) * 3, "bytes", ("max_ratio",), {"ratio": 0.204}, "109.8 MB (0.204x)"),
        ((109_800_000,) * 3, "bytes", ("max_gb", "max_ratio"), {"ratio": 0.204}, "109.8 MB (0.204x)"),
        ((0.5, 0.41, math.inf), "nats", ("max",), {}, "0.5 nats [0.41, inf]"),
    ],
)
def test_each_metric(numbers, unit, limit, more, shown):
    assert row(*numbers, unit, limit, **more) == shown


def limited(tmp_path, metric: str, quantities: dict[str, Quantity], *limits: tuple[str, float], used=8, **more) -> dict:
    one = measured(metric, used, quantities=quantities, **more)
    return dict(judge(tmp_path, gate(metric, *limits), compares=False).decide(one).record)


def test_a_ratio_is_shown_where_that_alone_is_limited(tmp_path):
    some = {"delta": Quantity(0.2, 0.1, 0.3, "ppl"), "ratio": Quantity(1.0321, 1.0213, 1.0432, "x")}
    alone = limited(tmp_path, "perplexity_delta", some, ("max_ratio", 1.1))
    assert (alone["limited"], shown_value(alone)) == ("ratio", "1.032x [1.021, 1.043] 8/32")
    for limits in ([("max", 1.0)], [("max", 1.0), ("max_ratio", 1.1)]):
        both = limited(tmp_path, "perplexity_delta", some, *limits)
        assert "limited" not in both
        assert shown_value(both) == "+0.2 ppl [0.1, 0.3] 8/32"
    exact = {name: Quantity.exact(quantity.value, quantity.unit) for name, quantity in some.items()}
    assert shown_value(limited(tmp_path, "perplexity_delta", exact, ("max_ratio", 1.1), used=32)) == "1.032x 32/32"


def test_a_percentile_or_a_bound_is_shown_where_that_alone_is_limited(tmp_path):
    some = {
        "mean": Quantity(0.0512, 0.0413, 0.0624, "nats"),
        "p99": Quantity(0.5123, 0.4, math.inf, "nats"),
        "bound": Quantity(0.0401, 0.03, 0.05, "nats"),
    }
    percentile = limited(tmp_path, "kl_divergence", some, ("p99", 1.0))
    assert (percentile["limited"], shown_value(percentile)) == ("p99", "0.512 nats [0.4, inf] 8/32")
    bound = limited(tmp_path, "kl_divergence", some, ("max_bound", 0.1))
    assert (bound["limited"], shown_value(bound)) == ("bound", "0.0401 nats [0.03, 0.05] 8/32")
    for limits in ([("max", 0.1)], [("p99", 1.0), ("max_bound", 0.1)]):
        other = limited(tmp_path, "kl_divergence", some, *limits)
        assert "limited" not in other
        assert shown_value(other) == "0.0512 nats [0.0413, 0.0624] 8/32"


def test_a_statistic_that_is_a_lower_bound_says_so(tmp_path):
    some = {"bound": Quantity.exact(0.04, "nats"), "p99": Quantity.exact(0.5, "nats")}
    found = limited(
        tmp_path, "kl_divergence", some, ("p99", 1.0), used=32, main="bound", lower_bounds=frozenset({"p99"})
    )
    assert found["statistics"]["p99"] == {"value": 0.5, "low": 0.5, "high": 0.5, "unit": "nats", "lower_bound": True}
    assert shown_value(found) == ">= 0.5 nats 32/32"


@pytest.mark.parametrize(
    "count, shown",
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1_500_000, "1.5 MB"), (6_000_000_000, "6 GB"), (2**30, "1.074 GB")],
)
def test_bytes_count_by_powers_of_ten(count, shown):
    assert shown_bytes(count) == shown


@given(st.floats(0.0, 1.0), st.floats(1e-6, 0.5), st.floats(1e-6, 0.5))
def test_a_shown_interval_contains_the_shown_value(share, below, above):
    value, low, high = map(float, re.findall(r"[-+.e\d]+", row(share, share - below, share + above, "share", ("min",))))
    assert low <= value <= high


def test_a_ratio_whose_end_is_beyond_floats_is_no_crash(tmp_path):
    quantities = {"delta": Quantity(5.0, 1.0, 9.0, "ppl"), "ratio": Quantity(1.5, 1.2, math.inf, "x")}
    one = measured(used=8, quantities=quantities)
    record = judge(tmp_path, gate("perplexity_delta", ("max_ratio", 2.0)), compares=False).decide(one).record
    assert record["statistics"]["ratio"] == {"value": 1.5, "low": 1.2, "unit": "x"}
    assert shown_value(record) == "1.5x [1.2, inf] 8/32"
