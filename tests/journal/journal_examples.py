"""A measurement that uses every field."""

from __future__ import annotations

import math
from dataclasses import replace

from pytest_quant.gates.measurement import Measurement, Quantity

KEY = "0123456789abcdef" * 2


def measured(**changes) -> Measurement:
    whole = Measurement(
        metric="kl_divergence",
        model="tiny",
        format="int8",
        engine="transformers",
        main="mean",
        quantities={
            "mean": Quantity(0.1 + 0.2, 1e-300, math.inf, "nats", 5e-324),
            "p99": Quantity.exact(1 / 3, "nats"),
        },
        identity={"metric": {"name": "kl_divergence", "sizes": (1, 2)}, "protocol": {"window": 64}},
        reference="fp32",
        confidence=0.99,
        alpha=0.005,
        windows=(3, 8),
        figures={"format_value": 5.1, "standard_error": math.inf},
        scores=(0.1, -0.0, 2.5e-17),
        reference_scores=(1.0, 2.0, 3.0),
        weights=(63.0, 63.0, 12.0),
        lower_bounds=frozenset({"p99", "mean"}),
        reference_stored=3,
        remark="“a remark”",
        caveat="only a bound",
        bounds={"format": {"tokens_per_second": 1.5}},
        conditions=(),
        proof={"kernels": ["a", "b"], "share": 0.99, "none": None, "yes": True},
        detail={"items": [{"doc": 1, "said": ("a", 2)}], "~odd": {1: "one"}},
    )
    return replace(whole, **changes)
