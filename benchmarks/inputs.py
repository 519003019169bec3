"""The models and batches that all contenders are given, made once by instil and converted for each of them.

Run as ``python -m benchmarks.inputs`` so that the measuring process itself stays small.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import torch

from benchmarks.common import common_rows, is_common
from benchmarks.floor import Work
from instil.assistant.folder import export_folder
from instil.data.collate import collate_shared
from instil.data.encoding import encode
from instil.data.loader import Loader
from instil.data.sources import read_source
from instil.data.splits import split_examples
from instil.data.templates import template_named
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.model.decoder import Decoder
from instil.model.families.gpt2 import BOOK_NAMES, gpt2_spec
from instil.model.files.reader import stored_tensors
from instil.model.find import find_model
from instil.model.load import load_decoder, read_spec
from instil.records import Encoded
from instil.settings.options import DataOptions

SEED = 123  # of the order of rows; instil's default
WEIGHTS_SEED = 1
NO_DROPOUT = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "attention_dropout": 0.0}
SHAPES = {  # width, layers, heads
    False: (768, 12, 12),
    True: (32, 2, 2),
}


def build_model(model: str, work: Path, *, tiny: bool) -> Path:
    """A folder of `transformers` with the model's weights; made anew only where there is none."""
    folder = work / f"{model}{'-tiny' if tiny else ''}"
    if folder.is_dir():
        return folder
    template = template_named("alpaca")
    if model == "gpt2":
        width, layers, heads = SHAPES[tiny]
        torch.manual_seed(WEIGHTS_SEED)
        decoder = Decoder(
            gpt2_spec(
                vocab_size=50257, width=width, layers=layers, heads=heads, mlp_width=4 * width,
                context=1024, norm_eps=1e-5, tied=True,
            )
        )  # fmt: skip
        export_folder(decoder, FastTokenizer.gpt2(), template, folder)
    else:
        source = find_model("smollm2-135m")
        export_folder(load_decoder(source), load_tokenizer(source), template, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **NO_DROPOUT}, indent=2), encoding="utf-8")
    return folder


def for_the_book(folder: Path) -> dict[str, str]:
    """The weights under the book's names, and the numbers of its configuration (GPT-2 only)."""
    decoder = load_decoder(folder)
    path = folder.with_name(folder.name + "-book.pth")
    if not path.is_file():
        tensors = dict(stored_tensors(decoder, BOOK_NAMES))
        tensors["out_head.weight"] = tensors["tok_emb.weight"]
        torch.save(tensors, path)
    spec = decoder.spec
    shape = {
        "vocab_size": spec.vocab_size,
        "context_length": spec.context,
        "emb_dim": spec.width,
        "n_heads": spec.heads,
        "n_layers": spec.layers,
    }
    return {"weights": str(path), **{name: str(value) for name, value in shape.items()}}


def for_litgpt(folder: Path) -> dict[str, str]:
    """A folder with a copy of the weights, where LitGPT's own conversion can put its form of them."""
    copy = folder.with_name(folder.name + "-lit")
    if not copy.is_dir():
        copy.mkdir()
        for name in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(folder / name, copy / name)
    return {"lit": str(copy)}


def batches(folder: Path, data: str, objective: str, steps: int, batch_size: int) -> list[list[Encoded]]:
    """The rows of the first steps of a run, in the order in which instil's loader gives them."""
    if is_common(data):
        return common_rows(data, steps, batch_size, read_spec(folder).vocab_size)
    template, tokenizer = template_named("alpaca"), load_tokenizer(folder)
    train_on = cast("Literal['all', 'response']", objective)
    rows = split_examples(read_source(data).examples, DataOptions()).train
    encoded = [encode(row, template, tokenizer, train_on) for row in rows]
    loader = Loader(encoded, batch_size, pad_id=tokenizer.eos_id, drop_last=True, seed=SEED)
    order = [
        row for epoch in range(1 + steps // len(loader)) for row in loader.order(epoch)[: len(loader) * batch_size]
    ]
    return [[encoded[row] for row in order[at * batch_size :][:batch_size]] for at in range(steps)]


def make(model: str, objective: str, *, data: str, steps: int, batch_size: int, work: Path, tiny: bool) -> Path:
    """Write the job of one model and objective and return its file."""
    folder = build_model(model, work, tiny=tiny)
    decoder = load_decoder(folder)
    spec, parameters = decoder.spec, decoder.parameter_count
    del decoder
    chosen = batches(folder, data, objective, steps, batch_size)
    max_length = min(1024, spec.context)
    job: dict[str, Any] = {
        "model": model,
        "folder": str(folder),
        "steps": [[(row.ids, row.trained) for row in rows] for rows in chosen],
        "batch_size": batch_size,
        "max_length": max_length,
        "pad_id": load_tokenizer(folder).eos_id,
        "learning_rate": 5e-5,
        "weight_decay": 0.1,
        "scratch": str(work),
        "extra": for_the_book(folder) if model == "gpt2" else for_litgpt(folder),
    }
    path = work / f"job-{model}-{objective}{'-tiny' if tiny else ''}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    work_of = [Work.of(spec, collate_shared(rows, max_length), parameters) for rows in chosen]
    facts = {"spec": asdict(spec), "work": [asdict(one) for one in work_of]}
    path.with_suffix(".facts.json").write_text(json.dumps(facts), encoding="utf-8")
    return path


def main() -> None:
    """``python -m benchmarks.inputs MODEL OBJECTIVE ...``: prints the job's path."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=("gpt2", "smollm2"))
    parser.add_argument("objective", choices=("all", "response"))
    parser.add_argument("--data", default="starter")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    asked = parser.parse_args()
    asked.work.mkdir(parents=True, exist_ok=True)
    path = make(
        asked.model,
        asked.objective,
        data=asked.data,
        steps=asked.steps,
        batch_size=asked.batch,
        work=asked.work.resolve(),
        tiny=asked.tiny,
    )
    print(path)


if __name__ == "__main__":
    main()
