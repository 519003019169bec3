"""Training only the rows of an untied embedding that are read, against training the whole table (E1)."""

from __future__ import annotations

import copy

import pytest
import torch

from instil.data.loader import Loader
from instil.errors import TrainingDiverged
from instil.model.decoder import Decoder
from instil.records import Encoded
from instil.settings.options import TrainOptions
from instil.train.loop import train
from instil.train.observer import Observer, Pause
from instil.train.touched import TouchedRows
from tests.train.test_training import decoder

ROWS = [Encoded((1, 2, 3 + i % 3, 7, 2), (False, True, True, True, True), 1, i) for i in range(8)]
UNREAD = [4 + i for i in range(2, 13) if 4 + i not in (7,)]  # of 17 ids, none of these is in a row


def untied() -> Decoder:
    model = decoder("gpt2")
    model.untie()
    return model


def tuned(model: Decoder, known: bool, **options: float) -> tuple[Decoder, list[float]]:
    loader = Loader(ROWS, 4, pad_id=0)
    validation = [batch for row in ROWS[:2] for batch in Loader([row], 1, pad_id=0).batches()]
    probed: list[float] = []

    class Probe(Observer):
        def wants_pause(self, pause: Pause) -> bool:
            return pause.evaluated

        def on_pause(self, pause: Pause, decoder: Decoder) -> None:
            probed.append(float(decoder.embed.weight[UNREAD].detach().sum()))

    records = train(
        model, loader, TrainOptions(epochs=5, learning_rate=1e-2, eval_every=3, batch_size=4, **options),  # type: ignore[arg-type]
        validation=validation, observers=[Probe()], seen_ids=loader.ids() if known else (),
    ).records  # fmt: skip
    losses = [x for record in records for x in (record.train_loss, record.val_loss) if x is not None]
    return model, [*losses, *probed]


@pytest.mark.parametrize("options", [{}, {"clip": 0.1}, {"weight_decay": 0.0}, {"warmup": 0.3}], ids=str)
def test_it_is_the_whole_table(options: dict[str, float]) -> None:
    start = untied()
    wanted, wanted_figures = tuned(copy.deepcopy(start), known=False, **options)
    found, figures = tuned(copy.deepcopy(start), known=True, **options)
    assert figures == pytest.approx(wanted_figures, rel=1e-12)
    for (name, ours), theirs in zip(found.named_parameters(), wanted.parameters(), strict=True):
        if "qkv.bias" not in name:  # a key's bias has no gradient, and Adam magnifies its rounding
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    decayed = torch.equal(found.embed.weight[UNREAD], start.embed.weight[UNREAD])
    assert decayed == (options.get("weight_decay") == 0.0)


def test_only_the_rows_read_have_moments() -> None:
    model = untied()
    TouchedRows(model, [1, 2, 3, 7], weight_decay=0.1)
    assert model.embed.weight.shape[0] == 4
    with pytest.raises(IndexError):
        model.embed(torch.tensor([8]))


def test_a_failed_run_leaves_the_whole_table() -> None:
    model = untied()
    with torch.no_grad():
        model.head.weight[2] = float("inf")
    with pytest.raises(TrainingDiverged):
        tuned(model, known=True)
    assert model.embed.weight.shape[0] == 17


def test_a_tied_table_is_trained_whole() -> None:
    model = decoder("gpt2")
    train(model, Loader(ROWS, 4, pad_id=0), TrainOptions(batch_size=4, max_steps=1), seen_ids=[1, 2, 3, 7])
    assert model.embed.weight is model.head.weight
    assert model.embed.weight.shape[0] == 17
