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
    from pytest_quant.gates.measurement import Measurement
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Support
    from pytest_quant.model import ModelHandle
    from pytest_quant.targets import Target

RUN = pytest.StashKey[Run]()


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
        from pytest_quant import markers

        item = self._request.node
        run = self._request.config.stash[RUN]
        target = _target(self._request)
        gate = markers.gate(metric, parameters, limits_required=False)
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
        return run.session.model(target.spec, name)
    except Unsupported as reason:
        raise skipped(name, reason) from None


def _fixture_of(format: str) -> Any:
    def model(request: pytest.FixtureRequest) -> ModelHandle:
        return _model(request, format)

    model.__doc__ = f"The test's model in {format}, loaded and proven."
    return model


for _name, _format in FORMAT_FIXTURES.items():
    globals()[_name] = pytest.fixture(_fixture_of(_format), name=_name)
