"""The next step is made while the present one is computed, once, in order, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch

from instil.batches import Batch
from instil.data.collate import collate
from instil.data.loader import Loader
from instil.errors import DataError
from instil.settings.options import TrainOptions
from instil.train.ahead import Ahead, lane_to
from instil.train.loop import train
from instil.train.objective import Likelihood
from tests.train.test_training import decoder, some_rows


class Told:
    """Writes down what happens to steps, by the number of rows of their one batch."""

    def __init__(self) -> None:
        self.happened: list[str] = []

    def send(self, batches: Sequence[Batch]) -> list[Batch]:
        self.happened.append(f"send {batches[0].layout.rows}")
        return list(batches)

    def arrive(self, batches: Sequence[Batch]) -> None:
        self.happened.append(f"arrive {batches[0].layout.rows}")


def steps(told: Told, count: int = 3, problem: Exception | None = None) -> Iterator[list[Batch]]:
    for number in range(1, count + 1):
        told.happened.append(f"make {number}")
        yield [collate(some_rows(number), pad_id=0)]
    if problem is not None:
        raise problem


def test_a_step_is_made_and_sent_before_it_is_asked_for() -> None:
    told = Told()
    ahead = Ahead(steps(told, 2), told)
    for step in ahead:
        told.happened.append(f"compute {step[0].layout.rows}")
        ahead.fetch()
        ahead.fetch()  # once is enough
        told.happened.append(f"read {step[0].layout.rows}")
    assert told.happened == [
        "make 1", "send 1", "arrive 1", "compute 1", "make 2", "send 2", "read 1", "arrive 2", "compute 2", "read 2",
    ]  # fmt: skip


def test_without_a_lane_each_is_made_when_it_is_asked_for() -> None:
    told = Told()
    ahead = Ahead(steps(told, 2), None)
    for step in ahead:
        ahead.fetch()
        told.happened.append(f"compute {step[0].layout.rows}")
    assert told.happened == ["make 1", "compute 1", "make 2", "compute 2"]


def test_what_goes_wrong_ahead_is_said_when_its_step_comes() -> None:
    told, done = Told(), []
    ahead = Ahead(steps(told, 2, DataError("rows cannot be read")), told)
    with pytest.raises(DataError, match="cannot be read"):
        for step in ahead:
            ahead.fetch()
            done.append(step[0].layout.rows)
    assert done == [1, 2]


def test_only_a_gpu_has_a_lane() -> None:
    assert lane_to(torch.device("cpu")) is None


@pytest.mark.parametrize("order", ["seeded", "book"])
def test_a_training_takes_the_steps_that_it_would_have_taken(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with a lane that is none; also where an order is drawn, and where a step is too large."""
    options = TrainOptions(epochs=2, batch_size=4, learning_rate=1e-2, eval_every=2)

    class Large(Likelihood):
        """For the third time that there are more than two rows at once there is no memory."""

        asked = 0

        def count(self, batch: Batch) -> float:
            Large.asked += batch.layout.rows > 2
            if Large.asked == 3:
                Large.asked += 1
                raise MemoryError
            return super().count(batch)

    found = []
    for lane in (None, Told()):
        Large.asked = 0
        monkeypatch.setattr("instil.train.training.lane_to", lambda device, lane=lane: lane)
        loader = Loader(some_rows(), 4, pad_id=0, seed=9, order=order)  # type: ignore[arg-type]
        validation = [collate(some_rows()[:2], pad_id=0)]
        result = train(decoder(), loader, options, validation=validation, objective=Large())
        found.append([(one.train_loss, one.val_loss) for one in result.records])
        assert loader.micro_batch == 2
    assert found[0] == found[1] and len(found[0]) > 5
