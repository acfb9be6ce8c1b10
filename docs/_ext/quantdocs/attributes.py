"""The docstrings that stand behind attributes, which Python itself forgets."""

from __future__ import annotations

from functools import cache

from sphinx.pycode import ModuleAnalyzer


def docstring(cls: type, name: str) -> str:
    """What is said of a class's attribute, in the class or one that it extends; empty where nothing is."""
    for each in cls.__mro__:
        if each.__module__ != "builtins" and (found := _of_module(each.__module__).get((each.__qualname__, name))):
            return found
    return ""


@cache
def _of_module(module: str) -> dict[tuple[str, str], str]:
    found = ModuleAnalyzer.for_module(module).find_attr_docs()
    return {key: " ".join(line.strip() for line in lines).strip() for key, lines in found.items()}
