"""``pytest-quant history`` and a kept run in ``pytest-quant compare``: lines, JSON, exit codes."""

from __future__ import annotations

import json

import pytest
from comparing_examples import A, B, command, measured, put, quality
from history_examples import SHA, history, record, speed, weights

from pytest_quant.history import keep
from pytest_quant.report.history import can_draw, table


@pytest.fixture
def folder(tmp_path):
    history(tmp_path, *([measured(by=by), weights(1e9)] for by in (0, 0, 0, 0.01, 0.01)))
    return tmp_path


def test_the_commit_is_named_with_what_to_do(folder, capsys):
    assert command("history", folder) == 0
    printed = capsys.readouterr().out
    assert "org/model on GPU A (gpu-a)" in printed
    assert f"nf4 perplexity: worse at {SHA[3][:7]} (2026-01-04)" in printed
    assert f"git bisect start {SHA[3][:7]} {SHA[2][:7]}" in printed
    assert "5 runs, 2 series: 1 move to the worse; 1 of 2 series now worse than accepted" in printed
    assert max(map(len, printed.splitlines())) <= 80


def test_exit_codes(folder, tmp_path, capsys):
    assert command("history", folder, "--fail") == 1
    assert command("history", folder, "--fail", "--metric", "memory_budget") == 0
    assert command("history", folder, "--fail", "--since", SHA[3][:7]) == 0
    assert command("history", folder, "--fail", "--format", "int4") == 2  # nothing to judge
    (folder / "bad.json").write_text("{")
    assert command("history", folder) == 2
    assert command("history", folder, "--fail") == 1
    assert command("history", tmp_path / "nothing") == 2
    assert "there is no such folder" in capsys.readouterr().err


def test_a_single_run_cannot_be_judged(tmp_path):
    history(tmp_path, [measured()])
    assert command("history", tmp_path) == 0
    assert command("history", tmp_path, "--fail") == 2


def test_an_empty_folder_says_how_to_fill_it(tmp_path, capsys):
    assert command("history", tmp_path) == 0
    assert f"pytest --quant-history={tmp_path}" in capsys.readouterr().out
    assert command("history", tmp_path, "--fail") == 2


def test_only_what_changed(folder, capsys):
    command("history", folder, "--only-changed")
    printed = capsys.readouterr().out
    assert "perplexity" in printed
    assert "memory" not in printed


def test_json_holds_the_series(folder, capsys):
    assert command("history", folder, "--json", "--fail") == 1
    data = json.loads(capsys.readouterr().out)
    assert (data["schema"], data["runs"], data["exit_code"]) == (1, 5, 1)
    (perplexity,) = (series for series in data["series"] if series["name"] == "perplexity_delta")
    assert perplexity["state"] == "worse"
    assert [point.get("moved", "") for point in perplexity["points"]] == ["", "", "", "worse", ""]
    assert perplexity["points"][3]["before"] == SHA[2]
    assert "moved" not in perplexity["points"][0]


def test_trends_are_drawn_in_what_the_terminal_can_show(tmp_path):
    series = history(tmp_path, *([weights(value)] for value in (1e9, 1e9, 2e9))).series
    assert "▁▁█" in "\n".join(table(series))
    "\n".join(table(series, pictures=False)).encode("ascii")
    assert (can_draw("utf-8"), can_draw("ascii"), can_draw("cp1252"), can_draw(None)) == (True, False, False, False)


def test_a_commit_with_changes_beside_it_is_said(tmp_path, capsys):
    for number, by in enumerate((0.0, 0.01)):
        data = record(number, measured(by=by))
        data["environment"]["dirty"] = True
        keep(tmp_path, data)
    command("history", tmp_path)
    printed = capsys.readouterr().out
    assert f"{SHA[1][:7]}+changes" in printed
    assert "git show" not in printed


def test_what_is_not_measured_any_more_is_said(tmp_path, capsys):
    history(tmp_path, [measured(), speed(1.5)], [measured(), speed(1.5)], [measured()], [measured()])
    command("history", tmp_path)
    assert "not in the last run of this hardware: nf4 decode speed" in capsys.readouterr().out


def test_two_series_of_one_name_are_told_apart_by_their_tests(tmp_path, capsys):
    other = measured(test="test_it.py::test_long[nf4]")
    other["identity"] = {**other["identity"], "protocol": {"name": "gptq-2048"}}
    history(tmp_path, [measured(), other], [measured(), other])
    command("history", tmp_path)
    printed = capsys.readouterr().out
    assert "perplexity (test_it) " in printed
    assert "perplexity (test_long) " in printed
    assert "another" not in printed


def test_a_kept_run_is_compared_by_its_commit(folder, tmp_path, capsys):
    old, new = f"{folder}@{SHA[2][:7]}", f"{folder}@{SHA[3][:7]}"
    assert command("compare", old, new, "--fail", "--only-changed") == 1
    printed = capsys.readouterr().out
    assert "regressed" in printed
    assert "memory" not in printed
    assert command("compare", old, f"{folder}@{SHA[1][:7]}", "--fail") == 0
    assert command("compare", old, f"{folder}@latest", "--fail") == 1


def test_a_kept_run_is_compared_with_a_baseline(tmp_path, capsys):
    history(tmp_path / "history", [measured()], [measured(by=0.01)])
    put(tmp_path / "baselines", quality())
    assert command("compare", tmp_path / "baselines", f"{tmp_path / 'history'}@{SHA[0][:7]}", "--fail") == 0
    assert command("compare", tmp_path / "baselines", f"{tmp_path / 'history'}@{SHA[1][:7]}", "--fail") == 1


def test_the_shards_of_a_commit_are_one_side(tmp_path, capsys):
    for number, by in ((0, 0.0), (1, 0.01)):
        keep(tmp_path, record(number, measured()))
        keep(tmp_path, record(number, measured(by=by), on=B))
    assert command("compare", f"{tmp_path}@{SHA[0][:7]}", f"{tmp_path}@{SHA[1][:7]}", "--fail") == 1
    printed = capsys.readouterr().out
    assert f"on GPU A ({A['key']})" in printed
    assert f"on GPU B ({B['key']})" in printed
    assert "1 passed, 1 regressed" in printed


@pytest.mark.parametrize(
    "name, word",
    [("@" + "f" * 7, "holds no run of that commit"), ("@abc", "4 characters"), ("", "@latest"), ("@0000", "name more")],
)
def test_a_name_of_no_run_says_what_there_is(folder, name, word, capsys):
    assert command("compare", f"{folder}{name}", f"{folder}@latest") == 2
    assert word in capsys.readouterr().err
