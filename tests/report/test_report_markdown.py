"""A run as Markdown: what it says, and that whatever comes from files stays text."""

from __future__ import annotations

import re
from html import unescape
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.integrations.html import Html, columns
from pytest_quant.integrations.junit import properties
from pytest_quant.report.escaping import block, code, prose
from pytest_quant.report.markdown import render
from pytest_quant.report.room import room
from pytest_quant.report.standing import standing
from pytest_quant.report.step_summary import MOST, append
from pytest_quant.run import CARRIED
from pytest_quant.visible import visible as seen

markdown_it = pytest.importorskip("markdown_it")

HOSTILE = [
    "org/model|name",
    "a\\|b",
    "`ticks` and ``two``",
    "<img src=x onerror=alert(1)>",
    "</details></td><script>alert(1)</script>",
    "&amp; &#64;team",
    "@team/everyone",
    "see #123, GH-12 and org/repo#7",
    "https://evil.example/ www.evil.example _www.evil.example ftp://x mailto:a@b.example",
    "[text](javascript:alert(1)) ![](http://x/y.png) [ref]: /url",
    "*bold* _it_ ~~gone~~ __init__",
    ":tada: :+1: :100: $x^2$ $`y`$",
    "0123456789abcdef0123456789abcdef01234567",
    "# heading",
    "- item",
    "1. item",
    "--- ===",
    "> quote",
    "| a | b |",
    "\\",
    "`",
    "ends with `",
    "übergröße 模型 🤖",
]


def record(**fields):
    return {
        "schema": 1,
        "environment": {
            "hardware": {"key": "cpu", "name": "A CPU", "count": 1},
            "packages": {"python": "3.12.1", "pytest-quant": "0.9", "torch": "2.13.0", "hqq": "0.2.8"},
            "commit": "0123456789abcdef0123",
            "started": "2026-01-02T03:04:05Z",
        },
        "measurements": [],
        "skipped": [],
        "failed": [],
        **fields,
    }


def measured(**fields):
    return {
        "test": "test_it.py::test_it[nf4]",
        "metric": "perplexity_delta",
        "model": "org/model",
        "format": "nf4",
        "engine": "transformers",
        "value": 0.25,
        "low": 0.2,
        "high": 0.3,
        "unit": "ppl",
        "limit": {"max": 1.0},
        "limit_shown": "max 1 ppl",
        "verdict": "passed",
        **fields,
    }


BROKEN = measured(
    value=1.5, low=1.4, high=1.6, verdict="failed", breaks=True, reason="1.5 ppl is above the limit (at most 1 ppl)"
)


def rendered(text: str) -> str:
    return markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(text)


def visible(page: str) -> str:
    return unescape(re.sub("<[^>]*>", "", page))


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_is_seen_as_it_is_wherever_it_stands(text):
    for page, tags in (
        (rendered(prose(text)), {"p", "code"}),
        (rendered(f"- {prose(text)}"), {"ul", "li", "code"}),
        (rendered(f"before {code(text)} after"), {"p", "code"}),
        (rendered(block(text)), {"pre", "code"}),
    ):
        assert set(re.findall(r"<(\w+)", page)) <= tags
        assert squeezed(text) in squeezed(visible(page))
    cells = f"| x | {prose(text, table=True)} | {code(text, table=True)} | y |\n"
    page = rendered(f"| a | b | c | d |\n|---|---|---|---|\n{cells}")
    (row,) = re.findall(r"<tbody>\s*<tr>(.*?)</tr>", page, re.DOTALL)
    found = re.findall(r"<td>(.*?)</td>", row, re.DOTALL)
    assert [squeezed(visible(cell)) for cell in found] == ["x", squeezed(text), squeezed(text), "y"]
    assert set(re.findall(r"<(\w+)", row)) <= {"td", "code"}


@given(st.text(alphabet=st.sampled_from("ab1 |\\`<>&*_[]()!#@:/.~$-+=\n'\"^"), max_size=30))
def test_any_text_is_seen_as_it_is_in_a_cell(text):
    if not text.strip():
        return
    shown = squeezed(text)
    page = rendered(f"| a | b |\n|---|---|\n| {prose(text, table=True)} | {code(text, table=True)} |\n")
    found = re.findall(r"<td>(.*?)</td>", page, re.DOTALL)
    assert [squeezed(visible(cell)) for cell in found] == [shown, shown]


@given(st.text(alphabet=st.sampled_from("ab1 |\\`<>&*_[]()!#@:/.~$-+=\n'\"^"), max_size=30))
def test_any_text_is_seen_as_it_is_outside_a_table(text):
    if not text.strip():
        return
    assert squeezed(visible(rendered(f"- {prose(text)}\n"))) == squeezed(text)
    assert squeezed(visible(rendered(f"- so {code(text)}\n"))) == f"so {squeezed(text)}"
    assert visible(rendered(block(text))).rstrip("\n") == "\n".join(text.splitlines()).rstrip("\n")


ACTIVE = r"@\w|#\d|GH-\d|://|www\.|:tada:|:\+1:|:100:|\$|[0-9a-f]{40}"
"""What GitHub looks for in the finished text, outside of code."""


@pytest.mark.parametrize("text", HOSTILE)
def test_nothing_outside_code_is_left_for_github_to_link(text):
    page = rendered(f"- {prose(text)}\n")
    assert not re.search(ACTIVE, unescape(re.sub(r"<code>.*?</code>", "", page, flags=re.DOTALL)))


def test_what_cannot_be_seen_is_made_visible_as_on_the_page():
    hidden = "a\u202eb\x00c\ud800d\u200be\ufefff"
    assert prose(hidden) == f"`{seen(hidden)}`" == r"`a\u202eb\u0000c\ud800d\u200be\ufefff`"
    assert prose("a\r\nb\tc") == "a b c"
    assert code("\n") == "`(empty)`"


@pytest.mark.parametrize("text", [*HOSTILE, "a\nb\n\n# c\n```\n<b>"])
def test_a_hostile_record_has_the_tags_of_a_friendly_one(text):
    def page(name):
        explained = {"metric": "perplexity_delta", "no_layers": name, "next": [name]}
        parts = {"explanation": explained, "baseline": {"verdict": "new", "change": name}, "note": name}
        broken = {**BROKEN, "test": f"{name}::test", "model": name, "format": name, "engine": name, "reason": name}
        surroundings = {"hardware": {"name": name}, "packages": {"torch": name, name: name}, "commit": name}
        return rendered(
            render(
                record(
                    environment=surroundings,
                    measurements=[{**broken, **parts, "limit_shown": name, "unit": name}],
                    skipped=[{"test": name, "reason": name, "format": name}],
                    failed=[f"{name}::test", name],
                    troubles=[name],
                )
            )
        )

    def tags(page):
        outside = re.sub(r"<pre>.*?</pre>", "<pre>", page, flags=re.DOTALL)
        return [tag for tag in re.findall(r"<(/?\w+)", outside) if tag.strip("/") != "code"]

    assert tags(page(text)) == tags(page("friendly"))


def test_green_with_its_margins():
    shown = render(
        record(measurements=[measured(), measured(metric="token_agreement", limit={"min": 0.9}, value=0.98)])
    )
    assert shown.startswith("### ✅ Quantization: green\n\nOf 2 gates none is broken: 2 passed.\n")
    assert (
        "| ✅ passed | `nf4` | perplexity | +0.25 ppl \\[0.2, 0.3\\] | max 1 ppl | 0.75 ppl left, 25% used | - |"
        in shown
    )
    assert "0.08 left, 20% used" in shown
    assert "\non A CPU · commit `0123456789ab` · pytest-quant 0.9 · torch 2.13.0 · 2026-01-02T03:04:05Z\n" in shown
    assert "\npython 3.12.1, hqq 0.2.8\n" in shown


def test_red_with_its_reason_first_and_what_is_behind_it():
    other = measured(test="test_a.py::test_a[int8]", format="int8", baseline={"verdict": "new"})
    broken = {
        **BROKEN,
        "explanation": {"metric": "perplexity_delta", "no_layers": "why not", "next": ["pytest-quant scan"]},
    }
    shown = render(record(measurements=[other, broken], failed=[broken["test"]]))
    assert shown.startswith("### ❌ Quantization: red\n\n1 of 2 gates broken: nf4 perplexity failed.\n")
    reason = "❌ nf4 perplexity\\_delta failed: 1.5 ppl is above the limit (at most 1 ppl) (`test_it.py::test_it[nf4]`)"
    behind = "```text\nlayers were not compared: why not\nnext: pytest-quant scan\n```"
    places = [shown.index(part) for part in (reason, behind, "| ❌ failed |", "| 🆕 new |", "Baselines: 1 new")]
    assert places == sorted(places)
    assert "| 0.5 ppl over, 150% used |" in shown


@pytest.mark.parametrize(
    "given, word, text",
    [
        (record(), "empty", "nothing was measured; this says nothing of any model"),
        (
            record(skipped=[{"test": "a", "reason": "b"}]),
            "empty",
            "nothing was measured, the only test was skipped; this says nothing of any model",
        ),
        (
            record(skipped=[{"test": "a", "reason": "b"}], troubles=["nothing was measured: all were skipped"]),
            "red",
            "nothing was measured: all were skipped",
        ),
        (
            record(measurements=[measured()], incomplete=True),
            "interrupted",
            "the run did not get to its end; until then 1 passed",
        ),
        (record(incomplete=True), "interrupted", "the run did not get to its end; nothing was measured"),
        (
            record(measurements=[BROKEN], failed=[BROKEN["test"]], incomplete=True),
            "red",
            "1 of 1 gate broken: nf4 perplexity failed; the run was interrupted",
        ),
        (
            record(measurements=[measured()], failed=[measured()["test"]]),
            "red",
            "1 test failed outside its gates",
        ),
        (
            record(measurements=[measured()], troubles=["a", "b", "c"]),
            "red",
            "a; 2 more errors of the run",
        ),
        (
            record(measurements=[BROKEN]),
            "green",
            "of 1 gate none unexpectedly: 1 failed; 1 of them broken, as expected (xfail)",
        ),
        (
            record(
                measurements=[measured(verdict="not-measured", reason="no", breaks=True) | {"value": 1}],
                failed=[measured()["test"]],
            ),
            "red",
            "1 of 1 gate broken: nf4 perplexity not-measured",
        ),
        (
            record(
                measurements=[measured(verdict="inconclusive", reason="unsure")], skipped=[{"test": "a", "reason": "b"}]
            ),
            "undecided",
            "of 1 gate none is broken: 1 inconclusive; 1 test skipped",
        ),
        (
            record(measurements=[measured()], failed=[measured()["test"]], unexpected=[measured()["test"]]),
            "red",
            "1 test passed against xfail(strict=True)",
        ),
        (
            record(measurements=[{**BROKEN, "reason": "nan"} | {"value": 1.0}], incomplete=True),
            "interrupted",
            "the run did not get to its end; until then 1 failed",
        ),
        (
            record(measurements=[measured(verdict="inconclusive", breaks=True)], failed=[measured()["test"]]),
            "red",
            "1 of 1 gate broken: nf4 perplexity inconclusive",
        ),
    ],
)
def test_how_a_run_stands(given, word, text):
    found = standing(given)
    assert (found.word, found.text) == (word, text)


def test_a_record_that_does_not_say_what_failed_is_judged_by_its_verdicts():
    old = record(measurements=[{name: BROKEN[name] for name in BROKEN if name != "breaks"}, measured()])
    del old["failed"]
    found = standing(old)
    assert found.word == "red"
    assert len(found.broken) == 1


def test_an_error_that_begins_with_a_file_keeps_its_name():
    shown = render(record(troubles=["quant-baselines/cpu/m.json: schema: found 9."]))
    assert "\n\nquant-baselines/cpu/m.json: schema: found 9; nothing was measured.\n" in shown
    assert "- ❌ quant-baselines/cpu/m.json: schema: found 9.\n" in shown


def test_too_long_a_run_is_cut_by_whole_rows_and_says_how_many():
    many = [measured(test=f"test_it.py::test_{number}[nf4]") for number in range(400)]
    skipped = [{"test": f"test_it.py::other_{number}", "reason": f"because of {number}"} for number in range(100)]
    given = record(measurements=[BROKEN, *many], skipped=skipped, failed=[BROKEN["test"]])
    whole = render(given, 10**7)
    assert "left out" not in whole
    for most in (len(whole.encode()), 60_000, 20_000, 2_000, 500):
        shown = render(given, most)
        assert len(shown.encode()) <= most
        assert shown.startswith("### ❌ Quantization: red")
        assert shown.count("<details>") == shown.count("</details>")
        rows = shown.count("| ✅ passed")
        assert ("left out" in shown) is (most < len(whole.encode()))
        if out := re.search(r"\*\*(\d+) rows left out", shown):
            kept = rows + shown.count("| ❌") + shown.count("\n❌") + shown.count("because of")
            kept += "Baselines:" in shown
            kept += shown.count("\non A CPU") + shown.count(", hqq 0.2.8")
            assert int(out.group(1)) + kept == 1 + 1 + 400 + 100 + 1 + 1
    assert render(given, 30) == ""


def test_a_step_summary_is_appended_to_and_never_above_githubs_limit(tmp_path):
    place = tmp_path / "summary"
    given = record(measurements=[measured()])
    assert append(place, given) == []
    once = place.read_bytes()
    assert once == render(given).encode()
    assert append(place, given) == []
    assert place.read_bytes() == once + b"\n\n" + once
    place.write_bytes(b"x" * (MOST - 300))
    assert append(place, given) == []
    assert place.stat().st_size <= MOST
    assert b"left out for want of room" in place.read_bytes()
    place.write_bytes(b"x" * (MOST - 20))
    assert append(place, given) == [
        f"GITHUB_STEP_SUMMARY: {MOST - 20} bytes are in it already, and GitHub shows {MOST} at most: nothing added"
    ]
    assert place.stat().st_size == MOST - 20


def test_a_run_without_anything_of_quantization_adds_nothing(tmp_path):
    assert append(tmp_path / "summary", record()) == []
    assert not (tmp_path / "summary").exists()


@pytest.mark.parametrize(
    "given, shown",
    [
        (measured(), "0.75 ppl left, 25% used"),
        (measured(value=-0.1), "1.1 ppl left, 0% used"),
        (measured(value=1.0), "0 ppl left, 100% used"),
        (measured(value=80.0), "79 ppl over, 80x the budget"),
        (measured(value=2138.0), "2.14e+03 ppl over, 2,138x the budget"),
        (measured(limit={"max": 0.0}, value=0.1), "0.1 ppl over"),
        (measured(limit={}), ""),
        (measured(metric="throughput_ratio", limit={"min": 1.5}, value=3.0, unit="x"), "1.5x left, 50% used"),
        (
            measured(metric="memory_budget", limit={"max_gb": 2, "max_ratio": 0.5}, value=1e9, ratio=0.4),
            "1 GB left, 50% used; 0.1x left, 80% used",
        ),
        (
            measured(metric="kl_divergence", limit={"max": 0.05, "max_bound": 0.05}, value=0.01, lower_bound=True),
            "at most 0.04 nats left, at least 20% used; 0.04 nats left, 20% used",
        ),
    ],
)
def test_margins_in_words(given, shown):
    assert room(given) == shown


def test_the_columns_of_a_test_name_its_loudest_verdict_and_its_nearest_limit():
    kl = measured(metric="kl_divergence", limit={"max": 0.05}, value=0.04, unit="nats")
    told = columns([measured(), kl, measured(verdict="inconclusive")])
    assert told == ("inconclusive (nf4 perplexity)", "nf4 KL divergence: 0.01 nats left, 80% used")
    assert columns([]) == ("", "")
    assert columns([{name: BROKEN[name] for name in BROKEN if name != "value"}]) == ("failed (nf4 perplexity)", "")


class Report:
    def __init__(self, record):
        vars(self)[CARRIED] = {"outcomes": [{"record": record}]}


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_text_stays_text_in_the_table_of_pytest_html(text):
    cells = ["<td>Failed</td>", "<td>test_it</td>", "<td>1 s</td>"]
    Html(None).pytest_html_results_table_row(Report({**BROKEN, "format": text}), cells)
    assert cells[0] == "<td>Failed</td>"
    assert len(cells) == 5
    tags = [re.findall(r"<[^>]*>", cell) for cell in cells[2:4]]
    assert tags == [['<td class="col-quantization">', "</td>"], ['<td class="col-margin">', "</td>"]]
    assert visible(cells[2]) == f"failed ({text} perplexity)"


def test_a_row_that_another_plugin_removed_stays_away():
    cells = []
    Html(None).pytest_html_results_table_row(Report(BROKEN), cells)
    assert cells == []


def test_properties_tell_gates_apart_and_never_break_the_xml():
    speeds = [
        measured(metric="throughput_ratio", limit={"min": 1.5}, parameters={"phase": phase}, unit="x", value=2.0)
        for phase in ("decode", "prefill")
    ]
    evil = measured(format='a\x00"<&\ud800\n', verdict="failed", reason="\x1b[31mred\ufffe")
    found = properties([measured(), measured(limit={"max_ratio": 2.0}), *speeds, evil])
    names = [name for name, _ in found]
    assert len(set(names)) == len(names)
    told = dict(found)
    assert told["quant.perplexity_delta[nf4].value"] == "0.25"
    assert told["quant.perplexity_delta[nf4].margin.max"] == "0.75"
    assert told["quant.perplexity_delta[nf4]#2.limit.max_ratio"] == "2.0"
    assert "quant.perplexity_delta[nf4]#2.margin.max_ratio" not in told, "of which no number is known"
    assert told["quant.throughput_ratio[nf4 decode speed].used.min"] == "0.75"
    assert told["quant.throughput_ratio[nf4 prefill speed].verdict"] == "passed"
    from _pytest.junitxml import bin_xml_escape

    attributes = {"name": names[-1], "value": bin_xml_escape(found[-1][1])}
    written = ElementTree.tostring(ElementTree.Element("property", attributes))
    assert ElementTree.fromstring(written).attrib["name"] == names[-1]


def test_properties_name_the_baseline():
    found = dict(properties([measured(baseline={"verdict": "regressed", "value": 0.1, "change": "+0.1 nats"})]))
    told = {name.rpartition("].")[2]: value for name, value in found.items() if ".baseline." in name}
    assert told == {"baseline.verdict": "regressed", "baseline.value": "0.1", "baseline.change": "+0.1 nats"}
