"""Files of stored references: whole, never lost to a shorter one, carried from cache to cache."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from reference_examples import TOTAL, extend, key, reference, same

from pytest_quant.reference import DamagedError, Store, StoredReference, StoreError
from pytest_quant.reference.codec import decode, encode

POSIX = pytest.mark.skipif(os.name != "posix", reason="asked: POSIX limits; found: Windows; needed: POSIX")


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*.tmp")]


def write_bytes(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    "shape", [{}, {"top_k": 1}, {"tokens": 1}, {"tokens": 1, "top_k": 1}, {"vocabulary": 256_000}, {"top_k": 64}]
)
def test_what_is_written_is_read(tmp_path, shape) -> None:
    store = Store(tmp_path / "not" / "yet" / "there")
    assert store.read(key()) is None
    written = reference(5, **shape)
    path = store.write(written)
    assert path == tmp_path / "not" / "yet" / "there" / "references" / f"{key().digest}.safetensors"
    found = store.read(key())
    assert same(found, written)
    assert found.origin == "built"
    assert temporaries(tmp_path) == []
    with pytest.raises(ValueError, match="read-only"):
        found.windows.nll[0] = 1.0


def test_a_run_of_a_subset_finds_it(tmp_path) -> None:
    Store(tmp_path).write(reference())
    subset = key(protocol={**key().protocol, "subset": {"windows": 2, "seed": 0}})
    assert same(Store(tmp_path).read(subset), reference())


def test_other_keys_do_not_find_it(tmp_path) -> None:
    Store(tmp_path).write(reference())
    assert Store(tmp_path).read(key(dtype="fp32")) is None


def test_safetensors_itself_reads_it(tmp_path) -> None:
    from safetensors import safe_open

    path = Store(tmp_path).write(reference(2, vocabulary=256_000))
    with safe_open(path, framework="numpy") as file:
        assert file.metadata()["pytest_quant_reference"] == "1"
        assert np.array_equal(file.get_tensor("top_ids"), reference(2, vocabulary=256_000).windows.top_ids)


def test_a_shorter_one_never_replaces_a_longer(tmp_path) -> None:
    store = Store(tmp_path)
    for count, expected in [(2, 2), (5, 5), (3, 5), (5, 5), (6, 6)]:
        store.write(reference(count))
        assert same(store.read(key()), reference(expected))


def test_an_equally_long_one_is_kept_as_it_is(tmp_path) -> None:
    store = Store(tmp_path)
    store.write(reference(3))
    store.write(replace(reference(3), recorded={"model": "later"}))
    assert store.read(key()).recorded["model"] == "tiny-llama"


def test_origin_is_decided_by_the_place(tmp_path) -> None:
    store = Store(tmp_path)
    store.write(replace(reference(), origin="imported"))
    assert store.read(key()).origin == "built"
    write_bytes(store.path(key().digest, "imported"), encode(reference()))
    assert store.read(key()).origin == "imported"


@pytest.mark.parametrize("built, imported, origin", [(3, 3, "imported"), (4, 3, "built"), (3, 4, "imported")])
def test_the_longer_one_counts(tmp_path, built, imported, origin) -> None:
    store = Store(tmp_path)
    store.write(reference(built))
    store.import_(write_bytes(tmp_path / "file", encode(reference(imported))))
    found = store.read(key())
    assert (found.origin, len(found.windows)) == (origin, max(built, imported))


@pytest.mark.parametrize("damaged, origin", [("built", "imported"), ("imported", "built")])
def test_the_sound_one_counts(tmp_path, damaged, origin) -> None:
    store = Store(tmp_path)
    store.write(reference(3))
    store.import_(write_bytes(tmp_path / "file", encode(reference(3))))
    store.path(key().digest, damaged).write_bytes(b"damaged")
    assert store.read(key()).origin == origin
    store.path(key().digest, origin).unlink()
    with pytest.raises(DamagedError, match="import it again" if damaged == "imported" else "built anew"):
        store.read(key())


# whatever fails, the old file stays


@pytest.mark.parametrize("function", ["replace", "fsync"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_a_failure_leaves_the_old_file(tmp_path, monkeypatch, function, number) -> None:
    store = Store(tmp_path)
    path = store.write(reference(2))

    def fail(*_):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail)
        with pytest.raises(StoreError, match=rf"cannot be written: .*{errno.errorcode[number]}.*untouched") as caught:
            store.write(reference(3))
    assert str(path) in str(caught.value)
    assert temporaries(tmp_path) == []
    assert same(store.read(key()), reference(2))
    store.write(reference(3))
    assert same(store.read(key()), reference(3))


def test_an_interruption_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path)
    store.write(reference(2))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.write(reference(3))
    assert temporaries(tmp_path) == []
    assert same(store.read(key()), reference(2))


@POSIX
def test_a_full_disk_leaves_the_old_file(tmp_path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from reference_examples import reference\n"
        "from pytest_quant.reference import Store, StoreError\n"
        "store = Store(Path(sys.argv[1])); store.write(reference(2))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try: store.write(reference(4, tokens=200))\n"
        "except StoreError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    assert "EFBIG" in done.stdout, done.stderr
    assert "ulimit" in done.stdout
    assert temporaries(tmp_path) == []
    assert same(Store(tmp_path).read(key()), reference(2))


@POSIX
def test_a_read_only_folder_is_an_error_for_writing_only(tmp_path) -> None:
    if os.geteuid() == 0:
        pytest.skip("asked: a folder that cannot be written; found: the user root; needed: another user")
    store = Store(tmp_path)
    store.write(reference(2))
    for file in store.folder.glob("*.lock"):
        file.unlink()
    store.folder.chmod(0o500)
    try:
        assert same(store.read(key()), reference(2))
        with pytest.raises(StoreError, match="EACCES"):
            store.write(reference(3))
        assert same(store.read(key()), reference(2))
    finally:
        store.folder.chmod(0o700)


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSYS])
def test_a_folder_that_cannot_be_locked_is_an_error(tmp_path, monkeypatch, number) -> None:
    import filelock

    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(filelock.FileLock, "acquire", fail)
    with pytest.raises(StoreError, match=rf"cannot be locked: .*{errno.errorcode[number]}"):
        Store(tmp_path).write(reference())


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path) -> None:
    write_bytes(tmp_path / "references", b"x")
    for ask in (Store(tmp_path).entries, lambda: Store(tmp_path).write(reference())):
        with pytest.raises(StoreError, match=str(tmp_path / "references")):
            ask()


def test_what_a_killed_process_left_is_swept(tmp_path) -> None:
    store = Store(tmp_path)
    left = write_bytes(store.folder / f".{key().digest}-0123.tmp", b"half a file")
    other = write_bytes(store.folder / f".{'0' * 32}-0123.tmp", b"another's")
    store.write(reference())
    assert not left.exists()
    assert other.exists()


# two processes


def test_a_lock_that_is_held_is_an_error_that_names_it(tmp_path) -> None:
    from filelock import FileLock

    store = Store(tmp_path, lock_seconds=0.05)
    store.write(reference(2))
    lock = store.folder / f"{key().digest}.lock"
    with FileLock(lock):
        with pytest.raises(StoreError, match="held by another process") as caught:
            store.write(reference(3))
        assert str(lock) in str(caught.value)
        assert same(store.read(key()), reference(2))
        store.write(reference(3, of=key(dtype="fp32")))
    store.write(reference(3))


def test_two_processes_extend_one_reference_and_lose_nothing(tmp_path) -> None:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        tasks = [pool.submit(extend, tmp_path, turn, 60) for turn in range(2)]
        ends = [task.result() for task in tasks]
    assert ends == [(60, TOTAL)] * 2
    assert same(Store(tmp_path).read(key()), reference(TOTAL))
    assert temporaries(tmp_path) == []


# from cache to cache


def test_exported_and_imported_it_is_the_same(tmp_path) -> None:
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    here.write(reference(3))
    file = here.export(key(), tmp_path / "file.bin")
    imported = there.import_(file)
    assert file == tmp_path / "file.bin"
    assert imported.origin == "imported"
    assert same(imported, reference(3))
    assert same(there.read(key()), reference(3))
    assert there.read(key()).origin == "imported"
    assert sorted(path.name for path in (there.folder / "imported").iterdir()) == [f"{key().digest}.safetensors"]


def test_the_longest_is_exported_by_the_first_digits(tmp_path) -> None:
    store = Store(tmp_path)
    store.write(reference(3))
    store.write(reference(1, of=key(dtype="fp32")))
    store.import_(write_bytes(tmp_path / "file", encode(reference(4))))
    target = store.export(key().digest[:6].upper(), tmp_path)
    assert target == tmp_path / f"{key().digest}.safetensors"
    assert len(Store(tmp_path / "x").import_(target).windows) == 4


def test_only_one_reference_can_be_meant(tmp_path) -> None:
    store = Store(tmp_path)
    with pytest.raises(StoreError, match="holds none"):
        store.export("ab", tmp_path / "x")
    with pytest.raises(StoreError, match="holds no reference"):
        store.export(key(), tmp_path / "x")
    store.write(reference())
    store.write(reference(of=key(dtype="fp32")))
    with pytest.raises(StoreError, match="more digits"):
        store.export("", tmp_path / "x")
    with pytest.raises(StoreError, match=f"no reference 'zz'.*{key().digest}"):
        store.export("zz", tmp_path / "x")


def test_a_damaged_one_is_not_exported(tmp_path) -> None:
    store = Store(tmp_path)
    store.write(reference()).write_bytes(b"x")
    with pytest.raises(DamagedError):
        store.export(key(), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_an_export_replaces_only_an_earlier_export(tmp_path) -> None:
    store = Store(tmp_path)
    store.write(reference(3))
    target = write_bytes(tmp_path / "x", encode(reference(2)))
    store.export(key(), target)
    assert same(decode(target.read_bytes(), "x"), reference(3))
    for content, message in [
        (b"a letter", "another file"),
        (encode(reference(of=key(dtype="fp32"))), "another file"),
        (encode(reference(4)), "4 windows"),
    ]:
        target.write_bytes(content)
        with pytest.raises(StoreError, match=message):
            store.export(key(), target)
        assert target.read_bytes() == content


def test_an_export_that_fails_leaves_nothing(tmp_path, monkeypatch) -> None:
    store = Store(tmp_path / "cache")
    store.write(reference(3))

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StoreError, match="ENOSPC"):
        store.export(key(), tmp_path / "x")
    assert [path.name for path in tmp_path.iterdir()] == ["cache"]


def test_an_import_is_replaced_by_one_as_long_or_longer(tmp_path) -> None:
    store = Store(tmp_path)

    def file(made: StoredReference) -> Path:
        return write_bytes(tmp_path / "file", encode(made))

    store.import_(file(reference(3)))
    store.import_(file(replace(reference(3), recorded={"model": "later"})))
    assert store.read(key()).recorded["model"] == "later"
    store.import_(file(reference(4)))
    with pytest.raises(StoreError, match=r"has 2 windows, and .*imported before, has 4"):
        store.import_(file(reference(2)))
    assert same(store.read(key()), reference(4))
    path = store.path(key().digest, "imported")
    path.write_bytes(b"damaged")
    store.import_(file(reference(2)))
    assert same(store.read(key()), reference(2))
    store.import_(path)
    assert same(store.read(key()), reference(2))


def test_a_bad_file_is_not_imported(tmp_path) -> None:
    store = Store(tmp_path / "cache")
    with pytest.raises(StoreError, match="no such file"):
        store.import_(tmp_path / "x")
    with pytest.raises(DamagedError, match="export it again"):
        store.import_(write_bytes(tmp_path / "x", encode(reference())[:-9]))
    assert not store.folder.exists()


# lists


def test_entries_never_fail_for_one_bad_file(tmp_path) -> None:
    store = Store(tmp_path)
    assert store.entries() == []
    good = store.write(reference(3))
    bad = store.write(reference(of=key(dtype="fp32")))
    bad.write_bytes(b"x")
    write_bytes(store.folder / "model.safetensors", encode(reference()))
    write_bytes(store.folder / "notes.txt", b"x")
    store.import_(write_bytes(tmp_path / "file", encode(replace(reference(2), recorded={}))))
    entries = {(entry.path.name, entry.origin): entry for entry in store.entries()}
    assert len(entries) == 4
    entry = entries[good.name, "built"]
    assert (entry.digest, entry.bytes) == (key().digest, good.stat().st_size)
    assert (entry.model, entry.dtype, entry.engine) == ("tiny-llama", "fp16", "transformers")
    assert (entry.protocol, entry.corpus) == ("gptq-8", "news")
    assert (entry.windows, entry.total, entry.top_k, entry.damage) == (3, TOTAL, 3, None)
    assert entries[good.name, "imported"].model == "fingerprint"
    assert str(bad) in (entries[bad.name, "built"].damage or "")
    assert "renamed" in (entries["model.safetensors", "built"].damage or "")


def test_verify_takes_files_of_any_name(tmp_path) -> None:
    good = write_bytes(tmp_path / "any.name", encode(reference()))
    bad = write_bytes(tmp_path / "bad", b"")
    first, second, third = Store(tmp_path).verify([good, bad, tmp_path / "none"])
    assert (first.damage, first.origin, first.digest) == (None, "file", key().digest)
    assert "is damaged" in (second.damage or "")
    assert "no such file" in (third.damage or "")
    assert not Store(tmp_path).remove_damaged(second)
    assert bad.exists()


def test_only_what_is_still_damaged_is_removed(tmp_path) -> None:
    store = Store(tmp_path)
    path = store.write(reference())
    assert not store.remove_damaged(store.entries()[0])
    path.write_bytes(b"x")
    (entry,) = store.entries()
    store.write(reference())
    assert not store.remove_damaged(entry)
    path.write_bytes(b"x")
    assert store.remove_damaged(entry)
    assert not path.exists()
    assert not store.remove_damaged(entry)
