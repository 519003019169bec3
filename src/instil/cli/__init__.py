"""The command line: parse, call a recipe, and say in one line what went wrong.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from instil.cli import chat, judge, make, models, runs, selftest, serve, settings, sweep, tune
from instil.cli.show import show_lines
from instil.errors import InstilError, UserError
from instil.machine import end_process, settle
from instil.screen import visible
from instil.version import __version__

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(
    name="instil",
    help="Teach a pretrained language model to follow instructions from a file of examples, and see that it learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for verbs in (tune, runs, models, chat, serve, settings, selftest, judge, sweep, make):  # as --help lists them
    app.add_typer(verbs.commands)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        show_lines([f"instil {__version__}"])
        raise typer.Exit


class _Stopped(BaseException):
    """A signal asked the process to stop. Not an Exception, so that no library swallows it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


def _stop(number: int, frame: FrameType | None) -> NoReturn:
    del frame
    raise _Stopped(number)


@contextmanager
def _left_behind() -> Iterator[None]:
    """Ends the process though a library's thread that was left behind does not end."""
    try:
        yield
    except SystemExit as ended:
        end_process(ended.code if isinstance(ended.code, int) else int(ended.code is not None))
        raise


@_left_behind()
def main() -> None:
    """Entry point: errors become one line on stderr and an exit code."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    settle()
    try:
        app()
    except InstilError as error:
        _fail(str(error), error.exit_code)
    except _Stopped as stopped:
        kept = "" if sys.argv[1:2] == ["serve"] else "; what the run folder holds so far is kept"
        _fail(f"stopped{kept}", 128 + stopped.number)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        advice = "; make room there, or choose another place" if error.errno in FULL else ""
        advice = "; choose another name" if error.errno in NO_NAME else advice
        _fail(f"{what}{error.strerror or error}{advice}", UserError.exit_code if error.errno in NO_NAME else 1)
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        _fail("out of memory; lower train.micro_batch or generate.batch_size", 1)


def _fail(message: str, code: int) -> NoReturn:
    print(f"instil: {visible(message)}", file=sys.stderr)
    sys.exit(code)
