"""The engine: prompts in, new ids out; rows start and finish on their own while all of them share each pass.

It speaks ids only. A pass takes the next token of every row that is being answered and as much of the waiting prompts
as fits beside them, row after row without padding, so that the linear layers compute nothing in vain; the head sees
the last position of each row (continuous batching: Yu et al., 2022, Orca). What is known of a prompt's beginning is not
computed again (`instil.generate.prefixes`).

Greedy answers are those of the loop that computes the whole text again for every token (E2): where the two best scores
lie so close that rounding could exchange them, that token is taken from such a computation.

Shape suffixes: R rows with a pick to make · N tokens, flat · D width · V vocabulary.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from instil.batches import Batch
from instil.errors import DataError, InstilError, SettingsError
from instil.generate.prefixes import PrefixCache
from instil.generate.replay import Replay, replays
from instil.generate.request import Generated, Request, Row, check_prompt
from instil.generate.sampling import CLOSE, NO_NUMBER, Sampling, drawn, most_likely, probabilities
from instil.generate.slots import Slots
from instil.layouts import Tree
from instil.machine import available_memory, sent
from instil.model.cache import Part, position_bytes
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.fast.gemm import pack, unpack
from instil.model.rounded.layer import weights_of

PROMPT_TOKENS = 512  # of waiting prompts in one pass; more would keep the rows being answered waiting
ALONE = 4  # rows up to which a pass is bound by reading the weights, so that guessed tokens cost little
PACK_AFTER = 32  # passes done, and as many to come, from which on a second copy of the weights in a faster order pays
SHARE = 3  # one part in so many of the free memory is for keys and values


class Engine:
    """Answers requests with one decoder. Not for several threads at once.

    Args:
        decoder: its weights must not change while something is being answered. After a change what was remembered
            is forgotten, but for writes through ``.data``, of which torch keeps no count.
        rows: answered side by side, at most.
        memory: bytes for keys and values; by default a third of what is free.
        prefix_memory: bytes for beginnings that are remembered.
        speculate: check guessed tokens where that is nearly free (greedy answers only, which stay the same).
        replay: compute passes of one token a row in memory that stays, recorded on a GPU (`instil.generate.replay`); by
            default where there is one.

    >>> from instil.model.spec import DecoderSpec
    >>> spec = DecoderSpec(family="gpt2", vocab_size=11, width=8, layers=1, heads=2, kv_heads=2,
    ...     head_width=4, mlp_width=16, context=9, norm="layer", norm_eps=1e-5, mlp="gelu",
    ...     positions="learned", attention_bias=True, mlp_bias=True)
    >>> engine = Engine(Decoder(spec))
    >>> ticket = engine.submit(Request([1, 2, 3], max_new_tokens=4))
    >>> [(done == ticket, len(answer.ids), answer.finish) for done, answer in engine.run()]
    [(True, 4, 'length')]
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        rows: int = 128,
        memory: int | None = None,
        prefix_memory: int = 1 << 28,
        speculate: bool = True,
        replay: bool | None = None,
    ) -> None:
        if rows < 1:
            raise SettingsError(f"rows is {rows}; wanted 1 or more")
        self.decoder, self.rows, self.speculate = decoder.eval(), rows, speculate
        self.memory = available_memory(decoder.device) // SHARE if memory is None else memory
        self.prefixes = PrefixCache(decoder, min(prefix_memory, self.memory))
        self.passes = self.tokens = self.recomputed = 0
        self._replay = Replay(decoder) if (replays(decoder) if replay is None else replay) else None
        self._slots = Slots(decoder, keep=self._replay is not None)
        self._each = position_bytes(decoder.spec, decoder.embed.weight.dtype)
        self._waiting: deque[tuple[int, Request, int]] = deque()
        self._active: list[Row] = []
        self._ended: list[tuple[int, Generated]] = []
        self._cancelled: set[int] = set()
        self._stepping = False
        self._tickets = 0
        self._packed, self._opened = False, 0
        self._decides_alone = weights_of(decoder) != "bf16"  # whose scores are a grid, and no nearer to the truth alone

    def submit(self, request: Request) -> int:
        """Line up a request; its ticket.

        Raises:
            DataError: the prompt is empty, holds ids that the model does not have, leaves no room in its context, or
                its keys and values would not fit into memory.
        """
        context, prompt = self.decoder.spec.context, len(request.prompt)
        check_prompt(request.prompt, self.decoder.spec.vocab_size)
        if prompt >= context:
            raise DataError(f"the prompt has {prompt:,} tokens; the model's context is {context:,}")
        if not all(0 <= index < self.decoder.spec.vocab_size for index, _ in request.sampling.logit_bias):
            raise DataError(f"logit_bias names ids outside of the model's {self.decoder.spec.vocab_size:,}")
        if request.max_new_tokens < 1:
            raise DataError(f"max_new_tokens is {request.max_new_tokens}; wanted 1 or more")
        needed = self._slots.size(min(prompt + request.max_new_tokens, context)) * self._each
        if needed > self.memory:
            raise DataError(
                f"keys and values of a prompt of {prompt:,} tokens with up to {request.max_new_tokens:,} new ones need "
                f"{needed / 1e9:.2f} GB and {self.memory / 1e9:.2f} GB are there for them; lower max_new_tokens"
            )
        self._tickets += 1
        self._waiting.append((self._tickets, request, needed))
        return self._tickets

    def cancel(self, ticket: int) -> None:
        """End a request; its slot is free at once, or after the running pass.

        It comes out of the next step with what it has, ``finish="cancelled"``.
        """
        self._cancelled.add(ticket)
        if not self._stepping:
            self._let_go()

    def run(self) -> Iterator[tuple[int, Generated]]:
        """Steps until nothing is left to answer; tickets and answers as they finish."""
        while self._waiting or self._active or self._ended:
            yield from self.step()

    def step(self) -> list[tuple[int, Generated]]:
        """One pass; what has finished.

        An exception of a request's own functions or constraint ends that request alone, which is told that it was
        cancelled; whatever exception it is, the others can be gone on with.
        """
        self._stepping = True
        try:
            with self.decoder.without_graph():
                self._admit()
                if self._active:
                    self._advance()
        finally:
            self._stepping = False
            for row in self._active:  # wrong guesses, and a pass that broke off, computed more than was taken
                row.slot.filled = min(row.slot.filled, len(row.ids) - (row.finish is None))
            self._let_go()
        ended, self._ended = self._ended, []
        return ended

    def warm(self, ids: Sequence[int]) -> None:
        """Compute a beginning and remember it, for requests that have it in common; not one too long to be kept."""
        if ids and len(ids) <= self.decoder.spec.context and len(ids) * self._each <= self.prefixes.limit:
            with self.decoder.without_graph():
                self._warm(ids)

    def _warm(self, ids: Sequence[int]) -> None:
        slot = self._slots.take(len(ids))
        try:
            filled = self.prefixes.fill(ids, slot.cache, slot.place)
            while filled < len(ids):
                piece = ids[filled : filled + PROMPT_TOKENS]
                part = Part(slot.cache, (slot.place,), (len(piece),))
                last = sent(torch.tensor([len(piece) - 1]), self.decoder.device)
                self.decoder(_batch([(filled, piece)], self.decoder.device), [part], wanted_U=last)
                filled += len(piece)
            self.prefixes.keep(ids, slot.cache, slot.place)
        finally:
            self._slots.release(slot)

    def close(self) -> None:
        """Let go of what was made of the weights to be faster; the engine can be used on."""
        unpack(self.decoder)
        self._packed, self._opened = False, self.passes

    def _let_go(self) -> None:
        """Take out what was cancelled or has finished, free the slots, and tell."""
        gone = [(request, ticket) for ticket, request, _ in self._waiting if ticket in self._cancelled]
        self._waiting = deque(waiting for waiting in self._waiting if waiting[0] not in self._cancelled)
        ended = [(request, ticket, Generated((), "cancelled")) for request, ticket in gone]
        for row in self._active:
            if row.ticket in self._cancelled:
                row.finish = "cancelled"
        self._cancelled.clear()
        for row in [row for row in self._active if row.finish]:
            assert row.finish is not None
            with self.decoder.without_graph():
                if row.request.keep:
                    filled = min(row.slot.filled, len(row.ids))
                    self.prefixes.keep(row.ids[:filled], row.slot.cache, row.slot.place)
                self._slots.release(row.slot)
            self._active.remove(row)
            answer = Generated(tuple(row.ids[len(row.request.prompt) :]), row.finish)
            ended.append((row.request, row.ticket, answer))
        self._ended += [(ticket, answer) for _, ticket, answer in ended]
        problems = []
        for request, _, answer in ended:
            try:
                request.on_done(answer)
            except Exception as error:  # the others are told all the same
                problems.append(error)
        if problems:
            raise problems[0]

    def _admit(self) -> None:
        """Slot waiting requests while there are rows and memory for them."""
        if self._replay is not None and not self._active:
            self._replay.look()
        reserved = self.prefixes.bytes + sum(row.reserved for row in self._active)
        coming: list[tuple[int, Request, int]] = []
        for waiting in itertools.islice(self._waiting, max(self.rows - len(self._active), 0)):
            if (self._active or coming) and reserved + waiting[2] > self.memory:
                break
            reserved += waiting[2]
            coming.append(waiting)
        self._slots.reserve(len(request.prompt) + 1 for _, request, _ in coming)
        for ticket, request, needed in coming:  # each waits until it has its slot: memory may end in the midst of this
            row = Row(ticket, request, self._slots.take(len(request.prompt) + 1), needed)
            self._active.append(row)
            self._waiting.popleft()
            row.slot.filled = self.prefixes.fill(row.ids, row.slot.cache, row.slot.place)

    def _advance(self) -> None:
        """One forward pass, and a new token for every row whose text it completes."""
        self._pack_if_worth_it()

        # Rows whose slots lie in one cache are a part of the pass; those of one token each need no padding.
        fed = self._plan()
        for row, ids in fed:
            self._slots.widen(row.slot, row.slot.filled + len(ids))
        groups: dict[tuple[int, bool], list[tuple[Row, list[int]]]] = {}
        for row, ids in sorted(fed, key=lambda work: work[0].slot.place):
            groups.setdefault((row.slot.cache.length, len(ids) > 1), []).append((row, ids))

        # Flat tokens, and at which of them a token is to be picked: the last of a text, and after each guess.
        parts, tokens = [], []
        wanted: list[int] = []
        picks: list[tuple[Row, list[int]]] = []  # rows with picks to make, and what was guessed for them
        count = 0
        for group in groups.values():
            places = tuple(row.slot.place for row, _ in group)
            parts.append(Part(group[0][0].slot.cache, places, tuple(len(ids) for _, ids in group)))
            for row, ids in group:
                start = row.slot.filled
                tokens.append((start, ids))
                count += len(ids)
                guesses = start + len(ids) - len(row.ids)
                if guesses >= 0:
                    wanted.extend(range(count - guesses - 1, count))
                    picks.append((row, ids[len(ids) - guesses :]))

        # The pass; the head sees the wanted tokens alone.
        self.passes, self.tokens = self.passes + 1, self.tokens + count
        every = self._replay is not None and len(parts) == 1 and len(wanted) == len(tokens)
        if every and self._replay is not None and self._replay.suits(parts[0], self._to_come()):
            self._pick(self._replay.logits(parts[0], [token for _, (token,) in tokens]), picks)
            return
        device = self.decoder.device
        wanted_R = sent(torch.tensor(wanted, dtype=torch.long), device)
        hidden_RD = self.decoder(_batch(tokens, device), parts, wanted_U=wanted_R)
        if picks:
            self._pick(self.decoder.logits(hidden_RD), picks)

    def _pack_if_worth_it(self) -> None:
        """Make the second copy of the weights once enough passes were made and are to come, if there is memory."""
        if self._packed or self.decoder.in_parts or min(self.passes - self._opened, self._to_come()) < PACK_AFTER:
            return
        self._packed = True
        weights = sum(parameter.nbytes for parameter in self.decoder.parameters())
        if weights < available_memory(self.decoder.device) // SHARE:
            pack(self.decoder)

    def _to_come(self) -> int:
        """How many passes there can still be for the requests that are known."""
        wanted = [row.request.max_new_tokens - row.new_tokens for row in self._active]
        wanted += [request.max_new_tokens for _, request, _ in self._waiting]
        return max(*wanted, sum(wanted) // self.rows, 0)

    def _plan(self) -> list[tuple[Row, list[int]]]:
        """What each row computes in the next pass: its last token, a piece of its prompt, or nothing yet."""
        budget = PROMPT_TOKENS
        guessing = self.speculate and len(self._active) <= ALONE and not self._waiting
        fed = []
        for row in self._active:
            filled = row.slot.filled
            if row.pending == 1:
                ids = row.ids[-1:]
                if guessing and row.can_guess:
                    left = row.request.max_new_tokens - row.new_tokens
                    room = min(left, self.decoder.spec.context - len(row.ids)) - 1
                    ids = ids + row.lookup.guess(row.ids, room)
            else:
                ids = row.ids[filled : filled + budget]
                budget -= len(ids)
            if ids:
                fed.append((row, ids))
        return fed

    def _pick(self, logits_RV: Tensor, picks: list[tuple[Row, list[int]]]) -> None:
        """A new token for each row, more where guesses were right."""
        # What is a row's own first; then rows are sorted by how their tokens are picked.
        at = 0
        greedy: list[tuple[Row, list[int], int]] = []
        sampled: dict[Sampling, list[tuple[Row, int]]] = {}
        told: dict[int, Tensor] = {}  # what the model itself thinks, where that was asked for
        for row, guesses in picks:
            for index in range(len(guesses) + 1):
                if row.request.logprobs is not None:
                    told[at + index] = logits_RV[at + index].float().log_softmax(-1)
                with _ending(row):
                    row.shape(logits_RV[at + index], guesses[:index])
            if row.request.sampling.greedy:
                greedy.append((row, guesses, at))
            else:
                alike = replace(row.request.sampling, seed=0, logit_bias=(), frequency_penalty=0, presence_penalty=0)
                sampled.setdefault(alike, []).append((row, at))
            at += len(guesses) + 1

        # Sampled: rows with the same settings share the shaping of their scores, and draw each for itself.
        for sampling, rows in sampled.items():
            at_R = sent(torch.tensor([at for _, at in rows]), logits_RV.device)
            tokens = drawn(probabilities(logits_RV[at_R], sampling), [row.sampler.point for row, _ in rows])
            for (row, at), token in zip(rows, tokens, strict=True):
                with _ending(row):
                    if token < 0:
                        raise InstilError(NO_NUMBER)
                row.sampler.take()
                self._accept(row, token, told.get(at))

        # Greedy, at last: looking for the best two spoils the scores.
        if greedy:
            ids, leads = most_likely(logits_RV)
            for row, guesses, at in greedy:
                upto = at + len(guesses) + 1
                self._follow(row, guesses, ids[at:upto], leads[at:upto], [told.get(one) for one in range(at, upto)])

    def _follow(
        self, row: Row, guesses: list[int], ids: list[int], leads: list[float], told: list[Tensor | None]
    ) -> None:
        """Take what the model says after each guess, up to the first that it would not have said."""
        right = 0
        for index, (token, lead) in enumerate(zip(ids, leads, strict=True)):
            said = self._alone(row) if lead < CLOSE and self._decides_alone else token
            self._accept(row, said, told[index])
            if row.finish or index == len(guesses) or said != guesses[index]:
                break
            right += 1
        if guesses:
            row.lookup.saw(len(guesses), right)

    def _alone(self, row: Row) -> int:
        """The likeliest token by a computation of this row's whole text and nothing else."""
        self.recomputed += 1
        ids = sent(torch.tensor([row.ids]), self.decoder.device)
        logits_V = self.decoder.logits(self.decoder(batch_of_ids(ids))[-1:])[0]
        return int(row.shape(logits_V).argmax())

    def _accept(self, row: Row, token: int, told_V: Tensor | None) -> None:
        if token in row.request.stop_ids:
            row.finish = "stop"
            return
        row.ids.append(token)
        with _ending(row):
            if told_V is not None:
                row.tell(token, told_V)
            if row.request.constraint is not None:
                row.request.constraint.take(token)
            ends = row.request.on_token(token)
        if ends:
            row.finish = "stop"
        elif row.new_tokens == row.request.max_new_tokens or len(row.ids) >= self.decoder.spec.context:
            row.finish = "length"


@contextlib.contextmanager
def _ending(row: Row) -> Iterator[None]:
    """What goes wrong here is of this row alone, which ends."""
    try:
        yield
    except BaseException:
        row.finish = "cancelled"
        raise


def _batch(tokens: Sequence[tuple[int, Sequence[int]]], device: torch.device) -> Batch:
    """Tokens of several rows, each from a position on."""
    lengths = [len(ids) for _, ids in tokens]
    positions = torch.cat([torch.arange(start, start + len(ids)) for start, ids in tokens])
    return Batch.untargeted(
        torch.tensor([token for _, ids in tokens for token in ids]),
        positions,
        torch.arange(len(tokens)).repeat_interleave(torch.tensor(lengths)),
        Tree.of(lengths),
    ).to(device)
