"""``quant_benchmark``: a model's decode, prefill or first token through pytest-benchmark's ``benchmark`` fixture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quant import markers
from pytest_quant.ceiling import ceiling
from pytest_quant.errors import UsageError
from pytest_quant.metrics.throughput import Timed
from pytest_quant.metrics.workload import Workload, prompt
from pytest_quant.model import ModelHandle
from pytest_quant.speed import workload

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.session import Session
    from pytest_quant.spec import ModelSpec

FIXTURE = "benchmark"
"""pytest-benchmark's fixture, and the name that its plugin is registered by."""


class Benchmark:
    """What ``quant_benchmark`` is: ``quant_benchmark(quant_model, phase="decode", batch_size=1)``."""

    def __init__(self, request: pytest.FixtureRequest, session: Session, spec: ModelSpec) -> None:
        self._request = request
        self._session = session
        self._spec = spec

    def __call__(
        self,
        model: ModelHandle,
        phase: str = "decode",
        batch_size: int = 1,
        prompt_tokens: int = 64,
        new_tokens: int = 32,
        cache: str | None = None,
        compile: bool = False,
        rounds: int = 9,
        warmup_rounds: int = 1,
    ) -> Mapping[str, Any]:
        """Benchmark one phase. A round is a whole run, timed until the device is done. The prompts of ``decode`` are
        read before it.

        Arguments as ``throughput_ratio`` takes them, and pytest-benchmark's numbers of rounds. Returns what it noted in
        ``extra_info``; where benchmarks are disabled there is one run, no clock, and no speed in it.
        :class:`UsageError` for a wrong argument, and without pytest-benchmark.
        """
        if not isinstance(model, ModelHandle):
            raise UsageError(f"quant_benchmark times a model fixture such as quant_model, not {type(model).__name__}")
        asked = {"phase": phase, "batch_size": batch_size, "prompt_tokens": prompt_tokens, "new_tokens": new_tokens}
        work = _workload({**asked, "cache": cache, "compile": compile})
        _check_count("rounds", rounds, 1)
        _check_count("warmup_rounds", warmup_rounds, 0)
        work.check(model.loaded.max_positions)
        model.require_on_devices(f"the speed of {phase}")
        benchmark = self._fixture()
        stream = self._session.population.stream(self._spec.source, model.loaded.vocabulary)
        run = _Run(model.timer(work.cache, compiled=work.compile), work, stream)
        benchmark.pedantic(run, setup=run.prepare, rounds=rounds, warmup_rounds=warmup_rounds, iterations=1)
        taken = None if benchmark.stats is None else float(benchmark.stats.stats.median)
        benchmark.extra_info.update(self._figures(model, work, taken))
        return dict(benchmark.extra_info)

    def _fixture(self) -> Any:
        try:
            return self._request.getfixturevalue(FIXTURE)
        except pytest.FixtureLookupError:
            raise UsageError(
                "quant_benchmark runs models through pytest-benchmark, which is not active: "
                "pip install 'pytest-quant[benchmark]', and do not turn it off with -p no:benchmark"
            ) from None

    def _figures(self, model: ModelHandle, work: Workload, taken: float | None) -> dict[str, Any]:
        """What a run says of itself; what is not known is absent. ``taken`` are the median round's seconds."""
        figures: dict[str, Any] = {
            "model": model.name,
            "format": model.format.name,
            "phase": work.phase,
            "batch_size": work.batch_size,
            "prompt_tokens": work.prompt_tokens,
            "cache": work.cache,
            "compile": work.compile,
            "weight_bytes": model.weight_bytes,
        }
        if work.phase == "decode":
            figures["new_tokens"] = work.new_tokens
        if taken is not None:
            figures["tokens_per_second"] = work.tokens / taken
        at_best = ceiling(model, self._spec, work, self._session.matrix)
        if at_best is not None:
            figures["bound_tokens_per_second"] = at_best.speed
            figures["regime"] = at_best.bound.regime
        if taken is not None and at_best is not None:
            figures["share_of_bound"] = work.tokens / taken / at_best.speed
        return figures


class _Run:
    """What pytest-benchmark calls: ``prepare`` before each round, then itself, which ends when the device is done."""

    def __init__(self, runner: Timed, work: Workload, stream: NDArray[np.int64]) -> None:
        self._runner = runner
        self._work = work
        self._prompts = prompt(stream, work.batch_size, work.prompt_tokens)

    def prepare(self) -> None:
        if self._work.phase == "decode":
            self._runner.start(self._prompts, self._work.new_tokens)

    def __call__(self) -> None:
        if self._work.phase == "decode":
            self._runner.steps(self._work.new_tokens)
        elif self._work.phase == "prefill":
            self._runner.prefill(self._prompts)
        else:
            self._runner.first_token(self._prompts)


def _workload(asked: Mapping[str, Any]) -> Workload:
    """The workload of arguments that are checked as a marker's are."""
    try:
        return workload(markers.gate("throughput_ratio", asked, limits_required=False))
    except UsageError as error:
        raise UsageError(str(error).replace("throughput_ratio", "quant_benchmark")) from None


def _check_count(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"quant_benchmark({name}={value!r}): must be a whole number of {least} or more")
