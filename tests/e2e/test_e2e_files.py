"""What happens to baseline files when they are damaged, or cannot be written."""

from __future__ import annotations

import errno
import os

import pytest

GATED = """
import pytest

@pytest.mark.memory_budget(max_gb=1)
def test_gate(quant_model): ...
"""


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "*empty*"),
        (b'{"schema": 1, "hardware"', "*line 1*"),
        (b'{"schema": 99, "hardware": {}, "model": "m", "measurements": []}', "*upgrade pytest-quant*"),
        (b"\x89PNG\r\n\x1a\n\xff\xfe", "*not UTF-8*"),
        (b"[]", "*expected*"),
    ],
    ids=["empty", "truncated", "newer-schema", "binary", "not-an-object"],
)
def test_a_damaged_file_is_an_error_that_names_it_and_it_is_left_alone(project, content, said):
    project.test(GATED)
    assert project.gate().ret == 0
    project.baseline_path.write_bytes(content)
    for arguments in ([], ["--quant-missing=fail"], ["--quant-baseline-update=all"], ["--quant-baseline-update=new"]):
        result, counts = project.junit(*arguments)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        assert counts == {"tests": 1, "failures": 1, "errors": 0, "skipped": 0}
        result.stdout.fnmatch_lines([said])
        result.stdout.fnmatch_lines(["int8 *incomparable"])
        result.stdout.fnmatch_lines([f"*{project.baseline_path.name}*"])
        result.stdout.no_fnmatch_line("*Traceback*")
        assert project.baseline_path.read_bytes() == content


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "220", None, True])
def test_a_value_that_is_no_number_never_passes(project, value):
    project.test(GATED)
    assert project.gate().ret == 0
    bytes_now = project.change_baseline(lambda data: data["measurements"][0].update(value=value))

    result, counts = project.junit()

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert counts["failures"] == 1
    result.stdout.fnmatch_lines([f"*{project.baseline_path.name}*"])
    assert project.baseline_path.read_bytes() == bytes_now


@pytest.mark.parametrize(
    "code", [errno.ENOSPC, errno.EROFS, errno.EACCES], ids=["full-disk", "read-only", "no-permission"]
)
def test_a_disk_that_refuses_turns_the_run_red_and_destroys_nothing(project, monkeypatch, code):
    project.test(GATED)
    assert project.gate().ret == 0
    project.change_baseline(lambda data: data["measurements"][0].update(value=1.0))
    before = project.baselines

    def refuse(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    result = project.gate("--quant-baseline-update=all")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ERROR: *cannot be written*the old file is untouched*"])
    assert project.baselines == before


def test_a_file_in_the_place_of_the_folder(project):
    project.test(GATED)
    (project.path / "quant-baselines").write_text("not a folder")
    result = project.gate()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*quant-baseline-path=quant-baselines: this is a file; name a folder"])
    assert project.run().ret == 0  # which uses none
    assert (project.path / "quant-baselines").read_text() == "not a folder"


IN_THE_WAY = """

def test_in_the_way():
    import pathlib
    pathlib.Path({place!r}).write_text("a file")
"""


def test_a_file_that_came_into_the_place_of_the_folder(project):
    project.test(IN_THE_WAY.format(place="quant-baselines") + GATED)
    result = project.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert (project.path / "quant-baselines").read_text() == "a file"
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


@pytest.mark.parametrize(
    "option", ["json=there/run.json", "markdown=there/out.md", "report=there/report.html", "history=there"]
)
def test_what_cannot_be_written_ends_the_run_before_it_begins(project, option):
    project.test(GATED)
    (project.path / "there").write_text("a file")
    result = project.run(f"--quant-{option}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--quant-{option}: *is a file*"])


@pytest.mark.parametrize(
    "option", ["json=there/run.json", "markdown=there/out.md", "report=there/report.html", "history=there"]
)
def test_what_cannot_be_written_in_the_end_is_red(project, option):
    project.test(GATED + IN_THE_WAY.format(place="there"))
    result = project.run(f"--quant-{option}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"*--quant-{option.partition('=')[0]}:*cannot be written*"])
