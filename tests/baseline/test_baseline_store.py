"""Baseline files on disk: safe names, whole files, and the old file after every failure."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_quant.baseline import (
    BaselineError,
    Entry,
    File,
    find_other_hardware,
    merge,
    path_for,
    prune,
    read,
    render,
    write,
)

HARDWARE = {"key": "nvidia-a10g", "name": "NVIDIA A10G"}
POSIX = pytest.mark.skipif(os.name != "posix", reason="asked: POSIX permissions; found: Windows; needed: POSIX")


def entry(format: str = "nf4", value: float = 1.0, **identity: Any) -> Entry:
    return Entry("perplexity_delta", format, identity, value, "ppl")


def file(*entries: Entry, model: str = "m") -> File:
    return File(HARDWARE, model, entries or (entry(),))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# names


def test_safe_names_are_kept() -> None:
    assert path_for("root", "nvidia-a10g-1g.10gb-x4", "smollm2_135m") == Path(
        "root/nvidia-a10g-1g.10gb-x4/smollm2_135m.json"
    )


def test_other_names_are_made_safe_and_get_a_hash() -> None:
    assert path_for("r", "k", "org/Name-7B").name == "org--Name-7B-40d481d2.json"


DIFFICULT = [
    "..",
    ".",
    "../../etc/passwd",
    "/absolute/path",
    "C:\\models\\x",
    "a\0b",
    "a\nb",
    "con",
    "NUL",
    "com1.model",
    "lpt9",
    "aux.",
    "trailing.",
    "trailing ",
    "-rf",
    ".hidden",
    "a:b",
    'a<b>c|d?e*f"g',
    "模型",
    "é",
    "e\u0301",
    "\ud800",
    "x" * 300,
    "x" * 301,
    "org/name",
    "org--name",
    "Org/Name",
    "ORG/NAME",
    "org\\name",
    "org-name",
    "name",
    "Name",
    "org--name-7e624f06",
]


def check_name(name: str) -> str:
    path = path_for("root", name, name)
    assert path.parts[0] == "root"
    assert len(path.parts) == 3
    stem = path.name.removesuffix(".json")
    assert path.parts[1] == stem
    assert len(path.name) < 120
    assert path.name.isascii()
    assert not set(path.name) & set('<>:"/\\|?*\0')
    assert stem[0] not in ".- "
    assert stem[-1] not in ". "
    assert stem.split(".")[0].lower() not in {"con", "prn", "aux", "nul", "com1", "lpt9"}
    return path.name.lower()


def test_difficult_names_are_safe_and_never_collide_even_where_case_is_ignored() -> None:
    assert len({check_name(name) for name in DIFFICULT}) == len(DIFFICULT)


@given(st.lists(st.text(min_size=1).filter(str.strip), unique=True, max_size=8))
def test_any_names_are_safe_and_never_collide(some: list[str]) -> None:
    assert len({check_name(name) for name in some}) == len(some)


@pytest.mark.parametrize("key, model, what", [("", "m", "hardware key is ''"), ("k", " ", "model is ' '")])
def test_an_empty_name_has_no_place(key: str, model: str, what: str) -> None:
    with pytest.raises(BaselineError, match=f"^root: the {what}"):
        path_for("root", key, model)


def test_other_hardware_is_found_in_order(tmp_path: Path) -> None:
    assert find_other_hardware(tmp_path / "none", "a10g", "m") == []
    for key, model in [("h100", "m"), ("a10g", "m"), ("a100", "m"), ("l4", "other"), ("T4 (x)", "m")]:
        write(path_for(tmp_path, key, model), file(model=model))
    (tmp_path / "README.md").write_text("a file beside the folders")
    odd = path_for(tmp_path, "T4 (x)", "m")
    assert find_other_hardware(tmp_path, "a10g", "m") == [
        (odd.parent.name, odd),
        ("a100", tmp_path / "a100" / "m.json"),
        ("h100", tmp_path / "h100" / "m.json"),
    ]


def test_a_root_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.write_text("x")
    with pytest.raises(BaselineError, match=r"root: cannot be listed: .*ENOTDIR"):
        find_other_hardware(root, "k", "m")
    with pytest.raises(BaselineError, match=r"m.json: cannot be read: .*ENOTDIR"):
        read(path_for(root, "k", "m"))
    with pytest.raises(BaselineError, match=r"m.json: cannot be read: .*ENOTDIR"):
        write(path_for(root, "k", "m"), file())
    assert root.read_text() == "x"


# read, merge, prune


def test_reading_what_is_not_there_is_none_and_all_else_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.json"
    assert read(path) is None
    path.mkdir()
    with pytest.raises(BaselineError, match=r"m.json: is not a regular file"):
        read(path)
    path.rmdir()
    write(path, file())

    def refuse(self: Path) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(BaselineError, match=r"m.json: cannot be read: Permission denied \(EACCES\)\. Make it readable"):
        read(path)


def test_merging_replaces_by_exact_identity_and_keeps_all_others() -> None:
    old = file(entry("nf4", 1.0, window=512), entry("nf4", 2.0, window=2048), entry("int8", 3.0, window=512))
    new = merge(old, HARDWARE, "m", [entry("nf4", 9.0, window=512.0), entry("fp8", 4.0, window=512)])
    assert [(e.format, e.value) for e in new.entries] == [("nf4", 9.0), ("nf4", 2.0), ("int8", 3.0), ("fp8", 4.0)]
    assert [e.value for e in old.entries] == [1.0, 2.0, 3.0]
    assert merge(None, HARDWARE, "m", [entry()]) == file()
    assert merge(old, HARDWARE, "m", []) == old


@pytest.mark.parametrize("hardware, model", [(HARDWARE, "other"), (HARDWARE | {"key": "h100"}, "m")])
def test_merging_into_a_copied_file_is_an_error(hardware: dict[str, Any], model: str) -> None:
    with pytest.raises(BaselineError, match=r"baseline of m on nvidia-a10g: .* The file was moved or copied"):
        merge(file(), hardware, model, [entry()])


def test_pruning_keeps_what_it_is_told_to() -> None:
    assert prune(file(entry("nf4"), entry("int8")), lambda e: e.format == "int8") == file(entry("int8"))


# write


def test_a_written_file_is_read_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = path_for(tmp_path / "new" / "root", "nvidia-a10g", "m")
    assert write(path, file()) is True
    assert read(path) == file()
    assert path.read_bytes() == render(file()).encode()
    assert names(path.parent) == ["m.json"]


def test_identical_content_is_not_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    write(path, file())
    os.utime(path, ns=(1, 1))
    inode = path.stat().st_ino
    monkeypatch.setattr(os, "fsync", lambda descriptor: pytest.fail("nothing should be written"))
    assert write(path, file()) is False
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (1, inode)


def test_the_file_is_on_the_disk_before_it_is_renamed_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def traced_fsync(descriptor: int) -> None:
        steps.append("fsync folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "fsync")  # noqa: PTH112
        fsync(descriptor)

    def traced_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", traced_fsync)
    monkeypatch.setattr(Path, "replace", traced_replace)
    write(tmp_path / "m.json", file())
    assert steps[:2] == ["fsync", "rename"]
    if sys.platform == "linux":
        assert steps[2:] == ["fsync folder"]


@POSIX
def test_a_new_file_follows_the_umask_and_an_old_one_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    before = os.umask(0o027)
    try:
        write(path, file())
        assert path.stat().st_mode & 0o777 == 0o640
        path.chmod(0o664)
        write(path, file(entry(value=2.0)))
        assert path.stat().st_mode & 0o777 == 0o664
    finally:
        os.umask(before)


@POSIX
def test_a_symbolic_link_is_written_through(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link.json").symlink_to("target/m.json")
    assert read(tmp_path / "link.json") is None
    for value in (1.0, 2.0):
        assert write(tmp_path / "link.json", file(entry(value=value)))
        assert (tmp_path / "link.json").is_symlink()
        assert read(tmp_path / "target" / "m.json") == file(entry(value=value))
    assert names(tmp_path) == ["link.json", "target"]
    assert names(tmp_path / "target") == ["m.json"]


@pytest.mark.parametrize("content", ["{", '{"schema": 99}', "<<<<<<< HEAD\n"])
def test_a_malformed_or_newer_file_is_not_overwritten(tmp_path: Path, content: str) -> None:
    path = tmp_path / "m.json"
    path.write_text(content)
    with pytest.raises(BaselineError, match=r"m\.json: "):
        write(path, file())
    assert path.read_text() == content
    assert names(tmp_path) == ["m.json"]


def test_what_cannot_be_rendered_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write(path, file())
    with pytest.raises(BaselineError, match=r"m.json: measurements\[0\].value: found the number nan"):
        write(path, file(entry(value=float("nan"))))
    assert read(path) == file()
    assert names(tmp_path) == ["m.json"]


def refusal(number: int) -> Any:
    def refuse(*args: Any, **keywords: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return refuse


@pytest.mark.parametrize("old", [True, False], ids=["old file", "no file"])
@pytest.mark.parametrize(
    "owner, step",
    [(os, "fsync"), (Path, "replace"), (Path, "open"), (Path, "mkdir")],
    ids=["fsync", "replace", "open", "mkdir"],
)
@pytest.mark.parametrize(
    "number, advice",
    [
        (errno.ENOSPC, "Free space on this disk"),
        (errno.EDQUOT, "disk quota"),
        (errno.EROFS, "read-only: choose another folder with --quant-baseline-path"),
        (errno.EACCES, "Make the file and its folder writable"),
        (errno.EPERM, "Make the file and its folder writable"),
        (errno.EIO, "Correct the cause"),
    ],
)
def test_when_the_system_refuses_the_old_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, step: str, number: int, advice: str, old: bool
) -> None:
    path = tmp_path / "m.json"
    if old:
        write(path, file())
    monkeypatch.setattr(owner, step, refusal(number))
    with monkeypatch.context() as reading:
        if step == "open":  # before Python 3.14, Path.read_bytes goes through Path.open
            reading.setattr(Path, "read_bytes", lambda self: render(file()).encode())
        with pytest.raises(BaselineError) as caught:
            write(path, file(entry(value=2.0)))
    monkeypatch.undo()
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot be written: {os.strerror(number)} ({errno.errorcode[number]}); ")
    assert ("the old file is untouched" if old else "nothing was recorded") in message
    assert advice in message
    assert read(path) == (file() if old else None)
    assert names(tmp_path) == (["m.json"] if old else [])


def test_an_interruption_leaves_no_temporary_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    write(path, file())

    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(path, file(entry(value=2.0)))
    assert read(path) == file()
    assert names(tmp_path) == ["m.json"]


def test_a_folder_that_cannot_be_synced_does_not_fail_the_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "open", refusal(errno.EACCES))
    assert write(tmp_path / "m.json", file()) is True
    monkeypatch.undo()
    assert read(tmp_path / "m.json") == file()


@POSIX
@pytest.mark.skipif(
    hasattr(os, "geteuid") and os.geteuid() == 0, reason="asked: permissions; found: root; needed: another user"
)
def test_a_read_only_folder_or_file(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write(path, file())
    for guarded, mode in [(tmp_path, 0o555), (path, 0o444)]:
        usual = guarded.stat().st_mode & 0o777
        guarded.chmod(mode)
        try:
            with pytest.raises(BaselineError, match=r"\(EACCES\); the old file is untouched"):
                write(path, file(entry(value=2.0)))
        finally:
            guarded.chmod(usual)
        assert read(path) == file()
        assert names(tmp_path) == ["m.json"]


def test_a_read_only_file_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    write(path, file())
    monkeypatch.setattr(os, "access", lambda *args: False)
    with pytest.raises(BaselineError, match=r"Permission denied \(EACCES\); the old file is untouched\. Make"):
        write(path, file(entry(value=2.0)))
    assert read(path) == file()


PROGRAM = """
import sys
from pytest_quant.baseline import BaselineError, Entry, File, write
{setup}
def file(value, windows):
    scores = tuple(value + i / 7 for i in range(windows))
    return File({{"key": "k", "name": "K"}}, "m", (Entry("x", "nf4", {{}}, value, "ppl", scores=scores),))
{body}
"""


def program(setup: str, body: str, path: Path) -> subprocess.Popen[str]:
    source = PROGRAM.format(setup=setup, body=body)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    command = [sys.executable, "-c", source, str(path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@POSIX
def test_a_real_limit_on_file_size_stops_halfway_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    write(path, file())
    process = program(
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))",
        "try:\n    write(sys.argv[1], file(1.0, 10_000))\nexcept BaselineError as error:\n    print('said:', error)",
        path,
    )
    output = process.communicate(timeout=60)[0]
    assert output.startswith(f"said: {path}: cannot be written: File too large (EFBIG); the old file is untouched.")
    assert read(path) == file()
    assert names(tmp_path) == ["m.json"]


@pytest.mark.skipif(sys.platform != "linux", reason="asked: /dev/full; found: no Linux; needed: Linux")
def test_a_real_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.json"
    write(path, file())
    opened = Path.open

    def on_full_device(self: Path, mode: str = "r", *args: Any, **keywords: Any) -> Any:
        if mode != "xb":
            return opened(self, mode, *args, **keywords)
        self.touch()
        return opened(Path("/dev/full"), "wb")

    monkeypatch.setattr(Path, "open", on_full_device)
    with pytest.raises(BaselineError, match=r"No space left on device \(ENOSPC\); the old file is untouched\. Free"):
        write(path, file(entry(value=2.0)))
    assert read(path) == file()
    assert names(tmp_path) == ["m.json"]


def test_two_writers_never_leave_a_mixture(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    body = "for i in range(60):\n    write(sys.argv[1], file({value} + i, {windows}))"
    writers = [program("", body.format(value=v, windows=n), path) for v, n in [(1.0, 2000), (1000.0, 10)]]
    seen = 0
    while any(writer.poll() is None for writer in writers):
        if (found := read(path)) is not None:
            (only,) = found.entries
            assert only.scores is not None
            assert len(only.scores) == (2000 if only.value < 1000 else 10)
            assert only.scores[-1] == only.value + (len(only.scores) - 1) / 7
            seen += 1
    for writer in writers:
        output = writer.communicate(timeout=60)[0]
        assert (writer.returncode, output) == (0, "")
    assert seen > 0
    assert names(tmp_path) == ["m.json"]
