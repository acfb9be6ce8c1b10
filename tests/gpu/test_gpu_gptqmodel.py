"""On a CUDA device: GPTQ and AWQ with the kernels that gptqmodel chooses there."""

from __future__ import annotations

import numpy as np
import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.real]
torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("needs a CUDA device", allow_module_level=True)
pytest.importorskip("gptqmodel")


@pytest.mark.parametrize("name, sym", [("gptq", True), ("awq", False)])
def test_made_and_loaded_on_the_device_with_its_own_kernel(smollm2, tmp_path, name, sym):
    from transformers import AutoTokenizer

    from pytest_quant.corpora import texts
    from pytest_quant.engines import loading
    from pytest_quant.engines.source import ModelSource
    from pytest_quant.formats import registry
    from pytest_quant.formats.backends.gptqmodel import BACKEND
    from pytest_quant.hardware import detect

    source, format, device = ModelSource(str(smollm2)), registry.get(name), detect()
    text = "\n".join(texts.python_docs())[:200_000]
    stream = np.asarray(AutoTokenizer.from_pretrained(smollm2)(text)["input_ids"], dtype=np.int64)
    windows = [stream[start : start + 512] for start in range(0, 34 * 512, 512)]
    recipe = BACKEND.make(loading.ask(source, format, "float16", device), windows[:32], tmp_path, lambda text: None)
    assert (recipe["group_size"], recipe["sym"]) == (64, sym)
    made = loading.load(source, format, BACKEND, "float16", device, str(tmp_path))
    assert made.proof.quantized_weight_share == 1.0
    assert made.proof.parameters["group_size"] == 64
    assert made.proof.parameters["sym"] is sym
    assert 4.1 < made.proof.bits_per_weight < 4.6
    assert not any(kernel.startswith(("Torch", "AwqTorch")) for kernel in made.proof.kernels), "a kernel of CUDA's"
    fp16 = loading.load(source, registry.get("fp16"), registry.backend(registry.get("fp16")), "float16", device)
    batch = torch.as_tensor(np.stack(windows[32:])).to("cuda:0")
    with torch.inference_mode():
        found, wanted = (each.model(batch, labels=batch).loss.item() for each in (made, fp16))
    assert wanted - 0.02 < found < wanted + 0.35
