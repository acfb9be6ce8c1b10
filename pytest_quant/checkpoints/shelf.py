"""Where quantized checkpoints lie: named by the test suite, or made before and kept in the cache."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quant.checkpoints import record as records
from pytest_quant.checkpoints.record import Record
from pytest_quant.errors import NotMeasured, UsageError
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format


@dataclass(frozen=True)
class Checkpoint:
    """A folder, a file or a hub id, and what is known of how it was made."""

    place: str
    record: Record | None
    of_this_base: bool | None = None
    """Whether it is known to be of the base model that it is measured against."""


def named(place: str) -> Checkpoint:
    """A checkpoint that the test suite names, with its record if it has one; :class:`UsageError` for a damaged one."""
    folder = Path(place)
    if folder.is_dir():
        return Checkpoint(place, records.read(folder / records.FILE))
    return Checkpoint(place, None if folder.exists() else _record_on_the_hub(place))


def checked(checkpoint: Checkpoint, format: Format, recipe: Collection[str], fingerprint: str, base: str) -> Checkpoint:
    """The checkpoint, if its record does not speak against it. ``recipe`` names the parameters that only the record can
    show; ``fingerprint`` is that of the model ``base``.

    Raises :class:`NotMeasured` where it was made from another state of the model, as another format or with other
    parameters.
    """
    record = checkpoint.record
    if record is None:
        return checkpoint
    if record.format.get("backend") != format.backend:
        raise NotMeasured(
            f"the checkpoint {checkpoint.place} was made as {record.format.get('name')} by "
            f"{record.format.get('backend')}, not as {format.name}"
        )
    carried_out = {**record.recipe, **record.format.get("parameters", {})}
    for name in recipe:
        if name in format.parameters and carried_out.get(name) != format.parameters[name]:
            raise NotMeasured(
                f"the checkpoint {checkpoint.place} was made with {name} {carried_out.get(name)!r}, {format.name} asks "
                f"for {format.parameters[name]!r}"
            )
    if record.base.startswith("sha256:") != fingerprint.startswith("sha256:"):
        return replace(checkpoint, of_this_base=None)  # a folder and a commit of a hub: not comparable
    if record.base != fingerprint:
        raise NotMeasured(
            f"stale: the {format.name} checkpoint {checkpoint.place} was made on {record.made} from {record.base_name} "
            f"({record.base}), and {base} is {fingerprint} now; quantize it again: {command(base, format)} "
            f"--output {checkpoint.place}"
        )
    return replace(checkpoint, of_this_base=True)


def command(base: str, format: Format) -> str:
    """The command that makes a checkpoint of the format: of a variant, what it is a variant of, with its parameters."""
    said = f"pytest-quant quantize {base} --format {format.variant_of or format.base}"
    if format.variant_of:
        usual = registry.get(format.variant_of)
        changed = {key: value for key, value in format.parameters.items() if usual.parameters.get(key) != value}
        said += "".join(f" --set {key}={value}" for key, value in changed.items())
        said += "".join(f" --exclude {pattern!r}" for pattern in format.exclude if pattern not in usual.exclude)
    return said


def kept(folder: Path, format: Format, fingerprint: str, calibration: Mapping[str, Any] | None) -> Checkpoint | None:
    """The newest checkpoint in the cache of that base and format, and of that calibration set where one is given."""
    fitting = [
        checkpoint
        for checkpoint in _all(folder)
        if checkpoint.record is not None
        and checkpoint.record.base == fingerprint
        and _is_of(checkpoint.record, format)
        and (calibration is None or checkpoint.record.calibration == calibration)
    ]
    newest = max(fitting, key=lambda found: (found.record.made if found.record else "", found.place), default=None)
    return None if newest is None else replace(newest, of_this_base=True)


def of_another_base(folder: Path, format: Format, base_name: str) -> Checkpoint | None:
    """A checkpoint in the cache that was made from another state of the model of that name."""
    return next(
        (
            found
            for found in _all(folder)
            if found.record and _is_of(found.record, format) and found.record.base_name == base_name
        ),
        None,
    )


def _is_of(record: Record, format: Format) -> bool:
    """Whether it is of that format, with all the parameters that the format asks for; it may have more of its own."""
    asked, found = registry.describe(format), dict(record.format)
    asked["name"] = format.variant_of or format.base
    recipe = {**record.recipe, **found.pop("parameters", {})}
    wanted = asked.pop("parameters", {})
    return asked == found and all(name in recipe and recipe[name] == value for name, value in wanted.items())


def _all(folder: Path) -> Iterator[Checkpoint]:
    """What lies in the cache; a damaged one is as if it were not there, and is made anew."""
    try:
        found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return
    for path in found:
        try:
            yield Checkpoint(str(path), records.read(path / records.FILE))
        except UsageError:
            continue


def _record_on_the_hub(name: str) -> Record | None:
    from transformers.utils import cached_file

    try:
        found = cached_file(
            name,
            records.FILE,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except (OSError, ValueError):
        return None  # where there is no such model at all, opening it says so
    return records.read(Path(found)) if found else None
