"""Whether the weights of a decoder can be trained."""

from __future__ import annotations

import torch

from instil.errors import SettingsError
from instil.model.decoder import Decoder
from instil.model.frozen import FrozenLinear
from instil.model.lora_layer import LoraLinear
from instil.model.rounded.layer import refuse_rounded


def check_weights(decoder: Decoder) -> None:
    """Refuse weights that are not there to be trained, or would lose updates.

    bfloat16 drops those below a 256th of a weight, which is most of what a step changes, and no loss tells. A copy in
    float32 beside them would take as much memory as weights in float32 do.

    Raises:
        SettingsError: they are such.
    """
    refuse_rounded(decoder)
    if not any(parameter.requires_grad for parameter in decoder.parameters()):
        raise SettingsError("nothing of this decoder is to be trained: no parameter requires a gradient")
    kinds = {type(module) for module in decoder.modules()}
    if FrozenLinear in kinds and LoraLinear not in kinds:
        raise SettingsError(
            "the linear layers of this decoder are frozen in few bits, and there are no adapters, so embeddings and "
            "norms alone would be trained; call add_lora, or load the model anew"
        )
    for name, parameter in decoder.named_parameters():
        if parameter.requires_grad and parameter.dtype not in (torch.float32, torch.float64):
            kind = str(parameter.dtype).removeprefix("torch.")
            raise SettingsError(
                f"{name} is to be trained and is held in {kind}, in which most updates would be rounded away. Load the "
                "model in float32 (load_decoder(model, dtype=torch.float32), the default), adapters included; "
                "train.precision=bf16 computes products in bfloat16 all the same, and lora.base=int8 or nf4 holds a "
                "frozen base in fewer bits"
            )
    if len(kinds_held := {str(parameter.dtype).removeprefix("torch.") for parameter in decoder.parameters()}) > 1:
        raise SettingsError(
            f"the weights of this decoder are held in {' and '.join(sorted(kinds_held))}, which cannot be multiplied "
            "with one another; load the model in float32 (load_decoder(model, dtype=torch.float32), the default)"
        )
