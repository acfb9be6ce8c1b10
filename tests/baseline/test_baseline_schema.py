"""The text of a baseline file: exact round trips, and an error that names file and place for whatever is malformed."""

from __future__ import annotations

import copy
import enum
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.baseline import BaselineError, Entry, File, canonical, identity_hash, parse, read, render, schema
from pytest_quant.errors import QuantError

HARDWARE = {"key": "nvidia-a10g", "name": "NVIDIA A10G"}
IDENTITY = {"model": {"fingerprint": "ab12"}, "metric": {"name": "perplexity_delta"}, "protocol": {"window": 512}}


def entry(**changes: Any) -> Entry:
    values: dict[str, Any] = {
        "metric": "perplexity_delta",
        "format": "nf4",
        "identity": IDENTITY,
        "value": 0.21,
        "unit": "ppl",
        "low": 0.15,
        "high": 0.27,
        "scores": (3.1, 3.2, 0.1 + 0.2, 3.4, 3.5, 3.6),
        "reference_scores": (3.0, 3.1, 3.2, 3.3, 3.4, 3.5),
        "figures": {"format_value": 5.68},
        "recorded": {"commit": "c0ffee"},
    }
    return Entry(**(values | changes))


def document() -> dict[str, Any]:
    file = File(HARDWARE, "org/name", (entry(), entry(format="int8")))
    data: dict[str, Any] = json.loads(render(file))
    return data


def broken(change: Callable[[dict[str, Any]], object]) -> str:
    data = copy.deepcopy(document())
    change(data)
    return json.dumps(data)


EXPECTED_TEXT = """\
{
  "hardware": {
    "key": "nvidia-a10g",
    "name": "NVIDIA A10G"
  },
  "measurements": [
    {
      "figures": {
        "format_value": 5.68
      },
      "format": "nf4",
      "high": 0.27,
      "identity": {
        "metric": {
          "name": "perplexity_delta"
        },
        "model": {
          "fingerprint": "ab12"
        },
        "protocol": {
          "window": 512
        }
      },
      "low": 0.15,
      "metric": "perplexity_delta",
      "recorded": {
        "commit": "c0ffee"
      },
      "reference_scores": [
        3.0, 3.1, 3.2, 3.3, 3.4,
        3.5
      ],
      "scores": [
        3.1, 3.2, 0.30000000000000004, 3.4, 3.5,
        3.6
      ],
      "unit": "ppl",
      "value": 0.21
    }
  ],
  "model": "org/name",
  "schema": 1
}
"""


def test_the_text_is_as_documented() -> None:
    assert render(File(HARDWARE, "org/name", (entry(),))) == EXPECTED_TEXT


def test_absent_fields_are_absent_and_never_null() -> None:
    bare = Entry("memory_budget", "nf4", {"model": {"revision": None}}, 1.0, "GB")
    text = render(File(HARDWARE, "m", (bare,)))
    assert "null" not in text
    assert json.loads(text)["measurements"][0].keys() == {"metric", "format", "identity", "value", "unit"}
    assert parse(text, "f").entries[0].low is None
    assert parse(text, "f").entries[0].identity == {"model": {}}


def test_order_of_entries_and_keys_does_not_change_the_bytes() -> None:
    one, two = entry(), entry(format="int8", identity=dict(reversed(IDENTITY.items())))
    again = entry(identity=IDENTITY | {"protocol": {"window": 2048}})
    text = render(File(HARDWARE, "m", (one, two, again)))
    assert text == render(File(dict(reversed(HARDWARE.items())), "m", (again, two, one)))
    assert text == render(parse(text, "f"))


def test_one_changed_score_changes_one_line() -> None:
    scores = [3.0 + i / 7 for i in range(100)]
    before = render(File(HARDWARE, "m", (entry(scores=tuple(scores), reference_scores=None),))).splitlines()
    scores[50] = 3.5
    after = render(File(HARDWARE, "m", (entry(scores=tuple(scores), reference_scores=None),))).splitlines()
    assert len(before) == len(after)
    assert sum(a != b for a, b in zip(before, after, strict=True)) == 1


class Name(str, enum.Enum):
    NF4 = "nf4"


class Bits(enum.IntEnum):
    FOUR = 4


def test_subclasses_of_plain_types_are_written_as_plain_types() -> None:
    numpy = pytest.importorskip("numpy")
    item = entry(format=Name.NF4, value=numpy.float64(0.21), identity={"bits": Bits.FOUR})
    back = parse(render(File(HARDWARE, "m", (item,))), "f").entries[0]
    assert (back.format, back.value, back.identity) == ("nf4", 0.21, {"bits": 4})


finite = st.floats(allow_nan=False, allow_infinity=False)
text = st.text(min_size=1, max_size=8)
leaves = st.one_of(st.booleans(), st.integers(-(2**64) + 1, 2**64 - 1), finite, st.text(max_size=8))
trees = st.dictionaries(
    st.text(max_size=5),
    st.recursive(leaves, lambda t: st.lists(t, max_size=7) | st.dictionaries(st.text(max_size=5), t, max_size=3)),
    max_size=4,
)


@st.composite
def entries(draw: st.DrawFn) -> Entry:
    low, high = sorted((draw(finite), draw(finite)))
    windows = draw(st.lists(st.tuples(finite, finite), max_size=12))
    return Entry(
        metric=draw(text),
        format=draw(text),
        identity=draw(trees),
        value=draw(finite),
        unit=draw(text),
        low=draw(st.sampled_from([None, low])),
        high=draw(st.sampled_from([None, high])),
        scores=tuple(a for a, _ in windows) or None,
        reference_scores=draw(st.sampled_from([None, tuple(b for _, b in windows) or None])),
        figures=draw(st.dictionaries(text, finite, max_size=3)),
        recorded=draw(trees),
    )


@given(text, text, st.lists(entries(), max_size=5, unique_by=lambda e: e.key), trees)
def test_what_is_rendered_is_read_back_exactly(key: str, model: str, items: list[Entry], extra: dict[str, Any]) -> None:
    file = File({**extra, "key": key, "name": key}, model, tuple(items))
    rendered = render(file)
    back = parse(rendered, "f")
    ordered = sorted(items, key=lambda e: (e.format, e.metric, e.key))
    assert back == File(file.hardware, model, tuple(ordered))
    assert render(back) == rendered
    assert rendered.isascii()
    assert rendered.endswith("}\n")
    for old, new in zip(ordered, back.entries, strict=True):
        assert math.copysign(1, old.value) == math.copysign(1, new.value)
        assert type(new.value) is float


SHAPES: list[tuple[str, Callable[[dict[str, Any]], object], str, str]] = [
    ("hardware missing", lambda d: d.pop("hardware"), "hardware", "no such key"),
    ("model missing", lambda d: d.pop("model"), "model", "no such key"),
    ("measurements missing", lambda d: d.pop("measurements"), "measurements", "no such key"),
    ("hardware a string", lambda d: d.update(hardware="a100"), "hardware", "the string 'a100'"),
    ("hardware key missing", lambda d: d["hardware"].pop("key"), "hardware.key", "no such key"),
    ("hardware name empty", lambda d: d["hardware"].update(name=""), "hardware.name", "the string ''"),
    ("model a number", lambda d: d.update(model=7), "model", "the number 7"),
    ("unknown key at the top", lambda d: d.update(extra=1), "extra", "an unknown key"),
    ("measurements an object", lambda d: d.update(measurements={}), "measurements", "an object"),
    ("measurement a list", lambda d: d["measurements"].append([]), "measurements[2]", "an empty list"),
    ("value missing", lambda d: d["measurements"][1].pop("value"), "measurements[1].value", "no such key"),
    ("value a string", lambda d: d["measurements"][1].update(value="1.2"), "measurements[1].value", "the string '1.2'"),
    ("value a bool", lambda d: d["measurements"][1].update(value=True), "measurements[1].value", "true"),
    ("value null", lambda d: d["measurements"][1].update(value=None), "measurements[1].value", "null"),
    ("low null", lambda d: d["measurements"][0].update(low=None), "measurements[0].low", "null"),
    ("low above high", lambda d: d["measurements"][0].update(low=0.5), "measurements[0].low", "0.5"),
    ("unit empty", lambda d: d["measurements"][0].update(unit=""), "measurements[0].unit", "the string ''"),
    ("metric a bool", lambda d: d["measurements"][0].update(metric=False), "measurements[0].metric", "false"),
    ("identity a list", lambda d: d["measurements"][0].update(identity=[1]), "measurements[0].identity", "a list"),
    (
        "null deep in the identity",
        lambda d: d["measurements"][0]["identity"].update(a=[{"b": None}]),
        "measurements[0].identity.a[0].b",
        "null",
    ),
    ("misspelt key", lambda d: d["measurements"][0].update(vaule=1), "measurements[0].vaule", "an unknown key"),
    ("scores empty", lambda d: d["measurements"][0].update(scores=[]), "measurements[0].scores", "an empty list"),
    ("scores a number", lambda d: d["measurements"][0].update(scores=1), "measurements[0].scores", "the number 1"),
    (
        "score a string",
        lambda d: d["measurements"][0]["scores"].insert(2, "x"),
        "measurements[0].scores[2]",
        "the string",
    ),
    ("score a bool", lambda d: d["measurements"][0]["scores"].insert(2, True), "measurements[0].scores[2]", "true"),
    (
        "score lists of different lengths",
        lambda d: d["measurements"][0]["scores"].pop(),
        "measurements[0].reference_scores",
        "6 numbers, expected 5",
    ),
    (
        "figure a string",
        lambda d: d["measurements"][0]["figures"].update(x="1"),
        "measurements[0].figures.x",
        "the string",
    ),
    ("huge integer", lambda d: d["measurements"][0].update(value=10**400), "measurements[0].value", "2**64 or more"),
    (
        "duplicate",
        lambda d: d["measurements"].append(d["measurements"][0]),
        "measurements[2]",
        "identity of measurements[0] once more",
    ),
    ("schema missing", lambda d: d.pop("schema"), "schema", "no such key"),
    ("schema a string", lambda d: d.update(schema="1"), "schema", "the string '1'"),
    ("schema a bool", lambda d: d.update(schema=True), "schema", "true"),
    ("schema a float", lambda d: d.update(schema=1.0), "schema", "the number 1.0"),
    ("schema zero", lambda d: d.update(schema=0), "schema", "the number 0"),
    ("schema negative", lambda d: d.update(schema=-1), "schema", "the number -1"),
]

GOOD = json.dumps(document(), indent=1)
TEXTS: list[tuple[str, str | bytes, str, str]] = [
    ("empty", "", "line 1 column 1", "an empty file"),
    ("blank", "\n \n", "line 1 column 1", "an empty file"),
    ("truncated", GOOD[:300], "line ", "the end of a truncated file"),
    ("truncated in a string", GOOD[: GOOD.index("NVIDIA") + 3], "line 4 column ", "the end of a truncated file"),
    ("last brace missing", GOOD.rstrip()[:-1], "line ", "the end of a truncated file"),
    ("comma missing", '{\n  "schema": 1\n  "model": "m"\n}\n', "line 3 column 3", "invalid JSON"),
    ("rest behind the end", GOOD + "}", "line ", "invalid JSON (Extra data)"),
    ("zeros after a crash", "{\n" + "\0" * 64, "line 2", "binary data (NUL bytes)"),
    ("gzip", b"\x1f\x8b\x08\x00abc", "line 1", "binary data (byte 1 is not UTF-8)"),
    ("latin-1", '{\n "model": "é"}'.encode("latin-1"), "line 2", "not UTF-8"),
    ("a list", "[]", "top level", "an empty list"),
    ("null", "null", "top level", "null"),
    ("a number", "1", "top level", "the number 1"),
    ("NaN", GOOD.replace("0.21", "NaN", 1), "measurements[0].value", "the number nan"),
    ("infinity", GOOD.replace("0.27", "Infinity", 1), "measurements[0].high", "the number inf"),
    ("minus infinity", GOOD.replace("0.15", "-Infinity", 1), "measurements[0].low", "the number -inf"),
    ("1e999", GOOD.replace("3.4", "1e999", 1), "measurements[0].reference_scores[4]", "the number inf"),
    ("NaN in the identity", GOOD.replace("512", "NaN", 1), "measurements[0].identity.protocol.window", "nan"),
    (
        "thousands of digits",
        GOOD.replace("0.21", "9" * 5000, 1),
        "",
        "number",
    ),
    ("a key twice", GOOD.replace('"value"', '"value": 1, "value"', 1), "measurements[0].value", "this key twice"),
    ("schema twice", GOOD.replace('"schema"', '"schema": 1, "schema"'), "schema", "this key twice"),
    ("deep", '{"schema": 1, "a": ' + "[" * 50 + "]" * 50 + "}", "a[0][0]", "too deep a nesting"),
    ("very deep", "[" * 200_000, "top level", "too deep a nesting"),
]
CASES = [(name, broken(change), place, found) for name, change, place, found in SHAPES] + TEXTS


@pytest.mark.parametrize("content, place, found", [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_malformed_files_are_named_and_left_alone(tmp_path: Path, content: str | bytes, place: str, found: str) -> None:
    path = tmp_path / "name.json"
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(data)
    with pytest.raises(BaselineError) as caught:
        read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: {place}")
    assert found in message
    assert ", expected " in message
    assert f"Restore it with `git checkout -- {path}`, or delete it and record anew." in message
    assert path.read_bytes() == data
    assert isinstance(caught.value, QuantError)


@pytest.mark.parametrize("style", ["merge", "diff3"])
def test_conflict_markers_have_a_message_of_their_own(style: str) -> None:
    lines = GOOD.splitlines()
    base = ["||||||| base", lines[5]] if style == "diff3" else []
    lines[5:6] = ["<<<<<<< HEAD", lines[5], *base, "=======", lines[5] + " ", ">>>>>>> branch"]
    with pytest.raises(BaselineError) as caught:
        parse("\r\n".join(lines), "dir with space/f.json")
    assert str(caught.value).startswith("dir with space/f.json: line 6: found an unresolved git merge conflict")
    assert "`git checkout --ours -- 'dir with space/f.json'` (or --theirs)" in str(caught.value)


def test_a_newer_schema_asks_for_an_upgrade_whatever_else_is_in_the_file() -> None:
    with pytest.raises(BaselineError, match=r"^f: schema: found 99, expected at most 1\..*: upgrade pytest-quant\.$"):
        parse('{"schema": 99, "measurements": null, "new": NaN}', "f")


def rename_score(data: dict[str, Any]) -> dict[str, Any]:
    return data | {"measurements": [{"unit": "ppl"} | m for m in data["measurements"]]}


def test_an_older_schema_is_migrated_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    older = document()
    for item in older["measurements"]:
        del item["unit"]
    path = tmp_path / "f.json"
    path.write_text(json.dumps(older))
    before = path.read_bytes()
    monkeypatch.setattr(schema, "SCHEMA", 3)
    monkeypatch.setitem(schema.MIGRATIONS, 1, rename_score)
    monkeypatch.setitem(schema.MIGRATIONS, 2, lambda data: data | {"model": data["model"].upper()})
    file = read(path)
    assert file is not None
    assert file.model == "ORG/NAME"
    assert {e.unit for e in file.entries} == {"ppl"}
    assert path.read_bytes() == before
    assert json.loads(render(file))["schema"] == 3


def test_an_older_schema_that_is_malformed_or_forgotten_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "SCHEMA", 2)
    with pytest.raises(BaselineError, match=r"^f: schema: found 1, expected 2; schema 1 can no longer be read"):
        parse(GOOD, "f")
    monkeypatch.setitem(schema.MIGRATIONS, 1, rename_score)
    with pytest.raises(BaselineError, match=r"^f: schema 1: found content that cannot be migrated \(KeyError"):
        parse('{"schema": 1}', "f")


@pytest.mark.parametrize(
    "item, place",
    [
        (entry(value=math.nan), r"measurements\[0\]\.value: found the number nan"),
        (entry(high=math.inf), r"measurements\[0\]\.high: found the number inf"),
        (entry(scores=(1.0, -math.inf)), r"measurements\[0\]\.scores\[1\]: found the number -inf"),
        (entry(scores=(1.0,)), r"measurements\[0\]\.reference_scores: found 6 numbers, expected 1"),
        (entry(scores=()), r"measurements\[0\]\.scores: found an empty list"),
        (entry(identity={"a": {"b": math.nan}}), r"identity\.a\.b: found the number nan"),
        (entry(identity={"path": Path("x")}), r"identity\.path: found a value of type \w*Path"),
        (entry(identity={1: 2}), r"identity: found the key 1, expected only strings"),
        (entry(figures={"x": True}), r"measurements\[0\]\.figures\.x: found true"),
        (entry(recorded={"x": {1, 2}}), r"measurements\[0\]\.recorded\.x: found a value of type set"),
        (entry(value=None), r"measurements\[0\]\.value: found no such key"),
    ],
)
def test_what_cannot_be_read_back_is_not_rendered(item: Entry, place: str) -> None:
    with pytest.raises(BaselineError, match=f"^f: .*{place}.*Nothing was written"):
        render(File(HARDWARE, "m", (item,)), "f")


def test_duplicates_and_cycles_are_not_rendered() -> None:
    with pytest.raises(BaselineError, match=r"measurements\[1\]: found the metric, format and identity of measure"):
        render(File(HARDWARE, "m", (entry(), entry(value=1.0, low=None, high=None))))
    cycle: dict[str, Any] = {}
    cycle["a"] = cycle
    with pytest.raises(BaselineError, match="too deep a nesting"):
        render(File(HARDWARE, "m", (entry(recorded=cycle),)))


def test_a_reader_tolerates_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(b"\xef\xbb\xbf" + EXPECTED_TEXT.replace("\n", "\r\n").encode())
    assert read(path) == parse(EXPECTED_TEXT, "f")


def test_identity_hash_is_stable_and_sees_what_matters() -> None:
    assert identity_hash({"b": 1, "a": (1, 2)}) == identity_hash({"a": [1, 2.0], "b": 1.0, "c": None})
    assert identity_hash({}) == "44136fa355b3678a"
    different: list[dict[str, Any]] = [
        {},
        {"a": 1},
        {"a": "1"},
        {"a": True},
        {"a": {}},
        {"a": [1]},
        {"a": 1.5},
        {"b": 1},
        {"a": {"a": 1}},
    ]
    assert len({identity_hash(i) for i in different}) == len(different)
    assert canonical({"b": 1.0, "a": "é"}) == '{"a":"\\u00e9","b":1}'
    with pytest.raises(BaselineError, match=r"^identity: a: found the number nan"):
        identity_hash({"a": math.nan})
