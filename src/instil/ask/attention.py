"""Whether a model has read the whole of a question, by the count of tokens that its server tells.

A server that cuts a prompt says so by its count only. But some count what they had not read before: a beginning that
many questions share is read once. A small count alone therefore proves nothing where a longer prompt was read whole, or
where the count is less than half of what was read of another: a prompt that is cut fills at least half of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from instil.ask.client import ModelRequest, Reply
from instil.ask.patience import Outcome

READ_AT_LEAST = 0.7  # tokens for each word; less, and the prompt was cut
KEPT_AT_LEAST = 0.5  # of its context a server fills with a prompt that it cuts (Ollama: half, and two)

Task = TypeVar("Task")


class Attention:
    """What one model has read whole, for each context that was asked for."""

    def __init__(self) -> None:
        self._whole: dict[int, tuple[float, int]] = {}  # context: words of the longest prompt, and its tokens

    def part(self, reply: Reply, request: ModelRequest) -> tuple[int, float] | None:
        """Tokens that were read of a prompt, and its words, where the model has read only a part of it; else None."""
        read, words = reply.prompt_tokens, words_of(request.text)
        if read is None or read <= 0:
            return None
        longest, most = self._whole.get(request.num_ctx, (0.0, 0))
        if max(read, read + reply.cached_tokens) >= READ_AT_LEAST * words:
            if words > longest:
                self._whole[request.num_ctx] = (words, max(read, most))
            return None
        if words <= longest or read < KEPT_AT_LEAST * most:
            return None
        return read, words


def words_of(text: str) -> float:
    """Words of a text, a long one counting as several."""
    return sum(max(1.0, len(word) / 10) for word in text.split())


def doubtful_last(
    outcomes: Iterable[Outcome[Task, Reply]], attention: Attention, request_of: Callable[[Task], ModelRequest]
) -> Iterator[Outcome[Task, Reply]]:
    """Outcomes as they come, but those last whose question seems to have been cut: by then more is known."""
    doubtful = []
    for outcome in outcomes:
        if outcome.result is not None and attention.part(outcome.result, request_of(outcome.task)) is not None:
            doubtful.append(outcome)
        else:
            yield outcome
    yield from doubtful
