"""Measurements that the last runs do not have, two gates on one question, and lines of the table that are few."""

from __future__ import annotations

import json

import numpy as np
import pytest
from comparing_examples import A, B, command, measured
from history_examples import SHA, history, only, record, speed, weights

from pytest_quant.history import keep, read
from pytest_quant.report.history import is_changed, table

WITHOUT = ("value", "low", "high", "identity", "unit")
REASON = "out of memory"


def lost(**more):
    """A gate on bytes that has no number."""
    found = {name: value for name, value in weights(1e9).items() if name not in WITHOUT}
    return {**found, "verdict": "not-measured", "reason": REASON, "breaks": True, **more}


def of(found, name="memory_budget"):
    return next(series for series in found.series if series.name == name)


def test_what_the_last_run_could_not_measure_is_red(tmp_path, capsys):
    series = of(history(tmp_path, [weights(1e9), speed(1.5)], [weights(1e9), speed(1.5)], [lost(), speed(1.5)]))
    assert (series.state, series.behind) == ("not measured", 1)
    assert series.reason == f"at {SHA[2][:7]} (2026-01-03): {REASON}"
    assert command("history", tmp_path, "--fail") == 1
    printed = capsys.readouterr().out
    assert f"memory: not measured at {SHA[2][:7]} (2026-01-03): {REASON}" in printed.replace(" weights", "")
    assert "1 not measured" in printed


def test_what_was_measured_again_is_not(tmp_path):
    assert of(history(tmp_path, [weights(1e9)], [lost()], [weights(1e9)])).state == "same"


def test_a_failure_that_was_expected_is_not(tmp_path):
    keep(tmp_path, record(0, weights(1e9)))
    keep(tmp_path, record(1, weights(1e9)))
    keep(tmp_path, record(2, lost(), failed=[]))
    assert of(read(tmp_path)).state == "same"
    keep(tmp_path, record(3, lost(), failed=[lost()["test"]]))
    assert of(read(tmp_path)).state == "not measured"


def test_another_gate_without_a_number_is_another(tmp_path):
    for number, gate in enumerate(
        (lost(parameters={"of": "peak"}), lost(test="test_it.py::other"), lost(format="int8"))
    ):
        assert of(history(tmp_path / str(number), [weights(1e9)], [weights(1e9)], [gate])).state == "same"


def test_what_nobody_asks_for_is_retired_and_keeps_nothing_red(tmp_path, capsys):
    runs = [[weights(1e9), speed(1.5)], [weights(2e9), speed(1.5)], *([[speed(1.5)]] * 2)]
    assert of(history(tmp_path, *runs)).state == "worse"
    assert command("history", tmp_path, "--fail") == 1
    keep(tmp_path, record(4, speed(1.5), incomplete=True))
    assert of(read(tmp_path)).state == "worse"
    keep(tmp_path, record(5, speed(1.5)))
    series = of(read(tmp_path))
    assert (series.state, series.behind) == ("retired", 3)
    capsys.readouterr()
    assert command("history", tmp_path, "--fail") == 0
    assert "retired, as the last commits on this hardware do not have it: nf4" in capsys.readouterr().out


def test_what_was_tried_in_vain_is_not_retired_while_it_is_tried(tmp_path):
    runs = [[weights(1e9)], [weights(1e9)], *([[lost(), speed(1.5)]] * 4)]
    assert of(history(tmp_path, *runs)).state == "not measured"


def test_shards_of_a_commit_are_not_behind_each_other(tmp_path):
    for number in range(5):
        for shard in ([weights(1e9)], [speed(1.5)], [measured()]):
            keep(tmp_path, record(number, *shard))
    assert [(series.behind, series.state) for series in read(tmp_path).series] == [(0, "same")] * 3


@pytest.mark.parametrize("turned", [False, True])
def test_of_two_gates_on_one_question_the_louder_and_stricter_count(tmp_path, turned):
    gates = [
        measured(limit={"max": 9.0}, verdict="failed", test="test_it.py::test_red[nf4]"),
        measured(limit={"max": 0.5}, test="test_it.py::test_green[nf4]"),
    ]
    series = only(history(tmp_path, gates[::-1] if turned else gates))
    assert (series.points[0].verdict, series.limit, series.test) == ("failed", 0.5, "test_it.py::test_red[nf4]")


def test_single_runs_that_are_off_take_one_line(tmp_path):
    random = np.random.default_rng(3)
    values = [1.5 * (0.5 if number % 5 == 4 else 1.0) * (1 + 0.02 * random.standard_normal()) for number in range(30)]
    found = history(tmp_path, *([speed(value)] for value in values[:-1]))
    lines = "\n".join(table(found.series))
    assert lines.count("outlier") + lines.count("not confirmed") == 0
    assert "5 earlier runs are off by themselves; usual noise between runs" in " ".join(lines.split())
    keep(tmp_path, record(29, speed(values[29])))
    lines = "\n".join(table(read(tmp_path).series))
    assert lines.count("not confirmed yet") == 1


def test_what_is_listed_as_changed_has_a_reason(tmp_path, capsys):
    hot = [{"name": "hot", "text": "the device was hot"}]
    history(tmp_path, [weights(1e9)], [weights(1e9, conditions=hot)], [weights(1e9)])
    assert not is_changed(only(read(tmp_path)))
    keep(tmp_path, record(3, weights(1e9, conditions=hot)))
    assert command("history", tmp_path, "--only-changed", "--fail") == 2
    assert "not judged: the device was hot" in capsys.readouterr().out


def test_characters_that_turn_or_hide_text_are_shown(tmp_path, capsys):
    evil = "a\x1b[31m\u202eb\nc"
    for number, value in enumerate((1e9, 2e9)):
        data = record(number, weights(value, model=evil, format=evil), on={**A, "name": evil})
        keep(tmp_path, data)
    (tmp_path / "bad\x1b[31m.json").write_text("{")
    command("history", tmp_path)
    told = capsys.readouterr()
    assert not {"\x1b", "\u202e"} & set(told.out + told.err)
    assert "a\\u001b[31m\\u202eb c" in told.out


def test_the_shards_of_a_commit_are_compared_with_what_they_could_not_measure(tmp_path, capsys):
    keep(tmp_path, record(1, weights(1e9), speed(1.5)))
    shards = [record(2, lost()), record(2, speed(1.5))]
    for hour, shard in enumerate(shards):
        shard["environment"]["started"] = f"2026-01-03T0{hour}:00:00Z"
        keep(tmp_path, shard)
    for new in ("latest", SHA[2][:7]):
        assert command("compare", f"{tmp_path}@{SHA[1][:7]}", f"{tmp_path}@{new}", "--fail") == 1
        assert REASON in capsys.readouterr().out
    again = record(2, weights(1e9))
    again["environment"]["started"] = "2026-01-03T05:00:00Z"
    keep(tmp_path, again)
    assert command("compare", f"{tmp_path}@{SHA[1][:7]}", f"{tmp_path}@latest", "--fail") == 0


def test_a_broken_gate_of_an_earlier_shard_stays_broken(tmp_path):
    keep(tmp_path, record(1, weights(1e9)))
    for hour, verdict in enumerate(("failed", "passed")):
        shard = record(2, weights(1e9, verdict=verdict, test=f"test_it.py::test_{verdict}[nf4]"))
        shard["environment"]["started"] = f"2026-01-03T0{hour}:00:00Z"
        keep(tmp_path, shard)
    assert command("compare", f"{tmp_path}@{SHA[1][:7]}", f"{tmp_path}@latest", "--fail") == 1


def test_the_latest_is_all_shards_of_its_commit(tmp_path, capsys):
    for number in (1, 2):
        keep(tmp_path, record(number, weights(number * 1e9)))
        later = record(number, speed(1.5), on=B)
        later["environment"]["started"] = f"2026-01-0{number + 1}T20:00:00Z"
        keep(tmp_path, later)
    assert command("compare", f"{tmp_path}@{SHA[1][:7]}", f"{tmp_path}@latest", "--fail", "--json") == 1
    rows = json.loads(capsys.readouterr().out)
    assert "regressed" in json.dumps(rows)
