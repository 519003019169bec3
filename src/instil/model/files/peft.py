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
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.files import json_text, unfinished_of, write_whole
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.adapter_modules import hub_layers, module_adapters
from instil.model.files.peft_config import CONFIG, AdapterConfig
from instil.model.files.peft_whole import (
    HEAD_MODULE,
    Besides,
    apply_rows,
    apply_whole,
    check_base,
    check_besides,
    embedding_module,
    is_whole,
)
from instil.model.files.reader import parts_from_heads
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from instil.model.frozen import BITS, BLOCK, FrozenLinear, QuantType, quantise_base
from instil.model.lora import adapters
from instil.model.lora_layer import LoraLinear
from instil.model.rounded.layer import refuse_rounded
from instil.model.token_rows import TokenRows

WEIGHTS = "adapter_model.safetensors"
BASE = "base.json"
README = "README.md"
TIED_HEAD = (
    "the head has an adapter and is the base's embedding (tie_word_embeddings): PEFT opens this with equal scores, but "
    "its merge_and_unload changes the embedding along with the head, and other scores come of it. Take the merged "
    "model that instil makes (model/ of the run, or instil export BASE --adapter FOLDER --to hf), or give the base's "
    "head a copy of its own before PEFT merges"
)
PREFIX = "base_model.model."
BASE_HEAD = f"{PREFIX}lm_head.base_layer.weight"
_LORA = re.compile(r"(.+)\.(lora_[AB])(?:\.default)?\.weight|(.+)\.(lora_magnitude_vector).*")
_EMBEDDING = re.compile(r"(.+)\.(lora_embedding_[AB])(?:\.default)?")
_ROWS = re.compile(r"(.+)\.token_adapter\.trainable_tokens_delta(?:\.default)?")
_BASE = re.compile(r"(.+?)\.(?:base_layer|original_module|token_adapter\.base_layer)\.weight")
_WHOLE = re.compile(r"(.+?)(?:\.modules_to_save(?:\.default)?)?\.(weight|bias)")
_SHOWN = 5  # modules named in a message


def save_adapter(decoder: Decoder, folder: Path, base: str, *, tied_base: bool | None = None) -> None:
    """Write a decoder's adapters; where PEFT would merge them wrongly, a ``README.md`` says so.

    Args:
        decoder: it has adapters (`instil.model.lora.add_lora`).
        folder: is made; its files appear whole or not at all.
        base: name or path of the model that they belong to.
        tied_base: whether its head is its embedding; by default whether the decoder's is, which may have been untied.

    Raises:
        ModelError: there are no adapters, or they cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    scales: dict[str, float] = {}
    family = FAMILIES[decoder.spec.family]
    for one in module_adapters(decoder, family.hub, family.prefix):
        ranks[one.module], scales[one.module] = one.rank, one.scale
        stored = {"lora_A.weight": one.a_RI, "lora_B.weight": one.b_OR}
        if one.magnitude is not None:
            stored["lora_magnitude_vector"] = one.magnitude
        tensors |= {f"{PREFIX}{one.module}.{kind}": tensor for kind, tensor in stored.items()}
    if not ranks:
        raise ModelError("this decoder has no adapters to write")
    rows = decoder.embed if isinstance(decoder.embed, TokenRows) else None
    if rows is not None:
        tensors[f"{PREFIX}{embedding_module(decoder)}.token_adapter.trainable_tokens_delta"] = rows.rows.detach()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        **_ranks_and_alphas(ranks, scales),
        "target_modules": _targets(decoder, ranks),
        "trainable_token_indices": None if rows is None else list(rows.token_ids),
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
        for name in (BASE, README):
            (folder / name).unlink(missing_ok=True)
        if HEAD_MODULE in ranks and (decoder.spec.tied if tied_base is None else tied_base):
            (folder / README).write_text(f"# Adapters of {base}\n\nNote: {TIED_HEAD}.\n", encoding="utf-8")
        if held is not None:
            (folder / BASE).write_text(json.dumps({"weights": held, "block": BLOCK}) + "\n", encoding="utf-8")
    except OSError as error:
        unfinished_of(folder / WEIGHTS).unlink(missing_ok=True)
        raise ModelError(f"{folder}: the adapters cannot be written: {error}") from error


def _ranks_and_alphas(ranks: Mapping[str, int], scales: Mapping[str, float]) -> dict[str, Any]:
    """Rank and alpha that most modules have, and the patterns for the others."""
    rank = max(set(ranks.values()), key=list(ranks.values()).count)
    alpha = next(scales[module] * rank for module in ranks if ranks[module] == rank)
    return {
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": {_named(module): width for module, width in ranks.items() if width != rank},
        "alpha_pattern": {
            _named(module): scale * ranks[module]
            for module, scale in scales.items()
            if not math.isclose(scale * ranks[module], alpha)
        },
    }


def _targets(decoder: Decoder, adapted: Collection[str]) -> list[str]:
    """The modules with adapters: by the ends of their names, or, where not every layer has them, by whole names."""
    ends = {re.sub(r"^.*\.\d+\.", "", module) for module in adapted}
    every = {module for *_, places in hub_layers(decoder) for module, _ in places}
    meant = {module for module in every if any(module == end or module.endswith(f".{end}") for end in ends)}
    return sorted(ends if meant == set(adapted) else adapted)


def _named(module: str) -> str:
    """A module's whole name as PEFT's patterns have it."""
    return f"^{re.escape(module)}"


def load_adapter(decoder: Decoder, folder: Path) -> None:
    """Put the adapters of a PEFT folder on a decoder, which is frozen.

    Its weights are rounded to few bits where the adapters were trained so. What the adapter saves whole, such as an
    embedding in ``modules_to_save``, takes the place of the decoder's own and is not written by `save_adapter` again;
    rows of tokens are put beside the embedding.

    Raises:
        ModelError: it is no LoRA adapter that is read here, damaged, half of one, or of another model; or there is one
            already.
        SettingsError: the decoder's weights are in eight bits for answering alone.
    """
    refuse_rounded(decoder)
    if next(adapters(decoder), None) is not None or isinstance(decoder.embed, TokenRows):
        raise ModelError("this decoder has adapters already; merge them first")
    config = AdapterConfig(folder)
    found, besides = _tensors(folder, decoder, config)
    layers = hub_layers(decoder)
    known = {module for *_, places in layers for module, _ in places}
    if strangers := sorted(found.keys() - known):
        raise ModelError(
            f"{folder}: adapters for {_some(strangers)}, which a {decoder.spec.family} model as built here does not "
            "have; is this another model's adapter?"
        )
    for *_, layer, places in layers:  # all of them before anything is changed
        for module, span in places:
            if module in found:
                _check(folder, module, found[module], span.stop - span.start, layer.in_features, dora=config.dora)
    check_besides(folder / WEIGHTS, besides, config, decoder, found)
    _check_complete(folder, config, found, besides, known, decoder)
    decoder.requires_grad_(False)
    apply_whole(besides, config, decoder)
    if (held := rounded_base(folder)) is not None:
        quantise_base(decoder, held)
    apply_rows(besides, config, decoder)
    for owner, leaf, _, layer, places in hub_layers(decoder):
        mine = [(module, span) for module, span in places if module in found]
        if not mine:
            continue
        parts = [found[module] for module, _ in mine]
        ranks = [len(part["lora_A"]) for part in parts]
        scales = [config.scale(module, rank) for (module, _), rank in zip(mine, ranks, strict=True)]
        adapted = LoraLinear(layer, [span for _, span in mine], ranks, scales, dora=config.dora)
        with torch.no_grad():
            adapted.lora_a.copy_(torch.cat([part["lora_A"] for part in parts]))
            for n, part in enumerate(parts):
                adapted.block(n).copy_(part["lora_B"])
                if adapted.lora_magnitude:
                    adapted.lora_magnitude[n].copy_(part["lora_magnitude_vector"])
        setattr(owner, leaf, adapted)


def held_besides(decoder: Decoder, folder: Path) -> list[str]:
    """What the adapters of a PEFT folder change beside linear layers, in words.

    Raises:
        ModelError: the folder cannot be read.
    """
    config, outer = AdapterConfig(folder), (embedding_module(decoder), HEAD_MODULE)
    found: dict[str, None] = {}
    for full in sorted(SafetensorsFile(folder / WEIGHTS).names()):
        name = full.removeprefix(PREFIX)
        if match := _EMBEDDING.fullmatch(name):
            found[match[1]] = None
        elif match := _ROWS.fullmatch(name):
            found[f"rows of {match[1]}"] = None
        elif _LORA.fullmatch(name) or _BASE.fullmatch(name) or not (match := _WHOLE.fullmatch(name)):
            continue
        elif match[1] not in outer or is_whole(config, match[1], decoder):
            found[f"all of {match[1]}"] = None
    return list(found)


def _check_complete(
    folder: Path,
    config: AdapterConfig,
    found: Mapping[str, Mapping[str, Tensor]],
    besides: Besides,
    known: Collection[str],
    decoder: Decoder,
) -> None:
    """Whether every module that is meant has an adapter, no other has one, and all of them have been trained."""
    outer = (embedding_module(decoder), HEAD_MODULE)
    have = {*found, *besides.embedding}
    is_target = config.targets(have, outer)
    wanted = {module for module in (*known, *outer) if is_target(module)}
    if decoder.spec.tied and config.keeps_tied and wanted & set(outer):  # PEFT adds what makes the two the same
        wanted |= set(outer)
    if missing := sorted(wanted - have):
        raise ModelError(
            f"{folder / WEIGHTS}: half an adapter: target_modules in {CONFIG} asks for {len(wanted):,} modules, and "
            f"the file lacks those of {len(missing):,}: {_some(missing)}. Fetch it again; "
            "if they are not wanted, take them out of target_modules"
        )
    if strange := sorted(have - wanted):
        raise ModelError(
            f"{folder / WEIGHTS}: adapters for {_some(strange)}, which target_modules in {CONFIG} does not ask for; "
            "file and configuration do not belong together"
        )
    heard = {module: part for module, part in found.items() if config.scale(module, len(part["lora_A"]))}
    idle = sorted(module for module, part in heard.items() if not (part["lora_A"].any() and part["lora_B"].any()))
    if len(idle) == len(heard) and idle and not besides:
        raise ModelError(
            f"{folder / WEIGHTS}: every lora_B is zero: this adapter has not been trained, and the model would answer "
            "as without it; leave it out, or take the trained one"
        )
    if idle and len(idle) < len(heard):
        raise ModelError(
            f"{folder / WEIGHTS}: half an adapter: lora_B of {_some(idle)} is zero, so they change nothing, and the "
            f"others are trained ({len(idle):,} of {len(heard):,}). Fetch it again; if they are to stay as they are, "
            "take them out of file and target_modules"
        )


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def rounded_base(folder: Path) -> QuantType | None:
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


def _tensors(folder: Path, decoder: Decoder, config: AdapterConfig) -> tuple[dict[str, dict[str, Tensor]], Besides]:
    """For each module its A, B and magnitudes; and what there is besides."""
    if not (folder / WEIGHTS).is_file():
        raise ModelError(
            f"{folder}: no {WEIGHTS} in it, the form of adapters that is read here; save it anew with peft"
        )
    path = folder / WEIGHTS
    file = SafetensorsFile(path)
    outer = (embedding_module(decoder), HEAD_MODULE)
    found: dict[str, dict[str, Tensor]] = {}
    besides = Besides()
    for full in sorted(file.names()):
        name, tensor = full.removeprefix(PREFIX), file.get(full)
        if name == full:
            raise ModelError(f"{path}: {full} is no part of a LoRA adapter as read here")
        if not tensor.is_floating_point():
            raise ModelError(f"{path}: {full} is stored as {tensor.dtype}; wanted floating point")
        if match := _LORA.fullmatch(name):
            module, kind = (match[1], match[2]) if match[1] else (match[3], match[4])
            ours = _in_our_order(decoder, module, kind, tensor.float())
            _put(path, found.setdefault(module, {}), kind, ours, of=module)
        elif match := _EMBEDDING.fullmatch(name):
            _put(path, besides.embedding.setdefault(match[1], {}), match[2], tensor.float(), of=match[1])
        elif match := _ROWS.fullmatch(name):
            _put(path, besides.rows, match[1], tensor, of="trained rows")
        elif (match := _BASE.fullmatch(name)) and match[1] in outer:
            check_base(path, full, tensor, decoder)
        elif match := _WHOLE.fullmatch(name):
            if match[1] in outer and not is_whole(config, match[1], decoder):
                check_base(path, full, tensor, decoder)
            else:
                _put(path, besides.whole, f"{match[1]}.{match[2]}", tensor, of="modules_to_save", again=True)
        else:
            raise ModelError(f"{path}: {full} is no part of a LoRA adapter as read here")
    magnitudes = {module: found.pop(module) for module in outer[:1] if module in found}  # of the embedding
    for module, parts in magnitudes.items():
        besides.embedding.setdefault(module, {}).update(parts)
    return found, besides


def _put(path: Path, into: dict[str, Tensor], name: str, tensor: Tensor, *, of: str, again: bool = False) -> None:
    """Keep a tensor; it may come twice only if PEFT has two names for it, and then it is the same."""
    if name in into and not (again and torch.equal(into[name], tensor)):
        raise ModelError(f"{path}: {name} of {of} is there twice")
    into[name] = tensor


def _in_our_order(decoder: Decoder, module: str, kind: str, tensor: Tensor) -> Tensor:
    """What an adapter holds of a module's rows, in our order where transformers has another."""
    stored = FAMILIES[decoder.spec.family].hub["blocks.{i}.attention.qkv.weight"]
    here = stored.by_head and module.endswith(stored.names[0].partition("{i}")[2].removesuffix(".weight"))
    width = decoder.spec.head_width
    if not here or kind.startswith("lora_A") or len(tensor) % (3 * width):  # of a strange length it is refused later
        return tensor
    return parts_from_heads(tensor, width)


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
