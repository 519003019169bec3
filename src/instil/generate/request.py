"""What is asked of the engine, what comes out, and what it knows of a request while answering it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from instil.generate.sampling import Sampler, Sampling
from instil.generate.slots import Slot
from instil.generate.speculation import PromptLookup
from instil.records import Finish


@dataclass(frozen=True, slots=True)
class Generated:
    """The new ids of one row, without the end token, and why it ended."""

    ids: tuple[int, ...]
    finish: Finish


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt and how it is to be answered.

    Attributes:
        prompt: ids.
        max_new_tokens: longest answer.
        stop_ids: ids that end it; they are no part of it.
        sampling: how tokens are picked.
        keep: remember prompt and answer for a later prompt that begins so, such as the next turn of a chat.
        on_token: told every new id as it comes; the answer ends with it if this returns true.
        on_done: told the answer when it has ended, in whoever's step that is.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    stop_ids: frozenset[int] = frozenset()
    sampling: Sampling = field(default_factory=Sampling)
    keep: bool = False
    on_token: Callable[[int], bool | None] = lambda token: None
    on_done: Callable[[Generated], None] = lambda generated: None


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
