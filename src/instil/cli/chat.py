"""``instil chat``: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.cli.options import AdapterOpt, Bf16Opt, Int8Opt, SetOpt, chosen_settings
from instil.cli.show import show_lines, show_note, show_stream
from instil.errors import UserError, did_you_mean
from instil.screen import visible

if TYPE_CHECKING:
    from types import FrameType

    from instil.recipes.chat import Conversation, Side

commands = typer.Typer()

HELP = {
    "/help": "these lines",
    "/system TEXT": "the system message, from the next question on; without TEXT none",
    "/set KEY VALUE": "a setting of generation: temperature 0.7, max_new_tokens 64, top_p 0.9, seed 7, ...",
    "/retry": "answer the last question again (warmer, where answers are always the likeliest)",
    "/undo": "take the last question and its answer back",
    "/clear": "begin anew",
    "/versus": "the base model answers, too; again to end that",
    "/keep": "write the conversation as a row for training (kept.jsonl)",
    "/better 1|2": "write the last two answers as a preference pair (pairs.jsonl), and go on from the better",
    "/quit": "leave; so does Ctrl-D",
}
KEYS = "Enter sends; Alt-Enter or a \\ at the end of a line begins a new one; Ctrl-C ends an answer"


@commands.command("chat")
def chat_command(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or any model.")],
    system: Annotated[str, typer.Option("--system", help="A system message.")] = "",
    versus: Annotated[
        bool, typer.Option("--versus", help="Show what the base model of the run answers beside it.")
    ] = False,
    template: Annotated[str | None, typer.Option("--template", help="For a model that carries none.")] = None,
    adapter: AdapterOpt = None,
    int8: Int8Opt = False,
    bf16: Bf16Opt = False,
    folder: Annotated[
        Path, typer.Option("--folder", help="Where /keep and /better write their rows.", show_default="here")
    ] = Path(),
    settings: SetOpt = None,
) -> None:
    """Talk with a model: several turns, side by side with its base, answers kept as rows for training."""
    from instil.assistant.assistant import load
    from instil.recipes.chat import Conversation, Side

    changed = chosen_settings(settings, None, only="generate").generate.model_dump(exclude_unset=True)
    show_note(f"loading {model}")
    assistant = load(model, template=template, int8=int8, bf16=bf16, adapter=adapter, **changed)
    for note in assistant.decoder.notes:
        show_note(note)
    talk = Conversation([Side("tuned" if versus else "", assistant)], assistant.options, folder, system)
    chat = _Chat(talk, model)
    if versus:
        chat.versus()
    if sys.stdin.isatty():
        show_note(f"{KEYS}; /help has more")
    for line in _lines():
        try:
            if chat.take(line):
                break
        except UserError as error:
            show_note(str(error))


class _Chat:
    """What the terminal does with each line."""

    def __init__(self, talk: Conversation, model: str) -> None:
        self._talk, self._model = talk, model
        self._does: dict[str, Callable[[str], bool | None]] = {
            "/help": self._help,
            "/system": self._system,
            "/set": self._set,
            "/retry": self._retry,
            "/undo": self._undo,
            "/clear": self._clear,
            "/versus": lambda rest: self.versus(),
            "/keep": lambda rest: _wrote(self._talk.keep()),
            "/better": self._better,
            "/quit": lambda rest: True,
            "/exit": lambda rest: True,
        }

    def take(self, line: str) -> bool:
        """Do what a line says; whether that was to leave.

        Raises:
            UserError: it cannot be done; the conversation is as before.
        """
        text = line.strip()
        if not text:
            return False
        word, _, rest = text.partition(" ")
        if word.startswith("/") and (word in self._does or word[1:].isalpha()):
            if word not in self._does:
                raise UserError(f"no command {word}{did_you_mean(word, self._does)}; /help lists them")
            return bool(self._does[word](rest.strip()))
        self._talk.ask(line.strip("\n"))
        self._answer()
        return False

    def _answer(self) -> None:
        """Show what each side answers; where one cannot, the question is taken back."""
        try:
            for side in self._talk.sides:
                _show(side, self._talk.answer(side))
        except UserError:
            self._talk.undo()
            raise

    def versus(self) -> None:
        """The base model as a second side, or no longer."""
        from instil.assistant.assistant import load
        from instil.recipes.chat import Side
        from instil.runs.folder import RUN_FILE, RunFolder

        if len(self._talk.sides) == 2:
            self._talk.sides.pop()
            self._talk.sides[0].name, self._talk.choice = "", None
            show_note("the base model is gone")
            return
        if not (Path(self._model) / RUN_FILE).is_file():
            raise UserError(f"{self._model} is no run, so its base is not known; /versus goes with runs")
        base = RunFolder(Path(self._model)).base()
        show_note(f"loading {base}, which the run was tuned from")
        assistant = load(base)
        said = list(self._talk.sides[0].said)  # the same conversation so far
        self._talk.sides[0].name = "tuned"
        self._talk.sides.append(Side("base", assistant, said))

    def _help(self, rest: str) -> None:
        show_lines([*(f"{name:15} {meaning}" for name, meaning in HELP.items()), KEYS])

    def _system(self, rest: str) -> None:
        self._talk.system = rest
        show_note("system message set" if rest else "no system message")

    def _set(self, rest: str) -> None:
        name, _, value = rest.replace("=", " ", 1).partition(" ")
        if not name or not value.strip():
            shown = self._talk.options.model_dump()
            show_lines(f"{key:20} {said}" for key, said in shown.items())
            return
        self._talk.set(name, value.strip())

    def _retry(self, rest: str) -> None:
        before = self._talk.retry()
        self._answer()
        self._talk.tried_again(before)
        if self._talk.choice and len(self._talk.sides) == 1:
            show_note("/better 1 says that the answer before was better, /better 2 that this one is")

    def _undo(self, rest: str) -> None:
        show_note(f"taken back: {visible(self._talk.undo())[:60]}")

    def _clear(self, rest: str) -> None:
        self._talk.clear()
        show_note("a new conversation")

    def _better(self, rest: str) -> None:
        if rest not in ("1", "2"):
            raise UserError(f"/better {rest}: wanted 1 or 2")
        _wrote(self._talk.better(int(rest)))


def _wrote(file: Path) -> None:
    show_note(f"a row more in {file}")


def _show(side: Side, pieces: Generator[str, None, None]) -> None:
    """An answer as it comes; Ctrl-C ends it, and not the program."""
    stopped: list[int] = []

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.append(number)

    def coming() -> Iterator[str]:
        yield f"[{side.name}] " if side.name else ""
        for piece in pieces:
            yield visible(piece)
            if stopped:
                break
        pieces.close()  # what it had begun to compute ends
        yield " [stopped]" if stopped else ""

    before = signal.signal(signal.SIGINT, stop)
    try:
        show_stream(coming())
    finally:
        signal.signal(signal.SIGINT, before)


def _lines() -> Iterator[str]:
    """What is typed, with an editor on a terminal; else the lines of stdin."""
    if not sys.stdin.isatty() or not sys.stdout.isatty():
        yield from sys.stdin
        return
    session = _session()
    while True:
        try:
            text = session.prompt("> ")
            while text.endswith("\\"):
                text = f"{text[:-1]}\n{session.prompt('. ')}"
        except KeyboardInterrupt:
            continue  # the line is dropped
        except EOFError:
            return
        yield text


def _session() -> Any:
    """The editor: history from one time to the next where that can be kept, several lines with Alt-Enter."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, History, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings

    from instil.downloads import cache_folder

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _newline(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    history: History = InMemoryHistory()
    with contextlib.suppress(OSError):
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "chat_history"
        file.touch(mode=0o600)
        history = FileHistory(str(file))
    words = [name.partition(" ")[0] for name in HELP]
    return PromptSession(
        history=history,
        key_bindings=keys,
        completer=WordCompleter(words, sentence=True),
        complete_while_typing=False,
    )
