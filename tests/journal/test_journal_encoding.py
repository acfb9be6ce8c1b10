"""A kept measurement comes back exactly, and whatever is damaged is refused."""

from __future__ import annotations

import json
import math
from dataclasses import fields

import numpy as np
import pytest
from journal_examples import KEY, measured

from pytest_quant.gates.measurement import Measurement, Quantity
from pytest_quant.journal.encoding import DamagedError, Kept, decode, encode


def same(one: Measurement, other: Measurement) -> bool:
    """Field by field, since measurements compare by their values."""
    return all(shown(getattr(one, field.name)) == shown(getattr(other, field.name)) for field in fields(Measurement))


def shown(value) -> str:
    """Not a number too is itself; a set has no order."""
    return repr(sorted(value) if isinstance(value, frozenset) else value)


@pytest.mark.parametrize(
    "measurement",
    [
        measured(conditions=(("mig", "a slice"), ("workers", "beside 1 other"))),
        measured(windows=None, confidence=None, alpha=None, scores=None, reference_scores=None, weights=None),
        measured(quantities={"mean": Quantity(math.nan, -math.inf, math.inf, "nats")}, lower_bounds=frozenset()),
        measured(rounds=7, spent=False, reference=None, noun="items"),
    ],
    ids=["everything", "exact", "not-finite", "rounds"],
)
def test_every_field_comes_back(measurement):
    found = decode(encode(KEY, Kept(measurement)), KEY)
    assert same(found.measurement, measurement)
    assert found.explained_by is None
    assert found.explanation is None


def test_an_explanation_comes_back_with_what_it_was_made_against():
    explanation = {"next": ["do this"], "loss": {"share": 0.25}}
    found = decode(encode(KEY, Kept(measured(), explanation, "limit")), KEY)
    assert (found.explanation, found.explained_by) == (explanation, "limit")


def test_numbers_of_numpy_become_plain():
    measurement = measured(figures={"a": np.float64(0.1)}, detail={"n": np.int64(3), "f": np.float32(0.5)})
    found = decode(encode(KEY, Kept(measurement)), KEY).measurement
    assert found.figures == {"a": 0.1}
    assert found.detail == {"n": 3, "f": 0.5}


def test_what_is_no_plain_data_is_not_written():
    with pytest.raises(TypeError, match="object is no plain data"):
        encode(KEY, Kept(measured(detail={"what": object()})))


def test_every_cut_and_every_flipped_byte_is_refused_or_changes_nothing():
    content = encode(KEY, Kept(measured()))
    for length in range(0, len(content) - 2, 7):
        with pytest.raises(DamagedError):
            decode(content[:length], KEY)
    for place in range(0, len(content) - 1, 5):
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        try:
            found = decode(flipped, KEY)
        except DamagedError:
            continue
        assert same(found.measurement, measured()), place


def test_the_answer_to_another_question_is_refused():
    with pytest.raises(DamagedError, match="another question"):
        decode(encode(KEY, Kept(measured())), KEY[::-1])


def resigned(change) -> bytes:
    """The content after a change by somebody who knows the checksum."""
    import hashlib

    whole = json.loads(encode(KEY, Kept(measured())))
    change(whole["body"]["measurement"])
    text = json.dumps(whole["body"], sort_keys=True, separators=(",", ":"))
    whole["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    return json.dumps(whole).encode()


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("noun"),
        lambda fields: fields.update(more=1),
        lambda fields: fields.update(main="absent"),
        lambda fields: fields.update(metric="absent"),
        lambda fields: fields.update(windows=[1, 2]),
        lambda fields: fields.update(windows={"~tuple": [1, "8"]}),
        lambda fields: fields.update(scores={"~tuple": [1.0, None]}),
        lambda fields: fields.update(spent=1),
        lambda fields: fields.update(figures={"a": "b"}),
        lambda fields: fields.update(conditions={"~tuple": [["mig", "a slice"]]}),
        lambda fields: fields.update(alpha={"~unknown": 1}),
        lambda fields: fields["quantities"]["mean"].pop(),
        lambda fields: fields["quantities"].update(mean=["1", 0.0, 0.0, "nats", 0.0]),
    ],
)
def test_a_sound_checksum_over_nonsense_is_refused(change):
    assert same(decode(resigned(lambda fields: None), KEY).measurement, measured())
    with pytest.raises(DamagedError, match="cannot be understood"):
        decode(resigned(change), KEY)


def test_every_field_of_a_measurement_is_checked():
    from pytest_quant.journal import encoding

    assert encoding._FIELDS.keys() == {field.name for field in fields(Measurement)}
