"""Training what was prepared. It knows no files and no screen: those who do are observers."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from instil.model.decoder import Decoder
from instil.tasks.adapters import adapted
from instil.tasks.task import Prepared, evaluator_for, loader_for
from instil.train.best import BestCheckpoint
from instil.train.loop import train
from instil.train.observer import Observer, TrainResult
from instil.train.ranks import ALONE, Ranks
from instil.train.rewind import Earlier
from instil.train.state import TrainState


def tune(
    prepared: Prepared,
    decoder: Decoder,
    observers: Sequence[Observer] = (),
    best: BestCheckpoint | None = None,
    resume: TrainState | None = None,
    earlier: Earlier | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Train a decoder in place; adapters are in its weights afterwards.

    Args:
        prepared: what `Task.ready` returned.
        decoder: the model.
        observers: who watches.
        best: keeps the best model so far, for ``train.patience``.
        resume: the state of this very training, from which it goes on.
        earlier: its states that are kept, to one of which it may go back.
        ranks: the processes that train together, each of which calls this.

    Raises:
        TrainingStopped, OutOfMemory: see `instil.train.loop.train`.
        TrainingDiverged: the loss is not finite, and no model with one was kept.
        MergeError: the model with its adapters merged answers otherwise than before.
    """
    if prepared.task.looks_before and not prepared.looked_at:
        raise ValueError("these rows are not ready to be trained on: call prepared.task.ready first")
    options, loader = prepared.settings.train, loader_for(prepared, "train", ranks)
    assert loader is not None, "pre-flight refuses data without a trainable row"
    if options.evaluation == "book":
        torch.manual_seed(options.seed)
    evaluator = evaluator_for(prepared, loader, ranks)
    tried = prepared.task.answer(prepared.rows["train"][0]).ids[: prepared.max_length]
    with adapted(decoder, prepared.settings, tried):
        return train(
            decoder,
            loader,
            options,
            evaluator=evaluator,
            observers=observers,
            seen_ids=loader.ids(),
            best=best,
            objective=prepared.task.objective(),
            resume=resume,
            earlier=earlier,
            ranks=ranks,
        )
