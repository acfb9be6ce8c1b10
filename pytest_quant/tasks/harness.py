"""lm-eval itself: imported when first needed, quiet, and with the seeds of its own command line."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version

from pytest_quant.engines.quiet import quiet
from pytest_quant.errors import Unsupported

FEWSHOT_SEED = 1234
"""Of ``lm-eval``'s command line, as are those of :func:`seeded`."""
_PYTHON_SEED, _NUMPY_SEED = 0, 1234
_LOUD = ("lm_eval", "datasets")


def require() -> None:
    """Import it. :class:`Unsupported` where it is not installed, or too old to find tasks one by one."""
    try:
        with silence():
            from lm_eval.models import huggingface  # noqa: F401
            from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise Unsupported(
            asked="task_accuracy, which runs tasks of lm-eval",
            found=f"lm-eval cannot be imported ({error})",
            needed="pip install 'pytest-quant[lm-eval]'",
        ) from None
    if not hasattr(TaskManager, "load"):
        raise Unsupported(
            asked="task_accuracy, which runs tasks of lm-eval",
            found=f"lm-eval {installed()}",
            needed="lm-eval 0.4.12 or later: pip install 'pytest-quant[lm-eval]'",
        )


def installed() -> str:
    """The version of it."""
    return version("lm-eval")


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Without its notices and progress bars, and those of the libraries below it; restored afterwards."""
    levels = {name: logging.getLogger(name).level for name in _LOUD}
    for name in _LOUD:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        with quiet(), contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Random numbers as ``lm-eval``'s command line starts them: some tasks shuffle their choices when they are loaded.
    Restored afterwards."""
    import random

    import numpy as np

    python, numpy = random.getstate(), np.random.get_state()
    random.seed(_PYTHON_SEED)
    np.random.seed(_NUMPY_SEED)
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Each template is compiled once, and not anew for each document: building five-shot prompts takes a twentieth of
    the time."""
    from lm_eval import utils

    environment = getattr(utils, "env", None)
    if environment is None:
        yield
        return
    environment.from_string = lru_cache(maxsize=1024)(environment.from_string)
    try:
        yield
    finally:
        del environment.from_string
