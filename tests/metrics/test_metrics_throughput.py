"""Speeds from rounds: what a run is, the ratio with its interval, and the figures behind it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pytest_quant.metrics import throughput
from pytest_quant.metrics.rounds import Rounds, Run
from pytest_quant.metrics.throughput import HOST_TURN, TURN, Player, pieces
from pytest_quant.metrics.workload import Workload

PROMPTS = np.zeros((2, 8), dtype=np.int64)


class Clock:
    """Notes what it was asked to time. A step takes longer than the one before it."""

    def __init__(self) -> None:
        self.asked: list[tuple] = []
        self.step = 0

    def prefill(self, prompt):
        self.asked.append(("prefill", prompt.shape))
        return 0.25

    def first_token(self, prompt):
        self.asked.append(("first_token", prompt.shape))
        return 0.5

    def start(self, prompt, new_tokens):
        self.asked.append(("start", prompt.shape, new_tokens))
        self.step = 0

    def steps(self, count):
        self.asked.append(("steps", count))
        first, self.step = self.step, self.step + count
        return [0.1 * (1 + step) for step in range(first, self.step)]


def played(*seconds: tuple[float, float], tokens: int = 100) -> Rounds:
    rounds = Rounds()
    for ours, theirs in seconds:
        rounds.add(Run(tokens, ours), Run(tokens, theirs))
    return rounds


def test_a_decode_is_the_sum_of_its_steps():
    clock = Clock()
    found = Player(clock, Workload("decode", 2, 8, 4), PROMPTS).whole()
    assert clock.asked == [("start", (2, 8), 4), ("steps", 4)]
    assert found.tokens == 8
    assert found.seconds == pytest.approx(1.0)
    assert found.steps == pytest.approx((0.1, 0.2, 0.3, 0.4))
    assert found.joules is None


def test_pieces_of_a_decode_read_the_prompts_once():
    clock = Clock()
    player = Player(clock, Workload("decode", 2, 8, 5), PROMPTS)
    found = [player.piece(*piece) for piece in ((0, 2), (2, 2), (4, 1), (0, 2))]
    assert clock.asked == [
        ("start", (2, 8), 5),
        ("steps", 2),
        ("steps", 2),
        ("steps", 1),
        ("start", (2, 8), 5),
        ("steps", 2),
    ]
    assert [run.tokens for run in found] == [4, 4, 2, 4]
    assert [run.seconds for run in found] == pytest.approx([0.3, 0.7, 0.5, 0.3])


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("new_tokens", [1, 2, 7, 32, 1000])
@pytest.mark.parametrize("step", [1e-9, 1e-4, 0.01, 0.04, 0.15, 3.0])
def test_pieces_are_every_step_once_and_last_about_a_turn(new_tokens, step, waits):
    found = pieces(Workload("decode", new_tokens=new_tokens), step, waits=waits)
    assert [place for first, count in found for place in range(first, first + count)] == list(range(new_tokens))
    counts = {count for _, count in found[:-1]} | {found[0][1]}
    assert len(counts) == 1
    (count,) = counts
    assert 0 < found[-1][1] <= count
    turn = HOST_TURN if waits else TURN
    assert count == new_tokens or abs(count * step - turn) <= step / 2 or (count == 1 and step > turn)


@pytest.mark.parametrize(
    "phase, asked, seconds, tokens", [("prefill", "prefill", 0.25, 16), ("ttft", "first_token", 0.5, 2)]
)
def test_a_prefill_and_a_first_token_have_no_steps(phase, asked, seconds, tokens):
    clock = Clock()
    found = Player(clock, Workload(phase, 2, 8, 4), PROMPTS).whole()
    assert clock.asked == [(asked, (2, 8))]
    assert found == Run(tokens, seconds)


def test_the_ratio_is_the_median_of_the_rounds_and_not_a_ratio_of_medians():
    # in each round the format is twice as fast, while the machine slows down a hundredfold
    seconds = [(0.1 * slower, 0.2 * slower) for slower in (1, 3, 9, 30, 100, 80, 70, 60, 50, 40)]
    found = throughput.ratio(played(*seconds), 0.01)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert found.unit == "x"


def test_the_interval_ends_at_rounds_that_were_seen():
    rounds = played(*((1.0, 1.0 + 0.1 * i) for i in range(10)))
    found = throughput.ratio(rounds, 0.01)
    assert (found.value, found.low, found.high) == pytest.approx((1.45, 1.0, 1.9))


def test_too_few_rounds_bound_nothing_but_that_a_speed_is_not_negative():
    found = throughput.ratio(played(*[(1.0, 1.5)] * 9), 0.01)
    assert (found.value, found.low, found.high) == (1.5, 0.0, math.inf)


def test_speeds_are_medians_of_tokens_a_second():
    figures = throughput.figures(played((1.0, 4.0), (2.0, 5.0), (10.0, 20.0)))
    assert figures == {"format_value": 50.0, "reference_value": 20.0}


def test_times_between_tokens_are_over_all_steps_of_all_runs_in_milliseconds():
    rounds = Rounds()
    rounds.add(Run(2, 0.3, (0.1, 0.2)), Run(2, 3.0, (1.0, 2.0)))
    rounds.add(Run(2, 0.7, (0.3, 0.4)), Run(2, 7.0, (3.0, 4.0)))
    figures = throughput.figures(rounds)
    ours = {name: figures[f"format_inter_token_{name}_ms"] for name in ("p50", "p90", "p99")}
    assert ours == pytest.approx({"p50": 250.0, "p90": 370.0, "p99": 397.0})
    assert figures["reference_inter_token_p50_ms"] == pytest.approx(2500.0)
    assert figures["reference_inter_token_p99_ms"] == pytest.approx(3970.0)
