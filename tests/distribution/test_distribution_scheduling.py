"""What stands in for xdist's scheduler, and what is left alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("xdist")

from xdist.scheduler import LoadScheduling, LoadScopeScheduling

from pytest_quant.distribution.scheduling import Chooser, scheduler


class Node:
    def __init__(self, name: str) -> None:
        self.gateway = SimpleNamespace(id=name)
        self.shutting_down = False
        self.sent: list[int] = []

    def send_runtest_some(self, indices) -> None:
        self.sent += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.fixture
def config(pytestconfig, monkeypatch):
    options = {"tx": ["popen", "popen"], "maxschedchunk": None, "loadscopereorder": True}
    collected = []
    return SimpleNamespace(
        getvalue=options.__getitem__,
        getoption=options.__getitem__,
        option=SimpleNamespace(**options),
        hook=SimpleNamespace(pytest_collectreport=lambda report: collected.append(report.longrepr)),
        collected=collected,
    )


def joined(own, choose, *collections):
    chooser = scheduler(own, choose)
    nodes = [Node(f"gw{place}") for place in range(len(collections))]
    for node in nodes:
        chooser.add_node(node)
    for node, collection in zip(nodes, collections, strict=True):
        chooser.add_node_collection(node, collection)
    assert chooser.collection_is_completed
    chooser.schedule()
    return chooser, nodes


def test_a_scheduler_of_another_mode_or_of_the_suite_stays(config):
    class Own(LoadScheduling):
        pass

    for own in (LoadScopeScheduling(config), Own(config), object()):
        assert scheduler(own, lambda nodes, ids: pytest.fail("not ours")) is own


def test_without_quantization_tests_xdists_own_goes_on(config):
    tests = [f"t{place}" for place in range(8)]
    own = LoadScheduling(config)
    chooser, nodes = joined(own, lambda nodes, ids: None, tests, tests)
    assert isinstance(chooser, Chooser)
    assert [node.sent for node in nodes] == [[0, 1], [2, 3]]
    chooser.mark_test_complete(nodes[0], 0)
    assert own.node2pending[nodes[0]] == nodes[0].sent[1:]
    assert (chooser.nodes, chooser.config, chooser.has_pending) == (nodes, config, True)
    assert chooser.remove_node(nodes[1]) == "t2"


def test_with_some_it_is_asked_once_and_obeyed(config):
    asked = []

    def choose(nodes, ids):
        asked.append((nodes, list(ids)))
        return SimpleNamespace(schedule=lambda: nodes[0].send_runtest_some([1, 0]), nodes=nodes)

    chooser, nodes = joined(LoadScheduling(config), choose, ["a", "b"], ["a", "b"])
    assert asked == [(nodes, ["a", "b"])]
    assert [node.sent for node in nodes] == [[1, 0], []]
    chooser.schedule()
    assert len(asked) == 1
    assert chooser.config is config


def test_workers_that_collected_different_tests_are_told_by_xdist(config):
    _, nodes = joined(LoadScheduling(config), lambda nodes, ids: pytest.fail("asked"), ["a"], ["b"])
    assert [node.sent for node in nodes] == [[], []]
    assert "Different tests were collected" in config.collected[0]
