"""What is asked of the engine, what comes out, and what it knows of a request while answering it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from instil.errors import DataError
from instil.generate.sampling import Sampler, Sampling, shaped
from instil.generate.slots import Slot
from instil.generate.speculation import PromptLookup
from instil.machine import sent
from instil.records import Finish


@dataclass(frozen=True, slots=True)
class Generated:
    """The new ids of one row, without the end token, and why it ended."""

    ids: tuple[int, ...]
    finish: Finish


class Constraint(Protocol):
    """What one answer is held to, such as a grammar; it goes along with the tokens as they are taken."""

    def allowed(self, size: int) -> Tensor:
        """Whether each id may come next, bool [size], those that end the answer among them; never none at all."""
        ...

    def take(self, token: int) -> None:
        """A token was taken."""
        ...


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What the model itself thought of a token that was taken, before temperature, penalties and constraints.

    Attributes:
        token: its id.
        logprob: the logarithm of its probability.
        top: the likeliest ids with theirs, the likeliest first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how it is to be answered.

    Attributes:
        prompt: ids.
        max_new_tokens: longest answer.
        stop_ids: ids that end it; they are no part of it.
        sampling: how tokens are picked.
        keep: remember prompt and answer for a later prompt that begins so, such as the next turn of a chat.
        constraint: what the answer is held to; no other request has the same one.
        logprobs: for how many of the likeliest tokens logarithms of probabilities are told; None: for none.
        on_logprobs: told them for every new token, before the token.
        on_token: told every new id as it comes; the answer ends with it if this returns true.
        on_done: told the answer when it has ended, in whoever's step that is.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    keep: bool = False
    constraint: Constraint | None = None
    logprobs: int | None = None
    on_logprobs: Callable[[TokenLogprobs], None] = lambda told: None
    on_token: Callable[[int], bool | None] = lambda token: None
    on_done: Callable[[Generated], None] = lambda generated: None


def check_prompt(ids: Sequence[int], vocab_size: int) -> None:
    """Refuse a prompt that a model cannot read.

    Raises:
        DataError: it is empty or holds ids that the model does not have.
    """
    if not ids:
        raise DataError("the prompt is empty")
    if not 0 <= min(ids) <= max(ids) < vocab_size:
        raise DataError(f"the prompt has ids outside of the model's {vocab_size:,}")


class Row:
    """A request being answered."""

    def __init__(self, ticket: int, request: Request, slot: Slot, reserved: int) -> None:
        self.ticket, self.request, self.slot, self.reserved = ticket, request, slot, reserved
        self.ids = list(request.prompt)
        self.sampler = Sampler(request.sampling.seed)
        self.lookup = PromptLookup()
        self.finish: Finish | None = None

    @property
    def new_tokens(self) -> int:
        """How many have been picked so far."""
        return len(self.ids) - len(self.request.prompt)

    @property
    def pending(self) -> int:
        """Tokens that are known and not computed yet."""
        return len(self.ids) - self.slot.filled

    @property
    def can_guess(self) -> bool:
        """Whether its next tokens can be guessed and checked: none is left to chance or to a constraint."""
        return self.request.sampling.greedy and self.request.constraint is None

    def shape(self, logits_V: Tensor, guessed: Sequence[int] = ()) -> Tensor:
        """Scores of its next token, after some that are guessed, with all that was asked for, in place."""
        if self.request.sampling.by_text:
            begin, text = len(self.request.prompt), [*self.ids, *guessed]
            shaped(logits_V, text[:begin], text[begin:], self.request.sampling)
        if self.request.constraint is not None:
            allowed_V = self.request.constraint.allowed(logits_V.shape[-1])
            logits_V.masked_fill_(sent(~allowed_V, logits_V.device), float("-inf"))
        return logits_V

    def tell(self, token: int, logprobs_V: Tensor) -> None:
        """Tell what the model thought of a token that is taken."""
        assert self.request.logprobs is not None
        self.request.on_logprobs(token_logprobs([token], logprobs_V[None], self.request.logprobs)[0])


def token_logprobs(tokens: Sequence[int], logprobs_SV: Tensor, top: int) -> list[TokenLogprobs]:
    """What is told of tokens, each of all that might have stood there, with so many of the likeliest."""
    own_S1 = logprobs_SV.gather(1, sent(torch.tensor(tokens), logprobs_SV.device)[:, None])
    best = logprobs_SV.topk(min(top, logprobs_SV.shape[1]))
    read = torch.cat([own_S1.double(), best.indices.double(), best.values.double()], 1).tolist()  # all at once
    found = []
    for token, (own, *rest) in zip(tokens, read, strict=True):
        ids, values = rest[: len(rest) // 2], rest[len(rest) // 2 :]
        found.append(TokenLogprobs(token, own, tuple(zip(map(int, ids), values, strict=True))))
    return found
