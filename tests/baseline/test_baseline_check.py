"""``baseline check``: files that a merge, a formatter or a hand changed are found before they are committed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant import baseline
from pytest_quant.baseline import Entry, File, path_for, write
from pytest_quant.cli import main

HARDWARE = {"key": "nvidia-l4", "name": "NVIDIA L4"}


def entry(format: str = "nf4", value: float = 1.25, **identity: object) -> Entry:
    return Entry("perplexity_delta", format, {"model": {"sha256": "0a"}, **identity}, value, "ppl", scores=(1.5, 2.5))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    root = Path("quant-baselines")
    write(path_for(root, "nvidia-l4", "org/Model-1B"), File(HARDWARE, "org/Model-1B", (entry(), entry("int8"))))
    write(path_for(root, "nvidia-l4", "small"), File(HARDWARE, "small", (entry(),)))
    return root


def small(root: Path) -> Path:
    return root / "nvidia-l4" / "small.json"


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["baseline", "check", *arguments])
    heard = capsys.readouterr()
    return code, heard.out, heard.err


def test_what_a_run_wrote_is_sound(root, capsys):
    assert told(capsys) == (0, "2 baseline files checked: all sound\n", "")
    code, out, _ = told(capsys, "--json", str(small(root)))
    assert (code, json.loads(out)) == (0, {"schema": 1, "exit_code": 0, "files": 1, "problems": [], "fixed": []})


@pytest.mark.parametrize(
    "damage, words",
    [
        (lambda text: text[: len(text) // 2], "truncated"),
        (lambda text: text.replace("1.25", "NaN"), "found the number nan, expected a finite number"),
        (lambda text: text.replace('"value": 1.25', '"value": 1.25, "value": 2'), "this key twice"),
        (lambda text: text.replace('"schema": 1', '"schema": 99'), "upgrade pytest-quant"),
        (lambda text: text.replace('"unit":', '"units": 1, "unit":'), "an unknown key"),
        (lambda text: "", "an empty file"),
        (lambda text: "[]", "expected an object"),
        (lambda text: '{"key": 1}\n', "schema: found no such key"),
        (lambda text: f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> branch\n", "line 1: found an unresolved git merge"),
    ],
)
def test_what_no_run_can_read_is_named_with_its_place(root, capsys, damage, words):
    before = damage(small(root).read_text())
    small(root).write_text(before)
    code, out, err = told(capsys, "--fix")
    assert (code, err) == (1, "")
    first, *others = out.splitlines()
    assert first.startswith(f"{small(root)}: ")
    assert words in first
    assert others == ["2 baseline files checked: 1 not as it should be"]
    assert small(root).read_text() == before  # --fix never touches what it does not understand


def test_one_measurement_twice_in_a_file_is_found(root, capsys):
    data = json.loads(small(root).read_text())
    data["measurements"] *= 2
    small(root).write_text(json.dumps(data))
    code, out, _ = told(capsys)
    assert code == 1
    assert "measurements[1]: found the metric, format and identity of measurements[0] once more" in out


def test_another_form_is_found_and_mended(root, capsys):
    sound = small(root).read_bytes()
    small(root).write_text(json.dumps(json.loads(sound)))
    code, out, _ = told(capsys)
    assert code == 1
    assert "in another form than a run writes" in out
    assert "baseline check --fix" in out
    code, out, _ = told(capsys, "--fix", "--json")
    assert code == 1  # a hook that changed files is red, as the commit has to be made again
    mended = [small(root).as_posix()]
    assert json.loads(out) == {"schema": 1, "exit_code": 1, "files": 2, "problems": [], "fixed": mended}
    assert small(root).read_bytes() == sound
    assert told(capsys)[0] == 0


def test_line_ends_of_windows_are_left_to_git(root, capsys):
    small(root).write_bytes(small(root).read_bytes().replace(b"\n", b"\r\n"))
    assert told(capsys)[0] == 0


@pytest.mark.parametrize("name", ["nvidia-l4/small copy.json", "nvidia-h100/small.json", "small.json", "a/b/m.json"])
def test_a_copy_or_a_moved_file_is_told_where_it_belongs(root, capsys, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(small(root), root / name)
    code, out, _ = told(capsys)
    assert code == 1
    assert "which a run looks for in nvidia-l4/small.json" in out
    assert "3 baseline files checked: 1 not" in out


def test_a_file_within_its_folder_is_where_it_belongs(root, capsys, monkeypatch):
    monkeypatch.chdir(root / "nvidia-l4")
    assert told(capsys, "small.json")[0] == 0
    assert told(capsys, "small.json", "small.json")[1] == "1 baseline file checked: all sound\n"


def test_a_name_that_no_file_can_have_is_a_problem_of_its_file(root, capsys):
    small(root).write_text(small(root).read_text().replace('"small"', '" "'))
    code, out, _ = told(capsys)
    assert code == 1
    assert "the model is ' '" in out


def test_nothing_to_check_is_no_success(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = told(capsys)
    assert (code, out) == (2, "")
    assert "there is no such folder or file" in err
    (tmp_path / "quant-baselines").mkdir()
    code, _, err = told(capsys)
    assert code == 2
    assert "`pytest --quant-baseline` records some" in err


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_is_found_or_changed_nothing(tmp_path_factory, place, byte):
    """Whatever happens to a file, it is told, or the file is the one that a run writes for what is in it."""
    path = path_for(tmp_path_factory.mktemp("one"), "cpu", "m")
    write(path, File({"key": "cpu", "name": "A CPU"}, "m", (entry(),)))
    content = bytearray(path.read_bytes())
    content[place % len(content)] = byte
    path.write_bytes(bytes(content))
    checked = baseline.check(path)
    if not checked.findings:
        assert checked.file is not None
        write(path, checked.file)
        assert path.read_bytes() == bytes(content)
