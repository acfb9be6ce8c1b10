"""A loaded model against the clock: what is run in the timed part, and that it is the same whatever the cache."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from pytest_quant.engines.source import ModelSource
from pytest_quant.engines.timing import Runner
from pytest_quant.errors import NotMeasured, Unsupported, UsageError
from pytest_quant.progress import Quiet
from pytest_quant.session import Session
from pytest_quant.settings import Settings
from pytest_quant.spec import ModelSpec

pytestmark = pytest.mark.usefixtures("libraries")
PROMPT = np.arange(1, 25).reshape(2, 12)


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    session = Session(Settings(cache_dir=tmp_path_factory.mktemp("cache")), Quiet())
    yield session
    session.models.keep(())


@pytest.fixture(scope="module")
def load(session, tiny_llama):
    spec = ModelSpec(ModelSource(str(tiny_llama)), reference="fp32")
    return lambda name: session.model(spec, name).loaded


@pytest.fixture(scope="module")
def save(session, byte_tokenizer, tmp_path_factory):
    """Saves a small model, and loads it unquantized."""

    def load(model):
        folder = tmp_path_factory.mktemp("models") / type(model).__name__
        model.save_pretrained(folder)
        byte_tokenizer.save_pretrained(folder)
        return session.model(ModelSpec(ModelSource(str(folder)), reference="fp32"), "fp32").loaded

    return load


SMALL = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 2}


class Heard:
    """A model that notes the tokens it is fed."""

    def __init__(self, model, monkeypatch):
        self.fed = []
        forward = model.model.forward
        monkeypatch.setattr(
            model.model, "forward", lambda tokens, **more: self.fed.append(tokens.tolist()) or forward(tokens, **more)
        )


def continuation(model, monkeypatch, new_tokens=6, **options):
    heard = Heard(model, monkeypatch)
    runner = Runner(model, **options)
    runner.start(PROMPT, new_tokens)
    seconds = runner.steps(new_tokens)
    assert len(seconds) == new_tokens
    assert min(seconds) > 0.0
    return heard.fed


def test_steps_are_the_greedy_continuation(load, monkeypatch):
    """Each step is fed the token that ``generate`` has at its place."""
    import torch

    model = load("fp32")
    with torch.inference_mode():
        expected = model.model.generate(
            torch.as_tensor(PROMPT), max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0
        )[:, 12:].tolist()
    prompts, *steps = continuation(model, monkeypatch)
    assert prompts == PROMPT.tolist()
    assert [[row[0] for row in step] for step in steps] == [list(column) for column in zip(*expected, strict=True)]


def test_a_static_cache_gives_the_same_tokens(load, monkeypatch):
    with monkeypatch.context() as plain:
        dynamic = continuation(load("fp32"), plain)
    assert continuation(load("fp32"), monkeypatch, cache="static") == dynamic


def test_prompts_are_read_once_and_cut_back_to(load, monkeypatch):
    model = load("fp32")
    heard = Heard(model, monkeypatch)
    runner = Runner(model)
    for _ in range(3):
        runner.start(PROMPT, 4)
        runner.steps(1)
        runner.steps(3)
    assert sum(len(tokens[0]) == 12 for tokens in heard.fed) == 1
    first, second, third = heard.fed[1:5], heard.fed[5:9], heard.fed[9:]
    assert first == second == third


def test_other_prompts_are_read_anew(load, monkeypatch):
    model = load("fp32")
    heard = Heard(model, monkeypatch)
    runner = Runner(model)
    for prompt in (PROMPT, PROMPT + 1):
        runner.start(prompt, 1)
        runner.steps(1)
    assert [len(tokens[0]) for tokens in heard.fed] == [12, 1, 12, 1]


@pytest.mark.parametrize("options", [{"cache": "static"}], ids=["static"])
def test_what_cannot_be_cut_is_read_anew(load, monkeypatch, options):
    model = load("fp32")
    heard = Heard(model, monkeypatch)
    runner = Runner(model, **options)
    runs = []
    for _ in range(2):
        runner.start(PROMPT, 3)
        runner.steps(3)
        runs.append(heard.fed[-3:])
    assert sum(len(tokens[0]) == 12 for tokens in heard.fed) == 2
    assert runs[0] == runs[1]


def test_a_quantized_cache_is_filled_anew(load, monkeypatch):
    model = load("fp32+kv-int8-g32")
    heard = Heard(model, monkeypatch)
    runner = Runner(model)
    for _ in range(2):
        runner.start(PROMPT, 2)
        runner.steps(2)
    assert sum(len(tokens[0]) == 12 for tokens in heard.fed) == 2


def test_a_quantized_cache_has_no_static_twin(load):
    with pytest.raises(UsageError, match='cache="static": a KV cache format brings a cache of its own'):
        Runner(load("fp32+kv-int8-g32"), "static")


def test_prefill_and_first_token_read_the_prompts_once(load, monkeypatch):
    model = load("fp32")
    heard = Heard(model, monkeypatch)
    runner = Runner(model)
    assert runner.prefill(PROMPT) > 0.0
    assert runner.first_token(PROMPT) > 0.0
    assert heard.fed == [PROMPT.tolist()] * 2


def test_steps_before_any_prompt_are_an_error(load):
    with pytest.raises(RuntimeError, match="no prompts were read"):
        Runner(load("fp32")).steps(1)


def test_timing_changes_nothing_in_the_model(load):
    model = load("fp32")
    for options in ({}, {"cache": "static"}):
        runner = Runner(model, **options)
        runner.start(PROMPT, 3)
        runner.steps(3)
    assert not model.changed


class Graphs:
    """A backend of ``torch.compile`` that compiles nothing and counts the graphs that it gets and that are run."""

    def __init__(self):
        self.made = self.ran = 0

    def __call__(self, graph, inputs):
        self.made += 1

        def run(*arguments):
            self.ran += 1
            return graph.forward(*arguments)

        return run


@pytest.fixture
def graphs(monkeypatch):
    import torch

    compiler, found = torch.compile, Graphs()
    monkeypatch.setattr(torch, "compile", lambda function, mode, **more: compiler(function, backend=found, **more))
    yield found
    torch._dynamo.reset()


def run(model, prompt=PROMPT, new_tokens=4, **options):
    """The last tokens of two runs, once started once taken."""
    runner = Runner(model, "static", **options)
    for _ in range(2):
        runner.start(prompt, new_tokens)
        assert len(runner.steps(new_tokens)) == new_tokens
    return runner._token.tolist()


def test_compiled_steps_give_the_same_tokens(load):
    """With the compiler that is measured, without changing the model."""
    model = load("fp32")
    assert run(model, compiled=True) == run(model)
    assert not model.changed


def test_what_is_timed_is_compiled_before(load, graphs):
    runner = Runner(load("fp32"), "static", compiled=True)
    runner.start(PROMPT, 4)
    assert (graphs.made, graphs.ran) == (1, 3)
    for count in (1, 3):
        before = graphs.ran
        runner.steps(count)
        assert (graphs.made, graphs.ran) == (1, before + count)
    runner.start(PROMPT, 4)
    assert (graphs.made, graphs.ran) == (1, 7)


def test_a_short_run_is_repeated_until_it_is_warm(load, graphs):
    Runner(load("fp32"), "static", compiled=True).start(PROMPT, 1)
    assert (graphs.made, graphs.ran) == (1, 3)


def test_warming_up_does_not_move_the_start(load, monkeypatch, graphs):
    model = load("fp32")
    runners = Runner(model, "static"), Runner(model, "static", compiled=True)
    for count in (0, 1, 3):
        for runner in runners:
            runner.start(PROMPT, 4)
            runner.steps(count)
        assert runners[0]._token.tolist() == runners[1]._token.tolist()


@pytest.mark.parametrize(("name", "most"), [("fp32", 10), ("nf4", 2)])
def test_each_runner_has_graphs_of_its_own(load, graphs, name, most):
    """However many there were before it: torch.compile stops after eight for one code."""
    model = load(name)
    for batch_size in range(1, most + 1):
        prompt = np.arange(1, 12 * batch_size + 1).reshape(batch_size, 12)
        made, ran = graphs.made, graphs.ran
        run(model, prompt, 3, compiled=True)
        assert (graphs.made - made, graphs.ran - ran) == (1, 9), batch_size


@pytest.mark.parametrize("options", [{}, {"compiled": True}], ids=["static", "compiled"])
def test_one_runner_takes_another_batch_size(load, graphs, options):
    model = load("fp32")
    runner = Runner(model, "static", **options)
    for prompt in (PROMPT, PROMPT[:1], PROMPT):
        runner.start(prompt, 3)
        runner.steps(3)
        assert runner._token.tolist() == run(model, prompt, 3)


def test_a_sliding_window_compiles(save, graphs):
    """The steps before the window is full, at it, and after."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    more = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 16}
    model = save(MistralForCausalLM(MistralConfig(**SMALL, **more)))
    expected = run(model, new_tokens=24)
    runner = Runner(model, "static", compiled=True)
    runner.start(PROMPT, 24)
    assert graphs.ran == 24
    made = graphs.made
    assert made <= 4
    runner.steps(24)
    assert (graphs.made, graphs.ran) == (made, 48)
    assert runner._token.tolist() == expected


def test_llm_int8_is_one_graph(load, graphs):
    """Its shapes depend on values: left to itself torch.compile breaks a step at each of its products."""
    model = load("int8")
    assert run(model, new_tokens=3, compiled=True) == run(model, new_tokens=3)
    assert (graphs.made, graphs.ran) == (1, 9)


def test_a_step_in_pieces_is_refused(load, monkeypatch, graphs):
    import torch

    model = load("fp32")
    mlp = model.model.model.layers[0].mlp
    forward = mlp.forward

    def broken(states):
        torch._dynamo.graph_break()
        return forward(states)

    monkeypatch.setattr(mlp, "forward", broken)
    runner = Runner(model, "static", compiled=True)
    with pytest.raises(Unsupported, match="as one compiled graph; found: a step that breaks into pieces, the") as said:
        runner.start(PROMPT, 4)
    assert said.value.needed == "compile=False, or another format or model"


def test_a_compiler_that_fails_is_told(load, monkeypatch):
    import torch

    def broken(graph, inputs):
        raise RuntimeError("Failed to find C compiler.\nPlease specify via CC")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode, **more: compiler(function, backend=broken, **more))
    runner = Runner(load("fp32"), "static", compiled=True)
    said = r"found: torch.compile fails \(RuntimeError: Failed to find C compiler\.\); needed: a compiler"
    with pytest.raises(Unsupported, match=said):
        runner.start(PROMPT, 4)


def test_memory_that_does_not_suffice_is_not_the_compilers_fault(load, monkeypatch):
    import torch

    def full(graph, inputs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, mode, **more: compiler(function, backend=full, **more))
    with pytest.raises(torch.OutOfMemoryError):
        Runner(load("fp32"), "static", compiled=True).start(PROMPT, 4)


def test_a_compiler_that_is_turned_off_is_told(load, graphs):
    import torch

    runner = Runner(load("fp32"), "static", compiled=True)
    with torch.compiler.set_stance("force_eager"), pytest.raises(Unsupported, match="leaves the step as it is"):
        runner.start(PROMPT, 4)


def test_steps_that_are_compiled_again_and_again_are_not_measured(save, graphs, monkeypatch):
    """A number of Python's that is compiled in and changes with each step."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.compiler.reset()  # what it learnt of the same lines from other tests: which numbers change
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 8)  # some libraries raise it when they are imported
    more = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 16}
    model = save(MistralForCausalLM(MistralConfig(**SMALL, **more)))
    counting = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **more: counting(function, **{**more, "dynamic": False}))
    logging.getLogger("torch._dynamo").setLevel(logging.ERROR)
    with pytest.raises(NotMeasured, match="gives up after compiling it 8 times"):
        Runner(model, "static", compiled=True).start(PROMPT, 24)


def test_a_quantizer_that_says_no_is_heard(load, monkeypatch):
    class Silent(SimpleNamespace):
        pass

    class Refusing(SimpleNamespace):
        is_compileable = False

    model = load("fp32")
    monkeypatch.setattr(model.model, "hf_quantizer", Silent(), raising=False)
    Runner(model, "static", compiled=True)
    monkeypatch.setattr(model.model, "hf_quantizer", Refusing())
    with pytest.raises(Unsupported, match="found: Refusing, which says that its models cannot be compiled"):
        Runner(model, "static", compiled=True)


def test_a_model_without_keys_and_values_is_refused(save):
    from transformers import MambaConfig, MambaForCausalLM

    model = save(MambaForCausalLM(MambaConfig(**SMALL, state_size=4)))
    with pytest.raises(Unsupported, match="found: MambaForCausalLM, which keeps no keys and values; needed: a model w"):
        Runner(model).start(PROMPT, 2)


def test_logits_to_keep_is_for_models_that_take_it(load, monkeypatch):
    model = load("fp32")
    asked = []
    forward = model.model.forward

    def whole(tokens, past_key_values=None, use_cache=None):
        return forward(tokens, past_key_values=past_key_values, use_cache=use_cache)

    def last(tokens, logits_to_keep=0, **more):
        asked.append(logits_to_keep)
        return forward(tokens, logits_to_keep=logits_to_keep, **more)

    for replaced, lengths in ((last, 1), (whole, 12)):
        monkeypatch.setattr(model.model, "forward", replaced)
        assert model.fed([model.tensor(PROMPT)]).logits.shape[1] == lengths
    assert asked == [1]
