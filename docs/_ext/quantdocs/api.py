"""The page of the Python interface: what a test suite or a package with a backend of its own takes from us."""

from __future__ import annotations

from quantdocs import rst

YIELDED = "What fixtures yield"
"""Nobody makes these by hand, so how they are made is not told."""
ONLY = {
    "pytest_quant.model.ModelHandle": (
        *("model", "tokenizer", "format", "device", "support", "proof"),
        *("weight_bytes", "checkpoint", "name", "generate"),
    )
}
"""The members that are told of a class of which others are our own affair."""
SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    YIELDED: (
        "",
        (
            "pytest_quant.model.ModelHandle",
            "pytest_quant.formats.proof.Proof",
            "pytest_quant.fixtures.Measure",
            "pytest_quant.gates.measurement.Measurement",
            "pytest_quant.gates.measurement.Quantity",
            "pytest_quant.fixtures.Scanner",
            "pytest_quant.metrics.sensitivity.Scan",
            *(f"pytest_quant.metrics.sensitivity.{name}" for name in ("Row", "Effect", "Group", "Sampled")),
            *(f"pytest_quant.metrics.keeping.{name}" for name in ("Kept", "Tried", "Budget")),
            "pytest_quant.stats.sequence.Estimate",
            "pytest_quant.benchmarking.Benchmark",
            "pytest_quant.corpora.calibration.CalibrationSet",
            "pytest_quant.engines.source.ModelSource",
            "pytest_quant.hardware.device.Device",
            "pytest_quant.hardware.matrix_rows.Support",
        ),
    ),
    "Formats of your own": (
        "All but the last two are imported from ``pytest_quant.formats``; :doc:`examples </formats>`.\n",
        (
            "pytest_quant.formats.variant",
            "pytest_quant.formats.custom",
            "pytest_quant.formats.Format",
            "pytest_quant.formats.QuantizationArgs",
            "pytest_quant.formats.Asked",
            "pytest_quant.formats.Stored",
            "pytest_quant.formats.Backend",
            "pytest_quant.formats.kv_cache.KVCache",
            "pytest_quant.formats.rounding.Rounding",
        ),
    ),
    "Hooks": ("", ("pytest_quant.hooks.pytest_quant_formats",)),
    "Errors": (
        "",
        tuple(
            f"pytest_quant.errors.{name}"
            for name in (
                "QuantError",
                "UsageError",
                "Unsupported",
                "NotMeasured",
                "ProofFailed",
                "NotFinite",
                "StoreWarning",
            )
        ),
    ),
}
"""Heading, a word before it, and the full names."""
_ERRORS = ("Error", "Unsupported", "NotMeasured", "Failed", "NotFinite", "Warning")


def page() -> str:
    """Directives of autodoc for all of it."""
    parts = [rst.title("Python interface")]
    for heading, (word, names) in SECTIONS.items():
        parts += [rst.title(heading, "-"), word, *map(_directive, names)]
    return rst.page(*parts)


def _directive(name: str) -> str:
    last = name.rpartition(".")[2]
    if last.islower():
        return f".. autofunction:: {name}\n"
    if last.endswith(_ERRORS):
        return f".. autoexception:: {name}\n   :members:\n   :show-inheritance:\n"
    made_by_us = "()" if name in SECTIONS[YIELDED][1] else ""
    return f".. autoclass:: {name}{made_by_us}\n   :members: {', '.join(ONLY.get(name, ()))}".rstrip() + "\n"
