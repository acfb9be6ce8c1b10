"""Rounds of a run: how many are played, when both models do not fit, what is refused, what is shared."""

from __future__ import annotations

from collections import defaultdict
from itertools import cycle

import pytest

from pytest_quant.engines import timing
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.gates.gate import Gate
from pytest_quant.hardware import conditions
from pytest_quant.hardware.condition import Condition, Conditions
from pytest_quant.markers import gate
from pytest_quant.metrics.rounds import BLOCK
from pytest_quant.progress import Quiet
from pytest_quant.room import NoRoom
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("libraries")
FEWEST = 10
"""Rounds that bound an interval at 99 %."""


class Clock:
    """Seconds of a step by compute type, in turn; and what was run in which order."""

    def __init__(self, monkeypatch, **steps):
        self.steps = {kind: cycle(seconds) for kind, seconds in steps.items()}
        self.ran = []
        monkeypatch.setattr(timing.Runner, "steps", lambda runner, count: [self._seconds(runner) for _ in range(count)])
        monkeypatch.setattr(timing.Runner, "prefill", lambda runner, prompt: self._seconds(runner))
        monkeypatch.setattr(timing.Runner, "first_token", lambda runner, prompt: self._seconds(runner))

    def _seconds(self, runner):
        kind = str(next(runner._model.model.parameters()).dtype).removeprefix("torch.")
        self.ran.append(kind)
        return next(self.steps[kind])


@pytest.fixture
def quiet(monkeypatch):
    """Nothing disturbs the machine."""
    monkeypatch.setattr(conditions.Watch, "stop", lambda watch: Conditions())


@pytest.fixture
def spec(tiny_llama):
    return ModelSpec(ModelSource(str(tiny_llama)), reference="fp32")


@pytest.fixture
def session(tmp_path, quiet):
    (tmp_path / "corpus.txt").write_text("The quick brown fox jumps over the lazy dog. " * 9)
    made = Session(Settings(corpus=str(tmp_path / "corpus.txt"), protocol="gptq-16", cache_dir=tmp_path), Quiet())
    yield made
    made.models.keep(())


def asked(**arguments) -> Gate:
    return gate("throughput_ratio", {"prompt_tokens": 8, "new_tokens": 4, **arguments})


def test_rounds_stop_when_the_interval_excludes_the_limit(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    found = session.measure(spec, "bf16", asked(min=1.5))
    assert (found.value, found.quantity.low, found.quantity.high) == (2.0, 2.0, 2.0)
    assert (found.rounds, found.spent, found.confidence) == (FEWEST, False, 0.99)
    assert (found.figures["format_value"], found.figures["reference_value"]) == (2.0, 1.0)
    assert found.figures["format_inter_token_p50_ms"] == 500.0


def test_the_whole_workload_is_run_before_a_verdict(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    assert session.measure(spec, "bf16", asked(min=1.5, new_tokens=17)).rounds == 17


def test_rounds_are_added_while_the_interval_contains_the_limit(session, spec, monkeypatch):
    """Three of four rounds are above the limit: ten of them do not decide it."""
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5, 0.5, 0.5, 2.0])
    found = session.measure(spec, "bf16", asked(min=1.0, phase="prefill"))
    assert found.rounds > FEWEST
    assert found.quantity.low > 1.0
    assert not found.spent


def test_the_budget_ends_what_nothing_decides(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5, 2.0])
    session.settings = session.settings.__class__(**{**vars(session.settings), "speed_budget": 0.2})
    found = session.measure(spec, "bf16", asked(min=1.0, phase="prefill"))
    assert found.spent
    assert found.quantity.low < 1.0 < found.quantity.high


def test_a_budget_that_is_too_small_still_bounds_an_interval(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5, 2.0])
    session.settings = session.settings.__class__(**{**vars(session.settings), "speed_budget": 1e-9})
    assert session.measure(spec, "bf16", asked(min=1.0)).rounds == FEWEST


def test_two_questions_share_the_error(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    assert session.measure(spec, "bf16", asked(min=1.5), questions=2).rounds == FEWEST + 1


def test_gates_on_one_workload_share_its_rounds(session, spec, monkeypatch):
    clock = Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    session.measure(spec, "bf16", asked(min=1.5))
    ran = len(clock.ran)
    cost = session.measure(
        spec, "bf16", gate("cost_ratio", {"max": 1, "price": 3.6, "prompt_tokens": 8, "new_tokens": 4})
    )
    session.measure(spec, "bf16", asked(min=0.1))
    assert len(clock.ran) == ran
    assert cost.value == 0.5
    assert cost.quantities["usd"].value == pytest.approx(3.6 / 3600 / 2.0 * 1e6)


def test_prices_come_from_the_run_where_the_marker_has_none(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    limited = gate("cost_ratio", {"max_usd": 600, "prompt_tokens": 8, "new_tokens": 4})
    with pytest.raises(
        UsageError, match=r"cost_ratio\(max_usd=...\) needs a price an hour: price=... or --quant-price"
    ):
        session.measure(spec, "bf16", limited)
    session.speed._settings = session.settings.__class__(**{**vars(session.settings), "price": 3.6})
    found = session.measure(spec, "bf16", limited)
    assert found.quantities["usd"].value == pytest.approx(500.0)
    assert found.identity["metric"]["price"] == 3.6


def test_what_the_hardware_cannot_do_is_refused_with_the_arithmetic(session, spec, monkeypatch):
    clock = Clock(monkeypatch, float32=[1e-9], bfloat16=[1e-9])
    with pytest.raises(UsageError) as refused:
        session.measure(spec, "bf16", asked(min=100.0))
    said = str(refused.value)
    assert (
        "throughput_ratio(min=100) asks for more than the hardware allows: fp32 makes 1e+09 tokens/s in decode" in said
    )
    assert "of weights" in said
    assert "with both at their bound it is" in said
    assert clock.ran.count("float32") == 4 + 3 * 4, "warm-up and three rounds"


def test_each_speed_stands_beside_its_bound(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    found = session.measure(spec, "bf16", asked(min=1.5))
    assert set(found.bounds) == {"format", "reference"}
    for which, speed in (("format", 2.0), ("reference", 1.0)):
        bound = found.bounds[which]
        assert bound["share"] == pytest.approx(speed / bound["tokens_per_second"])
        assert bound["regime"] in ("bandwidth", "compute")


def test_what_was_seen_of_the_machine_goes_with_the_number(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    busy = Conditions((Condition("cpu-load", "others took 50% of the 2 CPUs"),), {"others_cpu_share": 0.5})
    monkeypatch.setattr(conditions.Watch, "stop", lambda watch: busy)
    found = session.measure(spec, "bf16", asked(min=1.5))
    assert found.conditions == (("cpu-load", "others took 50% of the 2 CPUs"),)
    assert found.figures["others_cpu_share"] == 0.5


def test_conditions_that_are_usual_are_not_noted(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    busy = Conditions((Condition("cpu-load", "others took 50% of the 2 CPUs"), Condition("mig", "on a slice")), {})
    monkeypatch.setattr(conditions.Watch, "stop", lambda watch: busy)
    session.speed._settings = session.settings.__class__(**{**vars(session.settings), "accept": ("cpu-load",)})
    assert session.measure(spec, "bf16", asked(min=1.5)).conditions == (("mig", "on a slice"),)


def test_models_that_do_not_fit_together_take_turns_in_blocks(session, spec, monkeypatch):
    clock = Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    loads = only_one_fits(session, monkeypatch)
    found = session.measure(spec, "bf16", asked(min=1.5, phase="prefill"))
    assert found.value == 2.0
    assert found.rounds == FEWEST, "a block is one run of a round"
    counts = {count % (BLOCK + 1) for _, count in blocks(clock.ran)}
    assert counts == {0}, "each block is warmed up"
    assert loads["fp32"] + loads["bf16"] <= 2 * FEWEST + 3, "what is loaded already is not loaded again"
    assert found.proof["reference_difference"] > 0.0, "the answers were compared though both were never there at once"


def test_models_in_turn_stop_at_the_budget_even_without_an_interval(session, spec, monkeypatch):
    """Ten rounds of loading could take hours: then nothing is decided, and says so."""
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    only_one_fits(session, monkeypatch)
    session.speed._settings = session.settings.__class__(**{**vars(session.settings), "speed_budget": 1e-9})
    found = session.measure(spec, "bf16", asked(min=1.5, phase="prefill"))
    assert (found.rounds, found.spent, found.value) == (1, True, 2.0)
    assert (found.quantity.low, found.quantity.high) == (0.0, float("inf"))


def test_a_reference_price_alone_says_nothing(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    asked_cost = gate("cost_ratio", {"max": 1, "reference_price": 4, "prompt_tokens": 8, "new_tokens": 4})
    with pytest.raises(UsageError, match="says nothing without the format's own price"):
        session.measure(spec, "bf16", asked_cost)


def test_a_limit_above_what_the_bounds_allow_together_is_remarked(session, spec, monkeypatch):
    """A reference far from its bound leaves more to gain than the bounds say."""
    Clock(monkeypatch, float32=[10.0], bfloat16=[0.5])
    found = session.measure(spec, "bf16", asked(min=15.0))
    assert found.value == 20.0
    assert found.remark.startswith("min 15x is more than the ")
    assert "that are gained where both reach their bound" in found.remark
    assert session.measure(spec, "bf16", asked(min=0.5)).remark == ""


def test_a_format_that_fits_nowhere_is_skipped(session, spec, monkeypatch):
    Clock(monkeypatch, float32=[1.0], bfloat16=[0.5])
    load = session.models._load

    def refuse(of, format):
        if format.name == "bf16":
            raise NoRoom("bf16", "too little memory", "more")
        return load(of, format)

    monkeypatch.setattr(session.models, "_load", refuse)
    with pytest.raises(Unsupported, match="too little memory"):
        session.measure(spec, "bf16", asked(min=1.5))


def test_energy_is_skipped_where_nothing_counts_it(session, spec, monkeypatch):
    from pytest_quant.hardware import energy

    def none(device):
        raise Unsupported("the energy that the CPU takes", "no counter", "one")

    monkeypatch.setattr(energy, "counter", none)
    with pytest.raises(Unsupported, match="the energy that the CPU takes"):
        session.measure(spec, "bf16", gate("energy_ratio", {"max": 1.0, "prompt_tokens": 8, "new_tokens": 4}))


def test_energy_of_a_token_from_a_counter(session, spec, monkeypatch):
    """A device that takes 100 W of the format, 200 W of the reference, both as fast."""
    from pytest_quant.hardware import energy

    clock = Clock(monkeypatch, float32=[1.0], bfloat16=[1.0])

    class Fake:
        source, period = "a fake", 0.0

        def joules(self):
            return sum({"float32": 200.0, "bfloat16": 100.0}[kind] for kind in clock.ran)

    monkeypatch.setattr(energy, "counter", lambda device: Fake())
    measured = session.measure(spec, "bf16", gate("energy_ratio", {"max": 0.6, "prompt_tokens": 8, "new_tokens": 4}))
    assert (measured.value, measured.quantities["joules"].value) == (0.5, 100.0)
    assert measured.identity["metric"]["counter"] == "a fake"


def only_one_fits(session, monkeypatch):
    """Whoever else is loaded while one is there finds no room; counts what is loaded."""
    load, loads = session.models._load, defaultdict(int)

    def limited(of, format):
        if session.models._held:
            raise NoRoom(format.name, "too little memory", "more")
        loads[format.name] += 1
        return load(of, format)

    monkeypatch.setattr(session.models, "_load", limited)
    return loads


def blocks(ran):
    """Runs of one kind after another, with their number."""
    found = []
    for kind in ran:
        if found and found[-1][0] == kind:
            found[-1][1] += 1
        else:
            found.append([kind, 1])
    return [tuple(each) for each in found]
