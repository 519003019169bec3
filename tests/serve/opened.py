"""A browser with a page of a server open in it, whose models are stand-ins (`tests.serve.stand_in`).

Debian's chromium, driven by Playwright (`pip install playwright`; no browser of its own is fetched).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.runs.test_listing import begun
from tests.serve.stand_in import app_of, serving

CHROMIUM = shutil.which("chromium")
PHONE = {"width": 360, "height": 740}
SCREEN = {"width": 1120, "height": 860}
TOLD = "#told"


@dataclass
class Opened:
    """A page, the server that it is of, and what the browser complained about."""

    page: Any
    url: str
    folder: Path
    asked: list[Any]
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, text: str, *, wait: bool = True) -> None:
        self.page.fill("#ask", text)
        self.page.press("#ask", "Enter")
        if wait:
            self.idle()

    def until(self, true: str) -> None:
        """Until an expression is; the policy keeps the browser from trying it over and over itself."""
        for _ in range(200):
            if self.page.evaluate(true):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"never true: {true}")

    def idle(self) -> None:
        """Until everybody has answered."""
        self.page.wait_for_selector(
            "body:not(.busy) .turn:last-child .answer .foot :is(button, span)", state="attached"
        )

    def texts(self) -> list[str]:
        """The answers that are seen."""
        found: list[str] = self.page.locator(".answer .text").all_inner_texts()
        return [" ".join(text.split()) for text in found]

    def notes(self) -> list[str]:
        return [text for text in self.page.locator(".answer .note").all_inner_texts() if text]

    def focused(self) -> str:
        said: str = self.page.evaluate("document.activeElement.id || document.activeElement.ariaLabel")
        return said

    def rendered(self, text: str) -> str:
        """What the page makes of Markdown."""
        html: str = self.page.evaluate(
            """async (text) => {
                const { render } = await import("/page/markdown.js"), place = document.createElement("div");
                place.append(render(text));
                return place.innerHTML;
            }""",
            text,
        )
        return re.sub(r"<button.*?</button>", "", html)


@contextmanager
def chromium() -> Iterator[Any]:
    """The browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@contextmanager
def opening(browser: Any, folder: Path) -> Iterator[Callable[..., Opened]]:
    """What opens a page, of a server that has one run in training and writes into a folder."""
    with ExitStack() as stack:

        def open_page(path: str = "/", key: str = "", viewport: dict[str, int] = SCREEN, **options: Any) -> Opened:
            asked: list[Any] = []
            root = folder / "runs"
            if not root.exists():
                begun(root / "one").report.write_text("<h1>The report</h1><script>window.hacked = 1</script>")
            url = stack.enter_context(serving(app_of(folder, root, root / "one", key, asked)))
            context = browser.new_context(viewport=viewport, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(10_000)
            found = Opened(page, url, folder, asked)
            page.on("console", lambda message: found.complaints.append(message.text))
            page.on("pageerror", lambda error: found.complaints.append(str(error)))
            page.on("request", lambda request: found.requests.append(request.url))
            page.goto(url + path)
            if path == "/" and not key:
                page.wait_for_selector("#report a")
            return found

        yield open_page
