"""What people see does not steer their terminal."""

from __future__ import annotations

import io
import threading
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from instil.cli.show import show_lines, show_note, show_stream
from instil.screen import Screen, visible

EVIL = "a\x1b[2Jb\x9b2Jc\rd\x07\x7f\r\ne\tf"
SHOWN = "a\u241b[2Jb\ufffd2Jc\u240dd\u2407\u2421\ne\tf"


@given(st.text(st.characters(categories=["Cc"]) | st.characters()))
def test_no_control_character_is_left_and_nothing_else_changes(text: str) -> None:
    shown = visible(text)
    assert not [char for char in shown if unicodedata.category(char) == "Cc" and char not in "\n\t"]
    assert visible(shown) == shown
    plain = text.replace("\r\n", "\n")
    assert len(shown) == len(plain)
    assert all(one == other for one, other in zip(plain, shown, strict=True) if unicodedata.category(one) != "Cc")


def test_the_screen_and_the_commands_show_signs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert visible(EVIL) == SHOWN
    out = io.StringIO()
    Screen(console=Console(file=out, highlight=False, width=200)).say(EVIL)
    assert out.getvalue() == SHOWN.expandtabs() + "\n" or out.getvalue() == SHOWN + "\n"
    show_lines([EVIL])
    show_note(EVIL)
    assert capsys.readouterr() == (SHOWN + "\n", SHOWN + "\n")
    show_stream([EVIL])  # into a file as it is
    assert capsys.readouterr().out.replace("\x1b[2J", "") == EVIL.replace("\x1b[2J", "") + "\n"
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    show_stream([EVIL])
    assert capsys.readouterr().out == SHOWN + "\n"


def test_bars_of_several_threads_stand_under_one_another() -> None:
    """A terminal can show one thing that moves at a time, so they are one."""
    out = io.StringIO()
    screen = Screen(console=Console(file=out, highlight=False, width=100, force_terminal=True))
    met = threading.Barrier(2, timeout=20)

    def work(what: str) -> None:
        with screen.bar(what, 2) as advance:
            advance("half", 1)
            met.wait()

    other = threading.Thread(target=work, args=("encoding rows",))
    other.start()
    work("looking for leaks")
    other.join(20)
    assert not other.is_alive()
    assert "looking for leaks" in out.getvalue()
    assert "encoding rows" in out.getvalue()
    with screen.bar("later", 1):
        pass
