"""Where one of several processes fails, sees other files, or has rows that are no good."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from instil.data.loader import Loader
from instil.errors import OutOfMemory
from instil.runs.saving import SavesCheckpoints
from instil.runs.sharded import ShardedCheckpoints
from instil.screen import Screen
from instil.settings.options import DpoOptions
from instil.tasks.pairs.losses import Preference
from instil.train import objective, training
from instil.train.observer import Observer, Pause
from instil.train.parallel import shards
from instil.train.parallel.processes import Processes
from instil.train.ranks import ALONE, Ranks
from instil.train.rewind import Skipped
from instil.train.state import Progress, TrainState
from tests.train.parallel.pool import Pool
from tests.train.parallel.test_processes import assert_near
from tests.train.test_rewind import Kept, rewinding
from tests.train.test_state import CASES, some_rows
from tests.train.test_training import decoder


@pytest.fixture(scope="module")
def two() -> Iterator[Pool]:
    made = Pool(2)
    yield made
    made.close()


def left_by_an_error(ranks: Ranks) -> list[str]:
    """What was done together after an error, and after none."""
    done: list[str] = []
    whole = shards._give_back
    shards._give_back = lambda *given: (done.append("made whole"), whole(*given))  # type: ignore[assignment, func-returns-value]
    together = Processes(ranks.rank, ranks.world, sharded=True)
    try:
        with pytest.raises(KeyError), together.sharding(decoder()):
            raise KeyError
        done.append("and without")
        with together.sharding(decoder()):
            pass
    finally:
        shards._give_back = whole
    return done


def test_weights_are_not_made_whole_by_who_fails_alone(two: Pool) -> None:
    """That takes all processes, and others are at something else: both would wait for ever."""
    assert two.call(left_by_an_error) == [["and without", "made whole"]] * 2


def goes_back(ranks: Ranks, sharded: bool = False, to_the_first: bool = False) -> dict[str, Any]:
    """A training with a row whose loss is no number, of which the second process sees more states than the first.

    ``to_the_first``: no states are kept, and that before the first step is made again.
    """
    if sharded:
        ranks = Processes(ranks.rank, ranks.world, sharded=True)
    case = CASES["lora" if to_the_first else "full"]
    measure = objective._Likelihood.__call__

    def measures(self: Any, model: Any, batch: Any, hook: Any = None) -> Tensor:
        loss = measure(self, model, batch, hook)
        return loss * math.nan if 3 in batch.examples and torch.is_grad_enabled() else loss

    objective._Likelihood.__call__ = measures  # type: ignore[method-assign]
    try:
        shown = 2 - ranks.rank  # all ask for all states together
        model = (lambda: case.model().double()) if to_the_first else None
        kept = Sees(shown, every=int(not to_the_first), model=model)
        _, result = rewinding(case).run([kept], earlier=kept, ranks=ranks, double=True)
    finally:
        objective._Likelihood.__call__ = measure  # type: ignore[method-assign]
    return {"losses": [one.train_loss for one in result.records], "skipped": kept.noted}


class Sees(Kept):
    """Is given all states, and finds some of them again."""

    def __init__(self, shown: int, **how: Any) -> None:
        super().__init__(**how)
        self.shown = shown

    def first(self) -> dict[str, Tensor] | None:
        found = super().first()
        return None if found is None else {name: one.detach() for name, one in found.items() if one.requires_grad}

    def on_state(self, state: TrainState) -> None:
        copied = state.copied()
        whole = {name: one.full_tensor() if isinstance(one, DTensor) else one for name, one in copied.tensors.items()}
        self.kept.append(replace(copied, tensors=whole))

    def states(self) -> Iterator[TrainState]:
        return (one for one in reversed(self.kept) if one.progress.done % self.shown == 0)


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "in parts"])
@pytest.mark.parametrize("to_the_first", [False, True], ids=["kept", "made again"])
def test_all_go_back_to_what_the_first_sees(to_the_first: bool, sharded: bool, two: Pool) -> None:
    """As one alone does, so that their losses are the same."""
    one, other = two.call(goes_back, sharded, to_the_first)
    assert one == other
    (skipped,) = one["skipped"]
    assert isinstance(skipped, Skipped)
    assert skipped.back_to == 0 if to_the_first else skipped.back_to % 2 == 0
    wanted = goes_back(ALONE, False, to_the_first)
    assert [replace(found, why="") for found in wanted["skipped"]] == [
        replace(skipped, rows=wanted["skipped"][0].rows, why="")
    ]
    assert sorted(skipped.rows) == sorted(wanted["skipped"][0].rows)
    assert_near(dict(enumerate(one["losses"])), dict(enumerate(wanted["losses"])), "losses", 1e-12)


def out_of_memory(ranks: Ranks) -> list[int]:
    """After how many steps there is a state, where one process has no memory for the third."""
    before, taken = training._step, 0

    def fails(*given: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == 3:
            raise MemoryError
        return before(*given)

    class Saves(Observer):
        def __init__(self) -> None:
            self.at: list[int] = []

        def wants_state(self, pause: Pause) -> bool:
            return pause.stops

        def on_state(self, state: TrainState) -> None:
            self.at.append(state.progress.done)

    training._step = fails
    saves = Saves()
    try:
        with pytest.raises(OutOfMemory, match="step 3: out of memory"):
            CASES["full"].run([saves], ranks=ranks)
    finally:
        training._step = before
    return saves.at


def test_what_was_trained_is_kept_where_memory_runs_out(two: Pool) -> None:
    assert two.call(out_of_memory) == [[2], [2]]


class Notes(Ranks):
    """The first of two, which notes what it tells."""

    world = 2

    def __init__(self) -> None:
        self.told: list[Any] = []

    def agree(self, value: Any) -> Any:
        self.told.append(value)
        return value


def test_others_are_told_that_nothing_is_saved(tmp_path: Path) -> None:
    """Also where what comes before a checkpoint fails; they wait to be told where their parts go."""

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    ranks = Notes()
    saves = SavesCheckpoints(ShardedCheckpoints(tmp_path, ranks=ranks), "1", Screen(quiet=True), first=[full])
    at = Progress(1, 2, 2, 0, 0.0, False, None, None, {}, None, None, None, 0, 1.0, {}, {})
    saves.on_state(TrainState(at, (), {}, {}))
    assert ranks.told == [""]
    assert saves.saved is None


def test_a_row_that_is_left_out_is_not_computed_for_others() -> None:
    """Nothing times a loss that is no number is no number either."""
    loader = Loader(some_rows(3), 2, pad_id=0)
    assert loader.spare().examples == (0,)
    loader.leave_out([0, 1])
    assert loader.spare().examples == (2,)


def spares(ranks: Ranks) -> tuple[int, ...]:
    loader = Loader(some_rows(3), 2, pad_id=0, share=ranks.share)
    together = Processes(ranks.rank, ranks.world)
    with together.together(decoder(), loader):
        loader.leave_out([0])
        (one,) = together.passes([])
    assert not one.counts
    return one.batch.examples


def test_nor_where_it_is_left_out_as_training_goes_on(two: Pool) -> None:
    assert two.call(spares) == [(1,), (1,)]


@pytest.mark.parametrize("ranks", [Ranks(), Notes()], ids=["alone", "two"])
def test_a_step_without_rows_has_no_distance(ranks: Ranks) -> None:
    """As one has of which all rows are left out, when the loss of the next step is looked at."""
    loss, metrics = objective.look(Preference(DpoOptions(loss="kto")), decoder(), [], ranks)
    assert (loss.total, loss.tokens, metrics) == (0.0, 0, {})


def test_a_part_is_read_without_a_word(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Though torch says at each that it reads in one process, which is what is wanted."""
    shards.save_shards({"one": torch.arange(4.0)}, tmp_path)
    recwarn.clear()
    assert shards.Shards(tmp_path)["one"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert not recwarn.list
