"""Markdown of answers in a browser: what is shown, what is shown as the text that it is, and how long it takes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed: pip install 'instil[serve]'")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from tests.serve.opened import CHROMIUM, Opened, chromium, opening
from tests.serve.stand_in import MARKDOWN, app_of, serving

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    with opening(browser, tmp_path) as open_page:
        yield open_page


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
