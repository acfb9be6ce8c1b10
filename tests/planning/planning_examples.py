"""Shapes, devices and predictions that the tests of planning share. No model is built."""

from __future__ import annotations

from pytest_quant.formats import registry
from pytest_quant.formats.support import support
from pytest_quant.hardware import Device, specs
from pytest_quant.hardware.matrix import load as load_matrix
from pytest_quant.planning.predict import Load, Machine, Prediction, predict
from pytest_quant.roofline.rates import published
from pytest_quant.roofline.shape import KVLayer, ModelShape

_ROW = 8192
LLAMA_70B = ModelShape(
    quantizable=80 * (2 * _ROW * _ROW + 2 * _ROW * 1024 + 3 * _ROW * 28672),
    rest=2 * 32000 * _ROW + 161 * _ROW,
    table=32000 * _ROW,
    head=32000 * _ROW,
    kv=(KVLayer(values=2 * 8 * 128, width=64 * 128),) * 80,
    vocabulary=32000,
    hidden=_ROW,
    layers=80,
    longest=4096,
)
"""Llama 2 70B: 80 layers of 8192, 64 heads and 8 of keys and values, of 128 each."""
LLAMA_70B_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}


def device(name: str) -> Device:
    found = specs.device(name)
    assert found is not None
    return found


def predictions(
    place: str | Device,
    names: str,
    shape: ModelShape = LLAMA_70B,
    load: Load | None = None,
    count: int = 1,
    compute: str = "fp16",
) -> list[Prediction]:
    """Of the formats among ``names`` that run there."""
    where = device(place) if isinstance(place, str) else place
    machine, matrix = Machine(where, published(where), count), load_matrix()
    asked = [(format, support(format, where, matrix)) for format in map(registry.get, names.split())]
    return [
        predict(format, answer, shape, load or Load(), machine, registry.get(compute))
        for format, answer in asked
        if answer.runs
    ]
