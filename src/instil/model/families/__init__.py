"""The supported families: each is two tables of names, of weights and of its configuration's keys, and a spec."""

from __future__ import annotations

from instil.model.families.family import Family
from instil.model.families.gemma3 import GEMMA3
from instil.model.families.gpt2 import GPT2
from instil.model.families.lfm2 import LFM2
from instil.model.families.llama import LLAMA
from instil.model.families.qwen3 import QWEN3

FAMILIES: dict[str, Family] = {family.name: family for family in (GPT2, LLAMA, GEMMA3, QWEN3, LFM2)}
