"""instil's preference tuning: the reference's log-probabilities, then its own loop, on its own loader."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.contenders.track import ALPHA, RANK, Job, Track, arguments
from instil import machine as runtime


def main(job: Job, variant: str, track: Track) -> None:
    """As ``instil train --method dpo`` does, without validation and samples."""
    runtime.settle()  # the command line's first act

    from instil.data.loader import Loader
    from instil.model.fast.gemm import backend
    from instil.model.load import load_decoder
    from instil.model.lora import add_lora
    from instil.records import Encoded, EncodedPair
    from instil.settings.options import DpoOptions, TrainOptions
    from instil.tasks.pairs.batches import PairCollator, collate_pairs
    from instil.tasks.pairs.losses import Preference, reference_log_probs
    from instil.tasks.pairs.reference import pairs_at_once
    from instil.train.loop import train
    from instil.train.metrics import StepRecord
    from instil.train.observer import OnStep

    decoder = load_decoder(job.folder)
    pairs = []
    for step in job.steps:
        for (chosen, trained), (rejected, _) in zip(step[::2], step[1::2], strict=True):
            first = trained.index(True)
            rows = [Encoded(tuple(ids), (False,) * len(ids), first) for ids in (chosen, rejected)]
            pairs.append(EncodedPair(rows[0], rows[1], range(first, len(chosen)), range(first, len(rejected))))
    options = TrainOptions(
        layout="padded" if variant == "padded" else "shared",
        epochs=1,
        batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay,
        schedule="constant",
        eval_every=0,
        precision="bf16" if variant == "bf16" else "fp32",
    )

    def on_step(record: StepRecord) -> None:
        if record.train_loss is not None:
            track.step(record.train_loss)

    track.begin()
    scored: list[EncodedPair] = []
    for at_once in pairs_at_once(pairs, PairCollator(job.pad_id, job.max_length, options.layout)):
        some = [pairs[at] for at in at_once]
        batch = collate_pairs(some, job.pad_id, job.max_length, options.layout)
        found = reference_log_probs(decoder, batch, options.precision)
        scored += [replace(pair, reference=one) for pair, one in zip(some, found, strict=True)]
    if variant == "lora":
        add_lora(decoder, rank=RANK, alpha=ALPHA)
    loader = Loader(
        scored,
        options.batch_size,
        pad_id=job.pad_id,
        max_length=job.max_length,
        shuffle=False,
        layout=options.layout,
        collator=PairCollator,
    )
    train(decoder, loader, options, observers=[OnStep(on_step)], objective=Preference(DpoOptions()))
    track.end(layout=options.layout, gemm=backend())


if __name__ == "__main__":
    main(*arguments(), Track())
