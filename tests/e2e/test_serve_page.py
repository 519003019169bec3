"""The chat of a server in a browser: what can be done with it, and what is said when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed: pip install 'instil[serve]'")
pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from instil.data.sources import read_source
from instil.tasks.pairs.source import read_pairs
from tests.serve.opened import CHROMIUM, PHONE, TOLD, Opened, chromium, opening
from tests.serve.stand_in import BASE, PLAIN

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium: apt-get install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    with opening(browser, tmp_path) as open_page:
        yield open_page


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


def test_the_page_follows_what_is_said_unless_its_reader_is_elsewhere(opened: Callable[..., Opened]) -> None:
    found = opened()
    for question in ("How do I sort?", "How else?", "How?"):
        found.ask(question)
        answer, composer = (found.page.locator(name).last.bounding_box() for name in (".answer", ".composer"))
        assert answer["y"] + answer["height"] <= composer["y"]
    found.page.evaluate("window.scrollTo(0, 200)")
    found.page.locator("button[aria-label='A bad answer']").first.click()
    found.page.wait_for_selector("text=Kept in labelled.jsonl.")
    assert found.page.evaluate("window.scrollY") == 200


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
