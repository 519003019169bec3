"""Who trains: each contender is a module that is run in a process of its own (``python -m benchmarks.contenders.X``).

It gets a job (a JSON file, see `benchmarks.inputs`) and its name, and tells of every step through `track.Track`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to do the job.

    ``mathematics`` names what is computed: contenders that share it must log the same losses (``""``: not exact).
    ``counterpart`` is the contender of ours that computes the same; ratios are taken to it.
    ``needs`` is the module without which it cannot run. ``slow`` ones run once, for fewer steps.
    """

    name: str
    module: str
    variant: str
    models: tuple[str, ...]
    mathematics: str
    counterpart: str
    needs: str = "instil"
    slow: bool = False

    @property
    def ours(self) -> bool:
        """Whether it is instil."""
        return self.module == "ours"


BOTH = ("gpt2", "smollm2")
CONTENDERS = (
    Contender("instil", "ours", "shared", BOTH, "tied", "instil"),
    Contender("instil, padded", "ours", "padded", BOTH, "tied", "instil"),
    Contender("instil, untied head", "ours", "untied", BOTH, "untied", "instil, untied head"),
    Contender("instil, LoRA", "ours", "lora", BOTH, "", "instil, LoRA"),
    Contender("instil, LoRA, checkpointing", "ours", "lora-checkpointing", BOTH, "", "instil, LoRA"),
    Contender("instil, bf16", "ours", "bf16", BOTH, "", "instil"),
    Contender("instil, LoRA, bf16", "ours", "lora-bf16", BOTH, "", "instil, LoRA"),
    Contender("the book's code", "book", "", ("gpt2",), "untied", "instil, untied head", "llms_from_scratch"),
    Contender("TRL, tuned", "trl_sft", "tuned", BOTH, "tied", "instil", "trl"),
    Contender("TRL with PEFT, tuned", "trl_sft", "lora", BOTH, "", "instil, LoRA", "peft"),
    Contender("LitGPT", "lit", "", ("smollm2",), "untied", "instil, untied head", "litgpt"),
    Contender("TRL, as shipped", "trl_sft", "shipped", BOTH, "", "instil", "trl", slow=True),
)
