"""Which run is said to have moved a metric: what was planted, and next to nothing where nothing was."""

from __future__ import annotations

import math

import numpy as np
import pytest
from comparing_examples import TOTAL, measured
from history_examples import history, moves, only, ratios, speed, weights

from pytest_quant.history.changes import ERROR_RATE, find

HOT = [{"name": "hot", "text": "the device was hot"}]


def nats(*by: float):
    return [[measured(by=each)] for each in by]


def test_a_step_is_named_at_its_commit(tmp_path):
    series = only(history(tmp_path, *nats(0, 0, 0, 0.01, 0.01, 0.01)))
    assert moves(series) == {3: "worse"}
    moved = series.points[3]
    assert moved.change == "+0.0100 nats"
    assert moved.before == series.points[2].commit
    assert moved.began == ""
    assert series.state == "worse"
    assert [point.level for point in series.points] == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("at", [1, 5])
def test_the_second_and_the_last_run_can_be_it(tmp_path, at):
    series = only(history(tmp_path, *nats(*(0.0 if number < at else 0.02 for number in range(6)))))
    assert moves(series) == {at: "worse"}


def test_a_change_below_the_smallest_effect_is_none(tmp_path):
    series = only(history(tmp_path, *nats(0, 0.0009, -0.0009, 0.0009)))
    assert (moves(series), series.state) == ({}, "same")


def test_small_steps_add_up_and_it_is_said_since_when(tmp_path):
    series = only(history(tmp_path, *nats(0, 0, 0, 0.0004, 0.0008, 0.0012, 0.0012)))
    assert moves(series) == {5: "worse"}
    assert series.points[5].began == series.points[3].commit
    assert series.points[5].before == series.points[4].commit


def test_what_returns_has_moved_twice_and_is_as_it_was(tmp_path):
    series = only(history(tmp_path, *nats(0, 0, 0.01, 0.01, 0, 0)))
    assert moves(series) == {2: "worse", 4: "better"}
    assert series.state == "same"


def test_half_of_it_returned_is_still_worse(tmp_path):
    series = only(history(tmp_path, *nats(0, 0, 0.02, 0.02, 0.01)))
    assert moves(series) == {2: "worse", 4: "better"}
    assert series.state == "worse"


def test_a_baseline_that_passes_accepts_the_new_level(tmp_path):
    runs = [[measured(by=0)], [measured(by=0.01)], [measured(by=0.01, baseline={"verdict": "passed"})]]
    series = only(history(tmp_path, *runs))
    assert (moves(series), series.state) == ({1: "worse"}, "same")


def test_a_first_recording_accepts_nothing(tmp_path):
    runs = [[measured(by=by, baseline={"verdict": "new"})] for by in (0, 0, 0.01)]
    assert only(history(tmp_path, *runs)).state == "worse"


def test_the_windows_of_a_failed_gate_are_enough_to_name_it(tmp_path):
    """A limit that breaks early ends the scoring: of a few windows the interval says whether they moved."""
    runs = [[measured()], [measured()], [measured(used=10, by=0.5, verdict="failed")]]
    series = only(history(tmp_path, *runs))
    assert moves(series) == {2: "worse"}
    assert series.points[2].verdict == "failed"


def test_few_windows_that_vary_tell_nothing(tmp_path):
    noisy = tuple(0.03 * (-1) ** number for number in range(TOTAL))
    few = measured(used=8)
    few["scores"] = [score + by for score, by in zip(few["scores"], noisy, strict=False)]
    series = only(history(tmp_path, [measured()], [few]))
    assert (moves(series), series.state) == ({}, "open")
    assert series.points[1].event.startswith("not judged")


def test_later_runs_are_compared_with_the_one_that_saw_more_windows(tmp_path):
    runs = [[measured(used=8)], [measured()], [measured(by=0.0011)]]
    assert moves(only(history(tmp_path, *runs))) == {2: "worse"}


def test_bytes_move_by_a_hundredth(tmp_path):
    series = only(history(tmp_path, *([weights(value)] for value in (1e9, 1.005e9, 1.02e9, 0.9e9))))
    assert moves(series) == {2: "worse", 3: "better"}
    assert series.limit == 2e9


def test_another_model_is_no_move(tmp_path):
    other = measured(by=0.5)
    other["identity"] = {**other["identity"], "model": {"fingerprint": "0" * 16}}
    series = only(history(tmp_path, [measured()], [measured()], [other], [other]))
    assert moves(series) == {}
    assert [point.event for point in series.points] == ["", "", "another model", ""]
    assert "fingerprint" in series.points[2].reason


def test_runs_without_the_measurement_lie_in_between(tmp_path):
    found = history(tmp_path, [measured()], [speed(1.5)], [measured()], [speed(1.5)], [measured(by=0.01)])
    quality = next(series for series in found.series if series.name == "perplexity_delta")
    assert moves(quality) == {2: "worse"}
    assert quality.points[2].before == quality.points[1].commit


def test_one_slow_run_is_an_outlier(tmp_path):
    series = only(history(tmp_path, *([speed(value)] for value in (1.5, 1.52, 1.49, 0.8, 1.5, 1.51))))
    assert (moves(series), series.state) == ({}, "same")
    assert [point.event for point in series.points] == ["", "", "", "outlier", "", ""]


def test_the_last_slow_run_is_not_confirmed_yet(tmp_path):
    series = only(history(tmp_path, *([speed(value)] for value in (1.5, 1.52, 1.49, 1.5, 0.8))))
    assert (moves(series), series.state) == ({}, "open")
    assert series.points[4].event == "not confirmed yet"


def test_runs_that_stay_slow_have_moved(tmp_path):
    values = (1.5, 1.52, 1.49, 1.5, 1.51, 0.9, 0.91, 0.89)
    series = only(history(tmp_path, *([speed(value)] for value in values)))
    assert (moves(series), series.state) == ({5: "worse"}, "worse")
    assert series.points[5].change.startswith("-4")


def test_a_first_run_that_was_fast_by_chance_makes_no_other_worse(tmp_path):
    series = only(history(tmp_path, *([speed(value)] for value in (1.8, 1.5, 1.52, 1.49, 1.51, 1.5))))
    assert (moves(series), series.state) == ({}, "same")


def test_speed_that_came_back_is_as_accepted_and_half_of_it_is_not(tmp_path):
    usual, slow, half = [1.5] * 6, [0.75] * 6, [1.1] * 8
    back = only(history(tmp_path / "back", *([speed(value)] for value in (*usual, *slow, *usual))))
    assert (moves(back), back.state) == ({6: "worse", 12: "better"}, "same")
    partly = only(history(tmp_path / "partly", *([speed(value)] for value in (*usual, *slow, *half))))
    assert (moves(partly), partly.state) == ({6: "worse", 12: "better"}, "worse")


def test_a_slower_speed_that_a_baseline_accepts_is_accepted(tmp_path):
    runs = [[speed(1.5)]] * 6 + [[speed(0.75)]] * 4 + [[speed(0.75, baseline={"verdict": "passed"})]]
    series = only(history(tmp_path, *runs))
    assert (moves(series), series.state) == ({6: "worse"}, "same")


def test_a_disturbed_run_counts_for_nothing(tmp_path):
    runs = [[speed(1.5)] for _ in range(5)] + [[speed(0.8, conditions=HOT)] for _ in range(3)]
    series = only(history(tmp_path, *runs))
    assert moves(series) == {}
    assert series.points[6].event == "not judged: the device was hot"


def test_disturbed_runs_at_the_end_leave_it_open(tmp_path):
    disturbed = [[speed(0.8, conditions=HOT)] for _ in range(3)]
    series = only(history(tmp_path / "many", *([[speed(1.5)]] * 5), *disturbed))
    assert (series.state, moves(series)) == ("open", {})
    assert only(history(tmp_path / "few", [speed(1.5)], disturbed[0])).state == "open"
    assert only(history(tmp_path / "none", *disturbed)).state == "open"


@pytest.mark.parametrize("last", [speed(0.4), speed(1.5), speed(0.9, conditions=HOT)], ids=["slower", "fast", "hot"])
def test_an_unclear_last_run_does_not_take_back_what_is_known_to_be_worse(tmp_path, last):
    slow = [[speed(value)] for value in (1.5, 1.52, 1.49, 1.5, 1.51, 1.5, 0.9, 0.91, 0.89, 0.9)]
    series = only(history(tmp_path, *slow, [last]))
    assert (moves(series), series.state) == ({6: "worse"}, "worse")
    assert series.points[-1].event


def test_a_lost_or_disturbed_last_run_keeps_bytes_worse(tmp_path):
    grown = [[weights(1e9)], [weights(1e9)], [weights(2e9)]]
    assert only(history(tmp_path / "hot", *grown, [weights(2e9, conditions=HOT)])).state == "worse"
    assert only(history(tmp_path / "fine", *grown[:2], [weights(1e9, conditions=HOT)])).state == "open"


def test_a_disturbed_first_run_is_no_level(tmp_path):
    runs = [[weights(3e9, conditions=HOT)], [weights(1e9)], [weights(1e9)], [weights(2e9)]]
    series = only(history(tmp_path, *runs))
    assert (moves(series), series.state) == ({3: "worse"}, "worse")


@pytest.mark.parametrize(
    "step, runs, spread", [(0.03, 20, 0.01), (0.01, 40, 0.02), (0.002, 200, 0.02), (0.001, 200, 0.01)]
)
def test_a_drift_amid_noise_ends_worse(step, runs, spread):
    random = np.random.default_rng(11)
    for _ in range(5):
        logs = [-step * place + spread * random.standard_normal() for place in range(runs)]
        found = find(ratios(logs), share=0.25)
        assert found.state == "worse"
        assert "worse" in {each.moved for each in found.runs}


def test_a_drift_is_told_from_the_last_run_that_was_as_before_and_by_its_levels(tmp_path):
    random = np.random.default_rng(12)
    logs = [-0.01 * max(0, number - 10) + 0.01 * random.standard_normal() for number in range(40)]
    series = only(history(tmp_path, *([speed(1.5 * math.exp(each))] for each in logs)))
    place = min(moves(series))
    moved = series.points[place]
    commits = [point.commit for point in series.points]
    assert commits.index(moved.before) == commits.index(moved.began) - 1
    assert 8 <= commits.index(moved.began) < place
    assert moved.reason.startswith("1.")
    before, now = (float(part.partition("x")[0]) for part in moved.reason.split(", ")[:2])
    assert now / before - 1.0 == pytest.approx(float(moved.change.rstrip("%")) / 100.0, abs=2e-3)


def test_a_slow_drift_of_speed_is_found():
    logs = [0.0] * 12 + [-0.02 * step for step in range(1, 21)] + [-0.4] * 5
    found = find(ratios(logs)).runs
    first = next(place for place, each in enumerate(found) if each.moved)
    assert found[first].moved == "worse"
    assert 13 <= first <= 32
    assert found[first].began is not None
    assert 12 <= found[first].began <= 16


def alarms(draw, histories: int, runs: int = 40, several: int = 4) -> float:
    """The share of histories of several series in which anything is said to have moved."""
    count = 0
    for _ in range(histories):
        count += any(each.moved for _ in range(several) for each in find(ratios(draw(runs)), share=1.0 / several).runs)
    return count / histories


@pytest.mark.parametrize("spread", [0.01, 0.03, 0.1])
def test_noise_is_not_said_to_have_moved(spread):
    random = np.random.default_rng(7)
    assert alarms(lambda runs: spread * random.standard_normal(runs), 150) <= ERROR_RATE


def test_heavy_tails_and_a_machine_that_drifts_raise_few_alarms():
    random = np.random.default_rng(8)

    def wandering(runs: int):
        noise = random.standard_normal(runs)
        for place in range(1, runs):
            noise[place] = 0.5 * noise[place - 1] + math.sqrt(0.75) * noise[place]
        return 0.05 * noise

    assert alarms(lambda runs: 0.03 * random.standard_t(3, runs), 150) <= 3 * ERROR_RATE
    assert alarms(wandering, 150) <= ERROR_RATE


@pytest.mark.parametrize("at, runs", [(4, 12), (12, 24), (28, 40), (37, 40)])
def test_a_quarter_of_the_speed_lost_amid_noise_is_found_at_its_run(at, runs):
    random = np.random.default_rng(9)
    right = 0
    for _ in range(40):
        logs = 0.02 * random.standard_normal(runs)
        logs[at:] += math.log(0.75)
        moved = [place for place, each in enumerate(find(ratios(logs), share=0.25).runs) if each.moved]
        right += moved == [at]
    assert right >= 38


def test_windows_of_which_a_part_was_scored_raise_no_alarm():
    """40 runs of which each stopped early, of noise that would make a regression of 0.001 nats of one in two."""
    from dataclasses import replace

    from comparing_examples import MODEL, quality

    from pytest_quant.comparing.sides import from_entry

    random = np.random.default_rng(10)
    count = 0
    for _ in range(60):
        items = []
        for _ in range(40):
            used = int(random.integers(8, 16))
            base = from_entry("gpu-a", MODEL, quality(tuple(0.02 * random.standard_normal(TOTAL))))
            scores = (base.entry.scores or ())[:used]
            measurement = replace(base.measurement, scores=scores, weights=(64.0,) * used, windows=(used, 1000))
            items.append(replace(base, measurement=measurement, entry=replace(base.entry, scores=scores)))
        count += any(each.moved for each in find(items).runs)
    assert count <= 1
