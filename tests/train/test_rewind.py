"""Where training diverges it goes back to a state that was good, and on without the rows it diverged with."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from instil.batches import Batch
from instil.errors import ModelError, TrainingDiverged
from instil.model.decoder import Decoder
from instil.train import objective, training
from instil.train.evaluation import Evaluation, HeldOut
from instil.train.observer import Observer, Pause
from instil.train.rewind import MOST, Skipped
from instil.train.state import TrainState
from tests.train.test_state import CASES, Case, adapted, assert_same, ended, untied


class Kept(Observer):
    """States in memory, every so many steps, that of the beginning included."""

    def __init__(
        self, every: int = 1, skipped: Sequence[Skipped] = (), model: Callable[[], Decoder] | None = None
    ) -> None:
        self.every, self.kept, self.noted = every, list[TrainState](), list(skipped)
        self.model = model

    def first(self) -> dict[str, Tensor] | None:
        return None if self.model is None else dict(self.model().named_parameters())

    def wants_state(self, pause: Pause) -> bool:
        return bool(self.every) and pause.steps % self.every == 0

    def on_state(self, state: TrainState) -> None:
        self.kept.append(state.copied())

    def states(self) -> Iterator[TrainState]:
        return reversed(self.kept)

    def skipped(self) -> Sequence[Skipped]:
        return self.noted

    def skip(self, skipped: Skipped) -> None:
        self.noted.append(skipped)


def poison(patch: pytest.MonkeyPatch, row: int) -> None:
    """A row whose loss is no number."""
    measure = objective._Likelihood.__call__

    def measures(self: Any, decoder: Any, batch: Batch, hook: Any = None) -> Tensor:
        loss = measure(self, decoder, batch, hook)
        return loss * math.nan if row in batch.examples and torch.is_grad_enabled() else loss

    patch.setattr(objective._Likelihood, "__call__", measures)


def spoil(patch: pytest.MonkeyPatch, steps: set[int], value: float = math.nan) -> None:
    """Updates of steps, counted as they are taken, that leave weights that are no numbers."""
    before, taken = training._step, 0

    def spoils(decoder: Any, *rest: Any) -> Any:
        nonlocal taken
        found = before(decoder, *rest)
        taken += 1
        if taken in steps and rest[0]:
            next(one for one in decoder.parameters() if one.requires_grad).data.fill_(value)
        return found

    patch.setattr(training, "_step", spoils)


def rewinding(case: Case) -> Case:
    return replace(case, options={**case.options, "on_divergence": "rewind"})


CHOSEN: dict[str, Case] = {
    "untied": Case(untied, seen=True),
    "lora": Case(adapted()),
    "accumulated": CASES["accumulated"],
    "tokens": CASES["tokens"],
    "the book's order": CASES["the book's order"],
    "patience": CASES["patience"],
}


@pytest.mark.parametrize("name", CHOSEN)
def test_it_goes_on_without_the_rows_of_that_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, kept = rewinding(CHOSEN[name]), Kept(every=2)
    poison(monkeypatch, 3)
    found = ended(case, more=[kept], earlier=kept)
    (skipped,) = kept.noted
    assert 3 in skipped.rows
    assert len(skipped.rows) <= 4
    assert skipped.why.startswith(f"step {skipped.step}: the loss is nan; rows [")
    assert skipped.back_to == (skipped.step - 1) // 2 * 2
    losses = [one["train_loss"] for one in found["records"][1:]]
    assert all(loss is None or math.isfinite(loss) for loss in losses)
    assert len(losses) == found["steps"]
    assert [one["step"] for one in found["records"]] == list(range(found["steps"] + 1))

    # Killed after that, it goes on from the state and the note to the same end.
    kept.kept = [one for one in kept.kept if one.progress.done <= skipped.back_to]
    state = kept.kept[-1]
    again = ended(case, state, earlier=Kept(skipped=[skipped]))
    again["samples"] = found["samples"]  # those of before are not in it
    assert_same(again, found)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("validates", [True, False], ids=["validation", "loss"])
def test_an_update_that_broke_the_weights_is_undone(
    value: float, validates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen by the validation after it, or by the next loss: its rows are named, no state with such weights is used."""
    case = rewinding(Case(untied, {"eval_every": 1 if validates else 0}, seen=True))
    kept = Kept()
    spoil(monkeypatch, {5}, value)
    found = ended(case, more=[kept], earlier=kept)
    (skipped,) = kept.noted
    assert (skipped.step, skipped.back_to) == (5, 4)
    assert skipped.why.startswith("step 5: the validation loss is" if validates else "step 6: the loss is nan; rows")
    assert found["steps"] == 9
    assert all(bool(torch.isfinite(one).all()) for one in found.values() if isinstance(one, Tensor))


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory"), ModelError("damaged")])
def test_a_state_that_is_gone_is_passed_over(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process of the same training may be removing it."""

    class Gone(dict[str, Tensor]):
        def __getitem__(self, name: str) -> Tensor:
            raise error

    kept = Kept()
    poison(monkeypatch, 3)
    step = training._step

    def goes(decoder: Decoder, *rest: Any) -> Any:
        kept.kept[-1] = replace(kept.kept[-1], tensors=Gone(kept.kept[-1].tensors))
        return step(decoder, *rest)

    monkeypatch.setattr(training, "_step", goes)
    with pytest.raises(TrainingDiverged):
        rewinding(CASES["full"]).run([kept], earlier=kept)
    assert kept.noted == []
    monkeypatch.setattr(training, "_step", step)
    found = ended(rewinding(CASES["full"]), more=[kept], earlier=kept)
    assert [one.back_to for one in kept.noted] == [one.step - 1 for one in kept.noted]
    assert found["steps"] == 9


def test_also_where_only_the_end_shows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    look = HeldOut.__call__
    monkeypatch.setattr(HeldOut, "__call__", lambda self, decoder: replace(look(self, decoder), validation=None))
    case, kept = rewinding(CASES["full"]), Kept()
    spoil(monkeypatch, {9})
    found = ended(case, more=[kept], earlier=kept)
    assert [(one.step, one.back_to) for one in kept.noted] == [(9, 8)]
    assert found["diverged"] == ""


def test_it_goes_back_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Kept()
    spoil(monkeypatch, set(range(3, 100)))
    with pytest.raises(TrainingDiverged, match=r"Lower train\.learning_rate"):
        rewinding(CASES["full"]).run([kept], earlier=kept)
    assert len(kept.noted) == MOST
    assert len({row for one in kept.noted for row in one.rows}) > 4


def test_without_a_state_it_ends_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, {2})
    kept = Kept()
    for case, earlier in ((rewinding(CASES["full"]), None), (CASES["full"], kept)):
        spoil(monkeypatch, {2})
        with pytest.raises(TrainingDiverged, match=r"step \d: the .*loss is nan"):
            case.run([kept], earlier=earlier)
    assert kept.noted == []


@pytest.mark.parametrize("name", ["full", "untied, rows read", "lora", "patience", "as in the book"])
def test_without_a_checkpoint_it_begins_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state before the first step is made again from the model: the same bits as that which was."""
    case = rewinding(CASES[name])
    kinds = Kept(every=100), Kept(every=0, model=case.model)
    found = []
    for kept in kinds:
        with monkeypatch.context() as patch:
            spoil(patch, {3})
            found.append(ended(case, more=[kept], earlier=kept))
        assert [one.back_to for one in kept.noted] == [0]
    assert_same(*found)


def test_a_model_that_is_broken_from_the_start_is_not_gone_back_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HeldOut, "__call__", lambda self, decoder: Evaluation(math.nan))
    kept = Kept()
    with pytest.raises(TrainingDiverged, match="before the first update"):
        rewinding(CASES["full"]).run([kept], earlier=kept)


def test_rows_that_are_left_out_leave_the_steps_as_they_are() -> None:
    from instil.data.loader import Loader
    from tests.train.test_state import some_rows

    loader, other = (Loader(some_rows(11), 4, pad_id=0, seed=9, micro_batch=2) for _ in range(2))
    other.leave_out([0, 1, 2, 3])
    for epoch in range(2):
        for step, fewer in zip(loader.steps(epoch), other.steps(epoch), strict=True):
            rows = [row for batch in step for row in batch.examples]
            assert [row for batch in fewer for row in batch.examples] == [row for row in rows if row > 3]
    other.leave_out(range(11))
    assert list(other.steps()) == [[], [], []]
    assert other.halve() == []
