"""Workers that die at any moment, while they collect among them: whatever happens, the run comes to its end."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from pytest_quant.distribution.by_model import ByModel
from pytest_quant.distribution.groups import Asked, plan


class Worker:
    def __init__(self) -> None:
        self.queue: list[int] = []
        self.shutting_down = False
        self.is_known = False
        """Whether xdist has told the scheduler of it."""
        self.has_collected = False
        self.running: int | None = None

    def send_runtest_some(self, indices) -> None:
        assert not self.shutting_down, "nothing is sent to a worker that was told to end"
        self.queue += indices

    def shutdown(self) -> None:
        self.shutting_down = True

    def can(self) -> list[str]:
        """What may happen to it next, in the words of the methods below."""
        if not self.is_known:
            return ["start", "die"]
        if not self.has_collected:
            return ["collect", "die"]
        if self.running is not None:
            return ["complete", "die"]
        if self.queue and (len(self.queue) > 1 or self.shutting_down):
            return ["begin"]
        return ["end"] if self.shutting_down and not self.queue else []


class Simulation:
    """A session of xdist (``DSession``): its events in any order, each worker's in its own."""

    def __init__(self, seed: int) -> None:
        self.random = chance = random.Random(seed)
        self.tests = [f"t{number}" for number in range(chance.randint(1, 14))]
        told = {
            test: Asked(tuple(chance.sample("abcd", chance.choice([1, 1, 2]))), chance.random() < 0.3)
            for test in self.tests
            if chance.random() < 0.6
        }
        self.plan = plan(self.tests, told)
        self.restarts = chance.choice([0, 1, 8, 8])
        self.deaths = chance.choice([1, 2, 3, 4])
        self.lost = 0
        self.is_cut_short = False
        self.lanes: dict[Worker, int] = {}
        self.replaced: set[Worker] = set()
        self.live = [self.fresh() for _ in range(chance.randint(1, 4))]
        for worker in self.live:
            worker.is_known = worker.has_collected = True
        self.ran: Counter[int] = Counter()
        self.crashed: set[int] = set()
        self.is_ending = False
        self.scheduler = ByModel(
            self.tests,
            self.plan,
            self.live,
            lane=lambda worker: self.lanes.get(worker, len(self.lanes)),
            lanes=chance.choice([None, 1, 2]),
            replaced=self.replaced.__contains__,
            most_at_once=chance.choice([None, 0, 2]),
        )
        self.scheduler.schedule()

    def fresh(self) -> Worker:
        worker = Worker()
        self.lanes[worker] = next(lane for lane in range(99) if lane not in self.lanes.values())
        return worker

    def run(self) -> None:
        for _ in range(2000):
            self.end_if_finished()
            if not self.live:
                return
            able = [
                (worker, act) for worker in self.live for act in worker.can() if act != "die" or self.lost < self.deaths
            ]
            assert able, f"nobody can go on: {[vars(worker) for worker in self.live]}"
            worker, act = self.random.choice(able)
            getattr(self, act)(worker)
        raise AssertionError("it never ends")

    def end_if_finished(self) -> None:
        if self.scheduler.tests_finished and not self.is_ending:
            self.end_all()

    def end_all(self) -> None:
        self.is_ending = True
        for worker in self.scheduler.nodes:
            worker.shutdown()

    def start(self, worker: Worker) -> None:
        worker.is_known = True
        if self.is_ending:
            worker.shutdown()
        else:
            self.scheduler.add_node(worker)

    def collect(self, worker: Worker) -> None:
        worker.has_collected = True
        if not self.is_ending:
            self.scheduler.add_node_collection(worker, self.tests)
            self.scheduler.schedule()

    def begin(self, worker: Worker) -> None:
        worker.running = worker.queue[0]
        if worker.running in self.plan.alone and not self.is_cut_short:
            others = [each for each in self.live if each is not worker]
            assert not any(each.running is not None for each in others), "what is timed runs alone"

    def complete(self, worker: Worker) -> None:
        assert worker.running is not None
        place, worker.running = worker.running, None
        worker.queue.remove(place)
        self.ran[place] += 1
        self.scheduler.mark_test_complete(worker, place)

    def die(self, worker: Worker) -> None:
        self.lost += 1
        del self.lanes[worker]
        self.live.remove(worker)
        if self.lost <= self.restarts:
            self.replaced.add(worker)
        if worker in self.scheduler.nodes:
            lost = self.scheduler.remove_node(worker)
            self.crashed |= {self.tests.index(lost)} if lost is not None else set()
        if self.lost <= self.restarts:
            self.is_ending = False
            self.live.append(self.fresh())
        else:
            self.is_cut_short = True
            if not self.is_ending:
                self.end_all()

    def end(self, worker: Worker) -> None:
        del self.lanes[worker]
        self.live.remove(worker)
        if worker in self.scheduler.nodes:
            assert self.scheduler.remove_node(worker) is None


@pytest.mark.parametrize("part", range(4))
def test_whoever_dies_each_other_test_runs_once_and_the_run_ends(part):
    for seed in range(part * 200, part * 200 + 200):
        run = Simulation(seed)
        run.run()
        assert set(run.ran.values()) <= {1}, seed
        if not run.is_cut_short:  # else the rest is left undone, as xdist has it
            assert run.ran.keys() | run.crashed == set(range(len(run.tests))), seed


def test_a_replacement_that_dies_while_it_collects_is_awaited_once():
    """Of the timed test's worker and another one, which dies, then the one that takes its place, then all is well."""
    tests = ["n", "i", "p", "s"]
    told = {"n": Asked(("nf4",)), "i": Asked(("int8",)), "s": Asked(("nf4",), alone=True)}
    home, other, third, fourth = (Worker() for _ in range(4))
    lanes, gone = {home: 0, other: 1, third: 1, fourth: 1}, set()
    scheduler = ByModel(tests, plan(tests, told), [home, other], lane=lanes.__getitem__, replaced=gone.__contains__)
    scheduler.schedule()
    while home.queue[:1] != [3]:
        scheduler.mark_test_complete(home, home.queue.pop(0))
    for lost in (other, third):
        gone.add(lost)
        if lost is third:
            scheduler.add_node(third)
        scheduler.remove_node(lost)
        assert not home.shutting_down, "another worker is about to start"
    scheduler.add_node(fourth)
    scheduler.add_node_collection(fourth, tests)
    scheduler.schedule()
    while fourth.queue:
        scheduler.mark_test_complete(fourth, fourth.queue.pop(0))
    assert fourth.shutting_down
    scheduler.remove_node(fourth)
    assert home.shutting_down, "it was sent the last, and may begin"
    assert home.queue == [3]
