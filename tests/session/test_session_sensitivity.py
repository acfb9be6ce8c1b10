"""Scans of a tiny model in real formats, and a mix against the same loaded as a variant."""

from __future__ import annotations

import dataclasses
import json
import shlex
from typing import Any

import pytest
from small_models import save_llama

from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import NotFinite, NotMeasured, ProofFailed, UsageError
from pytest_quant.formats import registry, variant
from pytest_quant.formats.rounding import Rounding
from pytest_quant.gates.gate import Gate
from pytest_quant.metrics import keeping
from pytest_quant.metrics import sensitivity as metric
from pytest_quant.metrics.keeping import Budget, Kept, Tried
from pytest_quant.progress import Quiet
from pytest_quant.report import sensitivity as report
from pytest_quant.sensitivity import Sensitivity
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

SENTENCE = "The quick brown fox jumps over the lazy dog. "

pytestmark = pytest.mark.usefixtures("libraries")


class Run:
    def __init__(self, model: Any, folder: Any) -> None:
        (folder / "corpus.txt").write_text(SENTENCE * 12)
        settings = Settings(
            corpus=str(folder / "corpus.txt"), protocol="gptq-32", cache_dir=folder / "cache", max_windows=4
        )
        self.spec = ModelSpec(ModelSource(str(model)), reference="fp32")
        self.session = Session(settings, Quiet())
        session = self.session
        self.sensitivity = Sensitivity(settings, session.device, session.population, session.model, Quiet())

    def scan(self, asked: Any, **how: Any) -> Any:
        return self.sensitivity.scan(self.spec, asked, **{"windows": 4, **how})

    def model(self, name: str) -> Any:
        return self.session.model(self.spec, name).model


@pytest.fixture
def run(tiny_llama, tmp_path) -> Run:
    return Run(tiny_llama, tmp_path)


@pytest.fixture(params=["nf4", "int8", "int8-weight-only", "int4@quanto"])
def format_name(request) -> str:
    return str(request.param)


def test_a_format_layer_by_layer(run, format_name):
    found = run.scan(format_name)
    assert len(found.rows) == 14
    assert found.reused
    assert found.sample.used == found.sample.total == 4
    assert [row.kl.value for row in found.rows] == sorted((row.kl.value for row in found.rows), reverse=True)
    assert all(row.kl.value > 0 and row.layer.bytes_saved > 0 for row in found.rows)
    assert all(row.nats.low == row.nats.value == row.nats.high for row in found.rows)
    measured = run.session.measure(run.spec, format_name, Gate("perplexity_delta"))
    assert found.whole.nats.value == pytest.approx(measured.quantities["ln_ratio"].value, abs=1e-5)
    assert found.sample.reference_perplexity == pytest.approx(measured.figures["reference_value"], rel=1e-5)
    divergence = run.session.measure(run.spec, format_name, Gate("kl_divergence"))
    assert found.whole.kl.value == pytest.approx(divergence.value, abs=1e-5)
    json.dumps(found.record(), allow_nan=False)


def test_a_planted_fault_is_named_first(run):
    import torch

    quantized = run.model("int8-weight-only")
    layer = quantized.model.layers[1].mlp.up_proj
    broken = layer.weight.dequantize()
    broken[3:40] = 0.0
    layer.weight = torch.nn.Parameter(broken, requires_grad=False)
    found = run.scan("int8-weight-only")
    assert found.rows[0].layer.name == "model.layers.1.mlp.up_proj"
    assert found.rows[0].kl.value > 3 * found.rows[1].kl.value
    by_block = run.scan("int8-weight-only", of="block")
    assert [row.layer.name for row in by_block.rows] == ["model.layers.1", "model.layers.0"]
    assert not run.session.model(run.spec, "fp32").loaded.changed


def test_a_rounding_layer_by_layer(run):
    found = run.scan(Rounding("int4", "tensor"))
    kinds = {row.layer.kind for row in found.rows}
    assert kinds == {"attention", "mlp", "embedding", "head"}
    assert len(found.parts) == 14
    assert found.format == "int4-tensor"
    saved = next(row.layer for row in found.rows if row.layer.name == "model.layers.0.mlp.up_proj")
    assert saved.bytes_saved == pytest.approx(saved.weights * 3.5)
    assert not run.session.model(run.spec, "fp32").loaded.changed


def test_a_mix_is_what_the_variant_is(run, monkeypatch):
    """The verified figure of a mix is that of the model which is loaded with these modules excluded."""
    found = run.scan("nf4")
    low = min(found.whole.nats.value, 0.0) - 1.0
    monkeypatch.setattr(keeping, "first_guess", lambda *_: 5)
    probe = run.sensitivity.keep(run.spec, "nf4", found, Budget(max_nats=low))
    assert not probe.holds  # no mix is that much better than the reference
    assert probe.nats.value == pytest.approx(0.0, abs=1e-5)
    nats = next(each.nats for each in probe.tried if (each.order, each.kept) == ("kl", 5))
    names = [row.layer.name for row in found.rows[:5]]
    registry.add(variant("nf4", "nf4-mixed", exclude=names))
    try:
        measured = run.session.measure(run.spec, "nf4-mixed", Gate("perplexity_delta"))
    finally:
        registry.forget(["nf4-mixed"])
    assert measured.quantities["ln_ratio"].value == pytest.approx(nats, abs=1e-5)


def test_a_budget_between_is_kept_by_some(run):
    how = Rounding("int2", "tensor")
    found = run.scan(how)
    limit = found.whole.nats.value / 2
    assert limit > 0
    kept = run.sensitivity.keep(run.spec, how, found, Budget(max_nats=limit))
    assert kept.holds
    assert 0 < len(kept.rows) < 14
    assert kept.nats.value <= limit
    assert {each.nats > limit for each in kept.tried if each.kept == len(kept.rows) - 1} == {True}
    assert not run.session.model(run.spec, "fp32").loaded.changed
    text = report.render_kept(found, kept)
    assert all(row.layer.name in text for row in kept.rows)


def test_nan_in_a_layer_is_no_answer(run):
    import torch

    quantized = run.model("nf4")
    bias = torch.full((quantized.model.layers[0].mlp.up_proj.out_features,), torch.nan)
    quantized.model.layers[0].mlp.up_proj.bias = torch.nn.Parameter(bias, requires_grad=False)
    found = run.scan("nf4", only=["up_proj"])
    assert found.rows[0].layer.name == "model.layers.0.mlp.up_proj"
    with pytest.raises(NotFinite, match=r"model\.layers\.0\.mlp\.up_proj"):
        metric.answer(found)
    assert "NaN" in report.render(found, 5)
    json.dumps(found.record(), allow_nan=False)


def test_a_format_that_was_not_applied_proves_nothing(run):
    quantized, reference = run.model("int8-weight-only"), run.model("fp32")
    for name, module in reference.named_modules():
        if name.endswith("_proj"):
            quantized.get_submodule(name).weight = module.weight
    handle = run.session.model(run.spec, "int8-weight-only")
    handle.loaded.proof = dataclasses.replace(handle.proof)
    for name, module in quantized.named_modules():
        if name.endswith("_proj"):
            module.__class__ = type("Other", (type(module),), {})
    with pytest.raises(ProofFailed, match="none of 14 layers"):
        run.scan("int8-weight-only", windows=1)


@pytest.mark.parametrize(
    "asked, how, said",
    [
        ("fp32", {}, "reference itself"),
        ("nf4+kv-int4", {}, "KV cache is no layer; scan nf4"),
        ("nf4", {"of": "model"}, 'of="layer" or of="block"'),
        ("nf4", {"windows": 0}, "one window"),
        ("nf4", {"only": ["q_prj"]}, "matches q_prj; there are model.layers.0"),
        (Rounding("int9", "tensor"), {}, "int9"),
        (Rounding(8, "tensor"), {}, "numeric=8"),
        (None, {}, "None cannot be scanned: give the name of a format or a Rounding"),
        ("nf4", {"windows": "3"}, "windows='3'"),
        ("nf4", {"windows": 2.0}, "windows=2.0"),
        ("nf4", {"windows": True}, "windows=True"),
        ("nf4", {"only": "q_proj"}, "only='q_proj'"),
    ],
)
def test_questions_without_sense(run, asked, how, said):
    with pytest.raises(UsageError, match=said):
        run.scan(asked, **how)


def kept(*rows: Any) -> Kept:
    nats, kl = rows[0].nats, rows[0].kl
    tried = (Tried("kl", len(rows), 0.05),)
    return Kept(Budget(max_nats=0.1), 0.1, tuple(rows), True, "kl", 3, nats, kl, 1.0, 10, tried)


def test_patterns_mean_what_is_kept(run):
    found = run.scan("nf4", windows=1)
    downs = [row for row in found.rows if row.layer.name.endswith("down_proj")]
    other = next(row for row in found.rows if row.layer.name.endswith("q_proj"))
    chosen = kept(*downs, other)
    assert report.patterns(found, chosen) == ["down_proj", other.layer.name]
    text = report.render_kept(found, chosen)
    assert f'variant("nf4", "nf4-mixed", exclude=["down_proj", "{other.layer.name}"])' in text
    assert "llm_int8_skip_modules" in text


def test_patterns_of_some_layers_name_each_of_them(run):
    """Nothing is left wide that was not: the same modules as were measured, and no more."""
    found = run.scan("nf4", windows=1, only=["*.1.*down_proj", "*.1.*up_proj"])
    assert not found.complete
    assert found.record()["complete"] is False
    assert sorted(report.patterns(found, kept(*found.rows))) == sorted(row.layer.name for row in found.rows)
    by_block = run.scan("nf4", windows=1, of="block", only=["down_proj"])
    names = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
    assert sorted(report.patterns(by_block, kept(*by_block.rows))) == names


def test_patterns_of_whole_blocks(run):
    found = run.scan("nf4", windows=1, of="block")
    assert found.complete
    assert "complete" not in found.record()
    worst = found.rows[0]
    assert report.patterns(found, kept(worst)) == [f"{worst.layer.name}.*"]
    fused = dataclasses.replace(found, left_out=(f"{worst.layer.name}.mlp.experts.down_proj",))
    assert report.patterns(fused, kept(worst)) == list(worst.layer.modules)


def test_patterns_that_leave_nothing_out_are_complete(run):
    assert run.scan("nf4", windows=1, only=["*"]).complete


def test_a_variant_is_mixed_as_another_of_the_same_format(run):
    layer = "model.layers.0.mlp.up_proj"
    registry.add(variant("nf4", "nf4-double", exclude=["v_proj"], bnb_4bit_use_double_quant=True))
    try:
        found = run.scan("nf4-double", windows=1)
        row = next(row for row in found.rows if row.layer.name == layer)
        text = report.render_kept(found, kept(row))
    finally:
        registry.forget(["nf4-double"])
    assert not any(row.layer.name.endswith("v_proj") for row in found.rows)
    line = next(line.strip() for line in text.splitlines() if "variant(" in line and "import" not in line)
    made = eval(line.removeprefix("return [").removesuffix("]"), {"variant": variant})
    assert (made.variant_of, made.exclude) == ("nf4", ("v_proj", layer))
    assert made.parameters["bnb_4bit_use_double_quant"] is True


def test_a_long_list_is_python_too(run):
    found = run.scan("nf4", windows=1)
    rows = [row for row in found.rows if "layers.1" in row.layer.name]
    text = report.render_kept(found, kept(*rows))
    code = text[text.index("from pytest_quant") : text.index("the library:")]
    made: dict[str, Any] = {}
    exec(code, made)
    (format,) = made["pytest_quant_formats"]()
    assert format.exclude == tuple(row.layer.name for row in rows)


def test_the_command_to_make_a_checkpoint_names_the_model(run):
    found = dataclasses.replace(
        run.scan("nf4", windows=1), format="gptq", source=ModelSource("owner/a model", "v1", trust_remote_code=True)
    )
    text = report.render_kept(found, kept(found.rows[0]))
    command = text[text.index("pytest-quant quantize") :].replace("\\\n", " ")
    assert shlex.split(command) == [
        *("pytest-quant", "quantize", "owner/a model", "--format", "gptq", "--revision", "v1", "--trust-remote-code"),
        *("--exclude", found.rows[0].layer.name),
    ]


def test_the_library_is_told_of_the_real_head(run):
    found = run.scan("nf4", windows=1)
    assert found.head == "lm_head"
    text = report.render_kept(dataclasses.replace(found, head="embed_out"), kept(found.rows[0]))
    assert 'llm_int8_skip_modules=["embed_out", ' in text


def test_groups_that_do_not_fit_are_said_as_they_are(run):
    found = run.scan(Rounding("int4", "group", 48), windows=1)
    assert found.format == "int4-group-48"
    assert "in int4-group-48 (32 where 48 does not fit), against" in report.render(found, 3)
    assert found.record()["smaller_groups"] == [32]
    fits = run.scan(Rounding("int4", "group", 32), windows=1)
    assert "smaller_groups" not in fits.record()
    assert "in int4-group-32, against" in report.render(fits, 3)


def test_to_round_one_use_of_a_tied_table_saves_nothing(byte_tokenizer, tmp_path):
    model = save_llama(tmp_path / "tied", byte_tokenizer, tie_word_embeddings=True)
    found = Run(model, tmp_path).scan(Rounding("int4", "tensor"), windows=1)
    saved = {row.layer.kind: row.layer.bytes_saved for row in found.rows}
    assert saved["embedding"] is saved["head"] is None
    assert saved["mlp"] > 0


def test_a_weight_of_nan_is_named(run):
    import torch

    with torch.inference_mode():
        run.model("fp32").model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    # the whole is rounded first; a NaN there is found before the reference itself is asked
    with pytest.raises(NotMeasured, match=r"model\.layers\.1\.mlp\.up_proj: cannot round"):
        run.scan(Rounding("int4", "tensor"), windows=1)


def test_tables_that_stay_wide_are_no_layers_of_a_format_in_another_type(run):
    """BF16 beside FP16: its tables are other numbers, but no narrower."""
    spec = dataclasses.replace(run.spec, reference="fp16")
    narrow = run.sensitivity.scan(spec, "bf16", windows=1)
    assert {row.layer.kind for row in narrow.rows} == {"attention", "mlp"}


def test_what_a_variant_leaves_wide_is_no_layer_of_it(tiny_llama, run):
    """Also where it is in another type than the reference's."""
    registry.add(variant("bf16", "bf16-mixed", exclude=["v_proj"]))
    try:
        found = run.scan("bf16-mixed", windows=1)
    finally:
        registry.forget(["bf16-mixed"])
    assert len(found.rows) == 12
