"""Adapters as the folder that mlx-lm opens: ``adapters.safetensors`` and ``adapter_config.json``.

mlx-lm (0.32, ``mlx_lm/tuner/lora.py``) computes ``y + scale * (x @ lora_a) @ lora_b``: its matrices are PEFT's, turned
over. Rank and scale are one of each for the whole model: thinner pairs are filled with zeros, and where a module has
another scale its B carries the rest. ``keys`` are the names of modules within a layer, or, where not all layers have
the same, whole names. Of DoRA the lengths of rows are ``m``.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.files import json_text, read_json_object, write_whole
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.adapter_modules import ModuleAdapter, hub_layers, module_adapters
from instil.model.files.peft_whole import HEAD_MODULE
from instil.model.files.safetensors import SafetensorsFile, write_safetensors

WEIGHTS, CONFIG = "adapters.safetensors", "adapter_config.json"
# Where mlx-lm's names of a family's modules begin otherwise than those of transformers.
BEGINNINGS = {"gpt2": ("transformer.h.", "model.h."), "gpt_neox": ("gpt_neox.layers.", "model.h.")}
_IN_LAYER = re.compile(r"^.*?\.(?:h|layers)\.\d+\.")


def write_mlx_lora(decoder: Decoder, folder: Path, base: str) -> None:
    """Write a decoder's adapters.

    Args:
        decoder: it has adapters.
        folder: exists; its files appear whole.
        base: name or path of the model that they belong to.

    Raises:
        ModelError: there are none, or mlx-lm has no place for one of them.
        OSError: they cannot be written.
    """
    family = FAMILIES[decoder.spec.family]
    found = list(module_adapters(decoder, family.hub, family.prefix))
    if not found:
        raise ModelError("this decoder has no adapters to write")
    if decoder.spec.tied and any(one.module == HEAD_MODULE for one in found):
        raise ModelError(
            "the head has an adapter and is the base's embedding, of which mlx-lm puts one on both or neither. "
            "Take the merged model: --to hf"
        )
    dora = found[0].magnitude is not None
    rank = max(one.rank for one in found)
    scales = [one.scale for one in found if one.scale] or [1.0]
    scale = max(set(scales), key=scales.count)
    tensors: dict[str, Tensor] = {}
    for one in found:
        name = _theirs(decoder, one.module)
        b_OR = one.b_OR if math.isclose(one.scale, scale, rel_tol=1e-12) else one.b_OR * (one.scale / scale)
        tensors[f"{name}.lora_a"] = _filled(one.a_RI, rank, 0).t()
        tensors[f"{name}.lora_b"] = _filled(b_OR, rank, 1).t()
        if one.magnitude is not None:
            tensors[f"{name}.m"] = one.magnitude
    config = {
        "model": base,
        "fine_tune_type": "dora" if dora else "lora",
        "num_layers": decoder.spec.layers,
        "lora_parameters": {"rank": rank, "scale": scale, "dropout": 0.0, "keys": _keys(decoder, found)},
    }
    write_whole(folder / WEIGHTS, lambda part: write_safetensors(part, tensors.items()))
    write_whole(folder / CONFIG, json_text(config, ascii_only=True))


def _filled(matrix: Tensor, rank: int, dim: int) -> Tensor:
    """With zeros up to the rank."""
    missing = rank - matrix.shape[dim]
    if not missing:
        return matrix
    shape = list(matrix.shape)
    shape[dim] = missing
    return torch.cat([matrix, matrix.new_zeros(shape)], dim)


def _keys(decoder: Decoder, found: list[ModuleAdapter]) -> list[str]:
    """What ``keys`` says: mlx-lm takes every module of that name, and misses none of those by their whole names."""
    have = {_theirs(decoder, one.module) for one in found}
    ends = {_IN_LAYER.sub("", name) for name in have}
    every = {_theirs(decoder, module) for *_, places in hub_layers(decoder) for module, _ in places}
    return sorted(ends if {name for name in every if _IN_LAYER.sub("", name) in ends} == have else have)


def _theirs(decoder: Decoder, module: str) -> str:
    ours, theirs = BEGINNINGS.get(decoder.spec.family, ("", ""))
    return theirs + module.removeprefix(ours) if ours and module.startswith(ours) else module


def read_mlx_lora(decoder: Decoder, folder: Path) -> list[ModuleAdapter]:
    """The adapters of such a folder under the names of `transformers`, as mlx-lm takes them.

    Raises:
        ModelError: it is none.
    """
    config: dict[str, Any] = read_json_object(folder / CONFIG, error=ModelError)
    ours, theirs = BEGINNINGS.get(decoder.spec.family, ("", ""))
    file = SafetensorsFile(folder / WEIGHTS)
    found = []
    for name in sorted(file.names()):
        if not name.endswith(".lora_a"):
            continue
        module = name.removesuffix(".lora_a")
        length = file.get(f"{module}.m") if f"{module}.m" in file.names() else None
        own = ours + module.removeprefix(theirs) if theirs and module.startswith(theirs) else module
        a, b = file.get(name).t(), file.get(f"{module}.lora_b").t()
        found.append(ModuleAdapter(own, a, b, float(config["lora_parameters"]["scale"]), length))
    return found
