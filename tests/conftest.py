"""Models, corpora and runs that the tests share."""

from __future__ import annotations

import gc
import importlib
import json
import pkgutil
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from small_models import SENTENCE, save_llama

settings.register_profile("timeless", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("timeless")

ROOT = Path(__file__).parent.parent
REAL = ROOT / ".models" / "SmolLM2-135M-Instruct"


@pytest.fixture(autouse=True)
def _same_everywhere(monkeypatch, tmp_path_factory):
    """CI sets CI, which decides defaults; a user's cache is not ours to write to."""
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("GITHUB_SHA", raising=False)
    monkeypatch.delenv("CI_COMMIT_SHA", raising=False)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def byte_tokenizer():
    """A tokenizer of one token a byte, that needs no download."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=alphabet[0], pad_token=alphabet[0])


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory, byte_tokenizer) -> Path:
    """A Llama of two small layers that learnt one sentence, so that damage makes it worse: for logic, never for
    a claim about a number."""
    return save_llama(tmp_path_factory.mktemp("models") / "tiny-llama", byte_tokenizer, learn=60)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory, byte_tokenizer) -> Path:
    """A GPT-2, whose layers are ``Conv1D`` and not ``Linear``."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=256, n_embd=64, n_layer=2, n_head=2, n_positions=512, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    byte_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The real model; ``make test`` unpacks it."""
    if not (REAL / "config.json").is_file():
        pytest.fail(f"{REAL} is not there: run `make test`, or `python examples/smollm2.py {REAL.relative_to(ROOT)}`")
    return REAL


class Project:
    """A user's project in a temporary folder, with a tiny model, a short corpus and an ini file."""

    _USUAL: ClassVar[dict[str, str]] = {
        "quant_accept": "cpu-load,cpu-quota",  # of other tests
        "quant_speed_budget": "2",
        "quant_corpus": "corpus.txt",
        "quant_protocol": "gptq-64",
    }

    def __init__(self, pytester: pytest.Pytester, model: Path) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.model = model
        (self.path / "corpus.txt").write_text(SENTENCE * 12)
        self.ini(f"quant_model = {model}")

    def ini(self, *lines: str) -> None:
        told = {line.partition("=")[0].strip() for line in lines}
        usual = [f"{name} = {value}" for name, value in self._USUAL.items() if name not in told]
        settings = "\n".join(["[pytest]", *usual, *lines])
        (self.path / "pytest.ini").write_text(settings + "\nquant_reference = fp32\nquant_formats = int8\n")

    def test(self, body: str, name: str = "test_quant") -> None:
        self.pytester.makepyfile(**{name: body})

    def conftest(self, body: str) -> None:
        self.pytester.makeconftest(body)

    def run(self, *arguments: str) -> pytest.RunResult:
        return self.pytester.runpytest_inprocess("-p", "no:cacheprovider", *arguments)

    def gate(self, *arguments: str) -> pytest.RunResult:
        return self.run("--quant-baseline", *arguments)

    def junit(self, *arguments: str) -> tuple[pytest.RunResult, dict[str, int]]:
        """A run, and what JUnit says of it."""
        from xml.etree import ElementTree

        result = self.gate("--junitxml=junit.xml", *arguments)
        suite = ElementTree.parse(self.path / "junit.xml").getroot().find("testsuite")
        assert suite is not None
        return result, {name: int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped")}

    @property
    def baselines(self) -> dict[str, bytes]:
        """Every file below quant-baselines, by its relative name."""
        folder = self.path / "quant-baselines"
        files = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.exists() else []
        return {str(p.relative_to(folder)): p.read_bytes() for p in files}

    @property
    def baseline_path(self) -> Path:
        (file,) = (self.path / "quant-baselines").rglob("*.json")
        return file

    @property
    def entries(self) -> list[dict[str, Any]]:
        return [entry for text in self.baselines.values() for entry in json.loads(text)["measurements"]]

    def change_baseline(self, change: Any) -> bytes:
        """Apply ``change`` to the parsed baseline file and return the new bytes."""
        data = json.loads(self.baseline_path.read_text())
        change(data)
        self.baseline_path.write_text(json.dumps(data))
        return self.baseline_path.read_bytes()

    def record(self, *arguments: str) -> tuple[pytest.RunResult, dict[str, Any]]:
        """A run and its run record."""
        result = self.run("--quant-json=run.json", *arguments)
        return result, json.loads((self.path / "run.json").read_text())


@pytest.fixture(scope="session")
def libraries(tiny_llama) -> None:
    """Import all that a run imports: in-process runs forget the modules that they import, and neither bitsandbytes nor
    quanto can be imported twice. What is imported is no garbage: each run collects when it gives its models back."""
    import hqq.core.quantize  # noqa: F401
    import hypothesis  # noqa: F401  its plugin imports it at the end of each run
    import optimum.quanto  # noqa: F401
    import torchao  # noqa: F401
    from lm_eval.models import huggingface  # noqa: F401
    from lm_eval.tasks import TaskManager  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    import pytest_quant

    for module in pkgutil.walk_packages(pytest_quant.__path__, "pytest_quant."):
        importlib.import_module(module.name)
    AutoTokenizer.from_pretrained(tiny_llama)
    model = AutoModelForCausalLM.from_pretrained(
        tiny_llama, device_map={"": "cpu"}, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
    )
    model.generate(model.dummy_inputs["input_ids"][:1], max_new_tokens=1)
    gc.collect()
    gc.freeze()


@pytest.fixture
def project(pytester, tiny_llama, libraries) -> Project:
    return Project(pytester, tiny_llama)


@pytest.fixture
def real_project(pytester, smollm2, libraries) -> Project:
    made = Project(pytester, smollm2)
    shutil.copy(ROOT / "tests" / "news.txt", made.path / "corpus.txt")
    return made
