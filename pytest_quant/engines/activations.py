"""Which modules of a quantized model answer otherwise than the reference's: each is given the reference's own input.

Errors of earlier layers do not count: what is compared is one module at a time. No output is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.memory import is_out_of_memory

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from pytest_quant.engines.transformers import TransformersModel

_ROWS = 64
"""Rows of the output head that are multiplied at a time: it is as wide as the vocabulary."""


_OUT = 3.0
"""Times the median of its kind."""
_LIKE = 3
"""Modules that make a kind."""
_LEAST, _EPS = 1e-4, 4.0
"""An error of a module that both models hold alike: in FP32 sums of another order, else some units of the type."""


@dataclass(frozen=True)
class LocalError:
    """How far one module's output is from the reference module's, for the same input."""

    name: str
    quantized: bool
    """Whether the format holds its weight narrow; one that it left wide should answer as the reference's does."""
    error: float
    """``||y_q - y_r|| / ||y_r||`` over all tokens; NaN or infinite where the output is."""


@dataclass(frozen=True)
class Compared:
    """Every module that both models have, and that could be compared."""

    errors: tuple[LocalError, ...]
    tokens: int
    rounding: float = 1e-4
    """What the quantized model's type explains of an error at the most."""
    apart: tuple[str, ...] = ()
    """Modules of the reference with weights that could not be compared: the other model has none of that name, or it
    takes another input."""


@dataclass
class _Sums:
    """Of one module, over all its calls; an expert that no token chose has none."""

    error: float = 0.0
    size: float = 0.0
    calls: int = 0

    def add(self, ours: torch.Tensor, theirs: torch.Tensor) -> None:
        wide = theirs.float()
        self.calls += 1
        self.size += float(wide.square().sum(dtype=_double()))
        self.error += float((ours.float() - wide).square_().sum(dtype=_double()))

    @property
    def ratio(self) -> float:
        if self.size > 0.0:
            return math.sqrt(self.error / self.size)
        return 0.0 if self.error == 0.0 else math.nan if math.isnan(self.error + self.size) else math.inf


@dataclass(frozen=True)
class Odd:
    """A module whose error is beyond that of its like."""

    name: str
    kind: str
    """The last part of its name."""
    quantized: bool
    error: float | None
    """``None`` where it is not finite."""
    usual: float
    """The median error of its kind (of all quantized modules, where there are few of the kind); what rounding explains
    at the most, for one that the format left wide."""

    @property
    def times(self) -> float | None:
        """Its error over the median of its kind; ``None`` where that is no number."""
        return self.error / self.usual if self.error is not None and self.usual > 0.0 else None


@dataclass(frozen=True)
class Standing:
    """Which modules stand out; where none does, the one that comes closest."""

    odd: tuple[Odd, ...]
    """The worst first; those that answer NaN or infinity before all."""
    closest: Odd | None
    moved: bool = False
    """Whether modules that the format left wide answer otherwise throughout: it moved scales between them, and single
    modules cannot be compared."""


def standing_out(compared: Compared) -> Standing:
    """Pure: which modules' errors are not those of their like.

    A quantized one stands out from three times the median of its kind on (in sound models of four and eight bits the
    largest was 1.8 times), one that is not quantized from more than its type rounds.
    """
    wide = [each for each in compared.errors if not each.quantized]
    narrow = [each for each in compared.errors if each.quantized]
    if _throughout([each for each in wide if each.error > compared.rounding], wide):
        return Standing((), None, moved=True)
    usual = {kind: _median(errors) for kind, errors in _by_kind(narrow).items() if len(errors) >= _LIKE}
    everywhere = _median([each.error for each in narrow])
    rated = [_odd(each, usual.get(kind_of(each.name), everywhere)) for each in narrow]
    rated += [_odd(each, compared.rounding) for each in wide]
    found = [odd for odd in rated if odd.error is None or odd.error > (_OUT if odd.quantized else 1.0) * odd.usual]
    quantized = [odd for odd in rated if odd.quantized and odd.times is not None]
    return Standing(
        tuple(sorted(found, key=lambda odd: -_far(odd))), max(quantized, key=_far, default=None) if not found else None
    )


def medians(compared: Compared) -> dict[str, float]:
    """Pure: the median error of the quantized modules of each kind."""
    return {kind: _median(errors) for kind, errors in _by_kind([e for e in compared.errors if e.quantized]).items()}


def kind_of(name: str) -> str:
    """What a module is called among its block's."""
    return name.rpartition(".")[2]


def _by_kind(errors: Sequence[LocalError]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for each in errors:
        found.setdefault(kind_of(each.name), []).append(each.error)
    return found


def _throughout(different: Sequence[LocalError], wide: Sequence[LocalError]) -> bool:
    """Whether most modules of some kind are different."""
    some, there = _by_kind(different), _by_kind(wide)
    return any(len(errors) >= _LIKE and 2 * len(errors) > len(there[kind]) for kind, errors in some.items())


def _median(errors: Sequence[float]) -> float:
    finite = [error for error in errors if math.isfinite(error)]
    return median(finite) if finite else 0.0


def _odd(each: LocalError, usual: float) -> Odd:
    error = each.error if math.isfinite(each.error) else None
    return Odd(each.name, kind_of(each.name), each.quantized, error, usual)


def _far(odd: Odd) -> float:
    return math.inf if odd.error is None or odd.times is None else odd.times


def compare(
    reference: TransformersModel,
    quantized: TransformersModel,
    tokens: NDArray[np.int64],
    is_quantized: Callable[[Any], bool],
) -> Compared:
    """Run the reference on ``tokens`` ``(length,)``; whenever one of its modules with weights has answered, ask the
    quantized model's module of the same name, with the same input.

    ``is_quantized`` tells of a quantized model's module whether the format holds it narrow. Hooks stand on the
    reference while it runs, and are gone afterwards whatever happens. Modules are compared as they are: a KV cache
    format plays no part.
    """
    import torch

    theirs, ours = _holders(reference.model), dict(quantized.model.named_modules())
    head, its = reference.model.get_output_embeddings(), quantized.model.get_output_embeddings()
    dtype = _dtype(quantized.model)
    sums = {name: _Sums() for name, module in theirs.items() if name in ours and module is not head}
    apart = {name for name, module in theirs.items() if name not in ours and module is not head}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, arguments: Any, keywords: Any, output: Any) -> None:
            if name in apart or not isinstance(output, torch.Tensor):
                apart.add(name)
                return
            try:
                answer = ours[name](
                    *(_cast(each, dtype) for each in arguments),
                    **{key: _cast(each, dtype) for key, each in keywords.items()},
                )
                if answer.shape != output.shape:
                    raise ValueError("another shape")
                sums[name].add(answer, output)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                apart.add(name)  # it takes another input, or gives another shape

        return hook

    found = {}
    with torch.inference_mode(), _hooks({theirs[name]: watch(name) for name in sums}):
        states = _states(reference, tokens)
    for name, module in theirs.items():
        if module is head and name in ours and states is not None:
            found[name] = _head(head, its, states, dtype)
    found |= {name: each for name, each in sums.items() if name not in apart and each.calls}
    errors = [
        LocalError(name, _multiplies(module) and bool(is_quantized(ours[name])), found[name].ratio)
        for name, module in theirs.items()
        if name in found
    ]
    rounding = max(_LEAST, _EPS * float(torch.finfo(dtype).eps))
    return Compared(tuple(errors), len(tokens), rounding, tuple(sorted(apart)))


def _states(reference: TransformersModel, tokens: NDArray[np.int64]) -> torch.Tensor | None:
    """What goes into the output head; None where that is not the model's last hidden state."""
    inputs = reference.tensor(tokens[None])
    if reference.model.base_model is reference.model:
        reference.model(inputs, use_cache=False)
        return None
    found = getattr(reference.model.base_model(inputs, use_cache=False), "last_hidden_state", None)
    return None if found is None else found[0]


def _head(head: Any, its: Any, states: torch.Tensor, dtype: torch.dtype) -> _Sums:
    import torch

    sums = _Sums()
    with torch.inference_mode():
        for rows in torch.split(states, _ROWS):
            sums.add(its(_cast(rows, dtype)), head(rows))
    return sums


def _holders(model: Any) -> dict[str, Any]:
    """The modules by name that hold parameters of their own, and have no children that do."""
    names = {name: module for name, module in model.named_modules() if _holds(module)}
    outer = {".".join(parts[:end]) for parts in (name.split(".") for name in names) for end in range(len(parts))}
    return {name: module for name, module in names.items() if name not in outer}


def _holds(module: Any) -> bool:
    return any(parameter is not None for parameter in module._parameters.values())


def _multiplies(module: Any) -> bool:
    """Whether a module's weight is that of a matrix product, which formats quantize."""
    import torch

    weight = getattr(module, "weight", None)
    return isinstance(weight, torch.Tensor) and weight.dim() >= 2 and not isinstance(module, torch.nn.Embedding)


@contextmanager
def _hooks(wanted: dict[Any, Callable[..., None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for module, hook in wanted.items():
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _dtype(model: Any) -> torch.dtype:
    """The type of a model's hidden states."""
    table = model.get_input_embeddings().weight
    found: torch.dtype = table.dtype if table.dtype.is_floating_point else model.dtype
    return found


def _cast(value: Any, dtype: torch.dtype) -> Any:
    import torch

    return value.to(dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _double() -> torch.dtype:
    import torch

    return torch.float64
