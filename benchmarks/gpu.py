"""The book's training and answers on a GPU: ``python -m benchmarks.gpu``.

Chapter 7 tunes the model of 355 million parameters for two epochs on 935 rows, eight at a time, which takes 51.6 s on
an A100 there. Here a model of that shape with random weights trains as long on as many rows of random words, as long as
the book's are, and answers prompts. For each precision and layout it tells the seconds of the two epochs without what
loading and the first steps take, tokens a second, and the most memory of the GPU; for answering, tokens a second with
and without recorded passes.

Without a GPU it says so in one line and measures nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

BOOK_SECONDS = 51.6  # on an A100
GOAL_SECONDS = 1.6  # on an H200
ROWS, BATCH, EPOCHS, RATE = 935, 8, 2, 5e-5
WARM = 5  # steps that are not counted: libraries are loaded, and memory is taken
SHAPES = {  # layers, width, heads
    "gpt2-small": (12, 768, 12),
    "gpt2-medium": (24, 1024, 16),
    "tiny": (2, 32, 2),
}
NO_GPU = "no GPU: torch sees none here, so nothing is measured (this benchmark is for machines with one)"


def spec_of(name: str) -> Any:
    """The shape of one of GPT-2's models."""
    from instil.model.spec import DecoderSpec

    layers, width, heads = SHAPES[name]
    return DecoderSpec(
        family="gpt2",
        vocab_size=50_257,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_width=width // heads,
        mlp_width=4 * width,
        context=1024,
        norm="layer",
        norm_eps=1e-5,
        mlp="gelu",
        positions="learned",
        attention_bias=True,
        mlp_bias=True,
    )


def decoder_of(name: str, device: Any) -> Any:
    """A model of that shape with random weights, the same ones each time."""
    import torch

    from instil.model.decoder import Decoder

    torch.manual_seed(1)
    return Decoder(spec_of(name)).to(device)


def rows_of(data: str, count: int) -> list[Any]:
    """Encoded rows: of a file in the book's form, or of random words."""
    from benchmarks.rows import varied
    from instil.data.encoding import encode_many
    from instil.data.sources import read_source
    from instil.data.templates import template_named
    from instil.data.tokenizers import FastTokenizer

    examples = list(read_source(data).examples)[:count] if data else list(varied(count))
    return encode_many(examples, template_named("alpaca"), FastTokenizer.gpt2())


def trained(model: str, rows: list[Any], device: Any, precision: Any, layout: Any, epochs: int) -> dict[str, float]:
    """Seconds of the epochs, at the pace of what comes after the first steps; tokens a second; the peak in GB."""
    import torch

    from instil.data.loader import Loader
    from instil.machine import forget_peak, peak_memory
    from instil.settings.options import TrainOptions
    from instil.train.loop import train

    decoder = decoder_of(model, device)
    forget_peak()
    options = TrainOptions(
        epochs=epochs, batch_size=BATCH, learning_rate=RATE, weight_decay=0.1, eval_every=0, precision=precision
    )
    loader = Loader(rows, BATCH, pad_id=50_256, layout=layout, drop_last=True)
    records = train(decoder, loader, options).records
    first, last = records[WARM], records[-1]
    steps = last.step - first.step
    seconds = last.seconds - first.seconds
    found = {
        "seconds": seconds / steps * last.step,
        "step_ms": 1000 * seconds / steps,
        "tokens_per_second": (last.tokens_seen - first.tokens_seen) / seconds,
        "peak_gb": peak_memory(device) / 1e9,
        "loss": float(last.train_loss or 0.0),
    }
    del decoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return found


def answered(model: str, device: Any, rows: int, tokens: int, *, replay: bool) -> dict[str, float]:
    """New tokens a second of so many rows side by side; the second time, when what is to be recorded is recorded."""
    import torch

    from instil.generate.engine import Engine
    from instil.generate.request import Request
    from instil.generate.sampling import Sampling

    draw = torch.Generator().manual_seed(1)
    prompts = torch.randint(0, 50_256, (rows, 40), generator=draw).tolist()
    engine = Engine(decoder_of(model, device), rows=rows, replay=replay, speculate=False)
    seconds = 0.0
    for _ in range(2):
        for prompt in prompts:
            engine.submit(Request(prompt, tokens, sampling=Sampling(temperature=1.0)))
        started = time.perf_counter()
        list(engine.run())
        seconds = time.perf_counter() - started
    return {"tokens_per_second": rows * tokens / seconds, "token_ms": 1000 * seconds / tokens}


def main(arguments: list[str] | None = None) -> int:
    """Measure, print a table in Markdown, and keep the figures where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--model", choices=sorted(SHAPES), default="gpt2-medium")
    parser.add_argument("--data", default="", help="rows in the book's form; by default rows of random words")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--tokens", type=int, default=128, help="new ones of each answer")
    parser.add_argument("--out", type=Path, help="where the figures are kept as JSON")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: to try the benchmark itself")
    asked = parser.parse_args(arguments)

    import torch

    if asked.device == "cuda" and not torch.cuda.is_available():
        print(NO_GPU)
        return 0
    device = torch.device(asked.device)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    rows = rows_of(asked.data, asked.rows)
    found: dict[str, Any] = {"device": name, "torch": torch.__version__, "model": asked.model, "rows": len(rows)}
    print(
        f"{name}, torch {torch.__version__}; {asked.model} with random weights, {len(rows)} rows, {asked.epochs} epochs"
    )
    print(f"the book's: {BOOK_SECONDS} s on an A100; wanted: {GOAL_SECONDS} s on an H200\n")
    print("| precision | layout | seconds | ms a step | tokens a second | peak, GB |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for precision in ("bf16", "fp32"):
        for layout in ("shared", "padded"):
            one = trained(asked.model, rows, device, precision, layout, asked.epochs)
            found[f"train {precision} {layout}"] = one
            numbers = one["seconds"], one["step_ms"], one["tokens_per_second"], one["peak_gb"]
            print(f"| {precision} | {layout} | {' | '.join(f'{number:.2f}' for number in numbers)} |")
    print("\n| rows side by side | passes | tokens a second | ms a pass |")
    print("| ---: | --- | ---: | ---: |")
    for count in (1, 16, 128):
        for replay in (True, False):
            one = answered(asked.model, device, count, asked.tokens, replay=replay)
            how = "replayed" if replay else "as they come"
            found[f"answer {count} {how}"] = one
            print(f"| {count} | {how} | {one['tokens_per_second']:.0f} | {one['token_ms']:.2f} |")
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
