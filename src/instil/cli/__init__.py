"""The command line: parse, call a recipe, and say in one line what went wrong.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

from __future__ import annotations

import errno
import os
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer

from instil.cli import chat, judge, keep, make, models, runs, selftest, serve, settings, sweep, tune, worth
from instil.cli.show import show_lines
from instil.errors import InstilError, UserError
from instil.files import FULL
from instil.machine import end_process, is_out_of_memory, settle
from instil.screen import visible
from instil.stopping import SIGNALS, Stopped, stop_at_once
from instil.version import __version__

app = typer.Typer(
    name="instil",
    help="Teach a pretrained language model to follow instructions from a file of examples, and see that it learnt.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

# As --help lists them.
for verbs in (tune, runs, models, chat, serve, settings, selftest, judge, keep, worth, sweep, make):
    app.add_typer(verbs.commands)


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version and stop.")] = False,
) -> None:
    if version:
        show_lines([f"instil {__version__}"])
        raise typer.Exit


# Verbs that write down what is made.
KEEPING = ("sweep", "probe", "score", "compare", "rivals", "more", "generate", "prefer")
USAGE: Any = typer.BadParameter.__mro__[1]  # of what the command line itself refuses; typer has no name for it
NO_NAME = (errno.ENAMETOOLONG, errno.ELOOP)


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
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup
            signal.signal(number, stop_at_once)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    settle()
    try:
        code = app(standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except USAGE as error:
        if not (message := error.format_message()):  # no verb at all: its help is shown by now
            sys.exit(error.exit_code)
        where = f"; see {error.ctx.command_path} --help" if error.ctx else ""
        _fail(f"{message.rstrip('.')}{where}", error.exit_code)
    except SystemExit:
        if _is_another(sys.argv[1:]):  # who is asked to end once more, by who started it
            _be_deaf()
        raise
    except InstilError as error:
        _fail(str(error), error.exit_code)
    except Stopped as stopped:
        if _is_another(sys.argv[1:]):
            _be_deaf()
            sys.exit(128 + stopped.number)  # the first says it
        _fail(_stopped(stopped, sys.argv[1:]), 128 + stopped.number)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        advice = "; make room there, or choose another place" if error.errno in FULL else ""
        advice = "; choose another name" if error.errno in NO_NAME else advice
        _fail(f"{what}{error.strerror or error}{advice}", UserError.exit_code if error.errno in NO_NAME else 1)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        _fail("out of memory; lower train.micro_batch or generate.batch_size", 1)


def _stopped(stopped: Stopped, arguments: list[str]) -> str:
    """What is said of a process that a signal has stopped: what is kept, and how to go on."""
    verb = arguments[0] if arguments else ""
    if verb not in ("run", "train"):
        return "stopped; what was made so far is kept" if verb in KEEPING else "stopped"
    if stopped.folder is None:
        return "stopped before anything was written; the same command begins again"
    kept = f" {stopped.kept}" if stopped.kept else "; what the run folder holds so far is kept"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"stopped{kept}. To go on: the same torchrun command with --resume"
    again = [one for one in arguments if one not in ("--overwrite", "--resume")]
    if number := os.environ.get("INSTIL_PROCESSES"):
        again += ["--processes", number]
    return f"stopped{kept}. To go on: {shlex.join(['instil', *again, '--resume'])}"


def _is_another(arguments: list[str]) -> bool:
    """Whether this is one of several processes of a run, and not the first."""
    several = os.environ.get("WORLD_SIZE", "1") not in ("", "1") and os.environ.get("RANK", "0") not in ("", "0")
    return several and arguments[:1] in (["run"], ["train"])


def _be_deaf() -> None:
    """Hear no signal any more, but end; a handler would not hold while Python takes itself apart."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _fail(message: str, code: int) -> NoReturn:
    _be_deaf()  # who presses Ctrl-C once more is to see why it ends, and no traceback
    with suppress(OSError, ValueError):  # nobody may be there to read it
        print(f"instil: {visible(message)}", file=sys.stderr, flush=True)
    sys.exit(code)
