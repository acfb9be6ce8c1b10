"""docs/configuration.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from pytest_quant.configuration import table, values
from pytest_quant.configuration.said import Origin, Said
from pytest_quant.declarations import OPTIONS

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_table_of_keys_is_whole():
    shown = re.findall(r"^\| `([a-z-]+)` \|.*\| (.*)\|$", PAGE, re.MULTILINE)
    assert [key for key, _ in shown] == [option.key for option in OPTIONS if option.in_files]
    for option in OPTIONS:
        default = option.default or option.unset
        if option.in_files and default is not None and "hub" not in default and "lm-eval" not in default:
            assert default in dict(shown)[option.key], option.key
        if option.in_files and option.choices:
            assert all(f'`"{choice}"`' in PAGE for choice in option.choices)
        if not option.in_files:
            assert f"`{option.flag}`" in PAGE


def test_the_examples_are_right(tmp_path):
    blocks = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "pyproject.toml").write_text(block)
        found = table.read(tmp_path / "pyproject.toml")
        assert found.problems == ()
        assert found.written
        for option in OPTIONS:
            if option.name in found.written:
                key, value = found.written[option.name]
                assert values.read(option, Said(value, Origin("table", key, found.file), tmp_path, tmp_path))
