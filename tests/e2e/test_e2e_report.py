"""The table at the end: readable at 80 columns, without colour, and quiet in a pipe."""

from __future__ import annotations

import re

import pytest

ALL = """
import pytest

@pytest.mark.quant(formats=["int8", "nf4"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
@pytest.mark.memory_budget(max_ratio=1.5)
@pytest.mark.memory_budget(max_gb=1, of="peak")
@pytest.mark.throughput_ratio(min=0.01, prompt_tokens=8, new_tokens=2)
@pytest.mark.throughput_ratio(min=0.01, phase="prefill", prompt_tokens=8)
def test_all(quant_model): ...
"""
HEADER = re.compile(r"format  metric +value +limit +baseline +verdict")


@pytest.fixture
def steady(project, monkeypatch):
    """The same project, in which every step and every prefill takes a hundredth of a second, and nothing disturbs."""
    from pytest_quant.engines import timing
    from pytest_quant.hardware import conditions

    monkeypatch.setattr(timing.Runner, "steps", lambda self, count: [0.01] * count)
    monkeypatch.setattr(timing.Runner, "prefill", lambda self, prompt: 0.01)
    monkeypatch.setattr(conditions, "Watch", Quiet)
    return project


class Quiet:
    """Sees what it is told to see."""

    sees: tuple = ()

    def __init__(self, device, *, workers=0) -> None: ...

    def start(self) -> None: ...

    def look(self) -> None: ...

    def stop(self):
        from pytest_quant.hardware.condition import Condition, Conditions

        return Conditions(tuple(Condition(*seen) for seen in self.sees), {"others_cpu_share": 0.25})


def table(result: pytest.RunResult) -> list[str]:
    """Its lines, with those below rows."""
    start = next(i for i, line in enumerate(result.outlines) if HEADER.fullmatch(line))
    rows = result.outlines[start:]
    return rows[: next(i for i, line in enumerate(rows) if not re.match(r"  \S|(format|int8|nf4)  ", line))]


def test_one_table_in_80_columns_without_colour(steady):
    steady.test(ALL)
    steady.gate()
    result = steady.gate()
    lines = table(result)
    rows = [line for line in lines if not line.startswith(" ")]
    assert len(rows) == 1 + 10
    assert max(map(len, rows)) <= 80
    assert not any("\x1b" in line for line in result.outlines)
    words = {row.split()[-1] for row in rows[1:]}
    assert words <= {"passed", "improved", "inconclusive"}


def test_below_a_speed_stand_both_speeds_with_their_share_of_the_bound(steady):
    steady.test(ALL)
    lines = table(steady.gate())
    places = [place for place, line in enumerate(lines) if " speed " in line]
    assert len(places) == 4
    for place in places:
        ours, theirs = lines[place + 1 : place + 3]
        format = lines[place].split()[0]
        speed = 100 if "decode" in lines[place] else 800
        for line, name in ((ours, format), (theirs, "fp32")):
            assert re.match(rf"  {name} {speed} tokens/s, [\d.]+% of at most \S+ \((bandwidth|compute)\), ", line)
            assert line.endswith(", 11 rounds"), "the limit and the baseline share the error"
            assert ("a token in 10 ms" in line) is ("decode" in lines[place])
    assert sum("tokens/s" in line for line in lines) == 8, "and none below other rows"


EVERY = """
import pytest

@pytest.mark.throughput_ratio(min=0.01, prompt_tokens=8, new_tokens=2)
@pytest.mark.cost_ratio(max=3, prompt_tokens=8, new_tokens=2)
@pytest.mark.cost_ratio(max_usd=3000, price=3.6, phase="prefill", prompt_tokens=8)
def test_every(quant_model): ...
"""


def test_costs_in_the_table(steady):
    steady.test(EVERY)
    result = steady.run()
    result.stdout.fnmatch_lines_random(
        [
            "int8    decode speed p8 n2 *1x *min 0.01x *passed",
            "int8    decode cost p8 n2 *1x *max 3x *passed",
            "int8    prefill cost p8 $3.6 *1.25 $/Mtok*max 3000 $/Mtok *passed",
        ]
    )
    rows = [line for line in table(result) if not line.startswith(" ")]
    assert max(map(len, rows)) <= 80


def test_energies_in_the_table(steady, monkeypatch):
    from pytest_quant.hardware import energy

    class Counter:
        source, period, joules = "a counter", 0.0, iter(range(10**6)).__next__

    monkeypatch.setattr(energy, "counter", lambda device: Counter)
    steady.test(
        """
        import pytest

        @pytest.mark.energy_ratio(max=3, max_joules=1, prompt_tokens=8, new_tokens=4)
        def test_energy(quant_model): ...
        """
    )
    lines = table(steady.run())
    assert re.fullmatch(r"int8    decode energy p8 n4  1x +max 3x, max 1 J/tok  -         passed", lines[1])
    assert re.fullmatch(r"  int8 0\.25 J/tok, \S+ W", lines[2])
    assert re.fullmatch(r"  fp32 0\.25 J/tok, \S+ W", lines[3])


SPEED = """
import pytest

@pytest.mark.throughput_ratio(min=0.01, phase="prefill", prompt_tokens=8)
def test_speed(quant_model): ...
"""
DISTURBED = (("cpu-load", "other processes took 25 % of the CPUs"), ("clocks", "the clocks went from 3 to 2 GHz"))


def test_conditions_are_named_with_the_option_that_accepts_them(steady, monkeypatch):
    steady.ini(f"quant_model = {steady.model}", "quant_accept =")
    monkeypatch.setattr(Quiet, "sees", DISTURBED)
    steady.test(SPEED)
    result = steady.gate()
    assert result.ret == 0
    lines = [line for line in result.outlines if "--quant-accept" in line]
    assert sorted(lines) == sorted(
        f"int8 prefill speed p8: {text}; such numbers become no baselines (--quant-accept={name} if that is usual)"
        for name, text in DISTURBED
    )
    assert steady.baselines == {}

    accepted = steady.gate("--quant-accept=" + ",".join(name for name, _ in DISTURBED))
    assert accepted.ret == 0
    assert not any("--quant-accept" in line for line in accepted.outlines)
    assert len(steady.entries) == 1
    assert steady.entries[0]["figures"]["others_cpu_share"] == 0.25


def test_one_of_two_conditions_may_be_usual(steady, monkeypatch):
    steady.ini(f"quant_model = {steady.model}", "quant_accept =")
    monkeypatch.setattr(Quiet, "sees", DISTURBED)
    steady.test(SPEED)
    result, record = steady.record("--quant-baseline", "--quant-accept=clocks")
    assert result.ret == 0
    assert [one["name"] for one in record["measurements"][0]["conditions"]] == ["cpu-load"]
    assert steady.baselines == {}


def test_a_required_baseline_is_not_excused_by_conditions(steady, monkeypatch):
    monkeypatch.setattr(Quiet, "sees", DISTURBED)
    steady.test(SPEED)
    result = steady.gate("--quant-missing=fail")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*int8 throughput_ratio missing: *"])


def test_a_regression_under_conditions_does_not_break_the_build(steady, monkeypatch):
    from pytest_quant.engines import timing

    steady.test(SPEED)
    assert steady.gate().ret == 0
    kept = steady.baselines
    kind = {True: 0.02, False: 0.01}
    monkeypatch.setattr(timing.Runner, "prefill", lambda self, prompt: kind[self._model.proof.format == "int8"])
    assert steady.gate().ret == 1
    monkeypatch.setattr(Quiet, "sees", DISTURBED)
    result = steady.gate("--quant-inconclusive=fail")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*int8 prefill speed p8: *not judged: *"])
    assert steady.baselines == kept


def test_progress_stays_out_of_a_pipe(steady):
    steady.test(ALL)
    result = steady.gate()
    assert not any("loading tiny-llama" in line or "windows" in line for line in result.outlines)


def test_progress_on_a_terminal(steady, monkeypatch):
    """What is shown while models load and windows are scored, and that nothing of it stays."""
    from pytest_quant.report import progress

    shown = []

    class Listening(progress.TerminalProgress):
        def _line(self, text: str, first: bool) -> None:
            shown.append(text)
            super()._line(text, first)

    monkeypatch.setattr(progress, "_EVERY", 0.0)
    monkeypatch.setattr(
        progress, "for_config", lambda config: Listening(config.pluginmanager.getplugin("terminalreporter"), config)
    )
    steady.test(ALL)
    result = steady.gate()
    assert result.ret == 0
    assert "loading tiny-llama in nf4" in shown
    assert "int8: scoring tiny-llama 8/8 windows" in shown
    timed = [text for text in shown if text.startswith("nf4: timing decode against fp32, ")]
    assert timed[0] == "nf4: timing decode against fp32, 1 round", "an interval of one round says nothing"
    assert timed[-1] == "nf4: timing decode against fp32, 10 rounds"
    assert shown[-1] == ""


def test_quiet_and_without_a_terminal_reporter(steady):
    steady.test(ALL)
    assert steady.gate("-q").ret == 0
    assert steady.gate("-p", "no:terminal").ret == 0


def test_the_run_record_has_no_null_and_no_nan(steady):
    steady.test(ALL + "\n@pytest.mark.memory_budget(max_gb=0.00001)\ndef test_broken(quant_model): ...\n")
    _, record = steady.record("--quant-baseline")

    def walk(value):
        assert value is not None
        for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            walk(inner)

    walk(record)
    assert record["schema"] == 1
    assert set(record) == {"schema", "environment", "measurements", "skipped", "failed"}
    assert len(record["measurements"]) == 11
    for measured in record["measurements"]:
        assert set(measured) >= {
            "test",
            "metric",
            "model",
            "format",
            "engine",
            "limit",
            "verdict",
            "baseline",
            "identity",
        }
