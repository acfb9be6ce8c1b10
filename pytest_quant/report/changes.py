"""Items that were lost, prompts that are continued otherwise and layers that cost most, as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_MOST = 3
_LONGEST = 90


def lines(record: Mapping[str, Any]) -> Sequence[str]:
    """The first few items that only the reference got right, prompts that changed, or layers that cost most, of the
    record of a gate; none of other metrics."""
    detail = record.get("detail", {})
    if record["metric"] == "task_accuracy" and detail.get("lost"):
        return [f"{record['reference']} had right, and {record['format']} has not:", *_items(detail["lost"])]
    if record["metric"] == "generation_match" and detail.get("changed"):
        return [line for each in detail["changed"][:_MOST] for line in _prompt(record, each)]
    if record["metric"] == "layer_sensitivity" and detail.get("layers"):
        return [layer(each) for each in worst_layers(record)[:_MOST]]
    return []


def worst_layers(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The layers by what the record's limit is on, the worst first; tables are no part of a format."""
    on = "kl" if set(record["limit"]) == {"max_kl"} else "nats"
    parts = [each for each in record["detail"]["layers"] if each["kind"] not in ("embedding", "head")]
    return sorted(parts, key=lambda each: -each[on]["value"])


def layer(layer: Mapping[str, Any]) -> str:
    """One layer with its figures."""
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
