"""pytest's hooks, and nothing else."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_quant import declarations, fixtures, hooks
from pytest_quant.errors import QuantError, UsageError
from pytest_quant.fixtures import RUN
from pytest_quant.run import CARRIED, JOURNAL, TARGET, GateFailure, Run

OWN_FORMATS = pytest.StashKey[list[str]]()
"""Names of the formats that this run's test suite brought."""
REPORTS = ("xmlpath", "htmlpath", "json_report")
"""What asks pytest, pytest-html and pytest-json-report for a report that is told of the gates."""


def pytest_addoption(parser: pytest.Parser) -> None:
    declarations.add_options(parser)


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    pluginmanager.add_hookspecs(hooks)


def pytest_configure(config: pytest.Config) -> None:
    declarations.register_markers(config)
    run = config.stash[RUN] = Run(config)
    config.pluginmanager.register(fixtures, "quant-fixtures")
    if any(getattr(config.option, name, None) for name in REPORTS) and not hasattr(config, "workerinput"):
        from pytest_quant.integrations import register

        register(config, run)
    config.pluginmanager.register(Listener(run), "quant-listener")
    config.stash[OWN_FORMATS] = []
    try:
        config.hook.pytest_quant_formats.call_historic(lambda formats: add_formats(formats, config.stash[OWN_FORMATS]))
    except UsageError as error:
        raise pytest.UsageError(f"pytest_quant_formats: {error}") from None
    said = [name for name, value in vars(config.option).items() if value] + (config.getoption("override_ini") or [])
    if any(name.startswith("quant_") for name in said):
        _ = run.options  # a mistake on the command line is said before anything is collected


def pytest_unconfigure(config: pytest.Config) -> None:
    if RUN in config.stash:
        config.stash[RUN].close()
    if names := config.stash.get(OWN_FORMATS, None):
        from pytest_quant.formats import registry

        registry.forget(names)


def add_formats(formats: object, names: list[str]) -> None:
    """Make known what a ``conftest.py`` returned, and add the names. :class:`UsageError` where it is no list of
    formats."""
    from pytest_quant.formats import registry

    if formats is not None and not isinstance(formats, list):
        raise UsageError(f"it must return a list of formats, not {type(formats).__name__}")
    for each in formats or ():
        names.append(registry.add(*each) if isinstance(each, tuple) else registry.add(each))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    function, names = metafunc.definition, metafunc.fixturenames
    if not declarations.concerns(function, names):
        return
    from pytest_quant import targets

    try:
        told = metafunc.config.stash[RUN].options
        formats = targets.formats_to_parametrize(function, names, told)
        one_by_one: list[tuple[str, ...]] = [(name,) for name in formats]
        for chosen in one_by_one or [targets.formats_by_fixture(names)]:
            targets.resolve(function, names, chosen, told)
    except (UsageError, pytest.UsageError) as error:
        mistakes = "\n".join(map(str, error.args))
        raise pytest.fail.Exception(f"{function.nodeid}: {mistakes}", pytrace=False) from None
    if formats:
        if declarations.FORMAT not in names:
            names.append(declarations.FORMAT)
        metafunc.parametrize(declarations.FORMAT, formats)


def pytest_itemcollected(item: pytest.Item) -> None:
    """For pytest-benchmark, and its ``--benchmark-only``, a test with ``quant_benchmark`` is one of its own."""
    fixtures: list[str] = getattr(item, "fixturenames", [])
    missing = "quant_benchmark" in fixtures and "benchmark" not in fixtures
    if missing and item.config.pluginmanager.hasplugin("benchmark"):
        fixtures.append("benchmark")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    run = config.stash[RUN]
    wanted = []
    for item in items:
        try:
            wanted.append(run.target(item))
        except UsageError as error:
            raise pytest.UsageError(f"{item.nodeid}: {error}") from None
    if not any(wanted):
        return
    from pytest_quant.ordering import is_left_out, order

    run.spreads = any(target is not None and target.spec.spreads for target in wanted)
    run.known_tests.update(item.nodeid for item in items)
    if selected := run.options.selected:
        out = [item for item in items if is_left_out(run.target(item), selected)]
        if out:
            config.hook.pytest_deselected(items=out)
            items[:] = [item for item in items if not is_left_out(run.target(item), selected)]
    items[:] = order(items, [run.target(item) for item in items])
    if not (config.getoption("collectonly") or config.getoption("quant_plan")):
        run.expect(run.target(item) for item in items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    from pytest_quant.distribution.controller import Controller

    config.pluginmanager.register(Controller(config.stash[RUN]), "quant-controller")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """Before the worker says that it has collected."""
    run = session.config.stash[RUN]
    if not all(TARGET in item.stash for item in session.items):
        return  # a mistake in one of them ends the run
    run.wanted = [item.nodeid for item in session.items if item.stash[TARGET] is not None]
    if hasattr(session.config, "workerinput"):
        run.tell(session.items)


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[RUN].known_tests.add(item.nodeid)


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    run = config.stash[RUN]
    if not run.used or config.getoption("collectonly") or config.getoption("quant_plan"):
        return []
    return [f"quantization: {line}" for line in run.keeper.lines()]


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """pytest-xdist: all workers keep their measurements in one place."""
    run = node.config.stash[RUN]
    node.workerinput[JOURNAL] = run.told_to_workers()


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    config = session.config
    if not config.getoption("quant_plan"):
        return None
    if session.testsfailed and not config.getoption("continue_on_collection_errors"):
        return None  # pytest stops here, with the errors
    if config.getoption("numprocesses", None):
        raise pytest.UsageError("--quant-plan loads nothing and needs no workers: leave out -n")
    from pytest_quant.report.plan import show

    show(config.stash[RUN], session.items)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    item.config.stash[RUN].check(item)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    __tracebackhide__ = True
    result = yield
    item.config.stash[RUN].judge(item)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, Any, Any]:
    try:
        return (yield)
    finally:
        item.config.stash[RUN].release(item, nextitem)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[Any]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    run = item.config.stash[RUN]
    error = call.excinfo.value if call.excinfo is not None else None
    if isinstance(error, (GateFailure, QuantError)) and report.failed:
        from pytest_quant.report.failure import plain_failure

        report.longrepr = plain_failure(call.excinfo, error)
    if run.target(item) is None or call.when == "teardown":
        return report
    if isinstance(error, QuantError):
        run.refuse(item, error)
    if call.when == "call" or not report.passed:
        vars(report)[CARRIED] = run.payload(item)
    return report


class Listener:
    """Hears every test's report in the process that keeps the ledger; workers only send theirs."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._run.hear(report)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._run.hear_collected(report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> Generator[None, Any, Any]:
    """Before other plugins write their reports, in which our verdicts and the run's exit code are to be final."""
    try:
        _finish(session, exitstatus)
    except Exception as error:
        from pytest_quant.publishing import bug

        session.config.stash[RUN].troubles.append(f"the end of the run failed: {bug(error)}")
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    finally:
        result = yield
    return result


def _finish(session: pytest.Session, exitstatus: int) -> None:
    run = session.config.stash[RUN]
    only_looking = session.config.getoption("collectonly") or session.config.getoption("quant_plan")
    if hasattr(session.config, "workerinput") or not run.used or only_looking:
        return
    run.finish(
        complete=exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED),
        stopped=bool(session.shouldfail or session.shouldstop),  # by -x, which leaves the status of a whole run
    )
    if run.troubles and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    run = config.stash[RUN]
    if not run.used:
        return
    if run.ledger.records or run.ledger.skipped or run.troubles or run.messages:
        from pytest_quant.report.terminal import summarize

        summarize(terminalreporter, run.ledger, run.messages, run.troubles)
