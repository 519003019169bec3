"""A decoder written as GGUF: what llama.cpp and Ollama run, in float32 or in fewer bits.

The file appears whole or not at all, and is read again first: what a family's table says in GGUF must come back as the
same spec and the same parameters, rounded as they were meant to be. In fewer bits norms, biases and what llama.cpp
keeps in float32 stay so, and rows that no block divides are written in float16, as `llama-quantize` does. The blocks
are made by the `gguf` package, which writes none of the K-quants; of 4 and 5 bits those with an offset a block
(``q4_1``, ``q5_1``) are the nearest it has, with embedding and head in ``q8_0``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from instil.errors import ModelError
from instil.files import unfinished_of
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.family import Family
from instil.model.files.gguf import GgufFile
from instil.model.files.reader import stored_tensors
from instil.model.spec import DecoderSpec

# What a model can be written in, and llama.cpp's ``general.file_type`` of it.
PRECISIONS = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q5_1": 9, "q4_1": 3}
TABLES = ("token_embd.weight", "output.weight")  # of tokens: they take 8 bits where the rest has fewer
IN_FLOAT32 = re.compile(r"position_embd\.weight|\.shortconv\.conv\.weight")
LARGEST_F16 = 65504.0


def write_gguf(
    decoder: Decoder,
    values: Mapping[str, Any],
    path: Path,
    check: Callable[[Path], None] = lambda file: None,
    precision: str = "f32",
) -> None:
    """Write weights, the architecture's keys, and other values such as the tokenizer's.

    Args:
        decoder: without adapters and weights in few bits.
        values: others of the header, by their keys.
        path: its folder must exist.
        check: looks at the file before it takes its name; what it raises stops that.
        precision: one of `PRECISIONS`.

    Raises:
        ModelError: llama.cpp does not compute what this decoder does, or the file does not read as it was meant.
        OSError: it cannot be written.
    """
    family = FAMILIES[decoder.spec.family]
    header = check_form(decoder)
    unfinished = unfinished_of(path)
    try:
        _write(decoder, family.architecture_in_gguf, {**header, **values}, unfinished, precision)
        again = GgufFile(unfinished)
        _same_spec(decoder.spec, again.spec)
        if precision != "f32":
            _same_tensors(decoder, family, again, precision)
        check(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def check_form(decoder: Decoder) -> dict[str, Any]:
    """What GGUF says of a decoder's spec, as far as it is known before anything is written.

    Raises:
        ModelError: llama.cpp has no such model, would miss a tensor, or not know one.
    """
    family = FAMILIES[decoder.spec.family]
    header = family.header_in_gguf(decoder.spec)
    names = {re.sub(r"^blocks\.\d+", "blocks.{i}", name) for name, _ in decoder.named_parameters()}
    wrong = [f"no {name}" for name in family.gguf_lacks if name in names]
    wrong += [f"one without {name}" for name in family.gguf_needs if name not in names]
    spec = decoder.spec
    if family.gguf_even and spec.heads * spec.head_width != spec.width:
        wrong.append(f"no {spec.heads} heads of {spec.head_width} in a width of {spec.width}")
    if wrong:
        raise ModelError(f"llama.cpp reads {' and '.join(wrong)} in a {family.name} model. Use --to hf")
    return header


def kind_of(name: str, shape: Sequence[int], precision: str) -> str:
    """How a tensor is stored in a file of this precision, as GGUF calls it.

    >>> kind_of("blk.0.ffn_up.weight", (64, 32), "q4_1"), kind_of("output.weight", (64, 32), "q4_1")
    ('Q4_1', 'Q8_0')
    >>> kind_of("blk.0.ffn_up.weight", (64, 20), "q8_0"), kind_of("output_norm.weight", (32,), "q8_0")
    ('F16', 'F32')
    """
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    if len(shape) < 2 or IN_FLOAT32.search(name):
        return "F32"
    kind = "q8_0" if name in TABLES and precision in ("q5_1", "q4_1") else precision
    block, _ = GGML_QUANT_SIZES[GGMLQuantizationType[kind.upper()]]
    return "F16" if shape[-1] % block else kind.upper()


def _rounded(name: str, tensor: Tensor, precision: str) -> tuple[NDArray[Any], Any]:
    """A tensor as it is stored, and its kind."""
    from gguf import GGMLQuantizationType
    from gguf.quants import quantize

    kind = GGMLQuantizationType[kind_of(name, tuple(tensor.shape), precision)]
    whole = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    largest = float(np.abs(whole).max(initial=0.0))
    if kind.name == "F16" and not largest <= LARGEST_F16:
        raise ModelError(f"{name} holds {largest:.3g}, which float16 cannot; export with --dtype bf16 or f32")
    return quantize(whole, kind), kind


def _same_tensors(decoder: Decoder, family: Family, again: GgufFile, precision: str) -> None:
    """ModelError where a tensor of the file is not the decoder's, rounded as it was meant to be."""
    from gguf.quants import dequantize

    for name, tensor in stored_tensors(decoder, family.gguf):
        stored, kind = _rounded(name, tensor, precision)
        wanted = torch.from_numpy(dequantize(stored, kind).reshape(tuple(tensor.shape)))
        if not torch.equal(again.get(name), wanted):
            raise ModelError(f"{name} does not read as it was written ({kind.name}). Use --to hf")


def _write(decoder: Decoder, architecture: str, values: Mapping[str, Any], path: Path, precision: str) -> None:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFWriter

    others = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    table = FAMILIES[decoder.spec.family].gguf
    writer = GGUFWriter(str(path), architecture)
    try:
        writer.add_type("model")
        writer.add_file_type(PRECISIONS[precision])
        writer.add_vocab_size(decoder.spec.vocab_size)
        for key, value in values.items():
            if not isinstance(value, Tensor):
                _add(writer, key, value)
        for name, tensor in (*others.items(), *stored_tensors(decoder, table)):
            kind = GGMLQuantizationType[kind_of(name, tuple(tensor.shape), precision)]
            block, size = GGML_QUANT_SIZES[kind]
            writer.add_tensor_info(
                name, tuple(tensor.shape), np.dtype(np.float32), tensor.numel() // block * size, raw_dtype=kind
            )
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for name, tensor in (*others.items(), *stored_tensors(decoder, table)):
            writer.write_tensor_data(_rounded(name, tensor, precision)[0])
    finally:
        writer.close()


def _add(writer: Any, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def _same_spec(meant: DecoderSpec, found: DecoderSpec) -> None:
    """ModelError where the file says something else of the model than was meant."""
    wanted, read = asdict(meant), asdict(found)
    for name, value in wanted.items():
        same = read[name] == value
        if isinstance(value, float) and isinstance(read[name], int | float):
            same = np.float32(value) == np.float32(read[name])
        if name == "windows":
            same = _windows(meant, found.context) == _windows(found, found.context)
        if name == "context":
            same = read[name] <= value  # less, where longer texts would be answered otherwise
        if not same and name not in ("family", "rope_scaling"):
            raise ModelError(
                f"GGUF has no words for {name}={value!r} of a {meant.family} model: llama.cpp would take "
                f"{read[name]!r}. Use --to hf"
            )


def _windows(spec: DecoderSpec, context: int) -> list[int | None]:
    """The windows that hide anything."""
    windows = [spec.window_of(layer) for layer in range(spec.layers)]
    return [None if window is None or window >= context else window for window in windows]
