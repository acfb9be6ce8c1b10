"""Rows, sums and the search for the fewest layers to keep wide, from figures that are given."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from pytest_quant.engines.candidates import Layer
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotFinite, NotMeasured, UsageError
from pytest_quant.metrics import keeping, sensitivity
from pytest_quant.metrics.keeping import Budget
from pytest_quant.metrics.sensitivity import Effect, Row, Sampled, Scan

NLL = (2.0, 2.2, 1.8, 2.0)
MANY = Sampled(nll=NLL * 8, weights=(10.0,) * 32, tokens=(10,) * 32, alpha=0.01)
SAMPLE = Sampled(nll=NLL, weights=(10.0,) * 4, tokens=(10,) * 4, alpha=0.01)


def layer(number: int, kind: str = "mlp", saved: int | None = 100) -> Layer:
    name = f"model.layers.{number}.{kind}"
    return Layer(name, kind, number, 1000 + number, saved, (name,))


def effect(nats: float, kl: float | None = None) -> Effect:
    return Effect((nats, nats + 0.1, nats - 0.1, nats), (nats if kl is None else kl,) * 4)


def scan(*nats: float, whole: float | None = None, sample: Sampled = SAMPLE, kinds: Sequence[str] = ()) -> Scan:
    kinds = kinds or ["mlp"] * len(nats)
    layers = [layer(number, kind) for number, kind in enumerate(kinds)]
    all_of_it = effect(sum(nats) if whole is None else whole)
    return Scan(
        model="m",
        format="nf4",
        reference="fp32",
        of="layer",
        rows=sensitivity.scanned(layers, [effect(value) for value in nats], sample),
        whole=Row(Layer("nf4", "whole", None, 1, 1, ()), all_of_it, *sample.estimates(all_of_it)),
        sample=sample,
        left_out=(),
        identity={"protocol": "gptq-16"},
        reused=True,
        seconds=1.0,
        source=ModelSource("m"),
    )


def test_the_layer_of_the_highest_divergence_comes_first():
    layers = [layer(0), layer(1), layer(2)]
    found = sensitivity.scanned(layers, [effect(0.3, 0.1), effect(0.1, 0.4), effect(0.2, 0.2)], SAMPLE)
    assert [row.layer.depth for row in found] == [1, 2, 0]
    assert found[0].nats.value == pytest.approx(0.1)
    assert found[0].kl.value == pytest.approx(0.4)
    assert found[0].nats.low == found[0].nats.high


def test_windows_are_counted_by_their_weights():
    sample = replace(SAMPLE, weights=(10.0, 30.0, 10.0, 10.0), tokens=(40, 10, 10, 20))
    nats, kl = sample.estimates(Effect((1.0, 3.0, 1.0, 1.0), (4.0, 1.0, 1.0, 2.0)))
    assert nats.value == pytest.approx(120 / 60)
    assert kl.value == pytest.approx(220 / 80)


def test_the_worst_layer_is_exact_for_the_windows():
    steady, wild = effect(0.3, 0.1), effect(0.1, 0.4)
    rows = sensitivity.scanned([layer(0), layer(1)], [steady, wild], SAMPLE)
    made = replace(scan(0.0, 0.0), rows=rows)
    by_nats, by_kl = sensitivity.answer(made), sensitivity.answer(made, "kl")
    assert (by_nats.main, by_kl.main) == ("nats", "kl")
    for found in (by_nats, by_kl):
        assert found.quantities["nats"].is_exact
        assert found.quantities["nats"].value == pytest.approx(0.3)
        assert found.quantities["kl"].value == pytest.approx(0.4)
    assert by_nats.scores == list(steady.nats)
    assert by_kl.scores == list(wild.kl)


def test_scores_by_divergence_count_by_tokens():
    made = scan(0.1, 0.2, sample=replace(SAMPLE, tokens=(40, 10, 10, 20)))
    assert sensitivity.answer(made, "kl").weights == [40.0, 10.0, 10.0, 20.0]
    assert sensitivity.answer(made).weights == [10.0] * 4


def test_tables_answer_for_nothing():
    found = sensitivity.answer(scan(0.9, 0.2, math.nan, kinds=["head", "mlp", "embedding"]))
    assert found.quantities["nats"].value == pytest.approx(0.2)
    assert found.figures["layers"] == 1.0
    assert found.figures["sum_nats"] == pytest.approx(0.2)
    with pytest.raises(NotMeasured, match="only tables"):
        sensitivity.answer(scan(0.9, kinds=["head"]))


@pytest.mark.parametrize("nll", [(800.0,) * 4, (math.inf,) * 4, (math.nan,) * 4])
def test_a_reference_that_knows_nothing_is_no_measure(nll):
    with pytest.raises(NotMeasured, match="in 4 windows is no finite number"):
        replace(SAMPLE, nll=nll)


def test_the_answer_adds_the_layers_up():
    found = sensitivity.answer(scan(0.1, 0.2, whole=0.5))
    assert found.figures["sum_nats"] == pytest.approx(0.3)
    assert found.figures["whole_nats"] == pytest.approx(0.5)
    assert found.figures["reference_value"] == pytest.approx(math.exp(2.0))
    assert found.quantities["nats"].value == pytest.approx(0.2)


def test_nan_comes_first_and_is_no_answer():
    found = scan(0.1, math.nan, 0.3)
    assert found.rows[0].layer.depth == 1
    assert not found.rows[0].finite
    with pytest.raises(NotFinite, match=r"1 of its 3 layers in nf4 by themselves: model.layers.1.mlp"):
        sensitivity.answer(found)


def test_the_record_is_plain_json_without_infinity():
    made = scan(
        0.1,
        math.nan,
        0.3,
    )
    record = json.loads(json.dumps(made.record(), allow_nan=False))
    assert record["layers"][0] == {
        "name": "model.layers.1.mlp",
        "kind": "mlp",
        "weights": 1001,
        "depth": 1,
        "bytes_saved": 100,
        "finite": False,
    }
    assert record["windows"] == {"used": 4, "total": 4}
    assert "left_out" not in record
    assert record["layers"][1]["nats"]["value"] == pytest.approx(0.3)


def test_kinds_and_depths_are_sums():
    found = scan(0.1, 0.4, 0.2, kinds=["mlp", "attention", "mlp"])
    assert [(group.name, group.layers) for group in found.kinds] == [("attention", 1), ("mlp", 2)]
    assert found.kinds[1].kl == pytest.approx(0.3)
    assert [group.name for group in found.depths] == ["0", "1", "2"]


@pytest.mark.parametrize("guess", [0, 3, 7, 12])
@pytest.mark.parametrize("answer", [0, 1, 5, 11, 12, None])
def test_the_fewest_are_found_from_any_guess(guess, answer):
    tried = []

    def holds(count: int) -> bool:
        tried.append(count)
        return answer is not None and count >= answer

    assert keeping.fewest(12, guess, holds) == answer
    assert len(tried) == len(set(tried)) <= 9


def test_a_right_guess_costs_two_tries():
    tried = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= 50

    assert keeping.fewest(200, 50, holds) == 50
    assert tried == [50, 49]


def test_the_first_guess_scales_the_sums_to_the_whole():
    assert keeping.first_guess([0.4, 0.3, 0.2, 0.1], 1.0, 0.31) == 2
    assert keeping.first_guess([0.4, 0.3, 0.2, 0.1], 2.0, 0.31) == 3
    assert keeping.first_guess([0.4, 0.3, 0.2, 0.1], 1.0, 1.0) == 0
    assert keeping.first_guess([0.4, 0.3], 0.7, -0.1) == 2
    assert keeping.first_guess([math.inf, 0.3], math.inf, 0.1) == 1


def test_a_mix_is_measured_until_one_fewer_does_not_hold():
    made = scan(0.4, 0.3, 0.2, 0.1, 0.05)
    seen = []

    def measure(kept: Sequence[Row]) -> Effect:
        seen.append([row.layer.depth for row in kept])
        return effect(2.0 * (1.05 - sum(row.nats.value for row in kept)))  # worse together than apart

    found = keeping.keep(made, Budget(max_nats=0.31), measure)
    assert found.holds
    assert [row.layer.depth for row in found.rows] == [0, 1, 2]
    assert found.nats.value == pytest.approx(0.3)
    assert found.nats.low == found.nats.value == found.nats.high
    assert found.guess == 3
    assert found.bytes_back == 300
    assert [0, 1] in seen
    assert found.perplexity == pytest.approx(math.exp(2.3))
    json.dumps(found.record(), allow_nan=False)


def crossing(*effects: Effect) -> Scan:
    """Layers of which the last by KL may cost the most nats, in as many windows as the effects have."""
    times = len(effects[0].nats) // 4
    sample = replace(SAMPLE, nll=NLL * times, weights=(10.0,) * 4 * times, tokens=(10,) * 4 * times)
    rows = sensitivity.scanned([layer(number) for number in range(len(effects))], effects, sample)
    whole = long(effect(sum(row.nats.value for row in rows)), times)
    found = scan(*[0.1] * len(effects))
    return replace(found, rows=rows, sample=sample, whole=Row(found.whole.layer, whole, *sample.estimates(whole)))


def long(found: Effect, times: int) -> Effect:
    return Effect(found.nats * times, found.kl * times)


ONE_THAT_COSTS = (effect(0.0, 0.3), effect(0.05, 0.2), effect(0.4, 0.1))


def sums(made: Scan, seen: list[set[str]]) -> Callable[[Sequence[Row]], Effect]:
    """A mix that costs what its parts do."""

    def measure(kept: Sequence[Row]) -> Effect:
        seen.append({row.layer.name for row in kept})
        nats = sum(row.nats.value for row in made.rows if row not in kept)
        return long(effect(nats), made.sample.used // 4)

    return measure


def test_the_order_that_needs_fewer_layers_is_taken():
    made, seen = crossing(*(long(each, 2) for each in ONE_THAT_COSTS)), []
    assert [row.layer.depth for row in made.rows] == [0, 1, 2]
    found = keeping.keep(made, Budget(max_nats=0.1), sums(made, seen))
    assert found.order == "nats"
    assert [row.layer.depth for row in found.rows] == [2]
    assert found.nats.value == pytest.approx(0.05)
    assert {each.order for each in found.tried} == {"kl", "nats"}
    assert len(seen) == len({frozenset(names) for names in seen}), "each mix is measured once"
    assert found.record()["order"] == "nats"
    assert set(found.record()["tried"][0]) == {"order", "kept", "nats"}


def test_in_few_windows_the_order_by_nats_is_not_trusted():
    made = crossing(*ONE_THAT_COSTS)
    assert made.sample.used == 4
    found = keeping.keep(made, Budget(max_nats=0.1), sums(made, []))
    assert found.order == "kl"
    assert len(found.rows) == 3
    assert {each.order for each in found.tried} == {"kl"}


def test_of_as_many_those_by_divergence_are_taken():
    made = crossing(long(effect(0.2, 0.3), 2), long(effect(0.21, 0.2), 2))
    found = keeping.keep(made, Budget(max_nats=0.22), sums(made, []))
    assert found.order == "kl"
    assert [row.layer.depth for row in found.rows] == [0]


def test_a_format_that_holds_keeps_nothing():
    def measure(kept: Sequence[Row]) -> Effect:
        raise AssertionError("the whole format was measured already")

    found = keeping.keep(scan(0.1, 0.2), Budget(max_nats=0.31), measure)
    assert found.holds
    assert found.rows == ()
    assert found.bytes_back == 0


def test_it_is_said_when_nothing_helps():
    found = keeping.keep(scan(0.1, 0.2), Budget(max_nats=0.01), lambda kept: effect(0.05))
    assert not found.holds
    assert len(found.rows) == 2
    assert found.nats.value == pytest.approx(0.05)


def test_tables_are_not_kept():
    made = scan(0.9, 0.3, 0.2, kinds=["head", "mlp", "mlp"], whole=0.5)
    found = keeping.keep(made, Budget(max_nats=0.25), lambda kept: effect(0.5 - sum(r.nats.value for r in kept)))
    assert [row.layer.kind for row in found.rows] == ["mlp"]


def test_a_mix_that_gives_nan_does_not_hold():
    def measure(kept: Sequence[Row]) -> Effect:
        return effect(math.nan) if len(kept) < 2 else effect(0.1)

    found = keeping.keep(scan(0.3, 0.2, 0.1), Budget(max_nats=0.4), measure)
    assert len(found.rows) == 2


def test_budgets_in_perplexity():
    assert Budget(max_ratio=1.1).nats(10.0) == pytest.approx(math.log(1.1))
    assert Budget(max_delta=1.0).nats(10.0) == pytest.approx(math.log(1.1))
    assert Budget(max_delta=-20.0).nats(10.0) == -math.inf


@pytest.mark.parametrize(
    "limits, said",
    [
        ({}, "one of"),
        ({"max_nats": 0.1, "max_ratio": 1.1}, "one of"),
        ({"max_nats": math.nan}, "finite"),
        ({"max_ratio": 0.0}, "above 0"),
        ({"max_nats": "0.1"}, "'0.1' is no number"),
    ],
)
def test_budgets_without_sense(limits, said):
    with pytest.raises(UsageError, match=said):
        Budget(**limits)


def test_windows_of_a_longer_text_bound_what_a_layer_costs_in_all_of_it():
    part = replace(MANY, text=220)
    (row,) = sensitivity.scanned([layer(0)], [Effect((0.1, 0.3) * 16, (0.2, 0.4) * 16)], part)
    assert (row.nats.low, row.nats.high) == (row.nats.value, row.nats.value)  # of the windows asked for
    assert row.text is not None
    nats, kl = row.text
    assert nats.value == row.nats.value
    assert nats.low < nats.value < nats.high
    assert kl.low < kl.value < kl.high
    assert sensitivity.described(row)["text"]["nats"] == {"value": nats.value, "low": nats.low, "high": nats.high}


@pytest.mark.parametrize("text", [None, 32, 31])
def test_windows_that_are_all_there_is_bound_nothing_more(text):
    (row,) = sensitivity.scanned([layer(0)], [Effect((0.1, 0.3) * 16, (0.2, 0.4) * 16)], replace(MANY, text=text))
    assert row.text is None
    assert "text" not in sensitivity.described(row)
