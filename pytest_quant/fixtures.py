"""The fixtures."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quant.declarations import FORMAT_FIXTURES
from pytest_quant.errors import Unsupported, UsageError
from pytest_quant.run import ASKED, Run, skipped

if TYPE_CHECKING:
    from pytest_quant.benchmarking import Benchmark
    from pytest_quant.corpora.calibration import CalibrationSet
    from pytest_quant.formats.rounding import Rounding
    from pytest_quant.gates.measurement import Measurement
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Support
    from pytest_quant.metrics.keeping import Kept
    from pytest_quant.metrics.sensitivity import Scan
    from pytest_quant.model import ModelHandle
    from pytest_quant.targets import Target

RUN = pytest.StashKey[Run]()
_MODELS = {"quant_model", "reference_model", *FORMAT_FIXTURES}


@pytest.fixture(scope="session")
def quant_hardware(pytestconfig: pytest.Config) -> Device:
    """The device that models run on here, with its memory bandwidth."""
    return pytestconfig.stash[RUN].session.measured_device


@pytest.fixture(scope="session")
def quant_support(pytestconfig: pytest.Config) -> Callable[[str], Support]:
    """Ask the support matrix: ``quant_support("fp8").status`` is native, dequantized or unsupported."""
    from pytest_quant.formats import registry
    from pytest_quant.formats.support import support

    session = pytestconfig.stash[RUN].session
    return lambda name: support(registry.get(name), session.device, session.matrix)


@pytest.fixture
def quant_format(request: pytest.FixtureRequest) -> str:
    """The name of the format that the test runs in."""
    raise UsageError(f"{request.node.nodeid}: only test functions can be run in formats")


@pytest.fixture
def quant_model(request: pytest.FixtureRequest, quant_format: str) -> ModelHandle:
    """The test's model in the format that the test runs in, loaded and proven."""
    return _model(request, quant_format)


@pytest.fixture
def reference_model(request: pytest.FixtureRequest) -> ModelHandle:
    """The unquantized model that deltas are taken against."""
    return _model(request, None)


@pytest.fixture
def quant_measure(request: pytest.FixtureRequest) -> Measure:
    """The measurements of the gates, made in the test's body."""
    return Measure(request)


@pytest.fixture
def quant_benchmark(request: pytest.FixtureRequest) -> Benchmark:
    """Runs a model's decode, prefill or first token through pytest-benchmark."""
    from pytest_quant.benchmarking import Benchmark

    return Benchmark(request, request.config.stash[RUN].session, _target(request).spec)


@pytest.fixture
def calibration_set(request: pytest.FixtureRequest) -> CalibrationSet:
    """The windows that a quantizer of the test's model is shown, as ``--quant-calibration`` and its siblings say."""
    run = request.config.stash[RUN]
    drawn: CalibrationSet = run.session.quantizing.calibration_set(_target(request).spec.source)
    return drawn


@pytest.fixture
def quant_scan(request: pytest.FixtureRequest) -> Scanner:
    """What each layer of the test's model costs in a format, and which to keep wide for a budget."""
    return Scanner(request)


class Scanner:
    """``quant_scan("nf4")`` is a :class:`~pytest_quant.metrics.sensitivity.Scan`: ``rows``, the worst first, ``kinds``,
    ``depths``, ``whole``. ``quant_scan.keep("nf4", max_delta=1.0)`` names a few layers that are enough to keep wide.

    In the place of a format may stand a rounding of the reference's own weights, as
    ``pytest_quant.formats.rounding.Rounding("int8", "channel")``.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._session = request.config.stash[RUN].session
        self._spec = _target(request).spec

    def __call__(self, asked: str | Rounding, *, of: str = "layer", windows: int = 8) -> Scan:
        """Scan, at the first call with these arguments; skips where the format cannot run here."""
        try:
            found: Scan = self._session.scan(self._spec, asked, of, windows)
        except Unsupported as reason:
            raise skipped(asked if isinstance(asked, str) else asked.name, reason) from None
        return found

    def keep(
        self,
        asked: str | Rounding,
        *,
        max_delta: float | None = None,
        max_ratio: float | None = None,
        max_nats: float | None = None,
        of: str = "layer",
        windows: int = 8,
    ) -> Kept:
        """A few layers that are enough to keep wide for the rest to keep a limit, verified on the scan's windows."""
        from pytest_quant.metrics.keeping import Budget

        budget = Budget(max_nats=max_nats, max_delta=max_delta, max_ratio=max_ratio)
        kept: Kept = self._session.keep(self._spec, asked, self(asked, of=of, windows=windows), budget)
        return kept


class Measure:
    """``quant_measure.perplexity_delta("nf4") <= 1.0``: each method takes a format and what its marker takes.

    Without a limit quality is measured on all windows; with one, ``perplexity_delta("nf4", max=1.0)``, on as many as
    decide it. What is measured so is judged and compared with the baseline after the body, as a gate.
    """

    def __init__(self, request: pytest.FixtureRequest) -> None:
        self._request = request

    def perplexity_delta(self, format: str, **limits: float) -> Measurement:
        """``perplexity(format) - perplexity(reference)``."""
        return self._measure("perplexity_delta", format, limits)

    def kl_divergence(self, format: str, **limits: float) -> Measurement:
        """Mean ``KL(reference || format)``, nats a token."""
        return self._measure("kl_divergence", format, limits)

    def token_agreement(self, format: str, **limits: float) -> Measurement:
        """Share of positions at which both have the same most probable token."""
        return self._measure("token_agreement", format, limits)

    def task_accuracy(self, format: str, **parameters: Any) -> Measurement:
        """Drop of the accuracy on a task of lm-eval; parameters as the marker's (task, num_fewshot, limit, ...)."""
        return self._measure("task_accuracy", format, parameters)

    def generation_match(self, format: str, **parameters: Any) -> Measurement:
        """Share of identical tokens in greedy continuations; parameters as the marker's (prompts, ...)."""
        return self._measure("generation_match", format, parameters)

    def layer_sensitivity(self, format: str, **parameters: Any) -> Measurement:
        """Nats that the worst layer costs, quantized alone; parameters as the marker's (of, numeric, ...)."""
        return self._measure("layer_sensitivity", format, parameters)

    def throughput_ratio(self, format: str, **parameters: Any) -> Measurement:
        """``tokens/s(format) / tokens/s(reference)``; parameters as the marker's (phase, batch_size, ...)."""
        return self._measure("throughput_ratio", format, parameters)

    def energy_ratio(self, format: str, **parameters: Any) -> Measurement:
        """``joules a token(format) / joules a token(reference)``; parameters as the marker's."""
        return self._measure("energy_ratio", format, parameters)

    def cost_ratio(self, format: str, **parameters: Any) -> Measurement:
        """``dollars a token(format) / dollars a token(reference)``; parameters as the marker's."""
        return self._measure("cost_ratio", format, parameters)

    def memory_budget(self, format: str, **parameters: Any) -> Measurement:
        """Bytes; parameters as the marker's (of, batch_size, context)."""
        return self._measure("memory_budget", format, parameters)

    def _measure(self, metric: str, format: str, parameters: dict[str, Any]) -> Measurement:
        from pytest_quant import markers, targets

        item = self._request.node
        run = self._request.config.stash[RUN]
        target = _target(self._request)
        gate = targets.located(markers.gate(metric, parameters, limits_required=False), run.options.rootpath)
        try:
            measurement = run.measure(item.nodeid, target, format, gate)
        except Unsupported as reason:
            raise skipped(format, reason) from None
        item.stash[ASKED].append((format, gate))
        return measurement


def _target(request: pytest.FixtureRequest) -> Target:
    """What the test asks for; a fixture that is only asked for by name at run time comes too late for that."""
    target = request.config.stash[RUN].target(request.node)
    if target is None:
        raise UsageError(f"{request.fixturename} must be an argument of the test: models are planned before tests run")
    return target


def _model(request: pytest.FixtureRequest, format: str | None) -> ModelHandle:
    """The test's model in a format, None for the reference's; skips where it cannot run."""
    run = request.config.stash[RUN]
    target = _target(request)
    name = target.spec.reference if format is None else format
    try:
        if len(_MODELS & set(request.fixturenames)) > 1:  # they have to be here together
            return run.session.model(target.spec, name)
        return run.session.turns.format(target.spec, name)
    except Unsupported as reason:
        raise skipped(name, reason) from None


def _fixture_of(format: str) -> Any:
    def model(request: pytest.FixtureRequest) -> ModelHandle:
        return _model(request, format)

    model.__doc__ = f"The test's model in {format}, loaded and proven."
    return model


for _name, _format in FORMAT_FIXTURES.items():
    globals()[_name] = pytest.fixture(_fixture_of(_format), name=_name)
