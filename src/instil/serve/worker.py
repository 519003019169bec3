"""One thread that answers for everybody: it owns the engines, takes requests between passes, and tells what comes.

Requests of all clients share the passes of a model's engine (continuous batching); models take turns, a pass each. How
many requests may be under way is bounded: one more is refused at once, which is better than an answer that comes when
nobody waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from instil.errors import InstilError
from instil.generate.answer import AnswerStream
from instil.generate.engine import Engine
from instil.generate.reading import Reading
from instil.generate.request import Generated, Request, TokenLogprobs
from instil.records import Finish
from instil.serve.errors import ServeError
from instil.serve.metrics import Metrics
from instil.serve.models import Models, Served

UNDER_WAY = 64  # requests at once, those being answered included
ALONE = 2  # models that may each take a third of the free memory for keys and values, as engines do; more share that
LEFT = "left"  # what became of a request that nobody waits for any more
IDLE = 30.0  # seconds without a request after which what was made of the weights to be faster is let go


class Busy(ServeError):
    """As many requests are under way as may be; in so many seconds there may be room."""

    def __init__(self, seconds: int) -> None:
        message = f"as many requests are under way as may be; try again in {seconds} s"
        super().__init__(503, message, "overloaded_error", code="busy", retry_after=seconds)


class Stopping(ServeError):
    """The server is about to end, and takes nothing more."""

    def __init__(self) -> None:
        super().__init__(503, "the server is about to end", retry_after=10)


@dataclass(slots=True)
class _UnderWay:
    """What became of a request so far: whoever asked has left, as long as nothing else has."""

    outcome: str = LEFT
    new_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """What has come of an answer since the last piece.

    Attributes:
        text: of it, which is certain; an answer's pieces joined are its text.
        tokens: how many new ones there are.
        logprobs: of the new tokens, where they were asked for.
        finish: why it has ended, with the last piece.
    """

    text: str = ""
    tokens: int = 0
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish: Finish | None = None


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way through the thread."""

    served: Served
    request: Request
    text: AnswerStream
    loop: asyncio.AbstractEventLoop
    told: asyncio.Queue[Piece | BaseException]
    ticket: int | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    left: bool = False
    ended: Finish | None = None

    def take(self, token: int) -> bool:
        """A new token, in the thread."""
        text = self.text.push(token)
        self.pieces.append(Piece(text, 1, tuple(self.logprobs)))
        self.logprobs.clear()
        return self.text.stopped

    def done(self, generated: Generated) -> None:
        """The end of it, in the thread."""
        self.ticket, self.ended = None, generated.finish
        self.pieces.append(Piece(self.text.finish(), finish=generated.finish))

    @property
    def failed(self) -> bool:
        """Whether it ended by a fault of its own: it was given up, or its end could not be told."""
        finish = self.pieces[-1].finish if self.pieces else None
        return self.ended is not None and not self.left and finish in (None, "cancelled")

    def tell(self, error: BaseException) -> None:
        """Hand over why there is no answer."""
        _deliver(self.loop, [(self.told, error)])


@dataclass(slots=True, eq=False)
class _ToRead:
    """A text that a model is to say of what it thinks of it, on its way through the thread."""

    served: Served
    ids: Sequence[int]
    top: int
    ends: Sequence[int]
    loop: asyncio.AbstractEventLoop
    told: asyncio.Queue[list[TokenLogprobs] | BaseException]
    left: bool = False
    begun: Reading | None = None

    def go_on(self) -> bool:
        """Read a piece, in the thread; whether that was all."""
        if self.left:
            return True
        try:
            if self.begun is None:
                self.begun = Reading(self.served.assistant.decoder, self.ids, self.top, self.ends)
            if not self.begun.step():
                return False
            found = self.begun.found
            # as in an answer: of numbers that are none nothing is told
            if not all(math.isfinite(one.logprob) or one.logprob == -math.inf for one in found):
                raise InstilError(f"{self.served.name} gives scores that are no numbers; its weights are broken")
        except Exception as error:
            self.tell(_in_words(error))
        else:
            _deliver(self.loop, [(self.told, found)])
        return True

    def tell(self, error: BaseException) -> None:
        """Hand over why nothing is told."""
        _deliver(self.loop, [(self.told, error)])


def _joined(pieces: list[Piece]) -> Piece:
    return Piece(
        "".join(piece.text for piece in pieces),
        sum(piece.tokens for piece in pieces),
        tuple(one for piece in pieces for one in piece.logprobs),
        pieces[-1].finish,
    )


class Worker:
    """Answers requests for the models that are served, from any number of tasks of one event loop.

    Args:
        models: what is served.
        under_way: requests at once, at most, whether they are being answered or waiting.
        rows: answers made side by side by one model, at most.
        metrics: where it is counted what was done.
    """

    def __init__(
        self, models: Models, *, under_way: int = UNDER_WAY, rows: int = 32, metrics: Metrics | None = None
    ) -> None:
        self.models, self.most, self.under_way = models, under_way, 0
        self.metrics = metrics or Metrics()
        self.metrics.most.set(under_way)
        # By engine, since two runs that were tuned from one model share that as their base.
        self._jobs: dict[Engine, list[_Job]] = {served.assistant.engine: [] for served in models.values()}
        for engine in self._jobs:
            engine.rows = rows
            engine.memory = engine.memory * ALONE // max(ALONE, len(self._jobs))
        self._inbox: queue.SimpleQueue[tuple[str, _Job] | _ToRead | None] = queue.SimpleQueue()
        self._readings: deque[_ToRead] = deque()
        self._thread = threading.Thread(target=self._work, name="answers", daemon=True)
        self._seconds = 1.0  # that an answer takes, of late
        self._stopping = self._ended = False

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are being taken."""
        return self._thread.is_alive() and not (self._stopping or self._ended)

    def stop(self) -> None:
        """Take nothing more and let the thread end; what is under way is broken off."""
        self._stopping = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def check_room(self, served: Served, count: int = 1) -> None:
        """Refuse so many more requests to a model where they are too many.

        Raises:
            Busy: they are.
            Stopping: the server is about to end.
            ServeError: they are more than there is ever room for (400).
        """
        if not self.alive:
            raise Stopping()
        if count > self.most:
            raise ServeError(400, f"this asks for {count} answers; at most {self.most} can be under way at once")
        if self.under_way + count > self.most:
            self.metrics.requests.labels(served.name, "refused").inc(count)
            raise Busy(min(60, max(1, round(self._seconds))))

    async def answer(self, served: Served, request: Request, text: AnswerStream) -> AsyncIterator[Piece]:
        """The answer to a request in pieces; the last one says why it ended. Leaving early ends the work on it.

        Args:
            served: the model that is to answer.
            request: its own functions are not used.
            text: what turns its ids into text.

        Raises:
            Busy, Stopping: as `check_room`.
            DataError: as `Engine.submit`.
            InstilError: the model's numbers are no numbers.
        """
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | BaseException] = asyncio.Queue()
        job = _Job(served, request, text, loop, pieces)
        job.request = replace(request, on_token=job.take, on_done=job.done, on_logprobs=job.logprobs.append)
        name, started = served.name, time.monotonic()
        with self._one_more(served, len(request.prompt)) as work:
            try:
                self._inbox.put(("submit", job))
                if self._ended:  # nobody may have seen it
                    raise Stopping()
                while work.outcome == LEFT:
                    piece = await _next(pieces)
                    if piece.tokens and not work.new_tokens:
                        self.metrics.first.labels(name).observe(time.monotonic() - started)
                    work.new_tokens += piece.tokens
                    if piece.finish is not None:
                        work.outcome = piece.finish
                    yield piece
                seconds = time.monotonic() - started
                self.metrics.whole.labels(name).observe(seconds)
                self._seconds += 0.2 * (seconds - self._seconds)
            finally:
                if work.outcome == LEFT:
                    self._inbox.put(("cancel", job))

    async def read(self, served: Served, ids: Sequence[int], top: int, ends: Sequence[int]) -> list[TokenLogprobs]:
        """What a model thinks of a text (`instil.generate.reading`); between two pieces, answers have a pass.

        Raises:
            Busy, Stopping: as `check_room`.
            InstilError: the model's numbers are no numbers.
        """
        told: asyncio.Queue[list[TokenLogprobs] | BaseException] = asyncio.Queue()
        reading = _ToRead(served, ids, top, ends, asyncio.get_running_loop(), told)
        with self._one_more(served, len(ids)) as work:
            try:
                self._inbox.put(reading)
                if self._ended:
                    raise Stopping()
                found = await told.get()
                if isinstance(found, BaseException):
                    raise found
                work.outcome = "read"
                return found
            finally:
                reading.left = True

    @contextlib.contextmanager
    def _one_more(self, served: Served, prompt_tokens: int) -> Iterator[_UnderWay]:
        """One request more is under way within this block, and counted with what became of it.

        Raises:
            Busy, Stopping: as `check_room`.
        """
        self.check_room(served)
        self.under_way += 1
        self.metrics.under_way.set(self.under_way)
        work = _UnderWay()
        try:
            yield work
        except Exception:
            work.outcome = "failed"
            raise
        finally:
            self.under_way -= 1
            self.metrics.under_way.set(self.under_way)
            self.metrics.requests.labels(served.name, work.outcome).inc()
            self.metrics.prompt_tokens.labels(served.name).inc(prompt_tokens)
            self.metrics.new_tokens.labels(served.name).inc(work.new_tokens)

    def _work(self) -> None:
        """What the thread does until it is stopped."""
        try:
            while self._take_in():
                for engine, jobs in self._jobs.items():
                    if jobs:
                        self._step(engine, jobs)
                if self._readings and self._readings[0].go_on():
                    self._readings.popleft()
        finally:  # whatever ended it, nobody waits for an answer that does not come
            self._ended = True
            waiting: list[_Job | _ToRead] = [job for jobs in self._jobs.values() for job in jobs]
            waiting += self._readings
            with contextlib.suppress(queue.Empty):
                while True:
                    message = self._inbox.get_nowait()
                    if message is not None:
                        waiting.append(message if isinstance(message, _ToRead) else message[1])
            for job in waiting:
                job.tell(Stopping())

    def _take_in(self) -> bool:
        """What has been asked for since the last pass, waited for where nothing is to be done; whether to go on."""
        while True:
            idle = not any(self._jobs.values()) and not self._readings
            try:
                message = self._inbox.get(block=idle, timeout=IDLE)
            except queue.Empty:
                if not idle:
                    return True
                for engine in self._jobs:
                    engine.close()
                continue
            if message is None:
                return False
            if isinstance(message, _ToRead):
                self._readings.append(message)
                continue
            what, job = message
            engine = job.served.assistant.engine
            if what == "submit":
                try:
                    job.ticket = engine.submit(job.request)
                    self._jobs[engine].append(job)
                except Exception as error:
                    job.tell(_in_words(error))
            else:
                job.left = True
                if job.ticket is not None:
                    with contextlib.suppress(Exception):  # nobody waits for it
                        engine.cancel(job.ticket)

    def _step(self, engine: Engine, jobs: list[_Job]) -> None:
        """One pass of a model, and what came of it told."""
        try:
            engine.step()
        except Exception as error:
            told = _in_words(error)
            failed = [job for job in jobs if job.failed]
            for job in failed or jobs:  # where it is nobody's own fault, nothing of this pass can be trusted
                if job.ticket is not None:
                    with contextlib.suppress(Exception):
                        engine.cancel(job.ticket)
                job.left = True
                job.pieces.clear()
                job.tell(told)
        # All that came of the pass wakes the other thread once, not once for each answer.
        came: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Queue[Piece | BaseException], Piece]]] = {}
        for job in jobs:
            if job.pieces and not job.left:
                came.setdefault(job.loop, []).append((job.told, _joined(job.pieces)))
                job.pieces.clear()
        for loop, pieces in came.items():
            _deliver(loop, pieces)
        jobs[:] = [job for job in jobs if job.ticket is not None and not job.left]


def _in_words(error: Exception) -> InstilError:
    """What clients are told of an exception; of one that nobody expected, more stands in the log."""
    if isinstance(error, InstilError):
        return error
    traceback.print_exception(error, file=sys.stderr)
    return InstilError(f"the model could not go on: {type(error).__name__}: {error}")


async def _next(pieces: asyncio.Queue[Piece | BaseException]) -> Piece:
    """All that has come, as one piece, waited for where nothing has: a client that reads slowly gets more at once."""
    found: list[Piece] = []
    while not found or not pieces.empty():
        piece = await pieces.get()
        if isinstance(piece, BaseException):
            raise piece
        found.append(piece)
    return _joined(found)


def _deliver(
    loop: asyncio.AbstractEventLoop,
    pieces: Sequence[tuple[asyncio.Queue[Any], Any]],
) -> None:
    """Put pieces where their tasks wait for them, unless the loop has ended."""

    def put() -> None:
        for told, piece in pieces:
            told.put_nowait(piece)

    with contextlib.suppress(RuntimeError):  # it has
        loop.call_soon_threadsafe(put)
