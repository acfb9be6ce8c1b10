"""What each marker takes, as frozen dataclasses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Quant:
    """``@pytest.mark.quant``: the model of a test and the formats that it is tested in."""

    model: str | None = None
    """A folder, from the rootdir, or a hub id."""
    formats: tuple[str, ...] | None = None
    """Names of formats; the test runs once in each."""
    reference: str | None = None
    """The unquantized format that deltas are taken against."""
    engine: str | None = None
    """What executes the model: ``transformers`` or ``vllm``."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    trust_remote_code: bool | None = None
    """Whether code that comes with a hub model is run."""
    require_native: bool | None = None
    """True: every format needs units for it; False: none does; by default those that quantize activations do."""
    checkpoints: tuple[tuple[str, str], ...] | None = None
    """Format and place of what was quantized beforehand."""
    quantize: bool | None = None
    """Whether a checkpoint that is not there is made."""
    engine_args: tuple[tuple[str, str], ...] | None = None
    """What the engine is told besides: names, and values as JSON."""
    reference_engine: str | None = None
    """What executes the reference, where that is not the engine of the formats."""
    device_map: str | tuple[tuple[str, int | str], ...] | None = None
    """Where the parts of the model go: a word of accelerate's, or a place for each by its name."""
    max_memory: tuple[tuple[int | str, int | str], ...] | None = None
    """Bytes that such a word may use of each place."""


@dataclass(frozen=True)
class PerplexityDelta:
    """``perplexity(format) - perplexity(reference) <= max``, in perplexity; or their ratio ``<= max_ratio``."""

    max: float | None = None
    """Of the difference of both perplexities."""
    max_ratio: float | None = None
    """Of their ratio; 1 is no loss."""
    min_effect: float | None = None
    """The change since the baseline that matters, in nats a token; so in each marker, in its metric's unit."""


@dataclass(frozen=True)
class KLDivergence:
    """Mean ``KL(reference || format) <= max``, nats a token, over the whole vocabulary; ``p90`` to ``p999`` limit
    percentiles of all tokens, ``max_bound`` the lower bound that a stored reference gives."""

    max: float | None = None
    """Of the mean."""
    p90: float | None = None
    """Of the 90th percentile of all tokens."""
    p95: float | None = None
    """Of the 95th percentile."""
    p99: float | None = None
    """Of the 99th percentile."""
    p999: float | None = None
    """Of the 99.9th percentile."""
    max_bound: float | None = None
    """Of the lower bound that the reference's most probable tokens give; needs no reference model beside the format."""
    min_effect: float | None = None
    """The change since the baseline that matters, nats a token."""


@dataclass(frozen=True)
class TokenAgreement:
    """Share of positions at which format and reference have the same most probable token ``>= min``."""

    min: float | None = None
    """Of the share; 1 is no loss."""
    min_effect: float | None = None
    """The change since the baseline that matters, as a share."""


@dataclass(frozen=True)
class TaskAccuracy:
    """Accuracy on a task of lm-eval, paired by item: ``reference - format <= max_drop``, ``format / reference >=
    min_recovery``; ``min_accuracy`` is what the reference itself has to reach, so that two broken models do not pass.

    ``task`` is a name of lm-eval's or of ``include_path``, or the path of a YAML file; a list makes a gate of each."""

    task: str | None = None
    """A name, or the path of a YAML file; it must be given."""
    max_drop: float | None = None
    """Of the reference's accuracy less the format's; 0.02 is two points."""
    min_recovery: float | None = None
    """Of the format's accuracy over the reference's."""
    min_accuracy: float | None = None
    """Of the reference's own accuracy."""
    min_effect: float | None = None
    """The change since the baseline that matters, as a share of items."""
    num_fewshot: int | None = None
    """Examples before each question; by default as the task says."""
    limit: int | None = None
    """A fixed seeded subset of so many items becomes the finite population."""
    metric: str | None = None
    """One of the task's metrics; by default its first that counts right and wrong."""
    filter: str | None = None
    """One of the task's filters; by default its first."""
    apply_chat_template: bool = False
    """Whether prompts are rendered with the tokenizer's chat template."""
    fewshot_as_multiturn: bool = False
    """Whether examples are turns of that chat."""
    system_instruction: str | None = None
    """What stands before each prompt."""
    include_path: str | None = None
    """Folder of tasks of your own, from the rootdir."""


@dataclass(frozen=True)
class GenerationMatch:
    """Greedy continuations of prompts: share of identical tokens ``>= min``, of those before the first difference
    ``>= min_prefix``, of prompts that are continued identically ``>= min_same``.

    ``prompts`` are texts, or the path of a JSONL or text file; without them beginnings from the run's corpus."""

    min: float | None = None
    """Of the share of identical tokens."""
    min_prefix: float | None = None
    """Of the share before the first difference."""
    min_same: float | None = None
    """Of the share of prompts whose continuations are identical."""
    min_effect: float | None = None
    """The change since the baseline that matters, as a share of tokens."""
    prompts: str | tuple[str, ...] | None = None
    """Texts, or the path of a file of them."""
    max_new_tokens: int = 32
    """How far each prompt is continued."""
    chat_template: bool = False
    """Whether each prompt is a user's message of the tokenizer's chat template."""
    limit: int | None = None
    """A fixed seeded subset of so many prompts becomes the finite population."""


@dataclass(frozen=True)
class LayerSensitivity:
    """What one layer costs that is quantized alone: of the worst ``<= max`` nats a token and ``<= max_kl``.

    The layers are those of the format, or the reference's own rounded to ``numeric`` by ``strategy``."""

    max: float | None = None
    """Of the worst layer's loss, nats a token."""
    max_kl: float | None = None
    """Of the worst layer's divergence, nats a token."""
    min_effect: float | None = None
    """The change since the baseline that matters, nats a token."""
    of: str = "layer"
    """One linear layer at a time, or one decoder block."""
    numeric: str | None = None
    """What the reference's weights are rounded to (``int8``), in the place of the format."""
    strategy: str | None = None
    """How many weights share a scale in that rounding."""
    group_size: int | None = None
    """So many, where the strategy is ``group``."""
    windows: int = 8
    """Windows that each layer is judged by."""


@dataclass(frozen=True)
class Timed:
    """What is timed; a list of batch sizes, prompt or new tokens makes a gate of each combination."""

    min_effect: float | None = None
    """The change since the baseline that matters, as a share of the ratio."""
    phase: str = "decode"
    """What is timed: tokens after the prompt, the prompt, or the time to the first token."""
    batch_size: int = 1
    """Sequences at once."""
    prompt_tokens: int = 64
    """Length of each prompt."""
    new_tokens: int = 32
    """Tokens that each sequence is continued by; 1 but for ``phase="decode"``."""
    cache: str | None = None
    """Of keys and values; by default dynamic, and static where ``compile`` is."""
    compile: bool = False
    """Whether the decode step is compiled by torch."""


@dataclass(frozen=True)
class ThroughputRatio(Timed):
    """``tokens/s(format) / tokens/s(reference) >= min`` of a phase."""

    min: float | None = None
    """Of the ratio; above 1 the format is faster."""


@dataclass(frozen=True)
class EnergyRatio(Timed):
    """Joules a token, of the format over the reference's ``<= max``, or of the format itself ``<= max_joules``."""

    max: float | None = None
    """Of the ratio; below 1 the format takes less."""
    max_joules: float | None = None
    """Of the format's joules a token."""


@dataclass(frozen=True)
class CostRatio(Timed):
    """Dollars a token, of the format over the reference's ``<= max``, or for a million tokens of the format
    ``<= max_usd``; ``price`` is an hour of what the format runs on, ``reference_price`` of what the reference does."""

    max: float | None = None
    """Of the ratio; below 1 the format is cheaper."""
    max_usd: float | None = None
    """Of the format's dollars for a million tokens."""
    price: float | None = None
    """Dollars an hour of what the format runs on."""
    reference_price: float | None = None
    """Dollars an hour of what the reference runs on; by default the same."""


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes of ``weights``, of ``activations`` (what scoring a batch takes on top), at the ``peak`` (both) or of the
    ``kv_cache``; ``max_gb`` counts 10**9, ``max_gib`` 2**30, ``max_ratio`` is against the reference."""

    max_gb: float | None = None
    """Of the bytes, in units of 10**9."""
    max_gib: float | None = None
    """Of the bytes, in units of 2**30."""
    max_ratio: float | None = None
    """Of the format's bytes over the reference's."""
    min_effect: float | None = None
    """The change since the baseline that matters, as a share of the bytes."""
    of: str = "weights"
    """What is counted."""
    batch_size: int = 1
    """Sequences at once, but for weights."""
    context: int = 512
    """Tokens of each sequence, but for weights."""


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
