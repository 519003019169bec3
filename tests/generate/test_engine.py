"""Cached = uncached, token for token; a row's answer does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.templates import template_named
from instil.data.tokenizers import BytePair
from instil.errors import DataError
from instil.generate.answer import answer
from instil.generate.engine import generate
from instil.generate.options import GenerateOptions
from instil.generate.sampling import sampler, top_k
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.spec import DecoderSpec
from instil.records import Batch, Example, Grid
from tests.train.test_training import SPECS, decoder

PROMPTS = st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=9), min_size=1, max_size=5)


@torch.inference_mode()
def naive(model: Decoder, prompt: list[int], limit: int, stop: frozenset[int]) -> tuple[list[int], str]:
    """The chapter's way: the whole text again for every token, one row, no cache."""
    ids, new = list(prompt), []
    while True:
        logits = model.logits(model(batch_of_ids(torch.tensor([ids]))))[-1]
        token = int(logits.argmax())
        if token in stop:
            return new, "stop"
        new.append(token)
        ids.append(token)
        if len(new) == limit or len(ids) >= model.spec.context:
            return new, "length"


@settings(max_examples=40, deadline=None)
@given(PROMPTS, st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.frozensets(st.integers(0, 16), max_size=3))
@pytest.mark.parametrize("family", SPECS)
def test_cached_equals_uncached(
    family: str, prompts: list[list[int]], limit: int, batch_size: int, seed: int, stop: frozenset[int]
) -> None:
    model = decoder(family, seed)
    found = generate(model, prompts, max_new_tokens=limit, stop_ids=stop, batch_size=batch_size)
    assert [(list(one.ids), one.finish) for one in found] == [naive(model, p, limit, stop) for p in prompts]


@given(st.integers(1, 10))
@pytest.mark.parametrize("family", SPECS)
def test_the_cache_is_invisible(family: str, cut: int) -> None:
    """E1: hidden states in two pieces through a cache, against one pass."""
    model = decoder(family)
    ids = torch.randint(0, 17, (2, 11), generator=torch.Generator().manual_seed(cut))
    cache = model.new_cache(rows=2, length=11)
    pieces = []
    for first, last in ((0, cut), (cut, 11)):
        part = ids[:, first:last]
        batch = batch_of_ids(part)
        shifted = Batch.untargeted(batch.ids_N, batch.positions_N + first, batch.rows_N, Grid(2, last - first))
        pieces.append(model(shifted, cache).view(2, last - first, -1))
    whole = model(batch_of_ids(ids)).view(2, 11, -1)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-11, atol=1e-12)
    assert cache.lengths_B.tolist() == [11, 11]


def test_sampling_does_not_depend_on_the_neighbours() -> None:
    model = decoder()
    prompts = [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10]]
    options = GenerateOptions(temperature=1.5, top_k=5, seed=3)

    def run(batch_size: int, seed: int) -> list[tuple[int, ...]]:
        pick = sampler(options.model_copy(update={"seed": seed}))
        found = generate(model, prompts, max_new_tokens=8, stop_ids=frozenset({0}), pick=pick, batch_size=batch_size)
        return [one.ids for one in found]

    assert run(1, 3) == run(4, 3) == run(2, 3)
    assert run(4, 3) != run(4, 4)


def test_top_k_keeps_the_largest() -> None:
    logits = torch.tensor([[0.0, 5.0, 3.0, 4.0]])
    drawn = set()
    pick = sampler(GenerateOptions(temperature=5.0, top_k=2))
    for _ in range(60):
        drawn.add(int(pick(logits, [0])))
    assert drawn == {1, 3}
    assert int(sampler(GenerateOptions())(logits, [0])) == 1
    assert torch.equal(top_k(logits, 0), logits)
    assert torch.equal(top_k(logits, 9), logits)


def test_prompts_that_cannot_be_answered_are_refused_with_numbers() -> None:
    with pytest.raises(DataError, match="prompt 1 has 16 tokens; the model's context is 16"):
        generate(decoder(), [[1], [1] * 16], max_new_tokens=1, stop_ids=frozenset())
    with pytest.raises(DataError, match="prompt 0 is empty"):
        generate(decoder(), [[]], max_new_tokens=1, stop_ids=frozenset())


class Parrot(Decoder):
    """Says what it was told to, whatever the prompt: a decoder for tests of what is around it."""

    def __init__(self, tokenizer: BytePair, text: str) -> None:
        super().__init__(
            DecoderSpec(
                family="llama", vocab_size=50257, width=4, layers=1, heads=1, kv_heads=1, head_width=4, mlp_width=4,
                context=200, norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope",
            )
        )  # fmt: skip
        self.script = [*tokenizer.encode(text), tokenizer.eos_id]
        self.spoken = -1

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        self.spoken += 1
        wanted = torch.full((hidden_SD.shape[0], 50257), -1.0)
        wanted[:, self.script[self.spoken]] = 1.0
        return wanted


def test_the_response_is_cut_by_position() -> None:
    """An answer that holds the response header, or repeats the prompt, comes back whole."""
    tokenizer, template = BytePair(), template_named("alpaca")
    text = "Write '### Response:' and then ### Response: again; Below is an instruction."
    said = answer(Parrot(tokenizer, text), tokenizer, template, [Example("Go.")], GenerateOptions())
    assert said[0].text == text
    assert said[0].finish == "stop"
    assert 50256 not in said[0].ids


@pytest.mark.parametrize("stop", [13, 50256])
def test_every_end_of_the_tokenizer_ends_an_answer(stop: int) -> None:
    tokenizer, template = BytePair(), template_named("alpaca")
    tokenizer.stop_ids = frozenset({13, 50256})  # 13 is "."
    text = "Yes. No" if stop == 13 else "Yes, no"
    said = answer(Parrot(tokenizer, text), tokenizer, template, [Example("Go.")], GenerateOptions())
    assert (said[0].text, said[0].finish) == (("Yes", "stop") if stop == 13 else ("Yes, no", "stop"))


def test_a_prompt_without_room_is_an_empty_answer_that_is_counted() -> None:
    tokenizer, template = BytePair(), template_named("alpaca")
    rows = [Example("word " * 300, row=0), Example("Go.", row=1)]
    said = answer(Parrot(tokenizer, "Hi."), tokenizer, template, rows, GenerateOptions())
    assert [(one.text, one.finish, one.row) for one in said] == [("", "no_room", 0), ("Hi.", "stop", 1)]
