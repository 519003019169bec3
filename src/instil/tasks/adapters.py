"""Tuning with adapters: put on before training, written down after it, and merged into the model that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from instil import machine as runtime
from instil.errors import InstilError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.peft import save_adapter
from instil.model.frozen import BITS, FrozenLinear, quantise_base
from instil.model.lora import add_lora, merge
from instil.screen import Screen
from instil.settings.options import Settings

SAME = 1e-4  # of the largest score: what merging may change by rounding
TRIED_TOKENS = 64


def adapt(decoder: Decoder, settings: Settings) -> int:
    """Give a decoder the adapters of the settings; returns how many numbers are trained.

    Where the settings say so, its weights are rounded to few bits before, for good.

    Raises:
        SettingsError: a target matches nothing, or the rank is too large.
    """
    lora = settings.lora
    if lora.base != "fp32":
        quantise_base(decoder, lora.base)
    return add_lora(
        decoder,
        rank=lora.rank,
        alpha=lora.alpha,
        targets=lora.targets,
        scaling=lora.scaling,
        dora=lora.dora,
        seed=settings.train.seed,
    )


def not_exact(settings: Settings) -> str:
    """What a run with such settings has to say of its frozen weights; nothing where they are exact."""
    base = settings.lora.base
    if settings.train.method == "full" or base == "fp32":
        return ""
    return f"the frozen weights are in {BITS[base]} bits (lora.base={base}): not exact"


@contextmanager
def adapted(
    decoder: Decoder, settings: Settings, folder: Path, base: str, tried: tuple[int, ...], screen: Screen
) -> Iterator[None]:
    """Inside, the decoder's adapters are what is trained; afterwards they are in its weights, and in a PEFT folder.

    Args:
        decoder: changed in place.
        settings: with ``train.method=full`` nothing is done.
        folder: where the adapters are written.
        base: name of the model they belong to.
        tried: ids of a text, by whose scores it is made sure that merging changed nothing.
        screen: told how many numbers are trained.

    Raises:
        SettingsError: a target matches nothing, or the rank is too large.
        InstilError: the merged model answers otherwise than the adapted one.
    """
    if settings.train.method == "full":
        yield
        return
    whole = decoder.parameter_count
    trained = adapt(decoder, settings)
    screen.say(f"  trained: {trained:,} numbers in adapters beside {whole:,} frozen ones ({trained / whole:.2%})")
    if note := not_exact(settings):
        held = sum(layer.nbytes for layer in decoder.modules() if isinstance(layer, FrozenLinear))
        screen.say(f"  {note}; the linear layers take {held / 1e6:.0f} MB", "yellow")
    yield
    runtime.release()  # what training took; whole weights may have to be made again
    save_adapter(decoder, folder, base)
    before = _scores(decoder, tried)
    merge(decoder)
    largest = before.abs().max().clamp_min(torch.finfo(before.dtype).tiny)  # too large a rate can make all of them zero
    difference = float((_scores(decoder, tried) - before).abs().max() / largest)
    if not difference <= SAME:
        raise InstilError(f"merging the adapters changed the model's scores by {difference:.1e}; they lie in {folder}")


@torch.inference_mode()
def _scores(decoder: Decoder, ids: tuple[int, ...]) -> Tensor:
    chosen = torch.tensor([ids[:TRIED_TOKENS]], device=decoder.device)
    return decoder.logits(decoder(batch_of_ids(chosen)))
