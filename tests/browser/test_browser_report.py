"""The HTML report in a real browser."""

from __future__ import annotations

import shutil

import pytest
from run_records import HOSTILE, empty, failing, history, hostile, recorded

from pytest_quant.visible import visible as visible_text

pytest.importorskip("altair")
pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")
sync_api = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

pytestmark = pytest.mark.browser
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
CONTROLS = "a[href], button:not([hidden]), input, select, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        yield opened
        opened.close()


def mixed():
    """Verdicts of several kinds in one table, and a gate without a number."""
    record = recorded()
    record["measurements"] = [{**each, "test": "test_it.py::test_it"} for each in record["measurements"][:4]]
    first, second, third, _ = record["measurements"]
    for name in ("value", "low", "high", "statistics", "windows", "scores", "bounds", "detail", "format_value"):
        second.pop(name, None)
    second |= {"verdict": "not-measured", "reason": "out of memory"}
    first |= {"verdict": "inconclusive", "reason": "the interval contains the limit"}
    third |= {"baseline": {"verdict": "new"}}
    return record


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A file for each kind of run."""
    from pytest_quant.report.html import page

    folder = tmp_path_factory.mktemp("pages")
    skip = {"test": "test_it.py::test_it[fp8]", "format": "fp8", "reason": "no GPU"}
    kinds = {
        "passing": page.render([recorded()], history()),
        "failing": page.render([failing()], history()),
        "empty": page.render([empty(skip)]),
        "mixed": page.render([mixed()]),
        "hostile": page.render([hostile()], history(model=HOSTILE)),
        "shards": page.render([recorded(), failing()]),
    }
    for name, text in kinds.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return folder


class Opened:
    """A page, with all that it said and asked for."""

    def __init__(self, page, where):
        self.page = page
        self.said = []
        self.asked = []
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.route("**/*", self._answer)
        page.goto(where)

    def _answer(self, route):
        self.asked.append(route.request.url)
        route.continue_() if route.request.url.startswith("file:") else route.abort()


@pytest.fixture
def show(browser, pages):
    """Opens a page of a kind at a width, in a theme."""
    contexts = []

    def opened(kind, width=1280, theme="light", **more):
        contexts.append(browser.new_context(viewport={"width": width, "height": 900}, color_scheme=theme, **more))
        return Opened(contexts[-1].new_page(), (pages / f"{kind}.html").as_uri())

    yield opened
    for context in contexts:
        context.close()


@pytest.mark.parametrize("kind", ["passing", "failing", "empty", "hostile", "shards"])
def test_nothing_is_said_or_loaded(show, kind):
    opened = show(kind)
    assert opened.said == []
    assert len(opened.asked) == 1


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("kind", ["failing", "empty", "shards"])
def test_axe_finds_nothing(show, kind, width, theme):
    opened = show(kind, width, theme, bypass_csp=True)
    opened.page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    found = axe.Axe().run(opened.page)
    assert [(each["id"], each["nodes"][0]["html"][:200]) for each in found.response["violations"]] == []
    if kind != "empty":
        assert opened.page.locator("figure svg").count() >= 10
        assert opened.page.locator("figure table").count() == opened.page.locator("figure .drawing svg").count()


@pytest.mark.parametrize("kind", ["failing", "empty", "hostile", "shards"])
def test_a_phone_need_not_scroll_sideways(show, kind):
    page = show(kind, 360).page
    page.evaluate("for (const each of document.querySelectorAll('details')) each.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    outside = """[...document.querySelectorAll('body *')].filter(each => !each.closest('.scroll, .skip, svg, .hidden')
        && each.getBoundingClientRect().right > 361).map(each => each.outerHTML.slice(0, 80))"""
    assert page.evaluate(outside) == []


def test_the_tab_key_reaches_every_control_in_order(show):
    page = show("failing").page
    page.evaluate(f"""
        window.expected = [...document.querySelectorAll("{CONTROLS}")].filter(each =>
            each.checkVisibility() && !each.closest('details:not([open]) > :not(summary)'));
        window.reached = [];
        document.addEventListener('focusin', event => window.reached.push(event.target));
    """)
    count = page.evaluate("window.expected.length")
    assert count > 40
    for _ in range(count):
        page.keyboard.press("Tab")
    assert page.evaluate("window.reached.length") == count
    assert page.evaluate("window.expected.every((each, place) => window.reached[place] === each)")


def test_focus_is_seen_and_the_first_link_skips_to_the_verdicts(show):
    page = show("failing").page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the verdicts"
    assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"


def test_points_of_pictures_tell_their_figures(show):
    page = show("failing").page
    point = page.locator("#tradeoff svg [tabindex='0']").first
    point.focus()
    label = page.evaluate("document.activeElement.getAttribute('aria-label')")
    assert label.startswith("int8: weight memory (MB) 220, perplexity delta (ppl) 0.122")


def visible(page):
    return page.locator("table.verdicts tr.row:visible").count()


def test_filters_work_by_keyboard(show):
    page = show("failing").page
    everything = visible(page)
    page.locator("#filter-text").focus()
    page.keyboard.type("NF4 perplexity")
    assert visible(page) == 1
    assert page.locator("#shown").text_content() == f"1 of {everything} gates"
    assert page.locator("table.verdicts tbody:visible").count() == 1
    page.keyboard.press("Control+A")
    page.keyboard.press("Delete")
    page.keyboard.press("Tab")
    page.keyboard.press("f")
    page.keyboard.press("Enter")
    assert page.locator("#filter-verdict").input_value() == "failed"
    assert visible(page) == 1


def order(page):
    rows = page.locator("table.verdicts tbody").first.locator("tr.row")
    return [rows.nth(place).get_attribute("data-place") for place in range(rows.count())]


def test_columns_are_sorted_by_keyboard_and_come_back(show):
    page = show("failing").page
    before = order(page)
    head = page.locator("th[data-key=used]")
    head.locator("button").focus()
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "ascending"
    used = [float(each.get_attribute("data-used")) for each in page.locator("tbody").first.locator("tr.row").all()]
    rows = page.locator("table.verdicts tbody").first.locator("tr.row").all()
    used = [float(each.get_attribute("data-used")) for each in rows]
    assert used == sorted(used)
    page.keyboard.press("Space")
    assert head.get_attribute("aria-sort") == "descending"
    assert order(page) != before
    page.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert order(page) == before


def test_rows_without_a_number_stand_last_both_ways_and_verdicts_by_how_much_they_count(show):
    page = show("mixed").page

    def sorted_by(key):
        page.locator(f"th[data-key={key}] button").click()
        rows = page.locator("table.verdicts tbody tr.row").all()
        return [each.get_attribute("data-verdict") for each in rows]

    assert sorted_by("value")[-1] == "not-measured"
    assert sorted_by("value")[-1] == "not-measured"
    assert sorted_by("loudness") == ["not-measured", "inconclusive", "new", "passed"]
    assert sorted_by("loudness") == ["passed", "new", "inconclusive", "not-measured"]


def test_everything_can_be_read_without_the_script(show):
    page = show("failing", java_script_enabled=False).page
    assert page.locator("table.verdicts tr.row:visible").count() == 14
    assert page.locator("figure svg:visible").count() >= 10
    assert page.locator("#filters:visible, #theme:visible").count() == 0


POINT = "getComputedStyle(document.querySelector('#tradeoff svg [tabindex]')).fill"
PAPER = "getComputedStyle(document.body).backgroundColor"


def test_the_theme_changes_the_page_and_the_drawings(show):
    page = show("failing").page
    light = page.evaluate(POINT), page.evaluate(PAPER)
    assert light[0].startswith("rgb(")
    page.locator("#theme").focus()
    page.keyboard.press("Enter")
    dark = page.evaluate(POINT), page.evaluate(PAPER)
    assert page.locator("#theme").get_attribute("aria-pressed") == "true"
    assert dark[0] != light[0]
    assert dark[1] != light[1]
    page.keyboard.press("Space")
    assert (page.evaluate(POINT), page.evaluate(PAPER)) == light
    assert (show("failing", theme="dark").page.evaluate(POINT)) == dark[0]


def test_hostile_names_stay_text(show):
    opened = show("hostile")
    page = opened.page
    assert page.evaluate("window.hurt") is None
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 1
    assert visible_text(HOSTILE) in page.locator(".facts bdi").first.text_content()
    assert HOSTILE[:30] in page.locator("#tradeoff svg").first.text_content()
    page.locator("#filter-text").fill("</script><img")
    assert visible(page) == 14


def test_no_words_overlap_in_a_drawing(show):
    """Of the labels of the first trade-off."""
    page = show("passing").page
    overlaps = """(() => {
        const boxes = [...document.querySelectorAll('#tradeoff figure:first-child svg text')]
            .filter(each => each.textContent.trim()).map(each => [each.textContent, each.getBoundingClientRect()]);
        return boxes.flatMap(([a, p], place) => boxes.slice(place + 1).filter(([b, q]) =>
            p.left < q.right - 1 && q.left < p.right - 1 && p.top < q.bottom - 1 && q.top < p.bottom - 1)
            .map(([b]) => a + ' | ' + b));
    })()"""
    assert page.evaluate(overlaps) == []
