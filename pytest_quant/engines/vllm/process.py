"""The process that an engine runs in: started, asked, and ended with all of its own, whatever happens.

It is the leader of a session and of a process group. So Ctrl-C in a terminal does not reach it before this process has
asked it to stop, and its workers (tensor parallelism) can be ended with it. When this process dies, even by kill -9,
the other end of the connection closes, and the engine ends itself and its group (:mod:`.serve`).
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from typing import IO, Any

from pytest_quant.errors import NotMeasured, Unsupported, UsageError

_START = (
    "import sys; sys.path[:] = [each for each in sys.path if each]; "
    "from pytest_quant.engines.vllm.serve import main; main()"
)
"""What the process runs: the folder that a run is in is no place for its modules, where a ``queue.py`` or a folder
``vllm`` of the user's would be taken for another. Its children are told so by the environment (:mod:`.environment`)."""
_LOOK = 0.2
"""Seconds between two looks at whether the process is alive, while it owes an answer."""
_POLITE, _FIRM = 20.0, 5.0
"""Seconds that it has to end after it was asked to, and after SIGTERM."""
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_PREFIX = re.compile(r"^(\([^)]*pid=\d+\)\s*)?((DEBUG|INFO|WARNING|ERROR)\s+\d\d-\d\d [\d:]+ \[[^]]*\]\s*)?")
_SAYS = re.compile(r"^[\w.]*(Error|Exception|Interrupt)\b:? ?\S")
_GENERIC = (
    "see stack trace",
    "see root cause",
    "engine core initialization failed",
    "workerproc initialization failed",
    "systemexit",
)


class EngineProcess:
    """A process that serves calls, one at a time. Its output goes to a temporary file without a name, which is gone
    with the last of the two processes, however they end."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        ours, theirs = multiprocessing.Pipe()
        self._connection = ours
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        fd = theirs.fileno()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _START, str(fd)],
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                pass_fds=(fd,),
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            self._log.close()
            raise
        finally:
            theirs.close()
        self._broken: str | None = None
        # at the interpreter's end too, but not in a process that was forked from this one
        self._end = weakref.finalize(self, _end, self._process, ours, self._log, os.getpid(), idle := [True])
        self._idle = idle

    @property
    def pid(self) -> int:
        """Of the process, and of its group."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._broken is None and self._end.alive and not _has_ended(self._process)

    def call(self, name: str, *arguments: Any) -> Any:
        """What the engine answers, however long it takes.

        Raises what it reports: ``MemoryError``, :class:`UsageError`, :class:`Unsupported`, and :class:`NotMeasured`
        for everything else that went wrong there, or where it has died. :class:`UsageError` too for arguments that
        cannot be sent.
        """
        if self._broken is not None or not self._end.alive:
            raise NotMeasured(f"the vLLM engine has ended{f': {self._broken}' if self._broken else ''}")
        sent = _packed(name, arguments)
        self._idle[0] = False
        try:
            self._connection.send_bytes(sent)
            while not self._connection.poll(_LOOK):
                if _has_ended(self._process) and not self._connection.poll(0):
                    raise EOFError
            kind, answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._died(name) from None
        except BaseException:  # Ctrl-C: what it would answer is of a question that nobody asks any more
            self._broken = f"it was interrupted while it was asked for {name}"
            self.close()
            raise
        self._idle[0] = True
        if kind == "answer":
            return answer
        raise _error(kind, answer, self.said())

    def said(self) -> str:
        """The last line of its output that names an error; empty where none does."""
        return last_words(_tail(self._log))

    def close(self) -> None:
        """End the process and all that it started; returns when they are gone."""
        self._end()

    def _died(self, name: str) -> NotMeasured:
        _wait(self._process, _FIRM)
        code, said = _code(self._process), self.said()
        how = f"killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        if code == -signal.SIGKILL:
            how += ", as the kernel does when memory runs out"
        self._broken = f"it died while it was asked for {name} ({how})"
        self.close()
        return NotMeasured(f"the vLLM engine died while it was asked for {name} ({how}){_quoted(said)}")


def last_words(text: str) -> str:
    """Of a log, the last line that names an error, rather one that does not only say that there was one elsewhere;
    empty where none does. Without colours and vLLM's prefix, at most 400 characters."""
    lines = [_PREFIX.sub("", _COLOUR.sub("", line).strip()) for line in re.split(r"[\r\n]+", text)]
    errors = [line for line in lines if _SAYS.match(line)]
    telling = [line for line in errors if not any(words in line.lower() for words in _GENERIC)]
    return next((found[-1][:400] for found in (telling, errors) if found), "")


def _packed(name: str, arguments: tuple[Any, ...]) -> memoryview:
    """A call as it is sent; :class:`UsageError` where an argument cannot be."""
    try:
        return ForkingPickler.dumps((name, arguments))
    except Exception as error:  # pickle's own, and whatever the class of an argument raises
        raise UsageError(
            f"an argument cannot be sent to the process of vLLM ({type(error).__name__}: {error}); give plain values: "
            f"numbers, texts, lists and dicts"
        ) from None


def _error(kind: str, told: Any, said: str) -> Exception:
    """The exception for what an engine reports as ``(kind, told)``."""
    if kind == "memory":
        return MemoryError(told)
    if kind == "usage":
        return UsageError(told)
    if kind == "unsupported":
        return Unsupported(*told)
    if any(words in told.lower() for words in _GENERIC):
        told += _quoted(said)
    return EngineError(f"the vLLM engine failed: {told}", told)


class EngineError(NotMeasured):
    """The engine raised something; ``told`` is what, without our words."""

    def __init__(self, message: str, told: str) -> None:
        super().__init__(message)
        self.told = told


def _quoted(said: str) -> str:
    return f"; it said: {said}" if said else "; its output names no error"


def _tail(file: IO[bytes], most: int = 1 << 16) -> str:
    """The end of a file; its position, which is also the one that the other process writes at, stays."""
    with contextlib.suppress(OSError, ValueError):  # it is closed
        fd = file.fileno()
        return os.pread(fd, most, max(0, os.fstat(fd).st_size - most)).decode("utf-8", "replace")
    return ""


def _end(process: subprocess.Popen[bytes], connection: Connection, log: Any, owner: int, idle: list[bool]) -> None:
    """Ask the process to end, then insist; then whatever is left of its group is killed."""
    if os.getpid() != owner:
        return
    if idle[0]:
        with contextlib.suppress(OSError, ValueError):
            connection.send(None)
    ended = _wait(process, _POLITE if idle[0] else 0.0)
    if not ended:
        _signal_group(process, signal.SIGTERM)
        _wait(process, _FIRM)
    _signal_group(process, signal.SIGKILL)  # the leader is not reaped yet, so that the number is still the group's
    process.wait()
    connection.close()
    with contextlib.suppress(OSError):
        log.close()


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ends within so many seconds; it is not reaped."""
    limit = time.monotonic() + seconds
    while not (ended := _has_ended(process)) and time.monotonic() < limit:
        time.sleep(0.02)
    return ended


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    return process.returncode is not None or _state(process) is not None


def _code(process: subprocess.Popen[bytes]) -> int | None:
    """Its exit status as ``Popen.returncode`` has it; ``None`` while it lives."""
    if process.returncode is not None:
        return process.returncode
    state = _state(process)
    if state is None:
        return None
    return int(state.si_status) if state.si_code == os.CLD_EXITED else -int(state.si_status)


def _state(process: subprocess.Popen[bytes]) -> Any:
    """What the system tells of a child that has ended and is not reaped."""
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # somebody else reaped it
        process.poll()
        return None
