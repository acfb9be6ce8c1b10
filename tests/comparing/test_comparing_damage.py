"""Run records that somebody or something has changed: a comparison, or one line that says where."""

from __future__ import annotations

import copy
import io
import json
import random
import subprocess
import sys

import pytest
from comparing_examples import MODEL, command, measured, put, quality, run, speed, weights

STRANGE = [None, 0, -1, 2.0, 1e308, 5e-324, "", [], {}, "x", [None], {"a": 1}, True, float("nan"), float("inf"),
           10**400, [[1]], "\ud800", -0.0]  # fmt: skip
MANY = 400


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """A folder of baselines, a sound record as data, and where to write a changed one."""
    folder = tmp_path_factory.mktemp("damage")
    old = put(folder / "old", quality(), speed(), weights())
    timed = {
        "parameters": {"phase": "decode", "price": 2.0},
        "rounds": {"played": 5},
        "conditions": [{"name": "cpu-load", "text": "other programs used 40% of the CPU"}],
    }
    records = [
        measured(),
        gate("throughput_ratio", 1.5, speed(), low=1.45, high=1.55, **timed),
        gate("memory_budget", 1e9, weights(), parameters={"of": "weights"}),
        {
            "test": "test_it.py::test_it[int8]",
            "metric": "memory_budget",
            "model": MODEL,
            "format": "int8",
            "limit": {},
            "parameters": {"of": "weights"},
            "verdict": "not-measured",
            "reason": "it did not fit",
        },
    ]
    sound = run(folder / "sound.json", *records, skipped=[{"test": "test_it.py::test_it[fp8]", "reason": "no"}])
    return old, json.loads(sound.read_text()), folder / "changed.json"


def gate(metric, value, entry, **more):
    found = {"test": "t", "metric": metric, "model": MODEL, "format": "nf4", "engine": "transformers", "value": value}
    return {**found, "unit": entry.unit, "limit": {}, "verdict": "passed", "identity": dict(entry.identity), **more}


def places(data, before=()):
    for name in data if isinstance(data, dict) else range(len(data)) if isinstance(data, list) else ():
        yield (*before, name)
        yield from places(data[name], (*before, name))


def changed(data, place, value):
    data = copy.deepcopy(data)
    inner = data
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return json.dumps(data)


def judged(capfd, *arguments):
    """The exit code; what is printed to it can be encoded."""
    code = command(*arguments)
    printed = capfd.readouterr()
    assert code in (0, 1, 2)
    if code == 2 and not printed.out:
        assert printed.err.startswith("pytest-quant: ")
        assert printed.err.count("\n") == 1
    return code, printed


def test_whatever_is_changed_it_is_judged_or_refused(sides, capfd):
    old, data, path = sides
    chance = random.Random(0)
    everywhere = list(places(data))
    refused = 0
    for _ in range(MANY):
        path.write_text(changed(data, chance.choice(everywhere), chance.choice(STRANGE)))
        both = [("compare", old, path, "--fail"), ("compare", path, old, "--json")]
        code, printed = judged(capfd, *chance.choice(both))
        refused += code == 2 and not printed.out
    assert MANY / 4 < refused < MANY, "some of these matter, some do not"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("measurements", 0, "value"), 10**400, "measurements[0].value: found NaN, infinity or a number of hundreds"),
        (("measurements", 0, "scores", 3), float("nan"), "measurements[0].scores[3]: found NaN"),
        (("measurements", 0, "alpha"), 0, "measurements[0].alpha: found 0.0, expected a share between 0 and 1"),
        (("measurements", 0, "alpha"), 1.0, "measurements[0].alpha: found 1.0, expected a share"),
        (("measurements", 1, "parameters", "phase"), ["decode"], "measurements[1].parameters.phase: found"),
        (("environment", "started"), 3, "environment.started: found '3', expected a string"),
        (("environment", "commit"), ["a"], "environment.commit: found"),
        (("environment", "packages"), "torch", "environment.packages: found 'torch', expected an object"),
        (("measurements", 0, "model"), "\ud800", r"measurements[0].model: found '\ud800', expected text"),
    ],
    ids=lambda told: None if isinstance(told, (str, tuple)) else "",
)
def test_what_cannot_be_believed_is_refused_in_one_line(sides, capfd, place, value, said):
    old, data, path = sides
    path.write_text(changed(data, place, value))
    for arguments in (("compare", old, path), ("compare", path, old, "--json")):
        code, printed = judged(capfd, *arguments)
        assert code == 2
        if "--json" in arguments:
            assert said in json.loads(printed.out)["error"]
        else:
            assert printed.out == ""
        assert f"{path}: {said}" in printed.err


def test_too_deep_a_record_is_refused(sides, capfd):
    old, data, path = sides
    deep = "[" * 900 + "]" * 900
    path.write_text(json.dumps({**data, "more": 0}).replace('"more": 0', f'"more": {deep}'))
    assert judged(capfd, "compare", old, path)[0] in (0, 2)


def test_a_baseline_of_strange_parameters_is_shown(tmp_path, capfd):
    strange = [{"phase": ["decode"], "new_tokens": 3, "price": "2"}, {"prompts": 3}]
    metrics = ["cost_ratio", "generation_match"]
    entries = []
    for metric, parameters in zip(metrics, strange, strict=True):
        entry = quality() if metric == "generation_match" else speed()
        identity = {**entry.identity, "metric": {"name": metric, **parameters}}
        entries.append(type(entry)(metric, "nf4", identity, 1.0, entry.unit))
    assert command("baseline", "show", put(tmp_path / "strange", *entries)) == 0
    assert "$2" in capfd.readouterr().out


def test_head_is_no_error(tmp_path):
    """A reader that goes early, as `| head` does."""
    place = put(tmp_path / "old", quality())
    running = subprocess.Popen(
        [sys.executable, "-m", "pytest_quant", "baseline", "show", str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert isinstance(running.stdout, io.BufferedReader)
    running.stdout.close()
    assert running.stderr is not None
    assert running.stderr.read() == b""
    assert running.wait() == 141
