"""What the plugin declares to pytest: its options, its markers, the names of its fixtures.

Imported at every start of pytest, also where no quantization test is in sight, so it imports nothing else.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

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

ENGINES = ("transformers", "vllm")
"""What executes a model."""
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

GROUPS = {
    "tested": "what is tested",
    "measured": "how it is measured",
    "judged": "baselines and verdicts",
    "told": "reports of a run",
    "run": "the run itself",
}
"""The parts that options come in, and their titles."""


class Option(NamedTuple):
    """What can be told to a run: on the command line as ``--NAME``, in pytest's ini file by its :attr:`ini` and in
    ``[tool.pytest-quant]`` by its :attr:`key`."""

    name: str
    metavar: str | None
    """None for a switch of the command line."""
    help: str
    group: str
    """A key of :data:`GROUPS`."""
    kind: str
    """How it is written and what it may be: a key of :data:`pytest_quant.configuration.values.KINDS`."""
    default: str | None = None
    """As it would be written."""
    in_ci: str | None = None
    """The default where the environment variable ``CI`` is set, if that is another one."""
    unset: str | None = None
    """What is taken where nobody says anything and there is no default, in words; None: nothing is."""
    choices: tuple[str, ...] = ()
    places: str = "flag ini"
    """``flag``: the command line takes it; ``ini``: pytest's ini file and ``[tool.pytest-quant]`` do. What would break
    every run of other tests is for the command line only."""

    @property
    def on_command_line(self) -> bool:
        """Whether there is a flag."""
        return "flag" in self.places

    @property
    def in_files(self) -> bool:
        """Whether files may say it."""
        return "ini" in self.places

    @property
    def flag(self) -> str:
        """On the command line."""
        return f"--{self.name}"

    @property
    def ini(self) -> str:
        """In pytest's ini file."""
        return self.name.replace("-", "_")

    @property
    def key(self) -> str:
        """In ``[tool.pytest-quant]``."""
        return self.name[len("quant-") :]

    @property
    def full_help(self) -> str:
        """The help with the default."""
        if self.in_ci is not None:
            return f"{self.help} (default: {self.in_ci} if CI is set, else {self.default})"
        default = self.default or self.unset
        return self.help if default is None else f"{self.help} (default: {default})"


OPTIONS = (
    Option("quant-model", "MODEL", "the model: a folder or a hub id", "tested", "model"),
    Option(
        "quant-revision",
        "NAME",
        "branch, tag or commit of a hub model",
        "tested",
        "text",
        unset="the hub's default branch",
        places="ini",
    ),
    Option("quant-trust-remote-code", None, "run code that comes with a hub model", "tested", "switch", places="ini"),
    Option(
        "quant-formats",
        "A,B",
        "the formats to test, e.g. int8,nf4; the command line also deselects marked formats that it does not name",
        "tested",
        "formats",
    ),
    Option(
        "quant-reference",
        "FORMAT",
        "the unquantized format that deltas are taken against",
        "tested",
        "reference",
        "fp16",
    ),
    Option(
        "quant-engine", "ENGINE", "what executes the model: transformers or vllm", "tested", "engine", "transformers"
    ),
    Option(
        "quant-engine-args",
        "JSON",
        'what the engine is told besides, such as {"tensor_parallel_size": 2}',
        "tested",
        "arguments",
    ),
    Option(
        "quant-reference-engine",
        "ENGINE",
        "what executes the reference",
        "tested",
        "engine",
        unset="the engine of the formats",
    ),
    Option(
        "quant-device-map",
        "MAP",
        "where the parts of a model go: auto, balanced, balanced_low_0, sequential or JSON",
        "tested",
        "map",
        unset="the first device",
    ),
    Option(
        "quant-checkpoints",
        "FORMAT=PLACE,...",
        "what was quantized beforehand: a folder, a file or a hub id for each format",
        "tested",
        "checkpoints",
    ),
    Option(
        "quant-quantize",
        None,
        "make the checkpoint of a format where there is none; kept in the cache",
        "tested",
        "switch",
    ),
    Option(
        "quant-calibration",
        "MIX",
        "NAME or 0.5*NAME,0.5*OTHER: the texts that quantizers see",
        "tested",
        "mix",
        unset="python-docstrings",
    ),
    Option("quant-calibration-samples", "N", "windows of the calibration set", "tested", "count", unset="128"),
    Option("quant-calibration-tokens", "N", "tokens of a calibration window", "tested", "count", unset="2048"),
    Option(
        "quant-corpus",
        "NAME",
        "the text: python-docs, python-docstrings, wikitext2, or the path of a text, JSONL or Parquet file",
        "measured",
        "corpus",
        "python-docs",
    ),
    Option(
        "quant-protocol",
        "NAME",
        "how the text is cut into windows: gptq-L, hf-strided-L-S, llamacpp-L or lm-eval-word, with L tokens a window",
        "measured",
        "protocol",
        "gptq-2048",
    ),
    Option(
        "quant-max-windows",
        "N",
        "measure a fixed seeded subset of N windows instead of all",
        "measured",
        "count",
        unset="all windows",
    ),
    Option("quant-full", None, "score all windows: no verdict before the end", "measured", "switch"),
    Option("quant-confidence", "P", "confidence of a whole gate's verdict, however early", "measured", "share", "0.99"),
    Option(
        "quant-chat-template", None, "render each document with the tokenizer's chat template", "measured", "switch"
    ),
    Option(
        "quant-tasks",
        "DIR",
        "folder of lm-eval tasks of your own, where task_accuracy names no include_path",
        "measured",
        "folder",
        unset="lm-eval's own",
    ),
    Option(
        "quant-speed-budget",
        "SECONDS",
        "time for the rounds of one speed measurement, at most",
        "measured",
        "amount",
        "60",
    ),
    Option("quant-price", "DOLLARS", "price of an hour of the device, for cost_ratio", "measured", "amount"),
    Option(
        "quant-accept",
        "A,B",
        "conditions that are usual on this runner (mig, ...): speeds under others become no baselines",
        "measured",
        "conditions",
    ),
    Option(
        "quant-matrix",
        "NAME",
        "support matrix: corrected, lesson, or the path of a TOML file",
        "measured",
        "matrix",
        "corrected",
    ),
    Option(
        "quant-baseline",
        None,
        "compare with the baselines, and record where there is none",
        "judged",
        "switch",
        places="flag",
    ),
    Option(
        "quant-baseline-path", "DIR", "where baselines are, below the rootdir", "judged", "store", "quant-baselines"
    ),
    Option(
        "quant-baseline-update",
        "WHAT",
        "new: record what has no baseline; all: accept every value that keeps its limits; prune: drop entries of "
        "other identities and of tests that are gone",
        "judged",
        "word",
        choices=("new", "all", "prune"),
        places="flag",
    ),
    Option(
        "quant-missing",
        "POLICY",
        "a measurement without a baseline: record or fail",
        "judged",
        "word",
        "record",
        "fail",
        choices=("record", "fail"),
    ),
    Option(
        "quant-inconclusive",
        "POLICY",
        "an interval that contains its limit: pass or fail",
        "judged",
        "word",
        "pass",
        "fail",
        choices=("pass", "fail"),
    ),
    Option(
        "quant-require",
        "A,B",
        "the run fails unless each of these formats was really measured",
        "judged",
        "formats",
        places="flag",
    ),
    Option("quant-json", "PATH", "write the whole run as JSON", "told", "file", places="flag"),
    Option(
        "quant-report",
        "PATH",
        "write the whole run as one HTML file",
        "told",
        "page",
        places="flag",
    ),
    Option(
        "quant-markdown",
        "PATH",
        "write the run's verdicts as Markdown",
        "told",
        "file",
        places="flag",
    ),
    Option("quant-history", "DIR", "keep the record of each run in this folder", "told", "store"),
    Option(
        "quant-plan",
        None,
        "print what would run and what would be skipped, and load nothing",
        "run",
        "switch",
        places="flag",
    ),
    Option(
        "quant-device",
        "NAME",
        "with --quant-plan: plan for hardware that is not here",
        "run",
        "text",
        unset="this device",
        places="flag",
    ),
    Option(
        "quant-resume",
        None,
        "go on with interrupted runs: what they finished measuring is not measured again",
        "run",
        "switch",
        places="flag",
    ),
    Option(
        "quant-cache-dir",
        "DIR",
        "where hashes, references and checkpoints are kept",
        "run",
        "store",
        unset="the user's cache directory",
    ),
)
"""All of them, in the order of ``pytest --help``."""
_NUMBERS = {"count": str | int, "amount": str | float, "share": str | float}
"""Text first: a number in an ini file stays as it was written, for messages."""


def concerns(node: pytest.Item, fixtures: Collection[str]) -> bool:
    """Whether a test uses any of the plugin; cheap, since it is asked of every test."""
    return not _FIXTURES.isdisjoint(fixtures) or any(mark.name in MARKERS for mark in node.iter_markers())


def register_markers(config: pytest.Config) -> None:
    """Make the markers known to ``--strict-markers`` and ``--markers``."""
    for name, text in MARKERS.items():
        config.addinivalue_line("markers", name + text)


def add_options(parser: pytest.Parser) -> None:
    """Register the options; none takes an optional value, so that none swallows a path behind it."""
    for name, title in GROUPS.items():
        group = parser.getgroup(f"quant-{name}", f"quantization: {title}")
        for option in OPTIONS:
            if option.group != name or not option.on_command_line:
                continue
            if option.metavar is None:
                group.addoption(option.flag, action="store_true", help=option.full_help)
            elif option.in_files or not option.choices:
                group.addoption(option.flag, metavar=option.metavar, default=None, help=option.full_help)
            else:
                group.addoption(option.flag, choices=option.choices, default=None, help=option.full_help)
    for option in OPTIONS:
        if option.in_files:
            parser.addini(option.ini, option.full_help, type=_ini_type(option.kind), default=None)


def _ini_type(kind: str) -> Any:
    """What pytest's native TOML tables may hold; in ini files everything is text, and is read by us."""
    import pytest

    if kind == "switch":
        return "bool"
    if kind in ("formats", "conditions"):
        return "args"
    if kind == "checkpoints":
        return "linelist"
    if kind in _NUMBERS and pytest.version_tuple >= (9, 2):  # the first that knows types of more than one kind
        return _NUMBERS[kind]
    return None
