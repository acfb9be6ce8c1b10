"""What is declared to pytest at every start is what the rooms behind it know."""

from __future__ import annotations

import re
from dataclasses import fields

from pytest_quant import declarations, markers, schemas
from pytest_quant.formats import registry
from pytest_quant.gates.gate import LIMITS


def test_the_formats_are_those_of_the_registry():
    assert {name for name in registry.formats() if "@" not in name} == set(declarations.FORMATS)


def test_the_markers_help_names_the_arguments_of_their_schemas():
    known = {"quant": schemas.Quant, **schemas.GATES}
    assert set(known) == set(declarations.MARKERS)
    for name, schema in known.items():
        listed = re.match(r"\((.*?)\)", declarations.MARKERS[name])
        assert listed is not None
        assert sorted(listed[1].split(", ")) == sorted(field.name for field in fields(schema))


def test_the_markers_help_of_pytest_names_every_argument(pytester):
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--markers")
    lines = dict(re.findall(r"^@pytest\.mark\.(\w+)(\(.*)$", result.stdout.str(), re.MULTILINE))
    for name, schema in {"quant": schemas.Quant, **markers.GATES}.items():
        for field in fields(schema):
            assert re.search(rf"\b{field.name}\b", lines[name].partition(")")[0]), f"{name}: {field.name}"


def test_each_limit_is_an_argument_of_its_marker():
    assert set(LIMITS) == set(markers.GATES)
    for metric, kinds in LIMITS.items():
        assert {*kinds, "min_effect"} <= {field.name for field in fields(markers.GATES[metric])}


def test_each_format_has_a_fixture(pytestconfig):
    from pytest_quant import fixtures

    for name in declarations.FORMAT_FIXTURES:
        assert hasattr(fixtures, name)
