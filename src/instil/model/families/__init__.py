"""The supported families: each is two tables of names, of weights and of its configuration's keys, and a spec."""

from __future__ import annotations

from instil.model.families.family import Family
from instil.model.families.gemma import GEMMA
from instil.model.families.gemma2 import GEMMA2
from instil.model.families.gemma3 import GEMMA3
from instil.model.families.gpt2 import GPT2
from instil.model.families.gpt_neox import GPT_NEOX
from instil.model.families.granite import GRANITE
from instil.model.families.lfm2 import LFM2
from instil.model.families.llama import LLAMA
from instil.model.families.mistral import MISTRAL
from instil.model.families.olmo2 import OLMO2
from instil.model.families.olmo3 import OLMO3
from instil.model.families.phi3 import PHI3
from instil.model.families.qwen2 import QWEN2
from instil.model.families.qwen3 import QWEN3
from instil.model.families.smollm3 import SMOLLM3
from instil.model.families.starcoder2 import STARCODER2

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        GPT2,
        LLAMA,
        GEMMA3,
        QWEN3,
        QWEN2,
        MISTRAL,
        PHI3,
        SMOLLM3,
        STARCODER2,
        GPT_NEOX,
        GEMMA,
        GEMMA2,
        GRANITE,
        OLMO2,
        OLMO3,
        LFM2,
    )
}
