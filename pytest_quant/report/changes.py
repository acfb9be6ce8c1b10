"""Items that were lost and prompts that are continued otherwise, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 3
_LONGEST = 90


def lines(record: Mapping[str, Any]) -> Sequence[str]:
    """The first few items that only the reference got right, or prompts that changed, of a gate's record; none of other
    metrics. Each line is at most a hundred characters long."""
    detail = record.get("detail", {})
    if record["metric"] == "task_accuracy" and detail.get("lost"):
        return [f"{record['reference']} had right, and {record['format']} has not:", *_items(detail["lost"])]
    if record["metric"] == "generation_match" and detail.get("changed"):
        return [line for each in detail["changed"][:_MOST] for line in _prompt(record, each)]
    if record["metric"] == "layer_sensitivity" and detail.get("layers"):
        return [_layer(layer) for layer in detail["layers"][:_MOST]]
    return []


def _layer(layer: Mapping[str, Any]) -> str:
    if "nats" not in layer:
        return f"{layer['name']}: NaN or infinite"
    return f"{layer['name']}: {layer['nats']['value']:+.3g} nats, KL {layer['kl']['value']:.3g}"


def _items(lost: Sequence[Mapping[str, Any]]) -> list[str]:
    said = []
    for item in lost[:_MOST]:
        said.append(f"  {item['task']} {item['doc_id']}: {shortened(item['question'], _LONGEST - 20)}")
        answers = f"{shortened(item['reference'], 30)}; now {shortened(item['format'], 30)}"
        said.append(f"    was {answers}")
    return said


def _prompt(record: Mapping[str, Any], changed: Mapping[str, Any]) -> list[str]:
    said = [f"changed at token {changed['first'] + 1}: {shortened(changed['prompt'], _LONGEST - 30)}"]
    if changed["common"]:
        said.append(f"  both: {shortened(changed['common'], _LONGEST)}")
    names = ("reference", "format")
    return said + [f"  {record[name]}: {shortened(changed[name], _LONGEST)}" for name in names]


def shortened(text: Any, most: int) -> str:
    """The text on one line, quoted, its end cut off where it is too long."""
    shown = repr(str(text))
    return shown if len(shown) <= most else shown[: most - 4] + "..." + shown[0]
