"""Adapters as the GGUF file that llama.cpp puts on a base (``llama-server --lora``, Ollama's ``ADAPTER``).

llama.cpp adds ``alpha / rank * B A x`` to what a matrix gives, with one alpha for the file and each pair's rank, and
adds nothing anywhere else. So alpha is a scale times a rank, whatever the scale was made of (rsLoRA, the book's plain
alpha), and where that product is another one B carries the rest. The rows of B are in the order of the base's: those
of a Llama's queries and keys in neighbouring rotary pairs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from instil.errors import ModelError
from instil.files import write_whole
from instil.gguf_header import read_gguf
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.adapter_modules import ModuleAdapter, module_adapters
from instil.model.files.gguf_writer import LARGEST_F16, check_form

ALPHA = "adapter.lora.alpha"
ADAPTER_DTYPES = ("f32", "f16")


def write_gguf_lora(decoder: Decoder, path: Path, dtype: str = "f32") -> None:
    """Write a decoder's adapters; the file appears whole or not at all.

    Args:
        decoder: it has adapters (`instil.model.lora.add_lora`, `instil.model.files.peft.load_adapter`).
        path: its folder must exist.
        dtype: of the numbers, one of `ADAPTER_DTYPES`.

    Raises:
        ModelError: llama.cpp does not compute what these adapters do, or not what their base does; a number is too
            large for float16.
        OSError: it cannot be written.
    """
    family = FAMILIES[decoder.spec.family]
    check_form(decoder)
    found = list(module_adapters(decoder, family.gguf))
    if not found:
        raise ModelError("this decoder has no adapters to write")
    _check(decoder, found)
    products = [one.scale * one.rank for one in found if one.scale] or [1.0]
    alpha = max(set(products), key=products.count)
    tensors: dict[str, Tensor] = {}
    for one in found:
        rest = one.scale * one.rank / alpha
        b_OR = one.b_OR if math.isclose(rest, 1.0, rel_tol=1e-12) else one.b_OR * rest
        tensors |= {f"{one.module}.weight.lora_a": one.a_RI, f"{one.module}.weight.lora_b": b_OR}
    write_whole(path, lambda part: _write(part, family.architecture_in_gguf, alpha, tensors, dtype))


def _check(decoder: Decoder, found: Sequence[ModuleAdapter]) -> None:
    """ModelError for what llama.cpp has no adapters of."""
    if any(one.magnitude is not None for one in found):
        raise ModelError(
            "these are adapters of DoRA, whose magnitudes llama.cpp has no place for. Take the merged model: --to gguf"
        )
    head = FAMILIES[decoder.spec.family].gguf["head.weight"].names[0].removesuffix(".weight")
    if decoder.spec.tied and any(one.module == head for one in found):
        raise ModelError(
            "the head has an adapter and is the base's embedding, of which llama.cpp puts one on neither. "
            "Take the merged model: --to gguf"
        )


def _write(path: Path, architecture: str, alpha: float, tensors: dict[str, Tensor], dtype: str) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(str(path), architecture)
    try:
        writer.add_type("adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32(ALPHA, alpha)
        for name, tensor in tensors.items():
            largest = float(tensor.abs().max())
            if dtype == "f16" and not largest <= LARGEST_F16:
                raise ModelError(f"{name} holds {largest:.3g}, which float16 cannot; export with --dtype f32")
            values = tensor.to("cpu", torch.float32).contiguous().numpy()
            writer.add_tensor(name, values.astype(np.float16) if dtype == "f16" else values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def read_gguf_lora(path: Path) -> list[ModuleAdapter]:
    """The adapters of such a file, as llama.cpp takes them.

    Raises:
        ModelError: it is none.
    """
    from gguf.quants import dequantize

    header = read_gguf(path)
    if (header.values.get("general.type"), header.values.get("adapter.type")) != ("adapter", "lora"):
        raise ModelError(f"{path}: no adapter of llama.cpp's kind (LoRA)")
    tensors = {}
    for name, tensor in header.tensors.items():
        stored = np.fromfile(path, tensor.dtype, math.prod(tensor.stored_shape), offset=tensor.offset)
        values = dequantize(stored.reshape(tensor.stored_shape), tensor.kind)
        tensors[name] = torch.from_numpy(np.array(values, np.float32).reshape(tensor.shape))
    alpha, ends = float(header.values[ALPHA]), (".weight.lora_a", ".weight.lora_b")
    modules = [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]
    if {f"{module}{end}" for module in modules for end in ends} != tensors.keys():
        raise ModelError(f"{path}: its tensors are not pairs of lora_a and lora_b")
    found = []
    for module in modules:
        a, b = (tensors[f"{module}{end}"] for end in ends)
        found.append(ModuleAdapter(module, a, b, alpha / len(a)))
    return found
