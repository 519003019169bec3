"""A step that does not fit into memory is computed in smaller pieces, to the same sums, or training stops saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from instil.batches import Batch
from instil.errors import OutOfMemory
from instil.machine import is_out_of_memory
from instil.tasks.pairs.losses import Preference
from instil.train import objective, training
from instil.train.observer import Observer, Pause
from instil.train.optimizer import AdamWInBackward
from instil.train.state import TrainState
from tests.train.test_rewind import Kept
from tests.train.test_state import CASES, Case, assert_same, cut_at, ended, untied

ERRORS = [
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    ),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    RuntimeError("std::bad_alloc"),
]


class Told(Observer):
    """What is said of memory, and the state where training ends."""

    def __init__(self) -> None:
        self.smaller: list[tuple[int, int]] = []
        self.states: list[tuple[Pause, TrainState]] = []
        self._pause: Pause | None = None

    def on_out_of_memory(self, step: int, micro_batch: int) -> None:
        self.smaller.append((step, micro_batch))

    def wants_state(self, pause: Pause) -> bool:
        self._pause = pause
        return pause.stops

    def on_state(self, state: TrainState) -> None:
        assert self._pause is not None
        self.states.append((self._pause, state.copied()))


def fits(patch: pytest.MonkeyPatch, rows: int, error: BaseException, *, after: int = 0, backward: bool = False) -> None:
    """A machine that has no memory for more rows at once, once so many steps have fitted."""
    measure, back, taken, step = objective._Likelihood.__call__, AdamWInBackward.backward, 0, training._step
    many = False

    def counts(*given: Any) -> Any:
        nonlocal taken
        found = step(*given)
        taken += 1
        return found

    def measures(self: Any, decoder: Any, batch: Batch, hook: Any = None) -> Tensor:
        nonlocal many
        many = len(batch.examples) > rows and torch.is_grad_enabled() and taken >= after
        if many and not backward:
            raise error
        return measure(self, decoder, batch, hook)

    def goes_back(self: AdamWInBackward, loss: Tensor, *, last: bool) -> None:
        if many:
            loss.backward()  # gradients are there, and are not to count twice
            raise error
        back(self, loss, last=last)

    patch.setattr(training, "_step", counts)
    patch.setattr(objective._Likelihood, "__call__", measures)
    if backward:
        patch.setattr(AdamWInBackward, "backward", goes_back)


def in_pieces(case: Case, rows: int) -> Case:
    return replace(case, loader={**case.loader, "micro_batch": rows})


@pytest.mark.parametrize("error", ERRORS[::2], ids=lambda error: type(error).__name__)
def test_what_does_not_fit_is_computed_in_smaller_pieces(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first step on: to the same bits as if it had been asked for."""
    case, told = Case(untied, seen=True), Told()
    wanted = ended(in_pieces(case, 2))
    with monkeypatch.context() as patch:
        fits(patch, 2, error)
        assert_same(ended(case, more=[told]), wanted)
    assert told.smaller == [(1, 2)]


@pytest.mark.parametrize("name", ["lora", "the book's order", "tokens", "dpo"])
def test_pieces_are_halved_until_they_fit_and_the_sums_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of training: the bits of one that goes on from there in such pieces."""
    case, told = CASES[name], Told()
    state, samples = cut_at(case, 4)
    wanted = ended(in_pieces(case, 1), state, samples)
    with monkeypatch.context() as patch:
        if name == "dpo":
            _pairs_fit(patch, Preference, ERRORS[0])
        else:
            fits(patch, 1, ERRORS[1], after=4)
        found = ended(case, more=[told])
    assert_same(found, wanted)
    assert [rows for _, rows in told.smaller] == ([2, 1] if case.loader.get("micro_batch") != 2 else [1])
    assert {step for step, _ in told.smaller} == {5}


@pytest.mark.parametrize("name", ["accumulated by threes", "llama, clipped, warmed", "full"])
def test_what_a_backward_has_left_counts_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients are forgotten; and where weights were updated on the way, training goes back to a state."""
    case, told, kept = CASES[name], Told(), Kept(every=4)
    with monkeypatch.context() as patch:
        fits(patch, 1, ERRORS[1], after=6, backward=True)
        found = ended(case, more=[told, kept], earlier=kept)
    state, samples = cut_at(case, 4 if name == "full" else 6)
    wanted = ended(in_pieces(case, 1), state, samples)
    found["samples"] = wanted["samples"]  # some were taken twice
    assert_same(found, wanted)


def _pairs_fit(patch: pytest.MonkeyPatch, kind: Any, error: BaseException) -> None:
    """As `fits`, of pairs: one at a time after four steps."""
    measure, step, taken = kind.measure, training._step, 0

    def counts(*given: Any) -> Any:
        nonlocal taken
        found = step(*given)
        taken += 1
        return found

    def measures(self: Any, batches: Sequence[Any], ranks: Any) -> Any:
        if taken >= 4 and torch.is_grad_enabled() and any(batch.pairs > 1 for batch in batches):
            raise error
        return measure(self, batches, ranks)

    patch.setattr(training, "_step", counts)
    patch.setattr(kind, "measure", measures)


def test_where_an_update_is_cut_off_training_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some weights have changed and others have not, so the step cannot be taken from here."""
    case, told, kept = Case(untied, seen=True), Told(), Kept(every=2)
    state, samples = cut_at(case, 4)
    wanted = ended(in_pieces(case, 2), state, samples)
    _cut_off(monkeypatch, 6)
    found = ended(case, more=[told, kept], earlier=kept)
    found["samples"] = wanted["samples"]  # some were taken twice
    assert_same(found, wanted)
    assert told.smaller == [(6, 2)]


def test_before_there_is_a_state_it_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    case, told = Case(untied, seen=True), Told()
    wanted = ended(in_pieces(case, 2))
    _cut_off(monkeypatch, 3)
    found = ended(case, more=[told], earlier=Kept(every=0, model=case.model))
    found["samples"] = wanted["samples"]
    assert_same(found, wanted)
    assert told.smaller == [(3, 2)]


def test_where_an_update_is_cut_off_without_a_state_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    _cut_off(monkeypatch, 6)
    with pytest.raises(OutOfMemory, match=r"step 6: out of memory in the middle of its update, and there is no st"):
        CASES["full"].run([])


def _cut_off(patch: pytest.MonkeyPatch, at: int) -> None:
    update, finished, finish = AdamWInBackward._update, 0, AdamWInBackward.finish

    def updates(self: AdamWInBackward, parameters: Sequence[Tensor]) -> None:
        nonlocal finished
        if finished == at - 1:
            update(self, parameters[:1])
            finished += 100
            raise MemoryError
        update(self, parameters)

    def finishes(self: AdamWInBackward) -> None:
        nonlocal finished
        finish(self)
        finished += 1

    patch.setattr(AdamWInBackward, "_update", updates)
    patch.setattr(AdamWInBackward, "finish", finishes)


@pytest.mark.parametrize("name", ["full", "the book's order", "as in the book"])
@pytest.mark.parametrize("after", [2, 3, 4])
def test_where_a_row_alone_does_not_fit_training_stops_saved(
    name: str, after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the first step of an epoch; from the state that is left it goes on to the same end."""
    case, told = CASES[name], Told()
    in_epoch = 2 if "book" in name else 3
    whole = ended(case)
    with monkeypatch.context() as patch, pytest.raises(OutOfMemory) as no:
        fits(patch, 0, ERRORS[0], after=after)
        case.run([told])
    assert f"step {after + 1}: out of memory with one row at a time" in str(no.value)
    assert "Set train.gradient_checkpointing=true" in str(no.value)
    ((pause, state),) = told.states
    assert (pause.steps, pause.stops, state.progress.done) == (after, True, after)
    assert state.progress.in_an_epoch == in_epoch
    found = ended(case, state)
    del found["samples"], whole["samples"]
    assert_same(found, whole)


def test_the_first_step_leaves_nothing_to_save(monkeypatch: pytest.MonkeyPatch) -> None:
    told = Told()
    fits(monkeypatch, 0, ERRORS[0])
    with pytest.raises(OutOfMemory, match="step 1: out of memory with one row at a time"):
        CASES["full"].run([told])
    assert told.states == []


def test_other_errors_are_not_taken_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    fits(monkeypatch, 2, RuntimeError("expected all tensors to be on the same device; memory format"))
    with pytest.raises(RuntimeError, match="same device"):
        CASES["full"].run([])
    assert all(is_out_of_memory(error) for error in ERRORS)
    assert not is_out_of_memory(ValueError("out of memory"))
