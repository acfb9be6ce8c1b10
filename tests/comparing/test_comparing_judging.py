"""What became of each measurement: one test a verdict, and the exit code that it makes."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from comparing_examples import (
    REFERENCE,
    TOTAL,
    B,
    C,
    command,
    identity,
    mean,
    measured,
    put,
    quality,
    recorded,
    run,
    speed,
    weights,
)

from pytest_quant import baseline
from pytest_quant.comparing import judging, sides

HEAVY = ("torch", "pytest", "transformers", "safetensors", "xdist")


def verdicts(old, new) -> list[str]:
    return [str(row.verdict) for row in judging.compare(sides.read(old), sides.read(new))]


def compared(capsys, *arguments: object) -> tuple[int, list[dict]]:
    """Exit code with --fail, and the rows."""
    code = command("compare", *arguments, "--fail", "--json")
    data = json.loads(capsys.readouterr().out)
    assert data["exit_code"] == code
    return code, data["rows"]


def test_the_same_is_exactly_zero(tmp_path, capsys):
    old = put(tmp_path / "old", quality(), speed(), weights())
    new = put(tmp_path / "new", quality(day=2), speed(day=2), weights(day=2))
    code, rows = compared(capsys, old, new)
    assert code == 0
    assert [row["verdict"] for row in rows] == ["passed"] * 3
    assert {row["metric"]: row["change"] for row in rows}["perplexity_delta"] == "+0.0000 nats"
    assert not any("reason" in row for row in rows)


@pytest.mark.parametrize(
    "old, new, verdict, code",
    [
        (quality(), quality(0.002), "regressed", 1),
        (quality(), quality(0.0009), "passed", 0),
        (quality(), quality(-0.002), "improved", 0),
        (weights(), weights(1.02e9), "regressed", 1),
        (weights(), weights(0.9e9), "improved", 0),
        (weights(of="peak"), weights(1.05e9, of="peak"), "passed", 0),
        (speed(1.5), speed(1.2), "regressed", 1),
        (speed(1.5), speed(1.33), "inconclusive", 0),
        (speed(1.5), speed(1.9), "improved", 0),
    ],
)
def test_two_baselines(tmp_path, capsys, old, new, verdict, code):
    found, rows = compared(capsys, put(tmp_path / "old", old), put(tmp_path / "new", new))
    assert ([row["verdict"] for row in rows], found) == ([verdict], code)


def test_windows_count_by_their_weight_though_a_baseline_does_not_keep_it(tmp_path):
    """The last window has 7 of 952 tokens: 0.05 nats there are 0.0004 nats of the text, and not 0.0031."""
    moved = (*(0.0,) * 15, 0.05)
    old, new = put(tmp_path / "old", quality()), put(tmp_path / "new", quality(moved))
    (row,) = judging.compare(sides.read(old), sides.read(new))
    assert row.change == f"{0.05 * 7 / 952:+.4f} nats"
    assert str(row.verdict) == "passed"
    (of_run,) = judging.compare(sides.read(old), sides.read(run(tmp_path / "r.json", measured())))
    assert of_run.change == "+0.0000 nats"


@pytest.mark.parametrize("metric", ["perplexity_delta", "kl_divergence", "token_agreement", "task_accuracy"])
def test_two_baselines_say_what_their_weights_would(metric):
    """The difference of the whole means is the mean difference: verdict and change are those of a paired run."""
    draw, seen = random.Random(0), set()
    for _ in range(200):
        counts = tuple(draw.choice((0.25, 0.5, 1.0)) for _ in range(TOTAL))
        before = tuple(draw.uniform(0.1, 0.9) for _ in range(TOTAL))
        size = draw.choice((0.0, 0.002, 0.02))
        after = tuple(min(1.0, max(0.0, score + draw.gauss(0.0, size))) for score in before)
        then, now = (
            sides.from_entry("gpu-a", "org/model", whole(metric, scores, counts)) for scores in (before, after)
        )
        weighed = replace(now, measurement=replace(now.measurement, weights=counts, alpha=0.01))
        found, expected = judging.judge(now, then), judging.judge(weighed, then)
        assert (found.verdict, found.shown) == (expected.verdict, expected.shown)
        seen.add(str(found.verdict))
    assert seen == {"passed", "improved", "regressed"}


def whole(metric: str, scores: tuple[float, ...], counts: tuple[float, ...]) -> baseline.Entry:
    average = mean(scores, counts)
    told = math.exp(average) if metric == "perplexity_delta" else average
    asked = {**identity(metric), "protocol": {"weights": "own"}}
    return baseline.Entry(metric, "nf4", asked, average, "nats", scores=scores, figures={"format_value": told})


def test_figures_that_are_not_of_the_scores_are_not_believed(tmp_path, capsys):
    broken = replace(quality(), figures={"format_value": math.exp(5.0)})
    for entry in (broken, replace(quality(), figures={})):
        code, rows = compared(capsys, put(tmp_path / "old", quality()), put(tmp_path / "new", entry))
        assert (rows[0]["verdict"], code) == ("incomparable", 2)


def test_new_and_missing(tmp_path, capsys):
    old, new = put(tmp_path / "old", quality(), speed()), put(tmp_path / "new", quality(), weights())
    code, rows = compared(capsys, old, new)
    assert {row["metric"]: row["verdict"] for row in rows} == {
        "perplexity_delta": "passed",
        "throughput_ratio": "missing",
        "memory_budget": "new",
    }
    assert code == 2
    assert compared(capsys, old, new, "--allow-missing")[0] == 0
    assert command("compare", old, new) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-1] == "3 measurements: 1 passed, 1 new, 1 missing"
    assert out[0] == "org/model on GPU A (gpu-a)"


def test_another_identity_says_what_differs(tmp_path, capsys):
    other = replace(quality(), identity={**quality().identity, "protocol": {"name": "gptq-32"}})
    code, rows = compared(capsys, put(tmp_path / "old", quality()), put(tmp_path / "new", other))
    assert [row["verdict"] for row in rows] == ["incomparable"]
    assert 'protocol.name: "gptq-64" -> "gptq-32"' in rows[0]["reason"]
    assert code == 2


def test_what_has_its_equal_is_nobody_elses_counterpart(tmp_path):
    second = replace(quality(), identity=identity("perplexity_delta", "0" * 16))
    old, new = put(tmp_path / "old", quality()), put(tmp_path / "new", second, quality())
    assert sorted(verdicts(old, new)) == ["new", "passed"]


def test_a_shard_that_did_not_run_is_missing(tmp_path, capsys):
    old = put(put(tmp_path / "old", quality(), speed()), quality(), speed(), on=B)
    code, rows = compared(capsys, old, put(tmp_path / "new", quality(), speed()))
    assert [(row["hardware"], row["verdict"]) for row in rows] == [
        ("gpu-a", "passed"),
        ("gpu-a", "passed"),
        ("gpu-b", "missing"),
        ("gpu-b", "missing"),
    ]
    assert code == 2


def test_quality_falls_back_to_other_hardware_and_speed_never(tmp_path, capsys):
    old = put(tmp_path / "old", quality(), speed(), weights())
    _, rows = compared(capsys, old, put(put(tmp_path / "new", quality(), speed(), weights()), quality(0.01), on=C))
    (fallen,) = [row for row in rows if row["hardware"] == "gpu-c"]
    assert fallen["verdict"] == "regressed"
    assert fallen["reason"].startswith("compared with the baseline of gpu-a: ")
    assert fallen["old"]["hardware"] == "gpu-a"
    on_b, on_c = (put(tmp_path / on["key"], speed(), weights(), on=on) for on in (B, C))
    of = {
        on: {(r.metric, str(r.verdict)) for r in judging.compare(sides.read(old), sides.read(on))}
        for on in (on_b, on_c)
    }
    assert ("memory_budget", "passed") in of[on_b], "one architecture"
    assert ("memory_budget", "new") in of[on_c], "another architecture"
    assert ("throughput_ratio", "new") in of[on_b]


def test_a_regression_names_what_else_moved(tmp_path, capsys):
    drifted = tuple(score + 0.01 for score in REFERENCE)
    new = replace(quality(0.01), reference_scores=drifted, recorded={**recorded(2), "packages": {"torch": "2.13.0"}})
    code, rows = compared(capsys, put(tmp_path / "old", quality()), put(tmp_path / "new", new))
    assert code == 1
    assert "the reference moved too, by +0.01000 nats" in rows[0]["reason"]
    assert "since then: torch 2.12.0 -> 2.13.0" in rows[0]["reason"]


def test_the_markers_own_effect_counts(tmp_path):
    lenient = replace(quality(0.002), recorded={**recorded(2), "min_effect": 0.005})
    old = put(tmp_path / "old", quality())
    assert verdicts(old, put(tmp_path / "new", lenient)) == ["passed"]
    assert verdicts(old, run(tmp_path / "run.json", measured(by=0.002, min_effect=0.005))) == ["passed"]
    assert verdicts(old, run(tmp_path / "run.json", measured(by=0.002))) == ["regressed"]


def test_a_run_that_stopped_early_is_paired_with_a_baseline(tmp_path, capsys):
    old = put(tmp_path / "old", quality())
    assert verdicts(old, run(tmp_path / "run.json", measured(used=12))) == ["passed"]
    code, rows = compared(capsys, old, run(tmp_path / "run.json", measured(used=12, by=0.5)))
    assert (rows[0]["verdict"], code) == ("inconclusive", 2), "a sample never tells a regression"
    command("compare", old, tmp_path / "run.json")
    assert "12/16" in capsys.readouterr().out


def test_two_runs_are_paired_as_far_as_both_went(tmp_path):
    old = run(tmp_path / "old.json", measured(used=12))
    assert verdicts(old, run(tmp_path / "new.json", measured(used=14))) == ["passed"]
    assert verdicts(old, put(tmp_path / "new", quality())) == ["passed"]
    whole = run(tmp_path / "whole.json", measured())
    assert verdicts(whole, put(tmp_path / "new2", quality(0.002))) == ["regressed"]
    assert verdicts(old, put(tmp_path / "new3", quality(0.5))) == ["inconclusive"]


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("effects", "expected"),
    [(({}, {"min_effect": 0.5}), "regressed"), (({"min_effect": 0.5}, {"min_effect": 0.6}), "passed")],
)
def test_of_two_gates_on_one_question_the_stricter_decides(tmp_path, order, effects, expected):
    gates = [measured(by=0.3, test=f"test_it.py::test_{i}", **effect) for i, effect in enumerate(effects)]
    assert verdicts(put(tmp_path / "old", quality()), run(tmp_path / "new.json", *gates[::order])) == [expected]


def test_a_record_without_scores_is_incomparable(tmp_path):
    bare = {name: value for name, value in measured().items() if not name.endswith(("scores", "weights"))}
    assert verdicts(put(tmp_path / "old", quality()), run(tmp_path / "run.json", bare)) == ["incomparable"]


def test_a_runs_own_broken_gates_are_broken(tmp_path, capsys):
    old = put(tmp_path / "old", quality(), speed())
    unmeasured = {
        "test": "test_it.py::test_speed[nf4]",
        "metric": "throughput_ratio",
        "model": "org/model",
        "format": "nf4",
        "engine": "transformers",
        "limit": {"min": 1.0},
        "parameters": {"phase": "decode"},
        "verdict": "not-measured",
        "reason": "the proof failed",
    }
    new = run(tmp_path / "run.json", measured(verdict="failed", reason="0.9 ppl is above the limit"), unmeasured)
    code, rows = compared(capsys, old, new)
    assert code == 1
    assert {row["metric"]: (row["verdict"], row["reason"]) for row in rows} == {
        "perplexity_delta": ("failed", "0.9 ppl is above the limit"),
        "throughput_ratio": ("not-measured", "the proof failed"),
    }, "what has no number is not missing besides"


def test_of_two_gates_on_one_question_the_one_that_saw_more_counts(tmp_path):
    both = run(tmp_path / "run.json", measured(used=12), measured(by=0.01))
    assert verdicts(put(tmp_path / "old", quality()), both) == ["regressed"]
    both = run(tmp_path / "run.json", measured(used=12, verdict="failed", reason="x"), measured())
    assert verdicts(put(tmp_path / "old", quality()), both) == ["failed"]


def test_a_disturbed_run_is_not_judged(tmp_path):
    record = {
        **{name: value for name, value in measured().items() if name in ("test", "model", "format", "engine")},
        "metric": "throughput_ratio",
        "identity": dict(speed().identity),
        "value": 1.0,
        "low": 0.95,
        "high": 1.05,
        "unit": "x",
        "verdict": "passed",
        "rounds": {"played": 9, "budget_spent": True},
    }
    old = put(tmp_path / "old", speed())
    assert verdicts(old, run(tmp_path / "run.json", record)) == ["regressed"]
    told = {**record, "conditions": [{"name": "cpu-load", "text": "other work took 3 cores"}]}
    assert verdicts(old, run(tmp_path / "run.json", told)) == ["inconclusive"]


def test_a_record_speaks_for_its_hardware_only(tmp_path, capsys):
    old = put(put(tmp_path / "old", quality(), speed()), quality(), on=B)
    new = run(tmp_path / "run.json", measured(), skipped=[{"test": "test_it.py::test_it[nf4]", "reason": "no room"}])
    code, rows = compared(capsys, old, new)
    assert {row["metric"]: row["verdict"] for row in rows} == {
        "perplexity_delta": "passed",
        "throughput_ratio": "missing",
    }
    assert rows[1]["reason"] == "skipped: no room"
    assert code == 2
    command("compare", old, new)
    assert capsys.readouterr().out.splitlines()[-1].endswith("; 1 of other hardware or models not looked at")


def test_a_run_that_measured_nothing_leaves_all_of_it_missing(tmp_path, capsys):
    old = put(put(tmp_path / "old", quality()), quality(), on=B)
    code, rows = compared(capsys, old, run(tmp_path / "run.json", on=None))
    assert [row["verdict"] for row in rows] == ["missing", "missing"]
    assert code == 2


def test_one_file_speaks_for_itself(tmp_path):
    old = put(put(tmp_path / "old", quality()), quality(), on=B)
    assert verdicts(old, old / "gpu-a" / next((old / "gpu-a").iterdir()).name) == ["passed"]


def test_only_what_changed(tmp_path, capsys):
    old = put(tmp_path / "old", quality(), weights())
    assert command("compare", old, put(tmp_path / "new", quality(0.01), weights()), "--only-changed") == 0
    out = capsys.readouterr().out
    assert "memory weights" not in out
    assert "perplexity" in out
    assert "2 measurements: 1 passed, 1 regressed" in out
    assert command("compare", old, old, "--only-changed") == 0
    assert capsys.readouterr().out == "2 measurements: 2 passed\n"


def test_what_cannot_be_read_is_said_and_the_rest_is_judged(tmp_path, capsys):
    old, new = put(tmp_path / "old", quality()), put(put(tmp_path / "new", quality(0.01)), quality(), on=B)
    (broken,) = (new / "gpu-b").iterdir()
    broken.write_text("{")
    assert command("compare", old, new) == 2
    said = capsys.readouterr()
    assert str(broken) in said.err
    assert "regressed" in said.out
    assert command("compare", old, new, "--fail") == 1
    assert command("compare", old, put(tmp_path / "same", quality()), "--fail") == 0
    for place in ("nowhere", broken):
        assert command("compare", old, place) == 2
    (tmp_path / "empty").mkdir()
    assert command("compare", old, tmp_path / "empty") == 2


@pytest.mark.parametrize(
    "change, place",
    [
        (lambda d: d.update(schema=2), "schema"),
        (lambda d: d.pop("measurements"), "measurements"),
        (lambda d: d["environment"].pop("hardware"), "environment.hardware"),
        (lambda d: d["measurements"].append(3), "measurements[1]"),
        (lambda d: d["measurements"][0].update(value="1"), "measurements[0].value"),
        (lambda d: d["measurements"][0].update(metric="speed"), "measurements[0].metric"),
        (lambda d: d["measurements"][0].update(identity=[]), "measurements[0].identity"),
        (lambda d: d["measurements"][0].update(windows={"used": 17, "total": 16}), "measurements[0].windows"),
        (lambda d: d["measurements"][0]["scores"].pop(), "measurements[0].scores"),
        (lambda d: d["measurements"][0]["scores"].__setitem__(0, float("nan")), "measurements[0].scores[0]"),
        (lambda d: d["measurements"][0].update(weights=[0.0] * 16), "measurements[0].weights"),
        (lambda d: d["measurements"][0].pop("test"), "measurements[0].test"),
        (lambda d: d.update(skipped=[{}]), "skipped[0].reason"),
    ],
)
def test_a_malformed_record_is_an_error_with_the_place(tmp_path, capsys, change, place):
    path = run(tmp_path / "run.json", measured())
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    assert command("compare", path, path, "--fail") == 2
    said = capsys.readouterr().err
    assert f"{path}: {place}: " in said
    assert "Traceback" not in said


def test_the_command_imports_neither_torch_nor_pytest(tmp_path):
    import subprocess
    import sys

    old, new = put(tmp_path / "old", quality()), put(tmp_path / "new", quality())
    code = f"""
import sys
from pytest_quant.cli import main
for words in (["compare", {str(old)!r}, {str(new)!r}], ["baseline", "show", {str(old)!r}],
              ["baseline", "merge", {str(old)!r}, "--into", {str(tmp_path / "m")!r}],
              ["baseline", "prune", {str(old)!r}, "--format", "nf4"]):
    assert main(words) == 0
print([name for name in {HEAVY!r} if name in sys.modules])
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.splitlines()[-1] == "[]"
