"""Why a quality gate broke: which text, how many tokens, which layers, and what to do next.

Made only for a gate that is broken, from what was scored for it already; and never a reason for anything to fail.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_quant import excerpts, pasting
from pytest_quant.engines.memory import drop_frames, first_line, give_back, origin_out_of_memory
from pytest_quant.errors import Unsupported
from pytest_quant.excerpts import Excerpt
from pytest_quant.formats import registry
from pytest_quant.formats.format import Format
from pytest_quant.gates.gate import Gate
from pytest_quant.metrics import concentration
from pytest_quant.metrics.concentration import Concentration
from pytest_quant.planning.grades import CALIBRATED, grade
from pytest_quant.roofline.amounts import weight_bytes
from pytest_quant.sizes import shown_bytes
from pytest_quant.spec import ModelSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pytest_quant.corpora.windows import Windows
    from pytest_quant.engines.activations import Odd, Standing
    from pytest_quant.hardware import Device
    from pytest_quant.hardware.matrix import Support
    from pytest_quant.metrics.pairing import WindowScore
    from pytest_quant.model import ModelHandle
    from pytest_quant.population import Population
    from pytest_quant.quality import Quality
    from pytest_quant.settings import Settings

METRICS = ("perplexity_delta", "kl_divergence", "token_agreement")
"""Those that are answered from windows of text."""
_SCAN_LIMITS = {"max": "--max", "max_ratio": "--max-ratio"}
"""Limits that a scan takes one of as its budget, the first that there is."""
_ODD = 3
"""Layers that are named at the most."""
_SMALLEST_GROUP = 32

Part = TypeVar("Part")


@dataclass(frozen=True)
class Layers:
    """Which layers differ, each given the reference's own input."""

    standing: Standing
    window: int
    tokens: int
    compared: int
    apart: int
    """Modules with weights that could not be compared."""
    medians: Mapping[str, float]
    """Median error of the quantized modules of each kind."""


@dataclass(frozen=True)
class Explanation:
    """What is known of a broken gate; whatever could not be found out is ``None`` or empty, with a reason."""

    metric: str
    format: str
    reference: str
    unit: str = "token"
    concentration: Concentration | None = None
    windows: tuple[Excerpt, ...] = ()
    since_baseline: bool = False
    """Whether windows are ranked by what they lost since the baseline."""
    layers: Layers | None = None
    no_layers: str = ""
    """Why layers were not compared."""
    cache: bool = False
    """Whether the format quantizes the KV cache too, which no layer shows."""
    next: tuple[str, ...] = ()
    trouble: str = ""
    """Why there is no explanation at all."""

    def record(self) -> dict[str, Any]:
        """Plain JSON: a field that is not known is absent, and no number is NaN or infinite."""
        if self.trouble:
            return {"trouble": self.trouble}
        found: dict[str, Any] = {"metric": self.metric, "format": self.format, "reference": self.reference}
        found["unit"] = self.unit
        if self.concentration is not None:
            found["loss"] = _loss(self.concentration)
        if self.windows:
            found["windows"] = [_present(vars(excerpt)) for excerpt in self.windows]
            found["since_baseline"] = self.since_baseline
        if self.layers is not None:
            found["layers"] = _layers(self.layers)
        if self.no_layers:
            found["no_layers"] = self.no_layers
        if self.cache:
            found["kv_cache"] = True
        if self.next:
            found["next"] = list(self.next)
        return found


class Explainer:
    """Explains broken gates from what the session holds. ``model`` gives a model in a format without giving back
    another, or raises :class:`Unsupported`; ``check`` tells whether a format can run here, and loads nothing."""

    def __init__(
        self,
        settings: Settings,
        device: Device,
        population: Population,
        quality: Quality,
        model: Callable[[ModelSpec, str], ModelHandle],
        check: Callable[[ModelSpec, str], Support],
    ) -> None:
        self._settings = settings
        self._device = device
        self._population = population
        self._quality = quality
        self._model = model
        self._check = check

    def explain(
        self, spec: ModelSpec, format_name: str, gate: Gate, *, before: Sequence[float] | None = None
    ) -> Explanation | None:
        """The explanation; ``None`` where the gate is no quality gate, or nothing was scored for it. With ``before``,
        what each window got in the baseline, windows are ranked by what they lost since then.

        Raises nothing: what goes wrong here, memory that does not suffice included, is a line of the explanation.
        """
        if gate.metric not in METRICS:
            return None
        try:
            if not (scores := self._quality.scored(spec, format_name)):
                return None
            return self._explain(spec, format_name, gate, scores, before)
        except Exception as error:
            said = self._said(error)
            return Explanation(gate.metric, format_name, spec.reference, trouble=f"no explanation: {said}")

    def _explain(
        self,
        spec: ModelSpec,
        format_name: str,
        gate: Gate,
        scores: Sequence[WindowScore],
        before: Sequence[float] | None,
    ) -> Explanation:
        windows = self._population.windows(spec.source)
        handle = self._model(spec, format_name)
        bound = {name for name, _ in gate.limits} == {"max_bound"}
        scored = windows.drawn[: len(scores)]
        losses = [concentration.losses_of(score, gate.metric, bound=bound) for score in scores]
        kinds = excerpts.kinds(handle.tokenizer, scored, losses)
        found = concentration.describe(scores, gate.metric, bound=bound, kinds=kinds, before=before)
        shown = tuple(
            excerpts.excerpt(handle.tokenizer, windows, scores, gate.metric, losses, worst) for worst in found.worst
        )
        layers, no_layers = self._attempt(lambda: self._layers(spec, handle, windows, losses, found))
        steps, _ = self._attempt(lambda: self._next(spec, handle, gate, layers))
        return Explanation(
            metric=gate.metric,
            format=format_name,
            reference=spec.reference,
            unit=windows.unit if gate.metric == "perplexity_delta" else "token",
            concentration=found,
            windows=shown,
            since_baseline=before is not None,
            layers=layers,
            no_layers=no_layers,
            cache=handle.format.kv_cache is not None,
            next=steps or (),
        )

    def _attempt(self, work: Callable[[], Part]) -> tuple[Part | None, str]:
        """What the work gives, or why it gave nothing."""
        try:
            return work(), ""
        except Exception as error:
            return None, self._said(error)

    def _said(self, error: Exception) -> str:
        """What an error says, in one line; what it held is given back."""
        if (cause := origin_out_of_memory(error)) is not None:
            said = f"out of memory ({first_line(cause)})"
        elif isinstance(error, Unsupported):
            said = error.found
        else:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            said = lines[0][:200]
        drop_frames(error)
        if cause is not None:
            give_back(self._device)
        return said

    def _layers(
        self,
        spec: ModelSpec,
        handle: ModelHandle,
        windows: Windows,
        losses: Sequence[NDArray[np.float64]],
        found: Concentration,
    ) -> Layers:
        from pytest_quant.engines import activations

        ours = handle.in_process("comparing layers")
        theirs = self._model(spec, spec.reference).in_process("comparing layers")
        place = found.worst[0].place if found.worst else 0
        tokens = excerpts.stretch(windows.drawn[place], losses[place])
        backend = registry.backend(handle.format)

        def is_quantized(module: Any) -> bool:
            stored = backend.stored(module)
            return stored is not None and stored.num_bits < 16

        compared = activations.compare(theirs, ours, tokens, is_quantized)
        return Layers(
            activations.standing_out(compared),
            windows.drawn[place].index,
            compared.tokens,
            len(compared.errors),
            len(compared.apart),
            activations.medians(compared),
        )

    def _next(self, spec: ModelSpec, handle: ModelHandle, gate: Gate, layers: Layers | None) -> tuple[str, ...]:
        """At most three things to do, the most telling first; one alone where a module differs that is not quantized,
        which no other format mends."""
        format = handle.format
        odd = layers.standing.odd if layers is not None else ()
        if any(not each.quantized for each in odd):
            return ("compare the files of the checkpoint: a module that is not quantized must answer as it did",)
        steps = list(self._apart(spec, format))
        named = [each.name for each in odd if each.quantized]
        if named:
            steps.append(_without(spec, format, named))
        elif format.weights.num_bits < 16:
            steps += self._scan(spec, handle, gate)
        if wider := self._wider(spec, handle):
            steps.append(wider)
        if not odd and (finer := self._finer(spec, format)):
            steps.append(finer)
        return tuple(steps[:3])

    def _scan(self, spec: ModelSpec, handle: ModelHandle, gate: Gate) -> list[str]:
        """Which layers to keep wide for the gate's limit: the command that finds out, where it knows the format. Of a
        variant it scans what that is of, and says so behind the command, in a way that a shell passes over."""
        name = pasting.known_name(handle.format)
        if _is_custom(registry.get(name)):
            return []
        words = ["pytest-quant", "scan", spec.source.name, "--format", name, "--reference", spec.reference]
        words += ["--corpus", self._settings.corpus, "--protocol", self._settings.protocol]
        words += ["--chat-template"] if self._settings.chat_template else []
        if handle.checkpoint is not None:
            words += ["--checkpoint", handle.checkpoint.place]
        if gate.metric == "perplexity_delta":
            words += _budget(dict(gate.limits))
        of = f"  # of {name}, which {handle.format.base} is a variant of" if handle.format.variant_of else ""
        return [shlex.join(words + pasting.opening(spec.source)) + of]

    def _wider(self, spec: ModelSpec, handle: ModelHandle) -> str:
        """The smallest format of a better grade that runs here, with its bytes; empty where there is none."""
        format, bits = handle.format, registry.get(spec.reference).weights.num_bits
        if format.weights.num_bits >= 16:
            return ""
        shape = handle.shape(trust_remote_code=spec.source.trust_remote_code)
        found = []
        for name, other in registry.formats().items():
            better = _order(other) < _order(format) and other.weights.num_bits <= bits
            if not better or other.from_checkpoint or not self._runs(spec, name):
                continue
            size = None if shape is None else weight_bytes(shape, other, bits)
            cost = other.bits_of(bits) if size is None else size
            # what is about as large is told apart by what rounds less: weights only, and integers with a scale a row
            rounder = (other.input_activations is not None, other.weights.type != "int")
            found.append((float(f"{cost:.2g}"), rounder, name, size))
        if not found:
            return ""
        _, _, name, size = min(found)
        if name == spec.reference:
            return ""
        told = f'formats=["{name}"]: {registry.get(name).weights.num_bits} bits, runs here'
        if size is None:
            return told
        return f"{told} in {shown_bytes(size)} of weights ({format.name}: {shown_bytes(handle.weight_bytes)})"

    def _finer(self, spec: ModelSpec, format: Format) -> str:
        """Smaller groups, or calibration, where the format could have them."""
        size = format.parameters.get("group_size")
        if isinstance(size, int) and size > _SMALLEST_GROUP and not format.from_checkpoint:
            name, base = f"{pasting.plain(format.base)}-g{size // 2}", pasting.known_name(format)
            return f'smaller groups, in conftest.py: variant("{base}", "{name}", group_size={size // 2})'
        model = shlex.quote(spec.source.name)
        if grade(format).rank > CALIBRATED.rank and format.weights.num_bits == 4 and self._runs(spec, "gptq"):
            return f"pytest-quant quantize {model} --format gptq, which is calibrated"
        return ""

    def _apart(self, spec: ModelSpec, format: Format) -> Iterator[str]:
        """Which of a format's weights and its KV cache hurts, or for wide weights a cache with more bits; nothing where
        that cannot run here."""
        if format.kv_cache is None:
            return
        if format.weights.num_bits < 16:
            both = [format.base, f"{spec.reference}+{format.name.partition('+')[2]}"]
            if runs := ", ".join(f'"{name}"' for name in both if self._runs(spec, name)):
                yield f"tell weights from KV cache: formats=[{runs}]"
            return
        wider = f"{format.base}+kv-int8"
        if format.kv_cache.stored.num_bits < 8 and self._runs(spec, wider):
            yield f'the KV cache with more bits: formats=["{wider}"]'

    def _runs(self, spec: ModelSpec, name: str) -> bool:
        try:
            self._check(spec, name)
        except Exception:  # a library's own trouble, too: then it is no advice
            return False
        return True


def _order(format: Format) -> tuple[int, bool]:
    """By what it keeps of a model's quality, the best first; activations that are left alone keep more."""
    return grade(format).rank, format.input_activations is not None


def _is_custom(format: Format) -> bool:
    """Whether only the test suite can load it (:func:`pytest_quant.formats.custom`)."""
    return format.name == format.backend == format.numeric


def _budget(limits: Mapping[str, float]) -> list[str]:
    """The gate's limit as a scan's budget, exactly; of several the first that a scan takes."""
    found = next(((option, limits[name]) for name, option in _SCAN_LIMITS.items() if name in limits), None)
    if found is None:
        return []
    option, limit = found
    short = f"{limit:g}"
    said = short if float(short) == limit else repr(limit)
    return [option, said] if limit >= 0 else [f"{option}={said}"]


def _without(spec: ModelSpec, format: Format, names: Sequence[str]) -> str:
    """The format that leaves these modules wide."""
    if format.from_checkpoint:
        return shlex.join(word for words in pasting.quantize(spec.source, format, names[:_ODD]) for word in words)
    return f"{pasting.mixed(format, names[:_ODD])[0]} in conftest.py"


def _loss(found: Concentration) -> dict[str, Any]:
    shown = _present({name: value for name, value in vars(found).items() if name not in ("worst", "kind")})
    if found.verdict != "windows":
        shown.pop("few_windows")
    if found.kind is not None:
        shown["kind"] = dict(vars(found.kind))
    return shown


def _layers(found: Layers) -> dict[str, Any]:
    shown: dict[str, Any] = {"window": found.window, "tokens": found.tokens, "compared": found.compared}
    shown["not_compared"] = found.apart
    if found.standing.moved:
        return {**shown, "moved": True}
    shown["standing_out"] = [_shown_odd(odd) for odd in found.standing.odd]
    if found.standing.closest is not None:
        shown["closest"] = _shown_odd(found.standing.closest)
    shown["medians"] = dict(found.medians)
    return shown


def _shown_odd(odd: Odd) -> dict[str, Any]:
    return _present({**vars(odd), "times": odd.times})


def _present(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
