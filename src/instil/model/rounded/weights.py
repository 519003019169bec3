"""Turning a decoder into one with rounded weights."""

from __future__ import annotations

from typing import Literal

import torch

from instil.errors import SettingsError
from instil.machine import release
from instil.model.decoder import Decoder
from instil.model.fast.gemm import Linear, narrow_gain
from instil.model.fast.recompute import ReadsRecomputed
from instil.model.rounded.bf16 import Bf16Linear
from instil.model.rounded.int8 import IN, Int8Linear
from instil.model.rounded.layer import RoundedLinear

Weights = Literal["fp32", "bf16", "int8"]


@torch.no_grad()
def round_weights(decoder: Decoder, weights: Weights) -> None:
    """Hold linear layers' weights so, for good; but for ``fp32`` the decoder can no longer be trained or saved.

    Layers with an input width that is no multiple of 64 stay as they are with ``int8``; no model that is read here
    has any. A note on the decoder says so where this processor has no units for bfloat16.

    Raises:
        SettingsError: the decoder is not on the CPU, whose products these are, or its layers are no plain ones.
    """
    if weights == "fp32":
        return
    if decoder.device.type != "cpu":
        raise SettingsError(f"{weights} weights are for the CPU; leave them out on a GPU")
    if any(type(module) is not Linear and isinstance(module, ReadsRecomputed) for module in decoder.modules()):
        raise SettingsError("this decoder has adapters or weights in few bits; merge them first")
    for module in list(decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Linear) and (made := _rounded(child, weights)) is not None:
                setattr(module, name, made)
    release()  # the weights before, which are two or three times as large as what stays
    if weights == "bf16" and narrow_gain() < 1:
        decoder.notes += ("this processor has no units for bfloat16: weights in bf16 are slower here than in float32",)


def _rounded(layer: Linear, weights: Weights) -> RoundedLinear | None:
    if weights == "bf16":
        return Bf16Linear(layer)
    return Int8Linear(layer) if layer.in_features % IN == 0 else None


def weights_asked(*, int8: bool, bf16: bool) -> Weights:
    """How weights are to be held.

    Raises:
        SettingsError: both.
    """
    if int8 and bf16:
        raise SettingsError("int8 and bf16 are two ways to hold the same weights; choose one")
    return "int8" if int8 else "bf16" if bf16 else "fp32"
