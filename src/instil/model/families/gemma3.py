"""Gemma 3, the text model (Gemma Team, 2025): most layers see a short window, and norms stand on both sides.

Five layers with a window follow one another, then one that sees everything; the two kinds turn by
different angles. Norm weights are kept as their distance from one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family
from instil.model.families.gemma import GGUF_NORMS_AROUND, HUB_NORMS_AROUND, TANH_GELU, QueryScalar, RootOfWidth
from instil.model.families.keys import (
    Default,
    Fields,
    Fixed,
    Header,
    Key,
    Row,
    attention_bias,
    refuse_strangers,
    tied,
)
from instil.model.families.rotary import (
    GGUF_QK_NORMS,
    HUB,
    HUB_QK_NORMS,
    SIZES,
    UNUSED,
    gguf_table,
    rope_scaling,
    rope_settings,
)
from instil.model.families.scaled import gguf_scaling, scaling_in_gguf
from instil.model.families.sliding import FULL, WINDOWED, PeriodicWindows
from instil.model.spec import DecoderSpec

_THETA, _WINDOW_THETA = 1_000_000.0, 10_000.0


class _TwoRopes(Row):
    """Base and scaling of layers that see everything, and base of those with a window.

    They are written for transformers 5, and in the older words beside, so that what reads those reads the same model.
    """

    fields = ("rope_theta", "rope_scaling", "window_rope_theta")
    understood: Mapping[str, tuple[Any, ...]] = {
        "rope_theta": (), "rope_local_base_freq": (), "rope_scaling": (), "rope_parameters": (),
    }  # fmt: skip

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        given = config.get("rope_parameters") or {}
        refuse_strangers("gemma3", given, {FULL: (), WINDOWED: ()})
        full = {**(given.get(FULL) or {}), **(config.get("rope_scaling") or {})}
        windowed = given.get(WINDOWED) or {}
        if rope_scaling("gemma3", windowed) is not None:
            raise ModelError(
                "config.json of a gemma3 model scales the rope of its layers with a window, which is not implemented "
                "here"
            )
        theta = full.get("rope_theta") or config.get("rope_theta") or _THETA
        window_theta = windowed.get("rope_theta") or config.get("rope_local_base_freq") or _WINDOW_THETA
        return {
            "rope_theta": float(theta),
            "rope_scaling": rope_scaling("gemma3", full, config.get("max_position_embeddings")),
            "window_rope_theta": float(window_theta),
        }

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        full = rope_settings(spec.rope_theta, spec.rope_scaling)
        window_theta = spec.window_rope_theta or spec.rope_theta
        return {
            "rope_theta": spec.rope_theta,
            "rope_local_base_freq": window_theta,
            "rope_scaling": None if spec.rope_scaling is None else full,
            "rope_parameters": {FULL: full, WINDOWED: rope_settings(window_theta, None)},
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        theta = header.get("rope.freq_base", _THETA)
        return {
            "rope_theta": theta,
            "rope_scaling": gguf_scaling("gemma3", header, float(theta), known["head_width"]),
            "window_rope_theta": header.get("rope.freq_base_swa", _WINDOW_THETA),
        }

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        window_theta = spec.window_rope_theta or spec.rope_theta
        scaling = scaling_in_gguf("gemma3", spec)
        return {"rope.freq_base": float(spec.rope_theta), "rope.freq_base_swa": float(window_theta), **scaling}


_GGUF_QK_NORMS = {ours: replace(stored, one_added=True) for ours, stored in GGUF_QK_NORMS.items()}

GEMMA3 = Family(
    name="gemma3",
    model_type="gemma3_text",
    architecture="Gemma3ForCausalLM",
    spec=partial(
        DecoderSpec,
        family="gemma3",
        norm="rms_offset",
        mlp="geglu",
        positions="rope",
        qk_norm="head",
        post_norms=True,
    ),
    keys=(
        *SIZES,
        Key("kv_heads", "num_key_value_heads", "attention.head_count_kv"),
        Key("head_width", "head_dim", "attention.key_length"),
        Key("mlp_width", "intermediate_size", "feed_forward_length"),
        Key("context", "max_position_embeddings", "context_length"),
        Key("norm_eps", Default("rms_norm_eps", 1e-6), "attention.layer_norm_rms_epsilon"),
        _TwoRopes(),
        RootOfWidth(),
        QueryScalar(None, layers_27b=62),
        PeriodicWindows("gemma3", 6, period_key="sliding_window_pattern"),
        Key(
            "logits_softcap",
            Default("final_logit_softcapping", None),
            Default("final_logit_softcapping", None, blank=True),
        ),
        Key("attention_bias", Default("attention_bias", False, blank=True), attention_bias),
        Fixed("hidden_activation", TANH_GELU),
        Fixed("use_bidirectional_attention", None, False),
        Key("tied", Default("tie_word_embeddings", True), tied),
    ),
    prefix="model.",
    hub={**HUB, **HUB_QK_NORMS, **HUB_NORMS_AROUND},
    gguf={**gguf_table(), **GGUF_NORMS_AROUND, **_GGUF_QK_NORMS},
    gguf_lacks=("blocks.{i}.attention.out.bias",),
    unused=UNUSED,
)
