"""The process of an engine without vLLM in it: calls, errors, and that it ends whatever ends the other side."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from pytest_quant.engines.vllm.environment import environment
from pytest_quant.engines.vllm.process import EngineError, EngineProcess, last_words
from pytest_quant.engines.vllm.telling import told
from pytest_quant.errors import NotMeasured, Unsupported, UsageError


def gone(pid, seconds=20.0):
    """Whether no process of a group is left, soon."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture
def engine():
    process = EngineProcess(environment(os.environ, "cpu", 1))
    yield process
    process.close()


def test_a_call_a_mistake_and_an_orderly_end(engine):
    assert engine.alive
    with pytest.raises(EngineError, match="RuntimeError: no prompts were read"):
        engine.call("steps", 1)
    with pytest.raises(EngineError, match="no attribute 'nonsense'"):
        engine.call("nonsense")
    engine.close()
    assert gone(engine.pid)
    assert not engine.alive
    with pytest.raises(NotMeasured, match="has ended"):
        engine.call("steps", 1)
    engine.close()


def test_a_dead_engine_is_noticed_at_once(engine):
    with pytest.raises(EngineError):
        engine.call("steps", 1)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(NotMeasured, match=r"died while it was asked for steps \(killed by SIGKILL"):
        engine.call("steps", 1)
    assert gone(engine.pid)


def test_an_interrupt_ends_what_nobody_waits_for(engine, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(engine._connection, "poll", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.call("steps", 1)
    assert gone(engine.pid)
    with pytest.raises(NotMeasured, match="interrupted"):
        engine.call("steps", 1)


def test_modules_of_the_users_own_do_not_replace_others(tmp_path, monkeypatch):
    for name in ("queue", "threading", "multiprocessing", "pytest_quant"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    given = {name: value for name, value in os.environ.items() if name != "PYTHONSAFEPATH"}
    process = EngineProcess(environment(given, "cpu", 1))
    try:
        with pytest.raises(EngineError, match="no prompts were read"):
            process.call("steps", 1)
    finally:
        process.close()


def test_an_engine_that_leaves_says_why_and_is_not_called_killed(tmp_path):
    fake = tmp_path / "vllm"
    fake.mkdir()
    (fake / "__init__.py").write_text("import sys\ndef __getattr__(name):\n    sys.exit(7)\n")
    process = EngineProcess(environment({**os.environ, "PYTHONPATH": str(tmp_path)}, "cpu", 1))
    try:
        with pytest.raises(EngineError, match="SystemExit: 7"):
            process.call("start", {})
        process._process.wait(20)
        assert process._process.returncode == 7
        assert not process.alive
        with pytest.raises(NotMeasured, match="exit status 7"):
            process.call("steps", 1)
    finally:
        process.close()


class NeverThere:
    """Pickled here, and made again nowhere."""

    def __reduce__(self):
        return int, ("no number",)


def test_an_argument_that_cannot_be_sent_or_made_again_is_refused_and_the_engine_lives(engine):
    with pytest.raises(UsageError, match=r"cannot be sent to the process of vLLM .*plain values"):
        engine.call("steps", lambda: 1)
    with pytest.raises(UsageError, match=r"cannot be made again in the process of vLLM \(ValueError: .*plain values"):
        engine.call("steps", NeverThere())
    assert engine.alive
    with pytest.raises(EngineError, match="no prompts were read"):
        engine.call("steps", 1)


PARENT = """
import os, sys, time
from pytest_quant.engines.vllm.environment import environment
from pytest_quant.engines.vllm.process import EngineProcess
process = EngineProcess(environment(os.environ, "cpu", 1))
print(process.pid, flush=True)
{then}
"""


@pytest.mark.parametrize(("then", "sent"), [("time.sleep(600)", signal.SIGKILL), ("", None), ("os._exit(3)", None)])
def test_it_ends_with_the_process_that_started_it(then, sent, tmp_path):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT.format(then=then)],
        stdout=subprocess.PIPE,
        text=True,
        env={**environment(os.environ, ""), "TMPDIR": str(tmp_path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    if sent is not None:
        os.kill(parent.pid, sent)
    parent.wait()
    parent.stdout.close()
    assert gone(pid)
    assert list(tmp_path.iterdir()) == []


def test_what_a_log_says_last():
    text = (
        "\x1b[0;36m(EngineCore pid=7)\x1b[0m INFO 11-21 20:19:06 [hf.py:648] all is well\n"
        "(Worker pid=8) ERROR 11-21 20:19:07 [multiproc.py:1] RuntimeError: no such kernel\n"
        "(EngineCore pid=7) ERROR 11-21 20:19:08 [core.py:2] Exception: WorkerProc initialization failed due to it. "
        "See stack trace for root cause.\n"
        "100%|####| 3/3\n"
    )
    assert last_words(text) == "RuntimeError: no such kernel"
    assert last_words("INFO 11-21 20:19:06 [a.py:1] Loading the weights\n\n") == ""
    assert last_words("") == ""


def test_what_is_told_of_an_exception():
    class ValidationError(ValueError):
        pass

    wrong = ValidationError("1 validation error for EngineArgs\n  Value error, no such thing [type=value_error, a]\n")
    assert told(wrong) == ("failed", "Value error, no such thing")
    assert told(MemoryError("enough"))[0] == "memory"
    assert told(ValueError("No available memory for the cache blocks. Try more."))[0] == "memory"
    loading = ValueError("loading failed")
    loading.__cause__ = RuntimeError("CUDA out of memory. Tried 2 GiB")
    assert told(loading) == ("memory", "RuntimeError: CUDA out of memory. Tried 2 GiB")
    assert told(UsageError("so")) == ("usage", "so")
    assert told(Unsupported("a", "b", "c")) == ("unsupported", ("a", "b", "c"))
    long = "10 GiB KV cache is needed, which is larger than the available KV cache memory (1 GiB)."
    assert told(ValueError(long))[0] == "usage"
    assert told(KeyError())[0] == "failed"
