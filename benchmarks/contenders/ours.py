"""instil: its own loader, its own loop, its defaults, but for what the job fixes."""

from __future__ import annotations

import importlib
import importlib.util
import time
from typing import Any

from benchmarks.contenders.track import ALPHA, RANK, Job, Track, arguments


def main(job: Job, variant: str, track: Track) -> None:
    """Train as `instil train` does, without validation and samples."""
    if importlib.util.find_spec("instil.machine"):
        importlib.import_module("instil.machine").settle()  # the command line's first act

    from instil.data.loader import Loader
    from instil.model.load import load_decoder
    from instil.records import Encoded
    from instil.settings.options import TrainOptions
    from instil.train.loop import train
    from instil.train.metrics import StepRecord
    from instil.train.observer import OnStep

    decoder = load_decoder(job.folder)
    if variant == "untied":
        decoder.untie()
    if variant.startswith("lora"):
        importlib.import_module("instil.model.lora").add_lora(decoder, rank=RANK, alpha=ALPHA)
    options = TrainOptions(
        layout="padded" if variant == "padded" else "shared",
        epochs=1,
        batch_size=job.batch_size,
        learning_rate=job.learning_rate,
        weight_decay=job.weight_decay,
        schedule="constant",
        eval_every=0,
        gradient_checkpointing=variant.endswith("checkpointing"),
        precision="bf16" if variant.endswith("bf16") else "fp32",
    )
    loader = Loader(
        [Encoded(tuple(ids), tuple(trained)) for step in job.steps for ids, trained in step],
        options.batch_size,
        pad_id=job.pad_id,
        max_length=job.max_length,
        shuffle=False,  # the job's rows are in order already
        layout=options.layout,
    )

    def on_step(record: StepRecord) -> None:
        if record.train_loss is not None:
            track.step(record.train_loss)

    track.begin()
    train(decoder, loader, options, observers=[OnStep(on_step)])
    if job.evaluate:
        evaluate(job, decoder, loader, track)
    gemm = importlib.import_module("instil.model.fast.gemm")
    track.end(layout=options.layout, gemm=gemm.backend())


def evaluate(job: Job, decoder: Any, loader: Any, track: Track) -> None:
    """The loss of all rows, in batches as `instil.tasks.task.loader_for` makes them of validation rows."""
    from instil.data.loader import Loader
    from instil.data.together import together
    from instil.train.evaluation import HeldOut

    started = time.perf_counter()
    collate = loader.collate
    longest = max(map(collate.length, loader.rows))
    rows, count = together(
        list(loader.rows), collate.positions, lambda row: row.ids,
        least=job.batch_size, longest=longest, padded=loader.layout == "padded",
    )  # fmt: skip
    how: dict[str, Any] = {"pad_id": job.pad_id, "max_length": job.max_length, "layout": loader.layout}
    found = HeldOut(list(Loader(rows, count, shuffle=False, **how).batches()))(decoder)
    track.evaluated(found.validation or 0.0, time.perf_counter() - started)


if __name__ == "__main__":
    main(*arguments(), Track())
