"""Runs that were interrupted, and go on: by -x, by Ctrl-C, by the death of a worker, and by kill -9 at any moment."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import killing
import pytest
from small_models import SENTENCE

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="asked: locks; found: Windows; needed: flock")

GATES = """
import pytest

@pytest.mark.quant(formats=["int8"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
@pytest.mark.memory_budget(max_gb=1)
def test_gates(): ...

def test_stop():
    import pathlib
    assert not pathlib.Path("stop").exists()

@pytest.mark.quant(formats=["int8"])
@pytest.mark.token_agreement(min=0.01)
def test_after(): ...
"""
COUNTED = """
import pathlib

from transformers import AutoModelForCausalLM

from pytest_quant.session import Session

load, measure = AutoModelForCausalLM.from_pretrained, Session.measure

def say(line):
    with open(pathlib.Path(__file__).parent / "done.txt", "a") as stream:
        stream.write(line + "\\n")

def loaded(*args, **kwargs):
    say("load")
    return load(*args, **kwargs)

def measured(self, spec, name, gate, **rest):
    found = measure(self, spec, name, gate, **rest)
    say(f"{name} {gate.metric}")
    return found

AutoModelForCausalLM.from_pretrained = loaded
Session.measure = measured

def pytest_unconfigure():
    AutoModelForCausalLM.from_pretrained = load
    Session.measure = measure
"""
KEPT = "3 finished measurements kept: --quant-resume goes on with them"


class Resumed:
    """A project of which a run was stopped by -x."""

    def __init__(self, project, tests: str = GATES) -> None:
        self.project = project
        self.path = project.path
        project.conftest(COUNTED)
        project.test(tests)
        (self.path / "stop").write_text("")

    def stop(self, *arguments: str) -> pytest.RunResult:
        return self.go("-x", *arguments)

    def go(self, *arguments: str) -> pytest.RunResult:
        (self.path / "done.txt").write_text("")
        return self.project.gate("--quant-cache-dir=cache", *arguments)

    @property
    def done(self) -> list[str]:
        """What the last run loaded and measured."""
        return (self.path / "done.txt").read_text().splitlines()

    @property
    def kept(self) -> list[Path]:
        return sorted(path for path in self.path.glob("cache/journal/*/*/*.json") if path.name != "run.json")

    def start(self) -> None:
        (self.path / "stop").unlink()


@pytest.fixture
def resumed(project) -> Resumed:
    return Resumed(project)


def test_after_x_only_what_is_missing_is_measured(resumed):
    stopped = resumed.stop()
    assert stopped.ret == pytest.ExitCode.TESTS_FAILED
    stopped.stdout.fnmatch_lines(["2 finished measurements kept: --quant-resume goes on with them"])
    assert {"int8 perplexity_delta", "int8 memory_budget"} <= set(resumed.done)
    assert len(resumed.kept) == 2
    before = resumed.project.baselines
    resumed.start()

    result = resumed.go("--quant-resume")

    assert result.ret == 0
    result.assert_outcomes(passed=3)
    result.stdout.fnmatch_lines(
        [
            "quantization: going on with 2 finished measurements of the interrupted run of 20*Z",
            "2 finished measurements of an interrupted run reused",
        ]
    )
    assert [line for line in resumed.done if line != "load"] == ["int8 token_agreement"]
    assert not resumed.kept
    assert not list(resumed.path.glob("cache/journal/*/*"))
    assert before.keys() == resumed.project.baselines.keys()
    assert len(resumed.project.entries) == 3


def test_a_gate_that_is_known_loads_no_model_and_says_the_same(project):
    broken = GATES.replace("token_agreement(min=0.01)", "kl_divergence(max=1e-12)").replace(
        "def test_stop", "def _stop"
    )
    resumed = Resumed(project, broken)
    stopped = resumed.stop()
    assert stopped.ret == pytest.ExitCode.TESTS_FAILED
    stopped.stdout.fnmatch_lines(["3 finished measurements kept: --quant-resume goes on with them"])

    result, record = project.record("--quant-baseline", "--quant-cache-dir=cache", "--quant-resume", "-x")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert resumed.done.count("load") == 2, "those of the first run: the format and its reference"
    assert failure(result) == failure(stopped)
    (explained,) = [each for each in record["measurements"] if "explanation" in each]
    assert explained["explanation"]["layers"]
    result.stdout.fnmatch_lines(["3 finished measurements of an interrupted run reused", KEPT])
    assert len(resumed.kept) == 3


def failure(result: pytest.RunResult) -> str:
    """The broken gate's own words."""
    text = result.stdout.str()
    found = re.search(r"_ test_after.*?_\n(.*?)\n[=-]+ ", text, re.DOTALL)
    assert found is not None, text
    return found[1]


def test_an_explanation_that_was_not_finished_is_made_anew(project, monkeypatch):
    from pytest_quant.journal.encoding import Kept, decode, encode

    broken = GATES.replace("token_agreement(min=0.01)", "kl_divergence(max=1e-12)").replace(
        "def test_stop", "def _stop"
    )
    resumed = Resumed(project, broken)
    stopped = resumed.stop()
    for path in resumed.kept:
        path.write_bytes(encode(path.stem, Kept(decode(path.read_bytes(), path.stem).measurement)))

    result = resumed.go("--quant-resume", "-x")

    assert failure(result) == failure(stopped)
    result.stdout.fnmatch_lines(["3 finished measurements of an interrupted run reused"])
    assert [line for line in resumed.done if line != "load"] == ["int8 kl_divergence"]


EXITS = """
def test_stop():
    import pathlib
    if pathlib.Path("stop").exists():
        import pytest
        pytest.exit("enough", returncode=0)
"""


@pytest.mark.parametrize("missing", ["record", "fail"])
def test_an_end_before_the_last_test_is_no_end_whatever_its_status(project, missing):
    before, _, after = GATES.partition("def test_stop")
    resumed = Resumed(project, before + EXITS + after.partition("exists()\n")[2])
    resumed.start()
    assert resumed.go().ret == 0, "a baseline that nothing is missing in"
    (resumed.path / "stop").write_text("")

    stopped = resumed.go(f"--quant-missing={missing}")

    assert stopped.ret == (pytest.ExitCode.OK if missing == "record" else pytest.ExitCode.TESTS_FAILED)
    said = "1 test never ran: test_quant.py::test_after[[]int8[]]"
    stopped.stdout.fnmatch_lines([said if missing == "record" else f"ERROR: {said}"])
    stopped.stdout.fnmatch_lines(["2 finished measurements kept: --quant-resume goes on with them"])
    resumed.start()
    result = resumed.go("--quant-resume")
    result.stdout.fnmatch_lines(["2 finished measurements of an interrupted run reused"])
    result.stdout.no_fnmatch_line("*never ran*")
    assert not list(resumed.path.glob("cache/journal/*/*"))


def test_x_is_said_by_pytest(resumed):
    resumed.stop().stdout.no_fnmatch_line("*never ran*")


def test_without_the_option_everything_is_measured_and_the_option_is_named(resumed):
    resumed.stop()
    resumed.start()
    result = resumed.go()
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "quantization: the interrupted run of 20*Z left 2 finished measurements behind: --quant-resume goes on with"
            " them"
        ]
    )
    result.stdout.no_fnmatch_line("*reused*")
    assert len([line for line in resumed.done if line != "load"]) == 3
    assert not list(resumed.path.glob("cache/journal/*/*"))


def test_a_run_of_other_tests_leaves_them(resumed):
    resumed.stop()
    resumed.start()
    assert resumed.go("-k", "test_after").ret == 0
    assert len(resumed.kept) == 2
    result = resumed.go("--quant-resume")
    result.stdout.fnmatch_lines(["2 finished measurements of an interrupted run reused"])


def test_another_limit_in_the_marker_is_another_question(resumed):
    resumed.stop()
    resumed.start()
    resumed.project.test(GATES.replace("max_ratio=3.0", "max_ratio=2.9"))
    result = resumed.go("--quant-resume")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["1 finished measurement of an interrupted run reused"])
    assert "int8 perplexity_delta" in resumed.done
    assert "int8 memory_budget" not in resumed.done


def test_a_baseline_that_asks_for_more_has_it_measured_anew(resumed):
    (resumed.path / "corpus.txt").write_text(SENTENCE * 120)
    resumed.start()
    assert resumed.go().ret == 0
    recorded = resumed.project.baselines
    (resumed.path / "stop").write_text("")
    resumed.stop()
    shutil.rmtree(resumed.path / "quant-baselines")
    resumed.start()

    result = resumed.go("--quant-resume")

    assert result.ret == 0
    result.stdout.fnmatch_lines(["1 finished measurement of an interrupted run reused"])
    assert "int8 perplexity_delta" in resumed.done, "the first few windows were enough for the old baseline alone"
    values = {entry["metric"]: entry["value"] for entry in resumed.project.entries}
    assert recorded.keys() == resumed.project.baselines.keys()
    assert len(values) == 3


@pytest.mark.parametrize("what", ["cut", "empty", "changed"])
def test_a_damaged_file_is_said_and_measured_anew(resumed, what):
    resumed.stop()
    for path in resumed.kept:
        content = path.read_bytes()
        path.write_bytes({"cut": content[:-40], "empty": b"", "changed": content.replace(b"int8", b"bf16")}[what])
    resumed.start()
    result = resumed.go("--quant-resume")
    assert result.ret == 0
    assert len([line for line in resumed.done if line != "load"]) == 3
    result.stdout.fnmatch_lines(["*.json is not used, and measured anew: it*"])
    result.stdout.no_fnmatch_line("*reused*")


def test_of_another_commit_nothing_is_reused(resumed, monkeypatch):
    monkeypatch.setenv("GITHUB_SHA", "a" * 40)
    resumed.stop()
    resumed.start()
    monkeypatch.setenv("GITHUB_SHA", "b" * 40)
    result = resumed.go("--quant-resume")
    assert result.ret == 0
    result.stdout.fnmatch_lines(
        [
            "quantization: the run of 20*Z was interrupted, and nothing of it is reused: commit aaaaaaaaaaaa -> "
            "bbbbbbbbbbbb"
        ]
    )
    assert len([line for line in resumed.done if line != "load"]) == 3


def test_a_body_that_changes_the_model_has_no_measurement_though_one_is_known(resumed):
    resumed.stop()
    resumed.start()
    changes = """def test_gates(quant_model):
    import torch
    with torch.no_grad():
        quant_model.model.model.norm.weight.mul_(2)
"""
    resumed.project.test(GATES.replace("def test_gates(): ...", changes))
    result = resumed.go("--quant-resume")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["int8 *perplexity*not-measured"])
    result.stdout.no_fnmatch_line("*reused*")


def test_what_a_body_measures_is_kept_too(project):
    resumed = Resumed(project)
    project.test(
        """
        import pathlib

        def test_body(quant_measure):
            assert quant_measure.memory_budget("int8") < 1e9

        def test_stop():
            assert not pathlib.Path("stop").exists()
        """
    )
    resumed.stop()
    assert len(resumed.kept) == 1
    resumed.start()
    result = resumed.go("--quant-resume")
    assert result.ret == 0
    assert resumed.done == []
    result.stdout.fnmatch_lines(["1 finished measurement of an interrupted run reused"])


def test_a_speed_is_kept_as_it_was_measured(project):
    resumed = Resumed(
        project,
        """
        import pathlib

        import pytest

        @pytest.mark.quant(formats=["bf16"])
        @pytest.mark.throughput_ratio(min=1e-6, prompt_tokens=8, new_tokens=4)
        def test_speed(): ...

        def test_stop():
            assert not pathlib.Path("stop").exists()
        """,
    )
    resumed.stop("--quant-json=run.json")
    before = (resumed.path / "run.json").read_text()
    resumed.start()
    result, record = project.record("--quant-baseline", "--quant-cache-dir=cache", "--quant-resume")
    assert result.ret == 0
    result.stdout.fnmatch_lines(["1 finished measurement of an interrupted run reused"])
    (then,), (now,) = json.loads(before)["measurements"], record["measurements"]
    for name in ("value", "low", "high", "rounds", "proof", "identity", "tokens_per_second"):
        assert then.get(name) == now.get(name)


def test_a_cache_that_cannot_be_written_is_said_once_and_harms_nothing(resumed):
    resumed.start()
    (resumed.path / "cache").mkdir()
    (resumed.path / "cache" / "journal").write_text("in the way")
    result = resumed.go()
    assert result.ret == 0
    result.assert_outcomes(passed=3)
    assert result.stdout.str().count("finished measurements are not kept for --quant-resume") == 1
    assert len(resumed.project.entries) == 3


def test_what_could_not_be_recorded_is_kept(resumed, monkeypatch):
    from pytest_quant.baseline import store

    def refuse(target, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    resumed.start()
    with monkeypatch.context() as full:
        full.setattr(store, "_replace", refuse)
        result = resumed.go()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines([KEPT, "ERROR: *cannot be written: No space left on device*"])
    again = resumed.go("--quant-resume")
    assert again.ret == 0
    assert resumed.done == []
    assert len(resumed.project.entries) == 3


def test_temporary_files_of_killed_writers_go_and_those_of_living_ones_stay(resumed):
    from pytest_quant import locks

    resumed.start()
    assert resumed.go().ret == 0
    beside = resumed.project.baseline_path.parent
    dead, alive = beside / f".baseline-{'0' * 16}.tmp", beside / f".baseline-{'1' * 16}.tmp"
    dead.write_text("half")
    other = beside / ".baseline-mine.tmp"
    other.write_text("somebody's own")
    resumed.project.change_baseline(lambda data: data["measurements"][0].update(value=1.0))
    with alive.open("xb") as stream:
        assert locks.acquire(stream.fileno())
        resumed.go("--quant-baseline-update=all")
        assert (dead.exists(), alive.exists(), other.exists()) == (False, True, True)


@pytest.fixture(scope="module")
def server():
    started = killing.Server(Path(__file__).parents[2])
    yield started
    started.close()


STOPS = """
import os, pathlib, signal

def test_stop():
    if pathlib.Path("stop").exists():
        pathlib.Path("stop").unlink()
        os.kill(os.getpid(), signal.{signal})
"""


AGAIN = """
@pytest.mark.quant(formats=["int8"])
@pytest.mark.memory_budget(max_gb=1)
def test_dies():
    import os, pathlib, signal
    pathlib.Path("dies").unlink()
    os.kill(os.getpid(), signal.SIGKILL)
"""
LAST = """
@pytest.mark.quant(formats=["int8"])
@pytest.mark.memory_budget(max_gb=1)
def test_again(): ...
"""
AGAIN += LAST


def test_after_ctrl_c_it_goes_on(server, tiny_llama, tmp_path):
    folder = killing.project(tmp_path / "project", tiny_llama)
    (folder / "test_stop.py").write_text(STOPS.format(signal="SIGINT"))
    (folder / "stop").write_text("")
    status, output = server.run(folder)
    assert status == pytest.ExitCode.INTERRUPTED, output
    kept = killing.finished(folder)
    assert f"{len(kept)} finished measurements kept: --quant-resume goes on with them" in output
    status, output = server.run(folder, "--quant-resume")
    assert status == pytest.ExitCode.TESTS_FAILED, output
    assert f"{len(kept)} finished measurements of an interrupted run reused" in output


def test_where_no_worker_is_left_what_was_not_run_is_said_and_what_was_is_kept(server, tiny_llama, tmp_path):
    pytest.importorskip("xdist")
    folder = killing.project(tmp_path / "project", tiny_llama)
    (folder / "test_quality.py").write_text(GATES.replace("def test_stop", "def test_passes") + AGAIN)
    (folder / "dies").write_text("")
    status, output = server.run(folder, "-n1", "--max-worker-restart=0")
    assert status == pytest.ExitCode.TESTS_FAILED, output
    assert "1 test never ran: test_quality.py::test_again[int8]" in output
    assert KEPT in output
    (folder / "test_quality.py").write_text(GATES.replace("def test_stop", "def test_passes") + LAST)
    status, output = server.run(folder, "-n1", "--max-worker-restart=0", "--quant-resume")
    assert status == pytest.ExitCode.OK, output
    assert "never ran" not in output
    assert not list(folder.glob("cache/journal/*/*"))


def test_a_worker_that_takes_the_place_of_a_killed_one_measures_nothing_again(server, tiny_llama, tmp_path):
    pytest.importorskip("xdist")
    folder = killing.project(tmp_path / "project", tiny_llama)
    (folder / "conftest.py").write_text(COUNTED)
    (folder / "test_quality.py").write_text(GATES.replace("def test_stop", "def test_passes") + AGAIN)
    (folder / "dies").write_text("")
    status, output = server.run(folder, "-n1")
    assert status == pytest.ExitCode.TESTS_FAILED, output
    assert "crashed while running 'test_quality.py::test_dies[int8]'" in output
    measured = [line for line in (folder / "done.txt").read_text().splitlines() if line != "load"]
    assert sorted(measured) == ["int8 memory_budget", "int8 perplexity_delta", "int8 token_agreement"]
    assert "reused" not in output
    assert not list(folder.glob("cache/journal/*/*"))


def test_workers_of_a_resumed_run_share_what_is_there(server, tiny_llama, tmp_path):
    pytest.importorskip("xdist")
    folder = killing.project(tmp_path / "project", tiny_llama)
    (folder / "test_stop.py").write_text(STOPS.format(signal="SIGINT"))
    (folder / "stop").write_text("")
    server.run(folder)
    kept = killing.finished(folder)
    (folder / "conftest.py").write_text(COUNTED)
    status, output = server.run(folder, "--quant-resume", "-n2")
    assert status == pytest.ExitCode.TESTS_FAILED, output
    assert f"{len(kept)} finished measurements of an interrupted run reused" in output
    done = set((folder / "done.txt").read_text().splitlines())
    assert done <= {"load"}, "models that fixtures give are loaded, and nothing is measured"
    assert not list(folder.glob("cache/journal/*/*"))


def test_a_run_that_is_alive_is_not_gone_on_with(server, tiny_llama, tmp_path):
    """Within a test of a run, another run of the same rootdir begins and ends."""
    folder = killing.project(tmp_path / "project", tiny_llama)
    (folder / "test_stop.py").write_text(
        "import os, sys, subprocess\n\n"
        "def test_other_run():\n"
        "    if 'OTHER' in os.environ: return\n"
        "    command = [sys.executable, '-m', 'pytest', '--quant-resume', '-p', 'no:cacheprovider',\n"
        "               '--quant-cache-dir=cache', '--quant-baseline', '--quant-baseline-path=others']\n"
        "    done = subprocess.run(command, env={**os.environ, 'OTHER': '1'}, capture_output=True, text=True)\n"
        "    assert done.returncode == 1, done.stdout\n"
        "    assert 'reused' not in done.stdout\n"
        "    assert 'going on' not in done.stdout\n"
    )
    status, output = server.run(folder)
    assert status == pytest.ExitCode.TESTS_FAILED, output
    assert "1 failed" in output, output
    others = {path.name: path.read_bytes() for path in (folder / "others").rglob("*.json")}
    assert others == {Path(name).name: content for name, content in killing.baselines(folder).items()}


@pytest.mark.parametrize("arguments, count", [((), 8), (("-n", "2"), 1)], ids=["alone", "workers"])
def test_kill_anywhere(server, tiny_llama, tmp_path, arguments, count):
    """``benchmarks/kill_anywhere.py`` kills more."""
    if arguments:
        pytest.importorskip("xdist")
    found = list(killing.kill_anywhere(server, tmp_path, tiny_llama, count, seed=20 + count, arguments=arguments))
    assert len(found) == count
    for killed in found:
        assert killed.same, killed
        assert killed.leftovers == 0, killed
        assert killed.reused == killed.kept, killed
    assert arguments or any(killed.kept for killed in found), "else nothing was shown"


def test_a_killed_speed_is_the_one_that_is_recorded(server, tiny_llama, tmp_path):
    folder = killing.project(tmp_path / "project", tiny_llama, speed=True)
    (folder / "test_quality.py").unlink()
    (folder / "test_stop.py").write_text(STOPS.format(signal="SIGKILL"))
    (folder / "stop").write_text("")
    status, output = server.run(folder, "test_speed.py", "test_stop.py")
    assert status == -signal.SIGKILL, output
    killing.check_whole(folder)
    (value,) = killing.finished(folder).values()
    status, output = server.run(folder, "test_speed.py", "test_stop.py", "--quant-resume")
    assert status == 0, output
    (content,) = killing.baselines(folder).values()
    assert f'"value": {value!r}'.encode() in content
