"""The report in a browser: what a reader can do with it, on a screen and on a phone, with nothing but the file.

Debian's chromium, driven by Playwright (`pip install playwright`; no browser of its own is fetched).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from instil.evaluate.comparison import TIE
from instil.runs.report.charts import PLOT_HEIGHT, bin_counts
from instil.runs.report.made_of import ReportData
from instil.runs.report.page import write_report
from instil.screen import visible
from tests.runs.test_report import HOSTILE, OTHER_JUDGE, page_data

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

JUDGES = ["offline", OTHER_JUDGE]
PHONE = {"width": 390, "height": 844}
SCREEN = {"width": 1120, "height": 900}


@dataclass
class Opened:
    """A page, what it is made of, and what the browser complained about."""

    page: Any
    data: ReportData
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def rows(self) -> list[int]:
        """The rows that the table shows, in its order."""
        shown: list[int] = self.page.evaluate(
            "[...document.querySelectorAll('#rows tbody tr')].filter(row => row.offsetHeight)"
            ".map(row => Number(row.dataset.row))"
        )
        return shown

    def pick(self, judge: str) -> None:
        """Choose a judge beside the table."""
        self.page.locator("section", has=self.page.locator("#rows")).locator("select.judge").select_option(
            str(JUDGES.index(judge))
        )

    def scores(self, judge: str) -> list[tuple[int, float | None, float | None, int]]:
        """Row, score before, score after and length of the answer after, in file order."""
        found = self.data.verdicts[judge]
        lengths = [len(answer.text) for answer in self.data.answers["tuned"]]
        return [
            (a.row, a.score, b.score, length)
            for a, b, length in zip(found["base"], found["tuned"], lengths, strict=True)
        ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[ReportData, Path]:
    """Sixty rows, some hostile, two judges, two leaks."""
    folder = tmp_path_factory.mktemp("report")
    data = page_data(folder)
    write_report(data, folder / "report.html")
    return data, folder / "report.html"


@pytest.fixture
def opened(browser: Any, usual: tuple[ReportData, Path], tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    contexts = []

    def open_page(other: ReportData | None = None, viewport: dict[str, int] = SCREEN, **options: Any) -> Opened:
        data, path = usual
        if other is not None:
            data, path = other, tmp_path / "report.html"
            write_report(data, path)
        contexts.append(browser.new_context(viewport=viewport, **options))
        page = contexts[-1].new_page()
        page.set_default_timeout(10_000)
        found = Opened(page, data)
        page.on("console", lambda message: found.complaints.append(message.text))
        page.on("pageerror", lambda error: found.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (found.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: found.requests.append(request.url))
        page.goto(path.as_uri())
        return found

    yield open_page
    for context in contexts:
        context.close()


def test_nothing_is_fetched_run_or_complained_about(opened: Callable[..., Opened]) -> None:
    found = opened()
    for judge in reversed(JUDGES):
        found.pick(judge)
    found.page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    found.page.mouse.wheel(0, 5000)
    found.page.wait_for_timeout(100)
    assert found.complaints == []
    assert [url for url in found.requests if not url.startswith("data:")] == [found.page.url]
    assert found.page.evaluate("window.hacked") is None


def test_a_script_that_came_in_with_a_text_would_not_run(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.page.evaluate(
        """() => {
            const script = document.createElement("script"), block = document.createElement("div");
            script.textContent = "window.hacked = 1";
            document.body.append(script, block);
            block.innerHTML = "<img src=x onerror='window.hacked = 2'><img src='http://localhost:9/a.png'>";
        }"""
    )
    found.page.wait_for_timeout(100)
    assert found.page.evaluate("window.hacked") is None
    assert any("Content Security Policy" in complaint for complaint in found.complaints)


def test_hostile_text_is_shown_as_text(opened: Callable[..., Opened]) -> None:
    found = opened()

    def as_shown(text: str) -> str:
        return visible(text).strip()

    texts = found.page.evaluate(
        "[...document.querySelectorAll('#rows tbody tr')].map(row => [...row.cells].slice(0, 4)"
        ".map(cell => cell.querySelector('.text').textContent))"
    )
    for at, (asked, *rest) in enumerate(texts):
        example = found.data.examples[at]
        answers = [found.data.answers[which][at].text or "(nothing)" for which in ("base", "tuned")]
        assert [text.strip() for text in rest] == [as_shown(text) for text in (example.output, *answers)]
        assert asked.strip() == as_shown(example.instruction + example.input)
    said = "\n".join(text for row in texts for text in row)
    assert all(as_shown(text) in said for text in HOSTILE)


@pytest.mark.parametrize(
    "typed", ["fox", "SCRIPT>window", "row 117", "near duplicate of training", "no such thing", "é"]
)
def test_search_finds_rows_by_any_of_their_texts(opened: Callable[..., Opened], typed: str) -> None:
    found = opened()
    leaks = {leak.row: f"near duplicate of training row {leak.train_row}" for leak in found.data.leaks}
    wanted = []
    for at, row in enumerate(found.data.examples):
        answers = [found.data.answers[which][at].text for which in ("base", "tuned")]
        texts = [f"row {row.row}", row.instruction, row.input, row.output, *answers, leaks.get(row.row, "")]
        if any(typed.lower() in re.sub(r"\s+", " ", text.lower()) for text in texts):
            wanted.append(row.row)
    found.page.fill("#search", typed)
    assert found.rows() == wanted
    assert found.page.locator("#found").inner_text() == f"{len(wanted)} of 60 rows"
    found.page.fill("#search", "")
    assert len(found.rows()) == 60


@pytest.mark.parametrize("judge", JUDGES)
def test_sort_orders_by_the_chosen_judge(opened: Callable[..., Opened], judge: str) -> None:
    found = opened()
    found.pick(judge)
    known = found.scores(judge)
    scored = [(row, a, b) for row, a, b, _ in known if a is not None and b is not None]
    unscored = [row for row, a, b, _ in known if a is None or b is None]
    orders = {
        "file": [row for row, *_ in known],
        "gain": [row for row, a, b in sorted(scored, key=lambda one: one[1] - one[2])] + unscored,
        "loss": [row for row, a, b in sorted(scored, key=lambda one: one[2] - one[1])] + unscored,
        "lowest": [row for row, a, b in sorted(scored, key=lambda one: one[2])] + unscored,
        "highest": [row for row, a, b in sorted(scored, key=lambda one: -one[2])] + unscored,
        "longest": [row for row, *_ in sorted(known, key=lambda one: -one[3])],
    }
    assert len({tuple(order) for order in orders.values()}) == len(orders)
    for name, order in orders.items():
        found.page.select_option("#sort", name)
        assert found.rows() == order, name


def outcome(a: float | None, b: float | None) -> str:
    if a is None or b is None:
        return "unscored"
    return "same" if abs(b - a) <= TIE else "better" if b > a else "worse"


def test_filters_count_and_keep_rows_together_with_judge_and_search(opened: Callable[..., Opened]) -> None:
    found = opened()
    for judge in JUDGES:
        found.pick(judge)
        for typed in ("", "fox"):
            found.page.fill("#search", typed)
            found.page.click("button[data-show=all]")
            matching = set(found.rows())
            for name in ("better", "same", "worse", "unscored"):
                wanted = [row for row, a, b, _ in found.scores(judge) if outcome(a, b) == name and row in matching]
                button = found.page.locator(f"button[data-show={name}]")
                if judge == "offline" and name == "unscored":
                    assert not button.is_visible()
                    continue
                assert button.inner_text().split()[-1] == str(len(wanted))
                button.click()
                assert button.get_attribute("aria-pressed") == "true"
                assert found.rows() == wanted
                assert found.page.locator("#found").inner_text() == f"{len(wanted)} of 60 rows"
            assert 0 < len(matching) <= 60


def test_the_judge_decides_what_is_shown_everywhere(opened: Callable[..., Opened]) -> None:
    found = opened()
    page = found.page
    for judge in reversed(JUDGES):
        page.locator("select.judge").first.select_option(str(JUDGES.index(judge)))
        assert set(page.locator("select.judge").evaluate_all("all => all.map(one => one.selectedIndex)")) == {
            JUDGES.index(judge)
        }
        shown = page.locator("#rows .score:visible").evaluate_all("all => all.map(one => one.innerText)")
        assert len(shown) == 60
        for text, (_, a, b, _) in zip(shown, found.scores(judge), strict=True):
            if a is None or b is None:
                assert text == "the reply <b>holds</b> no number"
            else:
                assert [abs(float(n) - s) <= 0.5 for n, s in zip(text.split()[0:3:2], (a, b), strict=True)] == [
                    True
                ] * 2
        assert page.locator(".plot:visible").count() == 1


@pytest.mark.parametrize("viewport", [SCREEN, PHONE])
def test_columns_are_as_high_as_their_counts(opened: Callable[..., Opened], viewport: dict[str, int]) -> None:
    found = opened(viewport=viewport)
    for judge in JUDGES:
        found.pick(judge)
        plot = found.page.locator(".plot:visible")
        drawn = plot.locator("rect").evaluate_all("all => all.map(one => one.getBoundingClientRect().toJSON())")
        counts = [
            count
            for which in ("base", "tuned")
            for count in bin_counts([one.score for one in found.data.verdicts[judge][which]])
        ]
        top = int(plot.locator("text[text-anchor=end]").last.inner_html())
        assert top >= max(counts)
        assert [rect["height"] for rect in drawn] == pytest.approx([PLOT_HEIGHT * n / top for n in counts], abs=0.1)
        frame = plot.bounding_box()
        assert all(frame["x"] <= rect["left"] < rect["right"] <= frame["x"] + frame["width"] for rect in drawn)
        label = plot.get_attribute("aria-label")
        assert ", ".join(str(count) for count in counts[10:]) in label


@pytest.mark.parametrize("script", [True, False])
def test_a_phone_shows_it_without_scrolling_sideways(opened: Callable[..., Opened], script: bool) -> None:
    found = opened(viewport=PHONE, java_script_enabled=script, is_mobile=True, has_touch=True)
    page = found.page
    page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    page.wait_for_timeout(50)
    for index in range(len(JUDGES)) if script else [0]:
        if script:
            page.locator("select.judge").first.select_option(str(index))
        width, room = page.evaluate("[document.scrollingElement.scrollWidth, document.scrollingElement.clientWidth]")
        assert (width, room) == (390, 390)
        beyond = page.evaluate(
            "[...document.querySelectorAll('main *')].filter(one => one.getBoundingClientRect().right > 390.5)"
            ".map(one => one.outerHTML.slice(0, 90))"
        )
        assert beyond == []
    sizes = page.evaluate(
        "[...document.querySelectorAll('main, main *')].filter(one => one.getClientRects().length)"
        ".map(one => parseFloat(getComputedStyle(one).fontSize))"
    )
    assert min(sizes) >= 13
    label = page.evaluate("getComputedStyle(document.querySelector('#rows td[data-label=wanted]'), '::before').content")
    assert label == '"wanted"'


def test_without_script_everything_is_there_and_nothing_is_offered(opened: Callable[..., Opened]) -> None:
    found = opened(java_script_enabled=False)
    assert len(found.rows()) == 60
    assert found.page.locator(".plot:visible").count() == 1
    assert found.page.locator("#rows .score:visible").count() == 60
    assert found.page.locator("input:visible, select:visible, button:visible").count() == 0


def test_many_rows_come_in_portions(opened: Callable[..., Opened], tmp_path: Path) -> None:
    found = opened(page_data(tmp_path, 450))
    page = found.page
    everything = [row.row for row in found.data.examples]
    assert found.rows() == everything[:200]
    assert page.locator("#found").inner_text() == "450 of 450 rows"
    assert page.locator("#more").inner_text() == "show 200 more of 250"
    page.click("#more")
    assert found.rows() == everything[:400]
    page.click("#more")
    assert found.rows() == everything
    assert not page.locator("#more").is_visible()
    page.fill("#search", "row 549")  # found although it was in the last portion
    assert found.rows() == [549]
    page.fill("#search", "")
    assert len(found.rows()) == 200


@pytest.mark.parametrize("count", [0, 1])
def test_a_page_of_no_rows_or_one_works(opened: Callable[..., Opened], tmp_path: Path, count: int) -> None:
    data = page_data(tmp_path, count)
    found = opened(data if count else page_data(tmp_path, 0, ()), viewport=PHONE)
    assert found.complaints == []
    assert found.rows() == [100][:count]
    assert found.page.locator("h1").inner_text() == "tiny on <rows>.json"
