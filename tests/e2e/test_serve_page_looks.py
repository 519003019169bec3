"""How the pages of a server look and read: contrast, phones, the keyboard; and runs that are drawn as they train."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed: pip install 'instil[serve]'")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from instil.serve import reports
from tests.runs.test_listing import begun, line
from tests.serve.opened import CHROMIUM, PHONE, Opened, chromium, opening

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    with opening(browser, tmp_path) as open_page:
        yield open_page


CONTRAST = """() => {
    const parse = (color) => (color.match(/[\\d.]+/g) ?? []).map(Number);
    const behind = (node) => {
        for (let at = node; at; at = at.parentElement) {
            const color = parse(getComputedStyle(at).backgroundColor);
            if (color.length === 3 || color[3] === 1) return color;
        }
        return [255, 255, 255];
    };
    const linear = (c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4);
    const light = (color) => color.slice(0, 3).map(linear)
        .reduce((sum, c, at) => sum + c * [0.2126, 0.7152, 0.0722][at], 0);
    const found = [];
    for (const node of document.querySelectorAll("body *")) {
        const style = getComputedStyle(node);
        const own = [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
        if (!own || !node.getClientRects().length || node.closest(".sr, option, noscript, :disabled")) continue;
        const ink = node.namespaceURI.endsWith("svg") ? style.fill : style.color;
        const [a, b] = [light(parse(ink)), light(behind(node))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) found.push(`${node.localName} ${ratio.toFixed(2)} ${node.textContent.slice(0, 30)}`);
    }
    return found;
}"""


def test_all_text_has_enough_contrast(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.page.click("#versus")
    found.page.click("#settings")
    for question in ("How do I sort?", "lost please"):
        found.ask(question)
    for path in ("/", "/runs"):
        if path == "/runs":
            found.page.goto(found.url + path)
            found.page.wait_for_selector("circle.val")
        for scheme in ("light", "dark"):
            found.page.emulate_media(color_scheme=scheme)
            assert found.page.evaluate(CONTRAST) == [], scheme


def test_a_phone_shows_it_without_scrolling_sideways(opened: Callable[..., Opened]) -> None:
    found = opened(viewport=PHONE, is_mobile=True, has_touch=True)
    found.page.click("#versus")
    found.page.click("#settings")
    for question in (
        "How do I sort?",
        "raw " + "x" * 300,
        "raw ```\n" + "y" * 300,
        "raw |a|b|\n|-|-|\n|" + "z" * 200 + "|c|",
    ):
        found.ask(question)
    width = "[document.scrollingElement.scrollWidth, innerWidth]"
    assert found.page.evaluate(width) == [360, 360]
    for wide in ("pre", ".text .wide"):  # these scroll within themselves
        box = found.page.locator(wide).last
        assert box.evaluate("one => one.scrollWidth > one.clientWidth && one.clientWidth < 360"), wide
    found.page.goto(f"{found.url}/runs")
    found.page.wait_for_selector("circle.val")
    assert found.page.evaluate(width) == [360, 360]


def test_everything_has_a_name_and_can_be_reached_by_keyboard(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.page.click("#settings")
    found.ask("How do I sort?")
    for path in ("/", "/runs"):
        if path != "/":
            found.page.goto(found.url + path)
            found.page.wait_for_selector("circle.val")
        nameless = found.page.evaluate(
            """() => [...document.querySelectorAll("button, a[href], input, select, textarea, [role=img]")]
                .filter((one) => !(one.ariaLabel || one.innerText?.trim() || one.labels?.length))
                .map((one) => one.outerHTML)"""
        )
        assert nameless == []
        assert found.page.locator("main").count() == found.page.locator("header").count() == 1
        assert found.page.locator("nav[aria-label]").count() == 1
        assert found.page.evaluate("document.documentElement.lang") == "en"
    found.page.goto(found.url)
    found.page.wait_for_selector("#report a")
    reached = []
    for _ in range(13):
        found.page.keyboard.press("Tab")
        reached.append(found.page.evaluate("document.activeElement.id || document.activeElement.innerText"))
        assert found.page.evaluate("document.activeElement.matches('body, :focus-visible')")
    wanted = [
        "versus",
        "settings",
        "send",
        "To the question",
        "instil",
        "Chat",
        "Runs",
        "Interfaces",
        "model",
        "Report",
        "new",
        "ask",
    ]
    assert [name for name in reached if name in wanted][:12] == wanted


def test_who_wants_no_motion_sees_none(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.ask("What?")
    found.page.locator(".answer .text").evaluate("one => one.classList.add('waiting')")
    for motion, name in (("no-preference", "wait"), ("reduce", "none")):
        found.page.emulate_media(reduced_motion=motion)
        moves = "getComputedStyle(document.querySelector('.answer .text'), '::after').animationName"
        assert found.page.evaluate(moves) == name


def test_the_runs_and_a_curve_that_grows(opened: Callable[..., Opened], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reports, "EVERY", 0.05)
    monkeypatch.setattr("instil.runs.watching.LOOK_AGAIN", 0.0)
    found = opened("/runs")
    page, run = found.page, found.folder / "runs" / "one"
    page.wait_for_selector("circle.val")
    page.wait_for_selector("#live.live")
    one = page.locator("section[aria-label='Run one']")
    assert one.locator(".state").inner_text() == "training"
    assert "4 of 20" in one.inner_text()
    points = "document.querySelector('polyline.train').getAttribute('points').split(' ').length"
    assert page.evaluate(points) == 4
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(line(5, train=2.2) + line(6, train=2.125, val=2.25))
    found.until(f"{points} === 6")
    label = one.locator("svg[role=img]").get_attribute("aria-label")
    assert label == "Losses of one up to step 6; training 2.125; validation 2.250, at first 3.000"
    assert "6 of 20" in one.inner_text()
    assert "2.125 training, 2.250 validation" in one.inner_text()
    assert one.locator("progress").get_attribute("value") == "6"
    begun(found.folder / "runs" / "<img src=x onerror='window.hacked=1'>")
    page.wait_for_selector("h2:has-text('onerror')")
    assert page.evaluate("window.hacked") is None
    (run / "report.json").write_text(json.dumps({}))
    found.until("document.querySelector('#told').innerText === 'The run one is done.'")
    assert one.locator(".state").inner_text() == "done"
    assert found.complaints == []
    button = one.locator("button", has_text="Losses")
    button.focus()
    button.click()
    assert one.locator("svg").count() == 0
    assert page.evaluate("document.activeElement.dataset.curve") == "one"
