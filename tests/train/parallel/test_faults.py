"""Where one of several processes fails, sees other files, or has rows that are no good."""

from __future__ import annotations

import errno
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

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
from instil.train.ranks import Ranks
from instil.train.rewind import Skipped
from instil.train.state import Progress, TrainState
from tests.train.parallel.pool import Pool
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


def goes_back(ranks: Ranks) -> dict[str, Any]:
    """A training with a row whose loss is no number, of which the second process sees more states than the first."""
    measure = objective._Likelihood.__call__

    def measures(self: Any, model: Any, batch: Any, hook: Any = None) -> Tensor:
        loss = measure(self, model, batch, hook)
        return loss * math.nan if 3 in batch.examples and torch.is_grad_enabled() else loss

    objective._Likelihood.__call__ = measures  # type: ignore[method-assign]
    try:
        every = 2 - ranks.rank  # all ask for all states together
        kept = Sees(every)
        _, result = rewinding(CASES["full"]).run([kept], earlier=kept, ranks=ranks, double=True)
    finally:
        objective._Likelihood.__call__ = measure  # type: ignore[method-assign]
    return {"losses": [one.train_loss for one in result.records], "skipped": kept.noted}


class Sees(Kept):
    """Is given all states, and finds some of them again."""

    def __init__(self, shown: int) -> None:
        super().__init__(every=1)
        self.shown = shown

    def states(self) -> Iterator[TrainState]:
        return (one for one in reversed(self.kept) if one.progress.done % self.shown == 0)


def test_all_go_back_to_what_the_first_sees(two: Pool) -> None:
    one, other = two.call(goes_back)
    assert one == other
    (skipped,) = one["skipped"]
    assert isinstance(skipped, Skipped)
    assert skipped.back_to % 2 == 0


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
