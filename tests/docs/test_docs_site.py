"""The site: it builds without a warning, every page has its place, and the reference has all that the code has."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path

import pytest
from docs_blocks import blocks

pytest.importorskip("sphinx")
ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "_ext"))

import quantdocs  # noqa: E402
from quantdocs import api, attributes, commands, fixtures, markers, options, rst  # noqa: E402

from pytest_quant import cli, declarations  # noqa: E402
from pytest_quant.formats import registry  # noqa: E402
from pytest_quant.gates.verdict import Verdict  # noqa: E402
from pytest_quant.hardware import specs  # noqa: E402
from pytest_quant.schemas import GATES, Quant  # noqa: E402

INDEX = (DOCS / "index.md").read_text(encoding="utf-8")


def listed() -> list[str]:
    """The entries of all toctrees."""
    trees = [block.text for block in blocks(INDEX) if block.kind == "{toctree}"]
    return [line for tree in trees for line in tree.splitlines() if line and not line.startswith(":")]


def test_every_page_has_one_place_in_the_site_and_no_place_is_empty():
    written = {page.stem for page in DOCS.glob("*.md")} - {"index"}
    generated = {f"{quantdocs.FOLDER}/{name}" for name in quantdocs.PAGES}
    assert sorted(listed()) == sorted(written | generated)


def test_every_page_is_linked_where_github_shows_it():
    linked = set(re.findall(r"\]\(([a-z-]+)\.md\)", INDEX))
    assert linked == {page.stem for page in DOCS.glob("*.md")} - {"index"}


class _Links(HTMLParser):
    """What a page of the site refers to, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        told = dict(attributes)
        self.found += [told[name] for name in ("href", "src") if told.get(name)]
        self.anchors |= {told[name] for name in ("id", "name") if told.get(name)}


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """As ``make docs`` builds it."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-b", "html", "-d", folder / "trees"]
    built = subprocess.run([*command, DOCS, folder / "html"], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return folder / "html"


def test_the_site_builds_without_a_warning_and_its_links_lead_somewhere(site):
    pages = {page: _Links(page.read_text(encoding="utf-8")) for page in site.rglob("*.html")}
    assert len(pages) > len(listed())
    for page, links in pages.items():
        for link in links.found:
            if re.match(r"[a-z]+:", link):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path.partition("?")[0]).resolve() if path else page
            assert target.exists(), f"{page.name}: {link}"
            if anchor and target in pages:
                assert anchor in pages[target].anchors, f"{page.name}: {link}"


def test_the_site_fetches_nothing_from_elsewhere(site):
    """Fonts, scripts and pictures are its own."""
    for page in site.rglob("*.html"):
        found = re.findall(r"<(?:script|img|link)[^>]*(?:src|href)=\"(https?:[^\"]+)\"", page.read_text("utf-8"))
        assert found == [], page.name


def test_the_columns_of_the_inputs_have_names(site):
    heads = re.findall(r"<th [^>]*>(.*?)</th>", (site / "ci.html").read_text("utf-8"), re.DOTALL)
    assert heads
    assert all(re.sub(r"<[^>]*>", "", head).strip() for head in heads)


@pytest.mark.browser
def test_what_scrolls_takes_the_focus(site):
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    with playwright.sync_playwright() as opened:
        browser = opened.chromium.launch(executable_path=chromium, args=arguments)
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.goto((site / "ci.html").as_uri())
        found = page.evaluate(
            "[...document.querySelectorAll('.table-wrapper, .highlight pre')]"
            ".filter(each => each.scrollWidth > each.clientWidth).map(each => each.tabIndex)"
        )
        browser.close()
    assert found
    assert set(found) == {0}


def test_every_argument_of_every_marker_is_told():
    page = markers.page()
    for name, schema in {"quant": Quant, **GATES}.items():
        section = page.partition(f"\n{name}\n---")[2].partition("\n---")[0]
        for field in fields(schema):
            assert f"* - ``{field.name}``" in section, f"{name}({field.name}=)"
            assert attributes.docstring(schema, field.name), f"{name}({field.name}=) says nothing of itself"


def test_defaults_and_units_are_those_of_the_code():
    page = markers.page()
    assert re.search(r"\* - ``max_gb``\n     -\n     - GB\n     - At most\.", page)
    assert re.search(r"\* - ``phase``\n     - ``'decode'``\n     -\n     - .*One of ``'decode'``, ``'prefill'``", page)
    assert re.search(r"\* - ``reference``\n     - ``quant_reference``\n", page)


def test_every_option_is_told():
    page = options.page()
    for option in declarations.OPTIONS:
        told = f"option:: {option.flag}" if option.on_command_line else f"confval:: {option.ini}"
        assert re.search(rf"^\.\. {told}\b", page, re.MULTILINE)
        if option.in_files:
            assert f"ini: ``{option.ini}``, key: ``{option.key}``" in page


def test_every_subcommand_is_told_as_it_tells_itself():
    page = commands.page()
    found = [parser.prog for parser in commands.parsers(cli.parser())]
    assert {"pytest-quant doctor", "pytest-quant baseline merge", "pytest-quant reference build"} <= set(found)
    for name in found:
        assert f"\n{rst.title(name, '-')}" in page
        assert f"usage: {name} " in page


@pytest.mark.parametrize(
    "page, names",
    [
        ("formats", list(registry.formats())),
        ("devices", specs.names()),
        ("verdicts", [verdict.value for verdict in Verdict]),
        ("fixtures", [*declarations.FORMAT_FIXTURES, "quant_model", "quant_hardware", "calibration_set"]),
    ],
)
def test_every_name_has_its_row(page, names):
    text = quantdocs.PAGES[page]()
    for name in names:
        assert re.search(rf"\* - (``)?{re.escape(name)}(``)?$", text, re.MULTILINE), name


def test_every_fixture_says_what_it_yields():
    for name, scope, told in fixtures.found():
        assert told, name
        assert scope in ("function", "session"), name


def test_every_error_is_told():
    from pytest_quant import errors

    page = api.page()
    for name, value in vars(errors).items():
        if isinstance(value, type) and value.__module__ == errors.__name__:
            assert f"autoexception:: pytest_quant.errors.{name}\n" in page


def test_what_is_taken_from_formats_is_told():
    from pytest_quant import formats

    for name in formats.__all__:
        assert f":: pytest_quant.formats.{name}\n" in api.page()


def test_a_page_that_is_as_it_was_is_not_written_again(tmp_path):
    first = {name: path.stat().st_mtime_ns for name, path in quantdocs.write(tmp_path).items()}
    assert {name: path.stat().st_mtime_ns for name, path in quantdocs.write(tmp_path).items()} == first
