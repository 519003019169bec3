"""OLMo 3 (OLMo Team, 2025): OLMo 2 with windows; only layers that see everything scale their rope."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instil.errors import ModelError
from instil.model.families.family import Family
from instil.model.families.keys import Fields, Header, Row, refuse_strangers
from instil.model.families.olmo2 import OLMO_GGUF, OLMO_HUB, OLMO_KEYS, OLMO_LACKS, OLMO_NEEDS, PERIOD, olmo_spec
from instil.model.families.rotary import UNUSED, rope_scaling, rope_settings
from instil.model.families.scaled import scaling_in_gguf
from instil.model.families.sliding import FULL, WINDOWED, PeriodicWindows
from instil.model.spec import DecoderSpec

_THETA = 500_000.0


class _TwoRopes(Row):
    """Base and scaling of layers that see everything, and base of those with a window."""

    fields = ("rope_theta", "rope_scaling", "window_rope_theta")
    understood: Mapping[str, tuple[Any, ...]] = {"rope_theta": (), "rope_scaling": (), "rope_parameters": ()}

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        given = config.get("rope_parameters") or {}
        refuse_strangers("olmo3", given, {FULL: (), WINDOWED: ()})
        full = {**(given.get(FULL) or {}), **(config.get("rope_scaling") or {})}
        windowed = given.get(WINDOWED) or {}
        if rope_scaling("olmo3", windowed) is not None:
            raise ModelError(
                "config.json of an olmo3 model scales the rope of its layers with a window, which is not implemented "
                "here"
            )
        theta = full.get("rope_theta") or config.get("rope_theta") or _THETA
        if "rope_theta" not in windowed and config.get("rope_theta") not in (None, _THETA):
            raise ModelError(
                f"config.json of an olmo3 model says rope_theta={config['rope_theta']!r}, and versions of transformers "
                f"disagree whether that is of layers with a window, too; say it in rope_parameters, under {WINDOWED}"
            )
        return {
            "rope_theta": float(theta),
            "rope_scaling": rope_scaling("olmo3", full, config.get("max_position_embeddings")),
            "window_rope_theta": float(windowed.get("rope_theta") or _THETA),
        }

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        full = rope_settings(spec.rope_theta, spec.rope_scaling)
        window_theta = spec.window_rope_theta or spec.rope_theta
        return {
            "rope_theta": spec.rope_theta,
            "rope_scaling": None if spec.rope_scaling is None else full,
            "rope_parameters": {FULL: full, WINDOWED: rope_settings(window_theta, None)},
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        raise NotImplementedError("GGUF files of OLMo 3 are read as those of OLMo 2")

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        scaling = scaling_in_gguf("olmo3", spec)
        return {"rope.freq_base": float(spec.rope_theta), "rope.dimension_count": spec.head_width, **scaling}


OLMO3 = Family(
    name="olmo3",
    model_type="olmo3",
    architecture="Olmo3ForCausalLM",
    spec=olmo_spec,
    keys=(*OLMO_KEYS, _TwoRopes(), PeriodicWindows("olmo3", PERIOD, window=4096)),
    prefix="model.",
    hub=OLMO_HUB,
    gguf=OLMO_GGUF,
    gguf_architecture="olmo2",
    gguf_lacks=OLMO_LACKS,
    gguf_needs=OLMO_NEEDS,
    gguf_even=True,
    unused=UNUSED,
)
