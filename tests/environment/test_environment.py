"""The commit that is checked out, read from files as git writes them."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from pytest_quant import environment
from pytest_quant.environment import commit

pytestmark = pytest.mark.skipif(
    shutil.which("git") is None, reason="asked: a repository; found: no git; needed: git on the path"
)


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch):
    for name in ("GITHUB_SHA", "CI_COMMIT_SHA"):
        monkeypatch.delenv(name, raising=False)


def git(folder: Path, *arguments: str) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    clean |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    identity = ("-c", "user.name=Someone", "-c", "user.email=someone@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(
        ["git", *identity, *arguments], cwd=folder, env=clean, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def commit_something(folder: Path, text: str) -> str:
    (folder / "file.txt").write_text(text)
    git(folder, "add", "file.txt")
    git(folder, "commit", "-q", "-m", text)
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def outside(tmp_path) -> Path:
    """A folder that is in no repository."""
    for folder in (tmp_path, *tmp_path.parents):
        if (folder / ".git").exists():
            pytest.skip(f"asked: a folder outside any repository; found: {folder}/.git; needed: another --basetemp")
    return tmp_path


@pytest.fixture
def repository(outside) -> Path:
    folder = outside / "repository"
    folder.mkdir()
    git(folder, "init", "-q")
    git(folder, "symbolic-ref", "HEAD", "refs/heads/main")
    commit_something(folder, "first")
    return folder


def test_a_plain_repository(repository):
    sha = git(repository, "rev-parse", "HEAD")
    assert len(sha) == 40
    assert commit(repository) == sha


def test_the_next_commit_is_seen(repository):
    first = commit(repository)
    second = commit_something(repository, "second")
    assert commit(repository) == second != first


def test_below_the_top(repository):
    (repository / "tests" / "deep").mkdir(parents=True)
    assert commit(repository / "tests" / "deep") == git(repository, "rev-parse", "HEAD")


def test_the_current_folder_is_asked(repository, monkeypatch):
    monkeypatch.chdir(repository)
    assert commit() == git(repository, "rev-parse", "HEAD")


def test_a_branch_with_a_slash(repository):
    git(repository, "checkout", "-q", "-b", "feature/some/thing")
    sha = commit_something(repository, "there")
    assert commit(repository) == sha


def test_the_checked_out_branch_and_no_other(repository):
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "-b", "other")
    second = commit_something(repository, "second")
    git(repository, "checkout", "-q", "main")
    assert commit(repository) == first != second


def test_a_detached_head(repository):
    first = git(repository, "rev-parse", "HEAD")
    commit_something(repository, "second")
    git(repository, "checkout", "-q", "--detach", first)
    assert commit(repository) == first


def test_packed_refs(repository):
    sha = git(repository, "rev-parse", "HEAD")
    git(repository, "pack-refs", "--all")
    assert not (repository / ".git" / "refs" / "heads" / "main").exists()
    assert commit(repository) == sha


def test_packed_refs_of_names_that_end_alike(repository):
    """Packed, and sorted before it: names that end in its last part, and in all of it; a tag with its peeled line."""
    sha = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "--detach")
    other = commit_something(repository, "other")
    for name in ("a-main", "a/main", "a/refs/heads/main", "main2"):
        git(repository, "update-ref", f"refs/heads/{name}", other)
    git(repository, "tag", "-a", "-m", "a tag", "main")
    git(repository, "checkout", "-q", "main", "--")
    git(repository, "symbolic-ref", "HEAD", "refs/heads/main")
    git(repository, "pack-refs", "--all")
    assert git(repository, "rev-parse", "refs/heads/main") == sha != other
    assert commit(repository) == sha


def test_a_loose_ref_is_newer_than_the_packed_one(repository):
    git(repository, "pack-refs", "--all")
    second = commit_something(repository, "second")
    assert (repository / ".git" / "packed-refs").is_file()
    assert commit(repository) == second


@pytest.mark.parametrize("packed", [False, True])
def test_a_worktree_is_on_its_own_branch(repository, packed):
    first = git(repository, "rev-parse", "HEAD")
    tree = repository.parent / "tree"
    git(repository, "worktree", "add", "-q", "-b", "other", str(tree))
    second = commit_something(tree, "second")
    if packed:
        git(repository, "pack-refs", "--all")
    assert (tree / ".git").is_file()
    assert commit(tree) == second != first
    assert commit(repository) == first


def test_a_detached_worktree(repository):
    first = git(repository, "rev-parse", "HEAD")
    commit_something(repository, "second")
    tree = repository.parent / "tree"
    git(repository, "worktree", "add", "-q", "--detach", str(tree), first)
    assert commit(tree) == first


def test_a_git_file_with_a_relative_path(repository):
    """As submodules have it."""
    sha = git(repository, "rev-parse", "HEAD")
    (repository / ".git").rename(repository.parent / "elsewhere")
    (repository / ".git").write_text("gitdir: ../elsewhere\n")
    assert commit(repository) == sha


def test_a_ref_that_points_to_another(repository):
    """git symbolic-ref makes such names, and rev-parse follows them."""
    git(repository, "symbolic-ref", "refs/heads/alias", "refs/heads/main")
    git(repository, "symbolic-ref", "HEAD", "refs/heads/alias")
    assert commit(repository) == git(repository, "rev-parse", "HEAD")


def test_no_repository(outside):
    assert commit(outside) is None


def test_an_unborn_branch(outside):
    git(outside, "init", "-q")
    assert commit(outside) is None


def test_an_unborn_branch_beside_others(repository):
    git(repository, "checkout", "-q", "--orphan", "empty")
    assert commit(repository) is None


@pytest.mark.parametrize(
    "content", [b"", b"gitdir: /nowhere/at/all\n", b"garbage\n", b"\xff\xfe"], ids=["empty", "gone", "no", "no utf-8"]
)
def test_a_broken_git_file_is_no_commit(outside, content):
    (outside / ".git").write_bytes(content)
    assert commit(outside) is None


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"garbage\n"])
def test_a_broken_head_is_no_commit(repository, content):
    (repository / ".git" / "HEAD").write_bytes(content)
    assert commit(repository) is None


@pytest.mark.parametrize("name", ["GITHUB_SHA", "CI_COMMIT_SHA"])
def test_ci_knows_better(repository, monkeypatch, name):
    monkeypatch.setenv(name, "f" * 40)
    assert commit(repository) == "f" * 40
    monkeypatch.setenv(name, "")
    assert commit(repository) == git(repository, "rev-parse", "HEAD")


def test_it_runs_no_process(repository, monkeypatch):
    sha = git(repository, "rev-parse", "HEAD")

    def run(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", run)
    monkeypatch.setattr(os, "system", run)
    assert commit(repository) == sha


def test_what_is_kept_for_people(repository, outside, monkeypatch):
    monkeypatch.chdir(repository)
    kept = environment.for_people({"driver": "550.1"})
    assert kept["commit"] == git(repository, "rev-parse", "HEAD")
    assert kept["driver"] == "550.1"
    assert kept["packages"]["python"].startswith("3.")
    monkeypatch.chdir(outside)
    assert set(environment.for_people({})) == {"date", "packages"}
