"""Evaluations count rows and batches, and a setting of memory is none of their business."""

from __future__ import annotations

import pytest

from instil.data.loader import Loader
from instil.records import Encoded
from instil.settings.options import TrainOptions
from instil.train.evaluation import AsInBook
from instil.train.loop import train
from instil.train.losses import held_out_loss
from tests.train.test_training import decoder

ROWS = [Encoded(tuple(range(1, 4 + i)), (True,) * (3 + i), 0, i) for i in range(8)]


@pytest.mark.parametrize("micro_batch", [0, 1, 3])
def test_micro_batches_are_one_batch_in_the_books_means(micro_batch: int) -> None:
    model = decoder()
    loader = Loader(ROWS, 4, pad_id=0, shuffle=False, micro_batch=micro_batch)
    found = AsInBook(loader.steps, loader.steps, every=5, limit=1)(model)
    (first,) = Loader(ROWS[:4], 4, pad_id=0, shuffle=False).batches()
    assert found.validation == found.train == pytest.approx(held_out_loss(model, [first]).mean, rel=1e-12)


def test_the_result_is_of_the_model_as_it_ends() -> None:
    """The book's rhythm ends between two evaluations; the loss that is told is still that of the last step."""
    model = decoder()
    loader = Loader(ROWS, 4, pad_id=0)
    held_out = Loader(ROWS[:3], 3, pad_id=0, shuffle=False)
    rhythm = AsInBook(loader.steps, held_out.steps, every=5, limit=0)
    result = train(model, loader, TrainOptions(epochs=2, batch_size=4, learning_rate=1e-2), evaluator=rhythm)
    assert [record.step for record in result.records if record.val_loss is not None] == [0, 1]
    assert result.validation_loss == pytest.approx(held_out_loss(model, held_out.batches()).mean, rel=1e-12)


@pytest.mark.parametrize(("batch_size", "micro_batch"), [(0, 0), (4, -1)])
def test_a_loader_of_nothing_is_refused(batch_size: int, micro_batch: int) -> None:
    with pytest.raises(ValueError, match="wanted at least 1"):
        Loader(ROWS, batch_size, pad_id=0, micro_batch=micro_batch)
