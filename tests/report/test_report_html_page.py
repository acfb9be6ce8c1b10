"""The page as a file."""

from __future__ import annotations

import html.parser
import json
import re
from itertools import pairwise

import pytest
from run_records import HOSTILE, empty, failing, history, hostile, recorded

from pytest_quant import cli
from pytest_quant.report.html import libraries, page
from pytest_quant.report.markdown import COMMENT

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")


class Elements(html.parser.HTMLParser):
    """What a browser would make of a text: its elements with their attributes."""

    def __init__(self, text):
        super().__init__()
        self.found = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def hostile_page():
    return page.render([hostile()], history(model=HOSTILE))


def test_the_same_record_gives_the_same_bytes():
    assert page.render([failing()], history()) == page.render([failing()], history())


def test_nothing_is_loaded_from_anywhere(hostile_page):
    for tag, attributes in Elements(hostile_page).found:
        assert tag not in ("link", "img", "iframe", "object", "embed", "image", "use", "base")
        assert not {"src", "srcset", "xlink:href", "style", "background"} & attributes.keys()
        assert not [name for name in attributes if name.startswith("on")]
        assert attributes.get("href", "#").startswith("#")
    assert "@import" not in hostile_page
    assert not re.search(r"url\((?!#)", hostile_page)


def test_the_policy_names_the_style_and_the_script(hostile_page):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', hostile_page)[1]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert hostile_page.count("<script") == hostile_page.count("<style") == 1


def test_hostile_names_stay_text(hostile_page):
    assert "<img" not in hostile_page
    assert "&lt;img src=x onerror=" in hostile_page


def test_characters_that_turn_text_around_or_break_a_drawing_are_made_visible(hostile_page):
    assert "\u202e" not in hostile_page
    assert "\\u202emirror" in hostile_page
    record = recorded()
    for measurement in record["measurements"]:
        measurement["model"] = "a\x01b\ud800c"
    record["measurements"][0]["model"] = "another"  # so that titles of drawings name it
    assert "a\\u0001b\\ud800c" in page.render([record]).encode("utf-8").decode("utf-8")


def test_ids_are_there_once_and_links_lead_somewhere():
    elements = Elements(page.render([failing()], history())).found
    ids = [attributes["id"] for _, attributes in elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {attributes["href"].removeprefix("#") for tag, attributes in elements if tag == "a"}
    assert targets <= set(ids)
    named = " ".join(a.get("aria-labelledby", "") + " " + a.get("aria-describedby", "") for _, a in elements).split()
    assert set(named) <= set(ids)


def test_headings_are_in_order():
    for record in (failing(), empty()):
        levels = [int(tag[1]) for tag, _ in Elements(page.render([record])).found if re.fullmatch(r"h\d", tag)]
        assert levels[0] == 1
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))


def test_a_usual_page_is_small():
    assert len(page.render([failing()], history()).encode()) < 600_000


def test_an_empty_run_and_an_interrupted_one():
    nothing = page.render([empty()])
    assert "Nothing was measured" in nothing
    assert "<h1>All" not in nothing
    assert "<strong>Interrupted.</strong>" in page.render([{**recorded(), "incomplete": True}])


def written(tmp_path, record, name="run.json"):
    (tmp_path / name).write_text(json.dumps(record))
    return str(tmp_path / name)


def test_the_command_writes_a_page(tmp_path, capsys):
    target = tmp_path / "sub" / "page.html"
    assert cli.main(["report", written(tmp_path, recorded()), "-o", str(target), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == 1
    assert told["bytes"] == target.stat().st_size
    assert told["measurements"] == 14
    assert [each.name for each in target.parent.iterdir()] == ["page.html"]


def test_the_command_joins_shards(tmp_path, capsys):
    other = recorded()
    other["environment"]["hardware"] |= {"name": "A GPU", "key": "a-gpu"}
    places = [written(tmp_path, recorded(), "1.json"), written(tmp_path, other, "2.json")]
    assert cli.main(["report", *places, "-o", str(tmp_path / "all.html")]) == 0
    text = (tmp_path / "all.html").read_text(encoding="utf-8")
    assert "on <bdi>A GPU</bdi>" in text
    assert "on <bdi>AMD EPYC, 2 cores</bdi>" in text
    assert "Of 14 gates none is broken" in text


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "no run record"),
        ("[]", "no run record"),
        ('{"environment": {"hardware": {}}, "schema": 2}', "newer"),
        ('{"environment": {"hardware": {}}, "schema": 1, "measurements": 3, "skipped": []}', "expected a list"),
    ],
)
def test_what_is_no_run_record_is_one_line_and_exit_code_2(tmp_path, capsys, content, said):
    (tmp_path / "run.json").write_text(content)
    target = tmp_path / "page.html"
    assert cli.main(["report", str(tmp_path / "run.json"), "-o", str(target)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not target.exists()


def test_a_record_that_the_page_cannot_show_names_the_file_and_the_place(tmp_path, capsys):
    record = recorded()
    del record["measurements"][3]["limit"]
    assert cli.main(["report", written(tmp_path, record), "-o", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.json: measurements[3]" in line


def test_what_markdown_cannot_show_is_one_line_too(tmp_path, capsys):
    record = recorded()
    record["environment"]["hardware"]["count"] = "two"
    assert cli.main(["report", written(tmp_path, record), "-o", str(tmp_path / "run.md")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.json: " in line
    assert "not as a run record is" in line
    assert not (tmp_path / "run.md").exists()


def test_markdown_of_several_records_fits_into_one_comment(tmp_path, capsys):
    record = recorded()
    record["skipped"] = [{"test": f"test_{n}", "reason": f"reason {n} {'x' * 200}"} for n in range(400)]
    places = [written(tmp_path, record, f"{n}.json") for n in range(3)]
    assert cli.main(["report", *places, "-o", str(tmp_path / "run.md")]) == 0
    text = (tmp_path / "run.md").read_bytes()
    assert 30_000 < len(text) <= COMMENT
    assert text.count(b"### ") == 3


def test_pictures_are_named_after_the_run_that_the_table_names():
    other = recorded()
    other["environment"]["hardware"] |= {"name": "A GPU", "key": "a-gpu"}
    text = page.render([recorded(), other, failing()])
    for run in ("A GPU", "AMD EPYC, 2 cores, run 1", "AMD EPYC, 2 cores, run 2"):
        assert f"on <bdi>{run}</bdi>" in text
        assert f"<bdi>Perplexity delta against weight memory, on {run}</bdi>" in text
        assert f"<bdi>Roofline of {run}</bdi>" in text
    assert ", run 3" not in text


def test_a_folder_is_no_record(tmp_path, capsys):
    assert cli.main(["report", str(tmp_path), "-o", str(tmp_path / "page.html")]) == 2
    assert "this is a folder; name a file in it" in capsys.readouterr().err


def test_what_a_picture_is_made_of_may_be_malformed_too(tmp_path, capsys):
    record = recorded()
    scan = next(each for each in record["measurements"] if each["metric"] == "layer_sensitivity")
    scan["detail"]["layers"][5]["depth"] = "deep"
    assert cli.main(["report", written(tmp_path, record), "-o", str(tmp_path / "page.html")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "not as a run record is" in line


def test_places_that_are_no_place_for_a_page(tmp_path, capsys):
    record = written(tmp_path, recorded())
    (tmp_path / "folder.html").mkdir()
    assert cli.main(["report", record, "-o", str(tmp_path / "page.pdf")]) == 2
    assert cli.main(["report", record, "-o", str(tmp_path / "folder.html")]) == 2
    assert cli.main(["report", str(tmp_path / "nowhere.json")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 3


def test_missing_libraries_are_named_with_what_installs_them(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(libraries, "find_spec", lambda name: None if name == "vl_convert" else object())
    assert cli.main(["report", written(tmp_path, recorded()), "-o", str(tmp_path / "page.html")]) == 2
    assert "needs vl_convert: pip install 'pytest-quant[report]'" in capsys.readouterr().err
