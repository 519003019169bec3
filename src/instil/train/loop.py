"""The loop: batches in, a tuned decoder and its records out.

It knows nothing of files, screens or generation: whoever wants to know something of a training hands in an
`instil.train.observer.Observer`.
"""

from __future__ import annotations

from collections.abc import Sequence

from instil.batches import Batch
from instil.errors import TrainingDiverged
from instil.model.decoder import Decoder
from instil.model.fast.gemm import precision_for
from instil.settings.options import TrainOptions
from instil.train import rewind
from instil.train.best import BestCheckpoint
from instil.train.evaluation import Evaluator, HeldOut
from instil.train.objective import Likelihood, Objective
from instil.train.observer import Observer, TrainResult
from instil.train.proof import Steps
from instil.train.ranks import ALONE, Ranks
from instil.train.state import TrainState
from instil.train.training import Training
from instil.train.weights import check_weights


def train(
    decoder: Decoder,
    loader: Steps,
    options: TrainOptions,
    *,
    validation: Sequence[Batch] = (),
    evaluator: Evaluator | None = None,
    observers: Sequence[Observer] = (),
    seen_ids: Sequence[int] = (),
    best: BestCheckpoint | None = None,
    objective: Objective | None = None,
    resume: TrainState | None = None,
    earlier: rewind.Earlier | None = None,
    ranks: Ranks = ALONE,
) -> TrainResult:
    """Tune a decoder in place with AdamW (Loshchilov and Hutter, 2019).

    The gradient of a step is that of the summed loss of all its micro-batches divided once by the
    number of their targets (or pairs), so micro-batches are exactly one big batch (E1).

    Args:
        decoder: its weights are changed.
        loader: gives the micro-batches of every step.
        options: see `TrainOptions`.
        validation: batches for the periodic validation loss; may be empty.
        evaluator: another way to evaluate than `HeldOut` over ``validation``.
        observers: who is told of steps, evaluations and pauses, in this order.
        seen_ids: every id the loader will give, if known: of an untied embedding only their rows are trained,
            and the others decay, which is the same (`instil.train.touched`).
        best: keeps the model with the lowest validation loss, which is the one that remains; needed for
            ``options.patience``.
        objective: what is made smaller; the negative log-likelihood of the targets by default.
        resume: the state of such a training, from which this one goes on to the same end (E0, on one machine with the
            same number of threads); everything else has to be as it was, and the decoder as it was before training.
        earlier: the states that are kept of this training, to one of which it goes back where it has diverged
            (``options.on_divergence``), or has run out of memory in the middle of an update.
        ranks: the processes that train this decoder together. Each calls this with the same but for ``loader``, which
            gives its own share of every step (`Loader`'s ``share``), and for observers and ``best``.

    Raises:
        SettingsError: weights that are to be trained are held in fewer than 32 bits, or there are none; or ``resume``
            is of a training with another number of steps.
        ModelError: ``resume`` is of another model, or of a training of other weights of it.
        TrainingDiverged: a loss, that after the last update included, is not finite, and no best model was kept.
        TrainingStopped: an observer wanted it to stop.
        OutOfMemory: a step does not fit, not even row by row, or was cut off in its update, and no state is kept.
        UnreadWeights: the weights are elsewhere, and some process cannot read its part.
        RankLost: another process is gone; the state after the last whole step was given to observers.
    """
    check_weights(decoder)
    precision = ranks.agree(precision_for(options.precision, decoder.device.type))
    options = options.model_copy(update={"precision": precision})
    objective = objective or Likelihood()
    evaluator = evaluator or HeldOut(validation, options.eval_every, options.eval_batches, objective, ranks)
    with ranks.sharding(decoder, narrow=options.precision == "bf16") as trained:
        training = Training(
            trained,
            loader,
            options,
            evaluator,
            observers,
            seen_ids,
            best,
            objective,
            earlier or rewind.Nothing(),
            ranks,
        )
        diverged: TrainingDiverged | None = None
        try:
            for observer in observers:
                observer.on_train_begin(trained, training.total)
            with ranks.together(trained, loader):
                training.run(resume)
        except TrainingDiverged as error:
            diverged = error
        except RuntimeError as error:
            if not ranks.is_loss(error):
                raise
            raise training.lost() from error
        finally:
            training.close()
        result = training.result(diverged)
        del (
            training,
            diverged,
        )  # the optimizer's moments and the last batches, which observers are not to find in memory
    for observer in observers:
        observer.on_train_end(decoder, result)
    return result
