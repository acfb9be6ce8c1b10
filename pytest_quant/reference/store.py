"""Stored references on disk: `<cache>/references/<digest>.safetensors`, imported ones in `imported/` beside it.

A file is replaced as a whole or not at all, under a lock of its digest, and never by a shorter one. Readers take no
lock: they see the old file or the new one. Where a built and an imported reference of one key exist, the one with more
windows counts; of two equally long ones the imported.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pytest_quant.atomic import cause
from pytest_quant.reference import files
from pytest_quant.reference.codec import decode, encode
from pytest_quant.reference.errors import DamagedError, StoreError
from pytest_quant.reference.key import ReferenceKey
from pytest_quant.reference.windows import Origin, StoredReference

SUFFIX = ".safetensors"
LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class Entry:
    """One file, for lists. What a damaged file would have said is "?" or 0."""

    path: Path
    digest: str
    """32 hexadecimal digits: of the key, or of a damaged file its name."""
    origin: Literal["built", "imported", "file"]
    """"file": named by its path, wherever it lies."""
    bytes: int
    model: str = "?"
    """The model's short name (`recorded["model"]`), or else its fingerprint."""
    dtype: str = "?"
    engine: str = "?"
    protocol: str = "?"
    corpus: str = "?"
    windows: int = 0
    total: int = 0
    top_k: int = 0
    damage: str | None = None
    """A whole sentence that names the file, where it cannot be used."""
    removable: bool = False
    """Whether it is damaged; a file that cannot be read, or is of a newer version, may be sound."""


class Store:
    """The stored references of one cache folder, which need not exist yet."""

    def __init__(self, cache_dir: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.folder = Path(cache_dir) / "references"
        self._lock_seconds = lock_seconds

    def path(self, digest: str, origin: Origin = "built") -> Path:
        """Where the reference of that digest lies or would lie."""
        return (self.folder if origin == "built" else self.folder / "imported") / f"{digest}{SUFFIX}"

    def read(self, key: ReferenceKey) -> StoredReference | None:
        """The longest sound reference of `key`, of two equally long ones the imported; None if no file is there.

        Raises StoreError if files are there and none of them is sound: its subclass DamagedError if one is damaged.
        """
        return self._best(key.digest)

    def write(self, reference: StoredReference, *, anew: bool = False) -> Path:
        """Store `reference` as built, unless as many windows or more of its key are there; the path of what now is.
        `anew` replaces only what has as many windows or fewer, and refuses to replace what has more.

        A damaged file is replaced. Raises StoreError, with what was there untouched, if the reference is unsound, a
        newer version lies there, the lock cannot be had, or the system refuses (disk full, read-only, ...).
        """
        path = self.path(reference.key.digest)
        longest = len(reference.windows)
        kept = self._put(path, reference, encode(reference), at_least=longest + anew)
        if kept is not None and anew:
            raise StoreError(
                f"{path}: holds {len(kept.windows)} windows, more than the {longest} that were built now, and is kept. "
                "Delete it first if the shorter one is to be used."
            )
        return path

    def export(self, which: ReferenceKey | str, target: Path) -> Path:
        """Copy one stored reference, by its key or the first digits of its digest, to the file or folder `target`.

        A file that is there is replaced only if it is a reference of the same key with no more windows. Raises
        StoreError if no or several references are meant, or the chosen one or the target does not allow it.
        """
        digest = self._digest(which)
        reference = self._best(digest)
        if reference is None:
            raise StoreError(f"{self.folder}: holds no reference {digest}. `pytest-quant reference list` shows which.")
        target = target / f"{digest}{SUFFIX}" if target.is_dir() else target
        if (existing := files.content(target)) is not None:
            self._refuse_other(target, existing, reference)
        files.put(target, encode(reference))
        return target

    def import_(self, file: Path) -> StoredReference:
        """Verify `file` and copy it into the cache; an imported one of the same key must not have more windows.

        Raises StoreError if the file is missing, damaged or shorter than what was imported before.
        """
        content, reference = _load(file)
        longest = len(reference.windows)
        path = self.path(reference.key.digest, "imported")
        if (kept := self._put(path, reference, content, at_least=longest + 1)) is not None:
            raise StoreError(
                f"{file}: has {longest} windows, and {path}, imported before, has {len(kept.windows)}: the longer one "
                "is kept. Delete that file first if the shorter one is to be used."
            )
        return replace(reference, origin="imported")

    def entries(self) -> list[Entry]:
        """All files in the cache, each read and verified, by model and digest. Raises StoreError only if the folder
        itself cannot be listed."""
        found = [self._entry(path, origin) for origin in _ORIGINS for path in self._listed(origin)]
        return sorted(found, key=lambda entry: (entry.model, entry.digest, entry.origin))

    def verify(self, paths: Iterable[Path] | None = None) -> list[Entry]:
        """The files at `paths`, whatever their names, each read and verified; without paths, :meth:`entries`."""
        if paths is None:
            return self.entries()
        return [self._entry(Path(path), "file") for path in paths]

    def remove_damaged(self, entry: Entry) -> bool:
        """Delete a damaged file of the cache; False if by now it is sound, gone, or no damaged file of the cache.

        Raises StoreError if the system refuses.
        """
        if entry.origin == "file" or not entry.removable:
            return False
        with files.locked(self._lock(entry.path), self._lock_seconds):
            again = self._entry(entry.path, entry.origin)
            if not again.removable:
                return False
            try:
                entry.path.unlink()
            except OSError as error:
                raise StoreError(f"{entry.path}: cannot be deleted: {cause(error)}. Delete it by hand.") from error
        return True

    def _lock(self, path: Path) -> Path:
        return self.folder / f"{path.stem}.lock"

    def _best(self, digest: str) -> StoredReference | None:
        found: list[StoredReference] = []
        failures: list[StoreError] = []
        for origin in _ORIGINS:
            try:
                if (reference := self._stored(self.path(digest, origin), origin)) is not None:
                    found.append(reference)
            except StoreError as error:
                failures.append(error)
        if found:
            return max(found, key=lambda reference: (len(reference.windows), reference.origin == "imported"))
        if failures:
            raise failures[0]
        return None

    def _stored(self, path: Path, origin: Origin) -> StoredReference | None:
        """The file of the cache at `path`, which must be of the digest that its name says."""
        content = files.content(path)
        if content is None:
            return None
        try:
            reference = decode(content, str(path), origin)
            if reference.key.digest != path.stem:
                raise DamagedError(
                    f"{path}: is the reference of another model or protocol, {reference.key.digest}: it was renamed."
                )
        except DamagedError as error:
            anew = "it is built anew when it is needed" if origin == "built" else "import it again"
            remedy = f"Delete it or run `pytest-quant reference verify --delete`, then {anew}."
            raise DamagedError(f"{error} {remedy}") from None
        return reference

    def _put(self, path: Path, reference: StoredReference, data: bytes, at_least: int) -> StoredReference | None:
        """Write `data` to `path`, unless a sound reference of `at_least` windows is there: that one is returned."""
        with files.locked(self._lock(path), self._lock_seconds):
            files.sweep(path)
            try:
                there = self._stored(path, "built")
            except DamagedError:
                there = None
            if there is not None and there.key == reference.key and len(there.windows) >= at_least:
                return there
            files.put(path, data)
        return None

    def _refuse_other(self, target: Path, existing: bytes, reference: StoredReference) -> None:
        try:
            there = decode(existing, str(target))
        except StoreError:
            there = None
        if there is None or there.key != reference.key:
            raise StoreError(f"{target}: exists, and is another file. Delete it, or export to another name.")
        if len(there.windows) > len(reference.windows):
            raise StoreError(
                f"{target}: exists with {len(there.windows)} windows, the stored reference has "
                f"{len(reference.windows)}. Delete it, or export to another name."
            )

    def _digest(self, which: ReferenceKey | str) -> str:
        if isinstance(which, ReferenceKey):
            return which.digest
        names = sorted({path.stem for origin in _ORIGINS for path in self._listed(origin)})
        matching = [name for name in names if name.startswith(which.lower())]
        if len(matching) == 1:
            return matching[0]
        if not matching:
            there = f"it holds {', '.join(names)}" if names else "it holds none"
            raise StoreError(f"{self.folder}: holds no reference {which!r}; {there}.")
        raise StoreError(f"{self.folder}: {which!r} may be {', '.join(matching)}; give more digits.")

    def _listed(self, origin: Origin) -> list[Path]:
        folder = self.path("", origin).parent
        try:
            names = os.listdir(folder)  # noqa: PTH208
        except FileNotFoundError:
            return []
        except OSError as error:
            remedy = "Make it a readable folder, or name another one with --cache-dir (pytest: --quant-cache-dir)."
            raise StoreError(f"{folder}: cannot be listed: {cause(error)}. {remedy}") from error
        return [folder / name for name in sorted(names) if name.endswith(SUFFIX) and not name.startswith(".")]

    def _entry(self, path: Path, origin: Literal["built", "imported", "file"]) -> Entry:
        try:
            size = path.stat().st_size
        except OSError:
            size = 0
        digest = path.stem
        try:
            if origin != "file":
                reference = self._stored(path, origin)
                if reference is None:
                    raise StoreError(f"{path}: is a symbolic link to nothing, or gone by now.")
            else:
                reference = _load(path)[1]
        except StoreError as error:
            return Entry(path, digest, origin, size, damage=str(error), removable=isinstance(error, DamagedError))
        return _described(path, origin, size, reference)


_ORIGINS: tuple[Origin, ...] = ("built", "imported")


def _load(file: Path) -> tuple[bytes, StoredReference]:
    content = files.content(file)
    if content is None:
        raise StoreError(f"{file}: there is no such file. Give the path of an exported reference.")
    try:
        return content, decode(content, str(file))
    except DamagedError as error:
        raise DamagedError(f"{error} Copy it again, or export it again where it was built.") from None


def _described(
    path: Path, origin: Literal["built", "imported", "file"], size: int, reference: StoredReference
) -> Entry:
    key = reference.key
    corpus = key.protocol.get("corpus")
    return Entry(
        path=path,
        digest=key.digest,
        origin=origin,
        bytes=size,
        model=str(reference.recorded.get("model") or key.model),
        dtype=key.dtype,
        engine=key.engine,
        protocol=str(key.protocol.get("name", "?")),
        corpus=str(corpus.get("name", "?") if isinstance(corpus, dict) else corpus or "?"),
        windows=len(reference.windows),
        total=reference.total,
        top_k=reference.top_k,
    )
