"""What each marker takes, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quant:
    """``@pytest.mark.quant``: the model of a test and the formats that it is tested in."""

    model: str | None = None
    formats: tuple[str, ...] | None = None
    reference: str | None = None
    engine: str | None = None
    revision: str | None = None
    trust_remote_code: bool | None = None
    require_native: bool | None = None
    checkpoints: tuple[tuple[str, str], ...] | None = None
    """Format and place of what was quantized beforehand."""
    quantize: bool | None = None
    """Whether a checkpoint that is not there is made."""
    engine_args: tuple[tuple[str, str], ...] | None = None
    """What the engine is told besides: names, and values as JSON."""
    reference_engine: str | None = None
    device_map: str | tuple[tuple[str, int | str], ...] | None = None
    """Where the parts of the model go: a word of accelerate's, or a place for each by its name."""
    max_memory: tuple[tuple[int | str, int | str], ...] | None = None
    """Bytes that such a word may use of each place."""


@dataclass(frozen=True)
class PerplexityDelta:
    """``perplexity(format) - perplexity(reference) <= max``, in perplexity; or their ratio ``<= max_ratio``."""

    max: float | None = None
    max_ratio: float | None = None
    min_effect: float | None = None
    """The change since the baseline that matters, in nats a token; so in each marker, in its metric's unit."""


@dataclass(frozen=True)
class KLDivergence:
    """Mean ``KL(reference || format) <= max``, nats a token, over the whole vocabulary; ``p90`` to ``p999`` limit
    percentiles of all tokens, ``max_bound`` the lower bound that a stored reference gives."""

    max: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    max_bound: float | None = None
    min_effect: float | None = None


@dataclass(frozen=True)
class TokenAgreement:
    """Share of positions at which format and reference have the same most probable token ``>= min``."""

    min: float | None = None
    min_effect: float | None = None


@dataclass(frozen=True)
class TaskAccuracy:
    """Accuracy on a task of lm-eval, paired by item: ``reference - format <= max_drop``, ``format / reference >=
    min_recovery``; ``min_accuracy`` is what the reference itself has to reach, so that two broken models do not pass.

    ``task`` is a name of lm-eval's or of ``include_path``, or the path of a YAML file; a list makes a gate of each."""

    task: str | None = None
    max_drop: float | None = None
    min_recovery: float | None = None
    min_accuracy: float | None = None
    min_effect: float | None = None
    num_fewshot: int | None = None
    limit: int | None = None
    metric: str | None = None
    filter: str | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    include_path: str | None = None


@dataclass(frozen=True)
class GenerationMatch:
    """Greedy continuations of prompts: share of identical tokens ``>= min``, of those before the first difference
    ``>= min_prefix``, of prompts that are continued identically ``>= min_same``.

    ``prompts`` are texts, or the path of a JSONL or text file; without them beginnings from the run's corpus."""

    min: float | None = None
    min_prefix: float | None = None
    min_same: float | None = None
    min_effect: float | None = None
    prompts: str | tuple[str, ...] | None = None
    max_new_tokens: int = 32
    chat_template: bool = False
    limit: int | None = None


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer costs that is quantized alone: of the worst ``<= max`` nats a token and ``<= max_kl``.

    The layers are those of the format, or the reference's own rounded to ``numeric`` by ``strategy``."""

    max: float | None = None
    max_kl: float | None = None
    min_effect: float | None = None
    of: str = "layer"
    numeric: str | None = None
    strategy: str | None = None
    group_size: int | None = None
    windows: int = 8


@dataclass(frozen=True)
class Timed:
    """What is timed; a list of batch sizes, prompt or new tokens makes a gate of each combination."""

    min_effect: float | None = None
    phase: str = "decode"
    batch_size: int = 1
    prompt_tokens: int = 64
    new_tokens: int = 32
    cache: str | None = None
    """``dynamic``, ``static``; by default static where ``compile`` is."""
    compile: bool = False


@dataclass(frozen=True)
class ThroughputRatio(Timed):
    """``tokens/s(format) / tokens/s(reference) >= min`` of a phase."""

    min: float | None = None


@dataclass(frozen=True)
class EnergyRatio(Timed):
    """Joules a token, of the format over the reference's ``<= max``, or of the format itself ``<= max_joules``."""

    max: float | None = None
    max_joules: float | None = None


@dataclass(frozen=True)
class CostRatio(Timed):
    """Dollars a token, of the format over the reference's ``<= max``, or for a million tokens of the format
    ``<= max_usd``; ``price`` is an hour of what the format runs on, ``reference_price`` of what the reference does."""

    max: float | None = None
    max_usd: float | None = None
    price: float | None = None
    reference_price: float | None = None


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of ``weights``, of ``activations`` (what scoring a batch takes on top), at the ``peak`` (both) or of the
    ``kv_cache``; ``max_gb`` counts 10**9, ``max_gib`` 2**30, ``max_ratio`` is against the reference."""

    max_gb: float | None = None
    max_gib: float | None = None
    max_ratio: float | None = None
    min_effect: float | None = None
    of: str = "weights"
    batch_size: int = 1
    context: int = 512


GATES: Mapping[str, type] = {
    "perplexity_delta": PerplexityDelta,
    "kl_divergence": KLDivergence,
    "token_agreement": TokenAgreement,
    "task_accuracy": TaskAccuracy,
    "generation_match": GenerationMatch,
    "layer_sensitivity": LayerSensitivity,
    "throughput_ratio": ThroughputRatio,
    "energy_ratio": EnergyRatio,
    "cost_ratio": CostRatio,
    "memory_budget": MemoryBudget,
}
"""Each gate's schema by the name of its marker."""
