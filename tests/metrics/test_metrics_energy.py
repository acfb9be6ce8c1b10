"""Joules a token from a counter: how long it is read over, by hand, and what is no energy."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from pytest_quant.errors import NotMeasured
from pytest_quant.metrics import energy as module
from pytest_quant.metrics.energy import PERIODS, counted, energy
from pytest_quant.metrics.rounds import Rounds, Run


class Machine:
    """A clock that moves by what runs take, and a counter of so many watts that is updated every ``period``."""

    def __init__(self, monkeypatch, *, watts: float = 200.0, period: float = 0.1, takes: float = 0.25) -> None:
        self.now, self.runs, self.watts, self.period, self.takes = 1000.0, 0, watts, period, takes
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: self.now))

    def joules(self) -> float:
        return self.watts * math.floor(self.now / self.period + 1e-9) * self.period

    def work(self) -> Run:
        self.runs += 1
        self.now += self.takes
        return Run(32, self.takes * 0.8, steps=(0.1, 0.1))

    def counted(self) -> Run:
        return counted(self.work, self)


def test_runs_are_repeated_until_the_counter_was_updated_often_enough(monkeypatch):
    machine = Machine(monkeypatch, period=0.1, takes=0.25)
    found = machine.counted()
    assert machine.runs == math.ceil(PERIODS * 0.1 / 0.25) == 4
    assert found.tokens == 4 * 32
    assert found.joules == pytest.approx(200.0)
    assert found.seconds == pytest.approx(1.0), "prompts and waiting are in it"
    assert found.steps == ()


@pytest.mark.parametrize("period, takes, runs", [(0.001, 0.25, 1), (0.0, 0.25, 1), (1.0, 0.25, 40), (0.1, 5.0, 1)])
def test_one_run_is_enough_where_it_lasts_long_enough(monkeypatch, period, takes, runs):
    machine = Machine(monkeypatch, period=period or 1e-9, takes=takes)
    machine.period, updates = period, machine.period
    monkeypatch.setattr(machine, "joules", lambda: machine.watts * math.floor(machine.now / updates) * updates)
    machine.counted()
    assert machine.runs == runs


def test_the_counter_is_off_by_less_than_its_share_of_the_periods(monkeypatch):
    for start in (0.0, 0.03, 0.07, 0.099):
        machine = Machine(monkeypatch, takes=0.093)
        machine.now += start
        found = machine.counted()
        assert abs(found.joules / found.seconds / 200.0 - 1.0) <= 1.0 / PERIODS


@pytest.mark.parametrize("moves", [0.0, -5.0])
def test_a_counter_that_does_not_move_is_no_energy_of_nothing(monkeypatch, moves):
    machine = Machine(monkeypatch)
    told = iter([7000.0, 7000.0 + moves])
    monkeypatch.setattr(machine, "joules", lambda: next(told))
    with pytest.raises(NotMeasured, match=r"the energy counter did not move in 1\.0 s"):
        machine.counted()


def test_what_the_counter_says_is_told_as_it_is(monkeypatch):
    machine = Machine(monkeypatch)

    def gone() -> float:
        raise NotMeasured("the GPU's energy counter can no longer be read")

    monkeypatch.setattr(machine, "joules", gone)
    with pytest.raises(NotMeasured, match="can no longer be read"):
        machine.counted()


def played(*joules: tuple[float, float], tokens=(100, 100)) -> Rounds:
    rounds = Rounds()
    for ours, theirs in joules:
        rounds.add(Run(tokens[0], 2.0, joules=ours), Run(tokens[1], 4.0, joules=theirs))
    return rounds


def test_joules_a_token_by_hand():
    quantities, figures = energy(played(*[(50.0, 200.0)] * 10), 0.01)
    ratio, joules = quantities["ratio"], quantities["joules"]
    assert (ratio.value, ratio.low, ratio.high, ratio.unit) == (0.25, 0.25, 0.25, "x")
    assert (joules.value, joules.low, joules.high, joules.unit) == (0.5, 0.5, 0.5, "J/tok")
    assert figures == {"format_value": 0.5, "reference_value": 2.0, "format_watts": 25.0, "reference_watts": 50.0}


def test_each_side_counts_its_own_tokens():
    """The faster one is repeated more often within the same periods."""
    quantities, _ = energy(played(*[(100.0, 100.0)] * 10, tokens=(400, 100)), 0.01)
    assert quantities["ratio"].value == 0.25


def test_the_ratio_is_taken_round_by_round():
    """A machine that warms up takes more for both."""
    quantities, _ = energy(played(*((50.0 + 10 * i, 100.0 + 20 * i) for i in range(10))), 0.01)
    assert (quantities["ratio"].low, quantities["ratio"].high) == pytest.approx((0.5, 0.5))
    assert (quantities["joules"].low, quantities["joules"].high) == pytest.approx((0.5, 1.4))


def test_too_few_rounds_bound_nothing_but_that_energy_is_not_negative():
    quantities, _ = energy(played(*[(50.0, 100.0)] * 9), 0.01)
    for quantity in quantities.values():
        assert (quantity.low, quantity.high) == (0.0, math.inf)


def test_a_run_without_a_counter_has_no_energy():
    rounds = Rounds()
    rounds.add(Run(1, 1.0), Run(1, 1.0))
    with pytest.raises(ValueError, match="without an energy counter"):
        energy(rounds, 0.01)
