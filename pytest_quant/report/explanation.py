"""The explanation of a broken quality gate, as lines below its message; from the plain record alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quant.report.wrapping import filled

_MARGIN = "    "
_OFF = "no layer stands out"


def lines(record: Mapping[str, Any] | None) -> list[str]:
    """What it says, in lines of at most 100 characters: the loss, the layers, what to do, and the text. A command or a
    piece of Python is never broken: its line may be longer."""
    if not record:
        return []
    if "trouble" in record:
        return filled(str(record["trouble"]), "", _MARGIN)[:2]
    said = _loss(record) + _layers(record)
    for number, step in enumerate(record.get("next", ())):
        said.append(f"{'next: ' if number == 0 else '  or: '}{step}")
    return said + _windows(record)


def _loss(record: Mapping[str, Any]) -> list[str]:
    if "loss" not in record:
        return []
    return filled(_sentence(record["loss"], record["metric"]), "", _MARGIN)


def _sentence(loss: Mapping[str, Any], metric: str) -> str:
    """Few or all?"""
    verdict, worse = loss["verdict"], loss["worse"]
    if verdict == "broken":
        return f"{_percent(worse)} of {loss['tokens']:,} tokens are NaN or infinite"
    if metric == "token_agreement":
        spread = f"{_percent(worse)} of {loss['tokens']:,} tokens have another top token"
    elif metric == "kl_divergence":
        spread = f"{loss['tokens']:,} tokens"
    else:
        spread = f"{_percent(worse)} of {loss['tokens']:,} tokens got worse"
    tails = ""
    if "worst_1" in loss:
        tails = f"the worst 1 % make {_percent(loss['worst_1'])} of the loss, 10 % {_percent(loss['worst_10'])}"
    told = ", ".join(filter(None, (spread, tails)))
    if verdict == "windows":
        count = loss["few_windows"]
        which = "1 window makes" if count == 1 else f"{count} windows make"
        return f"a few windows carry it: {which} {_percent(loss['of_loss'])} of the loss of {loss['windows']} ({told})"
    if verdict == "kind":
        kind = loss["kind"]
        return (
            f"one kind of tokens carries it: {kind['name']}, {_percent(kind['of_tokens'])} of the tokens and "
            f"{_percent(kind['of_loss'])} of the loss ({told})"
        )
    if verdict == "tokens":
        return f"a few tokens carry it: {tails} ({spread})"
    return f"it is spread over all tokens: {told}" if verdict == "spread" else told


def _layers(record: Mapping[str, Any]) -> list[str]:
    cache = "; the KV cache is quantized too, which no layer shows" if record.get("kv_cache") else ""
    if "layers" not in record:
        reason = record.get("no_layers")
        return filled(f"layers were not compared: {reason}{cache}", "", _MARGIN) if reason else []
    found = record["layers"]
    if found.get("moved"):
        text = (
            "layers cannot be compared one by one: norms differ throughout, as where a format moves scales from them "
            "into the weights (AWQ, SmoothQuant)"
        )
        return filled(f"{text}{cache}", "", _MARGIN)
    odd: Sequence[Mapping[str, Any]] = found["standing_out"]
    if not odd:
        return filled(f"{_OFF}: {_closest(found)}{_not_compared(found)}{cache}", "", _MARGIN)
    said = [line for each in odd[:3] for line in filled(_odd(each), "", _MARGIN)]
    if len(odd) > 3:
        said.append(f"{_MARGIN}and {len(odd) - 3} more of {found['compared']} layers")
    return said + (filled(cache.removeprefix("; "), "", _MARGIN) if cache else [])


def _closest(found: Mapping[str, Any]) -> str:
    closest = found.get("closest")
    if closest is None:
        count = found["compared"]
        return f"{count} modules were compared, each given the reference's input" if count else "none could be compared"
    return (
        f"each given the reference's input, {closest['name']} is farthest from its kind, off by "
        f"{_error(closest['error'])} where the median of {closest['kind']} is {_error(closest['usual'])}"
    )


def _not_compared(found: Mapping[str, Any]) -> str:
    count = found.get("not_compared", 0)
    return f"; {count} could not be compared" if count and found["compared"] else ""


def _odd(each: Mapping[str, Any]) -> str:
    """One layer that stands out."""
    if "error" not in each:
        return f"{each['name']} answers NaN or infinity to the reference's own input"
    if not each["quantized"]:
        off = _error(each["error"])
        return f"{each['name']} is not quantized, yet it is off by {off}: its weights are not the reference's"
    times = (
        f"{each['times']:.1f} times the median of {each['kind']}, {_error(each['usual'])}" if "times" in each else ""
    )
    return f"{each['name']} stands out: off by {_error(each['error'])} for the reference's own input{_in(times)}"


def _in(text: str) -> str:
    return f" ({text})" if text else ""


def _windows(record: Mapping[str, Any]) -> list[str]:
    windows = record.get("windows", ())
    if not windows:
        return []
    loss = record.get("loss", {})
    since = " since the baseline" if record.get("since_baseline") else ""
    mean = f" (mean {_value(loss['mean'], record)})" if "mean" in loss else ""
    said = [f"worst of {loss.get('windows', len(windows))} windows{since}{mean}:"]
    for window in windows:
        value = _value(window["value"], record) if "value" in window else "not finite"
        was, now = window["reference_probability"], window.get("format_probability")
        after = "NaN" if now is None else _probability(now)
        told = f"p {_probability(was)} -> {after}"
        if "divergence" in window:
            told += f", KL {window['divergence']:.3g}"
        said.append(f"  {window['index']}: {value}; at »{window['token']}« {told}"[:100])
        said.append(f"{_MARGIN}{window['before']}»{window['token']}«{window['after']}"[:100])
    return said


def _value(value: float, record: Mapping[str, Any]) -> str:
    if record["metric"] == "token_agreement":
        return f"{_percent(value)} of the tokens"
    return f"{value:+.3g} nats a {record.get('unit', 'token')}"


def _error(value: float) -> str:
    """Two digits of a relative error."""
    return f"{value:#.2g}" if value < 10.0 else f"{value:.3g}"


def _probability(value: float) -> str:
    return f"{value:.2f}" if value >= 0.01 else f"{value:.0e}" if value > 0.0 else "0"


def _percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %") if share >= 0.1 or share == 0.0 else f"{share:.1%}".replace("%", " %")
