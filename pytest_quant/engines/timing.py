"""A loaded model against the clock: CUDA events where there are, else the monotonic clock once the device is done."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import TYPE_CHECKING, Any

from pytest_quant.engines.memory import is_out_of_memory
from pytest_quant.engines.transformers import PLACES
from pytest_quant.errors import NotMeasured, Unsupported, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.engines.transformers import TransformersModel

_WARM_UP = 3
"""Compiled steps before any is timed: the first compiles, the second records a CUDA graph, the third replays it."""
_RUNS = itertools.count()


@dataclass(frozen=True)
class _Start:
    """Where steps begin: prompts that were read, and the token that follows them."""

    prompt: Any
    token: Any
    cache: Any

    @property
    def reusable(self) -> bool:
        """Whether the cache forgets what came last and is as it was."""
        return all(type(layer).__name__ == "DynamicLayer" for layer in getattr(self.cache, "layers", (None,)))


class Runner:
    """Times one model. ``cache`` and ``compiled`` as :class:`~pytest_quant.metrics.workload.Workload` has them;
    :class:`UsageError` where the model has no such cache, :class:`Unsupported` where a step is to be compiled and
    cannot be as a whole."""

    def __init__(self, model: TransformersModel, cache: str = "dynamic", *, compiled: bool = False) -> None:
        self._model = model
        self._static = cache == "static"
        self._step: Callable[[Any, Any], Any] = _Compiled(model) if compiled else _Plain(model)
        self._warm_for: tuple[Any, ...] | None = None
        self._cache: Any = None
        self._room = (0, 0)
        self._start: _Start | None = None
        self._token: Any = None
        self._taken = 0
        if self._static and model.has_own_cache:
            raise UsageError('cache="static": a KV cache format brings a cache of its own; leave out one of the two')

    def prefill(self, prompt: NDArray[np.int64]) -> float:
        """Seconds of one forward over the prompts ``(batch, length)``, with logits for the last position only."""
        import torch

        inputs = self._model.tensor(prompt)
        with torch.inference_mode():
            cache = self._new_cache(*prompt.shape)
            with self._span() as marks:
                self._model.fed([inputs], cache)
        return sum(marks())

    def first_token(self, prompt: NDArray[np.int64]) -> float:
        """Seconds from the prompts ``(batch, length)`` on the host to the first new token of each on the host; the
        cache is made within them."""
        import torch

        self._model.synchronize()
        start = time.perf_counter()
        with torch.inference_mode():
            out = self._model.fed([self._model.tensor(prompt)], self._new_cache(*prompt.shape))
            out.logits[:, -1:].argmax(-1).cpu()
        return time.perf_counter() - start

    def start(self, prompt: NDArray[np.int64], new_tokens: int) -> None:
        """Read the prompts ``(batch, length)``, with room for ``new_tokens``; nothing is timed. The same prompts again
        are not read again where what came after them can be cut off. Steps that are compiled are so here, and warmed
        up: :class:`Unsupported` where they cannot be."""
        import torch

        with torch.inference_mode():
            shape = (*prompt.shape, new_tokens)
            if isinstance(self._step, _Compiled) and new_tokens > 0 and shape != self._warm_for:
                self._warm_up(self._step, prompt, new_tokens)
                self._warm_for = shape
            self._read(prompt, new_tokens)

    def steps(self, count: int) -> list[float]:
        """Seconds of each of the next ``count`` greedy steps. What ends a text does not end them. ``RuntimeError``
        before :meth:`start`, :class:`NotMeasured` where compiled steps would go on uncompiled."""
        import torch

        with torch.inference_mode(), self._span() as marks:
            self._take(count, marks.mark)
        return marks()

    def _read(self, prompt: NDArray[np.int64], new_tokens: int) -> None:
        if self._start is not None and self._start.prompt is prompt and self._start.reusable:
            if self._taken:
                self._start.cache.crop(-self._taken)
        else:
            self._start = None  # its memory, before there is a second one
            cache = self._new_cache(prompt.shape[0], prompt.shape[1] + new_tokens)
            out = self._model.fed([self._model.tensor(prompt)], cache)
            self._start = _Start(prompt, out.logits[:, -1:].argmax(-1), out.past_key_values)
        self._token, self._taken = self._start.token, 0

    def _take(self, count: int, taken: Callable[[], None]) -> None:
        """So many greedy steps; ``taken`` is called after each."""
        if self._start is None:
            raise RuntimeError("no prompts were read")
        token, cache = self._token, self._start.cache
        for _ in range(count):
            token = self._step(token, cache).logits[:, -1:].argmax(-1)
            taken()
        self._token, self._taken = token, self._taken + count

    def _warm_up(self, step: _Compiled, prompt: NDArray[np.int64], new_tokens: int) -> None:
        """Compile the steps after these prompts and take each kind of them often enough."""
        self._read(prompt, new_tokens)
        each, runs = min(new_tokens, _WARM_UP), 1
        if any(getattr(self._start and self._start.cache, "is_sliding", ())):
            # steps differ by how full the window is, and CUDA graphs are recorded for each place in it
            each, runs = new_tokens, _WARM_UP if self._model.device.kind in ("cuda", "rocm") else 1
        for again in range(max(runs, -(-_WARM_UP // each))):
            if again:
                self._read(prompt, new_tokens)
            self._take(each, step.require_compiled)
        self._model.synchronize()

    def _new_cache(self, batch_size: int, length: int) -> Any:
        """An empty cache for so many sequences of so many tokens: the same again where it is static, so that what was
        compiled for its addresses stays; None for one that grows."""
        if not self._static:
            return None
        sequences, tokens = self._room
        if sequences != batch_size or tokens < length:
            self._cache, self._room = _static_cache(self._model.model, length), (batch_size, length)
        self._cache.reset()
        return self._cache

    @contextmanager
    def _span(self) -> Iterator[Marks]:
        """Time from here to the end of the block, or to the last mark within it."""
        marks = Marks(self._model)
        yield marks
        marks.end()


class Marks:
    """Moments of a run. On CUDA they are events in the stream, so that marking waits for nothing; elsewhere the host's
    clock, after the device is done."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model
        # an event is of one device's stream
        self._event = _events(model.device.kind) if model.places == (PLACES[model.device.kind],) else None
        self._marks: list[Any] = []
        model.synchronize()
        self.mark()

    def mark(self) -> None:
        """Now."""
        if self._event is not None:
            event = self._event()
            event.record()
            self._marks.append(event)
        else:
            self._model.synchronize()
            self._marks.append(time.perf_counter())

    def end(self) -> None:
        """Mark the end, unless something within was marked, and wait for the device."""
        if len(self._marks) == 1:
            self.mark()
        self._model.synchronize()

    def __call__(self) -> list[float]:
        """Seconds between one mark and the next."""
        pairs = zip(self._marks, self._marks[1:], strict=False)
        if self._event is not None:
            return [start.elapsed_time(end) / 1e3 for start, end in pairs]
        return [end - start for start, end in pairs]


def _events(kind: str) -> Callable[[], Any] | None:
    if kind not in ("cuda", "rocm"):
        return None
    import torch

    return lambda: torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class _Plain:
    """A step as the model takes it."""

    def __init__(self, model: TransformersModel) -> None:
        self._model = model.model

    def __call__(self, token: Any, cache: Any) -> Any:
        return _forward(self._model, token, cache)


class _Compiled:
    """A step through ``torch.compile`` as one graph, with CUDA graphs where there are. :class:`Unsupported` where it
    cannot be one or cannot be compiled, :class:`NotMeasured` where it would have to be compiled too often."""

    def __init__(self, model: TransformersModel) -> None:
        import torch

        self._model = model.model
        self._asked = f"compile=True, which runs each step of {type(self._model).__name__} as one compiled graph"
        if (quantizer := _refuses(self._model)) is not None:
            raise Unsupported(self._asked, f"{quantizer}, which says that its models cannot be compiled", _NOT_COMPILED)
        self._graphs = _graphs()
        self._checked = False
        mode = "reduce-overhead" if model.device.kind in ("cuda", "rocm") else "default"
        # dynamic=None: the place in a sliding window is a number of Python's, which must not be compiled in
        self._run = torch.compile(_own(_forward), mode=mode, dynamic=None, fullgraph=True)

    def __call__(self, token: Any, cache: Any) -> Any:
        import torch
        from torch._dynamo import exc

        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        try:
            return self._run(self._model, token, cache)  # type: ignore[no-untyped-call]
        except exc.FailOnRecompileLimitHit as error:
            raise NotMeasured(
                f"{self._asked}: torch.compile gives up after compiling it "
                f"{torch._dynamo.config.recompile_limit} times, since each step differs from those before; "
                f"use {_NOT_COMPILED}"
            ) from error
        except exc.Unsupported as error:
            found = f"a step that breaks into pieces, the first at: {_first_line(error)}"
            raise Unsupported(self._asked, found, _NOT_COMPILED) from None
        except exc.TorchDynamoException as error:
            cause = getattr(error, "inner_exception", None)
            if cause is not None and is_out_of_memory(cause):
                raise cause from None
            found = f"torch.compile fails ({type(cause or error).__name__}: {_first_line(cause or error)})"
            raise Unsupported(
                self._asked, found, f"a compiler that torch can use on this device, or {_NOT_COMPILED}"
            ) from None

    def require_compiled(self) -> None:
        """After the first step: :class:`Unsupported` where nothing was compiled for it."""
        if not self._checked and _graphs() == self._graphs:
            raise Unsupported(
                self._asked,
                "torch.compile leaves the step as it is",
                "torch.compile not turned off (TORCH_COMPILE_DISABLE, TORCHDYNAMO_DISABLE, torch.compiler.set_stance)",
            )
        self._checked = True


_NOT_COMPILED = "compile=False, or another format or model"


def _forward(model: Any, token: Any, cache: Any) -> Any:
    return model(token, past_key_values=cache, use_cache=True)


def _own(function: Any) -> Any:
    """A copy with code of its own. By the code torch.compile keeps what it compiled, counts how often, and remembers
    which sizes changed: what one runner compiles must not depend on those before it, and goes when it goes."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{next(_RUNS)}")
    return FunctionType(code, function.__globals__, code.co_name)


def _graphs() -> int:
    """How many graphs torch.compile has made so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _refuses(model: Any) -> str | None:
    """The quantizer that says by itself that its models cannot be compiled. What transformers assumes of one that says
    nothing is no statement: bitsandbytes' NF4, of which it assumes so, is one graph."""
    quantizer = getattr(model, "hf_quantizer", None)
    says = next((kind for kind in type(quantizer).__mro__ if "is_compileable" in vars(kind)), None)
    if says is None or says.__name__ == "HfQuantizer" or getattr(quantizer, "is_compileable", True):
        return None
    return type(quantizer).__name__


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return lines[0].strip()[:200]


def _static_cache(model: Any, length: int) -> Any:
    from transformers import StaticCache

    try:
        return StaticCache(config=model.config, max_cache_len=length)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f'cache="static": transformers has none for {type(model).__name__} ({type(error).__name__}: {error}); '
            f'leave it at "dynamic"'
        ) from error


def threads() -> int:
    """Threads that torch computes with on a CPU."""
    import torch

    return int(torch.get_num_threads())
