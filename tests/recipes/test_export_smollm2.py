"""SmolLM2 in llama.cpp: in float32 it answers held-out rows as we do, token for token, but for what rounding decides.

llama.cpp is asked without flash attention and with keys and values in float32 (`tests.llama_cpp`). Where it says
another token than we do, our own scores of the two must be nearer than rounding is exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

import instil
from instil.assistant.assistant import Assistant
from instil.data.encoding import encode_prompt, stop_id
from instil.data.sources import read_source
from instil.data.splits import split_examples
from instil.generate.prompts import generate
from instil.model.decoder import batch_of_ids
from instil.recipes.export.export import export
from instil.records import Example
from instil.settings.options import DataOptions
from tests.llama_cpp import LlamaCpp, llama_cpp

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(1800)]
ROWS, TOKENS = 24, 64
ROUNDING = 1e-4  # of the greatest score
TEMPLATES = ("alpaca", "chatml")


@pytest.fixture(scope="module")
def held_out() -> Sequence[Example]:
    return list(split_examples(read_source("starter").examples, DataOptions()).test)[:ROWS]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A file for each template."""
    folder = tmp_path_factory.mktemp("smollm2")
    return {name: export("smollm2-135m", "gguf", folder / f"{name}.gguf", template=name).path for name in TEMPLATES}


def said_here(assistant: Assistant, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    stops = assistant.tokenizer.stop_ids | {stop_id(assistant.template, assistant.tokenizer)}
    said = generate(assistant.decoder, prompts, max_new_tokens=TOKENS, stop_ids=stops)
    return [list(one.ids) for one in said]


def first_difference(ours: Sequence[int], theirs: Sequence[int]) -> int | None:
    """Where two answers part; None where they are the same."""
    if list(ours) == list(theirs):
        return None
    return next(
        (at for at, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs))
    )


def near_tie(assistant: Assistant, ids: Sequence[int], other: int) -> bool:
    """Whether our own score of another token is within rounding of our greatest."""
    with torch.inference_mode():
        hidden = assistant.decoder(batch_of_ids(torch.tensor([list(ids)])))
        scores = assistant.decoder.logits(hidden[-1:]).float()[0]
    return bool(scores.max() - scores[other] < ROUNDING * scores.abs().max())


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_to_held_out_rows(name: str, files: dict[str, Path], held_out: Sequence[Example]) -> None:
    assistant = instil.load("smollm2-135m", template=name)
    prompts = [encode_prompt(row, assistant.template, assistant.tokenizer) for row in held_out]
    ours = said_here(assistant, prompts)
    stops = assistant.tokenizer.stop_ids
    assert len(prompts) >= 20
    with llama_cpp(files[name], context=1024) as theirs:
        for row, prompt, said in zip(held_out, prompts, ours, strict=True):
            found = [one for one in theirs.greedy(prompt, TOKENS)["tokens"] if one not in stops]
            at = first_difference(said, found)
            if at is not None:
                assert at < min(len(said), len(found))
                assert near_tie(assistant, [*prompt, *said[:at]], found[at]), row.instruction
            asked = theirs.rendered(("user", str(row.turns[-2].as_json()["content"])))
            # Alpaca's form has a heading for what an instruction is about, and a chat message has not.
            same = theirs.ids(asked, special=True, parse=True) == prompt
            assert same == (name == "chatml" or not row.input)


def test_what_else_is_asked_changes_answers(files: dict[str, Path], held_out: Sequence[Example]) -> None:
    """A penalty on repeated tokens, and a BOS that training had not: neither is a fault of the file."""
    assistant = instil.load("smollm2-135m", template="alpaca")
    prompts = [encode_prompt(row, assistant.template, assistant.tokenizer) for row in held_out[: ROWS // 2]]
    ours = said_here(assistant, prompts)

    def alike(theirs: LlamaCpp, asked: Sequence[Sequence[int]], **how: object) -> int:
        stops = assistant.tokenizer.stop_ids
        found = [theirs.greedy(ids, TOKENS, **how)["tokens"] for ids in asked]
        said = [[one for one in tokens if one not in stops] for tokens in found]
        return sum(a == b for a, b in zip(ours, said, strict=True))

    with llama_cpp(files["alpaca"], context=1024) as theirs:
        penalised = {"samplers": ["penalties", "top_k"], "repeat_penalty": 1.1}
        assert alike(theirs, prompts, **penalised) < len(prompts) // 2
        first = assistant.tokenizer.bos_id
        assert alike(theirs, [[1 if first is None else first, *ids] for ids in prompts]) < len(prompts) // 2
