"""The process of an engine: ``main`` answers calls on the inherited connection whose number is the first argument.

A call is ``(name, arguments)``, an answer ``("answer", value)`` or ``(kind of error, what it says)``; ``None`` asks it
to end. One thread reads, so that it is noticed at once when the other side is gone, in the middle of a call too.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import sys
import threading
import time
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import Any

from pytest_quant.errors import UsageError

_GRACE = 3.0
"""Seconds to end by itself when nobody listens any more."""


def main() -> None:
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(fd)
    calls: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(connection, calls), daemon=True).start()
    engine: Any = None
    status: int | None = None
    """What to end with, where something in the engine ended it."""
    try:
        while (call := calls.get()) is not None:
            try:
                if isinstance(call, Exception):
                    raise call
                name, arguments = call
                if engine is None:
                    from pytest_quant.engines.vllm.work import Work

                    engine = Work()
                answer = ("answer", getattr(engine, name)(*arguments))
            except Exception as error:
                from pytest_quant.engines.vllm.telling import told

                answer = told(error)
            except BaseException as error:  # something there ends the process: its words first
                from pytest_quant.engines.vllm.telling import told

                connection.send(told(error))
                status = error.code if isinstance(error, SystemExit) and isinstance(error.code, int) else 1
                break
            connection.send(answer)
    finally:
        with contextlib.suppress(Exception):
            if engine is not None:
                engine.end()
        if status is not None and not _has_children():
            _flush()
            os._exit(status)
        _end_group()


def _read(connection: Connection, calls: queue.SimpleQueue[Any]) -> None:
    """Pass on the calls. When the connection closes there is nobody to serve, and a call that runs is cut short."""
    with contextlib.suppress(EOFError, OSError):
        while (call := _opened(connection.recv_bytes())) is not None:
            calls.put(call)
        calls.put(None)
        with contextlib.suppress(EOFError, OSError):
            connection.recv_bytes()  # nothing more comes: the other side waits for the end, or is gone
    calls.put(None)
    time.sleep(_GRACE)
    _end_group()


def _opened(sent: bytes) -> Any:
    """The call that was sent, or the :class:`UsageError` to answer where this process cannot make its arguments."""
    try:
        return ForkingPickler.loads(sent)
    except Exception as error:  # whatever the class of an argument raises, or the import of its module
        return UsageError(
            f"an argument cannot be made again in the process of vLLM ({type(error).__name__}: {error}); give plain "
            f"values: numbers, texts, lists and dicts"
        )


def _end_group() -> None:
    """End this process with all that belongs to its group: workers that vLLM started."""
    _flush()
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(0)


def _flush() -> None:
    sys.stdout.flush()
    sys.stderr.flush()


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
