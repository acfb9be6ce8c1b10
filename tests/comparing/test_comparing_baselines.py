"""`pytest-quant baseline show`, `merge` and `prune`: exit codes, lines and bytes."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import pytest
from comparing_examples import A, B, command, identity, put, quality, recorded, speed, tree, weights

from pytest_quant import baseline
from pytest_quant.baseline_commands import moment
from pytest_quant.errors import UsageError


def test_show(tmp_path, capsys):
    root = put(put(tmp_path / "q", quality(), speed(), weights()), quality(day=3), on=B)
    assert command("baseline", "show", root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "org/model on GPU A (gpu-a)"
    assert lines[1].split() == ["format", "metric", "value", "recorded", "commit"]
    assert [line.split()[:3] for line in lines[2:5]] == [
        ["nf4", "memory", "weights"],
        ["nf4", "perplexity", f"{quality().value:+.3g}"],
        ["nf4", "decode", "speed"],
    ]
    assert "1.5x [1.45, 1.55]" in lines[4]
    assert "16/16" in lines[3]
    assert lines[3].split()[-2:] == ["2026-01-01", "000000000"]
    assert lines[5:7] == ["", "org/model on GPU B (gpu-b)"]


def test_show_as_json_and_of_one_file(tmp_path, capsys):
    root = put(put(tmp_path / "q", quality(), speed()), quality(day=3), on=B)
    (path,) = (root / "gpu-a").iterdir()
    assert command("baseline", "show", path, "--json") == 0
    found = json.loads(capsys.readouterr().out)["measurements"]
    assert [(each["metric"], each["hardware"]["key"]) for each in found] == [
        ("perplexity_delta", "gpu-a"),
        ("throughput_ratio", "gpu-a"),
    ]
    assert found[0]["windows"] == 16
    assert "low" not in found[0]
    assert found[1]["parameters"] == {"phase": "decode"}


def test_show_names_each_damaged_file_and_shows_the_others(tmp_path, capsys):
    root = put(put(tmp_path / "q", quality()), quality(), on=B)
    (broken,) = (root / "gpu-b").iterdir()
    broken.write_bytes(broken.read_bytes()[:-20])
    assert command("baseline", "show", root) == 2
    said = capsys.readouterr()
    assert str(broken) in said.err
    assert "GPU A" in said.out
    assert command("baseline", "show", tmp_path / "none") == 2
    (tmp_path / "empty").mkdir()
    assert command("baseline", "show", tmp_path / "empty") == 0
    assert "no baselines in" in capsys.readouterr().out


def parts(root):
    """Three runners: two of one kind that measured the same model, one of another kind."""
    return [
        put(root / "one", quality(0.01, day=1), speed(1.5, day=1)),
        put(root / "two", quality(0.02, day=2), weights(day=2)),
        put(root / "three", quality(day=1), on=B),
    ]


def test_any_order_gives_the_same_bytes_and_twice_changes_nothing(tmp_path, capsys):
    made = parts(tmp_path)
    results = []
    for number, order in enumerate(itertools.permutations(made)):
        into = tmp_path / f"merged{number}"
        assert command("baseline", "merge", *order, "--into", into) == 0
        results.append(tree(into))
        before = {path: path.stat().st_mtime_ns for path in into.rglob("*.json")}
        assert command("baseline", "merge", *order, "--into", into) == 0
        assert {path: path.stat().st_mtime_ns for path in into.rglob("*.json")} == before
        assert capsys.readouterr().out.splitlines()[-1].endswith("none of them written")
    assert all(each == results[0] for each in results)
    merged = baseline.read(baseline.path_for(tmp_path / "merged0", "gpu-a", "org/model"))
    assert sorted(entry.metric for entry in merged.entries) == ["memory_budget", "perplexity_delta", "throughput_ratio"]


def test_the_newest_of_two_values_counts_and_it_is_said(tmp_path, capsys):
    one, two, _ = parts(tmp_path)
    into = tmp_path / "m"
    assert command("baseline", "merge", one, two, "--into", into) == 0
    lines = capsys.readouterr().out.splitlines()
    conflicts = [line for line in lines if line.startswith("conflict: ")]
    assert len(conflicts) == 1
    assert f"of {two} (2026-01-02T00:00:00Z), not" in conflicts[0]
    file = baseline.read(baseline.path_for(into, "gpu-a", "org/model"))
    (kept,) = [entry for entry in file.entries if entry.metric == "perplexity_delta"]
    assert kept == quality(0.02, day=2)


def test_a_conflict_can_fail_and_then_nothing_is_written(tmp_path, capsys):
    made, into = parts(tmp_path), tmp_path / "m"
    assert command("baseline", "merge", *made, "--into", into, "--on-conflict=fail") == 1
    assert not into.exists()
    assert "nothing was written" in capsys.readouterr().out
    assert command("baseline", "merge", made[0], made[2], "--into", into, "--on-conflict=fail") == 0


@pytest.mark.parametrize(("there", "part"), [(0.0, 0.2), (0.2, 0.0)])
def test_of_one_date_what_a_part_changed_counts_before_what_lies_there(tmp_path, there, part):
    into, same = put(tmp_path / "m", quality(there)), put(tmp_path / "same", quality(there))
    other = put(tmp_path / "part", quality(part))
    assert command("baseline", "merge", same, other, "--into", into) == 0
    (entry,) = baseline.read(baseline.path_for(into, "gpu-a", "org/model")).entries
    assert entry.value == quality(part).value


@pytest.mark.parametrize("order", [1, -1])
def test_two_parts_that_changed_it_differently_at_one_time_are_for_a_person(tmp_path, capsys, order):
    into = put(tmp_path / "m", quality(0.1))
    before = tree(into)
    parts = [put(tmp_path / "one", quality(0.0)), put(tmp_path / "two", quality(0.2))]
    assert command("baseline", "merge", *parts[::order], "--into", into) == 1
    assert tree(into) == before
    first, last = capsys.readouterr().out.splitlines()
    for part in parts:
        assert f" of {part} (2026-01-01T00:00:00Z)" in first
    assert "which one is newer cannot be told" in first
    assert last == "1 conflict: nothing was written"
    later = put(tmp_path / "later", quality(0.3, day=2))
    assert command("baseline", "merge", *parts, later, "--into", into) == 0, "there is a newest"


def test_one_value_recorded_twice_is_one_and_no_conflict(tmp_path, capsys):
    one, two = put(tmp_path / "one", quality(day=1)), put(tmp_path / "two", quality(day=2))
    into = tmp_path / "m"
    assert command("baseline", "merge", one, two, "--into", into, "--on-conflict=fail") == 0
    assert "conflict" not in capsys.readouterr().out
    assert len(baseline.read(baseline.path_for(into, "gpu-a", "org/model")).entries) == 1


def test_what_lies_there_stays_and_an_unchanged_value_keeps_its_date(tmp_path):
    into = put(put(tmp_path / "m", quality(day=1), speed(day=1)), weights(), on=B)
    before = tree(into)
    part = put(tmp_path / "part", quality(day=5))
    assert command("baseline", "merge", part, "--into", into) == 0
    assert tree(into) == before, "the same value: no line of a diff"
    put(tmp_path / "part", quality(0.01, day=5))
    assert command("baseline", "merge", part, into, "--into", into) == 0
    file = baseline.read(baseline.path_for(into, "gpu-a", "org/model"))
    assert {entry.metric: entry for entry in file.entries} == {
        "perplexity_delta": quality(0.01, day=5),
        "throughput_ratio": speed(day=1),
    }


def test_what_has_no_date_is_older_than_what_has(tmp_path):
    undated = replace(quality(0.5), recorded={})
    one, two = put(tmp_path / "one", undated), put(tmp_path / "two", quality(day=1))
    for order, into in (((one, two), tmp_path / "m"), ((two, one), tmp_path / "n")):
        assert command("baseline", "merge", *order, "--into", into) == 0
        assert baseline.read(baseline.path_for(into, "gpu-a", "org/model")).entries == (quality(day=1),)


def test_a_damaged_part_is_named_and_nothing_is_written(tmp_path, capsys):
    made, into = parts(tmp_path), tmp_path / "m"
    (broken,) = (made[2] / "gpu-b").iterdir()
    broken.write_text("<<<<<<< HEAD\n")
    assert command("baseline", "merge", *made, "--into", into) == 2
    said = capsys.readouterr().err
    assert str(broken) in said
    assert "nothing was written" in said
    assert not into.exists()
    assert command("baseline", "merge", tmp_path / "none", "--into", into) == 2
    assert not into.exists()


def test_a_damaged_target_is_left_alone(tmp_path):
    into = put(tmp_path / "m", quality())
    (broken,) = (into / "gpu-a").iterdir()
    broken.write_text("{")
    assert command("baseline", "merge", put(tmp_path / "one", quality(), on=B), "--into", into) == 2
    assert tree(into) == {"gpu-a/org--model-" + broken.stem.rpartition("-")[2] + ".json": b"{"}


def test_a_part_of_nothing_is_said_and_parts_a_level_too_high_are_an_error(tmp_path, capsys):
    (tmp_path / "nothing").mkdir()
    one = put(tmp_path / "all" / "one", quality())
    assert command("baseline", "merge", tmp_path / "nothing", one, "--into", tmp_path / "m") == 0
    assert f"{tmp_path / 'nothing'}: holds no baselines" in capsys.readouterr().out
    assert command("baseline", "merge", tmp_path / "all", "--into", tmp_path / "m") == 2
    assert str(one) in capsys.readouterr().err


def test_two_models_of_one_name_are_both_kept_and_it_is_said(tmp_path, capsys):
    other = replace(quality(0.3), identity=identity("perplexity_delta", "0" * 16))
    one, two = put(tmp_path / "one", quality()), put(tmp_path / "two", other)
    assert command("baseline", "merge", one, two, "--into", tmp_path / "m", "--on-conflict=fail") == 0
    assert "org/model on gpu-a: 2 different models of this name" in capsys.readouterr().out
    assert len(baseline.read(baseline.path_for(tmp_path / "m", "gpu-a", "org/model")).entries) == 2


def test_a_target_that_was_moved_is_an_error(tmp_path, capsys):
    into = put(tmp_path / "m", quality())
    shutil.copytree(into / "gpu-a", into / "gpu-x")
    assert command("baseline", "merge", put(tmp_path / "one", quality(), on=B), "--into", into) == 2
    assert "gpu-x" in capsys.readouterr().err


def test_merge_as_json(tmp_path, capsys):
    made = parts(tmp_path)
    assert command("baseline", "merge", *made, "--into", tmp_path / "m", "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["measurements"], data["files"], len(data["written"]), len(data["conflicts"])) == (4, 2, 2, 1)


@pytest.mark.parametrize(
    "chosen, left",
    [
        (["--metric=perplexity_delta"], ["memory_budget", "throughput_ratio"]),
        (["--format=nf4", "--older-than=2026-01-02"], ["memory_budget"]),
        (["--hardware=gpu-a"], []),
        (["--test=test_it.py"], []),
        (["--test=test_it.py::test_it"], []),
        (["--test=test_it.py::test"], ["memory_budget", "perplexity_delta", "throughput_ratio"]),
        (["--model=org/other"], ["memory_budget", "perplexity_delta", "throughput_ratio"]),
        (["--older-than=36500d"], ["memory_budget", "perplexity_delta", "throughput_ratio"]),
    ],
)
def test_prune_says_what_would_go_and_does_it_when_told(tmp_path, capsys, chosen, left):
    root = put(tmp_path / "q", quality(day=1), speed(day=1), weights(day=2))
    before = tree(root)
    assert command("baseline", "prune", root, *chosen) == 0
    assert capsys.readouterr().out.count("would go: ") == 3 - len(left)
    assert tree(root) == before
    assert command("baseline", "prune", root, *chosen, "--yes") == 0
    file = baseline.read(baseline.path_for(root, "gpu-a", "org/model"))
    assert sorted(entry.metric for entry in (file.entries if file else ())) == left
    assert (root / "gpu-a").exists() is bool(left)


def test_what_has_no_date_is_never_old(tmp_path, capsys):
    root = put(tmp_path / "q", replace(quality(), recorded={}))
    assert command("baseline", "prune", root, "--older-than=0d", "--yes") == 0
    assert "nothing in" in capsys.readouterr().out
    assert tree(root)


def test_prune_wants_to_know_what_and_touches_nothing_beside_damage(tmp_path, capsys):
    root = put(put(tmp_path / "q", quality()), quality(), on=B)
    assert command("baseline", "prune", root, "--yes") == 2
    (broken,) = (root / "gpu-b").iterdir()
    broken.write_text("{")
    before = tree(root)
    assert command("baseline", "prune", root, "--format=nf4", "--yes") == 2
    assert tree(root) == before


@pytest.mark.parametrize("age", ["90", "d", "-3d", "2026-13-01", "yesterday"])
def test_an_age_is_days_or_a_date(age):
    with pytest.raises(UsageError, match="older-than"):
        moment(age, 0.0)


def test_ages():
    assert moment("1d", 86400.0 * 2) == "1970-01-02T00:00:00Z"
    assert moment("2026-01-31", 0.0) == "2026-01-31"
    assert recorded(31)["date"] > "2026-01-31", "recorded on that day is not before it"
    assert A["key"] == "gpu-a"
