"""What people see while a recipe works; everything goes to stderr, so that stdout stays for results."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Protocol, TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)


class Advance(Protocol):
    """Say that a piece of the work is done, or (``steps`` 0) only a note on what is under way."""

    def __call__(self, note: str = "", steps: int = 1) -> None: ...


class Bytes(Protocol):
    """Say how many bytes are there, of how many (None: nobody knows)."""

    def __call__(self, have: int, total: int | None) -> None: ...


@dataclass
class Screen:
    """Says things and shows bars; ``Screen(quiet=True)`` does neither."""

    quiet: bool = False
    console: Console = field(default_factory=lambda: Console(file=_Lasting(), highlight=False))  # type: ignore[arg-type]
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False, compare=False)
    _bars: Progress | None = field(default=None, init=False, repr=False, compare=False)
    _shown: int = field(default=0, init=False, repr=False, compare=False)

    def say(self, text: str, style: str = "") -> None:
        """One line; text is shown as it is, never read as markup, and steers no terminal (`visible`)."""
        if not self.quiet:
            self.console.print(visible(text), style=style, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line on what may matter."""
        self.say(text, "yellow")

    def head(self, text: str) -> None:
        """The name of a stage."""
        self.say(f"\n{text}", style="bold")

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        """A bar with the time left; where stderr is no terminal, only what is said beside it shows.

        Those of several threads stand under one another.
        """
        with self._lock:
            if self._bars is None:
                self._bars = self._progress(MofNCompleteColumn(), TimeElapsedColumn())
                self._bars.start()
            self._shown, progress = self._shown + 1, self._bars
        task = progress.add_task(what, total=total, note="")

        def advance(note: str = "", steps: int = 1) -> None:
            progress.advance(task, steps)
            if note:
                progress.update(task, note=note)

        try:
            yield advance
        finally:
            progress.remove_task(task)
            with self._lock:
                self._shown -= 1
                if not self._shown:
                    progress.stop()
                    self._bars = None

    @contextmanager
    def bytes_bar(self, what: str) -> Iterator[Bytes]:
        """The same for bytes that come, with their speed."""
        with self._progress(DownloadColumn(), TransferSpeedColumn()) as progress:
            task = progress.add_task(what, total=None, note="")
            yield lambda have, total: progress.update(task, completed=have, total=total)

    def _progress(self, *measures: ProgressColumn) -> Progress:
        return Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=28),
            *measures,
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=self.console,
            disable=self.quiet or not self.console.is_terminal,
            transient=True,
        )


class _Lasting:
    """Standard error, as it is now, whose end ends nothing: who has closed it (``| head``, a terminal that is gone)
    sees no more, and the work goes on.
    """

    @property
    def rich_proxied_file(self) -> _Lasting:
        """What rich writes to while it shows a bar and has put something of its own in the place of standard error."""
        return self

    def write(self, text: str) -> int:
        with _unless_gone() as stderr:
            if stderr is not None:
                stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with _unless_gone() as stderr:
            if stderr is not None:
                stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(_stderr(), name)


def _stderr() -> TextIO | None:
    """The stream; None where it was closed before the process began."""
    return getattr(sys.stderr, "rich_proxied_file", sys.stderr)


@contextmanager
def _unless_gone() -> Iterator[TextIO | None]:
    stderr = _stderr()
    try:
        yield stderr
    except (OSError, ValueError):
        own = sys.__stderr__
        if own is not None and own is stderr:  # what it holds back would be an error once more at the end
            with suppress(OSError, ValueError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, own.fileno())
                os.close(nowhere)


# Control characters as the signs that Unicode has for them (U+2400 and on); the later ones have none.
_SIGNS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
_SIGNS |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def visible(text: str) -> str:
    """A text with signs for its control characters, which could steer a terminal or be dropped by a browser.

    Tabs and line ends stay, those of Windows as plain ones.

    >>> visible("\\x1b[31mred\\r\\n")
    '␛[31mred\\n'
    """
    return text.replace("\r\n", "\n").translate(_SIGNS)


def clock(seconds: float) -> str:
    """Minutes and seconds.

    >>> clock(75), clock(3700)
    ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
