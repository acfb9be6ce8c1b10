"""Which tests belong together."""

from __future__ import annotations

from pytest_quant.distribution.groups import Asked, plan, xdist_group

NF4, INT8 = Asked(("nf4",)), Asked(("int8",))
SPEED = Asked(("nf4",), alone=True)


def test_tests_of_one_model_and_format_are_a_group_and_others_stand_for_themselves():
    found = plan(["a", "b", "c", "d", "e"], {"a": NF4, "b": INT8, "d": NF4})
    assert found.groups == ((0, 3), (1,))
    assert found.others == ((2,), (4,))
    assert (found.home, found.alone) == ((), ())


def test_a_test_of_two_formats_joins_their_groups_so_that_none_is_scored_twice():
    found = plan(["a", "b", "c"], {"a": NF4, "b": INT8, "c": Asked(("nf4", "int8"))})
    assert found.groups == ((0, 1, 2),)


def test_what_is_timed_is_alone_and_joins_nothing():
    found = plan(["a", "b", "c"], {"a": NF4, "b": SPEED, "c": Asked(("nf4", "int8"), alone=True)})
    assert (found.groups, found.alone) == (((0,),), (1, 2))


def test_a_timed_test_that_also_asks_for_quality_runs_where_its_format_was_scored():
    told = {"a": NF4, "b": INT8, "c": Asked(("nf4",), alone=True, shares=True)}
    found = plan(["a", "b", "c"], told)
    assert (found.home, found.groups, found.alone) == (((0,),), ((1,),), (2,))


def test_an_xdist_group_stays_together_where_xdist_says_so():
    ids = ["a@g", "b", "c@g", "d@h", "e[x@g]", "f@h"]
    assert plan(ids, {"a@g": NF4, "b": NF4}).others == ((2,), (3,), (4,), (5,))
    found = plan(ids, {"a@g": NF4, "b": NF4}, by_xdist_group=True)
    assert (found.groups, found.others) == (((0, 1, 2),), ((3, 5), (4,)))


def test_the_name_of_an_xdist_group():
    assert [xdist_group(test) for test in ("t@g", "t[a@b]", "t[a@b]@g", "t")] == ["g", None, "g", None]


def test_every_place_is_there_once():
    told = {"a": NF4, "c": SPEED, "d": Asked(("int8", "nf4")), "f": Asked(("fp8",), alone=True, shares=True), "g": INT8}
    found = plan(list("abcdefgh"), told)
    places = [p for units in (found.groups, found.home, found.others) for unit in units for p in unit]
    assert sorted([*places, *found.alone]) == list(range(8))
