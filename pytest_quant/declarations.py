"""What the plugin declares to pytest: its options, its markers, the names of its fixtures.

Imported at every start of pytest, also where no quantization test is in sight, so it imports nothing.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

FORMATS = (
    "fp32",
    "bf16",
    "fp16",
    "int8",
    "nf4",
    "fp4",
    "fp8",
    "fp8-weight-only",
    "int8-weight-only",
    "w8a8",
    "int4",
    "int4-unpacked",
    "w4a16",
    "awq",
    "gptq",
    "mxfp4",
    "nvfp4",
    "nvfp4-weight-only",
    "gguf",
)
"""The built-in formats of :mod:`pytest_quant.formats.registry`, those apart that name their library (``int4@hqq``)."""
FORMAT = "quant_format"
"""The fixture that a test's format is parametrized by."""
FORMAT_FIXTURES = {f"{name.replace('-', '_')}_model": name for name in FORMATS}
_FIXTURES = frozenset(
    {
        FORMAT,
        "quant_model",
        "reference_model",
        "quant_measure",
        "quant_scan",
        "quant_benchmark",
        "calibration_set",
        *FORMAT_FIXTURES,
    }
)

MARKERS = {
    "quant": "(model, formats, reference, engine, engine_args, reference_engine, revision, trust_remote_code, "
    "require_native, checkpoints, quantize, device_map, max_memory): model and formats",
    "perplexity_delta": "(max, max_ratio, min_effect): perplexity above the reference's",
    "kl_divergence": "(max, p90, p95, p99, p999, max_bound, min_effect): nats a token from the reference",
    "token_agreement": "(min, min_effect): share of tokens that the reference puts first too",
    "task_accuracy": "(task, max_drop, min_recovery, min_accuracy, min_effect, num_fewshot, limit, metric, filter, "
    "apply_chat_template, fewshot_as_multiturn, system_instruction, include_path): accuracy on a task of lm-eval, item "
    "by item against the reference's",
    "generation_match": "(min, min_prefix, min_same, min_effect, prompts, max_new_tokens, chat_template, limit): share "
    "of tokens that a greedy continuation has in common with the reference's",
    "layer_sensitivity": "(max, max_kl, min_effect, of, numeric, strategy, group_size, windows): nats that the worst "
    "layer costs, quantized alone",
    "throughput_ratio": "(min, min_effect, phase, batch_size, prompt_tokens, new_tokens, cache, compile): tokens/s, of "
    "the reference's",
    "energy_ratio": "(max, max_joules, min_effect, phase, batch_size, prompt_tokens, new_tokens, cache, compile): "
    "joules a token, of the reference's",
    "cost_ratio": "(max, max_usd, price, reference_price, min_effect, phase, batch_size, prompt_tokens, new_tokens, "
    "cache, compile): dollars a token, of the reference's",
    "memory_budget": "(max_gb, max_gib, max_ratio, min_effect, of, batch_size, context): bytes of what it names",
}
"""Each marker with its help."""

OPTIONS: tuple[tuple[str, str, str], ...] = (
    # name, metavar, help; each is also an ini option of the same name with underscores
    ("quant-model", "MODEL", "the model: a folder or a hub id"),
    ("quant-formats", "A,B", "the formats to test, e.g. int8,nf4; deselects the marked formats that it does not name"),
    ("quant-reference", "FORMAT", "the unquantized format that deltas are taken against (default: fp16)"),
    ("quant-engine", "ENGINE", "what executes the model: transformers (default) or vllm"),
    ("quant-engine-args", "JSON", 'what the engine is told besides, such as {"tensor_parallel_size": 2}'),
    ("quant-reference-engine", "ENGINE", "what executes the reference (default: the engine of the formats)"),
    (
        "quant-device-map",
        "MAP",
        "where the parts of a model go: auto, balanced, balanced_low_0, sequential or JSON (default: the first device)",
    ),
    (
        "quant-corpus",
        "NAME",
        "python-docs (default), python-docstrings, wikitext2, or the path of a text, JSONL or Parquet file",
    ),
    ("quant-protocol", "NAME", "gptq-L, hf-strided-L-S, llamacpp-L or lm-eval-word (default: gptq-2048)"),
    ("quant-max-windows", "N", "a fixed seeded subset of N windows becomes the finite population"),
    ("quant-confidence", "P", "confidence of a whole gate's verdict, however early (default: 0.99)"),
    ("quant-speed-budget", "SECONDS", "time for the rounds of one speed measurement, at most (default: 60)"),
    ("quant-price", "DOLLARS", "of an hour of the device, for cost_ratio"),
    (
        "quant-accept",
        "A,B",
        "conditions that are usual on this runner (mig, ...): speeds under others become no baselines",
    ),
    ("quant-tasks", "DIR", "folder of lm-eval tasks of your own, where task_accuracy names no include_path"),
    ("quant-matrix", "NAME", "support matrix: corrected (default), lesson, or the path of a TOML file"),
    ("quant-checkpoints", "FORMAT=PLACE,...", "what was quantized beforehand: a folder, a file or a hub id"),
    ("quant-calibration", "MIX", "NAME or 0.5*NAME,0.5*OTHER: what quantizers see (default: python-docstrings)"),
    ("quant-calibration-samples", "N", "windows of the calibration set (default: 128)"),
    ("quant-calibration-tokens", "N", "tokens of a calibration window (default: 2048)"),
    ("quant-baseline-path", "DIR", "where baselines are (default: quant-baselines, below the rootdir)"),
    (
        "quant-missing",
        "POLICY",
        "a measurement without a baseline: record or fail (default: fail if CI is set, else record)",
    ),
    (
        "quant-inconclusive",
        "POLICY",
        "an interval that contains its limit: pass or fail (default: fail if CI is set, else pass)",
    ),
    ("quant-require", "A,B", "the run fails unless each of these formats was really measured"),
    ("quant-history", "DIR", "keep the record of each run in this folder"),
    ("quant-cache-dir", "DIR", "where hashes and references are kept (default: the user's cache directory)"),
)
ONLY_ON_THE_COMMAND_LINE = ("quant-require", "quant-json", "quant-report", "quant-markdown")
"""In an ini file it would break every run of other tests."""
CHOICES = {
    "quant-missing": ("record", "fail"),
    "quant-inconclusive": ("pass", "fail"),
    "quant-baseline-update": ("new", "all", "prune"),
}
"""The options that take one of a few words."""


def concerns(node: pytest.Item, fixtures: Collection[str]) -> bool:
    """Whether a test uses any of the plugin; cheap, since it is asked of every test."""
    return not _FIXTURES.isdisjoint(fixtures) or any(mark.name in MARKERS for mark in node.iter_markers())


def register_markers(config: pytest.Config) -> None:
    """Make the markers known to ``--strict-markers`` and ``--markers``."""
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", name + text)


def add_options(parser: pytest.Parser) -> None:
    """Register the options; none takes an optional value, so that none swallows a path behind it."""
    group = parser.getgroup("quant", "quantization regression testing")
    group.addoption(
        "--quant-baseline", action="store_true", help="compare with the baselines, and record where there is none"
    )
    for name, metavar, help_text in OPTIONS:
        group.addoption(f"--{name}", metavar=metavar, default=None, help=help_text)
        if name not in ONLY_ON_THE_COMMAND_LINE:
            parser.addini(name.replace("-", "_"), help_text, default=None)
    group.addoption(
        "--quant-baseline-update",
        choices=CHOICES["quant-baseline-update"],
        default=None,
        help="new: record what has no baseline; all: accept every value that keeps its limits; prune: drop entries of "
        "other identities and of tests that are gone",
    )
    group.addoption("--quant-full", action="store_true", help="score all windows: no verdict before the end")
    group.addoption(
        "--quant-quantize",
        action="store_true",
        help="make the checkpoint of a format where there is none; kept in the cache",
    )
    group.addoption(
        "--quant-resume",
        action="store_true",
        help="go on with interrupted runs: what they finished measuring is not measured again",
    )
    group.addoption("--quant-json", metavar="PATH", default=None, help="write the whole run as JSON")
    group.addoption("--quant-report", metavar="PATH", default=None, help="write the whole run as one HTML file")
    group.addoption("--quant-markdown", metavar="PATH", default=None, help="write the run's verdicts as Markdown")
    group.addoption(
        "--quant-plan", action="store_true", help="print what would run and what would be skipped, and load nothing"
    )
    group.addoption(
        "--quant-device", metavar="NAME", default=None, help="with --quant-plan: plan for hardware that is not here"
    )
    group.addoption(
        "--quant-chat-template", action="store_true", help="render each document with the tokenizer's chat template"
    )
    parser.addini("quant_full", "score all windows: no verdict before the end", type="bool", default=False)
    parser.addini("quant_quantize", "make checkpoints that are not there", type="bool", default=False)
    parser.addini("quant_chat_template", "render documents with the chat template", type="bool", default=False)
    parser.addini("quant_revision", "branch, tag or commit of a hub model", default=None)
    parser.addini("quant_trust_remote_code", "run code that comes with a hub model", type="bool", default=False)
