"""What the page says of a run."""

from __future__ import annotations

import pytest
from run_records import empty, failing, recorded, without

from pytest_quant.errors import QuantError
from pytest_quant.report.html import view
from pytest_quant.report.markdown import render
from pytest_quant.report.rows import cells
from pytest_quant.report.standing import WORDS, standing


def only(record):
    return view.page([record], "1.0")


def test_a_run_in_which_all_holds_names_the_tightest_gate():
    overall = only(recorded()).overall
    assert (overall.tone, overall.word) == ("good", "Green")
    assert overall.reasons == (
        "Of 14 gates none is broken: 14 passed.",
        "Least room: int8 memory weights, 0.0408x left, 91% used (max 0.45x).",
    )


def test_a_broken_gate_is_red_with_its_reason_and_what_to_do():
    told = only(failing())
    assert told.overall.tone == "bad"
    assert "nf4 perplexity: 5.199 ppl is above the limit" in " ".join(told.overall.reasons)
    (broken,) = told.runs[0].broken
    assert broken.next == ("pytest-quant scan org/model --format nf4 --reference fp32 --max 0.5",)
    assert any("63 % of 3,060 tokens got worse" in line for line in broken.lines)
    assert not any("next:" in line for line in broken.lines)


def test_the_rows_have_the_words_of_the_terminal():
    record = recorded()
    rows = [row for group in only(record).runs[0].groups for row in group.rows]
    assert [row.place for row in sorted(rows, key=lambda row: row.place)] == list(range(14))
    for row in rows:
        format, metric, value, limit, baseline, verdict = cells(record["measurements"][row.place])
        assert (row.format, row.metric, row.limit, row.baseline, row.verdict) == (
            format,
            metric,
            limit,
            baseline,
            verdict,
        )
        assert f"{row.value} {row.interval}".strip() == value


def test_nothing_measured_is_never_green():
    nothing = only(empty())
    assert (nothing.overall.tone, nothing.overall.word) == ("open", "Nothing measured")
    assert nothing.overall.reasons == ("Nothing was measured; this says nothing of any model.",)
    skipped = only(empty({"test": "t", "format": "fp8", "reason": "no GPU"}))
    assert "the only test was skipped" in skipped.overall.reasons[0]


def test_gates_without_numbers_are_not_green_either():
    record = recorded()
    for measurement in record["measurements"]:
        for name in ("value", "low", "high", "statistics", "windows", "scores", "bounds", "detail", "format_value"):
            measurement.pop(name, None)
        measurement["verdict"] = "not-measured"
    assert only(record).overall.tone != "good"


def test_an_interrupted_run_says_so():
    overall = only({**recorded(), "incomplete": True}).overall
    assert overall.word == "Interrupted"
    assert "did not get to its end" in overall.reasons[0]


def test_troubles_and_tests_that_failed_outside_their_gates_are_red():
    troubled = only({**recorded(), "troubles": ["the baseline is unreadable"]})
    assert troubled.overall.tone == "bad"
    outside = only({**recorded(), "failed": ["test_smollm2.py::test_close[int8]"]})
    assert outside.overall.tone == "bad"
    assert outside.runs[0].standing.elsewhere == ("test_smollm2.py::test_close[int8]",)


def test_a_gate_that_was_expected_to_break_is_named_and_is_not_red():
    record = {**failing(), "failed": [], "troubles": []}
    overall = only(record).overall
    assert (overall.tone, overall.word) == ("good", "Green")
    assert "xfail" in overall.reasons[0]


def test_an_undecided_gate_is_neither():
    record = recorded()
    record["measurements"][0] |= {"verdict": "inconclusive", "reason": "the interval contains the limit"}
    overall = only(record).overall
    assert (overall.tone, overall.word) == ("open", "Not all decided")
    assert "1 inconclusive" in overall.reasons[0]


def expected_nan():
    record = recorded()
    record["measurements"] = record["measurements"][:1]
    measurement = record["measurements"][0]
    for name in ("value", "low", "high", "statistics", "windows", "scores", "bounds", "detail", "format_value"):
        measurement.pop(name, None)
    measurement |= {"verdict": "failed", "breaks": True, "reason": "windows without a finite logit"}
    return record


def undecided(word="inconclusive"):
    record = recorded()
    record["measurements"][0] |= {"verdict": "inconclusive", "reason": "the interval contains the limit"}
    if word == "missing":
        record["measurements"][0] |= {"verdict": "passed", "baseline": {"verdict": "missing", "reason": "no baseline"}}
    return record


@pytest.mark.parametrize(
    "records",
    [
        [recorded()],
        [failing()],
        [{**failing(), "incomplete": True}],
        [{**recorded(), "incomplete": True}],
        [{**empty(), "incomplete": True}],
        [empty({"test": "t", "reason": "no GPU"})],
        [{**recorded(), "troubles": ["1 file could not be collected: test_b.py"]}],
        [expected_nan()],
        [undecided()],
        [undecided("missing")],
        [recorded(), empty()],
        [undecided(), empty(), {**recorded(), "incomplete": True}],
        [recorded(), failing(), empty()],
    ],
)
def test_html_and_markdown_say_the_same_word(records):
    words = [render(record).splitlines()[0].partition("Quantization: ")[2] for record in records]
    worst = min(words, key=list(WORDS.values()).index)
    overall = view.page(records, "1.0").overall
    assert overall.word == worst.capitalize()
    for record in records:
        assert any(standing(record).sentence in reason for reason in overall.reasons)


def test_an_expected_nan_was_measured_and_a_shard_without_numbers_is_no_pass():
    assert only(expected_nan()).overall.word == "Green"
    assert "as expected (xfail)" in only(expected_nan()).overall.reasons[0]
    page = view.page([recorded(), empty()], "1.0")
    assert (page.overall.tone, page.overall.word) == ("open", "Nothing measured")


def test_a_record_that_does_not_say_what_broke_is_red_where_a_verdict_always_is():
    record = without(failing(), "failed")
    record["troubles"] = []
    assert [broken.format for broken in only(record).runs[0].broken] == ["nf4"]


@pytest.mark.parametrize(
    "change",
    [
        lambda record: record["measurements"][1].pop("limit"),
        lambda record: record["measurements"][1].update(verdict="splendid"),
        lambda record: record["measurements"][1].update(value="much"),
        lambda record: record["measurements"][1].update(limit={"at_most": 3}),
        lambda record: record.update(measurements={}),
        lambda record: record.update(skipped=[{}]),
        lambda record: record.pop("environment"),
        lambda record: record["measurements"].append(None),
    ],
)
def test_what_is_malformed_is_an_error_of_ours_that_names_the_place(change):
    record = recorded()
    change(record)
    with pytest.raises(QuantError, match=r"measurements|environment|skipped"):
        only(record)


def test_runs_stand_by_their_hardware():
    other = recorded()
    other["environment"]["hardware"]["name"] = "A GPU"
    page = view.page([recorded(), other], "1.0")
    assert [run.hardware for run in page.runs] == ["A GPU", "AMD EPYC, 2 cores"]
    assert sum(count for _, count in page.counts) == 28


def test_a_margin_in_words():
    rows = {(row.format, row.metric): row for group in only(recorded()).runs[0].groups for row in group.rows}
    (bar,) = rows["int8", "memory weights"].bars
    assert bar.text == "0.0408x left, 91% used"
    assert 0.0 < bar.value < bar.limit < 1.0
    (agreement,) = rows["nf4", "same top token"].bars
    assert agreement.limit < agreement.value
    assert not agreement.smaller_is_better
