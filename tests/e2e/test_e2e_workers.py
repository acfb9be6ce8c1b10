"""Spread over the workers of pytest-xdist, a run says and records what one process does."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("xdist")

CONFTEST = """
import json, os, pathlib, time

import pytest

HERE = pathlib.Path(__file__).parent


def tell(**event):
    event.update(worker=os.environ.get("PYTEST_XDIST_WORKER", "main"), time=time.monotonic())
    with open(HERE / "events.txt", "a") as stream:
        stream.write(json.dumps(event) + "\\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    tell(what="begin", test=item.name)
    try:
        return (yield)
    finally:
        tell(what="end", test=item.name)


def pytest_collection_finish(session):
    if not session.items:
        return
    from pytest_quant.metrics import pairing

    score = pairing.score_reference

    def counted(model, batch, top_k):
        tell(what="reference", windows=len(batch))
        return score(model, batch, top_k)

    pairing.score_reference = counted
"""

SUITE = """
import time

import pytest


@pytest.mark.parametrize("n", range(6))
def test_plain(n):
    time.sleep(0.05)


@pytest.mark.quant(formats=["int8"])
@pytest.mark.throughput_ratio(min=0.0001, new_tokens=2)
def test_speed(quant_model): ...


@pytest.mark.quant(formats=["int8", "bf16"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_quality(quant_model): ...


@pytest.mark.quant(formats=["int8", "bf16"])
@pytest.mark.token_agreement(min=0.3)
@pytest.mark.memory_budget(max_gb=1)
def test_more(quant_model): ...


@pytest.mark.quant(formats=["bf16"])
@pytest.mark.memory_budget(max_gb=0.0000001)
def test_broken(quant_model): ...
"""


class Workers:
    """Runs a project in processes of their own and reads what it left."""

    def __init__(self, project) -> None:
        self.project, self.path = project, project.path
        project.conftest(CONFTEST)

    def run(self, *arguments: str):
        for name in ("events.txt", "run.json"):
            (self.path / name).unlink(missing_ok=True)
        fixed = ["-p", "no:cacheprovider", "--quant-json=run.json"]
        return self.project.pytester.runpytest_subprocess(*fixed, *arguments)

    @property
    def events(self):
        return [json.loads(line) for line in (self.path / "events.txt").read_text().splitlines()]

    @property
    def ran(self):
        """For each test its worker, its begin and its end."""
        found = {}
        for event in self.events:
            if event["what"] != "reference":
                found.setdefault(event["test"], [event["worker"]]).append(event["time"])
        return found

    @property
    def scored(self):
        """Windows that the reference scored, in all processes."""
        return sum(event["windows"] for event in self.events if event["what"] == "reference")

    @property
    def measurements(self):
        return json.loads((self.path / "run.json").read_text())["measurements"]

    def baselines(self, folder: str):
        """The files as text without what varies: dates, and whatever was timed."""
        found = {}
        for file in sorted((self.path / folder).rglob("*.json")):
            data = json.loads(file.read_text())
            data["measurements"] = [each for each in data["measurements"] if each["metric"] != "throughput_ratio"]
            text = json.dumps(data, indent=1)
            found[file.name] = re.sub(r'"date": "[^"]*"', "", text)
        return found


@pytest.fixture
def workers(project, monkeypatch) -> Workers:
    temporary = project.path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    return Workers(project)


def told(measurements):
    """What each measurement says, but for what was timed and the memory that a whole process has."""
    left_out = {"process_bytes", "process_vram_bytes"}
    return [
        {
            name: value
            for name, value in each.items()
            if name not in left_out and (each["metric"] != "throughput_ratio" or name in ("test", "metric", "verdict"))
        }
        for each in measurements
    ]


def test_the_baseline_has_the_same_bytes(workers, monkeypatch):
    """All of it, where the clock stands still and nothing is timed."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    workers.project.test(SUITE)
    written = []
    for place, how in enumerate((["-p", "no:xdist"], ["-n0"], ["-n2"])):
        result = workers.run(
            "--quant-baseline",
            f"--quant-baseline-path=b{place}",
            f"--quant-cache-dir=c{place}",
            "-k",
            "not speed",
            *how,
        )
        result.assert_outcomes(passed=10, failed=1, deselected=1 if "-n2" not in how else 0)
        written.append({file.name: file.read_bytes() for file in (workers.path / f"b{place}").rglob("*.json")})
    assert len(written[0]) == 1
    assert written[0] == written[1] == written[2]


def test_two_workers_say_and_record_what_one_process_does(workers):
    workers.project.test(SUITE)
    seen = {}
    for place, how in enumerate((["-p", "no:xdist"], ["-n0"], ["-n2"])):
        result = workers.run("--quant-baseline", f"--quant-baseline-path=b{place}", f"--quant-cache-dir=c{place}", *how)
        assert result.ret == pytest.ExitCode.TESTS_FAILED
        result.assert_outcomes(passed=11, failed=1)
        seen[place] = (told(workers.measurements), workers.baselines(f"b{place}"), workers.scored)
    assert seen[0] == seen[1]
    assert seen[2][0] == seen[0][0], "the same verdicts of the same numbers, in the same order"
    assert seen[2][1] == seen[0][1]
    assert any(seen[0][1].values())
    assert seen[2][2] == seen[0][2] > 0, "the reference scores each window once a run"
    assert "beside 1 other pytest worker" not in json.dumps(workers.measurements)
    ran = workers.ran
    assert len(ran) == 12
    for format in ("int8", "bf16"):
        assert len({ran[f"test_{name}[{format}]"][0] for name in ("quality", "more")}) == 1
    assert ran["test_quality[int8]"][0] != ran["test_quality[bf16]"][0]
    _, begin, end = ran.pop("test_speed[int8]")
    assert all(theirs[2] < begin or theirs[1] > end for theirs in ran.values()), "nothing runs beside it"
    assert not list((workers.path / "temporary").iterdir()), "what the workers shared is gone"


DYING = """
import os, signal

import pytest


@pytest.mark.quant(formats=["int8"])
@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_one(quant_model): ...


@pytest.mark.quant(formats=["int8"])
@pytest.mark.memory_budget(max_gb=1)
def test_dies(quant_model):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.quant(formats=["int8"])
@pytest.mark.token_agreement(min=0.3)
def test_two(quant_model): ...


@pytest.mark.quant(formats=["int8"])
@pytest.mark.throughput_ratio(min=0.0001, new_tokens=2)
def test_speed(quant_model):
    os._exit(7)


def test_plain(): ...
"""


def test_of_a_worker_that_dies_only_its_test_is_lost(workers):
    workers.project.test(DYING)
    result = workers.run("--quant-baseline", "-n2")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.assert_outcomes(passed=3, failed=2)
    found = {each["test"].partition("::")[2]: (each["verdict"], each.get("reason")) for each in workers.measurements}
    assert found == {
        "test_one[int8]": ("passed", None),
        "test_dies[int8]": ("not-measured", "the worker died of SIGKILL"),
        "test_two[int8]": ("passed", None),
        "test_speed[int8]": ("not-measured", "the worker died with exit code 7"),
    }
    recorded = {entry["recorded"]["test"].partition("::")[2] for entry in workers.project.entries}
    assert recorded == {"test_one[int8]", "test_two[int8]"}
    result.stdout.fnmatch_lines(["worker 'gw0' crashed while running *test_dies*: the worker died of SIGKILL"])


def test_a_test_that_killed_its_worker_can_be_run_again(workers):
    pytest.importorskip("pytest_rerunfailures")
    workers.project.test(
        """
        import os, pathlib

        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        def test_dies_once(quant_model):
            died = pathlib.Path("died")
            if not died.exists():
                died.touch()
                os._exit(1)
        """
    )
    result = workers.run("-n1", "--reruns=1")
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    assert [each["verdict"] for each in workers.measurements] == ["passed"]


def test_stopping_at_the_first_failure_stops_all_workers(workers):
    workers.project.test(
        """
        import pytest

        def test_fails(): assert False

        @pytest.mark.quant(formats=["int8"])
        @pytest.mark.parametrize("n", range(8))
        def test_body(quant_model, n): ...

        @pytest.mark.throughput_ratio(min=0.0001, new_tokens=2)
        def test_speed(quant_model): ...
        """
    )
    result = workers.run("-x", "-n2")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*stopping after 1 failures*"])
    assert len(workers.ran) < 10


def test_more_workers_than_groups_and_every_test_timed(workers):
    workers.project.test(
        """
        import pytest

        @pytest.mark.throughput_ratio(min=0.0001, new_tokens=2)
        def test_speed(quant_model): ...
        """
    )
    result = workers.run("-n3", "--maxprocesses=2")
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    assert list(workers.ran) == ["test_speed[int8]"]


@pytest.mark.parametrize("mode", ["load", "worksteal", "loadgroup"])
def test_a_suite_without_quantization_tests_is_xdists_own(pytester, mode):
    pytester.makeconftest(
        """
        import json, pathlib

        scheduler = None

        def pytest_xdist_node_collection_finished(node):
            global scheduler
            scheduler = node.config.pluginmanager.getplugin("dsession").sched

        def pytest_sessionfinish(session):
            if scheduler is not None:
                controller = session.config.pluginmanager.getplugin("quant-controller")
                found = [type(scheduler._now).__name__, controller._folder.exists()]
                pathlib.Path("found.json").write_text(json.dumps(found))
        """
    )
    pytester.makepyfile("import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_plain(n): ...")
    result = pytester.runpytest_subprocess("-n2", f"--dist={mode}", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=9)
    names = {"load": "LoadScheduling", "worksteal": "WorkStealingScheduling", "loadgroup": "LoadGroupScheduling"}
    assert json.loads((pytester.path / "found.json").read_text()) == [names[mode], False]
