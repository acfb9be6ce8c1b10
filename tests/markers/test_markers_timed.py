"""Markers of what is timed: grids, caches, compilation and prices, and the words in which they refuse the rest."""

from __future__ import annotations

import math

import pytest

from pytest_quant import markers
from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import Gate
from pytest_quant.metrics.workload import Workload
from pytest_quant.speed import workload

LIMITED = {"throughput_ratio": {"min": 1.0}, "energy_ratio": {"max": 1.0}, "cost_ratio": {"max": 1.0}}
TIMED = [*LIMITED]


def mark(name: str, **named) -> pytest.Mark:
    return getattr(pytest.mark, name)(**named).mark


def gates(name: str, **named) -> tuple[Gate, ...]:
    return markers.gates([mark(name, **{**LIMITED[name], **named})])


def gate(name: str, **named) -> Gate:
    (only,) = gates(name, **named)
    return only


def refusal(name: str, **named) -> str:
    one = mark(name, **{**LIMITED[name], **named})
    with pytest.raises(UsageError) as caught:
        markers.gates([one])
    with pytest.raises(UsageError) as imperatively:
        markers.gate(name, one.kwargs)
    assert str(imperatively.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", TIMED)
def test_the_workload_of_a_marker(name):
    assert workload(gate(name)) == Workload()
    given = {"phase": "decode", "batch_size": 8, "prompt_tokens": 100, "new_tokens": 7, "cache": "static"}
    assert workload(gate(name, **given, compile=True)) == Workload(**given, compile=True)


def test_prices_are_no_part_of_the_workload():
    assert workload(gate("cost_ratio", price=2, reference_price=3)) == Workload()


# grids


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_make_a_gate_of_each_combination(name, kind):
    found = gates(name, batch_size=kind([1, 8]), prompt_tokens=kind([16, 64, 256]), new_tokens=4)
    cells = [(dict(one.parameters)["batch_size"], dict(one.parameters)["prompt_tokens"]) for one in found]
    assert cells == [(batch, prompt) for batch in (1, 8) for prompt in (16, 64, 256)]
    assert {dict(one.parameters)["new_tokens"] for one in found} == {4}
    assert {one.limits for one in found} == {tuple(LIMITED[name].items())}


def test_three_lists_are_a_grid_of_three():
    assert len(gates("throughput_ratio", batch_size=[1, 2], prompt_tokens=[3, 4], new_tokens=[5, 6, 7])) == 12


def test_a_list_of_one_is_that_one():
    assert gates("throughput_ratio", batch_size=[8]) == gates("throughput_ratio", batch_size=8)


def test_what_is_named_twice_is_asked_once():
    assert gates("throughput_ratio", batch_size=[8, 1, 8]) == gates("throughput_ratio", batch_size=[8, 1])


@pytest.mark.parametrize("phase", ["prefill", "ttft"])
def test_new_tokens_play_no_part_in_reading_prompts(phase):
    (only,) = gates("throughput_ratio", phase=phase, new_tokens=[4, 8, 16])
    assert only == gate("throughput_ratio", phase=phase)
    assert len(gates("throughput_ratio", phase=phase, new_tokens=[4, 8], prompt_tokens=[1, 2])) == 2


def test_memory_has_grids_too():
    found = markers.gates([mark("memory_budget", max_gb=1.0, of="kv_cache", batch_size=[1, 8], context=[128, 512])])
    assert len(found) == 4
    assert len(markers.gates([mark("memory_budget", max_gb=1.0, batch_size=[1, 8], context=[128, 512])])) == 1


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize("count", ["batch_size", "prompt_tokens", "new_tokens"])
@pytest.mark.parametrize("empty", [[], ()])
def test_a_list_of_nothing_tests_nothing(name, count, empty):
    with pytest.raises(UsageError, match=rf"^{name}: {count}=\[\] tests nothing$"):
        gates(name, **{count: empty})


@pytest.mark.parametrize("bad", [0, -1, 1.5, True, "8", None, [2]])
def test_each_of_a_list_must_be_a_count(bad):
    with pytest.raises(UsageError) as caught:
        gates("throughput_ratio", batch_size=[1, bad])
    assert str(caught.value) == f"throughput_ratio(batch_size={bad!r}): must be a whole number of 1 or more"


def test_limits_on_one_cell_of_a_grid_join_those_of_the_grid():
    grid, one = mark("throughput_ratio", min=1.0, batch_size=[1, 8]), mark("throughput_ratio", min=2.0, batch_size=8)
    found = {dict(g.parameters)["batch_size"]: dict(g.limits)["min"] for g in markers.gates([one, grid])}
    assert found == {1: 1.0, 8: 2.0}


def test_the_same_limit_on_one_cell_twice_in_one_place_is_refused():
    place, grid = object(), mark("throughput_ratio", min=1.0, batch_size=[1, 8])
    markers.check_stacked([(place, grid), (place, mark("throughput_ratio", min=2.0, batch_size=4))])
    with pytest.raises(UsageError, match="throughput_ratio sets min twice on the same test"):
        markers.check_stacked([(place, grid), (place, mark("throughput_ratio", min=2.0, batch_size=8))])


def test_imperatively_a_list_is_no_count():
    with pytest.raises(UsageError, match=r"batch_size=\[1, 8\]\): must be a whole number"):
        markers.gate("throughput_ratio", {"min": 1.0, "batch_size": [1, 8]})


# caches and compilation


@pytest.mark.parametrize("name", TIMED)
def test_a_cache_grows_unless_the_steps_are_compiled(name):
    assert dict(gate(name).parameters)["cache"] == "dynamic"
    assert dict(gate(name, cache="static").parameters)["cache"] == "static"
    assert dict(gate(name, compile=True).parameters)["cache"] == "static"
    assert gate(name, compile=True) == gate(name, compile=True, cache="static")
    assert gate(name, cache=None, compile=False) == gate(name)


@pytest.mark.parametrize("name", TIMED)
def test_compilation_needs_a_static_cache(name):
    assert refusal(name, compile=True, cache="dynamic") == (
        f'{name}(compile=True) needs cache="static": what grows is compiled again at every step'
    )


@pytest.mark.parametrize("name", TIMED)
@pytest.mark.parametrize("phase", ["prefill", "ttft"])
def test_only_steps_are_compiled(name, phase):
    assert refusal(name, compile=True, phase=phase).startswith(f'{name}(compile=True) is for phase="decode": ')
    assert dict(gate(name, cache="static", phase=phase).parameters)["cache"] == "static"


@pytest.mark.parametrize("cache", ["paged", "", "Static", True, 1, ["static"]])
def test_a_cache_that_there_is_not(cache):
    said = refusal("throughput_ratio", cache=cache)
    assert said == f"throughput_ratio(cache={cache!r}): must be one of 'dynamic', 'static'"


@pytest.mark.parametrize("compile", ["yes", 1, "reduce-overhead", [True]])
def test_compile_is_yes_or_no(compile):
    said = refusal("throughput_ratio", compile=compile)
    assert said == f"throughput_ratio(compile={compile!r}): must be a bool, not {type(compile).__name__}"


# prices


def test_prices_become_floats():
    parameters = dict(gate("cost_ratio", price=2, reference_price=3).parameters)
    assert (parameters["price"], parameters["reference_price"]) == (2.0, 3.0)
    assert type(parameters["price"]) is float
    assert gate("cost_ratio", price=2) == gate("cost_ratio", price=2.0)


def test_what_nobody_said_is_absent():
    assert not {"price", "reference_price"} & dict(gate("cost_ratio").parameters).keys()
    assert gate("cost_ratio", price=None) == gate("cost_ratio")


@pytest.mark.parametrize("name", ["price", "reference_price"])
@pytest.mark.parametrize("price", [0, -1, 0.0, math.nan, math.inf, True, "2", [1.0], 10**400, 1j])
def test_a_price_that_is_none(name, price):
    said = refusal("cost_ratio", **{name: price})
    assert said == f"cost_ratio({name}={price!r}): must be dollars an hour, a number above 0"


@pytest.mark.parametrize("name", ["throughput_ratio", "energy_ratio"])
def test_only_a_cost_has_a_price(name):
    assert refusal(name, price=2.0).startswith(f"{name} has no argument 'price'")


@pytest.mark.parametrize("name, limit", [("energy_ratio", "min"), ("cost_ratio", "min"), ("throughput_ratio", "max")])
def test_a_limit_on_the_harmless_side_is_none(name, limit):
    assert refusal(name, **{limit: 1.0}).startswith(f"{name} has no argument {limit!r}; its arguments are ")
