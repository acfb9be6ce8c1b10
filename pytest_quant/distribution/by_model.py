"""Gives tests to workers: each model and format to one of them, what is timed at the end and alone.

A worker of pytest-xdist begins a test when it knows the next one, or that there is none. So each is kept two tests
ahead, and the first of those that run alone is already with its worker while others still work: it waits there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Protocol

from pytest_quant.distribution.groups import Plan

AHEAD = 2
"""The test that runs, and the one after it."""


class Node(Protocol):
    """What is asked of xdist's ``WorkerController``."""

    @property
    def shutting_down(self) -> bool: ...

    def send_runtest_some(self, indices: Sequence[int]) -> None: ...

    def shutdown(self) -> None: ...


class ByModel:
    """A scheduler in the sense of ``xdist.scheduler.protocol.Scheduling``, once all workers have collected.

    ``lane`` is a worker's place among all, given anew when another takes the place of a dead one; only those below
    ``lanes`` (None: all) may hold models. What is timed runs on lane 0. ``replaced`` tells of a worker that is gone
    whether another one takes its place. ``settle`` is called when all others have ended, before the first test runs
    alone.
    """

    def __init__(
        self,
        collection: Sequence[str],
        plan: Plan,
        nodes: Iterable[Node],
        *,
        lane: Callable[[Node], int],
        lanes: int | None = None,
        replaced: Callable[[Node], bool] = lambda _: False,
        settle: Callable[[], None] = lambda: None,
        most_at_once: int | None = None,
    ) -> None:
        self.collection = list(collection)
        self._plan, self._lane, self._lanes, self._replaced, self._settle = plan, lane, lanes, replaced, settle
        self._most = len(self.collection) if most_at_once is None else most_at_once
        self._home, self._groups, self._others = deque(plan.home), deque(plan.groups), deque(plan.others)
        self._alone = deque(plan.alone)
        queues = (self._home, self._groups, self._others)
        self._queue_of = {unit: queue for queue in queues for unit in queue}
        self._unit = {place: unit for unit in self._queue_of for place in unit}
        self._pending: dict[Node, list[int]] = {node: [] for node in nodes}
        self._rest: dict[Node, deque[int]] = {}
        """What is left of the group that a worker is in."""
        self._arrived = set(self._pending)
        """Those that have said what they collected."""
        self._ready = set(self._pending)
        """Those of them that collected these tests."""
        self._awaited = 0
        """Workers that are to take the place of dead ones and have not collected."""
        self._held = False
        """Whether a test that is to run alone waits with its worker for the others to end."""

    @property
    def nodes(self) -> list[Node]:
        return list(self._pending)

    @property
    def collection_is_completed(self) -> bool:
        return True

    @property
    def tests_finished(self) -> bool:
        return not self._unsent and not self._held and all(len(of) < AHEAD for of in self._pending.values())

    @property
    def has_pending(self) -> bool:
        return self._unsent or any(self._pending.values())

    def add_node(self, node: Node) -> None:
        self._pending[node] = []

    def add_node_collection(self, node: Node, collection: Sequence[str]) -> None:
        """A worker that takes a dead one's place has collected; one that found other tests can run none of these."""
        self._awaited = max(0, self._awaited - 1)
        self._arrived.add(node)
        if list(collection) == self.collection:
            self._ready.add(node)
        else:
            node.shutdown()

    def schedule(self) -> None:
        nodes = sorted(self._pending, key=self._lane)
        for node in nodes:  # each one thing first, so that none takes two groups where there is one for each
            if not self._pending[node]:
                self._top_up(node, 1)
        for node in nodes:
            if len(self._pending[node]) < AHEAD:
                self._top_up(node)
        self._begin_alone()

    def mark_test_complete(self, node: Node, item_index: int, duration: float = 0) -> None:
        self._pending[node].remove(item_index)
        self._top_up(node)
        self._begin_alone()

    def mark_test_pending(self, item: str) -> None:
        """A test is to run once more, says another plugin."""
        self._put_back([self.collection.index(item)])
        self.schedule()

    def remove_pending_tests_from_node(self, node: Node, indices: Sequence[int]) -> None:
        raise NotImplementedError("no test is ever taken back")

    def remove_node(self, node: Node) -> str | None:
        """A worker has ended or died; the test that it died in, if it did. One that dies before it has collected is
        awaited already: whoever takes its place is awaited instead of it."""
        pending, rest = self._pending.pop(node), self._rest.pop(node, ())
        self._ready.discard(node)
        crashed = pending.pop(0) if pending else None
        awaited_itself = node not in self._arrived
        self._arrived.discard(node)
        if self._replaced(node):
            self._awaited += not awaited_itself
        elif awaited_itself:
            self._awaited = max(0, self._awaited - 1)
        back = [*pending, *rest]
        if self._held and (crashed in self._plan.alone or set(back) & set(self._plan.alone)):
            self._held = False
        self._put_back(back)
        self.schedule()
        return None if crashed is None else self.collection[crashed]

    @property
    def _unsent(self) -> bool:
        return bool(self._home or self._groups or self._others or self._alone or any(self._rest.values()))

    def _is_home(self, node: Node) -> bool:
        return self._lane(node) == 0

    def _top_up(self, node: Node, ahead: int = AHEAD) -> None:
        """Send a worker what it needs in order to go on; where there is nothing for it, have it end."""
        if node.shutting_down or node not in self._ready or (self._held and self._is_home(node)):
            return
        pending = self._pending[node]
        while len(pending) < ahead:
            if pending and not self._rest.get(node) and self._others and self._has_models(node):
                # what comes next must be known: another test, so that whoever is free first takes the next group
                self._send(node, list(self._others.popleft()))
            elif (place := self._next_of_models(node)) is not None:
                self._send(node, [place])
            else:
                break
        if len(pending) >= ahead == 1:
            return
        if not self._has_models(node):
            self._fill(node)
        if len(pending) >= AHEAD:
            return
        if self._is_home(node) and self._alone:
            self._held = True
            self._send(node, [self._alone.popleft()])
        elif not self._has_models(node):
            node.shutdown()

    def _queues(self, node: Node) -> list[deque[tuple[int, ...]]]:
        """Where a worker takes models from."""
        if self._lanes is not None and self._lane(node) >= self._lanes:
            return []
        return [self._home, self._groups] if self._is_home(node) else [self._groups]

    def _has_models(self, node: Node) -> bool:
        return bool(self._rest.get(node)) or any(self._queues(node))

    def _next_of_models(self, node: Node) -> int | None:
        """The next test of the worker's group, or the first of another one."""
        if not self._rest.get(node):
            queue = next(filter(None, self._queues(node)), None)
            if queue is None:
                return None
            self._rest[node] = deque(queue.popleft())
        return self._rest[node].popleft()

    def _fill(self, node: Node) -> None:
        """Other tests, in the portions of xdist's own ``LoadScheduling``."""
        pending, share = self._pending[node], sum(map(len, self._others)) // len(self._pending)
        if len(pending) >= max(AHEAD, share // 4):
            return
        wanted = max(AHEAD, min(max(AHEAD, share // 2), len(pending) + self._most))
        places: list[int] = []
        while self._others and len(pending) + len(places) < wanted:
            places += self._others.popleft()
        self._send(node, places)

    def _send(self, node: Node, places: list[int]) -> None:
        if places:
            self._pending[node] += places
            node.send_runtest_some(places)

    def _begin_alone(self) -> None:
        """Let the timed tests run, where all other work is done and its workers have ended."""
        if not self._held or len(self._pending) != 1 or self._awaited:
            return
        (node,) = self._pending
        if not self._is_home(node) or node.shutting_down:
            return
        self._settle()
        self._held = False
        rest, self._alone = list(self._alone), deque()
        self._send(node, rest)
        node.shutdown()

    def _put_back(self, places: Collection[int]) -> None:
        """To the front of their queues, in their order and with their own."""
        lonely = [place for place in self._plan.alone if place in places]
        self._alone.extendleft(reversed(lonely))
        units: dict[tuple[int, ...], list[int]] = {}
        for place in places:
            if place in self._unit:
                units.setdefault(self._unit[place], []).append(place)
        for unit, left in reversed(units.items()):
            self._queue_of[unit].appendleft(tuple(left))
