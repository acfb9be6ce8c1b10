"""Weights that are rounded and come back: against plain arithmetic, whatever type they are in."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from pytest_quant.errors import NotFinite, Unsupported, UsageError
from pytest_quant.formats import rounding as module
from pytest_quant.formats.rounding import BLOCKS, Rounding, fitting, rounded

pytest.importorskip("compressed_tensors")
pytest.importorskip("bitsandbytes")

NF4 = (-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0)
NF4 += (0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0)
FP4 = (0.0, 0.0052083333, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1.0)


@pytest.fixture
def weight():
    """Rows of very different size, with outliers, (24, 192)."""
    generator = torch.Generator().manual_seed(0)
    made = torch.randn(24, 192, generator=generator) * torch.logspace(-3, 0, 24)[:, None]
    made[3, 17], made[5, 100] = 4.0, -3.0
    return made


def grouped(weight, rounding):
    """The weights that share a scale, one row each."""
    sizes = {"tensor": weight.numel(), "channel": weight.shape[-1], "group": rounding.size}
    return weight.double().reshape(-1, sizes[rounding.strategy])


def by_hand(weight, rounding):
    """Each weight at the nearest of the levels, one by one in double precision; ties are not looked at."""
    answer = []
    for row in grouped(weight, rounding):
        bits, largest = rounding.num_bits, float(row.abs().max())
        if rounding.numeric == "nf4":
            levels = [largest * level for level in NF4]
        elif rounding.numeric == "fp4":
            levels = [largest * sign * level for level in FP4 for sign in (1, -1)]
        elif rounding.numeric == "fp8":
            finite = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
            levels = [float(level) * largest / 448 for level in finite if not level.isnan()]
        elif rounding.symmetric:
            step = 2 * largest / (2**bits - 1)
            levels = [step * whole for whole in range(-(2 ** (bits - 1)), 2 ** (bits - 1))]
        else:
            low, high = min(float(row.min()), 0.0), max(float(row.max()), 0.0)
            step = (high - low) / (2**bits - 1)
            levels = [step * (whole + round(low / step)) for whole in range(2**bits)]
        table = torch.tensor(sorted(levels), dtype=torch.float64)
        answer.append(table[(row[:, None] - table).abs().argmin(1)])
    return torch.stack(answer).reshape(weight.shape)


EVERY = [
    *(Rounding(f"int{bits}", strategy) for bits in (2, 3, 4, 8) for strategy in ("tensor", "channel")),
    *(Rounding("int4", "group", size, symmetric) for size in (32, 64, 96) for symmetric in (True, False)),
    Rounding("int2", "group", 64, False),
    Rounding("int8", "tensor", symmetric=False),
    Rounding("int4", "channel", symmetric=False),
    *(Rounding("fp8", strategy, 64 if strategy == "group" else None) for strategy in ("tensor", "channel", "group")),
    Rounding("nf4", "group"),
    Rounding("nf4", "group", 32),
    Rounding("fp4", "group"),
]


@pytest.mark.parametrize("how", EVERY, ids=lambda how: how.name)
def test_each_weight_comes_back_at_the_nearest_level(weight, how):
    back, wanted = rounded(weight, how).double(), by_hand(weight, how)
    off = (back - wanted).abs() > 1e-5 * wanted.abs().clamp_min(1e-6)
    if how.numeric == "fp4":  # bitsandbytes' bounds between its levels are not all in the middle
        assert off.double().mean() < 0.05
        largest = grouped(weight, how).abs().amax(1, keepdim=True)
        levels = torch.tensor([*FP4, *(-level for level in FP4)], dtype=torch.float64)
        found = (grouped(back, how) / largest)[..., None] - levels
        assert found.abs().amin(-1).max() < 1e-6
        return
    for back_one, wanted_one, one in zip(back[off], wanted[off], weight.double()[off], strict=True):
        ours, theirs = abs(float(back_one - one)), abs(float(wanted_one - one))
        assert ours == pytest.approx(theirs, rel=1e-4), "only where two levels are equally far"
    assert off.double().mean() < 0.01


def test_two_bits_by_hand():
    row = torch.tensor([[-3.0, -1.2, -0.6, 0.0, 0.9, 1.1, 2.0, 3.0]])
    # a step of 2 * 3 / 3, and levels -4, -2, 0, 2
    assert rounded(row, Rounding("int2", "channel")).tolist() == [[-4.0, -2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0]]
    # from -3 to 3 in steps of 2, and a zero point of -0.5 that is rounded to even: levels -4, -2, 0, 2
    assert rounded(row + 3.0, Rounding("int2", "channel", symmetric=False)).tolist() == [[0, 2, 2, 4, 4, 4, 4, 6]]


@pytest.mark.parametrize("how", EVERY, ids=lambda how: how.name)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_types_are_rounded_as_fp32_and_come_back_in_theirs(weight, how, dtype):
    narrow = weight.to(dtype)
    back = rounded(narrow, how)
    assert (back.dtype, back.shape, back.device) == (dtype, weight.shape, weight.device)
    assert torch.equal(back, rounded(narrow.float(), how).to(dtype))
    assert torch.equal(narrow, weight.to(dtype)), "what it was given is as it was"


def test_bf16_weights_are_not_rounded_by_bf16_arithmetic(weight):
    """compressed-tensors computes in the weight's type, where 8 bits of mantissa do not tell 256 levels apart."""
    step = weight.to(torch.bfloat16).float().abs().amax(1, keepdim=True) * 2 / 255
    off = rounded(weight.to(torch.bfloat16).float(), Rounding("int8", "channel")) - weight.to(torch.bfloat16).float()
    assert (off.abs() / step).max() <= 0.5001


@pytest.mark.parametrize("how", EVERY, ids=lambda how: how.name)
def test_zeros_come_back_as_zeros(weight, how):
    weight[7], weight[8, :96] = 0.0, 0.0
    for one in (weight, torch.zeros(4, 192), torch.full((4, 192), 1e-41)):
        back = rounded(one, how)
        assert torch.isfinite(back).all()
        assert (back[one == 0.0] == 0.0).all()
        assert (back[one.abs() < 1e-30] == 0.0).all() or how.numeric in ("nf4", "fp4")


@pytest.mark.parametrize("how", [Rounding("int4", "channel", symmetric=False), Rounding("int4", "channel")])
def test_weights_of_one_sign(how):
    back = rounded(torch.linspace(0.5, 1.0, 64).reshape(1, -1), how)
    assert (back >= 0.4).all()
    assert rounded(torch.full((2, 32), -0.25), how).unique().numel() == 1


@pytest.mark.parametrize("how", [Rounding("int4", "tensor"), Rounding("nf4", "group", 32)])
def test_more_dimensions_are_rounded_row_by_row(weight, how):
    experts = torch.stack([weight, 2.0 * weight])
    if how.strategy == "tensor":
        assert torch.equal(rounded(experts, how).reshape(48, -1), rounded(experts.reshape(48, -1), how))
    else:
        assert torch.equal(rounded(experts, how)[1], 2.0 * rounded(weight, how))


def test_groups_are_of_neighbours_in_a_row(weight):
    how = Rounding("int4", "group", 64)
    changed = weight.clone()
    changed[2, 64:128] *= 10.0
    same = rounded(weight, how) == rounded(changed, how)
    assert same.sum() >= weight.numel() - 64
    assert not same[2, 64:128].all()
    assert same[2, :64].all()
    assert same[2, 128:].all()


def test_finer_scales_are_nearer(weight):
    ways = [Rounding("int4", "tensor"), Rounding("int4", "channel"), Rounding("int4", "group", 64)]
    ways += [replace(ways[2], group_size=32)]
    errors = [float((rounded(weight, how) - weight).square().mean()) for how in ways]
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 5 * errors[1]


def test_a_matrix_that_is_not_contiguous(weight):
    view = weight.T[:160].clone().T
    assert not weight.T.is_contiguous()
    for how in (Rounding("int4", "group", 32), Rounding("nf4", "group", 32)):
        assert torch.equal(rounded(weight[:, :160], how), rounded(view.contiguous(), how))


@pytest.mark.parametrize(
    "how, columns, bits",
    [
        (Rounding("int4", "group", 64), 576, 4.25),
        (Rounding("int4", "group", 64, False), 576, 4 + 20 / 64),
        (Rounding("int8", "channel"), 576, 8 + 16 / 576),
        (Rounding("int8", "channel", symmetric=False), 576, 8 + 24 / 576),
        (Rounding("int2", "tensor"), 576, 2.0),
        (Rounding("fp8", "group", 128), 1536, 8.125),
        (Rounding("nf4", "group"), 1536, 4.25),
        (Rounding("fp4", "group", 32), 64, 4.5),
    ],
)
def test_bits(how, columns, bits):
    assert how.bits(columns) == pytest.approx(bits)


@pytest.mark.parametrize(
    "how, name",
    [
        (Rounding("int4", "group", 64), "int4-group-64"),
        (Rounding("int8", "channel", symmetric=False), "int8-channel-asymmetric"),
        (Rounding("fp8", "tensor"), "fp8-tensor"),
        (Rounding("nf4", "group"), "nf4-group-64"),
    ],
)
def test_names(how, name):
    assert how.name == name


@pytest.mark.parametrize(
    "how, message",
    [
        (Rounding("int9", "tensor"), "numeric='int9': weights are rounded to int2 ... int8, fp8, nf4 or fp4"),
        (Rounding("int1", "tensor"), "numeric='int1'"),
        (Rounding("fp16", "tensor"), "numeric='fp16'"),
        (Rounding("int4", "row"), "strategy='row' is not one of tensor, channel, group"),
        (Rounding("nf4", "channel"), 'nf4 has a scale for each block: strategy="group", not "channel"'),
        (Rounding("fp8", "tensor", symmetric=False), "fp8 has no zero points"),
        (Rounding("nf4", "group", 64, False), "nf4 has no zero points"),
        (Rounding("int4", "channel", 64), 'group_size=64 needs strategy="group", not "channel"'),
        (Rounding("int4", "group"), 'strategy="group" needs a group_size'),
        (Rounding("int4", "group", 0), "group_size=0 is no positive whole number"),
        (Rounding("int4", "group", True), "group_size=True is no positive whole number"),
        (Rounding("nf4", "group", 96), "group_size=96: nf4 has blocks of 32, 64, 128"),
        (Rounding("int4", "group", 128), "groups of 128 do not divide the 192 weights of a row; these do: 16, 24, 32"),
        (Rounding("nf4", "group", 128), "groups of 128 do not divide the 192 weights of a row; these do: 32, 64$"),
    ],
)
def test_what_does_not_fit_is_said(weight, how, message):
    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        rounded(weight, how)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("how", [Rounding("int4", "tensor"), Rounding("nf4", "group")])
def test_weights_that_are_no_numbers(weight, how, bad):
    weight[0, 0] = bad
    with pytest.raises(NotFinite, match=r"a weight of shape \(24, 192\): it has NaN or infinite values"):
        rounded(weight, how)


@pytest.mark.parametrize("wrong", [torch.zeros(8), torch.zeros(8, 8, dtype=torch.int8)])
def test_what_is_no_matrix_of_floats(wrong):
    with pytest.raises(UsageError, match=r"cannot round a weight of shape \(8"):
        rounded(wrong, Rounding("int4", "tensor"))


@pytest.mark.parametrize(
    "how, library", [(Rounding("int4", "tensor"), "compressed-tensors"), (Rounding("nf4", "group"), "bitsandbytes")]
)
def test_a_missing_library(weight, monkeypatch, how, library):
    monkeypatch.setattr(module, "installed", lambda name: None if name == library else "1.0")
    with pytest.raises(Unsupported) as error:
        rounded(weight, how)
    assert error.value.asked == f"weights rounded to {how.name}"
    assert error.value.needed == f"pip install 'pytest-quant[{library}]'"


@pytest.mark.parametrize(
    "columns, wanted, found", [(576, 128, 96), (1536, 128, 128), (64, 128, 64), (24, 64, 24), (8, 4, 4), (100, 64, 50)]
)
def test_fitting_groups(columns, wanted, found):
    assert fitting(columns, wanted) == found
    assert columns % found == 0


def test_no_fitting_groups():
    with pytest.raises(UsageError, match="no group size from 16 to 128 divides rows of 577 weights"):
        fitting(577, 128)


@pytest.mark.parametrize(
    "how, columns, size",
    [
        (Rounding("int4", "group", 128), 576, 96),
        (Rounding("int4", "group", 64), 576, 64),
        (Rounding("nf4", "group", 128), 576, 64),
        (Rounding("nf4", "group"), 96, 32),
        (Rounding("int8", "channel"), 577, None),
    ],
)
def test_a_rounding_is_fitted_to_each_layer(how, columns, size):
    assert how.fitted(columns).size == size
    assert replace(how.fitted(columns), group_size=how.group_size) == how
    rounded(torch.randn(4, columns), how.fitted(columns))


def test_no_block_fits():
    with pytest.raises(UsageError, match=r"no block of nf4 .* divides rows of 100"):
        Rounding("nf4", "group").fitted(100)


def test_the_blocks_are_those_of_bitsandbytes():
    from bitsandbytes.functional import quantize_4bit

    for size in (*BLOCKS, 16, 96):
        if size in BLOCKS:
            assert quantize_4bit(torch.randn(2, 4096), blocksize=size, quant_type="nf4")[1].blocksize == size
        else:
            with pytest.raises(ValueError, match="blocksize"):
                quantize_4bit(torch.randn(2, 4096), blocksize=size, quant_type="nf4")
