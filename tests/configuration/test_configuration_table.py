"""The table [tool.pytest-quant]: which file has it, its keys, and what is wrong with them."""

from __future__ import annotations

import pytest

from pytest_quant.configuration import table


@pytest.fixture
def written(tmp_path):
    """The table of a pyproject.toml with this text."""

    def write(text: str):
        (tmp_path / "pyproject.toml").write_text(text)
        return table.read(tmp_path / "pyproject.toml")

    return write


def test_keys_are_written_with_dashes_or_underscores(written):
    found = written("[tool.pytest-quant]\nmax-windows = 64\nspeed_budget = 2.5\nfull = true\n")
    assert found.found
    assert found.written == {
        "quant-max-windows": ("max-windows", 64),
        "quant-speed-budget": ("speed_budget", 2.5),
        "quant-full": ("full", True),
    }
    assert found.problems == ()


def test_tables_within_the_table(written):
    found = written('[tool.pytest-quant]\nchekpoints = {}\n[tool.pytest-quant.checkpoints]\ngptq = "a"\n')
    assert found.written == {"quant-checkpoints": ("checkpoints", {"gptq": "a"})}
    assert [problem.rpartition(": ")[2] for problem in found.problems] == [
        "there is no such key; did you mean checkpoints?"
    ]


@pytest.mark.parametrize(
    "text, said",
    [
        ("[tool.pytest-quant]\nformat = 1", "format: there is no such key; did you mean formats?"),
        ("[tool.pytest-quant]\nquant_formats = 1", "quant_formats: keys are without quant: write formats"),
        ("[tool.pytest-quant]\nquant-max-windows = 1", "keys are without quant: write max-windows"),
        ("[tool.pytest-quant]\nreport = 'a.html'", "report: is said on the command line only: --quant-report"),
        ("[tool.pytest-quant]\nbaseline = true", "baseline: is said on the command line only: --quant-baseline"),
        ("[tool.pytest-quant]\nzzz = 1", "zzz: there is no such key; there are model, revision, trust-remote-code,"),
        ("[tool.pytest-quant]\nmax-windows = 2\nmax_windows = 3", "both max-windows and max_windows, which are one"),
        ("[tool.pytest_quant]\nformats = []", "[tool.pytest_quant]: the table is called [tool.pytest-quant]"),
        ("[tool]\npytest-quant = 3", "tool.pytest-quant must be a table: write [tool.pytest-quant]"),
        ("[tool.pytest-quant", "cannot be read: "),
    ],
)
def test_each_mistake_names_the_file_and_what_to_do(written, tmp_path, text, said):
    (problem,) = written(text).problems
    assert problem.startswith(str(tmp_path / "pyproject.toml"))
    assert said in problem


def test_what_is_no_text_is_no_crash(tmp_path):
    (tmp_path / "pyproject.toml").write_bytes(b"\xff\xfe")
    (problem,) = table.read(tmp_path / "pyproject.toml").problems
    assert "cannot be read" in problem


def test_no_file_and_no_table_are_nothing(written, tmp_path):
    assert table.read(tmp_path / "other.toml") == table.Table(tmp_path / "other.toml")
    found = written("tool = 3\n")
    assert (found.found, found.written, found.problems) == (False, {}, ())


@pytest.mark.parametrize(
    "ini, file",
    [
        (None, "pyproject.toml"),
        ("pytest.ini", "pyproject.toml"),
        ("tox.ini", "pyproject.toml"),
        ("setup.cfg", "pyproject.toml"),
        ("pytest.toml", "pyproject.toml"),
        ("sub/pyproject.toml", "sub/pyproject.toml"),
        ("ci/ci.toml", "ci/ci.toml"),
        ("not-there", "not-there"),  # as /dev/null, by which -c asks for no configuration
    ],
)
def test_which_file_has_it(tmp_path, ini, file):
    if ini is not None and ini != "not-there":
        (tmp_path / ini).parent.mkdir(exist_ok=True)
        (tmp_path / ini).write_text("")
    assert table.file_of(tmp_path, ini and tmp_path / ini) == tmp_path / file
