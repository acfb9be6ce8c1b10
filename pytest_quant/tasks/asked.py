"""What a gate asks of a task."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from pytest_quant.errors import UsageError
from pytest_quant.gates.gate import Gate


@dataclass(frozen=True)
class Asked:
    """A task as lm-eval's command line is asked for one; ``None`` is the task's own."""

    task: str
    """A name of lm-eval's or of ``include_path``, or the path of a YAML file."""
    num_fewshot: int | None = None
    limit: int | None = None
    """Only so many documents of each task, the first; None: all."""
    metric: str | None = None
    filter: str | None = None
    apply_chat_template: bool = False
    fewshot_as_multiturn: bool = False
    system_instruction: str | None = None
    include_path: str | None = None

    @classmethod
    def of(cls, gate: Gate, folder: Path | None = None) -> Asked:
        """What a ``task_accuracy`` gate asks; its tasks are also looked for in ``folder``, if it names no other.
        :class:`UsageError` where that is none."""
        found = cls(**dict(gate.parameters))
        if found.include_path or folder is None:
            return found
        if not folder.is_dir():
            raise UsageError(f"quant_tasks={folder} is no folder: name the one with the tasks' YAML files")
        return replace(found, include_path=str(folder))

    @property
    def file(self) -> Path | None:
        """The YAML file, if that is what ``task`` names."""
        return Path(self.task) if self.task.endswith((".yaml", ".yml")) else None

    def check(self) -> None:
        """:class:`UsageError` for what contradicts itself or names no folder or file."""
        if self.fewshot_as_multiturn and not self.apply_chat_template:
            raise UsageError("task_accuracy(fewshot_as_multiturn=True) needs apply_chat_template=True beside it")
        if self.include_path is not None and not Path(self.include_path).is_dir():
            raise UsageError(
                f"task_accuracy(include_path={self.include_path!r}) is no folder: name the one with the tasks' YAML "
                f"files"
            )
        if self.file is not None and not self.file.is_file():
            raise UsageError(f"task_accuracy(task={self.task!r}): there is no such file")
