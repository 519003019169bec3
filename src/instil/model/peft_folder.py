"""Adapters as the folder that `peft` writes and opens: ``adapter_config.json`` and ``adapter_model.safetensors``.

Names and shapes are those of `transformers`: where it holds query, key and value as one matrix (GPT-2), their adapters
become one of three times the rank, with a B that is zero outside its blocks; rank and alpha of such a layer stand in
``rank_pattern`` and ``alpha_pattern``.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.lora import HEAD, LoraLinear, adapters, projections
from instil.model.safetensors_file import SafetensorsFile

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_KEY = re.compile(
    r"base_model\.model\.(.+)\.(lora_[AB])(?:\.default)?\.weight|base_model\.model\.(.+)\.(lora_magnitude_vector).*"
)
_UNDERSTOOD = ("none", None, False, 0)


def save_adapter(decoder: Decoder, folder: Path, base: str, alpha: float, rank: int) -> None:
    """Write a decoder's adapters.

    Args:
        decoder: it has adapters (`instil.model.lora.add_lora`).
        folder: is made.
        base: name or path of the model that they belong to.
        alpha: of one adapter, in PEFT's sense: their scale is alpha / rank.
        rank: of one adapter.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    modules: list[str] = []
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    dora = False
    for owner, leaf, layer in adapters(decoder):
        dora = dora or bool(layer.lora_magnitude)
        for module, indexes, span in _modules(decoder, owner, leaf, layer):
            columns = [layer.columns[n] for n in indexes]
            a = torch.cat([layer.lora_a.detach()[part] for part in columns])
            b = a.new_zeros(span.stop - span.start, len(a))
            at = 0
            for n in indexes:
                rows, width = layer.rows[n], layer.block(n).shape[1]
                b[rows.start - span.start : rows.stop - span.start, at : at + width] = layer.block(n).detach()
                at += width
            tensors[f"{PREFIX}{module}.lora_A.weight"] = a.contiguous()
            tensors[f"{PREFIX}{module}.lora_B.weight"] = b.contiguous()
            if layer.lora_magnitude:
                lengths = torch.linalg.vector_norm(layer.weight.detach()[span], dim=1)
                for n in indexes:
                    rows = layer.rows[n]
                    lengths[rows.start - span.start : rows.stop - span.start] = layer.lora_magnitude[n].detach()
                tensors[f"{PREFIX}{module}.lora_magnitude_vector"] = lengths
            modules.append(module)
            if len(a) != rank:
                ranks[module] = len(a)
                alphas[module] = alpha * len(a) / rank
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({re.sub(r"^.*\.\d+\.", "", module) for module in modules}),
        "rank_pattern": {f"^{re.escape(module)}": width for module, width in ranks.items()},
        "alpha_pattern": {f"^{re.escape(module)}": value for module, value in alphas.items()},
        "fan_in_fan_out": decoder.spec.family == "gpt2",
        "use_dora": dora,
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.cpu() for name, tensor in tensors.items()}, str(folder / WEIGHTS), metadata={"format": "pt"}
    )
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def load_adapter(decoder: Decoder, folder: Path) -> None:
    """Put the adapters of a PEFT folder on a decoder, which is frozen.

    Raises:
        ModelError: it is no LoRA adapter that is read here, damaged, or of another model.
    """
    config = _config(folder)
    file = SafetensorsFile(folder / WEIGHTS)
    found: dict[str, dict[str, Tensor]] = {}
    for name in file.names():
        match = _KEY.fullmatch(name)
        if match is None:
            raise ModelError(f"{folder / WEIGHTS}: {name} is no part of a LoRA adapter as read here")
        module, kind = (match[1], match[2]) if match[1] else (match[3], match[4])
        found.setdefault(module, {})[kind] = file.get(name).float()
    decoder.requires_grad_(False)
    for owner, leaf, layer, places in _hub_layers(decoder):
        mine = [(module, span) for module, span in places if module in found]
        if not mine:
            continue
        parts = [found.pop(module) for module, _ in mine]
        for (module, span), part in zip(mine, parts, strict=True):
            _check(folder, module, part, span.stop - span.start, layer.in_features)
        ranks = [len(part["lora_A"]) for part in parts]
        scales = [_scale(config, module, rank) for (module, _), rank in zip(mine, ranks, strict=True)]
        adapted = LoraLinear(layer, [span for _, span in mine], ranks, scales, dora=bool(config.get("use_dora")))
        with torch.no_grad():
            adapted.lora_a.copy_(torch.cat([part["lora_A"] for part in parts]))
            for n, part in enumerate(parts):
                adapted.block(n).copy_(part["lora_B"])
                if adapted.lora_magnitude:
                    adapted.lora_magnitude[n].copy_(part["lora_magnitude_vector"])
        setattr(owner, leaf, adapted)
    if found:
        raise ModelError(
            f"{folder}: adapters for {', '.join(sorted(found)[:5])}, which a {decoder.spec.family} model as built here "
            "does not have; is this another model's adapter?"
        )


def _modules(decoder: Decoder, owner: nn.Module, leaf: str, layer: LoraLinear) -> list[tuple[str, list[int], slice]]:
    """For each module of transformers: its name, the adapters in it, and its rows of our layer."""
    places = next(places for one, name, _, places in _hub_layers(decoder) if one is owner and name == leaf)
    named = []
    for module, span in places:
        inside = [n for n, rows in enumerate(layer.rows) if span.start <= rows.start and rows.stop <= span.stop]
        if inside:
            named.append((module, inside, span))
    return named


def _hub_layers(decoder: Decoder) -> list[tuple[nn.Module, str, Any, list[tuple[str, slice]]]]:
    """Every linear layer with the modules of transformers that it is made of, and their rows."""
    family = FAMILIES[decoder.spec.family]
    found: list[tuple[nn.Module, str, Any, list[tuple[str, slice]]]] = []
    for number, block in enumerate(decoder.blocks):
        for room in ("attention", "mlp"):
            owner = getattr(block, room)
            for leaf, layer in list(owner.named_children()):
                stored = family.hub.get(f"blocks.{{i}}.{room}.{leaf}.weight")
                if stored is None or not hasattr(layer, "out_features"):
                    continue
                names = [
                    family.prefix + name.replace("{i}", str(number)).removesuffix(".weight") for name in stored.names
                ]
                spans = [part.rows for part in projections(decoder, owner, leaf)]
                if len(names) == 1:
                    spans = [slice(0, layer.out_features)]
                found.append((owner, leaf, layer, list(zip(names, spans, strict=True))))
    found.append((decoder, HEAD, decoder.head, [("lm_head", slice(0, decoder.head.out_features))]))
    return found


def _check(folder: Path, module: str, part: Mapping[str, Tensor], rows: int, width: int) -> None:
    if {"lora_A", "lora_B"} - part.keys():
        raise ModelError(f"{folder / WEIGHTS}: the adapter of {module} is incomplete")
    a, b = part["lora_A"], part["lora_B"]
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != width or b.shape != (rows, a.shape[0]):
        raise ModelError(
            f"{folder / WEIGHTS}: the adapter of {module} has shapes {list(a.shape)} and {list(b.shape)}; wanted "
            f"[r, {width}] and [{rows}, r]"
        )
    if not all(torch.isfinite(tensor).all() for tensor in part.values()):
        raise ModelError(f"{folder / WEIGHTS}: the adapter of {module} holds values that are not finite numbers")


def _scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    alpha = float(_of(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _of(pattern: Any, module: str, default: Any) -> Any:
    """What a pattern says of a module, as PEFT looks it up: a regular expression for the end of its name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}; wanted the folder of a LoRA adapter") from error
    except ValueError as error:
        raise ModelError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise ModelError(f"{path}: an adapter of type {kind!r}; read here: LORA")
    for key in ("bias", "modules_to_save", "layer_replication", "use_qalora", "lora_bias", "trainable_token_indices"):
        if config.get(key) not in _UNDERSTOOD:
            raise ModelError(f"{path}: {key}={config[key]!r} is not implemented here")
    return config
