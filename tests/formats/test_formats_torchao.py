"""torchao's formats are what its tensors hold, never what a config says."""

from __future__ import annotations

import pytest
import torch
from small_models import save_llama

from pytest_quant.engines import loading as engine
from pytest_quant.engines.source import ModelSource
from pytest_quant.errors import ProofFailed, Unsupported
from pytest_quant.formats import Asked, registry, variant
from pytest_quant.formats.backends.skeleton import linear_sizes, stay_wide
from pytest_quant.formats.backends.torchao import BACKEND
from pytest_quant.formats.products import products
from pytest_quant.formats.proof import prove
from pytest_quant.hardware import detect

SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
WEIGHTS = sum(out * into for out, into in SHAPES)
ROWS = sum(out for out, _ in SHAPES)


def padded(group: int) -> int:
    """Scales of the block formats, a byte each: in tiles of 128 rows by 4 groups."""
    return sum(-(-out // 128) * 128 * -(-(into // group) // 4) * 4 for out, into in SHAPES)


BITS = {
    "int8-weight-only": 8 + 8 * 5 * ROWS / WEIGHTS,  # a row: an FP32 scale and an int8 zero point
    "w8a8": 8 + 8 * 5 * ROWS / WEIGHTS,
    "int4-unpacked": 8 + 8 * 5 / 64,
    "fp8-weight-only": 8 + 8 * 4 * ROWS / WEIGHTS,
    "mxfp4": 4 + 8 * padded(32) / WEIGHTS,
    "nvfp4-weight-only": 4 + 8 * (padded(16) + 4 * len(SHAPES)) / WEIGHTS,
}
"""Bits of a weight of ``tiny_llama``, computing in FP32 where the library does, from its shapes."""
RUNS = list(BITS)


def load(folder, format, compute_dtype="float32"):
    return engine.load(ModelSource(str(folder)), format, BACKEND, compute_dtype, detect())


def prove_as(model, name):
    return prove(model.model, registry.get(name), BACKEND, engine.eligible_weights(model.model.config))


@pytest.fixture(scope="module")
def loaded(tiny_llama):
    """Models that no test changes, loaded once."""
    held = {}

    def get(name):
        if name not in held:
            held[name] = load(tiny_llama, registry.get(name))
        return held[name]

    return get


@pytest.mark.parametrize("name", RUNS)
def test_each_format_proves_itself_with_its_true_bits(loaded, name):
    model = loaded(name)
    proof = model.proof
    assert proof.quantized_weight_share == 1.0
    assert proof.kernels == {"Linear": 14}
    assert proof.bits_per_weight == pytest.approx(BITS[name])
    assert model.model.get_memory_footprint() > proof.weight_bytes, "transformers reports the unquantized size"
    rest = sum(p.numel() * p.element_size() for n, p in model.model.named_parameters() if "_proj" not in n)
    buffers = sum(b.numel() * b.element_size() for b in model.model.buffers())
    assert proof.weight_bytes == pytest.approx(2 * WEIGHTS * BITS[name] / 8 + rest + buffers, abs=16)
    assert not model.changed


@pytest.mark.parametrize("name", RUNS)
def test_head_and_embeddings_stay_wide(loaded, name):
    model = loaded(name).model
    assert type(model.lm_head.weight) is torch.nn.Parameter
    assert type(model.model.embed_tokens.weight) is torch.nn.Parameter
    assert BACKEND.stored(model.lm_head) is None


@pytest.mark.parametrize("claimed", RUNS)
@pytest.mark.parametrize("name", RUNS)
def test_one_format_never_passes_for_another(loaded, name, claimed):
    if name == claimed:
        assert prove_as(loaded(name), claimed).format == claimed
        return
    with pytest.raises(ProofFailed) as failure:
        prove_as(loaded(name), claimed)
    if {name, claimed} == {"int8-weight-only", "w8a8"}:
        assert "with other parameters: activations is " in str(failure.value)


@pytest.mark.parametrize("claimed", ["int4", "fp8", "nvfp4"])
@pytest.mark.parametrize("name", RUNS)
def test_no_format_passes_for_one_that_runs_on_gpus_only(loaded, name, claimed):
    with pytest.raises(ProofFailed):
        prove_as(loaded(name), claimed)


@pytest.mark.parametrize("claimed", ["int8-weight-only@quanto", "int4@quanto", "int8", "nf4"])
def test_it_does_not_pass_for_another_librarys_format(loaded, claimed):
    format = registry.get(claimed)
    model = loaded("int8-weight-only").model
    with pytest.raises(ProofFailed, match=r"0\.0% of the eligible weights"):
        prove(model, format, registry.backend(format), engine.eligible_weights(model.config))


def test_what_the_tensors_tell(loaded):
    told = {name: loaded(name).proof.parameters for name in RUNS}
    assert told["w8a8"]["activations"] == "int8 per token"
    assert [name for name in RUNS if told[name]["activations"] is None] == [
        "int8-weight-only",
        "int4-unpacked",
        "fp8-weight-only",
        "nvfp4-weight-only",
    ]
    assert told["int8-weight-only"]["symmetric"] is True
    assert told["int4-unpacked"]["group_size"] == 64
    assert told["fp8-weight-only"]["dtype"] == "float8_e4m3fn"
    assert told["mxfp4"]["kernel"] == "emulated"
    assert (told["mxfp4"]["scale"], told["nvfp4-weight-only"]["scale"]) == ("float8_e8m0fnu", "float8_e4m3fn")


def test_only_w8a8_multiplies_in_int8_on_a_cpu(loaded):
    for name in RUNS:
        product = loaded(name).proof.parameters["product"]
        assert product.startswith("_int_mm(") == (name == "w8a8"), product
        assert product.startswith("mm(") == (name != "w8a8"), product


def test_a_silent_fallback_of_the_int8_product_is_told(tiny_llama, monkeypatch):
    """As on a GPU: torchao multiplies few rows in another type when its int8 kernel refuses them."""
    from torchao.kernel import intmm
    from torchao.quantization.quantize_.workflows.int8 import int8_tensor

    multiply = intmm.int_scaled_matmul

    def refusing(a, b, scales):
        if a.shape[0] > 16:
            return multiply(a, b, scales)
        return (a.float() @ b.float()) * scales

    monkeypatch.setattr(int8_tensor, "int_scaled_matmul", refusing)
    monkeypatch.setattr(BACKEND, "_products", {})
    told = load(tiny_llama, registry.get("w8a8")).proof.parameters
    assert told["product"].startswith("_int_mm(")
    assert told["product_of_one_row"] == "mm(float32, float32)"


def test_products_sees_through_torchs_higher_order_operators():
    """On GPUs torchao multiplies through ``out_dtype``, which falls back where a watcher does not know it."""
    from torch._higher_order_ops.out_dtype import out_dtype

    class Doubling(torch.Tensor):
        @classmethod
        def __torch_function__(cls, function, types, args=(), kwargs=None):
            if function is torch.nn.functional.linear:
                plain = torch.ones(args[0].shape, dtype=torch.int8)
                return out_dtype(torch.ops.aten.mm.default, torch.int32, plain, torch.ones(64, 8, dtype=torch.int8))
            return super().__torch_function__(function, types, args, kwargs or {})

    assert products(torch.ones(8, 64).as_subclass(Doubling), 4) == "out_dtype(int8, int8)"


@pytest.mark.parametrize("overflows", [False, True])
def test_a_cpu_whose_int8_products_overflow_gets_a_smaller_range_and_the_proof_tells(
    tiny_llama, monkeypatch, overflows
):
    monkeypatch.setattr("torchao.utils._cpu_is_vnni_supported", lambda: not overflows)
    monkeypatch.setattr("pytest_quant.formats.backends.torchao.machine", lambda: "x86_64")
    model = load(tiny_llama, registry.get("w8a8"))
    largest = int(model.model.model.layers[0].mlp.up_proj.weight.qdata.abs().max())
    assert (largest <= 64) == overflows
    assert model.proof.parameters.get("reduced_range", False) == overflows


@pytest.mark.parametrize(
    "name, computes", [("int8-weight-only", "float16"), ("mxfp4", "bfloat16"), ("nvfp4-weight-only", "bfloat16")]
)
def test_it_computes_in_bfloat16_where_the_library_knows_no_float16(tiny_llama, name, computes):
    model = load(tiny_llama, registry.get(name), "float16")
    assert model.proof.parameters["compute_dtype"] == computes
    assert str(model.model.lm_head.weight.dtype) == f"torch.{computes}"


def test_nothing_global_is_changed(tiny_llama):
    import torch._inductor.config as inductor

    before = (torch.get_float32_matmul_precision(), inductor.coordinate_descent_tuning, torch.initial_seed())
    state = torch.get_rng_state()
    load(tiny_llama, registry.get("w8a8"))
    assert torch.equal(torch.get_rng_state(), state)
    now = (torch.get_float32_matmul_precision(), inductor.coordinate_descent_tuning, torch.initial_seed())
    assert now == before


@pytest.mark.parametrize("name", RUNS)
def test_excluded_modules_stay_wide_and_so_does_the_head(tiny_llama, name):
    format = variant(name, name="mine", exclude=["*.0.mlp.down_proj"])
    model = load(tiny_llama, format)
    layers = model.model.model.layers
    assert type(layers[0].mlp.down_proj.weight) is torch.nn.Parameter
    assert BACKEND.stored(layers[1].mlp.down_proj) is not None
    assert type(model.model.lm_head.weight) is torch.nn.Parameter, "transformers' default is gone once a list is given"
    assert sum(model.proof.kernels.values()) == 13


def test_a_layer_left_wide_fails(tiny_llama):
    model = load(tiny_llama, registry.get("int8-weight-only"))
    model.model.model.layers[0].mlp.up_proj = torch.nn.Linear(64, 128, bias=False)
    with pytest.raises(ProofFailed, match=r"not in int8-weight-only: 88\.9% of .* 1 of 14 weights left out: model\."):
        prove_as(model, "int8-weight-only")


def test_a_layer_without_activation_quantization_fails(tiny_llama):
    model = load(tiny_llama, registry.get("w8a8"))
    model.model.model.layers[1].mlp.up_proj.weight.act_quant_kwargs = None
    with pytest.raises(ProofFailed, match=r"activations is None in model\.layers\.1\.mlp\.up_proj\.weight, asked for"):
        prove_as(model, "w8a8")


def test_another_group_size_than_asked_fails(tiny_llama):
    narrow = variant("int4-unpacked", name="mine", group_size=32)
    model = load(tiny_llama, narrow)
    assert model.proof.parameters["group_size"] == 32
    assert model.proof.bits_per_weight == pytest.approx(8 + 8 * 5 / 32)
    with pytest.raises(ProofFailed, match=r"group_size is 32 in model\.layers\..*, asked for 64"):
        prove_as(model, "int4-unpacked")


def test_an_asymmetric_variant_is_not_symmetric(tiny_llama):
    model = load(tiny_llama, variant("int4-unpacked", name="mine", symmetric=False))
    assert model.proof.parameters["symmetric"] is False
    with pytest.raises(ProofFailed, match="symmetric is False"):
        prove_as(model, "int4-unpacked")


def test_eight_bit_values_under_a_four_bit_label_fail(tiny_llama):
    model = load(tiny_llama, registry.get("int4-unpacked"))
    for layer in model.model.model.layers:
        layer.mlp.up_proj.weight.qdata.fill_(100)
    with pytest.raises(ProofFailed, match=r"not in int4-unpacked: 77\.8% of"):
        prove_as(model, "int4-unpacked")


def test_fewer_scales_than_the_block_size_takes_fail(tiny_llama):
    model = load(tiny_llama, registry.get("nvfp4-weight-only"))
    weight = model.model.model.layers[0].mlp.up_proj.weight
    weight.scale = weight.scale[:4].clone()
    with pytest.raises(ProofFailed, match=r"group_size is '\d+ scales' in model\.layers\.0\.mlp\.up_proj\.weight"):
        prove_as(model, "nvfp4-weight-only")


@pytest.mark.parametrize("part", ["qdata", "scale"])
def test_a_change_inside_a_quantized_weight_is_noticed(tiny_llama, part):
    model = load(tiny_llama, registry.get("int8-weight-only"))
    assert not model.changed
    getattr(model.model.model.layers[1].mlp.up_proj.weight, part).mul_(2)
    assert model.changed


@pytest.mark.parametrize("name", RUNS)
def test_conv1d_layers_left_wide_fail_with_the_figures(tiny_gpt2, name):
    """torchao replaces ``nn.Linear`` only, and says nothing of GPT-2's layers."""
    width = "16" if name == "mxfp4" else "32"
    with pytest.raises(ProofFailed) as failure:
        load(tiny_gpt2, registry.get(name))
    said = str(failure.value)
    assert f"not in {name}: 0.0% of the eligible weights are (at least 95% must be), {width}.00 bits a weight" in said
    assert "kernels Conv1D x8; 8 of 8 weights left out: transformer.h.0.attn.c_attn.weight" in said


@pytest.mark.skipif(torch.cuda.is_available() or torch.xpu.is_available(), reason="runs on this device")
@pytest.mark.parametrize(
    "name, found, needed",
    [
        ("int4", "packed int4 layouts for GPUs only", "int4-unpacked needs neither"),
        ("fp8", "Float8 dynamic quantization requires CUDA compute capability", "fp8-weight-only needs none"),
        ("nvfp4", "NVFP4 DYNAMIC mode is only supported on sm100", "nvfp4-weight-only needs none"),
    ],
)
def test_what_a_cpu_cannot_run_is_skipped_in_the_librarys_words(tiny_llama, name, found, needed):
    with pytest.raises(Unsupported) as skip:
        load(tiny_llama, registry.get(name))
    assert found in skip.value.found
    assert needed in skip.value.needed
    assert skip.value.asked.startswith(f"{name} (torchao ")


@pytest.fixture(scope="module")
def odd_llama(tmp_path_factory, byte_tokenizer):
    """Layers of 72 and 144 inputs, which neither 64 nor 32 nor 16 divides all of."""
    sizes = {"hidden_size": 72, "intermediate_size": 144, "num_hidden_layers": 1, "head_dim": 32}
    return save_llama(tmp_path_factory.mktemp("models") / "odd-llama", byte_tokenizer, **sizes)


@pytest.mark.parametrize("name, multiple", [("int4-unpacked", 64), ("mxfp4", 32), ("nvfp4-weight-only", 16)])
def test_layers_whose_size_does_not_fit_are_a_skip_that_names_them(odd_llama, name, multiple):
    with pytest.raises(Unsupported) as skip:
        load(odd_llama, registry.get(name))
    assert skip.value.found == "model.layers.0.self_attn.q_proj has 72 inputs and 64 outputs"
    assert f"inputs in multiples of {multiple}" in skip.value.needed


def test_a_group_size_that_fits_is_proposed(tiny_llama):
    with pytest.raises(Unsupported) as skip:
        load(tiny_llama, variant("int4-unpacked", name="mine", group_size=128))
    assert "variant('int4-unpacked', name=..., group_size=64)" in skip.value.needed


def asked(folder, *excluded, place="cpu", name="int4-unpacked"):
    return Asked(str(folder), registry.get(name), "float32", place, excluded)


def test_padding_beyond_all_proportion_is_a_skip(tiny_llama, monkeypatch):
    """Tiles of 1024 inputs would make 16 bits of 4 in a layer of 256."""
    from pytest_quant.formats.backends import torchao

    monkeypatch.setattr(torchao, "linear_sizes", lambda asked: {"a": (64, 256), "b": (64, 1024)})
    with pytest.raises(Unsupported, match=r"padded to multiples of 1024: 1\.60 times the weights"):
        torchao._check_sizes(asked(tiny_llama, place="cuda:0", name="int4"), "int4")
    monkeypatch.setattr(torchao, "linear_sizes", lambda asked: {"a": (64, 896), "b": (64, 4864)})
    torchao._check_sizes(asked(tiny_llama, place="cuda:0", name="int4"), "int4")


def test_int4_tiles_are_read_by_their_shapes():
    """Made by hand: the layout exists on GPUs only."""
    from torchao.quantization import Int4TilePackedTo4dTensor

    def tiles(group, zero):
        scales = torch.full((1024 // group, 64, 2), 0.5, dtype=torch.bfloat16)
        scales[..., 1] = zero
        packed = torch.zeros(8, 8, 32, 4, dtype=torch.int32)
        layer = torch.nn.Linear(1024, 64, bias=False, device="meta")
        weight = Int4TilePackedTo4dTensor(packed, scales, [1, group], torch.Size((64, 1024)))
        layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        return layer

    from pytest_quant.formats.backends.torchao_tensors import read

    told = read(tiles(128, 0.25).weight)
    assert (told.num_bits, told.type) == (4, "int")
    asked_for = registry.get("int4").parameters
    assert {key: told.parameters[key] for key in asked_for} == dict(asked_for)
    assert read(tiles(64, 0.25).weight).parameters["group_size"] == 64
    assert read(tiles(128, 0.0).weight).parameters["symmetric"] is True


def test_a_list_of_wide_modules_names_the_head_of_the_architecture(tiny_llama, tiny_gpt2):
    assert stay_wide(asked(tiny_llama)) is None
    assert stay_wide(asked(tiny_llama, "model.layers.0.mlp.up_proj")) == ["lm_head", "model.layers.0.mlp.up_proj"]
    assert stay_wide(asked(tiny_gpt2, "transformer.h.0.mlp.c_fc")) == ["lm_head", "transformer.h.0.mlp.c_fc"]
    assert stay_wide(asked("no-such-folder", "a.b")) == ["lm_head", "a.b"]


def test_sizes_are_those_of_the_layers_that_are_to_be_quantized(tiny_llama):
    sizes = linear_sizes(asked(tiny_llama, "model.layers.0.mlp.up_proj"))
    assert sizes["model.layers.0.mlp.down_proj"] == (64, 128)
    assert len(sizes) == 13
    assert "lm_head" not in sizes
    assert linear_sizes(asked("no-such-folder")) == {}


def test_importing_the_backend_imports_no_torch():
    import subprocess
    import sys

    code = (
        "import sys; import pytest_quant.formats.backends.torchao, pytest_quant.formats.backends.quanto; "
        "sys.exit(bool({'torch', 'torchao', 'optimum', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
