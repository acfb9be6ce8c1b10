"""From what was written to what it means: one reader for each kind of option. A mistake is a :class:`UsageError` that
says where it stands, what it is and what it may be."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quant.cache import expanded
from pytest_quant.configuration.places import local_corpus, local_file, local_folder, local_place
from pytest_quant.configuration.said import Said
from pytest_quant.declarations import ENGINES, Option
from pytest_quant.errors import UsageError, like
from pytest_quant.spec import packed


@dataclass(frozen=True)
class Kind:
    """How values of some options are written."""

    fits: Callable[[Any], bool]
    """Whether a TOML value is of the right type."""
    may_be: str
    """What it must be, with an example."""
    read: Callable[[Said, Option], Any]
    """The value, checked; never asked where nothing was said."""


def read(option: Option, said: Said) -> Any:
    """What an option is set to; None where nothing was said. :class:`UsageError` says what is wrong."""
    if said.value is None:
        return None
    kind = KINDS[option.kind]
    if (said.origin.kind == "table" or not isinstance(said.value, str)) and not kind.fits(said.value):
        raise said.wrong(f"must be {kind.may_be}, not {_type_name(said.value)}")
    return kind.read(said, option)


def _type_name(value: Any) -> str:
    names = {bool: "true or false", str: "text", int: "a whole number", float: "a number", list: "a list"}
    return names.get(type(value), "a table" if isinstance(value, dict) else f"a {type(value).__name__}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _are_places(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(place, str) for place in value.values())


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _is_map(value: Any) -> bool:
    return _is_text(value) or _is_whole(value) or _is_table(value)


def _switch(said: Said, _: Option) -> bool:
    return bool(said.value)


def _text(said: Said, option: Option) -> str | None:
    return said.value or option.default


def _model(said: Said, _: Option) -> str | None:
    return local_folder(said.root, said.value or None)


def _checked(said: Said, name: str, check: Callable[[str], Any]) -> Any:
    try:
        return check(name)
    except UsageError as error:
        raise said.wrong(str(error), show=False) from None


def _format_name(name: str) -> str:
    from pytest_quant.formats import registry

    return registry.get(name).name


def _reference(said: Said, _: Option) -> str:
    def check(name: str) -> str:
        from pytest_quant.formats import registry

        if registry.get(name).quantized:
            raise UsageError(f"{name} is a quantized format; use fp16, bf16 or fp32")
        return registry.get(name).name

    return str(_checked(said, said.value, check))


def _names(said: Said) -> list[str]:
    return said.value if isinstance(said.value, list) else said.value.replace(",", " ").split()


def _formats(said: Said, _: Option) -> tuple[str, ...] | None:
    return tuple(_checked(said, name, _format_name) for name in _names(said)) or None


def _conditions(said: Said, _: Option) -> tuple[str, ...]:
    from pytest_quant.hardware.condition import NAMES

    for name in (names := tuple(_names(said))):
        if name not in NAMES:
            raise said.wrong(f"there is no condition {name!r}; there are {', '.join(NAMES)}", show=False)
    return names


def _arguments(said: Said, _: Option) -> tuple[tuple[str, str], ...]:
    """An object, as a spec keeps it."""
    try:
        found = json.loads(said.value or "{}") if isinstance(said.value, str) else said.value
        json.dumps(found, allow_nan=False)
    except (ValueError, TypeError):  # a date, infinity
        found = None
    if not isinstance(found, dict):
        example = 'JSON, such as {"tensor_parallel_size": 2}'
        if said.origin.kind == "table":
            example = "text, numbers, true, false, lists and tables of these"
        raise said.wrong(f"write {example}")
    if found:
        from pytest_quant.engines.vllm import arguments

        _checked(said, "", lambda _: arguments.check(found))
    return packed(found)


def _map(said: Said, _: Option) -> str:
    from pytest_quant.placement import parse

    _checked(said, said.value, parse)
    return said.value if isinstance(said.value, str) else json.dumps(said.value)


def _checkpoints(said: Said, _: Option) -> tuple[tuple[str, str], ...]:
    """Places by format; a relative folder or file is meant from the rootdir."""
    found = {}
    for format, place in _pairs(said):
        if not place:
            raise said.wrong("write FORMAT=PLACE, such as gptq=checkpoints/gptq")
        found[_checked(said, format, _format_name)] = local_place(said.root, place)
    return tuple(sorted(found.items()))


def _pairs(said: Said) -> list[tuple[str, str]]:
    if isinstance(said.value, dict):
        return list(said.value.items())
    pairs = [pair.strip().partition("=") for pair in said.value.replace("\n", ",").split(",") if pair.strip()]
    return [(format, place) for format, _, place in pairs]


def _mix(said: Said, _: Option) -> str:
    from pytest_quant.quantizing import settings_of

    def check(mix: str) -> str:
        told = settings_of(mix, None, None, place=lambda name: local_corpus(said.root, name))
        assert told is not None
        return told.mix

    return str(_checked(said, said.value, check))


def _corpus(said: Said, option: Option) -> str:
    name = local_corpus(said.root, said.value or option.default or "")
    if name != option.default:
        from pytest_quant.corpora import texts

        _checked(said, name, texts.check)
    return name


def _protocol(said: Said, _: Option) -> str:
    from pytest_quant.corpora.protocols import parse

    return str(_checked(said, said.value, lambda name: parse(name).name))


def _matrix(said: Said, option: Option) -> str:
    name = local_file(said.root, said.value or option.default or "")
    if name != option.default:
        from pytest_quant.hardware import matrix

        _checked(said, name, matrix.load)
    return name


def _place(said: Said, example: str) -> Path:
    """An empty name would be the folder where pytest was started."""
    if not said.value.strip():
        raise said.wrong(f"is empty; name {example}")
    return said.started / expanded(said.value)


def _blocked(place: Path) -> Path | None:
    """The file that is in the way of a folder; None where there is none, as far as can be seen."""
    there = next((each for each in (place, *place.parents) if each.exists()), None)
    return None if there is None or there.is_dir() else there


def _folder(said: Said, _: Option) -> Path:
    """A folder that is read."""
    place = _place(said, "a folder")
    if not place.is_dir():
        raise said.wrong("this is a file; name a folder" if place.exists() else "there is no such folder")
    return place


def _store(said: Said, _: Option) -> Path:
    """A folder that is written to; that of nobody's word is looked at where it is used."""
    place = _place(said, "a folder")
    if said.origin.kind not in ("default", "CI"):
        check_store(said, place)
    return place


def check_store(said: Said, place: Path) -> None:
    """:class:`UsageError` where a folder cannot be one, as far as that can be seen at the start."""
    if (file := _blocked(place)) == place:
        raise said.wrong("this is a file; name a folder")
    if file is not None:
        raise said.wrong(f"{file} is a file; name another folder")


def _file(said: Said, _: Option) -> Path:
    """A file that is written, as far as it can be seen at the start that it can."""
    place = _place(said, "a file")
    if place.is_dir():
        raise said.wrong("this is a folder; name a file in it")
    if (file := _blocked(place.parent)) is not None:
        raise said.wrong(f"{file} is a file, so nothing can lie below it; name another place")
    return place


def _page(said: Said, option: Option) -> Path:
    """The path of an HTML file that can be written, as far as that can be seen at the start."""
    place = _place(said, "an .html file")
    if place.suffix.lower() not in (".html", ".htm"):
        raise said.wrong("a report is an HTML file: name it .html")
    _file(said, option)
    from pytest_quant.report.html.libraries import check

    try:
        check()
    except UsageError as error:
        raise said.wrong(str(error)) from None
    return place


def _engine(said: Said, option: Option) -> str | None:
    def check(name: str) -> str:
        if name not in ENGINES:
            raise UsageError(
                f"unknown engine {name!r}{like(name, ENGINES, 'the engines are ' + ' and '.join(ENGINES))}"
            )
        return name

    name = said.value or option.default
    return None if name is None else str(_checked(said, name, check))


def _word(said: Said, option: Option) -> str:
    if said.value not in option.choices:
        raise said.wrong(f"may be {' or '.join(option.choices)}")
    return str(said.value)


def _count(said: Said, _: Option) -> int:
    text = str(said.value).strip()
    if not text.isdecimal() or int(text) < 2:
        raise said.wrong("must be a whole number of 2 or more")
    return int(text)


def _number(said: Said) -> float:
    try:
        return float(said.value)
    except (ValueError, OverflowError):  # no number, or one of more than 308 digits
        return math.nan


def _amount(said: Said, _: Option) -> float:
    if not 0.0 < (value := _number(said)) < math.inf:
        raise said.wrong("must be a number above 0")
    return value


def _share(said: Said, _: Option) -> float:
    if not 0.5 <= (value := _number(said)) < 1.0:
        raise said.wrong("must be a number from 0.5 to below 1, such as 0.99")
    return value


KINDS = {
    "switch": Kind(_is_switch, "true or false", _switch),
    "text": Kind(_is_text, "text in quotes", _text),
    "model": Kind(_is_text, 'text, such as "org/name"', _model),
    "reference": Kind(_is_text, 'text, such as "fp16"', _reference),
    "formats": Kind(_are_names, 'a list of names, such as ["int8", "nf4"]', _formats),
    "conditions": Kind(_are_names, 'a list of names, such as ["mig"]', _conditions),
    "arguments": Kind(_is_table, "a table, such as { tensor_parallel_size = 2 }", _arguments),
    "map": Kind(_is_map, 'text, a number or a table, such as "auto" or { "" = 0 }', _map),
    "checkpoints": Kind(_are_places, 'a table of texts, such as { gptq = "checkpoints/gptq" }', _checkpoints),
    "mix": Kind(_is_text, 'text, such as "0.5*domain.jsonl,0.5*wikitext2"', _mix),
    "corpus": Kind(_is_text, 'text, such as "wikitext2"', _corpus),
    "protocol": Kind(_is_text, 'text, such as "gptq-2048"', _protocol),
    "matrix": Kind(_is_text, 'text, such as "corrected"', _matrix),
    "folder": Kind(_is_text, "the path of a folder, in quotes", _folder),
    "store": Kind(_is_text, "the path of a folder, in quotes", _store),
    "file": Kind(_is_text, "the path of a file, in quotes", _file),
    "page": Kind(_is_text, "the path of an HTML file, in quotes", _page),
    "engine": Kind(_is_text, 'text, such as "vllm"', _engine),
    "word": Kind(_is_text, "text", _word),
    "count": Kind(_is_whole, "a whole number without quotes, such as 64", _count),
    "amount": Kind(_is_number, "a number without quotes, such as 2.5", _amount),
    "share": Kind(_is_number, "a number without quotes, such as 0.99", _share),
}
"""The kinds of options, by the names that :class:`pytest_quant.declarations.Option` gives them."""
