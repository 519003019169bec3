"""Who answers: each answerer is a module run in a process of its own (``python -m benchmarks.answerers.X``).

It gets a job (a JSON file, see `benchmarks.questions`) and a variant, and tells through `telling.Tell` when its model
was loaded, when the first token of a first prompt came, and how long all prompts took with what was said.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.environments import installed


@dataclass(frozen=True, slots=True)
class Answerer:
    """One way to answer.

    ``exact``: float32 throughout, so that greedy answers are to be those of instil. ``share``: answers only so much of
    the prompts, being slow; what it takes for each answer counts. ``needs`` is the package without which it cannot run,
    ``home`` the environment that has it (see `benchmarks.environments`). ``settings`` names what it was set to, and
    ``counterpart`` ours that computes in the same numbers.
    """

    name: str
    module: str
    variant: str
    models: tuple[str, ...]
    needs: str
    exact: bool = True
    share: float = 1.0
    home: str = ""
    settings: str = ""
    counterpart: str = "instil"

    @property
    def there(self) -> bool:
        """Whether what it needs is installed."""
        return installed(self.needs, self.home)

    @property
    def ours(self) -> bool:
        """Whether it is instil."""
        return self.module == "ours"


SMOLLM2 = ("smollm2",)
CONTINUOUS = "float32, SDPA, pages of 16 tokens, 512 tokens a pass, shared beginnings"
VLLM = "one process, Intel's OpenMP, pages of 32 tokens, shared beginnings"


def llama_cpp(kind: str, slots: int) -> Answerer:
    """llama.cpp with a file of that type and so many slots."""
    name = f"llama.cpp {kind}, " + ("one at a time" if slots == 1 else f"{slots} slots")
    settings = "a thread for each core, continuous batching, its prompt cache"
    return Answerer(name, "llama", f"{kind}-{slots}", SMOLLM2, "xllamacpp", exact=kind == "F32", settings=settings)


ANSWERERS = (
    Answerer("instil", "ours", "", ("gpt2", "smollm2"), "instil"),
    Answerer("instil, one at a time", "ours", "alone", SMOLLM2, "instil", share=0.3),
    Answerer("instil int8, one at a time", "ours", "int8", SMOLLM2, "instil", exact=False, share=0.3),
    Answerer("instil bf16, one at a time", "ours", "bf16", SMOLLM2, "instil", exact=False, share=0.3),
    Answerer("instil int8", "ours", "int8-all", SMOLLM2, "instil", exact=False),
    Answerer("instil bf16", "ours", "bf16-all", SMOLLM2, "instil", exact=False),
    Answerer("the book's generate", "book", "plain", ("gpt2",), "llms_from_scratch", share=0.1),
    Answerer("transformers, batches of 22", "hf", "22", SMOLLM2, "transformers", settings="float32, SDPA"),
    Answerer("transformers, one at a time", "hf", "1", SMOLLM2, "transformers", share=0.2, settings="float32, SDPA"),
    *(
        Answerer(
            f"transformers, continuous, {side}", "hf_continuous", str(side), SMOLLM2, "transformers",
            settings=CONTINUOUS,
        )
        for side in (8, 22)
    ),
    Answerer("vLLM", "vllm_cpu", "fp32", SMOLLM2, "vllm", home="vllm", settings=f"float32, compiled, {VLLM}"),
    Answerer("vLLM, eager", "vllm_cpu", "fp32-eager", SMOLLM2, "vllm", home="vllm", settings=f"float32, {VLLM}"),
    *(
        Answerer(
            f"vLLM bf16{name}", "vllm_cpu", f"bf16{kind}", SMOLLM2, "vllm", exact=False, home="vllm",
            settings=settings, counterpart="instil bf16",
        )
        for name, kind, settings in (("", "", f"compiled, {VLLM}"), (", eager", "-eager", VLLM))
    ),
    *(llama_cpp("F32", slots) for slots in (1, 8, 16, 32)),
    *(llama_cpp("Q4", slots) for slots in (1, 8, 16, 32)),
)  # fmt: skip
