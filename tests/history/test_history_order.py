"""Which run follows which: by commits where git knows them, by time where it does not."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from comparing_examples import command, measured
from history_examples import SHA, moves, only, record

from pytest_quant import git
from pytest_quant.history import keep, read


class Repository:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        self.git("init", "-q", "-b", "main")

    def git(self, *arguments: str, **environment: str) -> str:
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", *arguments]
        told = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", **environment}
        return subprocess.run(command, cwd=self.path, env=told, check=True, capture_output=True, text=True).stdout

    def commit(self, subject: str, date: str = "2026-01-01T00:00:00Z") -> str:
        self.git("commit", "-q", "--allow-empty", "-m", subject, GIT_COMMITTER_DATE=date, GIT_AUTHOR_DATE=date)
        return self.git("rev-parse", "HEAD").strip()


@pytest.fixture
def repository(tmp_path):
    return Repository(tmp_path / "repository")


def put(folder: Path, day: int, commit: str, by: float = 0.0, **more) -> None:
    data = record(day, measured(by=by), **more)
    data["environment"]["commit"] = commit
    keep(folder, data)


def test_an_older_commit_that_is_measured_later_stands_where_it_belongs(repository):
    """All commits are of one second, so that only their order says which is first."""
    shas = [repository.commit(f"Change {number}") for number in range(5)]
    folder = repository.path / "quant-history"
    for day, number in enumerate((0, 1, 3, 4, 2)):  # the last run is of commit 2, which was still good
        put(folder, day, shas[number], by=0.01 if number >= 3 else 0.0)
    series = only(read(folder))
    assert [point.commit for point in series.points] == shas
    assert moves(series) == {3: "worse"}
    moved = series.points[3]
    assert (moved.subject, moved.before, moved.between) == ("Change 3", shas[2], 1)


def test_commits_that_were_not_measured_are_counted(repository):
    shas = [repository.commit(f"Change {number}") for number in range(7)]
    folder = repository.path / "quant-history"
    for day, number in enumerate((0, 1, 6)):
        put(folder, day, shas[number], by=0.01 if number == 6 else 0.0)
    moved = only(read(folder)).points[2]
    assert (moved.before, moved.between) == (shas[1], 5)


def test_a_clock_that_was_wrong_does_not_turn_the_order(repository):
    shas = [repository.commit(str(year), f"{year}-01-01T00:00:00Z") for year in (2026, 2020, 2026)]
    folder = repository.path / "quant-history"
    for day, sha in enumerate(reversed(shas)):
        put(folder, day, sha)
    assert [point.commit for point in only(read(folder)).points] == shas


def test_without_git_the_time_decides(tmp_path):
    for day in (2, 0, 1):
        put(tmp_path, day, SHA[day])
    assert [point.commit for point in only(read(tmp_path)).points] == SHA[:3]


def test_commits_that_git_does_not_know_stand_by_their_time(repository):
    """As in a shallow clone, or after a rebase."""
    known = repository.commit("Known", "2026-01-02T00:00:00Z")
    folder = repository.path / "quant-history"
    for day, commit in enumerate((SHA[0], known, SHA[2])):
        put(folder, day, commit)
    assert [point.commit for point in only(read(folder)).points] == [SHA[0], known, SHA[2]]


def test_runs_of_other_branches_are_left_out_and_never_compared(repository, capsys):
    first, second = repository.commit("First"), repository.commit("Second")
    repository.git("checkout", "-q", "-b", "feature")
    broken = repository.commit("Break it")
    repository.git("checkout", "-q", "main")
    third, fourth = repository.commit("Third"), repository.commit("Fourth")
    folder = repository.path / "quant-history"
    for day, (sha, by) in enumerate([(first, 0), (second, 0), (broken, 0.01), (third, 0), (fourth, 0)]):
        put(folder, day, sha, by)
    found = read(folder)
    assert (only(found).state, moves(only(found)), found.runs, found.others) == ("same", {}, 4, 1)
    assert command("history", folder, "--fail") == 0
    assert "1 run of other branches left out; --all shows" in capsys.readouterr().out
    assert command("history", folder, "--fail", "--all") == 0
    printed = capsys.readouterr().out
    assert "other branches, not judged" in printed
    assert "bisect" not in printed
    main, apart = read(folder, everything=True).series
    assert [point.commit for point in main.points] == [first, second, third, fourth]
    assert ([point.commit for point in apart.points], apart.state, apart.apart) == ([broken], "", True)
    repository.git("checkout", "-q", "feature")
    series = only(read(folder))
    assert [point.commit for point in series.points] == [first, second, broken]
    assert (moves(series), series.points[2].before, series.points[2].between) == ({2: "worse"}, second, 1)


def test_what_a_merge_brought_in_is_told_at_the_merge(repository):
    """The commits of a branch never held what the main line did meanwhile, so they are not compared with it."""
    first = repository.commit("First")
    repository.git("checkout", "-q", "-b", "feature")
    side = repository.commit("Break it")
    repository.git("checkout", "-q", "main")
    second = repository.commit("Second")
    repository.git("merge", "-q", "--no-ff", "-m", "Merge", "feature")
    merge = repository.git("rev-parse", "HEAD").strip()
    folder = repository.path / "quant-history"
    for day, (sha, by) in enumerate([(first, 0), (side, 0.01), (second, 0), (merge, 0.01)]):
        put(folder, day, sha, by)
    series = only(read(folder))
    assert [point.commit for point in series.points] == [first, second, merge]
    assert (moves(series), series.points[2].before) == ({2: "worse"}, second)


def test_where_no_run_is_of_the_branch_that_is_said(repository, capsys):
    folder = repository.path / "quant-history"
    repository.commit("First")
    repository.git("checkout", "-q", "-b", "feature")
    put(folder, 0, repository.commit("Second"))
    repository.git("checkout", "-q", "main")
    assert command("history", folder, "--fail") == 2
    assert "of commits that lead to the one that is checked out" in capsys.readouterr().out


@pytest.mark.parametrize(
    "since, word",
    [
        ("", "4 characters"),
        ("00", "4 characters"),
        ("0000", "may be"),
        ("ffff", "no run is of that commit"),
        ("2027-01-01", "no run began then or later"),
        ("2026-1-1", "4 characters"),
    ],
)
def test_since_that_names_no_run_or_two_says_so(tmp_path, capsys, since, word):
    for day in range(3):
        put(tmp_path, day, SHA[day])
    assert command("history", tmp_path, f"--since={since}") == 2
    assert word in capsys.readouterr().err


def test_from_a_commit_on_or_a_date(repository):
    folder = repository.path / "quant-history"
    for day in range(4):
        put(folder, day, SHA[day], by=0.01 if day else 0.0)
    assert moves(only(read(folder))) == {1: "worse"}
    assert moves(only(read(folder, SHA[1][:7]))) == {}
    assert len(only(read(folder, "2026-01-03")).points) == 2


def test_a_working_tree_with_changes_is_told(repository):
    repository.commit("First")
    (repository.path / "file").write_text("1")
    (repository.path / "baselines").mkdir()
    (repository.path / "baselines" / "gpu.json").write_text("1")
    assert git.dirty(repository.path) is False  # nothing of it is tracked
    repository.git("add", "-A")
    repository.commit("Second")
    assert git.dirty(repository.path) is False
    (repository.path / "baselines" / "gpu.json").write_text("2")
    assert git.dirty(repository.path) is True
    assert git.dirty(repository.path, [repository.path / "baselines"]) is False
    (repository.path / "file").write_text("2")
    assert git.dirty(repository.path, [repository.path / "baselines"]) is True


def test_where_no_repository_is_nothing_is_known(tmp_path):
    assert git.dirty(tmp_path) is None
    assert git.commits(SHA[:3], tmp_path) == {}
    assert git.between(SHA[0], SHA[1], tmp_path) is None


@pytest.mark.parametrize("name", ["--help", "HEAD", "../evil", "", "a" * 39, "--exec=touch x"])
def test_what_is_no_hash_is_never_given_to_git(repository, name, monkeypatch):
    sha = repository.commit("First")
    assert set(git.commits([name, sha], repository.path)) == {sha}
    monkeypatch.setattr(subprocess, "run", None)
    assert git.commits([name], repository.path) == {}
    assert git.between(name, sha, repository.path) is None


def test_without_git_nothing_is_known(repository, monkeypatch):
    sha = repository.commit("First")
    monkeypatch.setenv("PATH", "/nowhere")
    assert git.commits([sha], repository.path) == {}
    assert git.dirty(repository.path) is None
