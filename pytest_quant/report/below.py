"""What stands below a row of the table: the figures that a ratio or a sum was made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quant.report import changes
from pytest_quant.report.figures import plain, shown_bytes

_BOTH = ("format", "reference")


def below(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Lines below the row of a speed, an energy or memory in use; nothing below other rows.

    Of a speed: tokens a second of format and reference, their share of the bound, what limits it, and the time between
    tokens. Of memory: what it is made of, and what was predicted.
    """
    if record["metric"] == "throughput_ratio" and "format_value" in record:
        return tuple(f"{_speed(record, which)}, {record['rounds']['played']} rounds" for which in _BOTH)
    if record["metric"] == "energy_ratio" and "format_watts" in record:
        return tuple(_energy(record, which) for which in _BOTH)
    if record["metric"] == "memory_budget":
        return _memory(record)
    if record["metric"] == "task_accuracy" and "format_value" in record:
        return (_accuracy(record),)
    if record["metric"] == "layer_sensitivity" and "detail" in record:
        return _layers(record)
    if record["metric"] == "generation_match" and "changed" in record:
        return (_changed(record),)
    return ()


def _speed(record: Mapping[str, Any], which: str) -> str:
    said = [f"{record[which]} {plain(record[f'{which}_value'])} tokens/s"]
    if (bound := record.get("bounds", {}).get(which)) is not None:
        said.append(f"{_share(bound['share'])} of at most {plain(bound['tokens_per_second'])} ({bound['regime']})")
    if (median := record.get(f"{which}_inter_token_p50_ms")) is not None:
        said.append(f"a token in {median:.3g} ms, 99% in {record[f'{which}_inter_token_p99_ms']:.3g}")
    return ", ".join(said)


def _accuracy(record: Mapping[str, Any]) -> str:
    """Both accuracies, and how many items only one of the two got right."""
    values = f"{record['reference']} {record['reference_value']:.4g}, {record['format']} {record['format_value']:.4g}"
    return f"{values}; {record['lost']:g} lost, {record['gained']:g} gained"


def _layers(record: Mapping[str, Any]) -> tuple[str, ...]:
    """The worst layer, and what all of them make."""
    worst = changes.worst_layers(record)[0]
    sums = f"{record['layers']:g} of them add up to {record['sum_nats']:.3g} nats"
    whole = f", together they cost {record['whole_nats']:.3g}" if "whole_nats" in record else ""
    return (changes.layer(worst), sums + whole)


def _changed(record: Mapping[str, Any]) -> str:
    said = f"{record['changed']:g} of {record['prompts']['used']} prompts continue otherwise"
    first = record.get("first_divergence_median")
    said = said if first is None else f"{said}, half of them by token {first + 1:g}"
    empty = record.get("empty", 0)
    return f"{said}; neither model says anything after {empty:g}" if empty else said


def _energy(record: Mapping[str, Any], which: str) -> str:
    return f"{record[which]} {record[f'{which}_value']:.3g} J/tok, {record[f'{which}_watts']:.3g} W"


def _memory(record: Mapping[str, Any]) -> tuple[str, ...]:
    if "kv_bytes_per_token" in record:
        said = f"{shown_bytes(record['kv_bytes_per_token'])} a token"
        if (predicted := record.get("kv_predicted_bytes")) is not None:
            same = predicted == record["format_value"]
            said += ", as predicted" if same else f", predicted {shown_bytes(predicted)} in all"
        return (said,)
    if "activation_bytes" in record:
        weights, activations = shown_bytes(record["weight_bytes"]), shown_bytes(record["activation_bytes"])
        said = f"weights {weights} + activations {activations}"
        if (held := record.get("process_bytes")) is not None:
            said += f"; the process holds {shown_bytes(held)}"
        return (said,)
    return ()


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}"
