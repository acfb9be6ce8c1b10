"""A checkpoint's record: what it was made from, read back or refused with a reason."""

from __future__ import annotations

import dataclasses
import json

import pytest

from pytest_quant.checkpoints import record as records
from pytest_quant.checkpoints.record import Record
from pytest_quant.errors import UsageError

CALIBRATION = {
    "corpora": [{"corpus": "python-docs", "sha256": "ab", "share": 1.0, "windows": 8}],
    "samples": 8,
    "tokens": 64,
    "seed": 0,
    "sha256": "cd",
}
RECORD = Record(
    base="sha256:1234",
    base_name="tiny",
    format={"name": "gptq", "backend": "gptqmodel"},
    recipe={"method": "gptq", "bits": 4, "group_size": 64},
    calibration=CALIBRATION,
    versions={"torch": "2.13.0"},
    made="2026-11-21T11:00:00Z",
)


def test_it_is_read_as_it_was_written(tmp_path):
    file = tmp_path / records.FILE
    for written in (RECORD, dataclasses.replace(RECORD, calibration=None)):
        file.write_text(records.text(written))
        assert records.read(file) == written


def test_no_file_is_no_record(tmp_path):
    assert records.read(tmp_path / records.FILE) is None


def test_in_a_few_words():
    assert RECORD.short == "gptq (bits 4, group_size 64), calibrated on 8 x 64 tokens of python-docs"
    assert dataclasses.replace(RECORD, calibration=None).short == "gptq (bits 4, group_size 64), no calibration"


def changed(**values):
    data = {**json.loads(records.text(RECORD)), **values}
    return json.dumps({name: value for name, value in data.items() if value != "gone"})


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "is no JSON"),
        ("[]", "is no record"),
        ("{}", "is no record"),
        (changed(schema="1"), "is no record"),
        (changed(schema=2), "upgrade pytest-quant"),
        (changed(base="gone"), '"base" is missing or no str'),
        (changed(base=7), '"base" is missing or no str'),
        (changed(recipe=[]), '"recipe" is missing or no dict'),
        (changed(calibration="python-docs"), '"calibration" is neither'),
        (changed(calibration={"corpora": 5}), "lists no corpora"),
        (changed(calibration={"corpora": [1]}), "lists no corpora"),
        (changed(format={"parameters": [1]}), "malformed parameters"),
        ("[" * 100_000, "is no JSON"),
    ],
)
def test_a_damaged_one_is_refused_with_its_file(tmp_path, content, said):
    file = tmp_path / records.FILE
    file.write_text(content)
    with pytest.raises(UsageError) as failure:
        records.read(file)
    assert str(file) in str(failure.value)
    assert said in str(failure.value)


def test_one_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / records.FILE
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot be read"):
        records.read(file)
