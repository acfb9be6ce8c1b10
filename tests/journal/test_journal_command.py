"""What counts as the same command: only then is an interrupted run as a whole of no more use."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from pytest_quant.run import JOURNAL, Run

USUAL = {"folder": "/home/a", "environment": "", "ini": ["-q"], "arguments": ["tests", "-k", "one"]}


@pytest.fixture
def command(monkeypatch):
    """What a run that differs by ``changes`` from the usual one tells its workers."""

    def told(**changes):
        given = {**USUAL, **changes}
        monkeypatch.setenv("PYTEST_ADDOPTS", given["environment"])
        config = SimpleNamespace(
            invocation_params=SimpleNamespace(dir=given["folder"], args=given["arguments"]),
            getini={"addopts": given["ini"]}.__getitem__,
        )
        return Run(config).told_to_workers()["command"]

    return told


@pytest.mark.parametrize(
    "changes",
    [{"folder": "/home/b"}, {"environment": "-k 'two or three'"}, {"ini": []}, {"arguments": ["tests"]}],
    ids=lambda changes: next(iter(changes)),
)
def test_where_and_with_which_arguments(command, changes):
    assert command(**changes) != command()


@pytest.mark.parametrize("where", ["environment", "ini", "arguments"])
def test_to_go_on_is_the_same_command(command, where):
    more = {"environment": "--quant-resume", "ini": ["-q", "--quant-resume"]}
    more["arguments"] = ["tests", "--quant-resume", "-k", "one"]
    assert command(**{where: more[where]}) == command()


def test_a_worker_has_the_command_of_the_process_that_started_it(tmp_path):
    run = Run(SimpleNamespace(workerinput={JOURNAL: {"run": "r", "resumed": [], "command": ["/home/a", "tests"]}}))
    run.__dict__["options"] = SimpleNamespace(cache_dir=tmp_path, rootpath=tmp_path, resume=True)
    assert run.keeper.journal._arguments == ["/home/a", "tests"]
