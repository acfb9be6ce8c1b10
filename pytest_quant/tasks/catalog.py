"""Finding tasks by name, as lm-eval does, without reading all of its 14,000 files where one is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pytest_quant.errors import NotMeasured, QuantError, UsageError
from pytest_quant.progress import Progress
from pytest_quant.tasks import harness
from pytest_quant.tasks.asked import Asked

_TASK_LINE = re.compile(rb"""^["']?task["']?[ \t]*:[ \t]*["']?([^"'\s\[{#]+)["']?[ \t]*\r?$""", re.MULTILINE)
_LEAVES = ("TASK", "PY_TASK")


@dataclass(frozen=True)
class Found:
    """A task or a group, loaded: its documents are there."""

    name: str
    """As lm-eval calls it."""
    leaves: Mapping[str, Any]
    """The tasks that it consists of, by name."""
    group: Any = None
    """lm-eval's group, if it is one."""


class Catalog:
    """lm-eval's index, and those of folders of one's own; each is made once."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._managers: dict[tuple[str | None, bool], Any] = {}

    def load(self, asked: Asked) -> Found:
        """Find it and load its documents, with the few-shot count that is asked for and lm-eval's usual seeds.

        Raises :class:`UsageError` for a name that is unknown, a tag, and what lm-eval cannot build;
        :class:`NotMeasured` where the documents cannot be had.
        """
        asked.check()
        harness.require()
        with harness.silence(), harness.seeded():
            manager, spec = self._find(asked)
            self._progress.show(f"loading the documents of {asked.task}")
            found = _load(manager, spec, asked)
            for name, task in found.leaves.items():
                _set_shots(name, task, asked.num_fewshot)
                task.set_fewshot_seed(seed=harness.FEWSHOT_SEED)
        return found

    def _find(self, asked: Asked) -> tuple[Any, str]:
        """A manager that knows the task, and by which name."""
        if asked.file is not None:
            return self._for_file(asked, asked.file)
        if asked.include_path is not None:
            own = self._manager(asked.include_path, False)
            if _is_whole(own.task_index, asked.task):
                return own, asked.task
        if asked.include_path is None or asked.task not in self._manager(asked.include_path, False).task_index:
            files = self._files.get(asked.task, [])
            if len(files) == 1 and _is_task(files[0]):
                return self._manager(None, False), str(files[0])
        everything = self._manager(asked.include_path, True)
        if asked.task not in everything.task_index:
            raise _unknown(asked, list(everything.task_index))
        if everything.task_index[asked.task].kind.name == "TAG":
            tagged = sorted(everything.task_index[asked.task].tags)
            raise UsageError(
                f"{asked.task!r} is a tag of lm-eval's, which no number belongs to: name its tasks one by one "
                f"({_some(tagged)})"
            )
        return everything, asked.task

    def _for_file(self, asked: Asked, file: Path) -> tuple[Any, str]:
        """A file of a task needs no index; a group's members may be anywhere."""
        from lm_eval.tasks._index import Entry, Kind
        from lm_eval.tasks._yaml_loader import load_yaml

        try:
            config = load_yaml(file, resolve_func=False)
        except Exception as error:
            raise UsageError(f"task_accuracy(task={asked.task!r}): {_said(error)}") from error
        if "group" not in config:
            if "task" not in config:
                raise UsageError(f"task_accuracy(task={asked.task!r}): the file names no task and no group")
            return self._manager(None, False), str(file)
        name, folder = str(config["group"]), asked.include_path or str(file.parent)
        manager = self._manager(folder, False)
        if not _members_are_whole(manager.task_index, config.get("task")):
            manager = self._manager(folder, True)
        manager.task_index[name] = Entry(name=name, kind=Kind.GROUP, yaml_path=file, cfg=config)
        return manager, name

    def _manager(self, folder: str | None, defaults: bool) -> Any:
        from lm_eval.tasks import TaskManager

        key = (folder, defaults)
        if key not in self._managers:
            if defaults and folder is not None:
                made = TaskManager(include_path=folder, include_defaults=False)
                for name, entry in self._manager(None, True).task_index.items():
                    made.task_index.setdefault(name, entry)  # a name of one's own hides lm-eval's
            else:
                if defaults:
                    self._progress.show("indexing lm-eval's tasks (half a minute, once a run)")
                made = TaskManager(include_path=folder, include_defaults=defaults)
            self._managers[key] = made
        return self._managers[key]

    @cached_property
    def _files(self) -> Mapping[str, list[Path]]:
        """The files that lm-eval ships a task in, by its name. No YAML is parsed for that."""
        import lm_eval.tasks

        self._progress.show("looking through lm-eval's tasks")
        found: dict[str, list[Path]] = {}
        for file in sorted(Path(str(lm_eval.tasks.__file__)).parent.rglob("*.yaml")):
            for name in _TASK_LINE.findall(file.read_bytes()):
                found.setdefault(name.decode("utf-8", "replace"), []).append(file)
        return found


def _load(manager: Any, spec: str, asked: Asked) -> Found:
    try:
        loaded = manager.load([spec])
    except Exception as error:
        raise _not_loaded(asked, error) from error
    leaves, groups = loaded["tasks"], loaded.get("groups") or {}
    if not leaves:
        raise UsageError(f"the group {asked.task!r} has no tasks")
    nested = {name for members in (loaded.get("group_map") or {}).values() for name in members}
    top = next((group for name, group in groups.items() if name not in nested), None)
    return Found(top.name if top is not None else next(iter(leaves)), leaves, top)


def _set_shots(name: str, task: Any, asked: int | None) -> None:
    """The few-shot count as lm-eval's command line sets it; but where it would silently stay at 0, that is an error."""
    own = task.get_config("num_fewshot")
    if asked is not None and own == 0 and asked != 0:
        raise UsageError(
            f"{name} fixes its number of examples at 0, and lm-eval would ignore num_fewshot={asked}; leave it out"
        )
    if asked is not None or own is None:
        task.set_config(key="num_fewshot", value=asked or 0)


def _is_task(file: Path) -> bool:
    from lm_eval.tasks._yaml_loader import load_yaml

    return "group" not in load_yaml(file, resolve_func=False)


def _is_whole(index: Mapping[str, Any], name: str) -> bool:
    """Whether all that a name stands for is in this index; what carries a tag may always be elsewhere, too."""
    entry = index.get(name)
    if entry is None or entry.kind.name not in (*_LEAVES, "GROUP"):
        return False
    return entry.kind.name in _LEAVES or _members_are_whole(index, (entry.cfg or {}).get("task"))


def _members_are_whole(index: Mapping[str, Any], members: Any) -> bool:
    return all(_member_is_whole(index, each) for each in ([members] if isinstance(members, str) else members or ()))


def _member_is_whole(index: Mapping[str, Any], member: Any) -> bool:
    if not isinstance(member, dict):
        return _is_whole(index, str(member))
    name = str(member.get("group") or member.get("task"))
    if name in index:
        return _is_whole(index, name)
    if "group" in member:
        return _members_are_whole(index, member.get("task"))
    return "dataset_path" in member or "class" in member


def _not_loaded(asked: Asked, error: Exception) -> QuantError:
    """Why a task could not be built, from where that was raised: while it fetched its documents, once it had none, or
    otherwise."""
    downloading = _within(error, "download")
    if downloading is not None and _is_local(getattr(downloading, "config", None)):
        return NotMeasured(
            f"the documents of {asked.task} cannot be had ({_said(error)}): correct dataset_path and dataset_kwargs in "
            f"its YAML file, which name local files"
        )
    if downloading is not None:
        return NotMeasured(
            f"the documents of {asked.task} cannot be had ({_said(error)}); with a network, "
            f"`lm-eval run --tasks {asked.task} --limit 1` or datasets.load_dataset fetches them once, and from "
            f"the cache of datasets they are read without one"
        )
    documents = getattr(_within(error, "__init__"), "task_docs", None)
    if documents is not None and len(documents) == 0:
        return no_documents(asked.task)
    return UsageError(f"lm-eval cannot build the task {asked.task!r}: {_said(error)}")


def no_documents(task: str) -> UsageError:
    """Of a task that nothing can be asked from."""
    return UsageError(f"the task {task} has no documents: its test split is empty, or its process_docs leaves none")


def _within(error: BaseException, name: str) -> Any:
    """The task in a method of which it was raised; None if in none of that name."""
    from lm_eval.api.task import Task

    frame = error.__traceback__
    while frame is not None:
        task = frame.tb_frame.f_locals.get("self")
        if frame.tb_frame.f_code.co_name == name and isinstance(task, Task):
            return task
        frame = frame.tb_next
    return None


def _is_local(config: Any) -> bool:
    """Whether a task's documents are files that its config names, none of them somewhere else."""
    path = str(getattr(config, "dataset_path", None))
    files = (getattr(config, "dataset_kwargs", None) or {}).get("data_files")
    return Path(path).exists() or (files is not None and "/" not in path and "://" not in str(files))


def _unknown(asked: Asked, names: list[str]) -> UsageError:
    near = difflib.get_close_matches(asked.task, names, n=4, cutoff=0.6)
    instead = f"is it {' or '.join(near)}? " if near else ""
    who = f"lm-eval {harness.installed()} knows" + (f", with {asked.include_path}," if asked.include_path else "")
    return UsageError(
        f"{who} no task {asked.task!r}: {instead}`lm-eval ls tasks` lists all names; one of your own needs "
        f"include_path=, or the path of its YAML file"
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _said(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
