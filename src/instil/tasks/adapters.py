"""Tuning with adapters: put on before training, and merged into the model that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from instil.errors import InstilError
from instil.machine import release
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.peft import TIED_HEAD
from instil.model.frozen import BITS, FrozenLinear, quantise_base
from instil.model.lora import add_lora, merge, trained_parameters
from instil.model.spec import DecoderSpec
from instil.screen import Screen
from instil.settings.options import Settings
from instil.train.observer import Observer

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
        trainable_token_indices=lora.trainable_token_indices,
        seed=settings.train.seed,
    )


def not_exact(settings: Settings) -> str:
    """What a run with such settings has to say of its frozen weights; nothing where they are exact."""
    base = settings.lora.base
    if settings.train.method == "full" or base == "fp32":
        return ""
    return f"the frozen weights are in {BITS[base]} bits (lora.base={base}): not exact"


def tied_head(settings: Settings, spec: DecoderSpec) -> str:
    """What a run with such settings has to say of an adapter on a head that is the base's embedding, if it has one.

    Untying it for the run (``train.untie_head``) does not change the base that PEFT will open.
    """
    named = {"head", "lm_head"} & set(settings.lora.targets)
    return TIED_HEAD if settings.train.method == "lora" and named and spec.tied else ""


class MergeError(InstilError):
    """The model with its adapters merged answers otherwise than before."""


@contextmanager
def adapted(decoder: Decoder, settings: Settings, tried: tuple[int, ...]) -> Iterator[None]:
    """Inside, the decoder's adapters are what is trained; afterwards they are in its weights.

    Args:
        decoder: changed in place.
        settings: with ``train.method=full`` nothing is done.
        tried: ids of a text, by whose scores it is made sure that merging changed nothing.

    Raises:
        SettingsError: a target matches nothing, or the rank is too large.
        MergeError: the merged model answers otherwise than the adapted one.
    """
    if settings.train.method == "full":
        yield
        return
    adapt(decoder, settings)
    yield
    release()  # what training took; whole weights may have to be made again
    before = _scores(decoder, tried)
    merge(decoder)
    largest = before.abs().max().clamp_min(torch.finfo(before.dtype).tiny)  # too large a rate can make all of them zero
    difference = float((_scores(decoder, tried) - before).abs().max() / largest)
    if not difference <= SAME:
        raise MergeError(f"merging the adapters changed the model's scores by {difference:.1e}")


class AdapterNote(Observer):
    """Says how many numbers are trained beside those that are not, and what is not exact."""

    def __init__(self, settings: Settings, whole: int, screen: Screen) -> None:
        self._settings, self._whole, self._screen = settings, whole, screen

    def on_train_begin(self, decoder: Decoder, steps: int) -> None:
        trained = trained_parameters(decoder)
        share = f"{trained / self._whole:.2%}"
        self._screen.say(f"  trained: {trained:,} numbers in adapters beside {self._whole:,} frozen ones ({share})")
        if note := not_exact(self._settings):
            held = sum(layer.nbytes for layer in decoder.modules() if isinstance(layer, FrozenLinear))
            self._screen.say(f"  {note}; the linear layers take {held / 1e6:.0f} MB", "yellow")


@torch.inference_mode()
def _scores(decoder: Decoder, ids: tuple[int, ...]) -> Tensor:
    chosen = torch.tensor([ids[:TRIED_TOKENS]], device=decoder.device)
    return decoder.logits(decoder(batch_of_ids(chosen)))
