"""Every baseline file of a folder: read at once, the damaged ones told apart from the sound."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pytest_quant.atomic import cause
from pytest_quant.baseline.schema import BaselineError, File
from pytest_quant.baseline.store import read


@dataclass(frozen=True)
class Contents:
    """What lies at a place: sound files by path, sorted, and an error for each that cannot be read."""

    files: tuple[tuple[Path, File], ...]
    damaged: tuple[BaselineError, ...] = ()


def contents(place: str | Path) -> Contents:
    """The baseline files at ``place``: a folder of ``<hardware>/<model>.json``, or one such file.

    Raises BaselineError if there is no such place, if it cannot be listed, or if what looks like baselines lies deeper
    in it than baselines do.
    """
    place = Path(place)
    if not place.is_dir():
        file = read(place)
        if file is None:
            raise BaselineError(f"{place}: there is no such folder or file. Give a folder of baselines, or one file.")
        return Contents(((place, file),))
    try:
        paths = sorted(path for path in place.glob("*/*.json") if path.is_file())
        if not paths and (deeper := sorted(place.glob("*/*/*.json"))):
            folder = deeper[0].parent.parent
            raise BaselineError(f"{place}: holds no baselines itself. Name folders in it that do, such as {folder}.")
    except OSError as error:
        raise BaselineError(f"{place}: cannot be listed: {cause(error)}. Make it a readable folder.") from error
    files, damaged = [], []
    for path in paths:
        try:
            file = read(path)
        except BaselineError as error:
            damaged.append(error)
            continue
        if file is not None:
            files.append((path, file))
    return Contents(tuple(files), tuple(damaged))
