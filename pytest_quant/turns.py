"""Which of a format and its reference is in memory, where both do not fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from pytest_quant.room import NoRoom
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    from pytest_quant.model import ModelHandle
    from pytest_quant.models import Models


class Turns:
    """Gives the models that a question needs: both where they fit, else one after the other.

    Whether they fit is found once: where there was no room for the reference beside a format, they take turns for the
    rest of the run. Who asks for the reference then asks it all that may be needed, since each turn loads a model.
    """

    def __init__(self, models: Callable[[], Models], note: Callable[[ModelSpec], None]) -> None:
        """``models`` gives those of the run when they are first needed; ``note`` is called while a reference is in
        memory that will not be beside its format."""
        self._models_of_run = models
        self._note = note
        self._apart: set[tuple[ModelSpec, str]] = set()

    @property
    def _models(self) -> Models:
        return self._models_of_run()

    def are_taken(self, spec: ModelSpec, format_name: str) -> bool:
        """Whether the format and its reference are never in memory together."""
        return (spec, format_name) in self._apart

    def beside(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in a format, beside what is here; raises :class:`~pytest_quant.room.NoRoom` where there is none."""
        return self._models.get(spec, format_name)

    def format(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The model in a format; whatever is in its way is given back."""
        if self.are_taken(spec, format_name):
            return self._models.alone(spec, format_name)
        return self._models.either(spec, format_name)

    def reference(self, spec: ModelSpec, format_name: str) -> ModelHandle:
        """The reference, beside the format where both fit, else in its place: :meth:`are_taken` then says so.

        Raises what :meth:`Models.get` raises where it does not fit alone either; the format is kept then."""
        if not self.are_taken(spec, format_name):
            try:
                return self._models.get(spec, spec.reference)
            except NoRoom:
                handle = self._models.either(spec, spec.reference)
                self._apart.add((spec, format_name))
        else:
            handle = self._models.alone(spec, spec.reference)
        self._note(spec)
        return handle

    def part(self, spec: ModelSpec, format_name: str) -> bool:
        """Have the two take turns from now on, since their work does not fit beside both; whether that is new, because
        both are here."""
        if self._models.find(spec, format_name) is None or self._models.find(spec, spec.reference) is None:
            return False
        self._apart.add((spec, format_name))
        self._models.alone(spec, format_name)
        return True
