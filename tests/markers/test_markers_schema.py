"""Markers: what they accept, and the words in which they refuse the rest."""

from __future__ import annotations

import math

import pytest

from pytest_quant import markers
from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import LIMITS, Gate
from pytest_quant.markers import Quant

NAN, INF = math.nan, math.inf


NEEDED = {"task_accuracy": {"task": "arc_easy"}}
"""What a marker does not go without, besides a limit."""


def mark(name: str, *arguments, **named) -> pytest.Mark:
    named = {**NEEDED.get(name, {}), **named} if named else named
    decorator = getattr(pytest.mark, name)
    return (decorator.with_args(*arguments, **named) if arguments or named else decorator).mark


def gate(name: str, *arguments, **named) -> Gate:
    (only,) = markers.gates([mark(name, *arguments, **named)])
    return only


def refusal(name: str, *arguments, **named) -> str:
    one = mark(name, *arguments, **named)
    with pytest.raises(UsageError) as caught:
        markers.quant([one]) if name == "quant" else markers.gates([one])
    return str(caught.value)


# what is accepted


def test_the_markers_of_the_manual():
    assert gate("perplexity_delta", max=1.0) == Gate("perplexity_delta", (("max", 1.0),))
    assert gate("perplexity_delta", max_ratio=1.05).limits == (("max_ratio", 1.05),)
    assert gate("throughput_ratio", min=1.5, phase="decode", batch_size=1) == Gate(
        "throughput_ratio",
        (("min", 1.5),),
        (
            ("batch_size", 1),
            ("cache", "dynamic"),
            ("compile", False),
            ("new_tokens", 32),
            ("phase", "decode"),
            ("prompt_tokens", 64),
        ),
    )
    assert gate("energy_ratio", max=0.7, max_joules=2).limits == (("max", 0.7), ("max_joules", 2.0))
    assert gate("cost_ratio", max=0.7, max_usd=2).limits == (("max", 0.7), ("max_usd", 2.0))
    assert gate("memory_budget", max_gb=6.0, of="weights") == Gate(
        "memory_budget", (("max_gb", 6.0),), (("batch_size", 1), ("context", 512), ("of", "weights"))
    )
    assert gate("kl_divergence", max=0.05) == Gate("kl_divergence", (("max", 0.05),))
    assert gate("token_agreement", min=0.9) == Gate("token_agreement", (("min", 0.9),))


@pytest.mark.parametrize("name", ["max", "p90", "p95", "p99", "p999", "max_bound"])
def test_each_statistic_of_the_divergence_can_be_limited(name):
    assert gate("kl_divergence", **{name: 0.5}).limits == ((name, 0.5),)


def test_the_statistics_of_the_divergence_are_limits_of_one_gate():
    found = gate("kl_divergence", p999=4, max=0.05, p99=1, p95=0.5, p90=0.2, max_bound=0.04)
    assert found.limits == (
        ("max", 0.05),
        ("max_bound", 0.04),
        ("p90", 0.2),
        ("p95", 0.5),
        ("p99", 1.0),
        ("p999", 4.0),
    )
    assert found.parameters == ()


@pytest.mark.parametrize("share", [1, 1.0, 0.5, 1e-9])
def test_any_share_of_tokens_can_be_demanded(share):
    assert gate("token_agreement", min=share).limits == (("min", float(share)),)


def test_two_limits_on_one_marker_both_count():
    assert gate("perplexity_delta", max_ratio=1.05, max=1.0).limits == (("max", 1.0), ("max_ratio", 1.05))
    assert gate("memory_budget", max_gib=2, max_gb=1, max_ratio=0.5).limits == (
        ("max_gb", 1.0),
        ("max_gib", 2.0),
        ("max_ratio", 0.5),
    )


def test_whole_numbers_become_floats():
    ((_, limit),) = gate("memory_budget", max_gb=6).limits
    assert (limit, type(limit)) == (6.0, float)


def test_a_delta_of_zero_can_be_demanded():
    assert gate("perplexity_delta", max=0).limits == (("max", 0.0),)


def test_none_is_not_given():
    assert gate("perplexity_delta", max=1.0, max_ratio=None).limits == (("max", 1.0),)
    assert markers.quant([mark("quant", model=None, formats=None)]) == Quant()


def test_equal_questions_are_equal_whatever_the_order():
    assert gate("memory_budget", max_gb=1.0, of="peak", context=64) == gate(
        "memory_budget", context=64, of="peak", max_gb=1.0
    )


def test_quant_in_full():
    given = mark(
        "quant",
        model="org/name",
        formats=["int8", "nf4"],
        reference="fp16",
        engine="transformers",
        revision="main",
        trust_remote_code=False,
        require_native=True,
    )
    assert markers.quant([given]) == Quant("org/name", ("int8", "nf4"), "fp16", "transformers", "main", False, True)


@pytest.mark.parametrize("kind", [list, tuple, lambda names: [*names, "int8"]])
def test_any_list_of_formats_each_once(kind):
    found = markers.quant([mark("quant", formats=kind(["int8", "nf4"]))])
    assert found is not None
    assert found.formats == ("int8", "nf4")


def test_without_markers_there_is_nothing():
    assert markers.quant([]) is None
    assert markers.quant([mark("skip"), mark("perplexity_delta", max=1.0)]) is None
    assert markers.gates([mark("quant"), mark("parametrize", "a", [1])]) == ()
    assert markers.quant([mark("quant")]) == Quant()


# which of several counts


def test_what_the_nearest_quant_leaves_out_one_farther_out_says():
    near, far = mark("quant", model="near"), mark("quant", model="far", formats=["nf4"], trust_remote_code=False)
    assert markers.quant([near, far]) == Quant(model="near", formats=("nf4",), trust_remote_code=False)
    assert markers.quant([far, near]) == Quant(model="far", formats=("nf4",), trust_remote_code=False)


@pytest.mark.parametrize("formats", [{"int8", "nf4"}, iter(["int8"]), {"int8": 1}])
def test_formats_without_an_order_are_refused(formats):
    with pytest.raises(UsageError, match="must be a list of format names"):
        markers.quant([mark("quant", formats=formats)])


def test_limits_of_several_markers_on_one_question_all_count():
    function, module = mark("perplexity_delta", max_ratio=5.0), mark("perplexity_delta", max=1.0)
    (both,) = markers.gates([function, module])
    assert both.limits == (("max", 1.0), ("max_ratio", 5.0))


def test_the_same_limit_twice_in_one_place_is_refused():
    one, two = mark("perplexity_delta", max=0.5), mark("perplexity_delta", max=9.0)
    function, module = object(), object()
    markers.check_stacked([(function, one), (module, two)])
    with pytest.raises(UsageError, match="perplexity_delta sets max twice on the same test"):
        markers.check_stacked([(function, one), (function, two)])


def test_the_nearest_limit_on_one_question_wins():
    near, far = mark("perplexity_delta", max=0.5), mark("perplexity_delta", max=9.0)
    assert [g.limits for g in markers.gates([near, far])] == [(("max", 0.5),)]
    assert [g.limits for g in markers.gates([far, near])] == [(("max", 9.0),)]


def test_two_phases_are_two_questions():
    found = markers.gates([mark("throughput_ratio", min=1.5), mark("throughput_ratio", min=0.5, phase="prefill")])
    assert [(dict(g.parameters)["phase"], g.limits) for g in found] == [
        ("decode", (("min", 1.5),)),
        ("prefill", (("min", 0.5),)),
    ]


@pytest.mark.parametrize(
    "metric, one, other",
    [
        ("throughput_ratio", {"min": 1.0}, {"min": 1.0, "batch_size": 8}),
        ("throughput_ratio", {"min": 1.0}, {"min": 1.0, "prompt_tokens": 128}),
        ("throughput_ratio", {"min": 1.0}, {"min": 1.0, "new_tokens": 64}),
        ("throughput_ratio", {"min": 1.0}, {"min": 1.0, "cache": "static"}),
        ("throughput_ratio", {"min": 1.0, "cache": "static"}, {"min": 1.0, "compile": True}),
        ("throughput_ratio", {"min": 1.0, "phase": "prefill"}, {"min": 1.0, "phase": "ttft"}),
        ("energy_ratio", {"max": 1.0}, {"max": 1.0, "batch_size": 8}),
        ("cost_ratio", {"max": 1.0}, {"max": 1.0, "price": 2.0}),
        ("cost_ratio", {"max": 1.0, "price": 2.0}, {"max": 1.0, "price": 2.0, "reference_price": 3.0}),
        ("memory_budget", {"max_gb": 1.0}, {"max_gb": 1.0, "of": "peak"}),
        ("memory_budget", {"max_gb": 1.0, "of": "peak"}, {"max_gb": 1.0, "of": "kv_cache"}),
        ("memory_budget", {"max_gb": 1.0, "of": "peak"}, {"max_gb": 1.0, "of": "peak", "context": 64}),
        ("memory_budget", {"max_gb": 1.0, "of": "peak"}, {"max_gb": 1.0, "of": "peak", "batch_size": 2}),
    ],
)
def test_other_parameters_are_another_question(metric, one, other):
    assert len(markers.gates([mark(metric, **one), mark(metric, **other)])) == 2


@pytest.mark.parametrize(
    "metric, one, other",
    [
        ("throughput_ratio", {"min": 1.0}, {"min": 2.0, "phase": "decode", "batch_size": 1, "new_tokens": 32}),
        ("memory_budget", {"max_gb": 1.0}, {"max_gb": 2.0, "of": "weights", "batch_size": 8, "context": 64}),
    ],
)
def test_what_plays_no_part_makes_no_other_question(metric, one, other):
    (only,) = markers.gates([mark(metric, **one), mark(metric, **other)])
    assert only == gate(metric, **one)


LIMITED = [(metric, name) for metric, kinds in LIMITS.items() for name in kinds if name != "min_accuracy"]
"""Each metric and limit; one of them does not go alone."""


# the change that matters


def limit(metric: str, value: float = 0.5) -> dict[str, float]:
    """The first of a metric's limits."""
    return {next(iter(LIMITS[metric])): value}


@pytest.mark.parametrize("metric", [*markers.GATES])
@pytest.mark.parametrize("effect", [0, 0.0, 0.005, 1e-12, 0.999])
def test_a_change_that_matters_is_a_number_from_0(metric, effect):
    found = gate(metric, **limit(metric), min_effect=effect)
    assert (found.metric, dict(found.limits), found.min_effect) == (metric, limit(metric), float(effect))
    assert type(found.min_effect) is float
    assert "min_effect" not in dict(found.parameters)


@pytest.mark.parametrize("effect", [1, 1.0, 2.5])
def test_a_change_may_be_of_any_number_of_nats_and_not_of_all_there_is(effect):
    for metric in ("perplexity_delta", "kl_divergence"):
        assert gate(metric, **limit(metric), min_effect=effect).min_effect == effect
    for metric in ("token_agreement", "throughput_ratio", "memory_budget"):
        message = refusal(metric, **limit(metric), min_effect=effect)
        assert message == f"{metric}(min_effect={effect!r}): is a share and must be below 1; 0.01 is one percent"


@pytest.mark.parametrize("metric", [*markers.GATES])
def test_a_change_that_matters_needs_a_limit_beside_it(metric):
    wanted = " or ".join(f"{name}=..." for name in LIMITS[metric])
    assert refusal(metric, min_effect=0.01) == f"{metric} needs a limit beside min_effect: {wanted}"
    with pytest.raises(UsageError, match="needs a limit beside min_effect"):
        markers.gates([mark(metric, min_effect=0.01), mark(metric, min_effect=0.02)])


@pytest.mark.parametrize("metric", [*markers.GATES])
def test_the_limit_beside_a_change_that_matters_may_stand_on_another_marker(metric):
    effect, limited = mark(metric, min_effect=0.01), mark(metric, **limit(metric))
    for marks in ([effect, limited], [limited, effect]):
        (found,) = markers.gates(marks)
        assert (dict(found.limits), found.min_effect) == (limit(metric), 0.01)


@pytest.mark.parametrize("metric, limit", LIMITED)
def test_a_change_that_matters_beside_each_limit(metric, limit):
    assert gate(metric, **{limit: 0.5}).min_effect is None
    assert gate(metric, **{limit: 0.5}, min_effect=None).min_effect is None
    both = gate(metric, **{limit: 0.5}, min_effect=0.01)
    assert (both.limits, both.min_effect) == (((limit, 0.5),), 0.01)


@pytest.mark.parametrize("metric", [*markers.GATES])
def test_of_several_changes_that_matter_the_nearest_counts(metric):
    near, far = mark(metric, min_effect=0.1), mark(metric, min_effect=0.2)
    nothing = mark(metric, **limit(metric))
    for marks, effect in (
        ([near, far, nothing], 0.1),
        ([far, near, nothing], 0.2),
        ([nothing, near, far], 0.1),
        ([near, nothing, far], 0.1),
        ([nothing, nothing], None),
        ([nothing, far], 0.2),
        ([mark(metric, min_effect=0), far, nothing], 0.0),
        ([near, mark(metric, **limit(metric), min_effect=0.2)], 0.1),
    ):
        (found,) = markers.gates(marks)
        assert found.min_effect == effect
        assert dict(found.limits) == limit(metric)


def test_a_change_that_matters_makes_no_other_question():
    phases = [mark("throughput_ratio", min=1.0), mark("throughput_ratio", min=0.5, min_effect=0.2, phase="prefill")]
    assert [(dict(g.limits), g.min_effect) for g in markers.gates(phases)] == [
        ({"min": 1.0}, None),
        ({"min": 0.5}, 0.2),
    ]
    assert (
        len(markers.gates([mark("kl_divergence", max=1.0), mark("kl_divergence", max_bound=1.0, min_effect=0.1)])) == 1
    )


def test_the_limit_of_another_question_is_none_of_this_one():
    phases = [mark("throughput_ratio", min=1.0), mark("throughput_ratio", min_effect=0.2, phase="prefill")]
    with pytest.raises(UsageError, match="throughput_ratio needs a limit beside min_effect"):
        markers.gates(phases)


@pytest.mark.parametrize("metric", [*markers.GATES])
@pytest.mark.parametrize(
    "value, words",
    [
        ("0.01", "must be a number, not str; write min_effect=0.01"),
        ("little", "must be a number, not str"),
        (True, "must be a number, not bool"),
        ([0.1], "must be a number, not list"),
        (NAN, "must be a finite number"),
        (INF, "must be a finite number"),
        (-0.1, "must not be negative"),
    ],
)
def test_a_change_that_is_none(metric, value, words):
    assert f"{metric}(min_effect={value!r}): {words}" in refusal(metric, min_effect=value)


@pytest.mark.parametrize("metric", [*markers.GATES])
def test_the_same_change_that_matters_twice_in_one_place_is_refused(metric):
    """As for limits: one of the two would do nothing."""
    place, one, two = object(), mark(metric, min_effect=0.1), mark(metric, min_effect=0.2)
    markers.check_stacked([(place, one), (object(), two)])
    with pytest.raises(UsageError, match=f"{metric} sets min_effect twice on the same test"):
        markers.check_stacked([(place, one), (place, two)])


# what is refused, and in which words


@pytest.mark.parametrize("name", ["quant", *markers.GATES])
def test_an_unknown_argument(name):
    message = refusal(name, maximum=1.0)
    assert message.startswith(f"{name} has no argument 'maximum'; its arguments are ")
    wanted = {
        "quant": "formats",
        "perplexity_delta": "max_ratio",
        "kl_divergence": "p999",
        "token_agreement": "min",
        "throughput_ratio": "min",
        "energy_ratio": "max_joules",
        "cost_ratio": "reference_price",
        "memory_budget": "max_gib",
        "task_accuracy": "apply_chat_template",
        "generation_match": "max_new_tokens",
        "layer_sensitivity": "strategy",
    }
    assert wanted[name] in message


@pytest.mark.parametrize(
    "name, fix",
    [
        ("perplexity_delta", "max=1.0"),
        ("kl_divergence", "max=1.0"),
        ("token_agreement", "min=1.0"),
        ("throughput_ratio", "min=1.0"),
        ("energy_ratio", "max=1.0"),
        ("cost_ratio", "max=1.0"),
        ("memory_budget", "max_gb=1.0"),
        ("task_accuracy", "max_drop=1.0"),
        ("generation_match", "min=1.0"),
        ("layer_sensitivity", "max=1.0"),
    ],
)
def test_a_positional_limit(name, fix):
    message = refusal(name, 1.0)
    assert "takes no positional arguments, got 1.0" in message
    assert f"write {name}({fix})" in message


def test_a_positional_model():
    assert "write quant(model='org/name')" in refusal("quant", "org/name", formats=["nf4"])


EVERY_LIMIT = [(metric, name) for metric, kinds in LIMITS.items() for name in kinds]


@pytest.mark.parametrize("metric, limit", EVERY_LIMIT)
@pytest.mark.parametrize(
    "value, words",
    [
        ("1", "must be a number, not str; write {limit}=1"),
        ("1.5", "must be a number, not str; write {limit}=1.5"),
        ("a lot", "must be a number, not str"),
        ("nan", "must be a number, not str"),
        (True, "must be a number, not bool"),
        (False, "must be a number, not bool"),
        ([1.0], "must be a number, not list"),
        (1j, "must be a number, not complex"),
        (NAN, "must be a finite number"),
        (INF, "must be a finite number"),
        (-INF, "must be a finite number"),
        (-0.1, "must not be negative"),
        (-1, "must not be negative"),
    ],
)
def test_a_limit_that_is_none(metric, limit, value, words):
    message = refusal(metric, **{limit: value})
    assert f"{metric}({limit}={value!r}): {words.format(limit=limit)}" in message
    assert "write" in message if "write" in words else "write" not in message


NOTHING_WORSE = [("perplexity_delta", "max"), ("task_accuracy", "max_drop")]
"""Limits that a format as good as the reference keeps at 0."""


@pytest.mark.parametrize("metric, limit", [pair for pair in EVERY_LIMIT if pair not in NOTHING_WORSE])
@pytest.mark.parametrize("zero", [0, 0.0])
def test_a_limit_of_zero(metric, limit, zero):
    message = refusal(metric, **{limit: zero})
    assert f"{metric}({limit}={zero}): must be above 0" in message
    assert ("it would always hold" if limit.startswith("min") else "it would never hold") in message


@pytest.mark.parametrize("share", [1.0001, 2, 90, 99.5])
def test_a_share_of_more_than_all_tokens(share):
    """A percentage, most likely; it would never hold."""
    message = refusal("token_agreement", min=share)
    assert message == f"token_agreement(min={share!r}): is a share of tokens and can be at most 1"
    assert gate("throughput_ratio", min=share).limits == (("min", float(share)),)


def test_a_number_beyond_floats_is_no_crash():
    assert "memory_budget(max_gb=" in refusal("memory_budget", max_gb=10**400)


@pytest.mark.parametrize(
    "name, words",
    [
        ("perplexity_delta", "needs a limit: max=... or max_ratio=..."),
        (
            "kl_divergence",
            "needs a limit: max=... or p90=... or p95=... or p99=... or p999=... or max_bound=...",
        ),
        ("token_agreement", "needs a limit: min=..."),
        ("throughput_ratio", "needs a limit: min=..."),
        ("energy_ratio", "needs a limit: max=... or max_joules=..."),
        ("cost_ratio", "needs a limit: max=... or max_usd=..."),
        ("memory_budget", "needs a limit: max_gb=... or max_gib=... or max_ratio=..."),
    ],
)
def test_no_limit(name, words):
    assert refusal(name) == f"{name} {words}"
    assert words in refusal(name, **{next(iter(LIMITS[name])): None})


def test_parameters_alone_are_no_limit():
    assert "needs a limit" in refusal("throughput_ratio", phase="decode")


@pytest.mark.parametrize("phase", ["train", "Decode", "", None, 1, ["decode"]])
def test_a_phase_that_there_is_not(phase):
    message = refusal("throughput_ratio", min=1.0, phase=phase)
    assert f"throughput_ratio(phase={phase!r}): must be one of 'decode', 'prefill', 'ttft'" in message


@pytest.mark.parametrize("of", ["weight", "PEAK", "", None, 1])
def test_a_memory_that_there_is_not(of):
    message = refusal("memory_budget", max_gb=1.0, of=of)
    assert f"memory_budget(of={of!r}): must be one of 'weights', 'activations', 'peak', 'kv_cache'" in message


@pytest.mark.parametrize(
    "metric, limit, name",
    [
        ("throughput_ratio", "min", "batch_size"),
        ("throughput_ratio", "min", "prompt_tokens"),
        ("throughput_ratio", "min", "new_tokens"),
        ("energy_ratio", "max", "batch_size"),
        ("cost_ratio", "max_usd", "new_tokens"),
        ("memory_budget", "max_gb", "batch_size"),
        ("memory_budget", "max_gb", "context"),
    ],
)
@pytest.mark.parametrize("count", [0, -1, 1.5, 2.0, True, "1", None, NAN])
def test_a_count_that_is_none(metric, limit, name, count):
    message = refusal(metric, **{limit: 1.0, name: count})
    assert f"{metric}({name}={count!r}): must be a whole number of 1 or more" in message


@pytest.mark.parametrize("formats", ["nf4", 4, True])
def test_formats_that_are_no_list(formats):
    message = refusal("quant", formats=formats)
    assert message == f'quant(formats={formats!r}): must be a list of format names, such as ["int8", "nf4"]'


@pytest.mark.parametrize("formats", [[], ()])
def test_no_formats(formats):
    assert "tests nothing; name at least one format" in refusal("quant", formats=formats)


@pytest.mark.parametrize("name", ["int3", "NF4", "", "nf4 "])
def test_an_unknown_format(name):
    message = refusal("quant", formats=["int8", name])
    assert f"unknown format {name!r}" in message
    assert "nf4" in message.split("he formats are")[1]  # a sentence of its own behind a guess


@pytest.mark.parametrize("value", [4, None, True, ["nf4"]])
def test_a_format_that_is_no_name(value):
    assert f"{value!r} is not the name of a format" in refusal("quant", formats=["int8", value])


def test_an_unknown_reference():
    assert "unknown format 'fp17'" in refusal("quant", reference="fp17")


@pytest.mark.parametrize("name", ["model", "reference", "engine", "revision"])
@pytest.mark.parametrize("value", [1, True, ["x"]])
def test_a_word_that_is_none(name, value):
    assert f"quant({name}={value!r}): must be a str, not {type(value).__name__}" in refusal("quant", **{name: value})


@pytest.mark.parametrize("name", ["trust_remote_code", "require_native"])
@pytest.mark.parametrize("value", [1, 0, "true", "no"])
def test_a_switch_that_is_none(name, value):
    assert f"quant({name}={value!r}): must be a bool, not {type(value).__name__}" in refusal("quant", **{name: value})


@pytest.mark.parametrize(
    "name, arguments, words",
    [
        ("task_accuracy", {"task": None, "max_drop": 0.1}, 'needs a task of lm-eval: task="arc_easy"'),
        ("task_accuracy", {"task": 3, "max_drop": 0.1}, "task_accuracy(task=3): must be a text"),
        ("task_accuracy", {"task": "", "max_drop": 0.1}, "task_accuracy(task=''): must be a text"),
        ("task_accuracy", {"task": [], "max_drop": 0.1}, "task_accuracy: task=[] tests nothing"),
        ("task_accuracy", {"max_drop": 1.5}, "is a share of items and must be below 1: it would always hold"),
        ("task_accuracy", {"max_drop": 1}, "is a share of items and must be below 1: it would always hold"),
        ("task_accuracy", {"max_drop": 0.1, "min_accuracy": 1.5}, "is a share of items and can be at most 1"),
        ("task_accuracy", {"max_drop": -0.1}, "must not be negative"),
        ("task_accuracy", {"min_recovery": 0}, "must be above 0: it would always hold"),
        ("task_accuracy", {"min_accuracy": 0.5}, "asks only for a sound reference; add max_drop=..."),
        ("task_accuracy", {"max_drop": 0.1, "num_fewshot": -1}, "must be a whole number of 0 or more"),
        ("task_accuracy", {"max_drop": 0.1, "num_fewshot": 1.5}, "must be a whole number of 0 or more"),
        ("task_accuracy", {"max_drop": 0.1, "limit": 0}, "must be a whole number of 1 or more"),
        ("task_accuracy", {"max_drop": 0.1, "apply_chat_template": "yes"}, "must be a bool, not str"),
        ("generation_match", {"min": 1.01}, "is a share of tokens and can be at most 1"),
        ("generation_match", {"min_same": 2}, "is a share of prompts and can be at most 1"),
        ("generation_match", {"min": 0.5, "prompts": []}, "must be a list of texts, or the path of a JSONL"),
        ("generation_match", {"min": 0.5, "prompts": ["a", 1]}, "must be a list of texts, or the path of a JSONL"),
        ("generation_match", {"min": 0.5, "prompts": ""}, "must be a list of texts, or the path of a JSONL"),
        ("generation_match", {"min": 0.5, "max_new_tokens": 0}, "must be a whole number of 1 or more"),
        ("layer_sensitivity", {"max": 1, "of": "head"}, "must be one of 'layer', 'block'"),
        ("layer_sensitivity", {"max": 1, "strategy": "row"}, "must be one of 'tensor', 'channel', 'group'"),
        ("layer_sensitivity", {"max": 1, "strategy": "group"}, 'needs numeric="int8" or the like beside it'),
        ("layer_sensitivity", {"max": 1, "numeric": "int8", "strategy": "tensor", "group_size": 64}, "group_size=64"),
        ("layer_sensitivity", {"max": 1, "numeric": "int9"}, "numeric='int9': weights are rounded to int2 ... int8"),
        ("layer_sensitivity", {"max": 1, "windows": 0}, "must be a whole number of 1 or more"),
    ],
)
def test_what_a_quality_marker_of_its_own_population_refuses(name, arguments, words):
    assert words in refusal(name, **arguments)


def test_a_list_of_tasks_makes_a_gate_of_each():
    one, other = markers.gates([mark("task_accuracy", task=["arc_easy", "mmlu"], num_fewshot=5, max_drop=0.02)])
    assert one == gate("task_accuracy", task="arc_easy", num_fewshot=5, max_drop=0.02)
    assert dict(other.parameters)["task"] == "mmlu"


def test_prompts_may_be_texts_or_a_path():
    texts = gate("generation_match", min=0.9, prompts=["One", "Two"])
    assert dict(texts.parameters)["prompts"] == ("One", "Two")
    assert hash(texts)
    assert dict(gate("generation_match", min=0.9, prompts="mine.jsonl").parameters)["prompts"] == "mine.jsonl"
    assert "prompts" not in dict(gate("generation_match", min=0.9).parameters)


def test_a_mistake_behind_a_good_marker_is_seen():
    with pytest.raises(UsageError, match="must not be negative"):
        markers.gates([mark("perplexity_delta", max=1.0), mark("perplexity_delta", max=-1.0)])


# imperatively


def test_a_gate_from_arguments():
    assert markers.gate("throughput_ratio", {"min": 1.5}) == gate("throughput_ratio", min=1.5)
    assert markers.gate("perplexity_delta", {}, limits_required=False) == Gate("perplexity_delta")
    by_baseline_alone = markers.gate("kl_divergence", {"min_effect": 0.01}, limits_required=False)
    assert by_baseline_alone == Gate("kl_divergence", min_effect=0.01)
    with pytest.raises(UsageError, match="needs a limit"):
        markers.gate("perplexity_delta", {})
    with pytest.raises(UsageError, match="has no argument 'phase'"):
        markers.gate("perplexity_delta", {"phase": "decode"}, limits_required=False)
