"""A library that is missing is a skip with its three parts, for every built-in backend; and what they tell to install
is there to be installed."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from pytest_quant.formats import registry
from pytest_quant.formats.backend import Backend, missing_packages

BACKENDS = registry._built_in()
EACH = [(backend, Requirement(text)) for backend in BACKENDS for text in backend.requires]
PYPROJECT = Path(__file__).parent.parent.parent / "pyproject.toml"


def pretend(monkeypatch: pytest.MonkeyPatch, name: str, found: str | None) -> None:
    """As if all libraries were there and new, but this one not at all (``None``) or in that version."""

    def answer(distribution: str) -> str:
        if distribution != name:
            return "0.18.5" if distribution == "kernels" else "99"
        if found is None:
            raise PackageNotFoundError(name)
        return found

    monkeypatch.setattr("pytest_quant.formats.backend.version", answer)


@pytest.mark.parametrize(("backend", "requirement"), EACH, ids=[f"{b.name}-{r.name}" for b, r in EACH])
def test_each_library_of_each_backend(backend: Backend, requirement: Requirement, monkeypatch) -> None:
    pretend(monkeypatch, requirement.name, None)
    for format in backend.formats:
        skip = missing_packages(format, backend)
        assert skip is not None
        assert skip.asked == f"the format {format.name} (backend {backend.name})"
        assert skip.found == f"{requirement.name} not installed"
        assert skip.needed == f"pip install {backend.install}"
        assert str(skip) == f"asked: {skip.asked}; found: {skip.found}; needed: {skip.needed}"


@pytest.mark.parametrize(
    ("backend", "requirement"),
    [(backend, requirement) for backend, requirement in EACH if requirement.specifier],
    ids=[f"{b.name}-{r.name}" for b, r in EACH if r.specifier],
)
def test_each_library_that_is_too_old(backend: Backend, requirement: Requirement, monkeypatch) -> None:
    pretend(monkeypatch, requirement.name, "0.0.1")
    skip = missing_packages(backend.formats[0], backend)
    assert skip is not None
    assert skip.found == f"{requirement.name} 0.0.1, not {requirement.specifier}"


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_with_all_of_them_there_is_no_skip(backend: Backend, monkeypatch) -> None:
    pretend(monkeypatch, "nothing", None)
    assert all(missing_packages(format, backend) is None for format in backend.formats)


@pytest.fixture(scope="module")
def extras() -> dict[str, list[str]]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    found: dict[str, list[str]] = toml.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    return found


def expanded(texts: Iterable[str], extras: dict[str, list[str]]) -> dict[str, Requirement]:
    """All that these requirements bring, ours unfolded, by name."""
    brought: dict[str, Requirement] = {}
    for text in texts:
        requirement = Requirement(text)
        if requirement.name != "pytest-quant":
            brought[requirement.name] = requirement
        for extra in requirement.extras if requirement.name == "pytest-quant" else ():
            assert extra in extras, f"pytest-quant[{extra}] is no extra of pyproject.toml"
            brought |= expanded(extras[extra], extras)
    return brought


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_what_a_backend_tells_to_install_brings_what_it_requires(backend: Backend, extras) -> None:
    words = shlex.split(backend.install.partition(" (")[0])
    brought = expanded((word for word in words if not word.startswith("-")), extras)
    for text in backend.requires:
        wanted = Requirement(text)
        assert wanted.name in brought, f"pip install {backend.install} does not bring {wanted.name}"
        floors = [clause.version for clause in wanted.specifier if clause.operator == ">="]
        given = {clause.version for clause in brought[wanted.name].specifier if clause.operator == ">="}
        assert set(floors) <= given, f"{brought[wanted.name]} may bring less than {wanted}"


@pytest.mark.parametrize(
    ("format", "distribution", "install"),
    [("int4@quanto", "optimum-quanto", "quanto"), ("int4-unpacked", "torchao", "torchao")],
)
def test_end_to_end(project: Any, monkeypatch, format: str, distribution: str, install: str) -> None:
    def answer(name: str) -> str:
        if name == distribution:
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr("pytest_quant.formats.backend.version", answer)
    project.test(
        f"""
        import pytest

        @pytest.mark.quant(formats=[{format!r}])
        @pytest.mark.memory_budget(max_gb=1)
        def test_it(quant_model): ...
        """
    )
    result, record = project.record("-rs")
    result.assert_outcomes(skipped=1)
    (skip,) = record["skipped"]
    backend = registry.backend(registry.get(format)).name
    said = (
        f"{format}: asked: the format {format} (backend {backend}); found: {distribution} not installed; "
        f"needed: pip install 'pytest-quant[{install}]'"
    )
    assert skip["reason"].startswith(said)
