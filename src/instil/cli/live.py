"""A run as it goes on, drawn again and again: its losses, how far it is, and what it last said."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

import typer

from instil.cli.tables import STYLES
from instil.screen import visible

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

    from instil.runs.following import Following, Picture

EVERY = 1.0  # seconds between two looks
LEAST, MOST = 6, 30  # lines of a curve
COLOURS = {"train": "cyan", "validation": "yellow"}  # of the curves
AXES = (24, 4)  # columns and lines that the axes of a curve take
ALONE = (100, 24)  # columns and lines of a picture where stdout is no terminal


class Stop:
    """Set by Ctrl-C or by "q": whoever watches leaves, and the run goes on. Use it in a ``with`` block.

    The keys are those of the terminal on stdin; where that is none there are none.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self._before: Any = None
        self._mode: list[Any] | None = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGINT, self._interrupted)
        if sys.stdin.isatty():
            import termios
            import tty

            self._mode = termios.tcgetattr(sys.stdin)
            tty.setcbreak(sys.stdin)  # keys come at once, and are not shown
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self._before)
        if self._mode is not None:
            import termios

            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, self._mode)

    def _interrupted(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._event.set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is set; whether it is."""
        until = time.monotonic() + seconds
        while not self._event.is_set() and (left := until - time.monotonic()) > 0:
            if self._mode is None:
                self._event.wait(min(left, 0.2))  # a signal ends no wait of its own
            elif select.select([sys.stdin], [], [], min(left, 0.2))[0]:
                pressed = os.read(sys.stdin.fileno(), 64)
                if not pressed:  # the terminal is gone
                    self._event.set()
                if b"q" in pressed.lower():
                    self._event.set()
        return self._event.is_set()


def pictures(following: Following, stop: Stop) -> Iterator[Picture]:
    """How a run stands, again and again until it has ended or nobody watches anymore."""
    while True:
        picture = following.look()
        yield picture
        if not picture.running or stop.wait(EVERY):
            return


def show_live(following: Following) -> None:
    """Draw a run on the terminal until it ends; elsewhere say lines."""
    from rich.console import Console
    from rich.live import Live

    from instil.recipes.watch import end, lines

    console = Console(highlight=False)
    with Stop() as stop:
        if not console.is_terminal:
            for line in lines(pictures(following, stop)):
                typer.echo(visible(line))
                sys.stdout.flush()
            return
        picture = None
        with Live(console=console, screen=True, auto_refresh=False) as live:
            for picture in pictures(following, stop):
                live.update(drawn(picture, console.width, console.height, hint=True), refresh=True)
    if picture is not None:
        console.print(drawn(picture, console.width, min(console.height, ALONE[1])))
        if not picture.running:
            typer.echo(visible(end(picture)))


def show_once(picture: Picture) -> None:
    """The present picture, and nothing else."""
    from rich.console import Console

    from instil.recipes.watch import end

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=ALONE[0])
    console.print(drawn(picture, console.width, ALONE[1]))
    if not picture.running:
        typer.echo(visible(end(picture)))


def drawn(picture: Picture, width: int, height: int, *, hint: bool = False) -> Group:
    """A picture that fills so many columns and lines: what it is, the curve, and the last answers."""
    from rich.console import Group
    from rich.text import Text

    from instil.recipes.watch import progress

    about, word = picture.about, picture.state
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append(visible(about.name), "bold")
    head.append("  ")
    head.append(word, STYLES.get(word, ""))
    stage = picture.stage if picture.stage != "training" else ""
    facts = [stage, about.model, about.data, about.method if about.method != "full" else ""]
    head.append(visible("".join(f"  {fact}" for fact in facts if fact)), "dim")
    where = Text(progress(picture), no_wrap=True, overflow="ellipsis")
    for name, colour in COLOURS.items():
        where.highlight_words([f"{name} "], colour)
    parts: list[RenderableType] = [head, where]
    bar = _bar(picture, width)
    parts += [bar] if bar is not None else []
    said = _samples(picture)
    last = [Text("q: leave; the run goes on", "dim")] if hint else []
    room = height - len(parts) - len(said) - len(last) - 1
    if room >= LEAST:
        parts += [_curve(picture, width, min(room, MOST)), *said]
    elif height > len(parts) + len(said) + len(last):  # a low window: the words before the curve
        parts += said
    return Group(*parts, *last)


def _bar(picture: Picture, width: int) -> Text | None:
    """How many of the steps are done."""
    from rich.text import Text

    if picture.last is None or not picture.about.steps:
        return None
    done = min(width, round(width * picture.last.step / picture.about.steps))
    return Text.assemble(("━" * done, "green"), ("─" * (width - done), "dim"))


def _samples(picture: Picture) -> list[Text]:
    from rich.text import Text

    found = []
    for one in picture.samples:
        for name, text in (("asked", one.asked), ("says ", one.says)):
            line = Text(no_wrap=True, overflow="ellipsis")
            line.append(f"{name}  ", "dim")
            line.append(visible(" ".join(text.split())))
            found.append(line)
    return found


def _curve(picture: Picture, width: int, height: int) -> Text:
    """The losses by step: the training's as a line, validations as circles on another."""
    from plotille import Figure
    from rich.text import Text

    sides = [side for side in (picture.curve.train, picture.curve.val) if side]
    if not sides:
        return Text("no losses yet", "dim")
    losses = [loss for side in sides for _, loss in side]
    low, high = min(losses), max(losses)
    room = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    figure = Figure()
    figure.width, figure.height = max(1, width - AXES[0]), max(1, height - AXES[1])
    figure.x_label, figure.y_label, figure.origin = "step", "loss", False
    figure.set_x_limits(0, max(1, *(side[-1][0] for side in sides)))
    figure.set_y_limits(low - room, high + room)
    figure.x_ticks_fkt = lambda least, _: f"{least:,.0f}"
    figure.y_ticks_fkt = lambda least, _: f"{least:.3f}"
    both = (picture.curve.train, picture.curve.val)
    for side, colour, marker in zip(both, COLOURS.values(), (None, "o"), strict=True):
        if side:
            steps, values = zip(*side, strict=True)
            figure.plot(steps, values, lc=colour, marker=marker)
    drawn = Text.from_ansi(figure.show())
    drawn.no_wrap, drawn.overflow = True, "crop"
    return drawn
