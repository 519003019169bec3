"""Who trains: each contender is a module that is run in a process of its own (``python -m benchmarks.contenders.X``).

It gets a job (a JSON file, see `benchmarks.inputs`) and its name, and tells of every step through `track.Track`.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.environments import installed


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the job.

    ``mathematics`` names what is computed: contenders that share it must log the same losses (``""``: not exact).
    ``counterpart`` is the contender of ours that computes the same; ratios are taken to it.
    ``needs`` is the package without which it cannot run, ``home`` the environment that has it (see
    `benchmarks.environments`). ``slow`` ones run once, for fewer steps. ``settings`` names what it was set to, beside
    what the job fixes.
    """

    name: str
    module: str
    variant: str
    models: tuple[str, ...]
    mathematics: str
    counterpart: str
    needs: str = "instil"
    slow: bool = False
    home: str = ""
    settings: str = ""

    @property
    def there(self) -> bool:
        """Whether what it needs is installed."""
        return installed(self.needs, self.home)

    @property
    def ours(self) -> bool:
        """Whether it is instil."""
        return self.module == "ours"


BOTH = ("gpt2", "smollm2")
FP32 = "float32, no checkpointing"
UNSLOTH = "weights in bfloat16 under autocast, no checkpointing, no packing, fused AdamW"
CONTENDERS = (
    Contender("instil", "ours", "shared", BOTH, "tied", "instil"),
    Contender("instil, padded", "ours", "padded", BOTH, "tied", "instil"),
    Contender("instil, untied head", "ours", "untied", BOTH, "untied", "instil, untied head"),
    Contender("instil, LoRA", "ours", "lora", BOTH, "", "instil, LoRA"),
    Contender("instil, LoRA, checkpointing", "ours", "lora-checkpointing", BOTH, "", "instil, LoRA"),
    Contender("instil, bf16", "ours", "bf16", BOTH, "", "instil"),
    Contender("instil, LoRA, bf16", "ours", "lora-bf16", BOTH, "", "instil, LoRA"),
    Contender("the book's code", "book", "", ("gpt2",), "untied", "instil, untied head", "llms_from_scratch"),
    Contender(
        "TRL, tuned", "trl_sft", "tuned", BOTH, "tied", "instil", "trl",
        settings=f"{FP32}, no packing, no clipping, fused AdamW",
    ),
    Contender(
        "TRL with PEFT, tuned", "trl_sft", "lora", BOTH, "", "instil, LoRA", "peft",
        settings=f"{FP32}, no packing, no clipping, fused AdamW",
    ),
    Contender(
        "Unsloth, float32", "unsloth_sft", "fp32", BOTH, "tied", "instil", "unsloth", home="unsloth",
        settings=f"{FP32}, no packing, fused AdamW",
    ),
    Contender(
        "Unsloth", "unsloth_sft", "bf16", BOTH, "", "instil, bf16", "unsloth", home="unsloth",
        settings=UNSLOTH,
    ),
    Contender(
        "Unsloth, compiled", "unsloth_sft", "bf16-compiled", ("smollm2",), "", "instil, bf16", "unsloth",
        home="unsloth", settings=f"{UNSLOTH}, layers compiled",
    ),
    Contender(
        "Unsloth, LoRA", "unsloth_sft", "lora-bf16", ("smollm2",), "", "instil, LoRA, bf16", "unsloth",
        home="unsloth", settings=UNSLOTH,
    ),
    Contender(
        "Unsloth, LoRA, compiled", "unsloth_sft", "lora-bf16-compiled", ("smollm2",), "", "instil, LoRA, bf16",
        "unsloth", home="unsloth", settings=f"{UNSLOTH}, layers compiled",
    ),
    Contender(
        "LitGPT", "lit", "", ("smollm2",), "untied", "instil, untied head", "litgpt",
        settings="float32, its chunked loss",
    ),
    Contender(
        "TRL, as shipped", "trl_sft", "shipped", BOTH, "", "instil", "trl", slow=True, settings="its defaults",
    ),
)  # fmt: skip
