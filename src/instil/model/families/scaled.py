"""What a GGUF file says of slower turning: by keys of its header, and by tensors with a number for every pair."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from instil.errors import ModelError
from instil.model.families.keys import Header
from instil.model.rope import scaled
from instil.model.spec import DecoderSpec, RopeScaling

ONE, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
FREQUENCIES = (ONE, SHORT, LONG)
_TAKEN = {  # which of them llama.cpp takes, by family
    **dict.fromkeys(("llama", "mistral", "granite"), FREQUENCIES),
    "phi3": (SHORT, LONG),
}
CLOSE = 1e-5  # llama.cpp keeps them in float32


def gguf_scaling(family: str, header: Header, theta: float, width: int) -> RopeScaling | None:
    """The scaling of a GGUF file, as llama.cpp takes it.

    Args:
        family: its name, for messages.
        header: of the file.
        theta: base of the angles.
        width: how many dimensions of a head turn.

    Raises:
        ModelError: it says something that is not implemented here.
    """
    kind = header.get("rope.scaling.type", "linear")  # if it says none, a factor is one of this kind
    factor = float(header.get("rope.scaling.factor") or header.get("rope.scale_linear") or 1.0)
    context = header.get("rope.scaling.original_context_length") or header["context_length"]
    attention = float(header.get("rope.scaling.attn_factor") or 1.0)
    short, long = _factors(family, header, width)
    if kind == "yarn":
        if short is not None or factor == 1:
            beside = "without a factor" if short is None else "and a factor for every pair"
            raise ModelError(f"a {family} GGUF with rope scaling 'yarn' {beside} is not implemented here")
        return _yarn(family, header, factor, context, attention)
    if kind not in ("none", "linear", "longrope") or (kind == "longrope" and short is None):
        without = " without its factors" if kind == "longrope" else ""
        raise ModelError(f"a {family} GGUF with rope scaling {kind!r}{without} is not implemented here")
    factor = factor if kind == "linear" else 1.0
    if short is None or long is None:
        if attention == 1:
            return None if factor == 1 else RopeScaling(kind="linear", factor=factor)
        short = long = torch.ones(width // 2, dtype=torch.float64)
    if factor == 1 and attention == 1 and torch.equal(short, long):
        if bool((short == 1).all()):
            return None
        for trained in dict.fromkeys((header.get("rope.scaling.original_context_length"), 8192)):
            if trained and (found := _llama3(short, theta, width, trained)) is not None:
                return found
    return RopeScaling(
        kind="longrope",
        factor=header["context_length"] / context,
        context=context,
        short=tuple((short * factor).tolist()),
        long=tuple((long * factor).tolist()),
        reach=header["context_length"],
        attention_factor=attention,
    )


def scaling_in_gguf(family: str, spec: DecoderSpec) -> dict[str, Any]:
    """The scaling of a spec as keys of a header and tensors.

    Raises:
        ModelError: llama.cpp does not scale in this way in this family.
    """
    scaling, width = spec.rope_scaling, spec.turned_width
    if scaling is None:
        return {}
    if scaling.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(scaling.factor)}
    said: dict[str, Any] = {"rope.scaling.original_context_length": scaling.context}
    if scaling.kind == "yarn":
        whole = _yarn_attention(scaling.factor)
        said |= {"rope.scaling.type": "yarn", "rope.scaling.factor": float(scaling.factor)}
        others = {"yarn_beta_slow": (scaling.low, 1.0), "yarn_beta_fast": (scaling.high, 32.0)}
        others["attn_factor"] = (scaling.attention_factor / whole, 1.0)
        return said | {f"rope.scaling.{key}": float(value) for key, (value, usual) in others.items() if value != usual}
    tensors = _TAKEN.get(family, ())
    if scaling.kind == "llama3" and ONE in tensors:
        plain = spec.rope_theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        return {**said, ONE: (plain / scaled(plain, scaling, spec.rope_theta)).float()}
    if scaling.kind == "longrope" and LONG in tensors:
        said |= {"rope.scaling.type": "longrope", "rope.scaling.attn_factor": float(scaling.attention_factor)}
        return {**said, SHORT: torch.tensor(scaling.short), LONG: torch.tensor(scaling.long)}
    raise ModelError(
        f"llama.cpp does not scale the rope of a {family} model by {scaling.kind!r}, so that a GGUF file of it would "
        "give other answers. Use --to hf"
    )


def _factors(family: str, header: Header, width: int) -> tuple[Tensor | None, Tensor | None]:
    """What divides the frequencies of short texts and of long ones."""
    if ONE in header.shapes:
        names = (ONE, ONE)
    elif SHORT in header.shapes or LONG in header.shapes:
        names = (SHORT, LONG)
    else:
        return None, None
    for name in names:
        if header.shapes.get(name) != (width // 2,):
            raise ModelError(
                f"a {family} GGUF has {name} of shape {list(header.shapes.get(name, ()))}; wanted one number for each "
                f"of {width // 2} pairs of dimensions"
            )
    short, long = (header.tensor(name).double() for name in names)
    if not all(bool((torch.isfinite(part) & (part > 0)).all()) for part in (short, long)):
        raise ModelError(f"a {family} GGUF has {' and '.join(names)} with numbers that cannot divide frequencies")
    return short, long


def _llama3(factors: Tensor, theta: float, width: int, context: int) -> RopeScaling | None:
    """The scaling of Llama 3.1 that has these factors, if it is one."""
    found = RopeScaling(kind="llama3", factor=round(float(factors.max()), 4), context=context)
    plain = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    near = torch.isclose(plain / scaled(plain, found, theta), factors, rtol=CLOSE, atol=0)
    return found if bool(near.all()) else None


def _yarn_attention(factor: float) -> float:
    """What llama.cpp multiplies by, by itself (Peng et al., 2023, equation 22)."""
    return 1 + 0.1 * math.log(factor) if factor > 1 else 1.0


def _yarn(family: str, header: Header, factor: float, context: int, attention: float) -> RopeScaling:
    whole = _yarn_attention(factor)
    others = {
        "yarn_ext_factor": (1.0, -1.0),
        "yarn_log_multiplier": (0.0,),
        "yarn_attn_factor": (1.0, whole),  # llama.cpp makes this one of the factor, whatever is said
    }
    strange = {
        key: value
        for key, allowed in others.items()
        if (value := header.get(f"rope.scaling.{key}")) is not None
        and not any(math.isclose(value, one, rel_tol=CLOSE, abs_tol=CLOSE) for one in allowed)
    }
    if strange:
        said = ", ".join(f"rope.scaling.{key}={value}" for key, value in strange.items())
        raise ModelError(f"a {family} GGUF with rope scaling 'yarn' and {said} is not implemented here")
    return RopeScaling(
        kind="yarn",
        factor=factor,
        low=float(header.get("rope.scaling.yarn_beta_slow") or 1.0),
        high=float(header.get("rope.scaling.yarn_beta_fast") or 32.0),
        context=context,
        attention_factor=whole * attention,
    )
