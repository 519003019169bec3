"""A decoder written as GGUF, in float32: what llama.cpp and Ollama run.

The file appears whole or not at all, and is read again first: what a family's table says in GGUF must come back as the
same spec and the same parameters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from instil.errors import ModelError
from instil.files import unfinished_of
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.families.family import Family
from instil.model.files.gguf import GgufFile
from instil.model.files.reader import stored_tensors
from instil.model.spec import DecoderSpec

ALL_F32 = 0  # of llama.cpp's ``general.file_type``


def write_gguf(
    decoder: Decoder, values: Mapping[str, Any], path: Path, check: Callable[[Path], None] = lambda file: None
) -> None:
    """Write weights, the architecture's keys, and other values such as the tokenizer's.

    Args:
        decoder: without adapters and weights in few bits.
        values: others of the header, by their keys.
        path: its folder must exist.
        check: looks at the file before it takes its name; what it raises stops that.

    Raises:
        ModelError: llama.cpp does not compute what this decoder does, or the file does not read as it was meant.
        OSError: it cannot be written.
    """
    family = FAMILIES[decoder.spec.family]
    header = family.header_in_gguf(decoder.spec)
    _check_parameters(decoder, family)
    unfinished = unfinished_of(path)
    try:
        _write(decoder, family.architecture_in_gguf, {**header, **values}, unfinished)
        _same_spec(decoder.spec, GgufFile(unfinished).spec)
        check(unfinished)
        unfinished.replace(path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise


def _check_parameters(decoder: Decoder, family: Family) -> None:
    """ModelError where llama.cpp would miss a tensor, or not know one."""
    names = {re.sub(r"^blocks\.\d+", "blocks.{i}", name) for name, _ in decoder.named_parameters()}
    wrong = [f"no {name}" for name in family.gguf_lacks if name in names]
    wrong += [f"one without {name}" for name in family.gguf_needs if name not in names]
    spec = decoder.spec
    if family.gguf_even and spec.heads * spec.head_width != spec.width:
        wrong.append(f"no {spec.heads} heads of {spec.head_width} in a width of {spec.width}")
    if wrong:
        raise ModelError(f"llama.cpp reads {' and '.join(wrong)} in a {family.name} model. Use --to hf")


def _write(decoder: Decoder, architecture: str, values: Mapping[str, Any], path: Path) -> None:
    from gguf import GGUFWriter

    others = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    table = FAMILIES[decoder.spec.family].gguf
    writer = GGUFWriter(str(path), architecture)
    try:
        writer.add_type("model")
        writer.add_file_type(ALL_F32)
        writer.add_vocab_size(decoder.spec.vocab_size)
        for key, value in values.items():
            if not isinstance(value, Tensor):
                _add(writer, key, value)
        for name, tensor in (*others.items(), *stored_tensors(decoder, table)):
            shape, size = tuple(tensor.shape), tensor.numel() * np.dtype(np.float32).itemsize
            writer.add_tensor_info(name, shape, np.dtype(np.float32), size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for _, tensor in (*others.items(), *stored_tensors(decoder, table)):
            writer.write_tensor_data(tensor.detach().to("cpu", torch.float32).contiguous().numpy())
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
