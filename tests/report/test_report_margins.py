"""How far from its limits a record is."""

from __future__ import annotations

import math

import pytest

from pytest_quant.report.figures import plain
from pytest_quant.report.margins import margins


def record(metric, limit, **fields):
    return {"metric": metric, "limit": limit, **fields}


@pytest.mark.parametrize(
    "given, room, used",
    [
        (record("perplexity_delta", {"max": 1.0}, value=0.25, low=0.2, high=0.3), 0.75, 0.25),
        (record("perplexity_delta", {"max": 1.0}, value=2.0, low=1.9, high=2.1), -1.0, 2.0),
        (record("token_agreement", {"min": 0.9}, value=0.98, low=0.97, high=0.99), 0.08, 0.2),
        (record("throughput_ratio", {"min": 1.5}, value=3.0, low=2.9, high=3.1), 1.5, 0.5),
        (record("memory_budget", {"max_gb": 2.0}, value=1e9), 1.0, 0.5),
        (record("memory_budget", {"max_ratio": 0.4}, value=1e9, ratio=0.3), 0.1, 0.75),
    ],
)
def test_room_and_use(given, room, used):
    (found,) = margins(given)
    assert found.room == pytest.approx(room)
    assert found.used == pytest.approx(used)


def test_a_limit_on_a_statistic_is_read_from_there():
    given = record(
        "perplexity_delta",
        {"max_ratio": 1.05},
        value=0.3,
        statistics={"ratio": {"value": 1.02, "low": 1.01, "high": 1.03, "unit": "x"}},
    )
    (found,) = margins(given)
    assert (found.value, found.low, found.high) == (1.02, 1.01, 1.03)
    assert found.used == pytest.approx(0.4)


def test_a_lower_bound_has_no_upper_end_for_the_limit_on_the_divergence_itself():
    given = record("kl_divergence", {"max": 0.05}, value=0.01, low=0.005, high=0.02, lower_bound=True)
    assert margins(given)[0].high == math.inf
    given = record("kl_divergence", {"max_bound": 0.05}, value=0.01, low=0.005, high=0.02, lower_bound=True)
    assert margins(given)[0].high == 0.02


def test_what_was_not_measured_has_no_margin():
    assert margins(record("perplexity_delta", {"max": 1.0})) == []


def test_a_limit_of_no_difference_leaves_no_budget():
    (found,) = margins(record("perplexity_delta", {"max": 0.0}, value=0.1, low=0.0, high=0.2))
    assert found.used is None
    assert found.room == pytest.approx(-0.1)


@pytest.mark.parametrize("value, said", [(8412.0, "8,412"), (999.4, "999"), (85.47, "85.5"), (0.0123, "0.0123")])
def test_large_rates_have_no_exponent(value, said):
    assert plain(value) == said
