"""Tuning with adapters: put on before training, and merged into the model that goes on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from instil.errors import InstilError
from instil.machine import release
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.peft import TIED_HEAD
from instil.model.frozen import BITS, FrozenLinear, quantise_base
from instil.model.load import blank_decoder
from instil.model.lora import add_lora, merge, trained_parameters
from instil.model.lora_layer import LoraLinear
from instil.model.spec import DecoderSpec
from instil.model.token_rows import TokenRows
from instil.screen import Screen
from instil.settings.options import Settings
from instil.train.observer import Observer

SAME = 1e-4  # of the largest score: what merging may change by rounding
TRIED_TOKENS = 64
MERGED_TRIES = 4  # rows of numbers that a merged layer is tried with


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
        settings: with ``train.method=full`` nothing is done. Where the decoder's weights are elsewhere, merging is left
            to who saves it (`merged_later`).
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
    if decoder.elsewhere is not None:
        return
    release()  # what training took; whole weights may have to be made again
    before = _scores(decoder, tried)
    merge(decoder)
    largest = before.abs().max().clamp_min(torch.finfo(before.dtype).tiny)  # too large a rate can make all of them zero
    difference = float((_scores(decoder, tried) - before).abs().max() / largest)
    if not difference <= SAME:
        raise MergeError(f"merging the adapters changed the model's scores by {difference:.1e}")


def merged_later(decoder: Decoder) -> Decoder:
    """A plain decoder whose weights are elsewhere: those of a decoder that are, with the adapters that it has here.

    Each layer is merged when it is asked for, and made sure of; the decoder that is given can do nothing else then.
    """
    plain = blank_decoder(decoder.spec, decoder.embed.weight.dtype)
    if isinstance(decoder.head, LoraLinear):
        plain.untie()
    plain.elsewhere = _Merged(decoder)
    return plain


class _Merged:
    """Weights with adapters in them (`instil.model.decoder.Elsewhere`)."""

    def __init__(self, decoder: Decoder) -> None:
        assert decoder.elsewhere is not None, "its weights are here"
        self._decoder, self._elsewhere, self.device = decoder, decoder.elsewhere, decoder.device

    def parameter(self, name: str, rows: slice | None = None) -> Tensor:
        owner, _, leaf = name.rpartition(".")
        layer = self._decoder.get_submodule(owner)
        if leaf == "weight" and isinstance(layer, LoraLinear):
            whole = self._merged(layer, name)
        elif leaf == "weight" and isinstance(layer, FrozenLinear):
            layer.hold(self._elsewhere.parameter(name))  # as it was rounded before training
            whole = layer.weight
            layer.drop()
        elif leaf == "weight" and isinstance(layer, TokenRows):
            whole = self._elsewhere.parameter(name).index_copy_(0, layer.ids_K, layer.rows.detach())
        else:
            return self._elsewhere.parameter(name, rows)
        return whole if rows is None else whole[rows]

    @torch.no_grad()
    def _merged(self, layer: LoraLinear, name: str) -> Tensor:
        layer.register_parameter("bias", None)  # which is no part of what is merged
        if layer.held is not None:
            layer.held.register_parameter("bias", None)
            layer.held.hold(self._elsewhere.parameter(name))
        else:
            layer.weight = nn.Parameter(self._elsewhere.parameter(name), requires_grad=False)
        tried = torch.randn(MERGED_TRIES, layer.in_features, generator=torch.Generator().manual_seed(0))
        tried_NI = tried.to(layer.lora_a)
        wanted_NO = LoraLinear.forward(layer, tried_NI)  # and not by a call, which would gather parts
        plain = layer.merged()
        layer.register_parameter("weight", None)
        if layer.held is not None:
            layer.held.drop()
        largest = wanted_NO.abs().max().clamp_min(torch.finfo(wanted_NO.dtype).tiny)
        difference = float((plain.forward(tried_NI) - wanted_NO).abs().max() / largest)
        if not difference <= SAME:
            raise MergeError(f"merging the adapters changed the outputs of {name} by {difference:.1e}")
        return plain.weight.detach()


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
