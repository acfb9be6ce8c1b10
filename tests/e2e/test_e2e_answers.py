"""Tasks, continuations and layers through their markers: verdicts, baselines, what the report shows and records."""

from __future__ import annotations

import json

import pytest
from task_files import continuations, write_task

TASK = """
import pytest

@pytest.mark.task_accuracy(task="ends", {limits})
def test_ends(quant_model): ...
"""
TEXT = """
import pytest

@pytest.mark.generation_match({arguments})
def test_text(quant_model): ...
"""
LAYERS = """
import pytest

@pytest.mark.layer_sensitivity(max={limit}, windows=2{more})
def test_layers(quant_model): ...
"""
BREAK = """
import pytest
import torch
from pytest_quant.formats import custom
from pytest_quant.formats.backends.bitsandbytes import BACKEND

def load(asked, from_pretrained):
    from dataclasses import replace
    from pytest_quant.formats import registry
    model = BACKEND.open(replace(asked, format=registry.get("int8")), from_pretrained)
    {damage}
    return model

def pytest_quant_formats():
    return [custom("broken", load, num_bits=8, stored=BACKEND.stored)]
"""
"""A format that is int8 but for some damage."""
LOST_WORDS = BREAK.format(damage="torch.nn.init.normal_(model.model.embed_tokens.weight)")
WRONG_NORM = BREAK.format(damage="model.model.layers[1].input_layernorm.weight.data.mul_(3)")


@pytest.fixture
def ends(project):
    """A project with a task of 24 items, of which the tiny model knows most."""
    write_task(project.path / "tasks", "ends", continuations(24))
    project.ini(f"quant_model = {project.model}", "quant_tasks = tasks")
    return project


def test_a_task_is_asked_and_told_of(ends):
    ends.test(TASK.format(limits="max_drop=0.5, min_accuracy=0.1, num_fewshot=1"))
    result, record = ends.record("--quant-full")
    assert result.ret == 0
    (measured,) = record["measurements"]
    assert (measured["metric"], measured["verdict"], measured["unit"]) == ("task_accuracy", "passed", "share")
    assert measured["items"] == {"used": 24, "total": 24}
    assert "windows" not in measured
    assert measured["value"] == pytest.approx(measured["reference_value"] - measured["format_value"])
    assert measured["lost"] - measured["gained"] == pytest.approx(24 * measured["value"])
    assert measured["statistics"].keys() == {"recovery", "reference_accuracy"}
    assert measured["detail"]["task"] == "ends"
    assert str(ends.path) not in json.dumps(measured["identity"])
    assert measured["proof"]["reference_difference"] > 0
    result.stdout.fnmatch_lines(["int8 *ends accuracy 1-shot* 24/24 *max 0.5, reference min 0.1*passed"])
    result.stdout.fnmatch_lines([f"*fp32 *, int8 *; {measured['lost']:g} lost, {measured['gained']:g} gained"])


def test_the_same_answers_are_no_change_and_others_are(ends):
    ends.test(TASK.format(limits="max_drop=0.5"))
    assert ends.gate().ret == 0
    (entry,) = ends.entries
    assert len(entry["scores"]) == 24
    again, record = ends.record("--quant-baseline")
    assert again.ret == 0
    assert record["measurements"][0]["baseline"]["change"] == "+0.0000"

    def better(data):
        entry = data["measurements"][0]
        entry["scores"] = [1.0] * 24

    ends.change_baseline(better)
    worse, record = ends.record("--quant-baseline")
    assert worse.ret == 1
    said = record["measurements"][0]["baseline"]
    assert said["verdict"] == "regressed"
    assert "of items against the baseline's items" in said["reason"]


def test_another_task_of_the_same_name_is_incomparable(ends):
    ends.test(TASK.format(limits="max_drop=0.5"))
    assert ends.gate().ret == 0
    docs = continuations(24)
    write_task(ends.path / "tasks", "ends", [{**docs[0], "question": "The lazy"}, *docs[1:]])
    result = ends.gate("--quant-missing=fail")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*incomparable: the baseline's identity differs: protocol.*"])


def test_a_mistake_in_one_gate_leaves_the_others_their_verdict(ends):
    ends.test(TASK.replace("@pytest", "@pytest.mark.memory_budget(max_gb=1)\n@pytest", 1).format(limits="max_drop=0.5"))
    (ends.path / "test_quant.py").write_text(
        (ends.path / "test_quant.py").read_text().replace('"ends"', '["ends", "edns"]')
    )
    result, record = ends.record("--quant-full")
    assert result.ret == 1
    verdicts = {(each["metric"], each["parameters"].get("task")): each["verdict"] for each in record["measurements"]}
    assert verdicts == {
        ("memory_budget", None): "passed",
        ("task_accuracy", "ends"): "passed",
        ("task_accuracy", "edns"): "not-measured",
    }


def test_a_task_that_neither_model_can_do_never_passes_early(ends):
    docs = [{**doc, "choices": ["zzzz", *doc["choices"]], "answer": 0} for doc in continuations(24)]
    write_task(ends.path / "tasks", "ends", docs)
    ends.test(TASK.format(limits="max_drop=0.6"))
    result = ends.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*not-measured: neither model has any of the 24 items right*"])


def test_two_models_that_know_nothing_do_not_pass(ends):
    ends.test(TASK.format(limits="max_drop=0.9, min_accuracy=0.999"))
    docs = [{**doc, "answer": (doc["answer"] + 1) % 4} for doc in continuations(24)]
    write_task(ends.path / "tasks", "ends", docs)
    result = ends.run("--quant-full")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*the reference's accuracy of * is below the limit (at least 0.999)*"])


@pytest.mark.parametrize("limits, said", [("max_drop=0.02", "a drop of"), ("min_recovery=0.98", "a recovery of")])
def test_a_fault_that_costs_items_breaks_the_gate_and_names_them(ends, limits, said):
    ends.conftest(LOST_WORDS)
    ends.test(TASK.format(limits=limits))
    result = ends.run("--quant-formats=broken")
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"broken task_accuracy failed: {said} *", "*fp32 had right, and broken has not:"])
    result.stdout.fnmatch_lines(["*  ends *: '*", "*    was '*'; now '*"])


def test_a_task_that_there_is_not(ends):
    ends.test(TASK.replace('"ends"', '"edns"').format(limits="max_drop=0.5"))
    result = ends.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*no task 'edns': is it ends?*"])


def test_continuations_that_differ_are_shown(project):
    project.conftest(LOST_WORDS)
    project.test(TEXT.format(arguments="min=0.9, prompts=['The quick brown', 'jumps over the'], max_new_tokens=12"))
    result, record = project.record("--quant-formats=broken")
    assert result.ret == 1
    (measured,) = record["measurements"]
    assert measured["prompts"] == {"used": 2, "total": 2}
    assert measured["changed"] == len(measured["detail"]["changed"]) > 0
    result.stdout.fnmatch_lines(
        ["broken generation_match failed: * of tokens is below the limit (at least 0.9 of tokens)"]
    )
    result.stdout.fnmatch_lines(["  changed at token *: '*'", "    fp32: '*", "    broken: *"])
    result.stdout.fnmatch_lines(["  * of 2 prompts continue otherwise, half of them by token *"])


def test_prompts_come_from_a_file_below_the_rootdir(project):
    (project.path / "domain.jsonl").write_text('{"prompt": "The quick brown"}\n{"prompt": "over the lazy"}\n')
    project.test(TEXT.format(arguments="min=0.1, prompts='domain.jsonl'"))
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    (measured,) = record["measurements"]
    assert measured["prompts"]["total"] == 2
    assert "domain" not in json.dumps(measured["identity"])
    (project.path / "domain.jsonl").rename(project.path / "other.jsonl")
    project.test(TEXT.format(arguments="min=0.1, prompts='other.jsonl'"))
    _, record = project.record("--quant-baseline")
    assert record["measurements"][0]["baseline"]["verdict"] == "passed"  # the same prompts, whatever their file


def test_a_missing_file_of_prompts(project):
    project.test(TEXT.format(arguments="min=0.1, prompts='nowhere.jsonl'"))
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*nowhere.jsonl*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_the_worst_layer_is_named(project):
    project.test(LAYERS.format(limit=1e-9, more=""))
    result, record = project.record()
    assert result.ret == 1
    (measured,) = record["measurements"]
    layers = measured["detail"]["layers"]
    assert len(layers) == measured["layers"] == 14
    worst = max(layers, key=lambda layer: layer["nats"]["value"])
    assert measured["value"] == worst["nats"]["value"]
    result.stdout.fnmatch_lines(["int8 layer_sensitivity failed: * nats is above the limit*", f"  {worst['name']}: *"])


def test_the_layer_that_breaks_a_limit_on_kl_is_shown_first(project):
    project.test(LAYERS.replace("max=", "max_kl=").format(limit=1e-9, more=""))
    result, record = project.record()
    assert result.ret == 1
    (measured,) = record["measurements"]
    worst = max(measured["detail"]["layers"], key=lambda layer: layer["kl"]["value"])
    assert measured["value"] == worst["kl"]["value"]
    result.stdout.fnmatch_lines(["int8 layer_sensitivity failed: a KL divergence of *", f"  {worst['name']}: *"])


def test_a_scan_of_a_model_that_the_test_changed_is_refused(project):
    project.test(
        """
        import pytest

        def test_scan(quant_scan, reference_model):
            hook = reference_model.model.lm_head.register_forward_hook(lambda module, args, out: out * 0)
            with pytest.raises(Exception, match="changed the fp32 model"):
                quant_scan("int8", windows=2)
            hook.remove()
            assert quant_scan("int8", windows=2).rows[0].kl.value > 0
        """
    )
    project.run().assert_outcomes(passed=1)


def test_layers_may_be_rounded_instead(project):
    project.test(LAYERS.format(limit=5, more=', numeric="int4", strategy="channel", of="block"'))
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    (measured,) = record["measurements"]
    assert measured["layers"] == 2
    assert measured["parameters"]["numeric"] == "int4"
    assert measured["format"] == measured["identity"]["format"]["name"] == "int4-channel"
    assert measured["proof"] == {}  # of the reference's own weights: whatever format the test is run in plays no part
    result.stdout.fnmatch_lines(["int4-channel *worst block *2/2*new"])
    again, record = project.record("--quant-baseline")
    assert again.ret == 0
    assert record["measurements"][0]["baseline"]["change"] == "+0.0000 nats"


def test_the_fixture_scans_and_names_what_to_keep(project):
    project.test(
        """
        from pytest_quant.formats.rounding import Rounding

        def test_scan(quant_scan):
            scan = quant_scan("int8", windows=2)
            assert quant_scan("int8", windows=2) is scan
            assert len(scan.rows) == 14
            assert quant_scan.keep("int8", max_delta=1e6, windows=2).rows == ()
            assert len(quant_scan(Rounding("int8", "tensor"), of="block", windows=1).rows) == 2

        def test_skip(quant_scan):
            quant_scan("fp8")
        """
    )
    result = project.run()
    result.assert_outcomes(passed=1, skipped=1)


def test_a_broken_quality_gate_explains_itself(project):
    project.conftest(WRONG_NORM)
    project.test(
        """
        import pytest

        @pytest.mark.perplexity_delta(max=0.0001)
        @pytest.mark.token_agreement(min=0.9999)
        def test_it(quant_model): ...
        """
    )
    result, record = project.record("--quant-formats=broken")
    assert result.ret == 1
    result.stdout.fnmatch_lines(
        ["2 gates are broken: broken of *", "*input_layernorm is not quantized, yet it is off*"]
    )
    explained = [each for each in record["measurements"] if "explanation" in each]
    assert len(explained) == 1
    assert explained[0]["explanation"]["layers"]["standing_out"][0]["name"] == "model.layers.1.input_layernorm"
    result.stdout.fnmatch_lines(["  worst of *windows*"])


def test_a_gate_that_holds_explains_nothing(project):
    project.test("import pytest\n@pytest.mark.perplexity_delta(max=100)\ndef test_it(quant_model): ...\n")
    result, record = project.record()
    assert result.ret == 0
    assert "explanation" not in record["measurements"][0]
