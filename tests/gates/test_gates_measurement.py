"""A measurement compares by its value, prints with its interval, and lets nothing pass that is no number."""

from __future__ import annotations

import dataclasses
import math
import operator
import subprocess
import sys

import pytest

from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.verdict import Verdict

ORDER = (operator.lt, operator.le, operator.gt, operator.ge)


def measured(value: float, low: float | None = None, high: float | None = None, **more) -> Measurement:
    quantity = Quantity(value, value if low is None else low, value if high is None else high, "ppl")
    return Measurement(
        "perplexity_delta", "org/model", "nf4", "transformers", "delta", {"delta": quantity}, {"metric": {}}, **more
    )


def test_value_is_that_of_the_main_quantity():
    quantities = {"delta": Quantity.exact(0.5, "ppl"), "ratio": Quantity.exact(1.02, "x")}
    both = Measurement("perplexity_delta", "m", "nf4", "transformers", "ratio", quantities, {})
    assert both.quantity is quantities["ratio"]
    assert both.value == 1.02
    assert float(both) == 1.02


def test_exact_is_exact():
    assert Quantity.exact(0.25, "ppl") == Quantity(0.25, 0.25, 0.25, "ppl")
    assert Quantity.exact(0.25, "ppl").is_exact
    assert not Quantity(0.25, 0.2, 0.3, "ppl").is_exact
    assert not Quantity.exact(math.nan, "ppl").is_exact


@pytest.mark.parametrize("value", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("limit", [1.0, 1])
@pytest.mark.parametrize("compare", [*ORDER, operator.eq, operator.ne])
def test_it_orders_as_its_value_does(value, limit, compare):
    """Whatever the interval is."""
    assert compare(measured(value, -9.0, 9.0), limit) is compare(value, limit)
    assert compare(limit, measured(value, -9.0, 9.0)) is compare(limit, value)
    assert compare(measured(value, 0.0, 9.0), measured(float(limit), -5.0, 1.0)) is compare(value, limit)


def test_equal_measurements_hash_as_their_value():
    assert hash(measured(1.5)) == hash(1.5) == hash(measured(1.5, 1.0, 2.0))
    assert {measured(1.5), 1.5} == {1.5}


@pytest.mark.parametrize("compare", ORDER)
def test_a_limit_of_nan_raises(compare):
    with pytest.raises(ValueError, match="perplexity_delta compared with NaN"):
        compare(measured(0.5), math.nan)
    with pytest.raises(ValueError, match="perplexity_delta compared with NaN"):
        compare(measured(0.5), measured(math.nan))


@pytest.mark.parametrize("compare", ORDER)
def test_a_value_of_nan_raises(compare):
    """Never an answer: whichever way a test asks, one of the two would be a pass."""
    with pytest.raises(ValueError, match="NaN"):
        compare(measured(math.nan), 1.5)
    with pytest.raises(ValueError, match="NaN"):
        compare(1.5, measured(math.nan))


def test_nan_equals_nothing():
    assert (measured(math.nan) == math.nan) is False
    assert (measured(math.nan) == 1.0) is False


@pytest.mark.parametrize(
    "value, compare, limit", [(math.inf, operator.ge, 1.5), (math.inf, operator.gt, 1.5), (-math.inf, operator.le, 1.0)]
)
def test_infinity_never_passes(value, compare, limit):
    try:
        held = compare(measured(value), limit)
    except ValueError:
        held = False
    assert held is False


@pytest.mark.parametrize("other", ["1.0", None, [1.0], True, False, object()])
@pytest.mark.parametrize("compare", ORDER)
def test_what_is_no_number_cannot_be_a_limit(compare, other):
    with pytest.raises(TypeError):
        compare(measured(1.0), other)
    assert measured(1.0) != other


def test_it_prints_with_its_interval():
    assert str(measured(0.2134, 0.1512, 0.2731)) == "0.2134 ppl [0.1512 to 0.2731]"
    assert (
        str(measured(0.2134, 0.1512, 0.2731, windows=(14, 148))) == "0.2134 ppl [0.1512 to 0.2731, 14 of 148 windows]"
    )
    assert str(measured(0.25)) == "0.25 ppl [exact]"
    assert str(measured(0.25, windows=(148, 148))) == "0.25 ppl [exact, 148 of 148 windows]"
    assert repr(measured(0.25)) == "<perplexity_delta of nf4: 0.25 ppl [exact]>"
    assert "nan" in str(measured(math.nan))
    assert "exact" not in str(measured(math.nan))


def test_a_failing_assertion_shows_the_interval(pytester):
    pytester.makepyfile(
        """
        from pytest_quant.gates.measurement import Measurement, Quantity

        def test_it():
            delta = {"delta": Quantity(2, 1.5, 2.5, "ppl")}
            found = Measurement("perplexity_delta", "m", "nf4", "e", "delta", delta, {})
            assert found <= 1.0
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*assert <perplexity_delta of nf4: 2 ppl [[]1.5 to 2.5[]]> <= 1.0*"])


@pytest.mark.parametrize("thing, name", [(measured(1.0), "format"), (measured(1.0).quantity, "value")])
def test_it_cannot_be_changed(thing, name):
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(thing, name, 0)


def test_what_it_was_not_given_is_empty_and_cannot_be_filled():
    one = measured(1.0)
    assert (dict(one.figures), dict(one.proof)) == ({}, {})
    assert (one.scores, one.reference_scores, one.weights, one.windows) == (None, None, None, None)
    assert (one.confidence, one.alpha, one.reference) == (None, None, None)
    assert (one.lower_bounds, one.reference_stored, one.caveat) == (frozenset(), 0, "")
    assert one.quantity.detectable == 0.0
    with pytest.raises(TypeError):
        one.figures["x"] = 1.0


def test_an_exact_quantity_keeps_what_all_windows_could_detect():
    """Known exactly is not known well: another sample of such text would say something else."""
    given = Quantity(0.25, 0.25, 0.25, "ppl", detectable=0.5)
    assert given.is_exact
    assert given.detectable == 0.5


def test_an_end_that_is_not_bounded_is_printed_as_such():
    assert str(measured(0.5, -math.inf, 1.0)) == "0.5 ppl [-inf to 1]"
    assert not measured(0.5, 0.5, math.inf).quantity.is_exact


def test_there_are_nine_verdicts_and_they_print_as_their_words():
    words = "passed failed new missing regressed improved incomparable inconclusive not-measured"
    assert [str(verdict) for verdict in Verdict] == words.split()
    assert [f"{verdict}" for verdict in Verdict] == words.split()
    assert Verdict("not-measured") is Verdict.NOT_MEASURED


@pytest.mark.parametrize(
    "rooms",
    [
        "gates.gate, pytest_quant.gates.measurement, pytest_quant.gates.regression",
        "gates.narrow",
        "stats.paired",
        "stats.sequence",
        "stats.median",
        "baseline",
    ],
)
def test_pure_rooms_import_neither_torch_nor_pytest(rooms):
    names = ("torch", "pytest", "_pytest", "transformers", "pynvml", "bitsandbytes")
    code = f"import sys, pytest_quant.{rooms}; print(sorted(set({names!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_pure_rooms_work_without_torch_and_pytest():
    """Not only on import: nothing that they do pulls them in."""
    code = """
import sys
from pytest_quant.gates.gate import judge
from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.gates.regression import change
from pytest_quant.stats.median import median_interval
median_interval([1.0, 2.0], 0.01)
one = Measurement("perplexity_delta", "m", "nf4", "e", "delta", {"delta": Quantity.exact(1.0, "ppl")}, {"metric": {}},
                  scores=(3.0,), reference_scores=(2.9,), weights=(7.0,), windows=(1, 1))
class Then:
    value, low, high, scores, reference_scores = 1.0, None, None, (3.0,), (2.9,)
found = judge(one, (("max", 2.0),)).verdict, change(one, Then).verdict
print(*found, *{"torch", "pytest", "_pytest"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["passed", "passed"]


def test_a_sample_that_was_taken_for_another_limit_does_not_answer():
    """Stopped early for a limit of 10, it may not say whether the value is below 1."""
    sampled = measured(1.3, 0.6, 2.0, windows=(8, 220))
    assert sampled < 10.0
    assert sampled > 0.5
    with pytest.raises(ValueError, match="does not decide whether it is below 1"):
        assert sampled > 1.0
    with pytest.raises(ValueError, match="measure it with that limit"):
        assert sampled <= 1.0
    assert measured(1.3, windows=(220, 220)) > 1.0


# of rounds


def timed(value: float, low: float, high: float, **more) -> Measurement:
    quantity = {"ratio": Quantity(value, low, high, "x")}
    given = {"rounds": 12, "spent": False, **more}
    return Measurement("throughput_ratio", "org/model", "nf4", "transformers", "ratio", quantity, {}, **given)


def test_it_prints_with_its_rounds():
    assert str(timed(1.5, 1.4, 1.6)) == "1.5 x [1.4 to 1.6, 12 rounds]"
    assert repr(timed(1.5, 1.4, math.inf)) == "<throughput_ratio of nf4: 1.5 x [1.4 to inf, 12 rounds]>"


def test_rounds_that_were_played_for_another_limit_do_not_answer():
    sampled = timed(1.5, 1.4, 1.6)
    assert sampled >= 1.3
    assert sampled < 1.7
    for limit in (1.4, 1.45, 1.5, 1.6):
        with pytest.raises(ValueError, match=rf"does not decide whether it is below {limit:g}: measure it with that"):
            assert sampled >= limit
    with pytest.raises(ValueError, match="does not decide") as caught:
        assert sampled >= 1.45
    assert "or without one" not in str(caught.value), "without a limit it is an interval, too"


@pytest.mark.parametrize(
    "more, complete",
    [
        ({"rounds": 12, "spent": False}, False),
        ({"rounds": 12, "spent": True}, True),
        ({"windows": (8, 32)}, False),
        ({"windows": (32, 32)}, True),
        ({}, True),
    ],
)
def test_when_nothing_more_is_measured(more, complete):
    assert measured(1.0, **more).complete is complete


def test_what_was_not_timed_has_no_rounds_bounds_or_conditions():
    one = measured(1.0)
    assert (one.rounds, dict(one.bounds), one.conditions) == (None, {}, ())
    with pytest.raises(TypeError):
        one.bounds["format"] = {}
