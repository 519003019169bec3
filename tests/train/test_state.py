"""A training that is cut off after any step, and goes on in fresh objects, ends in the same bits (E0)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instil.data.loader import Loader
from instil.errors import ModelError, SettingsError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.safetensors import Later
from instil.model.frozen import quantise_base
from instil.model.lora import add_lora
from instil.records import Encoded, EncodedPair
from instil.settings.losses import LOSSES
from instil.settings.options import DpoOptions, TrainOptions
from instil.tasks.pairs.batches import PairCollator
from instil.tasks.pairs.encoding import with_others
from instil.tasks.pairs.losses import Preference
from instil.train.best import SharedBest
from instil.train.evaluation import AsInBook, HeldOut
from instil.train.loop import train
from instil.train.objective import Likelihood, Objective
from instil.train.observer import Observer, Pause, TrainResult
from instil.train.ranks import ALONE, Ranks
from instil.train.rewind import Earlier
from instil.train.state import TrainState
from tests.train.test_training import decoder


class Killed(BaseException):
    """The machine is gone."""


class Cut(Observer):
    """Takes the state after so many steps, and ends it all."""

    def __init__(self, after: int) -> None:
        self.after, self.state = after, None

    def wants_state(self, pause: Pause) -> bool:
        return pause.steps == self.after

    def on_state(self, state: TrainState) -> None:
        self.state: TrainState | None = state.copied()
        raise Killed


class Looks(Observer):
    """Asks for the state after every step, and does nothing with it."""

    def wants_state(self, pause: Pause) -> bool:
        return True


class Samples(Observer):
    """What the model says as it is trained."""

    def __init__(self) -> None:
        self.said: list[tuple[int, list[float]]] = []

    def wants_pause(self, pause: Pause) -> bool:
        return pause.evaluated

    def on_pause(self, pause: Pause, decoder: Decoder) -> None:
        with torch.inference_mode():
            scores = decoder.logits(decoder(batch_of_ids(torch.tensor([[1, 2, 15, 16]]))))
        self.said.append((pause.steps, scores.flatten().tolist()))


class InMemory:
    """Where a best model is kept."""

    def __init__(self) -> None:
        self.tensors: dict[str, Tensor] = {}

    def save(self, tensors: Mapping[str, Tensor | Later]) -> bool:
        self.keep(tensors)
        return True

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            tensor.copy_(self.tensors[name])

    def kept(self) -> Mapping[str, Tensor]:
        return self.tensors

    def keep(self, tensors: Mapping[str, Tensor | Later]) -> None:
        made = {name: one.make() if isinstance(one, Later) else one for name, one in tensors.items()}
        self.tensors = {name: one.clone() for name, one in made.items()}


def some_rows(count: int, first: int = 0) -> list[Encoded]:
    """Of their 17 ids the last five are in no row."""
    drawn = random.Random(first)
    texts = [tuple(drawn.randrange(12) for _ in range(drawn.randrange(3, 10))) for _ in range(count)]
    return [Encoded(ids, tuple(i >= 2 for i in range(len(ids))), 2, first + n) for n, ids in enumerate(texts)]


def some_pairs(count: int) -> list[EncodedPair]:
    def side(prompt: tuple[int, ...], answer: tuple[int, ...], row: int) -> Encoded:
        ids = prompt + answer
        return Encoded(ids, tuple(i >= len(prompt) for i in range(len(ids))), len(prompt), row)

    drawn, made = random.Random(5), []
    for row in range(count):
        prompt, one, other = (tuple(drawn.randrange(1, 12) for _ in range(drawn.randrange(2, 5))) for _ in range(3))
        chosen, rejected = side(prompt, one, row), side(prompt, (*other, 0), row)
        scored = range(len(prompt), len(chosen.ids)), range(len(prompt), len(rejected.ids))
        reference = (-1.5,) * len(scored[0]), (-1.0,) * len(scored[1])
        made.append(EncodedPair(chosen, rejected, *scored, reference))
    return with_others(made)


@dataclass(frozen=True)
class Case:
    """A training; ``model`` makes what is trained."""

    model: Callable[[], Decoder] = lambda: decoder("gpt2").float()
    options: dict[str, Any] = field(default_factory=dict)
    loader: dict[str, Any] = field(default_factory=dict)
    seen: bool = False
    loss: str = ""

    def run(
        self,
        observers: Sequence[Observer],
        resume: TrainState | None = None,
        earlier: Earlier | None = None,
        ranks: Ranks = ALONE,
        *,
        double: bool = False,
    ) -> tuple[Decoder, TrainResult]:
        options = TrainOptions(**{"epochs": 3, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 2} | self.options)
        objective: Objective = Preference(DpoOptions(loss=self.loss, nll=0.1)) if self.loss else Likelihood()
        held: list[Any] = some_pairs(3) if self.loss else some_rows(4, first=100)
        rows: list[Any] = some_pairs(9) if self.loss else some_rows(11)
        more = self.loader | ({"collator": PairCollator} if self.loss else {})
        model = self.model().double() if double else self.model()
        by_the_book = options.evaluation == "book"
        loader = Loader(rows, 4, pad_id=0, seed=9, share=ranks.share, **more)
        for_validation = more | {"micro_batch": 0, "batch_tokens": 0, "shuffle": False}
        share = ranks.share if by_the_book else (0, 1)
        validation = Loader(held, 4, pad_id=0, share=share, **for_validation)
        batches = [batch for step in validation.steps() for batch in step]
        evaluator: Any = HeldOut(batches, options.eval_every, 0, objective, ranks)
        if by_the_book:
            torch.manual_seed(options.seed)
            evaluator = AsInBook(loader.draw, validation.draw, options.eval_every, 2, objective, ranks)
        kept = InMemory() if ranks.rank == 0 else None
        best = (kept if ranks.alone else SharedBest(ranks, kept)) if options.patience else None
        result = train(
            model, loader, options, evaluator=evaluator, observers=observers, objective=objective, resume=resume,
            seen_ids=loader.ids() if self.seen else (), best=best, earlier=earlier, ranks=ranks,
        )  # fmt: skip
        return model, result

    @property
    def steps(self) -> int:
        _, result = self.run([])
        return result.steps


def untied() -> Decoder:
    model = decoder("gpt2").float()
    model.untie()
    return model


def adapted(held: Any = None, family: str = "gpt2", **how: Any) -> Callable[[], Decoder]:
    def made() -> Decoder:
        model = decoder(family).float()
        if held:
            quantise_base(model, held)
        add_lora(model, rank=2, seed=3, **how)
        return model

    return made


STEADY = {"schedule": "constant", "learning_rate": 0.05, "eval_every": 1}
CASES = {
    "full": Case(),
    "untied, all rows": Case(untied),
    "untied, rows read": Case(untied, seen=True),
    "untied, rows read, linear, few looks": Case(untied, {"schedule": "linear", "eval_every": 0}, seen=True),
    "llama, clipped, warmed": Case(lambda: decoder("llama").float(), {"clip": 0.1, "warmup": 0.4}, seen=True),
    "accumulated": Case(options={"micro_batch": 1}, loader={"micro_batch": 1}),
    "accumulated by threes": Case(loader={"micro_batch": 3}),
    "tokens": Case(loader={"batch_tokens": 17, "micro_batch": 2}),
    "padded, last left out": Case(loader={"layout": "padded", "drop_last": True}),
    "in file order": Case(loader={"shuffle": False}),
    "recomputed": Case(options={"gradient_checkpointing": True}),
    "bfloat16": Case(options={"precision": "bf16"}),
    "ends inside an epoch": Case(options={"max_steps": 5, "eval_every": 3}),
    "patience": Case(untied, {"patience": 2, "epochs": 6, **STEADY}, seen=True),
    "patience, adapters": Case(adapted(), {"patience": 3, "epochs": 4, **STEADY}),
    "patience to the end": Case(options={"patience": 50}),
    "the book's order": Case(loader={"order": "book", "layout": "padded", "drop_last": True}),
    "as in the book": Case(
        options={"evaluation": "book", "eval_every": 2, "schedule": "constant"},
        loader={"order": "book", "layout": "padded", "drop_last": True},
    ),
    "lora": Case(adapted()),
    "lora, rank-stabilised, some": Case(
        adapted(scaling="alpha/sqrt(rank)", targets=("q", "v", "down"), family="llama")
    ),
    "lora, head": Case(adapted(targets=("all", "head"))),
    "lora, dora": Case(adapted(dora=True, family="llama")),
    "lora, rows of tokens": Case(adapted(trainable_token_indices=(3, 7))),
    "lora, int8": Case(adapted("int8", "llama")),
    "lora, nf4": Case(adapted("nf4", "llama"), loader={"micro_batch": 2}),
    **{loss: Case(loss=loss, loader={"micro_batch": n % 3}) for n, loss in enumerate(LOSSES)},
    "dpo, lora": Case(adapted(), loss="dpo"),
}
WHOLE: dict[str, tuple[dict[str, Any], int]] = {}


def ended(
    case: Case,
    resume: TrainState | None = None,
    watched: Samples | None = None,
    more: Sequence[Observer] = (),
    earlier: Earlier | None = None,
) -> dict[str, Any]:
    """All that a training leaves, but for times."""
    samples = watched or Samples()
    model, result = case.run([samples, *more], resume, earlier)
    seconds = {"seconds": 0.0, "tokens_per_second": 0.0}
    return {
        **{name: one.detach() for name, one in model.named_parameters()},
        "records": [asdict(one) | seconds for one in result.records],
        "samples": samples.said,
        **{name: value for name, value in asdict(result).items() if name not in ("records", "seconds")},
    }


def whole(name: str) -> tuple[dict[str, Any], int]:
    if name not in WHOLE:
        found = ended(CASES[name])
        WHOLE[name] = found, found["steps"]
    return WHOLE[name]


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        same = torch.equal(found[name], value) if isinstance(value, Tensor) else found[name] == value
        assert same, name


def cut_at(case: Case, after: int) -> tuple[TrainState, Samples]:
    cut, samples = Cut(after), Samples()
    with pytest.raises(Killed):
        case.run([samples, cut])
    assert cut.state is not None
    return cut.state, samples


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=2)
@given(st.data())
def test_a_training_that_is_cut_off_ends_as_one_that_is_not(name: str, data: st.DataObject) -> None:
    wanted, steps = whole(name)
    after = data.draw(st.integers(0, steps))
    state, samples = cut_at(CASES[name], after)
    scramble()
    assert_same(ended(CASES[name], state, samples), wanted)


@pytest.mark.parametrize("name", ["untied, rows read", "patience", "as in the book", "ends inside an epoch"])
def test_every_border(name: str) -> None:
    """Before the first step, at the end of an epoch, after the last step, and where patience has ended it."""
    wanted, steps = whole(name)
    for after in range(steps + 1):
        state, samples = cut_at(CASES[name], after)
        scramble()
        assert_same(ended(CASES[name], state, samples), wanted)


def scramble() -> None:
    """What another process would have."""
    torch.manual_seed(77)
    random.seed(77)
    np.random.seed(77)


def test_it_can_be_cut_off_again_and_again() -> None:
    name = "untied, rows read"
    wanted, steps = whole(name)
    state, samples = cut_at(CASES[name], 0)
    for after in range(1, steps):
        cut = Cut(after)
        with pytest.raises(Killed):
            CASES[name].run([samples, cut], state)
        assert cut.state is not None
        state = cut.state
    assert_same(ended(CASES[name], state, samples), wanted)


@pytest.mark.parametrize("name", ["untied, rows read", "untied, rows read, linear, few looks", "as in the book"])
def test_looking_changes_nothing(name: str) -> None:
    """Not even the rows of an embedding that are never read, which would be rounded anew if it were made whole."""
    model, _ = CASES[name].run([Samples(), Looks()])
    for parameter, one in model.named_parameters():
        assert torch.equal(one, whole(name)[0][parameter]), parameter


def test_everybodys_random_numbers_go_on() -> None:
    class Draws(Observer):
        def __init__(self) -> None:
            self.drawn: list[tuple[float, float, float]] = []

        def wants_pause(self, pause: Pause) -> bool:
            self.drawn.append((random.gauss(0, 1), float(np.random.normal()), float(torch.rand(()))))
            return False

    scramble()
    draws = Draws()
    CASES["full"].run([draws])
    for after in (1, 4, 9):
        scramble()
        cut, other = Cut(after), Draws()
        with pytest.raises(Killed):
            CASES["full"].run([other, cut])
        random.seed(1)
        np.random.seed(1)
        torch.manual_seed(1)
        CASES["full"].run([other], cut.state)
        assert other.drawn == draws.drawn


def test_a_state_of_something_else_is_refused() -> None:
    state, _ = cut_at(CASES["full"], 3)
    with pytest.raises(SettingsError, match="is of a training of 9 steps, 3 an epoch, and this one has 6, 3 an epoch"):
        Case(options={"epochs": 2}).run([], state)
    with pytest.raises(ModelError, match=r"another model or of other weights: it (lacks|has) \S+"):
        CASES["lora"].run([], state)
    with pytest.raises(
        ModelError, match=r"its weights/embed.weight is \[17, 12\] of torch.float32, the model's \[12, "
    ):
        Case(untied, seen=True).run([], replace(cut_at(Case(untied), 3)[0], tensors=_with_table(Case(untied))))
    with pytest.raises(ModelError, match=r"of torch\.float32, the model's .* of torch.float64"):
        Case(lambda: decoder("gpt2")).run([], state)
    with pytest.raises(SettingsError, match=r"has a best model .* set train.patience"):
        Case(options={"eval_every": 1, "schedule": "constant"}).run([], cut_at(Case(options={"patience": 9}), 4)[0])


def _with_table(case: Case) -> dict[str, Tensor]:
    state = cut_at(case, 3)[0]
    return {**state.tensors, "table": state.tensors["weights/embed.weight"]}
