"""``pytest-quant init``: from a model to a test file that holds here."""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quant import answering
from pytest_quant.cache import expanded
from pytest_quant.errors import NotMeasured, UsageError

if TYPE_CHECKING:
    from pytest_quant.init.file import Written
    from pytest_quant.init.measure import Finding
    from pytest_quant.options import Options
    from pytest_quant.spec import ModelSpec

    Subparsers = argparse._SubParsersAction[argparse.ArgumentParser]

METRICS = ("perplexity_delta", "token_agreement", "kl_divergence", "memory_budget", "throughput_ratio")
USUAL = ("perplexity_delta", "token_agreement", "memory_budget", "throughput_ratio")
_OUTPUT = "tests/test_quantization.py"
_ABOUT = """\
Write a first test file for a model, with limits that are measured on the spot.

The model is loaded in each format that runs here and compared with its
reference: perplexity, same top token, bytes of weights, and decode speed where
nothing disturbs the clock. Each limit is what was measured, with room; the file
says both. It is measured as `pytest` would measure it here (its ini file, its
conftest.py, its cache), so that the first run finds the reference stored.
Exit codes: 0 written, 1 written, but something that was measured looks broken
and got no limit, 2 nothing written."""
_EXAMPLES = """\
examples:
  pytest-quant init .models/SmolLM2-135M-Instruct
  pytest-quant init org/model --formats int8,nf4 --reference bf16 --dry-run
  pytest-quant init org/model --metrics perplexity_delta,memory_budget
  pytest-quant init org/model --pytest-arguments=--quant-protocol=gptq-512"""


def add(commands: Subparsers) -> None:
    """Add ``init`` to the command's subcommands."""
    parser = commands.add_parser(
        "init",
        help="write a first test file for a model, with measured limits",
        description=_ABOUT,
        epilog=_EXAMPLES,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument(
        "--formats",
        metavar="A,B",
        help="formats (default: the project's, else one of 8 bits and one of 4 that run here)",
    )
    parser.add_argument(
        "--reference", metavar="FORMAT", help="fp16, bf16 or fp32 (default: the project's; on a CPU fp32, not fp16)"
    )
    parser.add_argument(
        "--metrics", metavar="A,B", help=f"of {', '.join(METRICS)} (default: all of these but kl_divergence)"
    )
    parser.add_argument("--output", metavar="FILE", default=_OUTPUT, help="where it goes (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    parser.add_argument("--dry-run", action="store_true", help="print the file instead of writing it")
    parser.add_argument(
        "--budget",
        metavar="SECONDS",
        type=float,
        default=120.0,
        help="to score a format, at most (default: %(default)g)",
    )
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a hub model")
    parser.add_argument("--trust-remote-code", action="store_true", help="run code that comes with a hub model")
    parser.add_argument("--pytest-arguments", metavar="TEXT", help="what pytest is told here too, such as a corpus")
    answering.add_json(parser)
    parser.set_defaults(run=run)


def run(told: argparse.Namespace) -> int:
    """Measure, write the file and say what to do next."""
    own: list[str] = []
    try:
        return _run(told, own)
    finally:
        if own:
            from pytest_quant.formats import registry

            registry.forget(own)


def _run(told: argparse.Namespace, own: list[str]) -> int:
    metrics, output = _metrics(told.metrics), expanded(told.output)
    if not 0 < told.budget < math.inf:
        raise UsageError(f"--budget={told.budget:g}: give seconds, more than 0")
    _check_output(output, force=told.force or told.dry_run)
    model = _model(told.model)

    from pytest_quant.init.project import options_for

    with answering.undisturbed(told):
        options = options_for(output, _words(told.pytest_arguments), own)
        written, formats, left_out = _measured(told, options, model, metrics)

    from pytest_quant.init import file
    from pytest_quant.init.limits import Limit, Refused

    findings = [finding for _, found in formats for finding in found]
    if not any(isinstance(finding.result, Limit) for finding in findings):
        reasons = "; ".join(f"{name} {one.metric}: {file.reason(one)}" for name, found in formats for one in found)
        raise NotMeasured(f"nothing that was measured gives a limit, so no file was written: {reasons}")
    broken = any(isinstance(finding.result, Refused) and finding.result.broken for finding in findings)
    text = file.render(written, formats)
    if not told.dry_run:
        try:
            _write(output, text, force=told.force)
        except UsageError as error:
            if told.json:
                print(f"pytest-quant: {error}", file=sys.stderr)
                return answering.answer({"error": str(error), "text": text}, 2)
            print(text, end="")  # what was measured is not lost
            raise
    steps = _next(told, output, options.baseline_path)
    if told.json:
        data = {
            "model": written.model,
            "reference": written.reference,
            "machine": written.machine,
            "scored_on": written.text,
            "path": None if told.dry_run else output.as_posix(),
            "text": text,
            "formats": [{"format": name, "metrics": [_plain(one) for one in found]} for name, found in formats],
            "left_out": [{"format": name, "reason": why} for name, why in left_out],
            "next": steps,
        }
        return answering.answer(data, 1 if broken else 0)
    notes = [f"{name}: left out; {why}" for name, why in left_out]
    notes += [
        f"{name} {one.metric}: no limit; {why}" for name, found in formats for one in found if (why := file.reason(one))
    ]
    if told.dry_run:
        print(text, end="")
        print(*notes, sep="\n", end="\n" if notes else "", file=sys.stderr)
        return 1 if broken else 0
    print("\n".join([*_table(written, formats), *notes, "", f"{output}: written. Next:", *(f"  {s}" for s in steps)]))
    return 1 if broken else 0


def _measured(
    told: argparse.Namespace, options: Options, model: str, metrics: Sequence[str]
) -> tuple[Written, list[tuple[str, tuple[Finding, ...]]], Sequence[tuple[str, str]]]:
    """What the file says, its formats with what was measured of each, and the formats that were left out."""
    from pytest_quant import asking
    from pytest_quant.environment import clock, timestamp
    from pytest_quant.formats import registry
    from pytest_quant.init.choosing import choose, reference_for
    from pytest_quant.init.file import Written
    from pytest_quant.init.measure import measure
    from pytest_quant.run_settings import settings_of
    from pytest_quant.schemas import Quant
    from pytest_quant.session import Session
    from pytest_quant.targets import spec_of

    progress = asking.progress()
    session = Session(settings_of(options), progress)
    reference = registry.get(told.reference or reference_for(session.device, options.reference)).name
    if registry.get(reference).quantized:
        raise UsageError(f"--reference={reference} is a quantized format; use fp16, bf16 or fp32")
    named = _named_from(options.rootpath, model)
    remote = True if told.trust_remote_code else None
    marker = Quant(model=named, reference=reference, revision=told.revision, trust_remote_code=remote)
    spec = spec_of(marker, options)
    asked = [registry.get(name).name for name in (told.formats or "").replace(",", " ").split()]
    if reference in asked:
        raise UsageError(
            f"--formats={told.formats}: {reference} is the reference; name formats that are compared with it"
        )
    usual = [name for name in options.formats or () if name != reference]
    with contextlib.closing(session), _shown(progress):
        session.check(spec, reference)
        chosen = choose(list(dict.fromkeys(asked)), usual, lambda name: session.check(spec, name))
        formats = [
            (name, measure(session, spec, name, metrics, told.budget))
            for name in _in_turn(session, spec, chosen.formats)
        ]
        device = session.device
    settings = session.settings
    corpus = Path(settings.corpus).name
    text = f"windows of {corpus} ({settings.protocol})"
    source = {"revision": told.revision, "trust_remote_code": remote}
    written = Written(
        model=named,
        short=spec.source.short,
        reference=reference,
        text=text,
        machine=device.name,
        date=timestamp(clock())[:10],
        source={name: value for name, value in source.items() if value is not None},
    )
    return written, formats, chosen.left_out


def _in_turn(session: Any, spec: ModelSpec, formats: Sequence[str]) -> Iterator[str]:
    """Each format, once the one before it has given its memory back."""
    for name in formats:
        session.models.keep({(spec, name), (spec, spec.reference)})
        yield name


@contextlib.contextmanager
def _shown(progress: Any) -> Iterator[None]:
    try:
        yield
    finally:
        progress.clear()


def _metrics(text: str | None) -> tuple[str, ...]:
    if text is None:
        return USUAL
    names = tuple(dict.fromkeys(text.replace(",", " ").split()))
    for name in names:
        if name not in METRICS:
            raise UsageError(
                f"--metrics={text}: there is no metric {name!r} to begin with; there are {', '.join(METRICS)}"
            )
    if not names:
        raise UsageError(f"--metrics: name one or more of {', '.join(METRICS)}")
    return names


def _words(text: str | None) -> list[str]:
    try:
        return shlex.split(text or "")
    except ValueError as error:
        raise UsageError(f"--pytest-arguments={text}: {error}; write them as for a shell") from None


def _model(name: str) -> str:
    """The model's folder from the root of the file system, or a hub id."""
    path = expanded(name)
    if path.is_dir():
        return str(path.absolute())
    if path.exists():
        raise UsageError(f"{name} is a file; give the model's folder (config.json, *.safetensors) or a hub id")
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise UsageError(f"{name}: there is no such folder; give the model's folder or a hub id, such as org/model")
    return name


def _named_from(root: Path, model: str) -> str:
    """The model as a marker names it: relative to the rootdir where it lies below that."""
    path = Path(model)
    if not path.is_absolute():
        return model
    try:
        return path.relative_to(root.absolute()).as_posix()
    except ValueError:
        return path.as_posix()


def _check_output(path: Path, *, force: bool) -> None:
    if path.is_dir():
        raise UsageError(f"--output={path}: that is a folder; name a file in it")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already; give another --output, or --force to replace it")
    above = next((each for each in path.absolute().parents if each.exists()), path)
    if not above.is_dir():
        raise UsageError(f"--output={path}: {above} is a file, so nothing can lie below it; give another --output")
    if not force and not os.access(above, os.W_OK | os.X_OK):
        raise UsageError(f"--output={path}: {above} cannot be written to; give another --output")


def _write(path: Path, text: str, *, force: bool) -> None:
    """Write the file whole; what was written there meanwhile stays, unless that is to be replaced."""
    from pytest_quant import atomic

    _check_output(path, force=force)
    try:
        atomic.replace(path, text.encode(), prefix="quant-init")
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {atomic.cause(error)}; give another --output") from error


def _table(written: Written, formats: Sequence[tuple[str, Sequence[Finding]]]) -> list[str]:
    from pytest_quant.init.file import figures
    from pytest_quant.init.limits import Limit
    from pytest_quant.report.columns import aligned

    rows = [("format", "metric", "measured", "limit")]
    for name, found in formats:
        for one in found:
            limit = f"{one.result.argument}={one.result.value!r}" if isinstance(one.result, Limit) else "-"
            rows.append((name, one.metric, figures(one), limit))
    title = f"{written.short} beside {written.reference} on {written.machine}, {written.text}"
    return [title, *aligned(rows)]


def _plain(finding: Finding) -> dict[str, Any]:
    """A finding as plain data; what there is not is absent."""
    from pytest_quant.init.file import reason
    from pytest_quant.init.limits import Limit

    found = finding.quantity
    data: dict[str, Any] = {"metric": finding.metric}
    if isinstance(finding.result, Limit):
        data["limit"] = {finding.result.argument: finding.result.value}
    else:
        data["reason"] = reason(finding)
    if found is not None:
        numbers = {"value": found.value, "low": found.low, "high": found.high}
        data.update({name: value for name, value in numbers.items() if abs(value) < float("inf")}, unit=found.unit)
    if finding.windows is not None:
        data["windows"] = {"used": finding.windows[0], "total": finding.windows[1]}
    if finding.rounds is not None:
        data["rounds"] = finding.rounds
    return data


def _next(told: argparse.Namespace, output: Path, baselines: Path) -> list[str]:
    """The commands that come after this one, once the file is there."""
    place = os.path.relpath(output)
    return [
        shlex.join(["pytest", "--quant-baseline", *_words(told.pytest_arguments), place]),
        shlex.join(["git", "add", place, os.path.relpath(baselines)]),
    ]
