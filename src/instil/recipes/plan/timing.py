"""A little of the real work, timed: optimizer steps, evaluation, answers. Nothing is written."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from instil.batches import Batch
from instil.data.encoding import encode_prompt, stop_id
from instil.data.loader import Loader
from instil.generate.prompts import generate
from instil.machine import memory_now, peak_memory
from instil.model.decoder import Decoder
from instil.model.frozen import FrozenLinear
from instil.recipes.plan.work import WARM_UP, Pace, Work, answering, pace_of
from instil.records import Example
from instil.screen import Advance, Screen
from instil.settings.options import TrainOptions
from instil.tasks.task import Prepared
from instil.train.evaluation import Evaluation
from instil.train.loop import train
from instil.train.metrics import StepRecord
from instil.train.objective import look
from instil.train.observer import Observer

QUANTILES = (0.1, 0.5, 0.9)  # of the sizes of an epoch's steps: these are timed
ROUNDS = 3  # how often at most
ENOUGH = 4.0  # seconds of timed steps after which there is no further round
NEW_TOKENS = 16  # made for each row when answering is timed
NARROW = 2  # rows answered side by side in the other timing


@dataclass(frozen=True, slots=True)
class TimedSteps:
    """Steps with their seconds, and the bytes of activations that the longest rows need.

    ``measured`` is whether the longest rows were really computed; where there was no room for them their
    activations are those of the largest step timed, scaled by the number of positions.
    """

    steps: list[tuple[Work, float]]
    activations: int
    measured: bool


@dataclass(frozen=True, slots=True)
class TimedAnswers:
    """The pace of answering, and after how many tokens so many answers had ended."""

    pace: Pace
    ended: int
    tokens: int


class _Nothing:
    """An evaluator that has nothing to say."""

    def __call__(self, decoder: Decoder) -> Evaluation:
        return Evaluation(None)

    def due(self, done: int, ends_epoch: bool) -> bool:
        return False


def typical_steps(loader: Loader) -> list[list[Batch]]:
    """Steps of an epoch: a small one, a middling one and a large one."""
    steps = loader.sampled()
    sizes = dict(zip(steps, map(sum, loader.sizes(steps=steps)), strict=True))
    order = sorted(steps, key=sizes.__getitem__)
    return [loader.step(order[round(quantile * (len(order) - 1))]) for quantile in QUANTILES]


class _Steps(Observer):
    """Hands out steps to the loop, as long as there is time and memory for more.

    Args:
        loader: the training rows.
        device: whose memory is looked at.
        held: bytes of gradients and of AdamW's moments.
        room: bytes of its memory.
        advance: called after each step.
        rounded: whether frozen weights are in few bits, so that the model took more while it was loaded.
        brief: one round, and not the longest rows.
    """

    def __init__(
        self,
        loader: Loader,
        device: torch.device,
        held: int,
        room: int,
        advance: Advance,
        *,
        rounded: bool,
        brief: bool = False,
    ) -> None:
        self._rounded, self._brief = rounded, brief
        self._typical = typical_steps(loader)
        self._longest = loader.longest()
        self._device = device
        self._without_activations, self._before = memory_now(device) + held, peak_memory(device)
        self._most, self._room = 0, room
        self._advance = advance
        self.done: list[Work] = []
        self.seconds: list[float] = []
        self.activations = 0
        self.measured = False

    def __len__(self) -> int:
        return self._rounds * len(QUANTILES) + 2

    @property
    def _rounds(self) -> int:
        return 1 if self._brief else ROUNDS

    def steps(self, epoch: int = 0, start: int = 0) -> Iterator[list[Batch]]:
        """A first one to warm up, typical ones, and at last the longest rows if they fit."""
        del epoch, start
        for step in self._chosen():
            self.done.append(work_of(step))
            yield step

    def _chosen(self) -> Iterator[list[Batch]]:
        yield self._typical[0]
        for _ in range(self._rounds):
            yield from self._typical
            if self.seconds[-1] > ENOUGH:
                break
        if self._brief:
            return
        longest = work_of(self._longest).positions
        self.activations = round(self.activations * max(longest / self.done[-1].positions, 1.0))
        if self._without_activations + self.activations <= self._room:
            self.measured = True
            yield self._longest

    def on_step(self, record: StepRecord) -> None:
        """``record.seconds`` counts from the start of the loop."""
        if record.step:
            self.seconds.append(record.seconds)
            peak = peak_memory(self._device)
            loading = self._rounded and peak == self._before  # the peak is still that of the whole weights
            now = memory_now(self._device) if loading else peak
            self._most = max(self._most, now)
            self.activations = max(self._most - self._without_activations, 0)
            self._advance()


def holds_gradients(options: TrainOptions) -> bool:
    """Whether all gradients are in memory at once, and not only each until its parameter is updated."""
    several = options.micro_batch > 0 and (options.batch_tokens > 0 or options.micro_batch < options.batch_size)
    return options.clip > 0 or several


def time_steps(
    prepared: Prepared, decoder: Decoder, loader: Loader, *, held: int, room: int, screen: Screen, brief: bool = False
) -> TimedSteps:
    """Real optimizer steps through the loop itself, so small that the model hardly changes.

    Args:
        prepared: the run.
        decoder: the model; it is trained a little.
        loader: the training rows.
        held: bytes of gradients that are held at once, and of AdamW's two moments.
        room: bytes of the memory there is; the longest rows are left out if they would not fit.
        screen: where progress is shown.
        brief: whether a round of them is enough, and what the longest rows need is not asked.
    """
    options = prepared.settings.train.model_copy(update={"epochs": 1, "max_steps": 0, "learning_rate": 1e-9})
    with screen.bar("timing steps", ROUNDS * len(QUANTILES) + 2) as advance:
        rounded = any(isinstance(module, FrozenLinear) for module in decoder.modules())
        chosen = _Steps(loader, decoder.device, held, room, advance, rounded=rounded, brief=brief)
        objective = prepared.task.objective()
        train(decoder, chosen, options, evaluator=_Nothing(), observers=[chosen], objective=objective)
    seconds = [now - before for before, now in pairwise([0.0, *chosen.seconds])]
    timed = list(zip(chosen.done, seconds, strict=True))
    return TimedSteps(timed[WARM_UP:], chosen.activations, chosen.measured)


def time_evaluation(prepared: Prepared, decoder: Decoder, loader: Loader) -> Pace:
    """The pace of looking at a loss without training on it."""
    decoder.eval()
    timed = []
    for step in typical_steps(loader):
        started = time.perf_counter()
        look(prepared.task.objective(), decoder, step)
        timed.append((work_of(step), time.perf_counter() - started))
    return pace_of(timed)


def time_answers(prepared: Prepared, decoder: Decoder, examples: Sequence[Example]) -> TimedAnswers:
    """A few tokens for many rows side by side, and for few."""
    tokenizer, options = prepared.tokenizer, prepared.settings.generate
    prompts = [
        prompt
        for example in examples
        if len(prompt := encode_prompt(example, prepared.template, tokenizer, header=options.header)) + NEW_TOKENS
        < decoder.spec.context
    ][: options.batch_size]
    if not prompts:
        return TimedAnswers(Pace(0.0, 0.0), 0, 0)
    timed = []
    said: list[tuple[int, ...]] = []
    for rows in (prompts[:1], prompts[:NARROW], prompts):  # the first warms up
        started = time.perf_counter()
        found = generate(decoder, rows, max_new_tokens=NEW_TOKENS, stop_ids=frozenset(), batch_size=len(rows))
        seconds = time.perf_counter() - started
        said = [one.ids for one in found]
        timed.append((answering([len(row) for row in rows], [NEW_TOKENS] * len(rows), len(rows)), seconds))
    stops = tokenizer.stop_ids | {stop_id(prepared.template, tokenizer)}
    lengths = [next((at for at, token in enumerate(ids, 1) if token in stops), 0) for ids in said]
    return TimedAnswers(
        pace_of(timed[1:]), sum(length > 0 for length in lengths), sum(length or NEW_TOKENS for length in lengths)
    )


def work_of(step: Sequence[Batch]) -> Work:
    """The work of a step's micro-batches."""
    return Work(len(step), sum(batch.layout.tokens for batch in step))
