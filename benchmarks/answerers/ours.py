"""instil: its engine with its defaults."""

from __future__ import annotations

from benchmarks.answerers.telling import Questions, Tell, arguments


def main(job: Questions, variant: str, tell: Tell) -> None:
    """Answer as `instil respond` does: all rows side by side, or one at a time, also with rounded weights."""
    from instil.machine import settle

    settle()
    from instil.generate.engine import Engine
    from instil.generate.prompts import generate
    from instil.generate.request import Request
    from instil.model.load import load_decoder
    from instil.model.rounded.weights import round_weights

    decoder = load_decoder(job.folder)
    if variant.startswith(("int8", "bf16")):
        round_weights(decoder, "int8" if variant.startswith("int8") else "bf16")
    tell.loaded()
    first = Engine(decoder)
    first.submit(Request(job.prompts[0], 1))
    list(first.run())
    tell.first()
    engine = Engine(decoder, rows=128 if variant in ("", "int8-all", "bf16-all") else 1)
    tell.answered(
        lambda: [
            one.ids
            for one in generate(
                decoder,
                job.prompts,
                max_new_tokens=job.max_new_tokens,
                stop_ids=frozenset(job.stop_ids),
                engine=engine,
            )
        ]
    )
    tell.end(passes=engine.passes, tokens=engine.tokens, recomputed=engine.recomputed)


if __name__ == "__main__":
    main(*arguments())
