"""What is declared to pytest at every start is what the rooms behind it know."""

from __future__ import annotations

import re
from dataclasses import fields

from pytest_quant import declarations, markers
from pytest_quant.formats import registry


def test_the_formats_are_those_of_the_registry():
    assert tuple(registry.FORMATS) == declarations.FORMATS


def test_the_markers_help_names_the_arguments_of_their_schemas():
    schemas = {"quant": markers.Quant, **markers.GATES}
    assert set(schemas) | set(declarations.LATER) == set(declarations.MARKERS)
    for name, schema in schemas.items():
        listed = re.match(r"\((.*?)\)", declarations.MARKERS[name])
        assert listed is not None
        assert listed[1].split(", ") == [field.name for field in fields(schema)]


def test_each_format_has_a_fixture(pytestconfig):
    from pytest_quant import fixtures

    for name in declarations.FORMAT_FIXTURES:
        assert hasattr(fixtures, name)
