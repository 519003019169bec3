"""What an adapter of `peft` brings besides thin matrices: tensors that are saved whole, rows of tokens, and LoRA of the
embedding. All of it goes into the base's weights at once; only rows that can be saved again stay apart
(`instil.model.token_rows`).

The base's own embedding and head, which PEFT may save beside its adapters, must be those of the decoder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from instil.errors import ModelError, counted
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.peft_config import CONFIG, AdapterConfig
from instil.model.files.reader import hub_tensors
from instil.model.token_rows import train_rows

HEAD_MODULE = "lm_head"


@dataclass(slots=True)
class Besides:
    """What the file holds, by module (``whole``: by tensor)."""

    whole: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Tensor] = field(default_factory=dict)
    embedding: dict[str, dict[str, Tensor]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.whole or self.rows or self.embedding)


def embedding_module(decoder: Decoder) -> str:
    """What transformers calls the embedding."""
    family = FAMILIES[decoder.spec.family]
    return family.prefix + family.hub["embed.weight"].names[0].removesuffix(".weight")


def check_base(path: Path, name: str, stored: Tensor, decoder: Decoder) -> None:
    """Compare an embedding or a head that PEFT saved beside its adapters with the decoder's own.

    Raises:
        ModelError: it is another one; beside that the adapters would say something else.
    """
    head = name.removeprefix("base_model.model.").startswith(HEAD_MODULE)
    own, what = (decoder.head.weight, "head") if head else (decoder.embed.weight, "embedding")
    own = own.detach()
    said = f"is stored as {stored.dtype}, with shape {list(stored.shape)}"
    if stored.is_floating_point() and stored.shape == own.shape:
        limits = torch.finfo(stored.dtype)
        apart = 0
        for theirs, ours in zip(torch.split(stored, 4096), torch.split(own, 4096), strict=True):  # it may be large
            rounded = ours.to("cpu", stored.dtype).double()
            near = torch.isclose(theirs.double(), rounded, rtol=2 * limits.eps, atol=limits.smallest_normal)
            apart += int((~near).any(1).sum())
        if not apart:
            return
        said = f"differs from it in {apart:,} of {counted(len(own), 'row')}"
    grown = stored.dim() == 2 and stored.shape[1:] == own.shape[1:] and len(stored) > len(own)
    help_ = (
        f"The vocabulary was enlarged from {len(own):,} to {len(stored):,}: enlarge the base with "
        "resize_token_embeddings, merge the adapters with peft, and take the merged model and its tokenizer"
        if grown
        else "Take the model that the adapters were trained on; save them anew with save_embedding_layers=False if the "
        f"{what} was not changed; or merge them with peft"
    )
    raise ModelError(
        f"{path}: {name}, the {what} that PEFT saved beside its adapter, {said}; wanted this model's own {what}, "
        f"{list(own.shape)}. {help_}"
    )


def is_whole(config: AdapterConfig, module: str, decoder: Decoder) -> bool:
    """Whether a module is saved whole; head and embedding go together where PEFT was to keep them tied."""
    outer = (embedding_module(decoder), HEAD_MODULE)
    together = decoder.spec.tied and config.keeps_tied and module in outer
    return any(config.is_whole(one) for one in (outer if together else (module,)))


def check_besides(
    path: Path, besides: Besides, config: AdapterConfig, decoder: Decoder, adapted: Collection[str]
) -> None:
    """Whether all of it is there that the configuration names, and fits; before anything is changed.

    ``adapted`` are the modules with thin matrices.

    Raises:
        ModelError: something is missing, left over, of another shape, or not finite.
    """
    embedding = embedding_module(decoder)
    rows, width = decoder.embed.weight.shape
    if config.whole or besides.whole:
        shapes = {name: tuple(value.shape) for name, value in hub_tensors(decoder)}
        shapes.setdefault(f"{HEAD_MODULE}.weight", (rows, width))
        _same_names(
            path,
            "modules_to_save",
            {name for name in shapes if is_whole(config, name.rpartition(".")[0], decoder)},
            besides.whole,
        )
        for name, value in besides.whole.items():
            _check(path, name, value, shapes[name])
    ids, shared = _rows(config, decoder)
    if shared and besides.rows.keys() == {HEAD_MODULE, embedding}:  # the same, saved twice
        twin = besides.rows.pop(HEAD_MODULE)
        if not torch.equal(twin, besides.rows[embedding]):
            raise ModelError(f"{path}: head and embedding are one here, but their trained rows differ")
    _same_names(path, "trainable_token_indices", ids.keys() - ({HEAD_MODULE} if shared else set()), besides.rows)
    for module, value in besides.rows.items():
        _check(path, f"the trained rows of {module}", value, (len(ids[module]), width))
        if len(set(ids[module])) != len(ids[module]) or not all(0 <= token < rows for token in ids[module]):
            raise ModelError(
                f"{config.path}: trainable_token_indices of {module} are {list(ids[module])[:10]}; wanted ids from 0 "
                f"to {rows - 1:,}, each once"
            )
        also = (module, HEAD_MODULE) if shared else (module,)
        if any(f"{one}.weight" in besides.whole or one in besides.embedding or one in adapted for one in also):
            raise ModelError(f"{config.path}: rows of {module} are trained, and all of it, too; wanted one of the two")
    for module, parts in besides.embedding.items():
        if module != embedding or parts.keys() != {"lora_embedding_A", "lora_embedding_B"}:
            raise ModelError(
                f"{path}: the adapter of {module} has {', '.join(sorted(parts))}; wanted lora_embedding_A and "
                "lora_embedding_B of the embedding (its DoRA is not read here; merge the adapter with peft)"
            )
        a, b = parts["lora_embedding_A"], parts["lora_embedding_B"]
        _check(path, f"lora_embedding_A of {module}", a, (max(len(a), 1), rows))
        _check(path, f"lora_embedding_B of {module}", b, (width, len(a)))


@torch.no_grad()
def apply_whole(besides: Besides, config: AdapterConfig, decoder: Decoder) -> None:
    """Put what is saved whole, and LoRA of the embedding, into a decoder's weights, each where PEFT would have it.

    A head that was the embedding stays so only where both are changed alike.
    """
    head, embedding = f"{HEAD_MODULE}.weight", embedding_module(decoder)
    whole = dict(besides.whole)
    new = [whole[name] for name in (head, f"{embedding}.weight") if name in whole]
    if decoder.spec.tied and len(new) == 2 and torch.equal(*new):
        del whole[head]
    elif new or besides.embedding:
        decoder.untie()
    if whole:
        for name, own in hub_tensors(decoder):
            if name in whole:
                own.copy_(whole[name])
    for module, parts in besides.embedding.items():
        a, b = parts["lora_embedding_A"], parts["lora_embedding_B"]
        decoder.embed.weight.add_((config.scale(module, len(a)) * (b @ a).t()).to(decoder.embed.weight))


@torch.no_grad()
def apply_rows(besides: Besides, config: AdapterConfig, decoder: Decoder) -> None:
    """Give a decoder trained rows: beside its embedding, or, where head and embedding go apart, in its weights."""
    ids, shared = _rows(config, decoder)
    apart = decoder.spec.tied and bool(besides.rows) and not shared
    if apart:
        decoder.untie()
    for module, value in besides.rows.items():
        if module == HEAD_MODULE or apart:
            table = decoder.head.weight if module == HEAD_MODULE else decoder.embed.weight
            table[torch.tensor(ids[module], device=table.device)] = value.to(table)
        else:
            train_rows(decoder, ids[module]).rows.copy_(value)


def _rows(config: AdapterConfig, decoder: Decoder) -> tuple[dict[str, tuple[int, ...]], bool]:
    """Ids of trained rows by module, and whether those of the embedding are the tied head's as well.

    They are where the embedding's are trained and no others of the head; the same in another order are others to PEFT.
    """
    embedding = embedding_module(decoder)
    ids = config.token_rows(embedding, HEAD_MODULE)
    shared = decoder.spec.tied and embedding in ids and ids.get(HEAD_MODULE, ids[embedding]) == ids[embedding]
    return ids, shared


def _same_names(path: Path, key: str, wanted: Iterable[str], found: Mapping[str, Tensor]) -> None:
    if missing := sorted(set(wanted) - found.keys()):
        raise ModelError(
            f"{path}: half an adapter: {key} in {CONFIG} asks for {', '.join(missing[:5])}, which the file lacks; "
            "fetch it again, or save it anew with peft"
        )
    if strange := sorted(found.keys() - set(wanted)):
        raise ModelError(f"{path}: {', '.join(strange[:5])} is no part of the adapter by {key} in {CONFIG}")


def _check(path: Path, name: str, value: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(value.shape) != shape:
        raise ModelError(f"{path}: {name} has shape {list(value.shape)}; wanted {list(shape)}")
    if not torch.isfinite(value).all():
        raise ModelError(f"{path}: {name} holds values that are not finite numbers")
