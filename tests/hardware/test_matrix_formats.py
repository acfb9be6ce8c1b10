"""Every built-in format on every class of hardware, against a table written down here."""

from __future__ import annotations

import matrix_devices
import pytest

from pytest_quant.formats import registry
from pytest_quant.hardware.matrix import load

# N native, D dequantized, - cannot run, x would run but gains nothing (require_native=False runs it),
# ? nobody has verified it, so it does not run.
DEVICES = (
    "V100 T4 A100 A10G L4 H100 B200 B300 5090 MI250 MI300X MI355X 7900XTX RDNA4 A770 PVC M2 Haswell IceLake SPR "
    "Graviton2"
)
NAMES = dict(
    zip(
        DEVICES.split(),
        (
            *("V100", "T4", "A100", "A10G", "L4", "H100", "B200", "B300", "RTX 5090"),
            *("MI250", "MI300X", "MI355X", "RX 7900 XTX", "RX 9070 XT"),
            *("Arc A770", "Max 1550", "Apple M2", "Haswell", "Ice Lake", "Sapphire Rapids", "Graviton2"),
        ),
        strict=True,
    )
)
TABLE = {
    "fp32":                     "N N N N N N N N N   N N N N N   N N   N   N N N N",
    "bf16":                     "D D N N N N N N N   N N N N N   N N   D   D D N D",
    "fp16":                     "N N N N N N N N N   N N N N N   N N   N   D D D D",
    "int8":                     "- N N N N N N N N   N N N N N   N N   x   D N N D",
    "nf4":                      "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "fp4":                      "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "int8-weight-only":         "D D D D D D D D D   D D D D D   D D   ?   D D D D",
    "w8a8":                     "x N N N N N N N N   N N N N N   N N   ?   D N N D",
    "int4":                     "- - D D D D D D D   ? ? ? ? ?   D D   -   - - - -",
    "int4-unpacked":            "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "fp8":                      "- - - - N N N N N   - N N - -   x x   -   - - - -",
    "fp8-weight-only":          "D D D D D D D D D   D D D D D   D D   -   D D D D",
    "mxfp4":                    "x x x x x x N N ?   x x N x x   - -   -   x x x x",
    "nvfp4":                    "- - - - - - N N N   - - - - -   - -   -   - - - -",
    "nvfp4-weight-only":        "D D D D D D D D D   D D D D D   - -   -   D D D D",
    "int8-weight-only@quanto":  "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "int4@quanto":              "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "fp8-weight-only@quanto":   "D D D D D D D D D   D D D D D   D D   -   D D D D",
    "int4@hqq":                 "D D D D D D D D D   ? ? ? ? ?   ? ?   ?   D D D D",
    "gptq":                     "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "awq":                      "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "int4@auto-round":          "D D D D D D D D D   ? ? ? ? ?   D D   -   D D D D",
    "w4a16":                    "D D D D D D D D D   D D D D D   D D   D   D D D D",
    "w8a8@compressed-tensors":  "x D D D D D D D D   D D D D D   D D   x   D D D D",
    "fp8@compressed-tensors":   "x x x x D D D D D   x D D x D   x x   -   x x x x",
    "nvfp4@compressed-tensors": "x x x x x x D D D   x x x x x   x x   -   x x x x",
    "fp8@finegrained-fp8":      "- - - - N N N N N   - ? ? - ?   x x   -   - - - -",
    "gguf":                     "D D D D D D D D D   D D D D D   D D   D   D D D D",
}  # fmt: skip
CELLS = [
    (name, NAMES[device], cell)
    for name, cells in TABLE.items()
    for device, cell in zip(NAMES, cells.split(), strict=True)
]


@pytest.mark.parametrize(("name", "hardware", "cell"), CELLS, ids=[f"{name}-{device}" for name, device, _ in CELLS])
def test_a_format_on_a_device(name: str, hardware: str, cell: str) -> None:
    format, device, matrix = registry.get(name), matrix_devices.device(hardware), load()
    support = matrix.support(format, device)
    assert support.status == {"N": "native", "D": "dequantized"}.get(cell, "unsupported")
    assert support.reason
    assert support.source
    assert support.status == "native" or support.needed
    assert (cell == "?") == ("it is not known that" in support.reason)
    waived = matrix.support(format, device, require_native=False)
    assert waived.runs == (cell in "NDx")
    assert (cell == "x") == ("require_native=False" in support.needed)
    required = matrix.support(format, device, require_native=True)
    assert required.runs == (cell == "N")


def test_the_table_has_every_built_in_format() -> None:
    built_in = {format.name for backend in registry._built_in() for format in backend.formats}
    assert set(TABLE) == built_in


def test_a_weight_only_format_is_native_nowhere() -> None:
    for hardware in NAMES.values():
        device = matrix_devices.device(hardware)
        for name in TABLE:
            format = registry.get(name)
            if format.weight_only:
                assert load().support(format, device).status != "native", (name, hardware)


def test_a_kv_cache_format_does_not_change_what_the_weights_need() -> None:
    device = matrix_devices.device("A100")
    for name in ("nf4", "int4@quanto", "gptq"):
        plain, with_cache = registry.get(name), registry.get(f"{name}+kv-int4")
        assert load().support(with_cache, device).status == load().support(plain, device).status
