"""The explanation of a broken gate: from what was scored, never a reason to fail, plain data that is read elsewhere."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from together import Together

from pytest_quant.engines import activations
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import Unsupported
from pytest_quant.explaining import Explainer
from pytest_quant.formats import own, registry
from pytest_quant.formats.stamp import stamp
from pytest_quant.gates.gate import Gate
from pytest_quant.hardware import detect, matrix
from pytest_quant.models import Models, check
from pytest_quant.population import Population
from pytest_quant.progress import Quiet
from pytest_quant.quality import Quality
from pytest_quant.report import explanation
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("libraries")
SENTENCE = "The quick brown fox jumps over the lazy dog. "
PERPLEXITY = Gate("perplexity_delta", (("max", 0.5),))
KL = Gate("kl_divergence", (("max", 0.001),))
AGREEMENT = Gate("token_agreement", (("min", 0.999),))
LAYER = "model.layers.1.mlp.down_proj"


class Run:
    """Rooms of a session over one tiny model, with every window scored."""

    def __init__(self, model: Path, folder: Path, *, text: str = SENTENCE * 12, **settings: Any) -> None:
        (folder / "corpus.txt").write_text(text, encoding="utf-8")
        self.spec = ModelSpec(ModelSource(str(model)), reference="fp32")
        given = {"corpus": str(folder / "corpus.txt"), "protocol": "gptq-64", "cache_dir": folder / "cache"}
        self.settings = Settings(**{**given, **settings})
        self.device, self.matrix = detect(), matrix.load("corrected")
        self.models = Models(self.device, self.matrix, Quiet(), lambda spec, format: None)
        self.without: set[str] = set()
        self.population = Population(self.settings)
        self.quality = Quality(
            self.settings, self.device, self.population, Together(self.model), lambda source: "f" * 64, Quiet()
        )

    def model(self, spec: ModelSpec, name: str) -> Any:
        if name in self.without:
            raise Unsupported(name, "a device that is too small", "a larger one")
        return self.models.get(spec, name)

    def check(self, spec: ModelSpec, name: str) -> Any:
        return check(spec, registry.get(name), self.device, self.matrix)

    @property
    def explainer(self) -> Explainer:
        return Explainer(self.settings, self.device, self.population, self.quality, self.model, self.check)

    def plant(self, name: str, change: Any) -> None:
        """Change a model as if it had been loaded so."""
        handle = self.models.get(self.spec, name)
        with torch.inference_mode():
            change(handle.model)
        handle.loaded._stamp = stamp(handle.model)

    def score(self, name: str, gate: Gate = PERPLEXITY) -> None:
        pair = self.quality.pair(self.spec, name, gate)
        while len(pair.scores) < self.quality.total(self.spec):
            self.quality.extend(self.spec, name, pair)

    def explain(self, name: str = "nf4", gate: Gate = PERPLEXITY, **more: Any) -> dict[str, Any]:
        self.score(name, gate)
        found = self.explainer.explain(self.spec, name, gate, **more)
        assert found is not None
        return json.loads(json.dumps(found.record(), allow_nan=False))


def broken_layer(model: Any) -> None:
    state = model.get_submodule(LAYER).weight.quant_state
    state.absmax.mul_(3)


@pytest.fixture
def run(tiny_llama, tmp_path) -> Run:
    return Run(tiny_llama, tmp_path)


def shown(record: Any) -> str:
    lines = explanation.lines(record)
    wide = [line for line in lines if len(line) > 100 and not line.startswith(("next:", "  or:"))]
    assert wide == []
    return "\n".join(lines)


def test_a_sound_format_that_is_too_coarse(run):
    record = run.explain()
    assert record["loss"]["windows"] == 8
    assert record["layers"]["standing_out"] == []
    assert record["layers"]["closest"]["quantized"]
    assert record["layers"]["compared"] == 14 + 4 + 3
    assert record["layers"]["not_compared"] == 0
    assert "no layer stands out" in shown(record)
    assert "could not be compared" not in shown(record)
    assert not run.models.changed()


def test_the_text_around_the_worst_token_is_the_corpus(run):
    record = run.explain()
    values = [window["value"] for window in record["windows"]]
    assert values == sorted(values, reverse=True)
    assert 1 <= len(values) <= 3
    for window in record["windows"]:
        excerpt = window["before"].removeprefix("...") + window["token"] + window["after"].removesuffix("...")
        assert excerpt in SENTENCE * 12
        start = (SENTENCE * 12).index(excerpt.strip())
        assert start >= 0
        assert window["token"]
        assert 0.0 < window["format_probability"] < window["reference_probability"] <= 1.0
        assert window["token"] in shown(record)


def test_the_worst_window_is_the_one_that_lost_most(run):
    record = run.explain()
    pair = run.quality.pair(run.spec, "nf4", PERPLEXITY)
    lost = [float((score.nll - score.reference_nll).mean(dtype=float)) for score in pair.scores]
    place = lost.index(max(lost))
    assert record["windows"][0]["index"] == run.population.windows(run.spec.source).drawn[place].index
    assert record["windows"][0]["value"] == pytest.approx(max(lost))


def test_a_broken_layer_is_named_with_the_format_that_leaves_it_out(run):
    run.plant("nf4", broken_layer)
    record = run.explain()
    assert [odd["name"] for odd in record["layers"]["standing_out"]] == [LAYER]
    assert record["next"][0] == f'variant("nf4", "nf4-mixed", exclude=["{LAYER}"]) in conftest.py'
    text = shown(record)
    assert f"{LAYER} stands out" in text
    variant = own.variant("nf4", "nf4-mixed", exclude=[LAYER])
    assert variant.exclude == (LAYER,)


def test_a_norm_that_was_damaged_is_not_excused_by_the_format(run):
    run.plant("nf4", lambda model: model.model.layers[0].input_layernorm.weight.mul_(2.0))
    record = run.explain()
    assert "model.layers.0.input_layernorm is not quantized, yet it is off by 1" in shown(record)
    (step,) = record["next"]
    assert step.startswith("compare the files of the checkpoint")


def test_a_layer_of_nan(run):
    run.plant("nf4", lambda model: model.model.layers[1].input_layernorm.weight.fill_(float("nan")))
    record = run.explain()
    assert record["loss"]["verdict"] == "broken"
    text = shown(record)
    assert text.startswith("100 % of ")
    assert "model.layers.1.input_layernorm answers NaN or infinity" in text
    assert "p " in text
    assert "-> NaN" in text


def test_the_first_tokens_after_one_that_the_model_no_longer_knows(tiny_llama, tmp_path):
    """Its row of the input table is another one: what follows it is lost."""
    run = Run(tiny_llama, tmp_path, text=SENTENCE * 24)
    (token,) = run.models.get(run.spec, "nf4").tokenizer("k")["input_ids"]

    def forget(model: Any) -> None:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[token] = -model.lm_head.weight[token] * 4

    run.plant("nf4", forget)
    record = run.explain()
    assert record["loss"]["verdict"] == "kind"
    assert record["loss"]["kind"]["name"] == "the token »k«"
    assert record["loss"]["kind"]["of_tokens"] < 0.05
    assert "one kind of tokens carries it: the token »k«" in shown(record)


@pytest.mark.parametrize("gate", [KL, AGREEMENT], ids=lambda gate: gate.metric)
def test_other_metrics(run, gate):
    run.plant("nf4", broken_layer)
    record = run.explain(gate=gate)
    assert record["metric"] == gate.metric
    assert ("divergence" in record["windows"][0]) == (gate is KL)
    assert LAYER in shown(record)
    assert not any("--max" in step for step in record["next"])


def test_the_scan_takes_the_gates_limit_and_the_runs_protocol(run):
    record = run.explain(gate=Gate("perplexity_delta", (("max_ratio", 1.01),)))
    words = shlex.split(next(step for step in record["next"] if " scan " in step))
    assert words[:3] == ["pytest-quant", "scan", run.spec.source.name]
    told = dict(zip(words[3::2], words[4::2], strict=True))
    assert told == {
        "--format": "nf4",
        "--reference": "fp32",
        "--corpus": run.settings.corpus,
        "--protocol": "gptq-64",
        "--max-ratio": "1.01",
    }


def test_the_next_better_format_runs_here(run):
    record = run.explain()
    (wider,) = (step for step in record["next"] if step.startswith("formats="))
    name = wider.partition('"')[2].partition('"')[0]
    format = registry.get(name)
    assert format.weights.num_bits == 8
    assert not format.from_checkpoint
    assert re.search(r" runs here in \d+\.\d kB of weights \(nf4: \d+\.\d kB\)$", wider)
    assert run.check(run.spec, name).status != "unsupported"


def test_no_more_than_three_steps_of_which_none_is_for_another_device(run, monkeypatch):
    monkeypatch.setattr(run, "check", lambda spec, name: (_ for _ in ()).throw(Unsupported(name, "nothing", "more")))
    assert [step for step in run.explain()["next"] if "formats=" in step] == []
    monkeypatch.undo()
    assert 1 <= len(run.explain()["next"]) <= 3


def test_a_kv_cache_that_is_quantized_is_said(tiny_llama, tmp_path):
    run = Run(tiny_llama, tmp_path)
    record = run.explain("nf4+kv-int8-g16")
    assert record["kv_cache"] is True
    assert "the KV cache is quantized too" in shown(record)
    assert record["next"][0] == 'tell weights from KV cache: formats=["nf4", "fp32+kv-int8-g16"]'


def test_without_room_for_the_reference_the_rest_is_told(run):
    run.score("nf4")
    run.without.add("fp32")
    record = run.explain()
    assert "layers" not in record
    assert record["no_layers"] == "a device that is too small"
    assert "layers were not compared: a device that is too small" in shown(record)
    assert record["windows"]
    assert record["next"]


def test_out_of_memory_while_comparing_layers_is_a_line(run, monkeypatch):
    def exhausted(*arguments: Any) -> None:
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(activations, "compare", exhausted)
    record = run.explain()
    assert record["no_layers"].startswith("out of memory (CUDA out of memory")
    assert record["windows"]


@pytest.mark.parametrize("error", [ValueError("a tokenizer\nof another kind"), MemoryError(), ZeroDivisionError()])
def test_nothing_that_goes_wrong_is_raised(run, monkeypatch, error):
    run.score("nf4")

    def fail(source: Any) -> None:
        raise error

    monkeypatch.setattr(run.population, "windows", fail)
    found = run.explainer.explain(run.spec, "nf4", PERPLEXITY)
    assert set(found.record()) == {"trouble"}
    (line,) = explanation.lines(found.record())
    assert line.startswith("no explanation: ")
    assert len(line) > len("no explanation: ")


def test_the_user_may_still_interrupt(run, monkeypatch):
    run.score("nf4")

    def stop(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(activations, "compare", stop)
    with pytest.raises(KeyboardInterrupt):
        run.explainer.explain(run.spec, "nf4", PERPLEXITY)


def test_what_is_no_quality_gate_or_was_not_scored_has_none(run):
    assert run.explainer.explain(run.spec, "nf4", Gate("memory_budget", (("max_gb", 1.0),))) is None
    assert run.explainer.explain(run.spec, "nf4", PERPLEXITY) is None
    assert explanation.lines(None) == []


def test_since_a_baseline(run):
    run.score("nf4")
    pair = run.quality.pair(run.spec, "nf4", PERPLEXITY)
    before = [float(score.nll.mean(dtype=float)) for score in pair.scores]
    before[5] -= 0.25
    record = run.explain(before=before)
    assert record["since_baseline"] is True
    assert [window["index"] for window in record["windows"]] == [run.population.windows(run.spec.source).drawn[5].index]
    assert "worst of 8 windows since the baseline" in shown(record)
    assert "+0.25 nats a token" in shown(record)


def test_text_that_would_move_the_cursor_is_escaped(tiny_llama, tmp_path):
    nasty = "red \x1b[31m and\r\nback\x08 tab\t\u202etxet desrever\u200b end. "
    run = Run(tiny_llama, tmp_path, text=nasty * 12)
    run.plant("nf4", broken_layer)
    record = run.explain(gate=KL)  # a text that the model never knew
    text = shown(record)
    assert all(char.isprintable() for char in text.replace("\n", ""))
    shown_text = "".join(w["before"] + w["token"] + w["after"] for w in record["windows"])
    assert any(sign in shown_text for sign in ("\\x1b", "\\r", "\\x08", "\\t"))


def test_a_format_of_smaller_groups_is_offered_where_it_has_them(tiny_llama, tmp_path):
    pytest.importorskip("hqq")
    record = Run(tiny_llama, tmp_path).explain("int4@hqq")
    assert 'smaller groups, in conftest.py: variant("int4@hqq", "int4-hqq-g32", group_size=32)' in record["next"]
    assert own.variant("int4@hqq", "int4-hqq-g32", group_size=32).weights.group_size == 32


def test_no_command_for_a_format_that_only_the_test_suite_knows(tiny_llama, tmp_path):
    def load(asked: Any, from_pretrained: Any) -> Any:
        from transformers import BitsAndBytesConfig

        config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
        return from_pretrained(asked.model, dtype=torch.float32, quantization_config=config)

    name = registry.add(*own.custom("ours-nf4", load, num_bits=4, type="float", scale_bits=1.0))
    try:
        record = Run(tiny_llama, tmp_path).explain(name)
    finally:
        registry.forget([name])
    assert record["layers"]["compared"] == 14 + 4 + 3
    assert record["layers"]["medians"].keys() >= {"q_proj", "down_proj"}
    assert not any(" scan " in step for step in record["next"])


def test_a_variant_is_scanned_as_the_format_that_it_is_of(tiny_llama, tmp_path):
    name = registry.add(own.variant("nf4", "nf4-wide-head", exclude=[LAYER]))
    try:
        record = Run(tiny_llama, tmp_path).explain(name)
    finally:
        registry.forget([name])
    (step,) = (step for step in record["next"] if " scan " in step)
    assert " --format nf4 " in step
    assert step.endswith("  # of nf4, which nf4-wide-head is a variant of")
    assert shlex.split(step, comments=True)[-2:] == ["--max", "0.5"]
    assert "down_proj" in record["layers"]["medians"]


@pytest.mark.parametrize(
    "limits, told",
    [
        ((("max", 0.5), ("max_ratio", 1.01)), ["--max", "0.5"]),
        ((("max_ratio", 1.01234567890123),), ["--max-ratio", "1.01234567890123"]),
        ((("max", 1.0),), ["--max", "1"]),
        ((("max", -1e-05),), ["--max=-1e-05"]),
    ],
    ids=["both", "exact", "short", "negative"],
)
def test_the_command_is_one_that_is_taken(run, limits, told):
    """Its parser reads the gate's own limit, and only one."""
    from pytest_quant import cli

    record = run.explain(gate=Gate("perplexity_delta", limits))
    words = shlex.split(next(step for step in record["next"] if " scan " in step))
    assert words[-len(told) :] == told
    parsed = cli.parser().parse_args(words[1:])
    name, limit = limits[0]
    assert getattr(parsed, name) == limit
    assert (parsed.max is None) != (parsed.max_ratio is None)


def kv_advice(run: Run, name: str, missing: tuple[str, ...] = ()) -> list[str]:
    def check(spec: ModelSpec, asked: str) -> Any:
        if asked in missing:
            raise Unsupported(asked, "nothing", "more")

    explainer = Explainer(run.settings, run.device, run.population, run.quality, run.model, check)
    return list(explainer._apart(run.spec, registry.get(name)))


@pytest.mark.parametrize(
    "name, missing, said",
    [
        ("fp16+kv-int4", (), ['the KV cache with more bits: formats=["fp16+kv-int8"]']),
        ("fp16+kv-int4", ("fp16+kv-int8",), []),
        ("fp16+kv-int8", (), []),
        ("fp16+kv-int8-g16", (), []),
        ("fp16+kv-fp8", (), []),
        ("nf4+kv-int4", (), ['tell weights from KV cache: formats=["nf4", "fp32+kv-int4"]']),
        ("nf4+kv-int4", ("nf4",), ['tell weights from KV cache: formats=["fp32+kv-int4"]']),
        ("nf4+kv-int4", ("nf4", "fp32+kv-int4"), []),
        ("nf4", (), []),
    ],
)
def test_a_cache_that_is_advised_has_more_bits_and_runs_here(run, name, missing, said):
    assert kv_advice(run, name, missing) == said


def test_wide_modules_are_counted_where_none_is_quantized(run):
    record = run.explain("bf16")
    assert record["layers"]["compared"] == 14 + 4 + 3
    assert "closest" not in record["layers"]
    assert "no layer stands out: 21 modules were compared, each given the reference's input" in shown(record)


def test_modules_that_could_not_be_compared_are_counted(run, monkeypatch):
    compare = activations.compare

    def some(*arguments: Any) -> Any:
        found = compare(*arguments)
        return dataclasses.replace(found, errors=found.errors[:-2], apart=("a", "b"))

    monkeypatch.setattr(activations, "compare", some)
    record = run.explain("bf16")
    assert record["layers"]["not_compared"] == 2
    assert "19 modules were compared" in shown(record)
    assert "; 2 could not be compared" in " ".join(shown(record).split())


def test_a_broken_layer_of_a_variant_is_left_out_besides_its_own(run):
    """Of nf4 again: formats of a test suite know nothing of each other."""
    registry.add(own.variant("nf4", "nf4-mixed", exclude=["v_proj"]))
    try:
        run.plant("nf4-mixed", broken_layer)
        record = run.explain("nf4-mixed")
    finally:
        registry.forget(["nf4-mixed"])
    line = f'variant("nf4", "nf4-mixed-mixed", exclude=["v_proj", "{LAYER}"]) in conftest.py'
    assert record["next"][0] == line
