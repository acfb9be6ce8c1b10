"""What is in force and where it comes from: through `pytest-quant config`, which has pytest read its configuration."""

from __future__ import annotations

import json
import sys

import numpy  # noqa: F401  what is imported within a test is forgotten after it
import pytest

import pytest_quant.corpora.calibration
import pytest_quant.quantizing  # noqa: F401
from pytest_quant import cli
from pytest_quant.configuration import inquiry
from pytest_quant.declarations import OPTIONS
from pytest_quant.errors import UsageError
from pytest_quant.formats import registry


@pytest.fixture
def files(pytester, monkeypatch):
    """Writes files of a project."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)

    def write(**texts: str) -> None:
        for name, text in texts.items():
            stem, _, kind = name.replace("__", "/").rpartition("_")
            path = pytester.path / f"{stem}.{kind}"
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)

    return write


def rows(*arguments: str):
    return {row.option.key: row for row in inquiry.ask(["-p", "no:cacheprovider", *arguments]).rows}


def test_every_option_is_shown_with_its_default(files, pytester):
    answer = inquiry.ask([])
    assert [row.option for row in answer.rows] == list(OPTIONS)
    assert {row.origin for row in answer.rows} == {"default"}
    assert not any(row.told for row in answer.rows)
    assert (answer.rootpath, answer.inipath, answer.table) == (pytester.path, None, None)
    assert answer.problems == ()
    by_key = {row.option.key: row.value for row in answer.rows}
    assert by_key["reference"] == "fp16"
    assert by_key["confidence"] == 0.99
    assert by_key["model"] is None
    assert by_key["full"] is False


@pytest.mark.parametrize("option", [option for option in OPTIONS if option.in_files], ids=lambda option: option.key)
def test_every_option_of_files_is_read_from_the_table_and_the_ini_file(files, pytester, option):
    texts = {
        "switch": ("true", "true", True),
        "formats": ('["int8", "nf4"]', "int8,nf4", ["int8", "nf4"]),
        "conditions": ('["mig"]', "mig", ["mig"]),
        "arguments": ("{ max_model_len = 7 }", '{"max_model_len": 7}', {"max_model_len": 7}),
        "checkpoints": ('{ gptq = "a" }', "gptq=a", {"gptq": "a"}),
        "count": ("64", "64", 64),
        "amount": ("2.5", "2.5", 2.5),
        "share": ("0.9", "0.9", 0.9),
        "reference": ('"bf16"', "bf16", "bf16"),
        "protocol": ('"gptq-64"', "gptq-64", "gptq-64"),
        "map": ('"auto"', "auto", "auto"),
        "engine": ('"vllm"', "vllm", "vllm"),
        "matrix": ('"lesson"', "lesson", "lesson"),
        "word": (f'"{(option.choices or ("",))[-1]}"', (option.choices or ("",))[-1], (option.choices or ("",))[-1]),
    }
    if option.kind == "folder":
        (pytester.path / "wikitext2").mkdir()
    toml, text, value = texts.get(option.kind, ('"wikitext2"', "wikitext2", "wikitext2"))
    files(pyproject_toml=f"[tool.pytest-quant]\n{option.key} = {toml}\n")
    row = rows()[option.key]
    assert (row.origin, row.told, row.problem) == ("[tool.pytest-quant]", True, None)
    assert row.value == value or str(row.value).endswith(f"/{value}")
    files(pyproject_toml="", pytest_ini=f"[pytest]\n{option.ini} = {text}\n")
    again = rows()[option.key]
    assert (again.origin, again.value, again.told) == ("[pytest]", row.value, True)


def test_who_says_it(files, monkeypatch):
    files(
        pytest_ini="[pytest]\naddopts = --quant-full --quant-price=1\nquant_engine = vllm\n",
        pyproject_toml='[tool.pytest-quant]\nformats = ["nf4"]\nprice = 9\nreference = "bf16"\n',
    )
    monkeypatch.setenv("PYTEST_ADDOPTS", "--quant-price 2 --quant-quantize")
    monkeypatch.setenv("CI", "true")
    found = rows("--quant-price=3", "-o", "quant_confidence=0.9", "-oquant_reference=fp32")
    said = {key: (row.value, row.origin) for key, row in found.items() if row.origin != "default"}
    assert said == {
        "full": (True, "addopts in pytest.ini"),
        "engine": ("vllm", "[pytest]"),
        "formats": (["nf4"], "[tool.pytest-quant]"),
        "quantize": (True, "PYTEST_ADDOPTS"),
        "price": (3.0, "command line"),
        "confidence": (0.9, "-o, command line"),
        "reference": ("fp32", "-o, command line"),
        "missing": ("fail", "CI is set"),
        "inconclusive": ("fail", "CI is set"),
    }
    assert (found["missing"].told, found["formats"].told) == (False, True)
    assert rows()["price"].origin == "PYTEST_ADDOPTS"
    monkeypatch.delenv("PYTEST_ADDOPTS")
    assert rows()["price"].origin == "addopts in pytest.ini"
    assert rows("-o", "addopts=--quant-price=4")["price"].origin == "addopts of -o"


@pytest.mark.skipif(pytest.version_tuple < (9, 0), reason="older versions of pytest hear no -o in addopts")
def test_an_override_in_addopts(files):
    files(pytest_ini="[pytest]\naddopts = -o quant_protocol=gptq-64\n")
    assert (rows()["protocol"].value, rows()["protocol"].origin) == ("gptq-64", "-o, addopts in pytest.ini")


def test_an_empty_override_takes_the_default_back(files):
    files(pyproject_toml='[tool.pytest-quant]\nmax-windows = 64\nprotocol = "gptq-64"\nfull = true\n')
    found = rows("-o", "quant_max_windows=", "-o", "quant_protocol=", "-o", "quant_full=false")
    assert (found["max-windows"].value, found["protocol"].value, found["full"].value) == (None, "gptq-2048", False)
    assert found["max-windows"].origin == "-o, command line"


@pytest.mark.parametrize(
    "name, text, section",
    [
        ("pytest_ini", "[pytest]\nquant_formats = int8 nf4\nquant_full = true\n", "[pytest]"),
        ("tox_ini", "[pytest]\nquant_formats = int8, nf4\nquant_full = yes\n", "[pytest]"),
        ("setup_cfg", "[tool:pytest]\nquant_formats = int8,nf4\nquant_full = 1\n", "[tool:pytest]"),
        (
            "pyproject_toml",
            '[tool.pytest.ini_options]\nquant_formats = "int8,nf4"\nquant_full = true\nquant_max_windows = 64\n',
            "[tool.pytest.ini_options]",
        ),
        (
            "pyproject_toml",
            '[tool.pytest.ini_options]\nquant_formats = ["int8", "nf4"]\nquant_full = "true"\n',
            "[tool.pytest.ini_options]",
        ),
    ],
)
def test_every_ini_file_of_pytest(files, name, text, section):
    files(
        **{
            name: text
            + ("" if "max_windows" in text else f"quant_max_windows = {'64' if 'toml' not in name else 64}\n")
        }
    )
    found = rows()
    assert {found[key].origin for key in ("formats", "full", "max-windows")} == {section}
    assert (found["formats"].value, found["full"].value, found["max-windows"].value) == (["int8", "nf4"], True, 64)


@pytest.mark.skipif(pytest.version_tuple < (9, 2), reason="needs pytest 9.2, which knows types of several kinds")
@pytest.mark.parametrize("name, section", [("pyproject_toml", "[tool.pytest]"), ("pytest_toml", "[pytest]")])
def test_native_tables_of_pytest(files, name, section):
    files(
        **{
            name: f'{section}\nquant_formats = ["int8", "nf4"]\nquant_full = true\nquant_max_windows = 64\n'
            'quant_price = 2.5\nquant_confidence = 0.9\nquant_checkpoints = ["gptq=a"]\nquant_reference = "fp32"\n'
        }
    )
    found = {key: row for key, row in rows().items() if row.told}
    assert {row.origin for row in found.values()} == {section}
    assert {key: row.value for key, row in found.items()} == {
        "formats": ["int8", "nf4"],
        "full": True,
        "max-windows": 64,
        "price": 2.5,
        "confidence": 0.9,
        "checkpoints": {"gptq": "a"},
        "reference": "fp32",
    }


def test_said_in_two_files(files, pytester):
    files(
        pytest_ini="[pytest]\nquant_price = 2\nquant_engine =\n",
        pyproject_toml='[tool.pytest-quant]\nprice = 2\nengine = "vllm"\n',
    )
    answer = inquiry.ask([])
    assert answer.problems == (
        f"quant_price in {pytester.path}/pytest.ini and price in [tool.pytest-quant] of "
        f"{pytester.path}/pyproject.toml are one option: leave out one of them",
    )
    assert rows()["engine"].value == "vllm"  # which the ini file leaves empty
    assert rows("-o", "quant_price=3")["price"].value == 3.0


def test_which_file_is_read(files, pytester):
    files(
        pyproject_toml="[tool.pytest-quant]\nprice = 1\n",
        ci__ci_toml="[tool.pytest-quant]\nprice = 2\nbaseline-path = 'here'\n",
        ci__pyproject_toml="[tool.pytest-quant]\nprice = 3\n",
        ci__test_a_py="",
        other_ini="[pytest]\n",
    )
    assert rows()["price"].value == 1.0
    assert rows("-c", "other.ini")["price"].value == 1.0
    found = rows("-c", "ci/ci.toml")
    assert (found["price"].value, found["price"].file) == (2.0, pytester.path / "ci" / "ci.toml")
    assert found["baseline-path"].value == str(pytester.path / "ci" / "here")
    elsewhere = rows("-c", "ci/ci.toml", "--rootdir=.")
    assert elsewhere["baseline-path"].value == str(pytester.path / "ci" / "here")
    assert rows("ci/test_a.py")["price"].value == 3.0
    assert rows("--rootdir=ci")["price"].value == 1.0  # pytest reads its ini file from here too
    assert rows("-c", "/dev/null")["price"].value is None
    assert inquiry.ask(["-c", "/dev/null"]).table is None


def test_formats_of_the_conftest_are_known(files):
    files(
        pyproject_toml='[tool.pytest-quant]\nformats = ["nf4-plain"]\n',
        conftest_py="from pytest_quant.formats import variant\n\n\ndef pytest_quant_formats():\n"
        '    return [variant("nf4", "nf4-plain", bnb_4bit_use_double_quant=False)]\n',
    )
    assert rows()["formats"].value == ["nf4-plain"]
    assert "nf4-plain" not in registry.formats()


def test_no_test_is_imported_and_nothing_is_printed(files, capfd):
    files(
        conftest_py="print('hello')\n",
        test_a_py="raise SystemExit(3)\n",
        pyproject_toml="[tool.pytest.ini_options]\nfilterwarnings = ['error']\n",
    )
    assert rows()["price"].value is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--nope"], "unrecognized arguments: --nope"),
        (["-p", "no:quant"], "the plugin is not loaded in this run: -p no:quant or"),
        (["-c", "none.toml"], "none.toml"),
    ],
)
def test_where_pytest_gives_up(files, arguments, said):
    with pytest.raises(UsageError) as wrong:
        inquiry.ask(arguments)
    assert str(wrong.value).startswith("pytest does not get as far as the plugin's options: ")
    assert said in str(wrong.value)
    assert "usage:" not in str(wrong.value)
    assert "\n" not in str(wrong.value)


@pytest.mark.parametrize(
    "content, said",
    [
        (b"tool = 3\n", "pyproject.toml: tool must be a table"),
        (b"x = '\xff'\n", "pyproject.toml: cannot be read: 'utf-8' codec can't decode"),
    ],
)
def test_a_file_that_pytest_cannot_read_is_named(files, pytester, content, said):
    (pytester.path / "pyproject.toml").write_bytes(content)
    with pytest.raises(UsageError) as wrong:
        inquiry.ask([])
    assert said in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_conftest_that_ends_the_program_is_told(files):
    files(conftest_py="import sys\nsys.exit(3)\n")
    with pytest.raises(UsageError, match=r"ends it by sys\.exit\(3\)"):
        inquiry.ask([])


def test_a_value_that_json_has_not_is_told_in_its_problem(files, capsys):
    files(pyproject_toml="[tool.pytest-quant]\nprice = 2026-01-01\nmax-windows = 1e400\n")
    assert cli.main(["config", "--json"]) == 2
    found = json.loads(capsys.readouterr().out)
    rows = {row["option"]: row for row in found["options"]}
    assert rows["quant-price"]["value"] == "2026-01-01"
    assert "price = 2026-01-01: must be a number" in rows["quant-price"]["problem"]
    assert rows["quant-max-windows"]["value"] == "inf"


def test_a_file_where_baselines_would_lie_matters_where_they_are_used(files, pytester):
    (pytester.path / "quant-baselines").write_text("")
    assert inquiry.ask([]).problems == ()
    assert inquiry.ask(["--quant-baseline"]).problems == (
        "quant-baseline-path=quant-baselines: this is a file; name a folder",
    )


def test_a_conftest_that_cannot_be_imported_is_named(files):
    files(conftest_py="raise ValueError('broken')\n")
    with pytest.raises(UsageError, match=r"ImportError while loading conftest .*conftest\.py.*broken"):
        inquiry.ask([])


def test_the_command_prints_a_table(files, capsys):
    files(pyproject_toml='[tool.pytest-quant]\nformats = ["nf4", "int8"]\nengine-args = { max_model_len = 5 }\n')
    assert cli.main(["config", "--", "--quant-full", "--quant-baseline-path=base"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    shown = [" ".join(line.split()) for line in out.splitlines()]
    assert shown[1:3] == ["pytest's ini file: pyproject.toml", "[tool.pytest-quant]: pyproject.toml"]
    assert "* formats nf4, int8 pyproject.toml [tool.pytest-quant]" in shown
    assert "* engine-args max_model_len=5 pyproject.toml [tool.pytest-quant]" in shown
    assert "* full on command line" in shown
    assert "* baseline-path base command line" in shown
    assert "reference fp16 default" in shown
    assert "device-map (the first device) default" in shown
    assert sum(line.count("markers win") for line in shown) == 1
    assert {option.key for option in OPTIONS} <= {word for line in shown for word in line.split()[:2]}


def test_the_command_prints_json(files, capsys, pytester):
    files(pyproject_toml='[tool.pytest-quant]\nformats = ["nf4"]\n')
    assert cli.main(["config", "--json", "--", "--quant-full"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["schema"], told["exit_code"], told["problems"]) == (1, 0, [])
    assert told["rootdir"] == str(pytester.path)
    assert told["table_file"] == told["ini_file"] == str(pytester.path / "pyproject.toml")
    by_name = {each["option"]: each for each in told["options"]}
    assert list(by_name) == [option.name for option in OPTIONS]
    assert by_name["quant-formats"] == {
        "option": "quant-formats",
        "group": "tested",
        "value": ["nf4"],
        "origin": "[tool.pytest-quant]",
        "file": str(pytester.path / "pyproject.toml"),
        "told": True,
        "flag": "--quant-formats",
        "ini": "quant_formats",
        "key": "formats",
    }
    assert by_name["quant-full"]["value"] is True
    assert "value" not in by_name["quant-price"]
    assert not {"ini", "key"} & by_name["quant-plan"].keys()


def test_all_mistakes_are_said(files, capsys, pytester):
    files(
        pytest_ini="[pytest]\nquant_full = perhaps\nquant_confidence = 7\n",
        pyproject_toml='[tool.pytest-quant]\nformats = ["int9"]\nmax-windows = "64"\nprise = 3\n',
    )
    arguments = ["config", "--", "--quant-price=none", "--quant-device=H100"]
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    said = err.splitlines()
    assert all(line.startswith("pytest-quant: ") for line in said)
    assert len(said) == 7
    for part in (
        "prise: there is no such key; did you mean price?",
        "quant_full in",
        "invalid truth value 'perhaps'",
        "quant_confidence in",
        "unknown format 'int9'",
        'max-windows = "64": must be a whole number without quotes',
        "--quant-price=none: must be a number above 0",
        "--quant-device goes with --quant-plan",
    ):
        assert part in err, part
    marked = [line.split()[1] for line in out.splitlines() if line.startswith("! ")]
    assert sorted(marked) == ["confidence", "device", "formats", "full", "max-windows", "price"]
    assert cli.main(["config", "--json", *arguments[1:]]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["exit_code"], len(told["problems"])) == (2, 7)


def test_as_a_program(files, pytester):
    files(pyproject_toml="[tool.pytest-quant]\nprice = 2\n")
    result = pytester.run(sys.executable, "-m", "pytest_quant", "config", "--", "--quant-full", "-W", "error")
    assert result.ret == 0
    result.stdout.re_match_lines([r"\* full +on +command line", r"\* price +2 +pyproject.toml \[tool.pytest-quant\]"])
    assert result.stderr.str() == ""
