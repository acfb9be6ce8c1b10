"""Memory through its marker; and memory that does not suffice: predicted, caught, explained and given back."""

from __future__ import annotations

import weakref

import pytest

LAYERS, HEADS, WIDTH, FLOAT = 2, 1, 32, 4
PER_TOKEN = 2 * LAYERS * HEADS * WIDTH * FLOAT
LARGE = 50_000_000

TWO = """
import pytest

@pytest.mark.memory_budget(max_gb=1, of={of!r}, batch_size=2, context=100)
def test_a_burst(quant_model): ...

@pytest.mark.memory_budget(max_gb=1, of={of!r}, batch_size=2, context=200)
def test_b_next(quant_model):
    from planted import planted
    assert planted() == []
"""


@pytest.fixture
def planted(monkeypatch, project):
    """Have a function run out of memory once, with a large tensor in the failing frame; what is left of such tensors
    can be asked for, in the tests of the project too."""
    import sys
    from types import ModuleType

    import torch

    left: list[weakref.ref[torch.Tensor]] = []

    def plant(place: object, name: str, *, when=lambda *arguments: True, error=torch.OutOfMemoryError) -> None:
        asked = getattr(place, name)
        burst = []

        def failing(*arguments, **more):
            if burst or not when(*arguments):
                return asked(*arguments, **more)
            burst.append(1)
            large = torch.ones(LARGE // 4)
            left.append(weakref.ref(large))
            raise error("CUDA out of memory. Tried to allocate 20.00 GiB.\nMore that nobody reads")

        monkeypatch.setattr(place, name, failing)

    def alive() -> list[int]:
        return [tensor.numel() for one in left if (tensor := one()) is not None]

    module = ModuleType("planted")
    module.planted = alive
    monkeypatch.setitem(sys.modules, "planted", module)
    plant.alive = alive
    plant.left = left
    return plant


def test_activations_and_peak_with_the_figures_behind_them(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1)
        @pytest.mark.memory_budget(max_gb=1, of="activations", context=256)
        @pytest.mark.memory_budget(max_gb=1, of="peak", context=256)
        @pytest.mark.memory_budget(max_ratio=1.5, of="kv_cache", batch_size=2, context=100)
        def test_memory(quant_model): ...
        """
    )
    result, record = project.record("--quant-baseline")
    assert result.ret == 0
    found = {measured["parameters"]["of"]: measured for measured in record["measurements"]}
    weights = found["weights"]["value"]
    for of in ("activations", "peak"):
        assert found[of]["weight_bytes"] == weights
        assert found[of]["activation_bytes"] == found["activations"]["value"] > 0
    assert found["peak"]["value"] == weights + found["activations"]["value"]
    kv_cache = found["kv_cache"]
    assert kv_cache["value"] == kv_cache["kv_predicted_bytes"] == 200 * PER_TOKEN
    assert kv_cache["kv_bytes_per_token"] == PER_TOKEN
    assert all(measured["process_bytes"] > 10 * weights for measured in found.values())
    again = project.gate("--quant-missing=fail")
    assert again.ret == 0
    again.stdout.fnmatch_lines(["int8 *memory activations *passed"])


def test_a_kv_cache_format_is_not_predicted(project):
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["fp32+kv-int4-g32"])
        @pytest.mark.memory_budget(max_gb=1, of="kv_cache", context=400)
        def test_memory(quant_model): ...
        """
    )
    result, record = project.record()
    assert result.ret == 0
    (measured,) = record["measurements"]
    assert "kv_predicted_bytes" not in measured
    assert measured["kv_bytes_per_token"] == measured["value"] / 400 < PER_TOKEN


@pytest.mark.parametrize(
    ("of", "name"), [("kv_cache", "kv_cache_bytes"), ("activations", "token_nll"), ("peak", "token_nll")]
)
def test_out_of_memory_while_measuring_is_explained_and_given_back(project, planted, of, name):
    from pytest_quant.engines.transformers import TransformersModel

    planted(TransformersModel, name, when=lambda model, tokens: tokens.shape == (2, 100))
    project.test(TWO.format(of=of))
    result, record = project.record()
    result.assert_outcomes(passed=1, failed=1)
    assert len(planted.left) == 1
    burst, after = sorted(record["measurements"], key=lambda measured: measured["test"])
    assert burst["verdict"] == "not-measured"
    said = burst["reason"]
    assert said.startswith(
        "out of memory while measuring memory_budget: CUDA out of memory. Tried to allocate 20.00 GiB.; after it was "
        "given back "
    )
    assert "of this run" in said
    assert "tiny-llama in int8 (" in said
    assert "batch 2, context 100" in said
    assert "of activations" in said
    assert ("of KV cache" in said) == (of == "kv_cache")
    assert "nobody reads" not in said
    assert after["verdict"] == "passed"
    assert after["value"] > 0


def test_out_of_memory_while_scoring_is_given_back(project, planted):
    from pytest_quant.engines.transformers import TransformersModel

    planted(TransformersModel, "predict", when=lambda model, tokens, scored_from=1: tokens.shape[1] == 64)
    project.test(
        """
        import pytest

        @pytest.mark.perplexity_delta(max_ratio=100)
        def test_a_burst(quant_model): ...

        @pytest.mark.perplexity_delta(max_ratio=101)
        def test_b_next(quant_model):
            from planted import planted
            assert planted() == []
        """
    )
    result = project.gate()
    assert len(planted.left) == 1
    result.assert_outcomes(passed=2)  # fewer windows at once are tried
    assert planted.alive() == []


@pytest.mark.parametrize("place", ["opening", "settling"])
def test_out_of_memory_while_loading_is_a_skip_with_figures_and_given_back(project, planted, place):
    from transformers import AutoModelForCausalLM

    from pytest_quant.engines.transformers import TransformersModel

    if place == "opening":
        planted(AutoModelForCausalLM, "from_pretrained")
    else:
        planted(TransformersModel, "_settle")
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["bf16", "int8"])
        @pytest.mark.memory_budget(max_gb=1)
        def test_weights(quant_model):
            from planted import planted
            assert planted() == []
        """
    )
    result, record = project.record("-rs")
    result.assert_outcomes(passed=1, skipped=1)
    assert len(planted.left) == 1
    assert planted.alive() == []
    (skip,) = record["skipped"]
    assert skip["reason"].startswith(
        "bf16: asked: tiny-llama in bf16; found: out of memory while loading it (CUDA out of memory. Tried to allocate "
        "20.00 GiB.); after it was given back "
    )
    assert "; needed: 0.214 MB for the weights (73,728 at 16.00 bits, 33,088 at 16 bits), and what" in skip["reason"]


def test_a_gate_that_cannot_fit_is_refused_before_it_runs(project, monkeypatch):
    from pytest_quant.engines import memory
    from pytest_quant.engines.transformers import TransformersModel

    free = memory.free_bytes

    def scarce(device):
        """As little as a batch of 100 takes, once there is a model."""
        return 100 * 300 * PER_TOKEN if loaded else free(device)

    loaded, settle, ran = [], TransformersModel._settle, []
    monkeypatch.setattr(memory, "free_bytes", scarce)
    monkeypatch.setattr(TransformersModel, "_settle", lambda model: (settle(model), loaded.append(1)))
    measure = TransformersModel.kv_cache_bytes
    monkeypatch.setattr(
        TransformersModel, "kv_cache_bytes", lambda model, prompt: ran.append(prompt.shape) or measure(model, prompt)
    )
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=101, context=300)
        def test_a_batch_too_large(quant_model): ...

        @pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=2, context=300)
        def test_b_small(quant_model): ...
        """
    )
    result, record = project.record()
    result.assert_outcomes(passed=1, skipped=1)
    assert ran == [(2, 300)]
    (skip,) = record["skipped"]
    assert "asked: memory_budget of tiny-llama in int8; found: 0.0154 GB free on " in skip["reason"]
    assert "needed: 0.0155 GB of KV cache + at least " in skip["reason"]
    assert "(batch 101, context 300)" in skip["reason"]


def test_what_was_not_predicted_and_really_does_not_fit(project, monkeypatch):
    from pytest_quant import room

    monkeypatch.setattr(room, "require", lambda *arguments: None)
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1, of="activations", batch_size=10**12)
        def test_a_huge(quant_model): ...

        @pytest.mark.memory_budget(max_gb=1, of="activations")
        def test_b_next(quant_model): ...
        """
    )
    result, record = project.record()
    result.assert_outcomes(passed=1, failed=1)
    huge = next(m for m in record["measurements"] if "huge" in m["test"])
    assert huge["verdict"] == "not-measured"
    assert "predicted: at least 261,632,000 GB of activations (batch 1,000,000,000,000, context 512)" in huge["reason"]


def test_a_context_beyond_the_models_positions_stays_a_mistake(project):
    project.test(
        """
        import pytest

        @pytest.mark.memory_budget(max_gb=1, of="kv_cache", batch_size=10**12, context=513)
        def test_memory(quant_model): ...
        """
    )
    result = project.run()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*context=513 does not fit the model's 512 positions*"])


def test_out_of_memory_in_a_tests_own_code_does_not_keep_the_device_from_the_next(project):
    """In a process of its own: what records the hooks of a run within this one would keep all frames."""
    project.test(
        """
        import weakref
        import pytest
        import torch

        left = []

        @pytest.mark.memory_budget(max_gb=1)
        def test_a_burst(quant_model):
            large = torch.ones(10_000_000)
            left.append(weakref.ref(large))
            torch.ones(10**15)

        @pytest.mark.memory_budget(max_gb=1)
        def test_b_next(quant_model):
            assert [one() for one in left] == [None]
            assert quant_model.generate("The quick")
        """
    )
    result = project.pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(["E *can't allocate memory: you tried to allocate*"])
