"""The page of the devices: those that can be planned for without being there, and what their units multiply in."""

from __future__ import annotations

from pytest_quant.hardware import matrix, specs
from quantdocs import rst

INTRODUCTION = """
Devices that ``--quant-device``, ``pytest-quant plan`` and ``pytest-quant matrix`` know by name; any other device is
known when it is there. Memory and bandwidth are the vendors' figures. What a device can do follows from its compute
capability or architecture, never from its name; ``pytest-quant matrix --device NAME`` gives the reason and the source
of each answer. *native*: it multiplies in that type. *dequantized*: unpacked to a wider type first. *unsupported*: the
type does not exist there. *unknown*: nobody has verified it. :doc:`Proof and support </proof-and-support>`.
"""


def page() -> str:
    """A table of the figures, and one of the support matrix."""
    devices = [found for name in specs.names() if (found := specs.device(name)) is not None]
    figures = [
        (
            found.name,
            rst.code(found.architecture),
            "" if found.memory_bytes is None else f"{found.memory_bytes / 1e9:.1f}",
            "" if found.bandwidth is None else f"{found.bandwidth / 1e9:,.0f}",
        )
        for found in devices
    ]
    table = matrix.load("corrected")
    one_of_each = {found.architecture: found for found in devices}
    units = [
        (rst.code(name), *(table.units(numeric, found).status for numeric in matrix.NUMERICS))
        for name, found in one_of_each.items()
    ]
    return rst.page(
        rst.title("Devices"),
        INTRODUCTION,
        rst.title("Figures", "-"),
        rst.table(("device", "architecture", "memory, GB", "bandwidth, GB/s"), figures),
        rst.title("Units", "-"),
        rst.table(("architecture", *matrix.NUMERICS), units),
    )
