"""The plan as text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pytest_quant.errors import QuantError
from pytest_quant.formats.format import Format
from pytest_quant.hardware import Device
from pytest_quant.hardware.matrix import Support
from pytest_quant.plan import Planned, check_elsewhere, load_of, plan
from pytest_quant.planning.need import shown_memory
from pytest_quant.report.figures import shown_bytes
from pytest_quant.report.planning import describe
from pytest_quant.run import Run
from pytest_quant.spec import ModelSpec


def show(run: Run, items: Sequence[pytest.Item]) -> None:
    """Print what the collected tests would do, on this device or on the one that was named."""
    reporter = run.config.pluginmanager.getplugin("terminalreporter")
    try:
        device, here = planned_device(run)
        matrix = run.session.matrix
    except QuantError as error:
        raise pytest.UsageError(str(error)) from None

    def check_here(spec: ModelSpec, format: Format, *_: object) -> Support:
        return run.session.check(spec, format.name)

    may = check_here if here else check_elsewhere
    reporter.section("quantization plan", sep="=")
    reporter.write_line(describe(device))
    for item in items:
        target = run.target(item)
        if target is None:
            continue
        load = load_of(target.gates)
        for line in plan(item.nodeid, target.spec, target.formats, device, matrix, may, load, here=here):
            reporter.write_line(render(line), yellow=line.skip is not None, green=line.skip is None)


def planned_device(run: Run) -> tuple[Device, bool]:
    """The device that the plan is for, and whether it is the one here. :class:`QuantError` for an unknown name."""
    name = run.options.plan_device
    if name is None:
        return run.session.measured_device, True
    from pytest_quant.errors import UsageError
    from pytest_quant.hardware import specs

    device = specs.device(name)
    if device is None:
        raise UsageError(f"--quant-device: no specification of {name!r}; known are {', '.join(specs.names())}")
    return device, False


def render(line: Planned) -> str:
    """One line of the plan."""
    if line.skip is not None:
        return f"skip  {line.test}  {line.format}: {line.skip}"
    said = [f"run   {line.test}  {line.format}: {line.status}"]
    if line.prediction is not None:
        found = line.prediction
        said.append(f"weights {shown_bytes(found.weight_bytes)}")
        if found.memory.kv:
            said.append(f"KV cache {shown_bytes(found.memory.kv)}")
        if found.memory.fits is False:
            said.append(f"may be skipped for lack of memory: {shown_memory(found)}")
        if found.decode is not None:
            batch = found.load.batch_size
            each = "token" if batch == 1 else f"step of {batch} sequences"
            why = found.decode.regime if found.decode.ridge else f"{found.decode.regime}, as far as is known"
            why += ", with the experts that are expected" if found.expected else ""
            said.append(f"decode at best {1e3 * found.decode.seconds:.3g} ms a {each} ({why})")
    return ", ".join(said)
