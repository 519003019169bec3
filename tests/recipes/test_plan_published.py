"""The arithmetic of a plan on paper, against what others have published of models of 7 and 8 billion parameters.

Others' recipes differ from ours (`instil` holds weights, gradients and moments in float32, others often all of them in
bfloat16), so that each figure is compared with the same numbers at the bytes of its own recipe. docs/scale.md has the
table in words.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from instil.model.families import FAMILIES
from instil.recipes.plan.activations import head_bytes, kept_bytes, working_bytes
from instil.recipes.plan.cluster import EFFICIENCY, OTHERS, Cluster, Parts, Rows, Way, fit, held
from instil.recipes.plan.operations import of_token
from instil.recipes.plan.sizes import Sizes, sizes_of
from instil.settings.resolve import resolve
from tests.recipes.shapes import LLAMA_3_8B

GB = 1e9
SPEC = FAMILIES["llama"].spec_from_config(LLAMA_3_8B)


def sizes(*assignments: str) -> Sizes:
    return sizes_of(SPEC, resolve(assignments=assignments))


FULL = sizes()
LORA = sizes("train.method=lora", "lora.rank=16")
NF4 = sizes("train.method=lora", "lora.rank=16", "lora.base=nf4")


def state(shard: str, ranks: int) -> Parts:
    """What a rank holds of full tuning, with products in bfloat16."""
    cluster = Cluster(ranks, 1, 10**12, 312.0, EFFICIENCY, 300.0)
    return held(Way("full", "fp32", shard, True), cluster, SPEC, FULL, 1, 2, waits=True)  # type: ignore[arg-type]


def each(*sizes_: int) -> float:
    """Bytes for each parameter."""
    return sum(sizes_) / FULL.parameters


def full_amp() -> float:
    whole = state("", 1)
    return each(whole.weights, whole.copies, whole.gradients, whole.moments)


def zero(ranks: int) -> float:
    """GB of weights, gradients and moments of a model of 7.5 billion parameters."""
    share = state("full" if ranks > 1 else "", ranks)
    return 7.5 * each(share.weights, share.gradients, share.moments)


def in_bf16(numbers: Sizes) -> float:
    """GB of weights with two bytes each, or as they are held in few bits, beside gradients and moments in bfloat16."""
    few = numbers.blocks.products * 4.5 / 8 if numbers.few_bits else 2 * numbers.blocks.products
    return (few + 2 * (FULL.parameters - numbers.blocks.products) + 6 * numbers.adapters) / GB


def lora_in_16_bits() -> float:
    """GB of LoRA on a base in 16 bits, one row of 2,048 tokens at once, activations made again."""
    kept = kept_bytes(SPEC, LORA, 2048, 2, checkpointing=True) + working_bytes(SPEC, 2048, 2)
    return in_bf16(LORA) + 10 * LORA.adapters / GB + (kept + head_bytes(SPEC, LORA, 2048, 2) + OTHERS) / GB


def titan() -> float:
    """Tokens a second of one H100 of eight, with two rows of 8,192 tokens each."""
    cluster = Cluster(8, 1, 95 * 2**30, 989.0, EFFICIENCY, 450.0)
    rows = Rows(16, 8192, 8192)
    return fit(Way("full", "fp32", "full", False), cluster, SPEC, FULL, rows, narrow=2).tokens_per_second / 8


@dataclass(frozen=True)
class Published:
    """A figure, where it stands, what is counted here, and how far the two may be from one another."""

    figure: float
    source: str
    counted: Callable[[], float]
    within: float


PUBLISHED = [
    Published(
        16_060_522_496, "model.safetensors.index.json of meta-llama/Meta-Llama-3-8B: total_size, bytes in bfloat16",
        lambda: 2 * FULL.parameters, 0,
    ),
    Published(
        41_943_040, "Unsloth, notebook for Llama 3 8B: trainable parameters with r=16 on all projections",
        lambda: LORA.adapters, 0,
    ),
    Published(120, "ZeRO (Rajbhandari et al., 2020), figure 1: GB of 7.5B, nothing shared out", lambda: zero(1), 0.01),
    Published(1.88, "ZeRO, table 1: GB of 7.5B, all shared out over 64 GPUs", lambda: zero(64), 0.01),
    Published(0.47, "ZeRO, table 1: over 256 GPUs", lambda: zero(256), 0.01),
    Published(18, "LLaMA-Factory, README: bytes a parameter of full tuning with bf16 products", full_amp, 0.02),
    Published(
        4.5, "QLoRA (Dettmers et al., 2023), section 3: bits a weight in blocks of 64, before double quantization",
        lambda: 32 - 8 * (LORA.bytes - NF4.bytes) / LORA.blocks.products, 0,
    ),
    Published(
        60, "Hugging Face, Llama 3.1 (July 2024): GB of 8B, full tuning", lambda: 8 * FULL.parameters / GB, 0.1
    ),
    Published(16, "Hugging Face, Llama 3.1: GB of 8B, LoRA", lambda: in_bf16(LORA), 0.05),
    Published(6, "Hugging Face, Llama 3.1: GB of 8B, QLoRA", lambda: in_bf16(NF4), 0.05),
    Published(22, "Unsloth, requirements: GB of 8B, LoRA in 16 bits", lora_in_16_bits, 0.2),
    Published(
        6258, "TorchTitan (Liang et al., 2024): tokens a second and H100 of Llama 3.1 8B, FSDP2 on eight", titan, 0.1
    ),
]  # fmt: skip


@pytest.mark.parametrize("one", PUBLISHED, ids=lambda one: one.source[:40])
def test_published_figures_come_out(one: Published) -> None:
    assert one.counted() == pytest.approx(one.figure, rel=one.within, abs=0)


def test_the_usual_efficiency_is_what_others_reach() -> None:
    """What TorchTitan publishes, in operations as they are counted here."""
    reached = 6258 * of_token(SPEC, FULL, 8192).all / 989e12
    assert reached == pytest.approx(EFFICIENCY, rel=0.1)
