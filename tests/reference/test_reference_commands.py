"""`pytest-quant reference`, through a parser of its own."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest
from reference_examples import key, reference

from pytest_quant.cache import user_cache
from pytest_quant.reference import Store, StoreError
from pytest_quant.reference.commands import add, add_cache_dir, store


def command(*arguments: object) -> int:
    parser = argparse.ArgumentParser()
    add(parser.add_subparsers(required=True))
    told = parser.parse_args(["reference", *map(str, arguments)])
    return int(told.run(told))


def test_carried_from_one_cache_to_another(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Store(Path("here")).write(reference(4))
    assert command("export", "--cache-dir", "here") == 0
    name = f"{key().digest}.safetensors"
    out = capsys.readouterr().out
    assert f"{key().digest[:8]}: tiny-llama, fp16, gptq-8 on news: 4 of 40 windows, top 3" in out
    assert f"to {name}" in out
    assert command("import", name, "--cache-dir", "there") == 0
    assert "imported" in capsys.readouterr().out
    assert Store(Path("there")).read(key()).origin == "imported"
    assert command("list", "--cache-dir", "there") == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["DIGEST", "MODEL", "FORMAT", "PROTOCOL", "CORPUS", "WINDOWS", "SIZE", "ORIGIN"]
    assert row.split()[:6] == [key().digest[:8], "tiny-llama", "fp16", "gptq-8", "news", "4/40"]
    assert row.split()[-1] == "imported"


def test_export_asks_which(tmp_path, capsys) -> None:
    with pytest.raises(StoreError, match="nothing to export"):
        command("export", "--cache-dir", tmp_path)
    here = Store(tmp_path)
    here.write(reference(4))
    here.write(reference(4, of=key(engine="vllm")))
    with pytest.raises(StoreError, match=r"(?s)several.*first digits.*fp16 vllm") as caught:
        command("export", "--cache-dir", tmp_path)
    assert key().digest[:8] in str(caught.value)
    assert command("export", key().digest[:8], "--to", tmp_path / "x", "--cache-dir", tmp_path) == 0
    assert Store(tmp_path / "new").import_(tmp_path / "x").key == key()


def test_import_goes_on_after_a_bad_file(tmp_path, capsys) -> None:
    Store(tmp_path / "a").write(reference(4))
    good = Store(tmp_path / "a").export(key(), tmp_path / "good")
    (tmp_path / "bad").write_bytes(b"x")
    assert command("import", tmp_path / "bad", tmp_path / "none", good, "--cache-dir", tmp_path / "b") == 2
    told = capsys.readouterr()
    assert told.err.count("pytest-quant: ") == 2
    assert "imported" in told.out
    assert Store(tmp_path / "b").read(key()) is not None


def test_an_empty_cache_is_said(tmp_path, capsys) -> None:
    for action in ("list", "verify"):
        assert command(action, "--cache-dir", tmp_path) == 0
        assert f"no stored references in {tmp_path}" in capsys.readouterr().out


def test_verify_says_and_deletes_what_is_damaged(tmp_path, capsys) -> None:
    here = Store(tmp_path)
    good = here.write(reference(4))
    bad = here.write(reference(4, of=key(dtype="fp32")))
    assert command("verify", "--cache-dir", tmp_path) == 0
    assert capsys.readouterr().out.count("sound ") == 2
    bad.write_bytes(bad.read_bytes()[:-1])
    assert command("list", "--cache-dir", tmp_path) == 2
    told = capsys.readouterr().out
    assert f"damaged: {bad}" in told
    assert command("verify", "--cache-dir", tmp_path) == 2
    told = capsys.readouterr().out
    assert f"sound    {good}" in told
    assert f"damaged  {bad}: is damaged" in told
    assert bad.exists()
    assert command("verify", bad, "--delete", "--cache-dir", tmp_path) == 2
    assert bad.exists()
    assert command("verify", "--delete", "--cache-dir", tmp_path) == 2
    assert f"deleted  {bad}" in capsys.readouterr().out
    assert not bad.exists()
    assert command("verify", "--cache-dir", tmp_path) == 0


def test_rows_stay_readable(tmp_path, capsys) -> None:
    protocol = {"name": "hf-strided-1024-512", "corpus": {"name": "a/long/path/to/some/corpus/of/ours.jsonl"}}
    made = reference(4, of=key(model="m" * 64, protocol=protocol, dtype="fp8-weight-only"))
    Store(tmp_path).write(replace(made, recorded={}))
    command("list", "--cache-dir", tmp_path)
    heading, row = capsys.readouterr().out.splitlines()
    assert row.count("…") == 3
    assert "hf-strided-1024-512" in row
    assert max(len(heading), len(row)) <= 102


def test_the_default_is_the_users_cache(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_cache() == tmp_path / "xdg" / "pytest-quant"
    assert store(argparse.Namespace(cache_dir=None)).folder == user_cache() / "references"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert user_cache() == tmp_path / ".cache" / "pytest-quant"
    assert store(argparse.Namespace(cache_dir="~/x")).folder == tmp_path / "x" / "references"


def test_another_action_can_be_added() -> None:
    parser = argparse.ArgumentParser()
    build = add(parser.add_subparsers()).add_parser("build")
    add_cache_dir(build)
    assert parser.parse_args(["reference", "build", "--cache-dir", "x"]).cache_dir == "x"
