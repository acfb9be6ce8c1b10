"""Rounds: who goes first, what is paired with what, and what is no time."""

from __future__ import annotations

import itertools
import weakref

import pytest

from pytest_quant.errors import NotMeasured
from pytest_quant.metrics.rounds import BLOCK, Rounds, Run, block, play


class Machine:
    """Counts the runs of both, and gives each its own seconds and number."""

    def __init__(self, slower: float = 0.0) -> None:
        self.log: list[str] = []
        self.slower = slower
        """Seconds by which every run takes longer than the one before it."""

    def run(self, who: str, seconds: float) -> Run:
        self.log.append(who)
        return Run(len(self.log), seconds + self.slower * (len(self.log) - 1))

    def play(self, rounds: Rounds) -> None:
        play(rounds, lambda: self.run("ours", 1.0), lambda: self.run("theirs", 2.0))


def test_the_speed_of_a_run():
    assert Run(30, 1.5).speed == 20.0


def test_a_coin_decides_who_goes_first():
    machine, rounds = Machine(), Rounds()
    for _ in range(400):
        machine.play(rounds)
    firsts = machine.log[::2]
    assert 130 <= firsts.count("ours") <= 270, "further off in one of 10^12 tries"
    again = sum(one == other for one, other in itertools.pairwise(firsts))
    assert 130 <= again <= 270, "who was first says nothing of who will be"
    assert all({*pair} == {"ours", "theirs"} for pair in zip(machine.log[::2], machine.log[1::2], strict=True))


def test_pairs_stay_aligned_whoever_went_first():
    machine, rounds = Machine(), Rounds()
    for _ in range(100):
        machine.play(rounds)
    assert len(rounds) == len(rounds.ours) == len(rounds.theirs) == 100
    assert {run.seconds for run in rounds.ours} == {1.0}
    assert {run.seconds for run in rounds.theirs} == {2.0}
    for number, (ours, theirs) in enumerate(zip(rounds.ours, rounds.theirs, strict=True)):
        assert {ours.tokens, theirs.tokens} == {2 * number + 1, 2 * number + 2}, "both ran in the same round"
    orders = {ours.tokens < theirs.tokens for ours, theirs in zip(rounds.ours, rounds.theirs, strict=True)}
    assert orders == {True, False}


def test_ratios_are_the_format_s_speed_over_the_reference_s():
    rounds = Rounds()
    rounds.add(Run(10, 1.0), Run(10, 2.0))
    rounds.add(Run(10, 4.0), Run(10, 2.0))
    assert rounds.ratios == [2.0, 0.5]


@pytest.mark.parametrize("ours, theirs", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (-1e-9, 1.0)])
def test_where_no_time_passed_nothing_is_measured_and_nothing_kept(ours, theirs):
    rounds = Rounds()
    with pytest.raises(NotMeasured, match="the clock saw no time pass in a run; ask for more tokens"):
        play(rounds, lambda: Run(1, ours), lambda: Run(1, theirs))
    assert (len(rounds), rounds.theirs) == (0, [])


@pytest.mark.parametrize("place", range(1, 6))
def test_what_breaks_in_a_run_leaves_no_half_round(place):
    runs = itertools.count(1)

    def once() -> Run:
        if next(runs) == place:
            raise MemoryError
        return Run(1, 1.0)

    rounds = Rounds()
    for _ in range((place - 1) // 2):
        play(rounds, once, once)
    with pytest.raises(MemoryError):
        play(rounds, once, once)
    assert len(rounds.ours) == len(rounds.theirs) == (place - 1) // 2


# blocks


class Loader:
    """Loads one model at a time; one that is still held when the other is loaded is an error."""

    def __init__(self, slower: float = 0.0) -> None:
        self.machine = Machine(slower)
        self.loads: list[str] = []
        self.held: list[weakref.ref] = []

    def load(self, who: str):
        assert not any(model() for model in self.held), "both models are in memory"
        self.loads.append(who)

        class Model:
            def __call__(model) -> Run:
                return self.machine.run(who, 10.0 if who == "ours" else 20.0)

        made = Model()
        self.held.append(weakref.ref(made))
        return made

    def play(self, rounds: Rounds) -> None:
        play(rounds, lambda: block(lambda: self.load("ours")), lambda: block(lambda: self.load("theirs")))


def test_a_block_is_one_run_of_a_round():
    loader, rounds = Loader(), Rounds()
    for _ in range(20):
        loader.play(rounds)
    assert len(rounds) == 20
    assert {run.seconds for run in rounds.ours} == {10.0 * BLOCK}
    assert {run.seconds for run in rounds.theirs} == {20.0 * BLOCK}
    pairs = {tuple(loader.loads[place : place + 2]) for place in range(0, 40, 2)}
    assert pairs == {("ours", "theirs"), ("theirs", "ours")}, "in an order that a coin decides"
    assert loader.machine.log == [who for who in loader.loads for _ in range(BLOCK)]


def test_a_block_keeps_every_step_and_joule():
    whole = block(lambda: lambda: Run(4, 2.0, (0.5, 1.5), joules=3.0))
    assert whole == Run(4 * BLOCK, 2.0 * BLOCK, (0.5, 1.5) * BLOCK, joules=3.0 * BLOCK)
    assert block(lambda: lambda: Run(4, 2.0)).joules is None


def test_a_block_that_breaks_leaves_nothing():
    rounds = Rounds()

    def broken():
        raise MemoryError

    for _ in range(10):
        with pytest.raises(MemoryError):
            play(rounds, lambda: block(lambda: lambda: Run(1, 1.0)), lambda: block(broken))
    assert (rounds.ours, rounds.theirs) == ([], [])
