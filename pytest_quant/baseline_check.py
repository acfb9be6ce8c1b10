"""``pytest-quant baseline check``: whether files are what a run writes and finds; what the hook for pre-commit runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pytest_quant import answering, baseline
from pytest_quant.cache import expanded
from pytest_quant.counting import counted
from pytest_quant.errors import UsageError
from pytest_quant.visible import one_line

if TYPE_CHECKING:
    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

DEFAULT = "quant-baselines"
_DESCRIPTION = """\
Are these baseline files sound? Each is read as a run reads it (its JSON, its
schema, finite numbers, no measurement twice, no conflict left by a merge), has
to lie where a run looks for it, and to be byte for byte what a run writes.
Exit codes: 0 all are, 1 one is not (also when --fix has mended it), 2 there is
nothing to check."""
_EXAMPLES = """\
examples:
  pytest-quant baseline check
  pytest-quant baseline check --fix quant-baselines
  pytest-quant baseline check --json quant-baselines/nvidia-l4"""


def add(actions: Subparsers) -> None:
    """Add ``check`` to the actions of ``baseline``."""
    parser = actions.add_parser(
        "check",
        help="whether files are what a run writes and finds; for a pre-commit hook",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    parser.add_argument("places", metavar="PATH", nargs="*", help=f"folders or files (default: {DEFAULT})")
    parser.add_argument("--fix", action="store_true", help="write those again that are sound but in another form")
    answering.add_json(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Check every file, say what is wrong and, with ``--fix``, write what can be mended."""
    places = [expanded(name) for name in told.places or [DEFAULT]]
    paths = list(dict.fromkeys(path for each in places for path in baseline.files_at(each)))
    if not paths:
        raise UsageError(
            f"baseline check: no JSON file in {', '.join(map(str, places))}; `pytest --quant-baseline` records some"
        )
    checked = [baseline.check(path) for path in paths]
    found = [finding for each in checked for finding in each.findings]
    fixed = [each for each in checked if told.fix and any(finding.fixable for finding in each.findings)]
    for each in fixed:
        if each.file is not None:
            baseline.write(each.path, each.file)
    mended = {each.path for each in fixed}
    left = [finding for finding in found if not (finding.fixable and finding.path in mended)]
    if told.json:
        data = {
            "files": len(checked),
            "problems": [{"file": str(one.path), "kind": one.kind, "problem": one.text} for one in left],
            "fixed": sorted(path.as_posix() for path in mended),
        }
        return answering.answer(data, 1 if found else 0)
    for finding in left:
        print(one_line(finding.text))
    for path in sorted(mended):
        print(f"{one_line(str(path))}: written in the form of a run; add it to the commit")
    wrong = len({finding.path for finding in found})
    verdict = f"{wrong} not as it should be" if wrong else "all sound"
    print(f"{counted(len(checked), 'baseline file')} checked: {verdict}")
    return 1 if found else 0
