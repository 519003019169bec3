"""Texts from a language model: many at once, with patience, on disk as they come, and never asked for twice.

The clients, the patience and the journal are those of the judges. What a model said is final, also where it said
nothing or was cut off; what failed or was refused is asked for again by the same command.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from instil.ask.attention import Attention, doubtful_last
from instil.ask.client import Client, ModelRequest, Reply
from instil.ask.http import Passing, Refused
from instil.ask.journal import Journal, key_of
from instil.ask.named import opened
from instil.ask.patience import FAILURES_IN_A_ROW, Breaker, ask_all
from instil.ask.thoughts import ONLY, OPEN, spoken
from instil.errors import (
    JudgeError,
    StoppedEarly,
    did_you_mean,
)
from instil.evaluate.judging import context_for, refusal, unread
from instil.screen import Advance
from instil.settings.asking import MakeOptions

CALLS = 3  # commands after which a request that always fails is given up, where another can take its place
READER = 2  # to be raised whenever a reply is read differently; 1 cut texts at a mark of a thought in a sentence
WRITERS = ("ollama:MODEL", "openai:MODEL", "http://HOST/v1", "llamacpp:FILE.gguf")


@dataclass(frozen=True, slots=True)
class TextRequest:
    """One request: a message to the model, or (``raw``) a text that it goes on with as it stands.

    ``kind`` names the prompt, for the journal's reader; ``schema`` constrains the reply to JSON where the server can
    do that; a reply ends before a ``stop`` text.
    """

    row: int
    text: str
    seed: int
    kind: str
    schema: dict[str, Any] | None = None
    raw: bool = False
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextResult:
    """What came of a request: a text without thoughts, or None with the reason.

    ``found``: it was in the journal; ``failed``: there was no reply, and the same command asks again.
    """

    row: int
    text: str | None
    reason: str = ""
    key: str = ""
    found: bool = False
    failed: bool = False


@contextmanager
def writer(name: str, options: MakeOptions, say: Callable[[str], object] = lambda note: None) -> Iterator[Client]:
    """A model that writes, by its name, opened.

    Raises:
        JudgeError: there is no such kind, or it is not there.
    """
    kind, _, what = name.partition(":")
    known = [one.partition(":")[0] for one in WRITERS] + ["https"]
    if kind not in known or not what:
        raise JudgeError(f"no model behind {name!r}; known: {', '.join(WRITERS)}{did_you_mean(kind, known)}")
    with opened(name, options.asking, say) as client:
        yield client


def write_all(
    model: Client,
    requests: Sequence[TextRequest],
    options: MakeOptions,
    journal: Journal,
    on_done: Callable[[TextResult], None] = lambda written: None,
    *,
    calls: int = 0,
) -> list[TextResult]:
    """Ask an opened model for every text that the journal does not hold; what came, in the order of the requests.

    Two equal requests (same text and seed) are one. A request that fails has no text, and ``failed`` is set.

    Args:
        model: who is asked.
        requests: the requests.
        options: how to ask; temperature and the longest reply are part of what a reply is known by.
        journal: what is known already, and where every reply goes.
        on_done: called with each request's result as it comes.
        calls: a request at which the model fails in so many calls with this journal is given up: it has not ``failed``,
            but has no text, for good once the model has answered another: till then it may be the model that is not
            there. 0: never, as befits texts that nothing else can stand for.

    Raises:
        JudgeError: the model does not take the requests.
        StoppedEarly: it stopped answering; the journal holds what it said.
    """
    # What the journal holds, and what it lacks.
    keys = [request_key(model, request, options) for request in requests]
    done: dict[str, TextResult] = {}
    missing: dict[str, TextRequest] = {}
    for key, request in zip(keys, requests, strict=True):
        entry = _sound(journal.find(key), options)
        if entry is not None and key not in done:
            done[key] = TextResult(request.row, entry["text"], entry["reason"], key, found=True)
        elif entry is None:
            missing.setdefault(key, request)
    for key in keys:
        if key in done:
            on_done(done[key])
    num_ctx = options.num_ctx or context_for((request.text for request in missing.values()), options.max_tokens)
    breaker = Breaker(model.name, len(set(keys)), len(done), "replies")

    # Ask for the rest; every reply is written down before it is told of.
    def message_of(task: tuple[str, TextRequest]) -> ModelRequest:
        return ModelRequest(task[1].text, task[1].schema, task[1].seed, num_ctx, task[1].stop)

    def ask(task: tuple[str, TextRequest]) -> Reply:
        return model.complete(message_of(task)) if task[1].raw else model.chat(message_of(task))

    outcomes = ask_all(list(missing.items()), ask, options.concurrency or model.workers, options.tries)
    for outcome in doubtful_last(outcomes, model.attention, message_of):
        key, request = outcome.task
        given_up = False
        if outcome.result is not None:
            breaker.succeeded()
            journal.settle()
            text, reason = read_text(outcome.result, message_of(outcome.task), model.attention)
            done[key] = TextResult(request.row, text, reason, key)
        elif isinstance(outcome.error, Refused):  # of this request alone
            done[key] = TextResult(request.row, None, refusal(outcome.error, "make"), key)
        else:
            assert outcome.error is not None
            failed = isinstance(outcome.error, Passing)  # at this request, maybe; else the model is not there
            given_up = failed and 0 < calls <= journal.failures(key) + 1
            times = f" {calls} times" if given_up else ""
            done[key] = TextResult(
                request.row, None, f"the model failed{times}: {outcome.error}", key, failed=not given_up
            )
            breaker.failed(outcome.error)
        entry = {
            "row": request.row,
            "writer": model.name,
            "kind": request.kind,
            "seed": request.seed,
            "text": done[key].text,
            "reason": done[key].reason,
            "num_ctx": options.num_ctx,
            "failed": isinstance(outcome.error, Passing),
        }
        journal.add(key, entry, counts=outcome.result is not None)
        if given_up and journal.doubt(key, {**entry, "failed": False}) >= FAILURES_IN_A_ROW:
            raise StoppedEarly(done[key].reason) from outcome.error
        on_done(done[key])
    return [_for_row(done[key], request.row) for key, request in zip(keys, requests, strict=True)]


def request_key(model: Client, request: TextRequest, options: MakeOptions) -> str:
    """What a reply is known by: the model, the request and the settings that shape the reply."""
    settings = [options.temperature, options.max_tokens, request.seed, request.raw, list(request.stop)]
    return key_of("writing", READER, model.identity, request.schema, request.text, settings)


def read_text(reply: Reply, request: ModelRequest, attention: Attention | None = None) -> tuple[str | None, str]:
    """The text of a reply without thoughts, or None with the reason: it is cut off, or there is none.

    >>> read_text(Reply("<think>hm</think> A task. "), ModelRequest("?", None, 1, 2048))
    ('A task.', '')
    >>> read_text(Reply("A tas", cut=True), ModelRequest("?", None, 1, 2048))
    (None, 'the reply was cut off; raise make.max_tokens')
    """
    if reason := unread(reply, request, "make", attention):
        return None, reason
    said = spoken(reply.text, data=True)
    if said.reason:
        return None, "the reply holds a thought and no text" if said.reason in (OPEN, ONLY) else said.reason
    text = said.text.replace("\x00", "")
    return (text, "") if text else (None, "the reply is empty")


def _sound(entry: dict[str, Any] | None, options: MakeOptions) -> dict[str, Any] | None:
    """An entry of a journal, if it holds what this file writes; with another context a cut reply is asked for anew."""
    if entry is None or not isinstance(entry.get("reason"), str):
        return None
    text = entry.get("text")
    if text is None:
        return entry if entry.get("num_ctx") == options.num_ctx and entry["reason"] else None
    return entry if isinstance(text, str) and text else None


def _for_row(written: TextResult, row: int) -> TextResult:
    return (
        written
        if written.row == row
        else TextResult(row, written.text, written.reason, written.key, written.found, written.failed)
    )


@dataclass(slots=True)
class BatchWriter:
    """Requests to one model, counted; a batch in which one failed ends the work, with the journal kept."""

    model: Client
    options: MakeOptions
    journal: Journal
    advance: Advance = field(default=lambda note="", steps=1: None)
    calls: int = 0  # at which a request may fail; 0: any number
    steps: int = 1  # of the bar, for each reply; 0 where rows are counted, of which a barren stretch has none
    asked: int = 0
    found: int = 0

    def __call__(self, wanted: Sequence[TextRequest]) -> list[TextResult]:
        before = self.asked + self.found
        try:
            written = write_all(self.model, wanted, self.options, self.journal, self._came, calls=self.calls)
        except (StoppedEarly, JudgeError) as error:
            if (isinstance(error, JudgeError) and not before) or isinstance(error.__cause__, OSError):
                raise  # it takes no request at all; the journal cannot be written
            raise self._stopped(error.__cause__ or error if isinstance(error, StoppedEarly) else error) from error
        failed = [one for one in written if one.failed]
        if failed:
            raise self._stopped(failed[0].reason)
        return written

    def _stopped(self, why: object) -> StoppedEarly:
        kept = self.asked + self.found
        return StoppedEarly(
            f"{self.model.name} stopped answering: {why}. {kept} replies are kept; the same command asks for the rest"
        )

    def _came(self, written: TextResult) -> None:
        if written.failed:
            return
        self.asked += not written.found
        self.found += written.found
        self.advance(f"{self.asked + self.found} asked", self.steps)
