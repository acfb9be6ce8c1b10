"""What a quantized checkpoint was made from, kept in its own folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_quant.errors import UsageError

FILE = "pytest_quant_record.json"
SCHEMA = 1


@dataclass(frozen=True)
class Record:
    """Where a checkpoint comes from. ``calibration`` is ``None`` where the method looks at no text."""

    base: str
    """Fingerprint of the base model."""
    base_name: str
    format: Mapping[str, Any]
    """As in a measurement's identity."""
    recipe: Mapping[str, Any]
    """How the quantizer says that it went about it."""
    calibration: Mapping[str, Any] | None
    """Identity of the calibration set."""
    versions: Mapping[str, str]
    made: str
    """UTC, to the second."""

    @property
    def calibrated_on(self) -> tuple[str, ...]:
        """Hashes of the corpora."""
        return tuple(str(part.get("sha256")) for part in (self.calibration or {}).get("corpora", ()))

    @property
    def short(self) -> str:
        """The recipe and the calibration set in a few words, for people."""
        told = ", ".join(f"{name} {value}" for name, value in self.recipe.items() if name != "method")
        words = str(self.recipe.get("method", self.format.get("name", "?"))) + (f" ({told})" if told else "")
        if self.calibration is None:
            return f"{words}, no calibration"
        corpora = " and ".join(str(part.get("corpus")) for part in self.calibration.get("corpora", ()))
        size = f"{self.calibration.get('samples')} x {self.calibration.get('tokens')} tokens"
        return f"{words}, calibrated on {size} of {corpora}"


def text(record: Record) -> str:
    """The content of the record's file."""
    return json.dumps({"schema": SCHEMA, **asdict(record)}, indent=1, sort_keys=True) + "\n"


def read(file: Path) -> Record | None:
    """The record in a file; ``None`` where there is no file.

    :class:`UsageError` where it is malformed, or of a newer version.
    """
    try:
        content = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file}: cannot be read: {error}; quantize the model again") from None
    return parse(content, str(file))


def parse(content: str, where: str) -> Record:
    """The record that a file's content is; ``where`` names it in errors."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where}: is no JSON: {error}; quantize the model again") from None
    if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
        raise UsageError(f"{where}: is no record of a quantized checkpoint; quantize the model again")
    if data["schema"] > SCHEMA:
        raise UsageError(
            f"{where}: was written by a newer pytest-quant (schema {data['schema']}); upgrade pytest-quant"
        )
    kinds = {"base": str, "base_name": str, "format": dict, "recipe": dict, "versions": dict, "made": str}
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind):
            raise UsageError(f'{where}: "{name}" is missing or no {kind.__name__}; quantize the model again')
    calibration = data.get("calibration")
    if not isinstance(calibration, (dict, type(None))):
        raise UsageError(f'{where}: "calibration" is neither an object nor null; quantize the model again')
    corpora = (calibration or {}).get("corpora", [])
    if not isinstance(corpora, list) or not all(isinstance(part, dict) for part in corpora):
        raise UsageError(f'{where}: "calibration" lists no corpora; quantize the model again')
    if not isinstance(data["format"].get("parameters", {}), dict):
        raise UsageError(f'{where}: "format" has malformed parameters; quantize the model again')
    return Record(**{name: data[name] for name in kinds}, calibration=calibration)
