"""Stored references: what later runs and other machines need not load, each with what the run says and does."""

from __future__ import annotations

import random
import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

WORDS = ("The", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog.")
PROTOCOL = "gptq-32"
TOTAL = 24
KEPT = ("perplexity_delta(max_ratio=3)", "token_agreement(min=0.3)", "kl_divergence(max_bound=1)")


@pytest.fixture
def loads(monkeypatch):
    """What was loaded: ``reference`` or ``format``."""
    from transformers import AutoModelForCausalLM

    load = AutoModelForCausalLM.from_pretrained
    found = []

    def counted(*args, **kwargs):
        found.append("format" if "quantization_config" in kwargs else "reference")
        return load(*args, **kwargs)

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", counted)
    return found


@pytest.fixture
def long(project):
    """A project with a text of many windows that differ, and its own cache folder."""
    picks = random.Random(0)
    (project.path / "corpus.txt").write_text(" ".join(picks.choice(WORDS) for _ in range(156)))
    settings = (
        "quant_corpus = corpus.txt",
        f"quant_protocol = {PROTOCOL}",
        "quant_reference = fp32",
        "quant_formats = nf4",
        "quant_cache_dir = cache",
        f"quant_model = {project.model}",
    )
    (project.path / "pytest.ini").write_text("\n".join(["[pytest]", *settings, ""]))
    return project


def gates(project, *markers: str) -> None:
    stacked = "\n".join(f"@pytest.mark.{marker}" for marker in markers)
    project.test(f"import pytest\n\n{stacked}\ndef test_gate(quant_model): ...\n")


def only(record):
    (measured,) = record["measurements"]
    return measured


def learned(project):
    """Files that runs left by the way."""
    return sorted((project.path / "cache").glob("runs/*/references/*.safetensors"))


def kept(project, cache: str = "cache"):
    """Files that were built or imported on purpose."""
    return sorted((project.path / cache / "references").rglob("*.safetensors"))


def command(*arguments: object) -> int:
    from pytest_quant.cli import main

    return main(["reference", *map(str, arguments)])


def build(project, cache="elsewhere", *more: object) -> int:
    corpus = project.path / "corpus.txt"
    options = ("--corpus", corpus, "--protocol", PROTOCOL, "--cache-dir", project.path / cache)
    return command("build", project.model, "--reference", "fp32", *options, *more)


@pytest.fixture
def imported(long):
    """Built on one machine, exported, and imported into the cache of another."""
    assert build(long) == 0
    target = long.path / "reference.safetensors"
    assert command("export", "--to", target, "--cache-dir", long.path / "elsewhere") == 0
    assert command("import", target, "--cache-dir", long.path / "cache") == 0
    return long


@pytest.fixture
def too_small(monkeypatch):
    """A machine that the reference does not fit."""
    from pytest_quant import models
    from pytest_quant.errors import Unsupported

    fits = models.Models._check_fits

    def refuse(self, spec, format):
        if format.name == "fp32":
            raise Unsupported("the model in fp32", "1 GB free", "2 GB for the weights")
        fits(self, spec, format)

    monkeypatch.setattr(models.Models, "_check_fits", refuse)


def same(record):
    """Measurements without where the reference's word came from."""
    return [
        {k: v for k, v in measured.items() if k not in ("reference_source", "baseline")}
        for measured in record["measurements"]
    ]


def test_the_second_run_never_loads_the_reference(long, loads):
    gates(long, *KEPT)
    first, before = long.record()
    assert first.ret == 0
    assert sorted(loads) == ["format", "reference"]
    assert {measured["windows"]["used"] for measured in before["measurements"]} == {8}
    assert all("reference_source" not in measured for measured in before["measurements"])

    loads.clear()
    second, after = long.record()
    assert second.ret == 0
    second.assert_outcomes(passed=1)
    assert loads == ["format"]
    assert {measured["reference_source"] for measured in after["measurements"]} == {"stored"}
    assert same(before) == same(after)
    assert len(learned(long)) == 1
    assert kept(long) == []


def test_what_one_run_learned_serves_another_that_needs_more_of_it(long, loads):
    gates(long, *KEPT)
    assert long.run().ret == 0
    loads.clear()
    result, record = long.record("--quant-full")
    assert result.ret == 0
    assert sorted(loads) == ["format", "reference"], "only 8 of the windows were known"
    loads.clear()
    again, stored = long.record("--quant-full")
    assert again.ret == 0
    assert loads == ["format"]
    assert same(stored) == same(record)


def test_a_limit_on_the_divergence_itself_loads_the_reference_where_it_can_be(long, loads):
    gates(long, *KEPT)
    assert long.run("--quant-full").ret == 0
    loads.clear()
    gates(long, "kl_divergence(max=1)")
    result, record = long.record()
    assert result.ret == 0
    assert sorted(loads) == ["format", "reference"]
    assert only(record)["verdict"] == "passed"
    assert "reference_source" not in only(record)


def test_an_imported_reference_stands_for_one_that_does_not_fit(imported, loads, too_small, capsys):
    gates(imported, *KEPT)
    result, record = imported.record("--quant-full")
    assert result.ret == 0
    result.assert_outcomes(passed=1)
    assert loads == ["format"]
    assert {measured["reference_source"] for measured in record["measurements"]} == {"stored"}
    bound = next(measured for measured in record["measurements"] if measured["metric"] == "kl_divergence")
    assert bound["lower_bound"] is True
    assert bound["identity"]["metric"]["bound"] == {"top_k": 64}
    result.stdout.fnmatch_lines([f"nf4 *KL divergence *>= * nats {TOTAL}/{TOTAL} *bound 1 nats *passed"])


def test_what_the_store_gives_equals_what_both_models_give(imported, loads):
    gates(imported, *KEPT)
    recorded, live = imported.record("--quant-baseline", "--quant-full", "--quant-cache-dir=nothing")
    assert recorded.ret == 0
    assert "reference" in loads
    before = imported.baselines
    loads.clear()
    result, stored = imported.record("--quant-baseline", "--quant-full", "--quant-missing=fail")
    assert result.ret == 0
    assert loads == ["format"]
    assert imported.baselines == before
    assert {measured["baseline"]["change"].split()[0] for measured in stored["measurements"]} == {"+0.0000"}
    assert same(stored) == same(live)


def test_without_the_reference_a_limit_on_the_divergence_is_not_decided(imported, too_small, monkeypatch):
    gates(imported, "kl_divergence(max=1)")
    result, record = imported.record()
    assert result.ret == 0
    assert only(record)["verdict"] == "inconclusive"
    advice = (
        "only a lower bound is known (over its top 64 tokens); limit that with max_bound, or let the fp32 reference"
    )
    assert advice in only(record)["reason"]
    result.stdout.fnmatch_lines(["nf4 *KL divergence *>= * inconclusive", f"nf4 KL divergence: *{advice}*"])

    red = imported.run("--quant-inconclusive=fail")
    assert red.ret == pytest.ExitCode.TESTS_FAILED
    red.stdout.fnmatch_lines([f"*nf4 kl_divergence inconclusive: *{advice}*"])
    monkeypatch.setenv("CI", "1")
    assert imported.run().ret == pytest.ExitCode.TESTS_FAILED


def test_a_lower_bound_above_the_limit_fails(imported, too_small):
    gates(imported, "kl_divergence(max=0.00001)")
    result, record = imported.record()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert only(record)["verdict"] == "failed"
    result.stdout.fnmatch_lines(["*nf4 kl_divergence failed: * nats is above the limit (at most 1e-05 nats)*"])


def test_a_regression_is_told_where_the_reference_cannot_be_asked_again(imported, too_small):
    gates(imported, KEPT[0])
    assert imported.gate().ret == 0
    imported.change_baseline(
        lambda data: data["measurements"][0].update(scores=[s - 0.01 for s in data["measurements"][0]["scores"]])
    )
    result = imported.gate()
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        ["*regressed: +0.01000 nats*whether the stack drifted too is not known: the reference cannot be measured here*"]
    )


def test_speed_needs_the_reference_itself(imported, too_small):
    gates(imported, "throughput_ratio(min=0.01, new_tokens=2, prompt_tokens=16)")
    result = imported.run("-rs")
    assert result.ret == 0
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*nf4: asked: the model in fp32; found: 1 GB free; needed: 2 GB*"])


def test_without_any_reference_quality_is_skipped_and_never_green(long, too_small):
    gates(long, *KEPT)
    result = long.run("-rs")
    assert result.ret == 0
    result.assert_outcomes(skipped=1)
    assert long.run("--quant-require=nf4").ret != 0


@pytest.fixture
def half(long):
    assert build(long, "cache", "--max-windows", 10) == 0
    return long


def test_half_of_a_reference_is_not_a_reference(half, too_small):
    long = half
    gates(long, *KEPT)
    result = long.run("-rs", "--quant-full")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*asked: the model in fp32*"])
    few, record = long.record("--quant-max-windows=10")
    assert few.ret == 0
    few.assert_outcomes(passed=1)
    assert {measured["windows"]["total"] for measured in record["measurements"]} == {10}


def damage(file) -> bytes:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    return bytes(content)


@pytest.mark.parametrize("where", ["imported", "built"])
def test_a_damaged_reference_that_was_kept_on_purpose_is_one_error(long, where, loads):
    assert build(long, "cache" if where == "built" else "elsewhere") == 0
    if where == "imported":
        assert command("import", *kept(long, "elsewhere"), "--cache-dir", long.path / "cache") == 0
    (file,) = kept(long)
    content = damage(file)
    loads.clear()
    gates(long, *KEPT)
    result = long.gate("-rs")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert "passed" not in result.parseoutcomes()
    result.stdout.fnmatch_lines([f"*{file}: *"])
    result.stdout.fnmatch_lines(["*reference verify --delete*"])
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.no_fnmatch_line("*pytest_quant/*.py*")
    result.stdout.no_fnmatch_line("*Traceback*")
    assert long.baselines == {}
    assert file.read_bytes() == content
    assert command("verify", "--cache-dir", long.path / "cache") == 2
    assert command("verify", "--delete", "--cache-dir", long.path / "cache") == 2
    assert long.run().ret == 0


def test_a_damaged_file_of_an_earlier_run_is_a_warning_and_learned_again(long, loads):
    gates(long, *KEPT)
    _, before = long.record()
    (file,) = learned(long)
    damage(file)
    loads.clear()
    result, after = long.record()
    assert result.ret == 0
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines([f"*StoreWarning: the stored reference is not used: {file}: *"])
    assert sorted(loads) == ["format", "reference"]
    assert same(before) == same(after)
    loads.clear()
    assert long.run().ret == 0
    assert loads == ["format"], "the file is sound again"


def test_a_full_disk_is_a_warning_and_the_run_is_right(long, monkeypatch):
    from pytest_quant.reference import Store, StoreError

    gates(long, *KEPT)
    right = long.record("--quant-cache-dir=other")[1]

    def refuse(self, reference):
        raise StoreError(f"{self.folder}: No space left on device (ENOSPC).")

    monkeypatch.setattr(Store, "write", refuse)
    result, record = long.record()
    assert result.ret == 0
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(["*StoreWarning: the reference was not stored: *ENOSPC*"])
    assert same(record) == same(right)
    assert kept(long) == learned(long) == []


def test_a_cache_that_cannot_be_written_is_a_warning(long):
    gates(long, *KEPT)
    (long.path / "cache").mkdir()
    (long.path / "cache" / "runs").write_text("in the way")
    result = long.run()
    assert result.ret == 0
    assert result.parseoutcomes()["passed"] == 1
    result.stdout.fnmatch_lines(["*StoreWarning: the reference was not stored: *ENOTDIR*"])
    assert (long.path / "cache" / "runs").read_text() == "in the way"


def test_two_runs_at_once_leave_a_sound_file(long):
    import subprocess
    import sys

    gates(long, *KEPT)
    run = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    with subprocess.Popen([*run, "--quant-full"], cwd=long.path) as one, subprocess.Popen(run, cwd=long.path) as two:
        assert (one.wait(), two.wait()) == (0, 0)
    (file,) = learned(long)
    assert command("verify", file) == 0
    from pytest_quant.reference import Store

    (entry,) = Store(long.path / "cache").verify([file])
    assert entry.windows == TOTAL, "a shorter one never replaces a longer one"


def test_a_reference_that_was_built_is_listed_and_is_the_same_when_built_again(long, capsys, loads):
    assert build(long) == 0
    said = capsys.readouterr().out
    assert "fp32" in said
    assert f"{TOTAL}/{TOTAL}" in said
    assert "floor: " in said
    (file,) = kept(long, "elsewhere")
    content = load_file(file)
    assert build(long) == 0
    again = load_file(file)
    assert content.keys() == again.keys()
    assert all(np.array_equal(content[name], again[name]) for name in content)
    assert command("list", "--cache-dir", long.path / "elsewhere") == 0
    assert f"{TOTAL}/{TOTAL}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("build", "no/such-model"), "no/such-model"),
        (("build", "MODEL", "--reference", "nf4"), "--reference=nf4 is a quantized format; use fp16, bf16 or fp32"),
        (("build", "MODEL", "--reference", "fp31"), "fp31"),
        (("build", "MODEL", "--reference", "fp32", "--protocol", "gptqq"), "unknown protocol 'gptqq'"),
        (("build", "MODEL", "--reference", "fp32", "--protocol", "gptq-100000"), "not enough for one window"),
        (("build", "MODEL", "--reference", "fp32", "--corpus", "nowhere.txt"), "unknown corpus 'nowhere.txt'"),
        (("build", "MODEL", "--reference", "fp32", "--max-windows", "0"), "draw at least 1"),
        (("build", "MODEL", "--reference", "fp32", "--chat-template"), "has no chat template"),
        (("export",), "nothing to export"),
        (("export", "abcdef"), "holds no reference 'abcdef'"),
        (("import", "nowhere.safetensors"), "there is no such file"),
        (("import", "corpus.txt"), "corpus.txt"),
        (("verify", "nowhere.safetensors"), "there is no such file"),
    ],
    ids=lambda value: "-".join(value)[:40] if isinstance(value, tuple) else "",
)
def test_a_mistake_in_the_command_is_one_message_and_exit_code_2(long, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(long.path)
    told = [str(long.model) if argument == "MODEL" else argument for argument in arguments]
    if arguments[0] == "build" and "--corpus" not in told:
        told += ["--corpus", "corpus.txt"]
    if arguments[0] == "build" and "--protocol" not in told:
        told += ["--protocol", PROTOCOL]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert command(*told, "--cache-dir", long.path / "cache") == 2
    said = capsys.readouterr()
    assert message in said.out + said.err
    assert "Traceback" not in said.out + said.err
    assert len((said.out + said.err).strip().splitlines()) == 1
    assert kept(long) == learned(long) == []
