"""Many requests to a model: a few at a time, each with patience, all stopped when the model is gone.

Requests run on threads that do not keep the process alive, so that a signal ends it at once whatever a server does.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Generic, TypeVar

from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from instil.ask.http import Passing, Unreachable
from instil.errors import JudgeError, StoppedEarly

FIRST_WAIT = 0.5  # seconds before the second try; doubled each time, with a random part
LONGEST_WAIT = 20.0
PATIENCE = 120.0  # the longest that a server may ask to wait
FAILURES_IN_A_ROW = 5

Task = TypeVar("Task")
Result = TypeVar("Result")


class Outcome(Generic[Task, Result]):
    """What came of one task: a result, or the exception that took its place."""

    def __init__(self, task: Task, result: Result | None, error: Exception | None) -> None:
        self.task, self.result, self.error = task, result, error


class Breaker:
    """Stops the work when the model is gone: at once for some errors, else after five failures in a row.

    Args:
        model: its name, for the message.
        total: tasks in all.
        kept: tasks done before this time.
        what: what tasks end in, for the message.
    """

    def __init__(self, model: str, total: int, kept: int, what: str = "verdicts") -> None:
        self._model, self._total, self.done, self._what = model, total, kept, what
        self._in_a_row, self._fresh = 0, 0

    def succeeded(self) -> None:
        """A task has a result."""
        self._in_a_row = 0
        self.done += 1
        self._fresh += 1

    def failed(self, error: Exception) -> None:
        """A task has none.

        Raises:
            JudgeError: the model does not take requests at all.
            StoppedEarly: it has stopped to do so; what was done is kept.
        """
        final = isinstance(error, JudgeError) and not isinstance(error, Unreachable)
        if final and not self._fresh:
            raise error
        self._in_a_row += 1
        asks_to_wait = isinstance(error, Passing) and error.wait > PATIENCE
        if final or asks_to_wait or self._in_a_row >= FAILURES_IN_A_ROW:
            raise StoppedEarly(
                f"{self._model} stopped answering: {error}. {self.done} of {self._total} {self._what} are kept; "
                "the same command asks for the rest"
            ) from error


def ask_all(
    tasks: Sequence[Task], ask: Callable[[Task], Result], workers: int, tries: int
) -> Iterator[Outcome[Task, Result]]:
    """Outcomes as they come. Leave the loop early, and no further task is begun.

    A worker begins its next task when an outcome has been dealt with, not as soon as it has delivered its own: with
    one worker, nothing is asked of a model after the answer that ends the work. Failures that may pass are tried
    again, with waits that double, or as long as the server asks for.
    """
    waiting: queue.SimpleQueue[Task] = queue.SimpleQueue()
    done: queue.SimpleQueue[Outcome[Task, Result]] = queue.SimpleQueue()
    stopped = threading.Event()
    workers = min(workers, len(tasks))
    turns = threading.Semaphore(workers)
    for task in tasks:
        waiting.put(task)

    def work() -> None:
        while turns.acquire() and not stopped.is_set():
            try:
                task = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                done.put(Outcome(task, _with_patience(partial(ask, task), tries, stopped), None))
            except Exception as error:
                done.put(Outcome(task, None, error))

    for _ in range(workers):
        threading.Thread(target=work, daemon=True).start()
    try:
        for _ in tasks:
            yield done.get()
            turns.release()
    finally:
        stopped.set()
        turns.release(max(workers, 1))


def _with_patience(ask: Callable[[], Result], tries: int, stopped: threading.Event) -> Result:
    backoff = wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT) + wait_random(0, FIRST_WAIT)

    def wait(state: RetryCallState) -> float:
        return max(backoff(state), _asked_to_wait(state))

    def enough(state: RetryCallState) -> bool:
        return stopped.is_set() or _asked_to_wait(state) > PATIENCE or stop_after_attempt(tries)(state)

    retrying = Retrying(
        stop=enough,
        wait=wait,
        retry=retry_if_exception_type((Passing, Unreachable)),
        sleep=lambda seconds: _sleep(stopped, seconds),
        reraise=True,
    )
    return retrying(ask)


def _sleep(stopped: threading.Event, seconds: Any) -> None:
    stopped.wait(float(seconds))


def _asked_to_wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    return error.wait if isinstance(error, Passing) else 0.0
