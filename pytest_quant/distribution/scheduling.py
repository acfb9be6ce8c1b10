"""The scheduler that pytest-xdist is given: its own, until a quantization test was collected. Imported only when xdist
asks for one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from xdist.scheduler import LoadGroupScheduling, LoadScheduling, WorkStealingScheduling

OURS = (LoadScheduling, WorkStealingScheduling, LoadGroupScheduling)
"""Of ``--dist=load``, ``worksteal`` and ``loadgroup``: the modes in which a test may run on any worker, so that it is
ours to say which. In the others (``loadscope``, ``loadfile``, ``each``) the user has said it."""


def scheduler(own: Any, choose: Callable[[Any, Sequence[str]], Any]) -> Any:
    """What stands in for xdist's scheduler; another one, a test suite's own among them, stays as it is."""
    return Chooser(own, choose) if type(own) in OURS else own


class Chooser:
    """xdist's own scheduler until all workers have collected; from there what ``choose`` makes of its workers and
    their collection, or the same again where that is None."""

    def __init__(self, own: Any, choose: Callable[[Any, Sequence[str]], Any]) -> None:
        self._own = self._now = own
        self._choose = choose
        self._collections: dict[Any, list[str]] | None = {}
        """Until it is chosen."""

    def __getattr__(self, name: str) -> Any:
        """What other plugins ask of a scheduler besides, such as ``config``."""
        return getattr(self.__dict__["_own"], name)

    @property
    def nodes(self) -> Any:
        return self._now.nodes

    @property
    def collection_is_completed(self) -> bool:
        return bool(self._now.collection_is_completed)

    @property
    def tests_finished(self) -> bool:
        return bool(self._now.tests_finished)

    @property
    def has_pending(self) -> bool:
        return bool(self._now.has_pending)

    def add_node(self, node: Any) -> None:
        self._now.add_node(node)

    def add_node_collection(self, node: Any, collection: Sequence[str]) -> None:
        if self._collections is not None:
            self._collections[node] = list(collection)
        self._now.add_node_collection(node, collection)

    def mark_test_complete(self, node: Any, item_index: int, duration: float = 0) -> None:
        self._now.mark_test_complete(node, item_index, duration)

    def mark_test_pending(self, item: str) -> None:
        self._now.mark_test_pending(item)

    def remove_pending_tests_from_node(self, node: Any, indices: Sequence[int]) -> None:
        self._now.remove_pending_tests_from_node(node, indices)

    def remove_node(self, node: Any) -> str | None:
        if self._collections is not None:
            self._collections.pop(node, None)
        lost: str | None = self._now.remove_node(node)
        return lost

    def schedule(self) -> None:
        if self._collections is not None:
            found, self._collections = self._collections, None
            first = next(iter(found.values()), [])
            if first and all(each == first for each in found.values()):  # else xdist says how they differ
                self._now = self._choose(list(self._now.nodes), first) or self._now
        self._now.schedule()
