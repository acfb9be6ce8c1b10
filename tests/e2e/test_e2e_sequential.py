"""Verdicts from as few windows as decide them, each with what the run says and leaves on disk."""

from __future__ import annotations

import json
import random

import pytest

WORDS = ("The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog.")
TOTAL = 40


@pytest.fixture
def long(project):
    """A project with a text of many windows that differ."""
    picks = random.Random(0)
    (project.path / "corpus.txt").write_text(" ".join(picks.choice(WORDS) for _ in range(258)))
    settings = (
        "quant_corpus = corpus.txt",
        "quant_protocol = gptq-32",
        "quant_reference = fp32",
        "quant_formats = nf4",
    )
    (project.path / "pytest.ini").write_text("\n".join(["[pytest]", *settings, f"quant_model = {project.model}"]))
    return project


@pytest.fixture
def scored(monkeypatch):
    """The dtype of the weights of each forward that scores windows."""
    from pytest_quant.engines import transformers

    predict = transformers.TransformersModel.predict
    forwards = []

    def counted(self, tokens, scored_from=1):
        if tokens.shape[1] > 2:  # else the short one when a model is loaded
            forwards.append(str(self.model.model.layers[0].mlp.up_proj.weight.dtype).removeprefix("torch."))
        return predict(self, tokens, scored_from)

    monkeypatch.setattr(transformers.TransformersModel, "predict", counted)
    return forwards


def gates(project, *markers: str, name: str = "test_gate") -> None:
    stacked = "\n".join(f"@pytest.mark.{marker}" for marker in markers)
    project.test(f"import pytest\n\n{stacked}\ndef {name}(quant_model): ...\n", name=name)


def only(record):
    (measured,) = record["measurements"]
    return measured


def used(measured) -> int:
    assert measured["windows"]["total"] == TOTAL
    return measured["windows"]["used"]


def test_a_wide_limit_stops_at_the_first_look_and_the_full_evaluation_lies_in_its_interval(long):
    gates(long, "perplexity_delta(max_ratio=3)", "token_agreement(min=0.3)", "kl_divergence(max=1)")
    result, record = long.record()
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        [
            f"nf4 *KL divergence *nats [[]*, *[]] 8/{TOTAL} *max 1 nats *passed",
            f"nf4 *same top token *[[]0.*, 1[]] 8/{TOTAL} *min 0.3 *passed",
            f"nf4 *perplexity *x [[]*, *[]] 8/{TOTAL} *max 3x *passed",
        ]
    )
    assert long.baselines == {}

    full, exact = long.record("--quant-full")
    assert full.ret == 0
    full.stdout.fnmatch_lines([f"nf4 *perplexity *x {TOTAL}/{TOTAL} *max 3x *passed"])
    for early, whole in zip(record["measurements"], exact["measurements"], strict=True):
        assert (used(early), used(whole)) == (8, TOTAL)
        assert early["low"] < early["value"] <= early["high"], early["metric"]
        assert early["low"] <= whole["value"] <= early["high"], early["metric"]
        assert whole["low"] == whole["value"] == whole["high"]
        assert early["confidence"] == 0.99
        assert "confidence" not in whole


def test_full_in_the_ini_file_is_full(long):
    with (long.path / "pytest.ini").open("a") as ini:
        ini.write("\nquant_full = true\n")
    gates(long, "perplexity_delta(max_ratio=3)")
    result, record = long.record()
    assert result.ret == 0
    assert used(only(record)) == TOTAL


@pytest.mark.parametrize("metric, limit", [("kl_divergence", "max"), ("perplexity_delta", "max_ratio")])
def test_a_limit_near_the_truth_takes_more_windows_and_says_what_the_full_evaluation_says(long, metric, limit):
    gates(long, f"{metric}({limit}=100)")
    _, full = long.record("--quant-full")
    truth = only(full)["value"] if limit == "max" else only(full)["ratio"]
    for factor, verdict, code in ((1 + 1e-4, "passed", 0), (1 - 1e-4, "failed", 1)):
        gates(long, f"{metric}({limit}={truth * factor!r})")
        result, record = long.record("--quant-inconclusive=fail")
        assert result.ret == code
        measured = only(record)
        assert measured["verdict"] == verdict
        assert used(measured) == TOTAL, "so near that only the whole decides"
        assert (measured["value"], measured["low"]) == (only(full)["value"], only(full)["low"])


def test_a_limit_between_near_and_far_takes_some_windows(long):
    gates(long, "kl_divergence(max=100)")
    _, full = long.record("--quant-full")
    gates(long, f"kl_divergence(max={only(full)['value'] * 1.3})")
    result, record = long.record()
    assert result.ret == 0
    assert only(record)["verdict"] == "passed"
    assert 8 < used(only(record)) < TOTAL
    assert only(record)["high"] <= only(record)["limit"]["max"]


def test_a_limit_far_below_the_truth_fails_early(long):
    gates(long, "kl_divergence(max=0.0002)")
    result, record = long.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(failed=1)
    measured = only(record)
    assert measured["verdict"] == "failed"
    assert used(measured) <= 12
    assert measured["low"] > 0.0002
    result.stdout.fnmatch_lines(
        ["*nf4 kl_divergence failed: 0.00* nats is above the limit (at most 0.0002 nats)*", f"nf4 */{TOTAL} *failed"]
    )
    assert long.baselines == {}, "a value that breaks its limit is not recorded, so no more windows were needed"


def test_gates_of_one_test_and_of_several_share_windows(long, scored):
    gates(long, "perplexity_delta(max_ratio=3)", "token_agreement(min=0.3)", "kl_divergence(max=1)", name="test_a")
    gates(long, "perplexity_delta(max=9)", "kl_divergence(max_bound=1)", name="test_b")
    gates(long, "quant(formats=['nf4', 'fp4'])", "kl_divergence(max_bound=1)", name="test_c")
    result, record = long.record()
    assert result.ret == 0
    result.assert_outcomes(passed=4)
    assert {used(measured) for measured in record["measurements"]} == {8}
    assert scored.count("float32") == 8, "the reference, once for both formats"
    assert scored.count("uint8") == 8 + 8, "nf4 and fp4"


def test_a_later_gate_adds_windows_to_those_that_an_earlier_one_scored(long, scored):
    gates(long, "perplexity_delta(max_ratio=3)", name="test_a")
    gates(long, "perplexity_delta(max_ratio=1.0001)", name="test_b")
    result, record = long.record()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    few, more = (used(measured) for measured in record["measurements"])
    assert few == 8 < more
    assert len(scored) == 2 * more


def test_what_is_recorded_is_measured_on_all_windows_and_the_next_run_needs_few(long):
    gates(long, "perplexity_delta(max_ratio=3)", "token_agreement(min=0.3)", "kl_divergence(max=1)")
    recorded, record = long.record("--quant-baseline")
    assert recorded.ret == 0
    recorded.stdout.fnmatch_lines(["3 measurements recorded in *"])
    assert {used(measured) for measured in record["measurements"]} == {TOTAL}
    assert {len(entry["scores"]) for entry in long.entries} == {TOTAL}
    before = long.baselines

    again, record = long.record("--quant-baseline", "--quant-missing=fail")
    assert again.ret == 0
    assert {used(measured) for measured in record["measurements"]} == {8}
    for measured in record["measurements"]:
        assert measured["baseline"]["verdict"] == "passed"
        assert measured["baseline"]["change"] in ("+0.0000", "+0.0000 nats")
        assert "reason" not in measured["baseline"]
    assert long.baselines == before

    updated, record = long.record("--quant-baseline-update=all")
    assert updated.ret == 0
    assert {used(measured) for measured in record["measurements"]} == {TOTAL}, "what will be recorded"
    assert long.baselines == before, "and is the same"


def test_without_its_baseline_a_run_that_may_not_record_stops_early(long):
    gates(long, "perplexity_delta(max_ratio=3)")
    result, record = long.record("--quant-baseline", "--quant-missing=fail")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert (only(record)["verdict"], only(record)["baseline"]["verdict"], used(only(record))) == (
        "passed",
        "missing",
        8,
    )
    assert long.baselines == {}


def shift(project, amount: float, wobble: float = 0.0, name: str = "scores") -> bytes:
    """Let the baseline have been better by ``amount`` in the mean, up and down by ``wobble`` from window to window."""

    def change(data):
        (entry,) = data["measurements"]
        bounce = [wobble if place % 2 else -wobble for place in range(TOTAL)]
        mean = sum(bounce) / TOTAL
        entry[name] = [score - amount - (b - mean) for score, b in zip(entry[name], bounce, strict=True)]

    return project.change_baseline(change)


@pytest.mark.parametrize("wobble", [0.0, 0.02], ids=["evenly", "unevenly"])
def test_a_drift_against_the_baseline_is_seen_from_a_thousandth_of_a_nat_up(long, wobble):
    gates(long, "perplexity_delta(max_ratio=3)")
    assert long.gate().ret == 0
    recorded = long.baseline_path.read_bytes()

    def against(amount: float, options: str = ""):
        long.baseline_path.write_bytes(recorded)
        shift(long, amount, wobble)
        before = long.baselines
        gates(long, f"perplexity_delta(max_ratio=3{options})")
        result, record = long.record("--quant-baseline", "--quant-missing=fail")
        assert long.baselines == before
        assert only(record)["verdict"] == "passed", "the limit is far too wide to see it"
        return result, only(record)

    result, measured = against(0.002)
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert used(measured) == TOTAL, "a regression is never told from a sample"
    assert (measured["baseline"]["verdict"], measured["baseline"]["change"]) == ("regressed", "+0.0020 nats")
    result.stdout.fnmatch_lines(
        [
            "*nf4 perplexity_delta regressed: +0.00200 nats a token against the baseline's windows*"
            "the reference did not move (+0.00000 nats): it is the quantization (the same versions of all libraries)*",
            "nf4 *+0.0020 nats *regressed",
        ]
    )
    for amount, options in ((0.0, ""), (0.0005, ""), (0.002, ", min_effect=0.005"), (-0.0005, "")):
        result, measured = against(amount, options)
        assert (result.ret, measured["baseline"]["verdict"]) == (0, "passed")
        assert wobble or used(measured) == 8
    result, measured = against(-0.002)
    assert result.ret == 0
    assert measured["baseline"]["verdict"] == "improved" or used(measured) < TOTAL, "enough that it is no regression"


def test_one_window_that_got_worse_regresses_by_its_share(long):
    gates(long, "perplexity_delta(max_ratio=3)")
    assert long.gate().ret == 0
    long.change_baseline(lambda data: data["measurements"][0]["scores"].__setitem__(3, 0.5))
    result, record = long.record("--quant-baseline")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert only(record)["baseline"]["verdict"] == "regressed"
    assert used(only(record)) == TOTAL


def test_a_regression_says_that_the_stack_drifted_and_which_versions_changed(long):
    gates(long, "perplexity_delta(max_ratio=3)")
    assert long.gate().ret == 0
    shift(long, 0.01)
    shift(long, 0.01, name="reference_scores")
    long.change_baseline(lambda data: data["measurements"][0]["recorded"]["packages"].update(torch="1.0.0"))
    result = long.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*regressed: +0.01000 nats*the reference moved too, by +0.01000 nats: the stack drifted*"
            "since then: torch 1.0.0*"
        ]
    )
    shift(long, -0.01, name="reference_scores")
    result = long.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*the reference did not move*it is the quantization (since then: torch 1.0.0*"])


def test_a_limit_tighter_than_the_text_can_test_is_noted(long):
    gates(long, "perplexity_delta(max_ratio=1.0001)")
    result, record = long.record()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    measured = only(record)
    assert measured["verdict"] == "failed"
    assert used(measured) > 8
    result.stdout.fnmatch_lines(
        [
            f"nf4 perplexity: max 1.0001x is tighter than {TOTAL} windows can test: as a sample of such text they "
            "detect differences from 0.00* x up; give more text or a wider limit"
        ]
    )
    gates(long, "perplexity_delta(max_ratio=1.5)")
    result, record = long.record("--quant-full")
    assert result.ret == 0
    assert "note" not in only(record)
    result.stdout.no_fnmatch_line("*tighter than*")


def test_a_measurement_in_the_body_takes_the_windows_that_its_limit_needs(long):
    long.test(
        """
        import math

        def test_early(quant_measure):
            early = quant_measure.perplexity_delta("nf4", max=9)
            assert early.windows == (8, 40)
            assert early <= 9 and early.quantity.low < early.value < early.quantity.high
            assert early.confidence == 0.99

        def test_whole(quant_measure):
            whole = quant_measure.perplexity_delta("nf4")
            assert whole.windows == (40, 40)
            assert whole.quantity.is_exact and whole.confidence is None
            assert whole <= 9
        """
    )
    result, record = long.record()
    assert result.ret == 0
    result.assert_outcomes(passed=2)
    assert [used(measured) for measured in record["measurements"]] == [8, TOTAL]


def test_more_confidence_takes_at_least_as_many_windows(long):
    gates(long, "kl_divergence(max=100)")
    _, full = long.record("--quant-full")
    gates(long, f"kl_divergence(max={only(full)['value'] * 1.4})")
    counts = []
    for confidence in (0.6, 0.99, 0.9999):
        result, record = long.record(f"--quant-confidence={confidence}")
        assert result.ret == 0
        assert only(record)["verdict"] == "passed"
        assert only(record).get("confidence") in (confidence, None)
        counts.append(used(only(record)))
    assert counts == sorted(counts)
    assert counts[0] < counts[-1]


def test_fewer_windows_than_the_first_look_takes_are_all_scored(long):
    gates(long, "perplexity_delta(max_ratio=3)")
    result, record = long.record("--quant-max-windows=5")
    assert result.ret == 0
    assert only(record)["windows"] == {"used": 5, "total": 5}
    assert only(record)["low"] == only(record)["high"]


def test_workers_say_the_same_as_one_process(long):
    pytest.importorskip("xdist")
    gates(long, "perplexity_delta(max_ratio=3)", "kl_divergence(max=1)", name="test_a")
    gates(long, "quant(formats=['int8'])", "perplexity_delta(max_ratio=3)", "token_agreement(min=0.3)", name="test_b")

    def seen(*arguments: str):
        result = long.pytester.runpytest_subprocess(
            "-p", "no:cacheprovider", "--quant-json=run.json", "--quant-cache-dir=cache", *arguments
        )
        assert result.ret == 0
        result.assert_outcomes(passed=2)
        found = json.loads((long.path / "run.json").read_text())["measurements"]
        for measured in found:
            measured.pop("reference_source", None)  # which worker scored it first is chance
        return sorted(found, key=lambda measured: (measured["test"], measured["metric"]))

    one = long.record("--quant-cache-dir=other")[1]["measurements"]
    for measured in one:
        measured.pop("reference_source", None)
    assert seen("-n2") == sorted(one, key=lambda measured: (measured["test"], measured["metric"]))
