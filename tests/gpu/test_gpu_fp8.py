"""FP8 on a CUDA device: fine-grained FP8 in its blocks, and compressed-tensors' checkpoints, which run dequantized."""

from __future__ import annotations

import numpy as np
import pytest
from small_models import save_llama

pytestmark = pytest.mark.gpu
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)

from pytest_quant.engines import loading  # noqa: E402
from pytest_quant.engines.source import ModelSource  # noqa: E402
from pytest_quant.errors import Unsupported  # noqa: E402
from pytest_quant.formats import registry  # noqa: E402
from pytest_quant.formats.backend import Asked, missing_packages  # noqa: E402
from pytest_quant.formats.proof import prove  # noqa: E402
from pytest_quant.formats.storage import footprint  # noqa: E402
from pytest_quant.hardware import detect  # noqa: E402

FINEGRAINED = registry.get("fp8@finegrained-fp8")


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_tokenizer):
    """A tiny Llama whose sizes blocks of 128 divide."""
    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}
    return save_llama(tmp_path_factory.mktemp("fp8") / "base", byte_tokenizer, **sizes)


@pytest.fixture
def device():
    """This device, if fine-grained FP8 runs on it; skipped where it does not, or where its packages are missing."""
    found = detect()
    backend = registry.backend(FINEGRAINED)
    if reason := missing_packages(FINEGRAINED, backend) or backend.trouble(FINEGRAINED, found):
        pytest.skip(str(reason))
    return found


def test_on_older_devices_it_is_refused():
    found = detect()
    trouble = registry.backend(FINEGRAINED).trouble(FINEGRAINED, found)
    assert (trouble is None) == (found.kind == "cuda" and found.compute_capability >= (8, 9))


def test_what_transformers_quantizes_while_loading_proves_itself(base):
    """Before the first forward, so that it needs no kernel from the hub."""
    from transformers import AutoConfig, AutoModelForCausalLM, FineGrainedFP8Config

    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("asked: fp8@finegrained-fp8; found: an older device; needed: compute capability 8.9")
    model = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.bfloat16, device_map={"": "cuda:0"}, quantization_config=FineGrainedFP8Config()
    )
    eligible = loading.eligible_weights(AutoConfig.from_pretrained(base))
    proof = prove(model, FINEGRAINED, registry.backend(FINEGRAINED), eligible)
    assert proof.quantized_weight_share == 1.0
    assert proof.parameters["block_size"] == 128
    assert proof.bits_per_weight == pytest.approx(FINEGRAINED.bits_per_weight)


def test_finegrained_fp8_runs_and_is_near_bf16(base, device):
    tokens = np.arange(64)[None]
    backend = registry.backend(FINEGRAINED)
    try:
        model = loading.load(ModelSource(str(base)), FINEGRAINED, backend, "bfloat16", device)
    except Unsupported as reason:
        pytest.skip(str(reason))
    bf16 = registry.get("bf16")
    reference = loading.load(ModelSource(str(base)), bf16, registry.backend(bf16), "bfloat16", device)
    ours, theirs = model.token_nll(tokens).mean(), reference.token_nll(tokens).mean()
    assert ours != theirs
    assert ours == pytest.approx(theirs, abs=0.2)


@pytest.mark.real
def test_sizes_that_blocks_do_not_divide_are_refused(smollm2, device):
    """The real model's layers are 576 wide; transformers would leave them in 16 bits without a word."""
    from transformers import AutoModelForCausalLM

    def from_pretrained(name, **arguments):
        return AutoModelForCausalLM.from_pretrained(name, device_map={"": "cuda:0"}, **arguments)

    with pytest.raises(Unsupported, match=r"do not divide|kernel cannot be loaded"):
        registry.backend(FINEGRAINED).open(Asked(str(smollm2), FINEGRAINED, "bfloat16", "cuda:0"), from_pretrained)


def test_a_checkpoint_of_compressed_tensors_runs_dequantized(base, byte_tokenizer, tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, apply_quantization_config
    from compressed_tensors.quantization.utils import calculate_qparams
    from transformers import AutoModelForCausalLM

    wide = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    args = {"num_bits": 8, "type": "float", "strategy": "channel"}
    inputs = {**args, "strategy": "token", "dynamic": True}
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs)
    config = QuantizationConfig(config_groups={"group_0": scheme}, ignore=["lm_head"], quantization_status="frozen")
    apply_quantization_config(wide, config, show_progress=False)
    for module in wide.modules():
        if hasattr(module, "quantization_scheme"):
            weight = module.weight.detach()
            low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
            module.weight_scale.data = calculate_qparams(low, high, module.quantization_scheme.weights)[0]
    compressor = ModelCompressor.from_pretrained_model(wide)
    compressor.compress_model(wide)
    wide.save_pretrained(tmp_path)
    compressor.update_config(str(tmp_path))
    byte_tokenizer.save_pretrained(tmp_path)

    format = registry.get("fp8@compressed-tensors")
    backend = registry.backend(format)
    model = loading.load(ModelSource(str(base)), format, backend, "bfloat16", detect(), str(tmp_path))
    assert model.proof.quantized_weight_share == 1.0
    assert footprint(model.model).total > 1.3 * model.proof.weight_bytes
    assert np.isfinite(model.token_nll(np.arange(64)[None])).all()
