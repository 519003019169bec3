"""Adapters as the folder that `peft` writes and opens: ``adapter_config.json`` and ``adapter_model.safetensors``.

Names and shapes are those of `transformers`: where it holds query, key and value as one matrix (GPT-2), their adapters
become one of three times the rank, with a B that is zero outside its blocks; rank and alpha of such a layer stand in
``rank_pattern`` and ``alpha_pattern``. Adapters that were trained beside weights in few bits have a file ``base.json``
with them, which PEFT does not read: their model is the one with the rounded weights (`instil.model.frozen`).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from instil.errors import ModelError
from instil.files import json_text, read_json_object, unfinished_of, write_whole
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.reader import heads_from_parts, parts_from_heads
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from instil.model.frozen import BITS, BLOCK, FrozenLinear, QuantType, quantise_base
from instil.model.lora import HEAD, LoraLinear, adapters, projections

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"
PREFIX = "base_model.model."
BASE_HEAD = f"{PREFIX}lm_head.base_layer.weight"
_KEY = re.compile(
    r"base_model\.model\.(.+)\.(lora_[AB])(?:\.default)?\.weight|base_model\.model\.(.+)\.(lora_magnitude_vector).*"
)
_UNDERSTOOD: tuple[Any, ...] = ("none", None, False, 0, [], {})
_ELSEWHERE = (  # what changes the base model, or more than the linear layers, or when an adapter acts
    "bias", "modules_to_save", "layer_replication", "use_qalora", "lora_bias", "trainable_token_indices",
    "alora_invocation_tokens", "target_parameters", "arrow_config", "corda_config", "megatron_config",
)  # fmt: skip
_FIRST_VALUES = (None, True, False, "gaussian", "orthogonal", "eva")  # others change the base's weights, too


def save_adapter(decoder: Decoder, folder: Path, base: str) -> None:
    """Write a decoder's adapters.

    Args:
        decoder: it has adapters (`instil.model.lora.add_lora`).
        folder: is made; its files appear whole or not at all.
        base: name or path of the model that they belong to.

    Raises:
        ModelError: there are no adapters, or they cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    for owner, leaf, layer in adapters(decoder):
        for module, indexes, span in _modules(decoder, owner, leaf, layer):
            stored, scales[module] = _module_tensors(layer, indexes, span)
            stored = {kind: _in_order(decoder, module, kind, part, heads_from_parts) for kind, part in stored.items()}
            ranks[module] = len(stored["lora_A.weight"])
            tensors |= {f"{PREFIX}{module}.{kind}": tensor for kind, tensor in stored.items()}
    if not ranks:
        raise ModelError("this decoder has no adapters to write")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        **_ranks_and_alphas(ranks, scales),
        "fan_in_fan_out": FAMILIES[decoder.spec.family].transposed,
        "use_dora": any(layer.lora_magnitude for *_, layer in adapters(decoder)),
        "use_rslora": False,
        "bias": "none",
        "lora_dropout": 0.0,
        "inference_mode": True,
    }
    held = next((layer.held for layer in decoder.modules() if isinstance(layer, FrozenLinear)), None)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / WEIGHTS, lambda part: write_safetensors(part, tensors.items()))
        (folder / CONFIG).write_text(json_text(config, ascii_only=True), encoding="utf-8")
        (folder / BASE).unlink(missing_ok=True)
        if held is not None:
            (folder / BASE).write_text(json.dumps({"weights": held, "block": BLOCK}) + "\n", encoding="utf-8")
    except OSError as error:
        unfinished_of(folder / WEIGHTS).unlink(missing_ok=True)
        raise ModelError(f"{folder}: the adapters cannot be written: {error}") from error


def _module_tensors(layer: LoraLinear, indexes: list[int], span: slice) -> tuple[dict[str, Tensor], float]:
    """A module's A, B and magnitudes, of those adapters of a layer that are in it, and its one scale.

    ``span`` are its rows of the layer; each adapter's B stands in its own rows and columns.
    """
    a = torch.cat([layer.lora_a.detach()[layer.columns[n]] for n in indexes])
    b = a.new_zeros(span.stop - span.start, len(a))
    scale, at = next((layer.scales[n] for n in indexes if layer.scales[n]), 0.0), 0
    for n in indexes:
        rows, block = layer.rows[n], layer.block(n).detach()
        if layer.scales[n] != scale:  # a module has one scale
            block = block * (layer.scales[n] / scale)
        b[rows.start - span.start : rows.stop - span.start, at : at + block.shape[1]] = block
        at += block.shape[1]
    tensors = {"lora_A.weight": a.contiguous(), "lora_B.weight": b.contiguous()}
    if layer.lora_magnitude:
        lengths = torch.linalg.vector_norm(layer.weight.detach()[span], dim=1)
        for n in indexes:
            rows = layer.rows[n]
            lengths[rows.start - span.start : rows.stop - span.start] = layer.lora_magnitude[n].detach()
        tensors["lora_magnitude_vector"] = lengths
    return tensors, scale


def _ranks_and_alphas(ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, Any]:
    """Rank and alpha that most modules have, and the patterns for the others."""
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    alpha = next(scales[module] * rank for module in ranks if ranks[module] == rank)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": sorted({re.sub(r"^.*\.\d+\.", "", module) for module in ranks}),
        "rank_pattern": {_named(module): width for module, width in ranks.items() if width != rank},
        "alpha_pattern": {
            _named(module): scale * ranks[module]
            for module, scale in scales.items()
            if not math.isclose(scale * ranks[module], alpha)
        },
    }


def _named(module: str) -> str:
    """A module's whole name as PEFT's patterns have it."""
    return f"^{re.escape(module)}"


def load_adapter(decoder: Decoder, folder: Path) -> None:
    """Put the adapters of a PEFT folder on a decoder, which is frozen.

    Its weights are rounded to few bits where the adapters were trained so.

    Raises:
        ModelError: it is no LoRA adapter that is read here, damaged, or of another model; or there is one already.
    """
    if next(adapters(decoder), None) is not None:
        raise ModelError("this decoder has adapters already; merge them first")
    config = _config(folder)
    found = _tensors(folder, decoder)
    layers = _hub_layers(decoder)
    known = {module for *_, places in layers for module, _ in places}
    if strangers := sorted(found.keys() - known):
        raise ModelError(
            f"{folder}: adapters for {', '.join(strangers[:5])}, which a {decoder.spec.family} model as built here "
            "does not have; is this another model's adapter?"
        )
    dora = bool(config.get("use_dora"))
    for *_, layer, places in layers:  # all of them before anything is changed
        for module, span in places:
            if module in found:
                _check(folder, module, found[module], span.stop - span.start, layer.in_features, dora=dora)
                _scale(folder, config, module, len(found[module]["lora_A"]))
    if (held := _held(folder)) is not None:
        quantise_base(decoder, held)
        layers = _hub_layers(decoder)
    decoder.requires_grad_(False)
    for owner, leaf, layer, places in layers:
        mine = [(module, span) for module, span in places if module in found]
        if not mine:
            continue
        parts = [found[module] for module, _ in mine]
        ranks = [len(part["lora_A"]) for part in parts]
        scales = [_scale(folder, config, module, rank) for (module, _), rank in zip(mine, ranks, strict=True)]
        adapted = LoraLinear(layer, [span for _, span in mine], ranks, scales, dora=dora)
        with torch.no_grad():
            adapted.lora_a.copy_(torch.cat([part["lora_A"] for part in parts]))
            for n, part in enumerate(parts):
                adapted.block(n).copy_(part["lora_B"])
                if adapted.lora_magnitude:
                    adapted.lora_magnitude[n].copy_(part["lora_magnitude_vector"])
        setattr(owner, leaf, adapted)


def _held(folder: Path) -> QuantType | None:
    """The form that the frozen weights had when the adapters were trained; None where they were exact."""
    path = folder / BASE
    if not path.exists():
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        found: QuantType = next(held for held in BITS if stored == {"weights": held, "block": BLOCK})
    except (OSError, ValueError, StopIteration, RecursionError) as error:
        raise ModelError(f"{path}: damaged; it says how the weights beside the adapters were rounded") from error
    return found


def _tensors(folder: Path, decoder: Decoder) -> dict[str, dict[str, Tensor]]:
    """For each module its A, B and magnitudes."""
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder}: no {WEIGHTS} in it, the form of adapters that is read here; save it anew with peft"
        )
    file = SafetensorsFile(folder / WEIGHTS)
    found: dict[str, dict[str, Tensor]] = {}
    for name in sorted(file.names()):
        if name == BASE_HEAD:
            _check_head(folder, file.get(name), decoder.head.weight.detach())
            continue
        match = _KEY.fullmatch(name)
        if match is None:
            raise ModelError(f"{folder / WEIGHTS}: {name} is no part of a LoRA adapter as read here")
        module, kind = (match[1], match[2]) if match[1] else (match[3], match[4])
        if kind in found.setdefault(module, {}):
            raise ModelError(f"{folder / WEIGHTS}: {kind} of {module} is there twice")
        tensor = file.get(name)
        if not tensor.is_floating_point():
            raise ModelError(f"{folder / WEIGHTS}: {name} is stored as {tensor.dtype}; wanted floating point")
        found[module][kind] = _in_order(decoder, module, kind, tensor.float(), parts_from_heads)
    return found


def _in_order(
    decoder: Decoder, module: str, kind: str, tensor: Tensor, order: Callable[[Tensor, int], Tensor]
) -> Tensor:
    """What an adapter holds of a module's rows, from our order to that of transformers or back, where they differ."""
    stored = FAMILIES[decoder.spec.family].hub["blocks.{i}.attention.qkv.weight"]
    here = stored.by_head and module.endswith(stored.names[0].partition("{i}")[2].removesuffix(".weight"))
    width = decoder.spec.head_width
    if not here or kind.startswith("lora_A") or len(tensor) % (3 * width):  # of a strange length it is refused later
        return tensor
    return order(tensor, width)


def _check_head(folder: Path, stored: Tensor, head: Tensor) -> None:
    """PEFT saves the base's head beside adapters of it; beside another head they would say something else."""
    said = f"is stored as {stored.dtype}, with shape {list(stored.shape)}"
    if stored.is_floating_point() and stored.shape == head.shape:
        limits = torch.finfo(stored.dtype)
        apart = 0
        for theirs, ours in zip(
            torch.split(stored, 4096), torch.split(head, 4096), strict=True
        ):  # in parts: it may be the largest
            rounded = ours.to("cpu", stored.dtype).double()
            near = torch.isclose(theirs.double(), rounded, rtol=2 * limits.eps, atol=limits.smallest_normal)
            apart += int((~near).any(1).sum())
        if not apart:
            return
        said = f"differs from it in {apart:,} of {len(head):,} rows"
    raise ModelError(
        f"{folder / WEIGHTS}: {BASE_HEAD}, the head that PEFT saved beside its adapter, {said}; wanted this model's "
        f"own head, {list(head.shape)}. Take the model that the adapters were trained on; save them anew with "
        "save_embedding_layers=False if the head was not changed; or merge them with peft"
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
        for room, owner in block.named_children():
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


def _check(folder: Path, module: str, part: Mapping[str, Tensor], rows: int, width: int, *, dora: bool) -> None:
    wanted = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if dora else set())
    if wanted != part.keys():
        found = ", ".join(sorted(part))
        needed = ", ".join(sorted(wanted))
        raise ModelError(f"{folder / WEIGHTS}: the adapter of {module} has {found}; wanted {needed}")
    a, b = part["lora_A"], part["lora_B"]
    lengths = part.get("lora_magnitude_vector")
    fits = a.dim() == 2 and b.dim() == 2 and a.shape[1] == width and len(a) > 0 and b.shape == (rows, a.shape[0])
    if not fits or (lengths is not None and lengths.shape != (rows,)):
        raise ModelError(
            f"{folder / WEIGHTS}: the adapter of {module} has shapes {list(a.shape)} and {list(b.shape)}; wanted "
            f"[r, {width}] and [{rows}, r]"
        )
    if not all(torch.isfinite(tensor).all() for tensor in part.values()):
        raise ModelError(f"{folder / WEIGHTS}: the adapter of {module} holds values that are not finite numbers")


def _scale(folder: Path, config: Mapping[str, Any], module: str, rank: int) -> float:
    try:
        alpha = float(_of(config.get("alpha_pattern"), module, config.get("lora_alpha", 8)))
    except (TypeError, ValueError, AttributeError, OverflowError, RecursionError, re.error) as error:
        raise ModelError(f"{folder / CONFIG}: lora_alpha or alpha_pattern cannot be read: {error}") from error
    if not math.isfinite(alpha):
        raise ModelError(f"{folder / CONFIG}: lora_alpha of {module} is {alpha}")
    return alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _of(pattern: Any, module: str, default: Any) -> Any:
    """What a pattern says of a module, as PEFT looks it up: a regular expression for the end of its name."""
    for key, value in (pattern or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return default


def _config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    config = read_json_object(path, error=ModelError, advice="; wanted the folder of a LoRA adapter")
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{path}: an adapter of type {config.get('peft_type')!r}; read here: LORA")
    for key in _ELSEWHERE:
        if config.get(key) not in _UNDERSTOOD:
            raise ModelError(f"{path}: {key}={config[key]!r} is not implemented here")
    if config.get("init_lora_weights") not in _FIRST_VALUES:
        raise ModelError(
            f"{path}: init_lora_weights={config['init_lora_weights']!r} changes the base model, too, which is not "
            "implemented here; merge the adapter with peft"
        )
    return config
