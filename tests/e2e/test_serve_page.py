"""The pages of a server in a browser: the chat and what can go wrong in it, Markdown that attacks, runs as they train.

Debian's chromium, driven by Playwright (`pip install playwright`; no browser of its own is fetched). The models are
stand-ins, which also break off, refuse and wait (`tests.serve.stand_in`).
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed: pip install 'instil[serve]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from instil.data.sources import read_source  # noqa: E402
from instil.serve import reports  # noqa: E402
from instil.tasks.pairs.source import read_pairs  # noqa: E402
from tests.runs.test_listing import begun, line  # noqa: E402
from tests.serve.stand_in import BASE, MARKDOWN, PLAIN, app_of, serving  # noqa: E402

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")

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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield started
        started.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    with ExitStack() as stack:

        def open_page(path: str = "/", key: str = "", viewport: dict[str, int] = SCREEN, **options: Any) -> Opened:
            asked: list[Any] = []
            root = tmp_path / "runs"
            if not root.exists():
                begun(root / "one").report.write_text("<h1>The report</h1><script>window.hacked = 1</script>")
            url = stack.enter_context(serving(app_of(tmp_path, root, root / "one", key, asked)))
            context = browser.new_context(viewport=viewport, **options)
            stack.callback(context.close)
            page = context.new_page()
            page.set_default_timeout(10_000)
            found = Opened(page, url, tmp_path, asked)
            page.on("console", lambda message: found.complaints.append(message.text))
            page.on("pageerror", lambda error: found.complaints.append(str(error)))
            page.on("request", lambda request: found.requests.append(request.url))
            page.goto(url + path)
            if path == "/" and not key:
                page.wait_for_selector("#report a")
            return found

        yield open_page


# The chat.


def test_a_question_is_answered_as_it_is_said(opened: Callable[..., Opened]) -> None:
    found = opened()
    assert found.page.locator("#welcome h1").inner_text() == "Ask mine"
    assert found.focused() == "ask"
    found.ask("What are mitochondria?")
    assert found.texts() == [PLAIN]
    assert found.focused() == "ask"
    assert found.page.locator(TOLD).inner_text() == f"mine answered: {PLAIN}"  # once, and whole
    found.ask("echo And now?")
    assert found.texts() == [PLAIN, "echo And now?"]
    assert found.asked[-1] == {
        "model": "mine",
        "stream": True,
        "messages": [
            {"role": "user", "content": "What are mitochondria?"},
            {"role": "assistant", "content": PLAIN},
            {"role": "user", "content": "echo And now?"},
        ],
    }
    assert found.complaints == []
    assert {url.split("/")[2] for url in found.requests if not url.startswith("data:")} == {found.url[7:]}
    found.page.click("#new")
    assert found.texts() == []
    assert found.page.locator("#welcome").is_visible()
    assert found.focused() == "ask"


def test_settings_go_along(opened: Callable[..., Opened]) -> None:
    found = opened()
    assert found.page.locator("#options").is_hidden()
    found.page.click("#settings")
    assert found.focused() == "system"
    found.page.fill("#system", "Be brief.")
    found.page.fill("#temperature", "0.5")
    found.page.fill("#tokens", "7")
    found.page.fill("#ask", "line one")
    found.page.press("#ask", "Shift+Enter")
    found.page.keyboard.type("line two")
    assert found.asked == []
    found.page.click("#send")
    found.idle()
    assert (found.asked[0]["temperature"], found.asked[0]["max_tokens"]) == (0.5, 7)
    assert [message["content"] for message in found.asked[0]["messages"]] == ["Be brief.", "line one\nline two"]
    assert found.page.locator(".asked").inner_text() == "line one\nline two"
    found.ask("long please")
    assert "most tokens" in found.notes()[-1]


def test_an_answer_is_stopped_and_what_was_said_stays(opened: Callable[..., Opened]) -> None:
    found = opened()
    for way in ("Escape", "click"):
        found.ask("slow please", wait=False)
        found.until("document.querySelector('.turn:last-child .text').innerText.length > 10")
        assert found.page.locator("#send").get_attribute("aria-label") == "Stop"
        found.page.press("#ask", "Enter")  # while it answers, nothing is sent
        if way == "click":
            found.page.click("#send")
        else:
            found.page.keyboard.press("Escape")
        found.idle()
        said = found.texts()[-1]
        assert PLAIN.startswith(said)
        assert said != PLAIN
        assert found.notes()[-1] == "Stopped."
    found.ask("echo again")
    assert found.asked[-1]["messages"][1]["content"].strip() == found.texts()[0]


def test_another_try_is_another_answer_and_one_is_better(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.ask("What?")
    found.page.click("button[aria-label='Try again']")
    found.idle()
    assert found.texts() == [f"Try 124: {PLAIN}"]
    assert (found.asked[1]["messages"], found.asked[1]["temperature"]) == (found.asked[0]["messages"], 0.8)
    assert found.page.locator(".pager").inner_text() == "2 of 2"
    found.page.click("button[aria-label='The try before']")
    assert found.texts() == [PLAIN]
    assert found.page.locator("button[aria-label='The try before']").is_disabled()
    found.page.click("text=This one is better")
    found.page.wait_for_selector("text=Kept in pairs.jsonl.")
    (pair,) = read_pairs(str(found.folder / "pairs.jsonl")).pairs
    assert (pair.example.instruction, pair.chosen, pair.rejected) == ("What?", PLAIN, f"Try 124: {PLAIN}")
    found.ask("echo on")
    assert found.asked[-1]["messages"][1]["content"] == PLAIN


def test_an_earlier_question_is_edited_and_later_ones_go(opened: Callable[..., Opened]) -> None:
    found = opened()
    for question in ("echo one", "echo two", "echo three"):
        found.ask(question)
    edit = "button[aria-label^='Edit']"
    found.page.locator(edit).nth(1).click()
    assert found.focused() == "Edit the question"
    found.page.keyboard.press("Escape")
    assert found.texts() == ["echo one", "echo two", "echo three"]
    assert (found.focused() or "").startswith("Edit and ask anew")
    found.page.locator(edit).nth(1).click()
    found.page.keyboard.press("ControlOrMeta+a")
    found.page.keyboard.type("echo other")
    found.page.keyboard.press("Enter")
    found.idle()
    assert found.texts() == ["echo one", "echo other"]
    assert [message["content"] for message in found.asked[-1]["messages"]] == ["echo one", "echo one", "echo other"]
    assert found.focused() == "ask"


def test_the_base_answers_beside_the_tuned_model(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.page.click("#versus")
    assert found.page.locator("#versus").get_attribute("aria-pressed") == "true"
    found.ask("What?")
    assert sorted(found.texts()) == sorted([PLAIN, BASE])
    assert found.page.locator(".answer .name").all_inner_texts() == ["mine", "mine:base"]
    one, other = (box.bounding_box() for box in found.page.locator(".answer").all())
    assert one["y"] == other["y"]
    assert one["x"] + one["width"] < other["x"]
    found.page.set_viewport_size(PHONE)
    one, other = (box.bounding_box() for box in found.page.locator(".answer").all())
    assert one["x"] == other["x"]
    assert one["y"] + one["height"] < other["y"]
    found.page.locator("text=This one is better").nth(1).click()
    found.page.wait_for_selector("text=Kept in pairs.jsonl.")
    (pair,) = read_pairs(str(found.folder / "pairs.jsonl")).pairs
    assert (pair.chosen, pair.rejected) == (BASE, PLAIN)
    found.ask("echo on")  # both go on from the better one
    assert {body["messages"][1]["content"] for body in found.asked[-2:]} == {BASE}
    found.page.click("#versus")
    found.ask("echo alone")
    assert len(found.texts()) == 5


def test_thumbs_become_rows(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.ask("What?")
    found.page.click("button[aria-label='A good answer: keep it']")
    found.page.wait_for_selector("text=Kept in kept.jsonl and labelled.jsonl.")
    assert found.page.locator("button[aria-label='A bad answer']").is_disabled()
    assert found.page.locator("button[aria-pressed=true]").get_attribute("aria-label") == "A good answer: keep it"
    (example,) = read_source(str(found.folder / "kept.jsonl")).examples
    assert (example.instruction, example.output) == ("What?", PLAIN)
    found.page.click("button[aria-label='Try again']")
    found.idle()
    found.page.click("button[aria-label='A bad answer']")
    found.page.wait_for_selector("text=Kept in labelled.jsonl.")
    (pair,) = read_pairs(str(found.folder / "labelled.jsonl")).pairs
    assert (pair.chosen, pair.rejected) == (PLAIN, f"Try 124: {PLAIN}")
    (found.folder / "pairs.jsonl").mkdir()
    found.page.click("text=This one is better")
    found.page.wait_for_selector("text=/Not kept: .*pairs.jsonl/")


# What goes wrong.


def test_a_busy_server_is_asked_again_when_it_says(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.ask("busy please", wait=False)
    found.page.wait_for_selector("text=/asking again/")
    assert found.notes() == ["The server is busy; asking again in 1 s."]
    found.idle()
    assert found.texts() == [PLAIN]
    assert len(found.asked) == 2
    assert found.notes() == []


def test_a_wait_for_a_busy_server_can_be_stopped(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.page.route("**/v1/chat/completions", lambda route: route.fulfill(status=503, headers={"Retry-After": "60"}))
    found.ask("What?", wait=False)
    found.page.wait_for_selector("text=/asking again in \\d+ s/")
    found.page.keyboard.press("Escape")
    found.idle()
    assert found.notes() == ["Stopped before it began."]


WRONG = [
    ("full now", "", "The prompt has 3,000 tokens; the model's context is 2,048. Begin a new chat, or edit"),
    ("lost now", PLAIN[:21], "The connection was lost; what was said until then is kept."),
    ("fails now", PLAIN[:21], "There is no memory left."),
]


def test_what_went_wrong_is_said_and_can_be_tried_again(opened: Callable[..., Opened]) -> None:
    found = opened()
    for question, text, note in WRONG:
        found.page.click("#new")
        found.asked.clear()
        found.ask(question)
        assert found.texts() == [text.strip()]
        assert found.notes()[0].startswith(note)
        assert note[:20] in found.page.locator(TOLD).inner_text()
        found.page.locator("button", has_text="Try again").click()
        found.until("document.querySelector('.pager') !== null" if text else "true")
        found.idle()
        assert len(found.asked) == 2
        assert ("seed" in found.asked[1]) == bool(text)  # what came to nothing is no try
        found.ask("echo on")
        said = [message["content"] for message in found.asked[-1]["messages"]]
        assert said == ([question, found.texts()[0], "echo on"] if text else ["echo on"])
    found.page.route("**/v1/chat/completions", lambda route: route.abort())
    found.ask("What?")
    assert found.notes()[-1] == "The server cannot be reached. Is it still running?"


def test_a_key_is_asked_for_and_kept_in_this_tab_only(opened: Callable[..., Opened]) -> None:
    found = opened(key="right")
    page = found.page
    page.wait_for_selector("dialog[open]")
    page.fill("#key", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=That key was not taken.")
    page.fill("#key", "right")
    page.keyboard.press("Enter")
    page.wait_for_selector("#report a")
    found.ask("What?")
    assert found.texts() == [PLAIN]
    assert page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]") == [1, 0, ""]
    with page.context.expect_page() as tab:
        page.click("#report a")
    tab.value.wait_for_selector("text=The report")
    assert "/opened/" in tab.value.url
    assert "right" not in tab.value.url
    assert tab.value.evaluate("window.opener") is None
    page.reload()
    page.wait_for_selector("#report a")
    assert not [url for url in found.requests if "right" in url]


def test_the_report_of_the_run_is_one_click_away_and_has_no_power_here(opened: Callable[..., Opened]) -> None:
    found = opened()
    with found.page.context.expect_page() as tab:
        found.page.click("#report a")
    tab.value.wait_for_selector("text=The report")
    assert tab.value.evaluate("window.origin") == "null"
    assert tab.value.evaluate("window.hacked") == 1  # its own script runs ...
    asked = tab.value.evaluate("fetch('/runs.json').then(() => 'answered', () => 'refused')")
    assert asked == "refused"  # ... and reaches nothing


# Markdown.


def test_markdown_of_an_answer_is_shown(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.ask("How do I sort?")
    answer = found.page.locator(".answer .text")
    assert answer.locator("pre code").inner_text() == MARKDOWN.split("```")[1].removeprefix("python\n").rstrip("\n")
    assert answer.locator("strong").inner_text() == "as it was"
    assert answer.locator("ol > li").count() == 2
    assert answer.locator("ol > li > ul > li").count() == 2
    assert answer.locator("td").all_inner_texts() == ["sorted(x)", "yes", "0", "x.sort()", "no", "1"]
    link = answer.locator("blockquote a")
    assert link.get_attribute("href") == "https://docs.python.org/3/howto/sorting.html"
    assert "noopener" in link.get_attribute("rel")
    found.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    found.page.click("button[aria-label='Copy the answer']")
    found.until("document.querySelector('#told').innerText === 'Copied.'")
    assert found.page.evaluate("navigator.clipboard.readText()") == MARKDOWN


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("plain", "<p>plain</p>"),
        ("a\nb\n\nc", "<p>a\nb</p><p>c</p>"),
        ("# One\n### Two ###\n#not", "<h3>One</h3><h5>Two</h5><p>#not</p>"),
        ("**b** *i* __c__ _j_", "<p><strong>b</strong> <em>i</em> <strong>c</strong> <em>j</em></p>"),
        ("***bi*** x", "<p><strong><em>bi</em></strong> x</p>"),
        ("**a *b* c** and *a **b** c*", "<p><strong>a <em>b</em> c</strong> and <em>a <strong>b</strong> c</em></p>"),
        ("2*3*4, snake_case_name, a * b * c, **open", "<p>2*3*4, snake_case_name, a * b * c, **open</p>"),
        ("`a*b*` ``c`d`` `open", "<p><code>a*b*</code> <code>c`d</code> `open</p>"),
        (r"\*no\* \[x\](y)", "<p>*no* [x](y)</p>"),
        ("*a **b* c**", "<p><em>a **b</em> c**</p>"),
        ("```\na <b>\n", '<div class="code"><div class="code-head"><span></span></div>'
         '<pre tabindex="0" aria-label="code"><code>a &lt;b&gt;\n</code></pre></div>'),
        ("- a\n- b\n  1. c\n\n     d\n- e", "<ul><li>a</li><li>b<ol><li>c<p>d</p></li></ol></li><li>e</li></ul>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
        ("a\n\n---\n\nb", "<p>a</p><hr><p>b</p>"),
        ("a | b\nc", "<p>a | b\nc</p>"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_markdown_becomes(rendering: Opened, text: str, html: str) -> None:
    assert rendering.rendered(text) == html


def test_marks_within_marks_come_to_an_end(rendering: Opened) -> None:
    for text in ("*a **b " * 500 + "c** d* " * 500, "> " * 500 + "a", "- " * 500 + "a"):
        assert 0 < len(re.findall("<(em|strong|blockquote|ul)>", rendering.rendered(text))) <= 32


def test_links_lead_to_the_web_only(rendering: Opened) -> None:
    for text in (
        "[x](javascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "[x](data:text/html,<script>)", "[x](vbscript:x)",
        "[x](/runs)", "[x](//evil)", "[x](java\nscript:alert(1))", "[x](&#106;avascript:alert(1))", "[x]( x)",
        "<a href='javascript:alert(1)'>x</a>", "![x](javascript:alert(1))", "[x](ftp://host/)", "[x](blob:x)",
        "<javascript:alert(1)>", "[x][1]\n\n[1]: javascript:alert(1)", "[x](https://)",
    ):  # fmt: skip
        html = rendering.rendered(text)
        assert "<a" not in html, text
        assert "<script" not in html
        assert "<img" not in html
    html = rendering.rendered('[a **b**](https://e.org/a_(b)?q="onclick=x) https://e.org/x. (http://e.org/y)')
    assert re.findall(r'href="([^"]*)"', html) == [
        "https://e.org/a_(b)?q=%22onclick=x",
        "https://e.org/x",
        "http://e.org/y",
    ]
    assert html.count('rel="noopener noreferrer nofollow"') == 3
    assert "a <strong>b</strong></a>" in html
    assert "onclick=" not in re.sub(r'"[^"]*"', "", html)


ATTACKS = [
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 1'>",
    "<svg/onload=window.hacked=1>",
    "</div></article><iframe srcdoc='<script>parent.hacked = 1</script>'></iframe>",
    "```html\n<script>window.hacked = 1</script>\n```",
    "```\"><script>window.hacked = 1</script>\nx\n```",
    "`<b onclick=x>`  **<img src=x onerror=window.hacked=1>**",
    "| <img src=x onerror=window.hacked=1> |\n| --- |\n| <script>window.hacked=1</script> |",
    "> <style>* { display: none }</style>",
    "[<img src=x onerror=window.hacked=1>](https://e.org)",
    "<a href='javascript:window.hacked=1'>here</a>",
]  # fmt: skip


def test_markup_of_an_answer_is_shown_as_text_and_nothing_of_it_runs(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.page.evaluate("window.hacked = 0")
    for attack in ATTACKS:
        found.ask(f"raw {attack}")
    answers = found.page.locator(".answer .text")
    bad = "script, img, iframe, svg:not(.icon), style, [onerror], [onload], [onclick], a[href^=javascript]"
    assert answers.locator(bad).count() == 0
    assert found.page.locator(".asked").locator("*").count() == 0
    assert "onerror='window.hacked = 1'>" in found.texts()[1]
    found.page.wait_for_timeout(100)
    assert found.page.evaluate("window.hacked") == 0
    assert found.complaints == []


LONG = [
    "*" * 10_000, "*a " * 10_000, "a*" * 10_000, "**a _b " * 10_000, "_*" * 20_000, "`" * 20_000, "[" * 20_000,
    "[a](" * 20_000, "[a](http://" * 10_000, "> " * 10_000, "- " * 10_000, "- a\n" * 10_000, "*a* " * 10_000,
    "|" * 20_000 + "\n" + "|-" * 20_000, "|a\n|-\n" * 5_000, "```\n" * 10_000, "#" * 20_000, "\\" * 20_000,
    "http://" * 10_000, "\n" * 50_000, " " * 50_000 + "x", "".join("`" * n + " " for n in range(1, 300)),
    "1. " * 10_000, "    " * 10_000, "> - " * 5_000, "(" * 20_000, "- a\n\n" * 5_000, "* * " * 10_000, "---\n" * 10_000,
    "".join(" " * n + "- a\n" for n in range(400)), "[" * 5_000 + "]" * 5_000, "# " + "#" * 20_000 + "x",
    "https://e.org/" + "(" * 20_000, "[a](https://e.org/" + "a" * 20_000, "***a" * 10_000, "a***" * 10_000,
]  # fmt: skip


def test_no_text_takes_long(rendering: Opened) -> None:
    """Tens of thousands of marks are taken apart within moments: no text makes a page stand still."""
    took = """async (text) => {
        const { render } = await import("/page/markdown.js"), start = performance.now();
        render(text);
        return performance.now() - start;
    }"""
    slow = {text[:12]: spent for text in LONG if (spent := rendering.page.evaluate(took, text)) > 1000}
    assert slow == {}


@pytest.fixture(scope="module")
def rendering(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A page to render on."""
    folder = tmp_path_factory.mktemp("rendering")
    with serving(app_of(folder)) as url:
        context = browser.new_context()
        page = context.new_page()
        page.goto(url)
        yield Opened(page, url, folder, [])
        context.close()


# How it looks and reads.

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
    for _ in range(12):
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
        "model",
        "Report",
        "new",
        "ask",
    ]
    assert [name for name in reached if name in wanted][:11] == wanted


def test_who_wants_no_motion_sees_none(opened: Callable[..., Opened]) -> None:
    found = opened()
    found.ask("What?")
    found.page.locator(".answer .text").evaluate("one => one.classList.add('waiting')")
    for motion, name in (("no-preference", "wait"), ("reduce", "none")):
        found.page.emulate_media(reduced_motion=motion)
        moves = "getComputedStyle(document.querySelector('.answer .text'), '::after').animationName"
        assert found.page.evaluate(moves) == name


# Runs.


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
