"""Formats of a test suite, and backends of other packages: asked for by name, proven, and never taken at their word."""

from __future__ import annotations

import importlib.metadata

import pytest

from pytest_quant.formats import registry

CUSTOM = """
import torch
from pytest_quant.formats import custom


class Narrow(torch.nn.Module):
    "Weights as int8, one scale a row."

    def __init__(self, linear):
        super().__init__()
        self.scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.weight = torch.nn.Parameter((linear.weight / self.scale).round().to(torch.int8), requires_grad=False)

    def forward(self, x):
        return x @ (self.weight * self.scale).T


def load(asked, from_pretrained):
    model = from_pretrained(asked.model, dtype=torch.float32)
    for layer in model.model.layers:
        for block in (layer.self_attn, layer.mlp):
            for name, child in list(block.named_children()):
                if isinstance(child, torch.nn.Linear) and name not in LEFT_OUT:
                    setattr(block, name, Narrow(child))
    return model


LEFT_OUT = ()


def pytest_quant_formats():
    return [custom("ours-int8", load, num_bits=8)]
"""
TEST = """
import pytest

@pytest.mark.quant(formats=["ours-int8"])
@pytest.mark.perplexity_delta(max_ratio=1.2)
@pytest.mark.memory_budget(max_ratio=0.9)
def test_ours(quant_model, quant_support):
    assert quant_model.proof.quantized_weight_share == 1.0
    assert quant_model.proof.kernels == {"Narrow": 14}
    assert quant_support("ours-int8").status == "dequantized"
"""


def test_a_custom_format_in_a_few_lines(project):
    project.conftest(CUSTOM)
    project.test(TEST)
    result, record = project.record()
    result.assert_outcomes(passed=1)
    measured = record["measurements"][0]
    assert measured["format"] == "ours-int8"
    assert measured["identity"]["format"]["weights"] == {"num_bits": 8, "type": "int", "strategy": "channel"}
    assert 8 <= measured["proof"]["bits_per_weight"] < 10


def test_a_custom_loader_that_forgets_a_layer_does_not_prove_itself(project):
    project.conftest(CUSTOM.replace("LEFT_OUT = ()", 'LEFT_OUT = ("down_proj",)'))
    project.test(TEST)
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*not in ours-int8: *2 of 14 weights left out: model.layers.0.mlp.down_proj.weight*"])


def test_a_custom_loader_that_quantizes_nothing_does_not_prove_itself(project):
    project.conftest(CUSTOM.replace("isinstance(child, torch.nn.Linear)", "False"))
    project.test(TEST)
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*not in ours-int8: 0.0% of the eligible weights are*32.00 bits a weight*"])


def test_its_name_works_on_the_command_line_and_only_in_its_own_suite(project):
    project.conftest(CUSTOM)
    project.test("import pytest\n@pytest.mark.memory_budget(max_ratio=0.9)\ndef test_it(quant_model): ...")
    project.run("--quant-formats=ours-int8").assert_outcomes(passed=1)
    project.conftest("")
    result = project.run("--quant-formats=ours-int8")
    assert result.ret == 4
    result.stderr.fnmatch_lines(["*unknown format 'ours-int8'*"])


def test_a_conftest_below_may_bring_formats(project):
    below = project.path / "below"
    below.mkdir()
    (below / "conftest.py").write_text(CUSTOM)
    (below / "test_below.py").write_text(TEST)
    project.run().assert_outcomes(passed=1)


VARIANT = """
from pytest_quant.formats import variant

def pytest_quant_formats():
    return [
        variant("nf4", "nf4-plain", bnb_4bit_use_double_quant=False),
        variant("nf4", "nf4-mixed", exclude=["down_proj"]),
        variant("int8", "int8-mixed", exclude=["*.mlp.*"], llm_int8_threshold=5.0),
    ]
"""


def test_variants_have_the_parameters_that_were_asked_for(project):
    project.conftest(VARIANT)
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["nf4-plain", "nf4-mixed", "int8-mixed"])
        @pytest.mark.memory_budget(max_ratio=0.95)
        def test_it(quant_model):
            proof = quant_model.proof
            name = quant_model.format.name
            if name == "nf4-plain":
                assert proof.parameters["bnb_4bit_use_double_quant"] is False
            wide = {"nf4-plain": 0, "nf4-mixed": 2, "int8-mixed": 6}[name]
            assert sum(proof.kernels.values()) == 14 - wide
            assert "Linear" not in proof.kernels
        """
    )
    result, record = project.record()
    result.assert_outcomes(passed=3)
    identities = {found["format"]: found["identity"]["format"] for found in record["measurements"]}
    assert identities["nf4-plain"]["parameters"]["bnb_4bit_use_double_quant"] is False
    assert identities["nf4-mixed"]["exclude"] == ["down_proj"]
    assert identities["int8-mixed"]["parameters"] == {"llm_int8_threshold": 5.0}


@pytest.mark.parametrize("patterns", ['["down_porj"]', '["o_proj", "down_porj"]'])
def test_an_exclusion_that_matches_nothing_is_said(project, patterns):
    project.conftest(VARIANT.replace('exclude=["down_proj"]', f"exclude={patterns}"))
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["nf4-mixed"])
        @pytest.mark.memory_budget(max_ratio=0.95)
        def test_it(quant_model): ...
        """
    )
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*nf4-mixed excludes down_porj, which matches no weight of the model*"])


@pytest.mark.parametrize(
    "returned, said",
    [
        ('[variant("nf5", "x")]', "unknown format 'nf5'"),
        ('[variant("nf4", "nf4")]', "there is a format 'nf4' already"),
        ('[variant("nf4", "a,b")]', "cannot be the name of a format"),
        ('["nf4"]', "is not a format"),
        ('variant("nf4", "x")', "must return a list of formats, not Format"),
        ('[variant("nf4", "x", exclude="lm_head")]', "give a list of patterns"),
    ],
)
def test_a_mistake_in_the_hook_is_said(project, returned, said):
    project.conftest(f"from pytest_quant.formats import variant\ndef pytest_quant_formats():\n    return {returned}")
    project.test("def test_nothing(): ...")
    result = project.run()
    assert result.ret == 4
    assert said in result.stderr.str()


@pytest.fixture
def other_package(monkeypatch):
    """An entry point of another package, as importlib.metadata tells of it."""

    def install(value):
        point = importlib.metadata.EntryPoint(name="theirs", value=value, group=registry.ENTRY_POINTS)
        monkeypatch.setattr(registry, "entry_points", lambda group: [point])
        registry._of_others.cache_clear()

    yield install
    monkeypatch.undo()
    registry._of_others.cache_clear()


THEIRS = """
from pytest_quant.formats import Backend, Format, QuantizationArgs, Stored
from pytest_quant.hardware.matrix_rows import Support


class Theirs(Backend):
    name, requires, install = "theirs", ("torch",), "theirs"
    formats = (Format("theirs-bf16", QuantizationArgs(16, "float"), "theirs", "bf16"),)

    def support(self, format, device):
        return Support("native", "they say so", "their own tests")

    def open(self, asked, from_pretrained):
        import torch
        return from_pretrained(asked.model, dtype=torch.bfloat16)

    def stored(self, module):
        return Stored(module.weight.dtype.itemsize * 8, "float")

BACKEND = Theirs()
NOT_ONE = 3
"""


def test_another_package_adds_a_backend_by_an_entry_point(project, other_package, monkeypatch):
    (project.path / "theirs_backend.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(project.path)
    other_package("theirs_backend:BACKEND")
    project.test(
        """
        import pytest

        @pytest.mark.quant(formats=["theirs-bf16"])
        @pytest.mark.perplexity_delta(max_ratio=1.2)
        def test_it(quant_model):
            assert quant_model.support.status == "native"
        """
    )
    project.run().assert_outcomes(passed=1)


@pytest.mark.parametrize(
    "value, said",
    [
        ("theirs_backend:NOT_ONE", "is no pytest_quant Backend"),
        ("theirs_backend:NOTHING", "cannot be imported: AttributeError"),
        ("no_such_module_at_all:BACKEND", "cannot be imported: ModuleNotFoundError"),
    ],
)
def test_a_broken_backend_of_another_package_is_named(project, other_package, monkeypatch, value, said):
    (project.path / "theirs_backend.py").write_text(THEIRS)
    monkeypatch.syspath_prepend(project.path)
    other_package(value)
    project.test("import pytest\n@pytest.mark.quant(formats=['theirs-bf16'])\ndef test_it(quant_model): ...")
    result = project.run()
    assert result.ret != 0
    assert said in result.stdout.str()
    assert "theirs" in result.stdout.str()


def test_a_loader_that_hides_its_weights_does_not_prove_itself(project):
    """In a closure, where no bytes are found; it would be the smallest model of all."""
    project.conftest(
        """
        import torch
        from pytest_quant.formats import custom


        class Hidden(torch.nn.Module):
            def __init__(self, linear):
                super().__init__()
                self.apply_it = lambda x: torch.nn.functional.linear(x, linear.weight * 1.001)

            def forward(self, x):
                return self.apply_it(x)


        def load(asked, from_pretrained):
            model = from_pretrained(asked.model, dtype=torch.float32)
            for layer in model.model.layers:
                for block in (layer.self_attn, layer.mlp):
                    for name, child in list(block.named_children()):
                        if isinstance(child, torch.nn.Linear):
                            setattr(block, name, Hidden(child))
            return model


        def pytest_quant_formats():
            return [custom("ours-int8", load, num_bits=8)]
        """
    )
    project.test(TEST.replace('"Narrow"', '"Hidden"'))
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*loaded as ours-int8, but the bytes of 14 of 14 weights are not to be found*"])


@pytest.mark.parametrize(
    "body, said",
    [
        ("None", "the loader of ours-int8 gave no model"),
        ("1 / 0", "the loader of ours-int8 failed *ZeroDivisionError"),
    ],
)
def test_a_broken_loader_is_named(project, body, said):
    project.conftest(
        f"from pytest_quant.formats import custom\n"
        f"def load(asked, from_pretrained):\n    return {body}\n"
        f"def pytest_quant_formats():\n    return [custom('ours-int8', load, num_bits=8)]\n"
    )
    project.test(TEST)
    result = project.run()
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"*{said}*"])


def test_groups_in_a_format_without_may_take_the_bits_of_their_scales(project):
    project.conftest(
        "from pytest_quant.formats import variant\n"
        "def pytest_quant_formats():\n    return [variant('int8-weight-only', 'grouped', group_size=8)]\n"
    )
    project.test("import pytest\n@pytest.mark.quant(formats=['grouped'])\ndef test_it(quant_model): ...")
    project.run().assert_outcomes(passed=1)
