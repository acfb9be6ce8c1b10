"""A checkpoint is made whole with its record, or nothing is left; and it is found again by base, format and recipe."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from pytest_quant.checkpoints import making, shelf
from pytest_quant.checkpoints import record as records
from pytest_quant.corpora.calibration import CalibrationSet
from pytest_quant.errors import NotMeasured, Unsupported, UsageError
from pytest_quant.formats.backend import Asked, Backend
from pytest_quant.formats.format import Format, QuantizationArgs

FORMAT = Format("narrow", QuantizationArgs(4, "int"), "maker", "int4", from_checkpoint=True)
BASE = making.Base("tiny", "sha256:1")
DRAWN = CalibrationSet(np.zeros((2, 8), dtype=np.int64), {"sha256": "ab", "samples": 2})


class Maker(Backend):
    """Writes one file."""

    name, requires, install, formats = "maker", (), "maker", (FORMAT,)
    error: BaseException | None = None
    needs = True

    def calibrates(self, format):
        return self.needs

    def make(self, asked, samples, folder, tell):
        (folder / "weights").write_text(f"{len(samples)} samples")
        tell("layer 1/1")
        if self.error is not None:
            raise self.error
        return {"method": "made", "group_size": 64}


def make(target, *, backend=None, base=BASE, format=FORMAT, drawn=DRAWN, at=0.0, told=None):
    asked = Asked("tiny", format, "float32", "cpu")
    tell = (told if told is not None else []).append
    return making.make(base, asked, backend or Maker(), drawn, target, tell, at)


def test_what_was_made_has_its_record(tmp_path):
    told = []
    made = make(tmp_path / "out", told=told)
    assert (tmp_path / "out" / "weights").read_text() == "2 samples"
    record = records.read(tmp_path / "out" / records.FILE)
    assert record == made.record
    assert (record.base, record.base_name, record.made) == ("sha256:1", "tiny", "1970-01-01T00:00:00Z")
    assert record.recipe == {"method": "made", "group_size": 64}
    assert record.calibration == DRAWN.identity
    assert "pytest-quant" in record.versions
    assert told == ["layer 1/1"]


@pytest.mark.parametrize(
    "error, raised, said",
    [
        (RuntimeError("boom\nand more"), NotMeasured, "maker could not make tiny into narrow: boom$"),
        (KeyError(), NotMeasured, "KeyError"),
        (OSError(errno.ENOSPC, "No space left on device"), NotMeasured, "No space left"),
        (UsageError("group_size 128 does not divide 576"), UsageError, "does not divide"),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
)
def test_where_it_fails_nothing_is_left_and_what_was_there_stays(tmp_path, error, raised, said):
    maker = Maker()
    maker.error = error
    with pytest.raises(raised, match=said):
        make(tmp_path / "new", backend=maker)
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "old", at=1.0)
    with pytest.raises(raised):
        make(tmp_path / "old", backend=maker, at=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert records.read(tmp_path / "old" / records.FILE).made == "1970-01-01T00:00:01Z"


def test_a_folder_that_is_no_checkpoint_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="exists and is no checkpoint"):
        make(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"


def test_a_missing_library_is_said_before_anything_is_written(tmp_path):
    class Absent(Maker):
        requires = ("no-such-distribution>=3",)

    with pytest.raises(Unsupported, match=r"no-such-distribution not installed.*pip install maker"):
        make(tmp_path / "out", backend=Absent())
    assert list(tmp_path.iterdir()) == []


def test_one_that_calibrates_needs_a_set(tmp_path):
    with pytest.raises(UsageError, match="calibration set"):
        make(tmp_path / "out", drawn=None)
    quick = Maker()
    quick.needs = False
    assert make(tmp_path / "out", backend=quick, drawn=None).record.calibration is None


def test_it_is_found_by_base_and_format_and_the_newest_counts(tmp_path):
    make(tmp_path / "a", at=1.0)
    make(tmp_path / "b", at=3.0)
    make(tmp_path / "c", at=2.0)
    make(tmp_path / "d", at=9.0, base=making.Base("tiny", "sha256:2"))
    assert shelf.kept(tmp_path, FORMAT, "sha256:1", None).place == str(tmp_path / "b")
    assert shelf.kept(tmp_path, FORMAT, "sha256:3", None) is None
    other = dataclasses.replace(FORMAT, name="other")
    assert shelf.kept(tmp_path, other, "sha256:1", None) is None
    assert shelf.of_another_base(tmp_path, FORMAT, "tiny") is not None
    assert shelf.of_another_base(tmp_path, FORMAT, "someone") is None


@pytest.mark.parametrize("asked, found", [({}, True), ({"group_size": 64}, True), ({"group_size": 128}, False)])
def test_parameters_that_are_asked_for_must_be_those_of_the_recipe(tmp_path, asked, found):
    make(tmp_path / "a")
    wanted = dataclasses.replace(FORMAT, parameters=MappingProxyType(asked))
    assert (shelf.kept(tmp_path, wanted, "sha256:1", None) is not None) == found


def test_another_calibration_set_is_another_checkpoint(tmp_path):
    make(tmp_path / "a")
    assert shelf.kept(tmp_path, FORMAT, "sha256:1", DRAWN.identity) is not None
    assert shelf.kept(tmp_path, FORMAT, "sha256:1", {"sha256": "other"}) is None
    assert making.digest(BASE, FORMAT, {"sha256": "x"}) != making.digest(BASE, FORMAT, {"sha256": "y"})


def test_a_damaged_record_in_the_cache_is_as_if_it_were_not_there(tmp_path):
    make(tmp_path / "a")
    (tmp_path / "a" / records.FILE).write_text("{")
    assert shelf.kept(tmp_path, FORMAT, "sha256:1", None) is None
    with pytest.raises(UsageError, match="is no JSON"):
        shelf.named(str(tmp_path / "a"))


def checked(checkpoint, fingerprint, format=FORMAT, recipe=()):
    return shelf.checked(checkpoint, format, recipe, fingerprint, "tiny")


def test_a_checkpoint_of_another_base_is_stale(tmp_path):
    made = make(tmp_path / "a")
    assert checked(made, "sha256:1").of_this_base is True
    with pytest.raises(NotMeasured, match=r"stale: the narrow checkpoint .* was made on 1970.*quantize it again"):
        checked(made, "sha256:2")
    assert checked(made, "org/name@abc").of_this_base is None  # the folder and the hub's commit may be the same
    (tmp_path / "a" / records.FILE).unlink()
    without = shelf.named(str(tmp_path / "a"))
    assert without.record is None
    assert checked(without, "sha256:2").of_this_base is None


def test_what_only_the_recipe_tells_must_be_what_is_asked_for(tmp_path):
    made = make(tmp_path / "a")
    wanted = dataclasses.replace(FORMAT, parameters=MappingProxyType({"group_size": 128}))
    assert checked(made, "sha256:1", wanted).of_this_base is True  # the loaded model shows it
    with pytest.raises(NotMeasured, match=r"was made with group_size 64, narrow asks for 128"):
        checked(made, "sha256:1", wanted, ("group_size",))


def test_one_of_another_backend_is_refused(tmp_path):
    made = make(tmp_path / "a")
    with pytest.raises(NotMeasured, match="was made as narrow by maker, not as narrow"):
        checked(made, "sha256:1", dataclasses.replace(FORMAT, backend="other"))


def test_a_variant_finds_what_was_made_with_its_parameters(tmp_path):
    wanted = dataclasses.replace(
        FORMAT, name="grouped", variant_of="narrow", parameters=MappingProxyType({"group_size": 64})
    )
    make(tmp_path / "a")
    assert shelf.kept(tmp_path, wanted, "sha256:1", None) is not None
    make(tmp_path / "b", format=wanted, base=making.Base("tiny", "sha256:2"))
    assert shelf.kept(tmp_path, FORMAT, "sha256:2", None) is not None


def test_an_exclusion_makes_another_format(tmp_path):
    make(tmp_path / "a")
    assert shelf.kept(tmp_path, dataclasses.replace(FORMAT, exclude=("o_proj",)), "sha256:1", None) is None


def test_what_was_there_comes_back_where_the_last_step_is_interrupted(tmp_path, monkeypatch):
    make(tmp_path / "old", at=1.0)
    rename = Path.rename

    def interrupted(self, target):
        if Path(target) == tmp_path / "old" and ".old" not in self.name:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / "old", at=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert records.read(tmp_path / "old" / records.FILE).made == "1970-01-01T00:00:01Z"


def test_what_a_killed_process_left_is_swept_and_what_it_took_away_comes_back(tmp_path):
    make(tmp_path / "old", at=1.0)
    (tmp_path / "old").rename(tmp_path / ".making-old-0000.old")
    (tmp_path / ".making-old-0000").mkdir()
    failing = Maker()
    failing.error = RuntimeError("boom")
    with pytest.raises(NotMeasured):
        make(tmp_path / "old", backend=failing, at=2.0)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert records.read(tmp_path / "old" / records.FILE).made == "1970-01-01T00:00:01Z"
