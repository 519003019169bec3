"""Who answers: each answerer is a module run in a process of its own (``python -m benchmarks.answerers.X``).

It gets a job (a JSON file, see `benchmarks.questions`) and a variant, and tells through `telling.Tell` when its model
was loaded, when the first token of a first prompt came, and how long all prompts took with what was said.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Answerer:
    """One way to answer.

    ``exact``: float32 throughout, so that greedy answers are to be those of instil. ``share``: answers only so much of
    the prompts, being slow; what it takes for each answer counts.
    """

    name: str
    module: str
    variant: str
    models: tuple[str, ...]
    needs: str
    exact: bool = True
    share: float = 1.0

    @property
    def ours(self) -> bool:
        """Whether it is instil."""
        return self.module == "ours"


SMOLLM2 = ("smollm2",)
ANSWERERS = (
    Answerer("instil", "ours", "", ("gpt2", "smollm2"), "instil"),
    Answerer("instil, one at a time", "ours", "alone", SMOLLM2, "instil", share=0.3),
    Answerer("instil int8, one at a time", "ours", "int8", SMOLLM2, "instil", exact=False, share=0.3),
    Answerer("instil bf16, one at a time", "ours", "bf16", SMOLLM2, "instil", exact=False, share=0.3),
    Answerer("instil int8", "ours", "int8-all", SMOLLM2, "instil", exact=False),
    Answerer("instil bf16", "ours", "bf16-all", SMOLLM2, "instil", exact=False),
    Answerer("the book's generate", "book", "plain", ("gpt2",), "llms_from_scratch", share=0.1),
    Answerer("transformers, batches of 22", "hf", "22", SMOLLM2, "transformers"),
    Answerer("transformers, one at a time", "hf", "1", SMOLLM2, "transformers", share=0.2),
    Answerer("llama.cpp F32, one at a time", "llama", "F32-1", SMOLLM2, "xllamacpp"),
    Answerer("llama.cpp F32, 8 slots", "llama", "F32-8", SMOLLM2, "xllamacpp"),
    Answerer("llama.cpp F32, 16 slots", "llama", "F32-16", SMOLLM2, "xllamacpp"),
    Answerer("llama.cpp Q4, one at a time", "llama", "Q4-1", SMOLLM2, "xllamacpp", exact=False),
    Answerer("llama.cpp Q4, 8 slots", "llama", "Q4-8", SMOLLM2, "xllamacpp", exact=False),
    Answerer("llama.cpp Q4, 16 slots", "llama", "Q4-16", SMOLLM2, "xllamacpp", exact=False),
)
