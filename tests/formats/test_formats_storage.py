"""True bytes: unique storages, whatever hides them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from pytest_quant.formats.storage import footprint


class Wrapped(torch.Tensor):
    """A tensor subclass that claims FP32 and stores one byte for each value, as torchao's and quanto's do."""

    @staticmethod
    def __new__(cls, data, scale):
        return torch.Tensor._make_wrapper_subclass(cls, data.shape, dtype=torch.float32)

    def __init__(self, data, scale):
        self.data_, self.scale_ = data, scale

    def __tensor_flatten__(self):
        return ["data_", "scale_"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise NotImplementedError


def test_a_plain_module_counts_parameters_and_buffers():
    module = torch.nn.Linear(10, 4)
    module.register_buffer("kept", torch.zeros(3))
    module.register_buffer("fleeting", torch.zeros(5), persistent=False)
    assert footprint(module).total == 4 * (40 + 4 + 3 + 5)


def test_a_tied_weight_counts_once():
    embedding, head = torch.nn.Embedding(10, 4), torch.nn.Linear(4, 10, bias=False)
    head.weight = embedding.weight
    assert footprint(torch.nn.Sequential(embedding, head)).total == 4 * 40


def test_a_view_counts_the_whole_storage_that_it_keeps_alive():
    whole = torch.zeros(100)
    assert footprint(whole[:10], whole[50:]).total == 400


def test_a_subclass_counts_what_is_inside():
    tensor = Wrapped(torch.zeros(8, 16, dtype=torch.int8), torch.zeros(8))
    module = torch.nn.Module()
    module.weight = tensor
    assert tensor.numel() * tensor.element_size() == 512
    found = footprint(module)
    assert found.total == 128 + 32
    assert found.by_dtype == {"int8": 128, "float32": 32}


def test_quantizer_state_beside_a_tensor_counts():
    weight = torch.nn.Parameter(torch.zeros(32, dtype=torch.uint8), requires_grad=False)
    nested = SimpleNamespace(absmax=torch.zeros(2))
    weight.quant_state = SimpleNamespace(absmax=torch.zeros(16, dtype=torch.uint8), state2=nested, name="nf4")
    module = torch.nn.Module()
    module.weight = weight
    assert footprint(module).total == 32 + 16 + 8


def test_tensors_in_dicts_and_lists_on_a_module_count():
    module = torch.nn.Module()
    module.meta = {"scale": torch.zeros(4), "shape": (2, 2), "zeros": [torch.zeros(2), torch.zeros(1)]}
    assert footprint(module).total == 4 * 7


def test_modules_may_nest_deeply():
    module = torch.nn.Linear(2, 2, bias=False)
    for _ in range(40):
        module = torch.nn.Sequential(module)
    assert footprint(module).total == 16


def test_meta_tensors_take_nothing():
    assert footprint(torch.zeros(10, device="meta")).total == 0


@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_the_count_stays_the_same_by_dtype(format):
    tensors = [torch.zeros(3, dtype=torch.float16), torch.zeros(5, dtype=torch.int8)]
    assert footprint(tensors).by_dtype == {"float16": 6, "int8": 5}
