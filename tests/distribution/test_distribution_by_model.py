"""The scheduler, with workers that behave as xdist's do: one runs a test when it knows the next, or that none comes."""

from __future__ import annotations

import random

import pytest

from pytest_quant.distribution.by_model import ByModel
from pytest_quant.distribution.groups import Asked, plan

NF4, INT8 = Asked(("nf4",)), Asked(("int8",))
SPEED = Asked(("nf4",), alone=True)


class Worker:
    def __init__(self, lane: int) -> None:
        self.lane = lane
        self.queue: list[int] = []
        self.shutting_down = False
        self.ran: list[int] = []

    def send_runtest_some(self, indices) -> None:
        assert not self.shutting_down, "nothing is sent to a worker that was told to end"
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    @property
    def can_run(self) -> bool:
        return len(self.queue) > 1 or (self.shutting_down and bool(self.queue))

    @property
    def is_over(self) -> bool:
        return self.shutting_down and not self.queue


class Run:
    """A session of xdist: events in any order, each worker's in its own."""

    def __init__(self, tests, told, count: int = 2, lanes: int | None = None, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.tests = list(tests)
        self.workers = [Worker(lane) for lane in range(count)]
        self.all = list(self.workers)
        self.dead: set[Worker] = set()
        self.log: list[tuple[str, Worker]] = []
        self.begun_with: list[int] = []
        self.ended_before_alone: list[int] = []
        self.plan = plan(self.tests, told)
        self.scheduler = ByModel(
            self.tests,
            self.plan,
            self.workers,
            lane=lambda worker: worker.lane,
            lanes=lanes,
            replaced=self.dead.__contains__,
            settle=lambda: self.ended_before_alone.append(len(self.workers)),
        )
        self.scheduler.schedule()

    def step(self, worker: Worker | None = None) -> bool:
        """One event; False where nothing can happen any more."""
        if self.scheduler.tests_finished:
            for each in self.workers:
                each.shutdown()
        able = [each for each in self.workers if each.can_run or each.is_over]
        if worker is not None:
            able = [each for each in able if each is worker]
        if not able:
            return False
        chosen = self.random.choice(able)
        if chosen.is_over:
            self.workers.remove(chosen)
            assert self.scheduler.remove_node(chosen) is None
            return True
        place = chosen.queue.pop(0)
        if place in self.plan.alone:
            self.begun_with.append(len(self.workers))
        chosen.ran.append(place)
        self.log.append((self.tests[place], chosen))
        self.scheduler.mark_test_complete(chosen, place)
        return True

    def kill(self, worker: Worker) -> str | None:
        """It dies in the test that it runs, or while it waits; another takes its place."""
        running = worker.can_run
        self.workers.remove(worker)
        self.dead.add(worker)
        lost = self.scheduler.remove_node(worker)
        assert not running or lost == self.tests[worker.queue[0]]
        self.add(worker.lane)
        return lost

    def add(self, lane: int) -> Worker:
        fresh = Worker(lane)
        self.workers.append(fresh)
        self.all.append(fresh)
        self.scheduler.add_node(fresh)
        self.scheduler.add_node_collection(fresh, self.tests)
        self.scheduler.schedule()
        return fresh

    def finish(self) -> Run:
        while self.step():
            pass
        assert not self.workers, "every worker was told to end"
        assert not self.scheduler.has_pending
        return self

    def of(self, test: str) -> Worker:
        (worker,) = (worker for name, worker in self.log if name == test)
        return worker


MIXED = {"n1": NF4, "n2": NF4, "i1": INT8, "i2": INT8, "s1": SPEED, "s2": SPEED}
TESTS = ["p1", "n1", "s1", "p2", "i1", "n2", "p3", "s2", "i2", *(f"q{n}" for n in range(9))]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(20))
def test_each_test_runs_once_a_group_on_one_worker_and_speed_alone_at_the_end(count, seed):
    run = Run(TESTS, MIXED, count, seed=seed).finish()
    assert sorted(name for name, _ in run.log) == sorted(TESTS)
    assert run.of("n1") is run.of("n2")
    assert run.of("i1") is run.of("i2")
    names = [name for name, _ in run.log]
    assert names[-2:] == ["s1", "s2"]
    assert names.index("n1") < names.index("n2")
    assert run.begun_with == [1, 1]
    assert run.ended_before_alone == [1]
    assert run.of("s1").lane == 0


def test_two_formats_use_two_workers():
    run = Run(TESTS, MIXED, 2).finish()
    assert run.of("n1") is not run.of("i1")


def test_with_a_test_a_format_each_worker_takes_one_and_whoever_is_free_the_next():
    told = {"n": NF4, "i": INT8, "f": Asked(("fp8",)), "g": Asked(("fp4",))}
    run = Run(["n", "i", "f", "g", "p", "q"], told, 2)
    slow, fast = run.workers
    while run.step(fast):
        pass
    assert [run.tests[place] for place in fast.ran] == ["i", "q", "f", "g"], "all but what the other began with"
    run.finish()
    assert [run.tests[place] for place in slow.ran] == ["n", "p"]


def test_only_as_many_workers_as_devices_hold_models():
    for seed in range(10):
        run = Run(TESTS, {**MIXED, "p3": Asked(("fp8",))}, 4, lanes=2, seed=seed).finish()
        assert {run.of(name).lane for name in ("n1", "i1", "p3")} <= {0, 1}
        assert {worker.lane for _, worker in run.log} == {0, 1, 2, 3}, "the others run what needs none"
    run = Run(TESTS, MIXED, 3, lanes=1).finish()
    assert {run.of(name).lane for name in MIXED} == {0}


def test_more_workers_than_work():
    run = Run(["n1", "s1"], {"n1": NF4, "s1": SPEED}, 5).finish()
    assert [name for name, _ in run.log] == ["n1", "s1"]
    assert run.begun_with == [1]


def test_what_is_timed_only_waits_for_the_others_to_end():
    run = Run(["s1"], {"s1": SPEED}, 3)
    assert not run.scheduler.tests_finished
    assert not run.workers[0].can_run
    run.finish()
    assert run.begun_with == [1]


def test_a_timed_test_runs_where_its_format_was_scored():
    told = {"i1": INT8, "n1": NF4, "b": Asked(("nf4",), alone=True, shares=True)}
    for seed in range(10):
        run = Run(["i1", "n1", "b"], told, 2, seed=seed).finish()
        assert run.of("n1") is run.of("b")
        assert run.of("i1") is not run.of("b")


@pytest.mark.parametrize("seed", range(60))
def test_a_worker_that_dies_anywhere_costs_only_the_test_that_it_ran(seed):
    chance = random.Random(seed)
    run = Run(TESTS, MIXED, chance.choice([1, 2, 3]), seed=seed)
    lost = []
    for _ in range(chance.choice([1, 2, 3])):
        for _ in range(chance.randrange(12)):
            run.step()
        if run.workers:
            victim = chance.choice(run.workers)
            if victim.can_run or not victim.queue:  # one that waits with a test is taken to have died in it
                lost += [run.kill(victim)]
    run.finish()
    ran = [name for name, _ in run.log]
    assert sorted([*ran, *filter(None, lost)]) == sorted(TESTS)
    assert set(run.begun_with) <= {1}


def test_a_worker_that_dies_alone_is_followed_by_one_that_is_alone():
    run = Run(["n1", "s1", "s2"], {"n1": NF4, "s1": SPEED, "s2": SPEED}, 2)
    while len(run.workers) > 1 or run.workers[0].queue[:1] != [1]:
        assert run.step()
    assert run.kill(run.workers[0]) == "s1"
    run.finish()
    assert [name for name, _ in run.log] == ["n1", "s2"]
    assert run.begun_with == [1]
    assert run.ended_before_alone == [1, 1]


def test_the_timed_tests_wait_for_the_worker_that_takes_a_dead_ones_place():
    run = Run(["i1", "p1", "s1"], {"i1": INT8, "s1": SPEED}, 2)
    one, other = run.workers
    while one.can_run:
        run.step(one)
    assert one.queue == [2]
    run.workers.remove(other)
    run.dead.add(other)
    assert run.scheduler.remove_node(other) == "p1"
    assert run.workers == [one]
    assert not one.can_run, "another worker is about to start"
    run.add(other.lane)
    run.finish()
    assert [name for name, _ in run.log] == ["i1", "s1"]


def test_a_test_that_another_plugin_wants_again_is_run_again():
    run = Run(["n1", "n2", "p1", "p2"], {"n1": NF4, "n2": NF4}, 1)
    run.scheduler.mark_test_pending("n1")
    run.finish()
    assert sorted(name for name, _ in run.log) == ["n1", "n1", "n2", "p1", "p2"]


def test_told_to_end_early_a_worker_is_sent_nothing_more():
    run = Run(TESTS, MIXED, 2)
    for worker in run.workers:
        worker.shutdown()
    while run.step():
        pass
    assert len(run.log) < len(TESTS)


def test_a_worker_that_collected_other_tests_is_sent_home():
    run = Run(["n1"], {"n1": NF4}, 1)
    fresh = Worker(1)
    run.workers.append(fresh)
    run.scheduler.add_node(fresh)
    run.scheduler.add_node_collection(fresh, ["other"])
    run.scheduler.schedule()
    assert fresh.shutting_down
    assert fresh.queue == []


def test_an_end_to_portions_is_respected():
    nodes = [Worker(0), Worker(1)]
    tests = [f"p{n}" for n in range(100)]
    ByModel(tests, plan(tests, {}), nodes, lane=lambda worker: worker.lane, most_at_once=1).schedule()
    assert [len(node.queue) for node in nodes] == [2, 2]
    nodes = [Worker(0), Worker(1)]
    ByModel(tests, plan(tests, {}), nodes, lane=lambda worker: worker.lane).schedule()
    assert len(nodes[0].queue) == 25
