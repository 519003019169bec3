"""The prompts that all answerers are given, and the model in the form that each of them reads.

Run as ``python -m benchmarks.questions`` so that the measuring process itself stays small.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import gguf

from benchmarks.inputs import build_model, for_the_book
from instil.data.encoding import encode_prompt, stop_id
from instil.data.sources import read_source
from instil.data.splits import split_examples
from instil.data.templates import template_named
from instil.data.tokenizers import load_tokenizer
from instil.model.find import find_model
from instil.records import Example
from instil.settings.options import DataOptions


def examples_of(data: str, split: str, rows: int) -> tuple[Example, ...]:
    """The first rows of a split, or of all there are."""
    source = read_source(data, skip_bad=True)
    parts = split_examples(source.examples, DataOptions())
    return tuple((source.examples if split == "all" else getattr(parts, split))[:rows])


def for_llama_cpp(work: Path) -> dict[str, str]:
    """GGUF files of SmolLM2: its own (Q4_1), and one with the same weights in float32."""
    source = find_model("smollm2-135m")
    target = work / "smollm2-f32.gguf"
    if not target.is_file():
        reader = gguf.GGUFReader(str(source))
        half = target.with_suffix(".part")
        writer = gguf.GGUFWriter(str(half), "llama")
        for name, field in reader.fields.items():
            if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
                continue
            kind, *inner = field.types
            writer.add_key_value(name, field.contents(), kind, inner[0] if inner else None)
        writer.add_file_type(int(gguf.LlamaFileType.ALL_F32))
        for tensor in reader.tensors:
            writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype("float32"))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        half.rename(target)
    return {"F32": str(target), "Q4": str(source)}


def make(asked: argparse.Namespace) -> Path:
    """Write the job and return its file."""
    asked.work.mkdir(parents=True, exist_ok=True)
    folder = asked.folder or build_model(asked.model, asked.work, tiny=asked.tiny)
    tokenizer, template = load_tokenizer(folder), template_named("alpaca")
    extra: dict[str, str] = {}
    if asked.model == "gpt2":
        extra = for_the_book(folder)
    elif not asked.folder:
        extra = for_llama_cpp(asked.work)
    job: dict[str, Any] = {
        "model": asked.model,
        "folder": str(folder),
        "prompts": [
            encode_prompt(example, template, tokenizer) for example in examples_of(asked.data, asked.split, asked.rows)
        ],
        "max_new_tokens": asked.new,
        "stop_ids": sorted(tokenizer.stop_ids | {stop_id(template, tokenizer)}) if asked.to_the_end else [],
        "extra": extra,
    }
    path: Path = asked.work / f"questions-{asked.name}.json"
    path.write_text(json.dumps(job), encoding="utf-8")
    return path


def main() -> None:
    """``python -m benchmarks.questions MODEL NAME ...``: prints the job's path."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=("gpt2", "smollm2"))
    parser.add_argument("name", help="of the job")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", choices=("test", "all"), default="test")
    parser.add_argument("--rows", type=int, default=110)
    parser.add_argument("--new", type=int, default=16)
    parser.add_argument("--to-the-end", action="store_true")
    parser.add_argument("--folder", type=Path, help="a tuned model instead of the plain one")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--tiny", action="store_true")
    print(make(parser.parse_args()))


if __name__ == "__main__":
    main()
