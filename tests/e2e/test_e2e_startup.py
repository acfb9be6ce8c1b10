"""A run that uses none of the plugin pays next to nothing for it."""

from __future__ import annotations

import json
from importlib.util import find_spec

HEAVY = ("torch", "transformers", "numpy", "pynvml", "safetensors", "bitsandbytes", "accelerate")


def test_a_plain_run_imports_nothing_heavy_and_starts_no_process(pytester):
    pytester.makeconftest(
        f"""
        import json, subprocess, sys, os
        import pathlib

        started = []
        sys.addaudithook(lambda event, args: started.append(event) if event in (
            "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty") else None)

        def pytest_unconfigure(config):
            found = dict(heavy=[name for name in {HEAVY!r} if name in sys.modules], started=started,
                         plugin=config.pluginmanager.hasplugin("quant"))
            pathlib.Path("found.json").write_text(json.dumps(found))
        """
    )
    pytester.makepyfile("def test_plain(): assert True")
    # other plugins of this environment may import and start what they like
    others = ("benchmark", "xdist", "hypothesispytest", "html", "pytest_jsonreport", "metadata")
    result = pytester.runpytest_subprocess(*(word for name in others for word in ("-p", f"no:{name}")))
    result.assert_outcomes(passed=1)
    found = json.loads((pytester.path / "found.json").read_text())
    assert found == {"heavy": [], "started": [], "plugin": True}


def test_collecting_marked_tests_imports_nothing_heavy(pytester):
    pytester.makeconftest(
        f"""
        import json, pathlib, sys

        def pytest_unconfigure(config):
            pathlib.Path("found.json").write_text(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))
        """
    )
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.quant(model="org/name", formats=["int8", "nf4"])
        @pytest.mark.perplexity_delta(max=1)
        def test_marked(quant_model): ...
        """
    )
    arguments = ["--collect-only", "-q", "-p", "no:benchmark", "-p", "no:xdist", "-p", "no:hypothesispytest"]
    result = pytester.runpytest_subprocess(*arguments)
    result.stdout.fnmatch_lines(["*test_marked[[]int8[]]", "*test_marked[[]nf4[]]"])
    assert json.loads((pytester.path / "found.json").read_text()) == []


def test_a_report_of_other_tests_costs_nothing_of_ours(pytester):
    pytester.makeconftest(
        """
        import json, pathlib, sys

        def pytest_unconfigure(config):
            ours = [name for name in sys.modules if name.startswith(("pytest_quant.report.", "pytest_quant.hardware"))]
            pathlib.Path("found.json").write_text(json.dumps(ours))
        """
    )
    pytester.makepyfile("def test_plain(): ...")
    arguments = ["--junitxml=junit.xml", *(["--html=all.html"] if find_spec("pytest_html") else [])]
    pytester.runpytest_subprocess(*arguments).assert_outcomes(passed=1)
    assert json.loads((pytester.path / "found.json").read_text()) == []


def test_the_plugin_can_be_turned_off(pytester):
    pytester.makepyfile("def test_plain(pytestconfig): assert not pytestconfig.pluginmanager.hasplugin('quant')")
    pytester.runpytest_subprocess("-p", "no:quant").assert_outcomes(passed=1)


def test_a_plain_run_says_nothing(pytester):
    pytester.makepyfile("def test_plain(): ...")
    result = pytester.runpytest_inprocess()
    result.stdout.no_fnmatch_line("*quant*=*")
