"""Faults that a review found, each of which once gave a green or a red that meant nothing."""

from __future__ import annotations

import json
import shutil

import pytest

ONE = """
import pytest

@pytest.mark.perplexity_delta(max_ratio=3.0)
def test_one(quant_model): ...
"""


def test_stacked_limits_all_count(project):
    project.test(
        """
        import pytest

        @pytest.mark.perplexity_delta(max=1e-9)
        @pytest.mark.perplexity_delta(max_ratio=5)
        def test_both(quant_model): ...
        """
    )
    result, record = project.record()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    (measured,) = record["measurements"]
    assert measured["limit"] == {"max": 1e-9, "max_ratio": 5.0}


def test_the_same_limit_twice_is_a_mistake(project):
    project.test(ONE.replace("@pytest", "@pytest.mark.perplexity_delta(max_ratio=9.0)\n@pytest"))
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*test_one: perplexity_delta sets max_ratio twice on the same test; keep one*"])


def test_a_marker_farther_out_says_what_the_nearest_leaves_out(project, tiny_gpt2):
    project.test(
        f"""
        import pytest

        @pytest.mark.quant(model={str(tiny_gpt2)!r}, reference="bf16")
        class TestGpt2:
            @pytest.mark.quant(formats=["nf4"])
            @pytest.mark.perplexity_delta(max_ratio=100)
            def test_it(self, quant_model): ...
        """
    )
    result, record = project.record()
    assert result.ret == 0
    (measured,) = record["measurements"]
    assert (measured["model"], measured["reference"], measured["format"]) == (tiny_gpt2.name, "bf16", "nf4")


def test_a_gate_and_a_fixture_of_another_format_than_the_markers(project):
    project.test(
        ONE.replace("@pytest", '@pytest.mark.quant(formats=["int8"])\n@pytest').replace("quant_model", "fp4_model")
    )
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["*names int8, but the test asks for fp4 by fixture*"])


@pytest.fixture
def copied(project, tmp_path, tiny_llama):
    """A model of one's own to damage."""
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_llama, folder)
    project.ini(f"quant_model = {folder}")
    project.test(ONE)
    return folder


def test_a_checkpoint_that_lacks_weights_is_refused(project, copied):
    from safetensors.torch import load_file, save_file

    weights = load_file(copied / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    result = project.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*lack 1 of the model's weights (missing keys: lm_head.weight), which would be random*"]
    )
    assert project.baselines == {}


def test_a_truncated_checkpoint_is_one_line(project, copied):
    content = (copied / "model.safetensors").read_bytes()
    (copied / "model.safetensors").write_bytes(content[: len(content) // 2])
    result = project.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*cannot be loaded as int8: *"])
    result.stdout.no_fnmatch_line("*During handling*")
    result.stdout.no_fnmatch_line("*.py:*: *Error*")


def test_weights_of_another_shape_than_the_config(project, copied):
    config = json.loads((copied / "config.json").read_text())
    config["intermediate_size"] = 96
    (copied / "config.json").write_text(json.dumps(config))
    result = project.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["int8 *not-measured"])
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")


def test_a_model_that_is_no_causal_one(project, tmp_path, byte_tokenizer):
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        vocab_size=256, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    byte_tokenizer.save_pretrained(tmp_path / "bert")
    project.test(ONE)
    result = project.gate(f"--quant-model={tmp_path / 'bert'}")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*is a BertForMaskedLM, not a causal language model*"])


def test_a_tokenizer_of_another_model(project, copied):
    from safetensors.torch import load_file, save_file

    config = json.loads((copied / "config.json").read_text())
    config["vocab_size"] = 64
    (copied / "config.json").write_text(json.dumps(config))
    weights = load_file(copied / "model.safetensors")
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        weights[name] = weights[name][:64].clone()
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    result = project.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*gives token *, but the model knows 64: they do not belong together*"])


@pytest.mark.parametrize("change", ["p.data.mul_(3) if p.is_floating_point() else None", "quant_model.model.train()"])
def test_a_body_that_changes_the_model_gates_nothing_and_hurts_nobody(project, change):
    project.test(
        f"""
        import pytest

        @pytest.mark.perplexity_delta(max_ratio=3.0)
        def test_a_changes(quant_model):
            for p in quant_model.model.parameters():
                {change}

        @pytest.mark.perplexity_delta(max_ratio=3.0)
        def test_b_innocent(quant_model): ...
        """
    )
    result = project.gate()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["*not-measured: the test's body changed the int8 model*"])
    (entry,) = project.entries
    assert entry["recorded"]["test"] == "test_quant.py::test_b_innocent[int8]"
    assert abs(entry["value"]) < 0.1


def test_a_value_that_broke_another_tests_limit_is_not_written(project):
    project.test(
        """
        import pytest

        @pytest.mark.perplexity_delta(max=10)
        def test_lax(quant_model): ...

        @pytest.mark.perplexity_delta(max=1e-9)
        def test_strict(quant_model): ...
        """
    )
    result = project.gate()
    result.assert_outcomes(passed=1, failed=1)
    assert project.baselines == {}


FOUR = {
    "test_a": """
        import pytest

        @pytest.mark.quant(formats=["int8"])
        @pytest.mark.perplexity_delta(max_ratio=3)
        def test_a(quant_model): ...

        @pytest.mark.quant(formats=["int8"], reference="bf16")
        @pytest.mark.perplexity_delta(max_ratio=3)
        def test_b(quant_model): ...
    """,
    "test_c": """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        def test_c(quant_model): ...
    """,
}


@pytest.mark.parametrize(
    "arguments", [["-k", "test_a"], ["test_a.py::test_a"], ["--quant-formats=int8"], ["test_c.py::test_c[int8]"]]
)
def test_pruning_spares_what_the_command_line_left_out(project, arguments):
    for name, body in FOUR.items():
        project.test(body, name=name)
    ini = (project.path / "pytest.ini").read_text()
    (project.path / "pytest.ini").write_text(ini.replace("quant_formats = int8", "quant_formats = int8,nf4"))
    assert project.gate().ret == 0
    assert len(project.entries) == 4
    assert project.gate("--quant-baseline-update=prune", *arguments).ret == 0
    assert len(project.entries) == 4


def test_a_plan_never_measures(project):
    project.test(ONE)
    project.test("import nowhere_to_be_found", name="test_broken")
    arguments = ["--quant-plan", "--quant-device=A100", "--quant-json=run.json"]
    result = project.run(*arguments, "--continue-on-collection-errors")
    result.stdout.fnmatch_lines(["run   test_quant.py::test_one*"])
    assert not (project.path / "run.json").exists()
    stopped = project.run(*arguments)
    assert stopped.ret == pytest.ExitCode.INTERRUPTED
    assert not (project.path / "run.json").exists()


def test_collect_only_writes_nothing(project):
    project.test(ONE)
    (project.path / "run.json").write_text("kept")
    result = project.gate("--collect-only", "--quant-json=run.json", "--quant-require=nf4")
    assert result.ret == 0
    assert (project.path / "run.json").read_text() == "kept"


def test_the_peak_of_unchanged_code_is_the_same(project):
    project.test("import pytest\n\n@pytest.mark.memory_budget(max_gb=1, of='peak')\ndef test_peak(quant_model): ...\n")
    values = set()
    for _ in range(3):
        result, record = project.record("--quant-baseline")
        assert result.ret == 0
        values.add(record["measurements"][0]["value"])
    assert max(values) / min(values) < 1.01
    assert min(values) > 2 * record["measurements"][0]["proof"]["weight_bytes"]


def test_what_cannot_fit_is_refused_with_the_arithmetic_and_the_next_test_goes_on(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=10**12)
        def test_a_huge(quant_model): ...

        @pytest.mark.memory_budget(max_gb=1)
        def test_b_next(quant_model): ...
        """
    )
    result, record = project.record()
    result.assert_outcomes(passed=1, skipped=1)
    assert [measured["test"] for measured in record["measurements"]] == ["test_quant.py::test_b_next[int8]"]
    (huge,) = record["skipped"]
    assert "262,144,000 GB of KV cache + at least 261,632,000 GB of activations" in huge["reason"]


def test_a_gate_that_broke_counts_where_another_could_not_be_asked(project, monkeypatch):
    from pytest_quant import models
    from pytest_quant.errors import Unsupported

    load = models.Models._load

    def refuse_reference(self, spec, format):
        if format.name == "fp32":
            raise Unsupported("fp32", "too little memory", "more")
        return load(self, spec, format)

    monkeypatch.setattr(models.Models, "_load", refuse_reference)
    gates = "import pytest\n\n@pytest.mark.memory_budget(max_gb={limit})\n@pytest.mark.perplexity_delta(max=1)\n"
    project.test(gates.format(limit=0.0001) + "def test_broken(quant_model): ...\n", name="test_broken")
    project.test(gates.format(limit=1) + "def test_cannot(quant_model): ...\n", name="test_cannot")
    result = project.run("-rs")
    result.assert_outcomes(failed=1, skipped=1)
    result.stdout.fnmatch_lines(
        ["*memory_budget failed*", "SKIPPED*asked: fp32; found: too little memory; needed: more*"]
    )


def test_prefill_needs_no_room_for_new_tokens(project):
    project.test(
        """
        import pytest

        @pytest.mark.throughput_ratio(min=1e-6, phase="prefill", prompt_tokens=512)
        def test_prefill(quant_model): ...
        """
    )
    assert project.run().ret == 0


def test_weights_need_no_corpus(project):
    (project.path / "corpus.txt").write_text("")
    project.test("import pytest\n\n@pytest.mark.memory_budget(max_gb=1)\ndef test_weights(quant_model): ...\n")
    assert project.run().ret == 0


def test_reruns_report_the_last_try_alone(project):
    pytest.importorskip("pytest_rerunfailures")
    project.test(
        """
        tries = []

        def test_by_hand(quant_measure):
            tries.append(quant_measure.memory_budget("nf4"))
            assert len(tries) == 3
        """
    )
    result, record = project.record("--reruns=2")
    assert result.ret == 0
    assert len(record["measurements"]) == 1


@pytest.mark.parametrize("line", ["quant_protocol = gptqq", "quant_confidence = 3", "quant_missing = maybe"])
def test_a_mistake_in_the_ini_file_is_one_line_that_names_it(project, line):
    ini = (project.path / "pytest.ini").read_text().replace("quant_protocol = gptq-64\n", "")
    (project.path / "pytest.ini").write_text(ini + line + "\n")
    project.test(ONE)
    result = project.run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines([f"*test_one: {line.split()[0]} in *pytest.ini*"])
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")


def test_a_home_folder_of_nobody_is_no_crash(project):
    project.test(ONE)
    result = project.run("--quant-model=~nobody-at-all/x")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.no_fnmatch_line("*INTERNALERROR*")


def test_a_fixture_that_is_asked_for_too_late(project):
    project.test("def test_late(request):\n    request.getfixturevalue('nf4_model')\n")
    result = project.run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*nf4_model must be an argument of the test*"])


def test_other_files_beside_the_model_are_not_the_model(project, copied):
    assert project.gate().ret == 0
    (copied / "trainer_state.json").write_text("{}")
    (copied / "README.md").write_text("changed")
    assert project.gate("--quant-missing=fail").ret == 0
