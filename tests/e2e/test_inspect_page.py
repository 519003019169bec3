"""The microscope's page in a browser: by keyboard alone, dark and light, on a phone, with nothing but the file."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instil.data.preflight import check
from instil.data.splits import Split
from instil.recipes.microscope.page import write_page
from instil.recipes.microscope.rows import InspectedRow, Token
from instil.records import Encoded, Example

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rows, of which the second is cut and the third is filled up."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    tokens = (
        Token(1, "Say", "seen"),
        Token(2, " so:\n", "seen"),
        Token(3, "So", "trained"),
        Token(4, "<end>", "trained"),
    )
    rows = [InspectedRow(Example("Say so:", "So", row=n), "train", tokens, padding=7 * (n == 2)) for n in (0, 2)]
    cut = (*tokens[:3], Token(5, "long " * 300, "cut"))
    rows.insert(1, InspectedRow(Example("x", row=1), "train", cut, ("<i>cut</i> at 3 tokens",)))
    examples = tuple(row.example for row in rows)
    encoded = [Encoded((1, 2, 3), (False, True, True), 1, n) for n in range(3)]
    preflight = check(Split("book", examples, (), ()), {"train": encoded, "test": [], "validation": []}, 9, context=9)
    write_page("rows.json", preflight, rows, path)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1120])
def test_the_page_by_its_keys(browser: Any, page_file: Path, scheme: str, width: int) -> None:
    page = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 844})
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("file:") else complaints.append(request.url))
    page.goto(page_file.as_uri())

    def told() -> str:
        return str(page.locator("#told").inner_text())

    page.keyboard.press("j")
    assert told() == "position 0, id 1: only read"
    page.keyboard.press("t")
    assert told() == "position 2, id 3: trained on"
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    assert told() == "position 2, id 3: trained on"
    page.keyboard.press("j")
    page.keyboard.press("End")
    assert told() == "position 3, id 5: cut off"
    page.keyboard.press("k")
    assert told() == "position 0, id 1: only read"
    assert page.evaluate("document.querySelectorAll('.token[tabindex=\"0\"]').length") == 3  # a stop for each row

    cut = page.locator(".row .token.cut")
    assert cut.is_visible()
    page.locator("input[data-dim=cut]").uncheck()
    assert not cut.is_visible()
    assert page.locator(".row .padding").inner_text() == "7 tokens of padding"
    assert page.locator(".why li").inner_text() == "<i>cut</i> at 3 tokens"
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing to scroll to the side
    look = "getComputedStyle(document.querySelector('.row .token.trained'))"
    ink, paper = page.evaluate(f"['color', 'backgroundColor'].map(name => {look}[name])")
    bright = [sum(map(int, colour.removeprefix("rgb(").removesuffix(")").split(","))) for colour in (ink, paper)]
    assert (bright[0] > bright[1]) is (scheme == "dark")
    assert abs(bright[0] - bright[1]) > 300
    assert not complaints
    page.close()
