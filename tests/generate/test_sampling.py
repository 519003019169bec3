"""Sampling: each row has a stream of its own, and the temperature is what it says."""

from __future__ import annotations

import math

import pytest
import torch

from instil.data.templates import template_named
from instil.data.tokenizers import BytePair
from instil.errors import SettingsError
from instil.generate.answer import answer
from instil.generate.engine import generate
from instil.generate.options import GenerateOptions
from instil.generate.sampling import sampler
from instil.model.decoder import Decoder
from instil.model.spec import DecoderSpec
from instil.records import Example
from tests.train.test_training import decoder

WARM = GenerateOptions(temperature=1.5, seed=3)


def sampled(prompts: list[list[int]], options: GenerateOptions = WARM) -> list[tuple[int, ...]]:
    found = generate(decoder(), prompts, max_new_tokens=8, stop_ids=frozenset(), pick=sampler(options))
    return [one.ids for one in found]


def test_equal_prompts_get_different_answers() -> None:
    said = sampled([[1, 2, 3]] * 4)
    assert len(set(said)) == 4
    assert said == sampled([[1, 2, 3]] * 4)


def test_an_answer_does_not_depend_on_the_prompts_beside_it() -> None:
    alone = sampled([[1, 2, 3]])[0]
    assert sampled([[1, 2, 3], [4], [5] * 7])[0] == alone
    assert sampled([[1, 2, 3], [1, 2, 3], [6, 6], [7] * 5])[0] == alone
    last = sampled([[4], [5] * 7, [1, 2, 3]])[2]
    assert sampled([[9] * 6, [2], [1, 2, 3]])[2] == last


def test_a_prompt_without_room_does_not_change_the_answers_after_it() -> None:
    tokenizer, template = BytePair(), template_named("alpaca")
    torch.manual_seed(0)
    model = Decoder(
        DecoderSpec(
            family="llama", vocab_size=50257, width=4, layers=1, heads=1, kv_heads=1, head_width=4, mlp_width=4,
            context=200, norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope",
        )
    )  # fmt: skip
    options = GenerateOptions(temperature=1.0, max_new_tokens=4)
    said = [
        answer(model, tokenizer, template, [Example(first), Example("Go.")], options)
        for first in ("word " * 300, "Come.")
    ]
    assert [one[0].finish for one in said] == ["no_room", "length"]
    assert said[0][1].ids == said[1][1].ids


@pytest.mark.parametrize(("temperature", "share"), [(1.0, 1 / 4), (0.5, 1 / 10), (2.0, 1 / (1 + math.sqrt(3)))])
def test_the_temperature_is_what_it_says(temperature: float, share: float) -> None:
    """Two tokens, one three times as likely: at temperature t the odds are 3^(1/t)."""
    rows = 4000
    logits = torch.tensor([0.0, math.log(3.0)]).expand(rows, 2)
    drawn = sampler(GenerateOptions(temperature=temperature))(logits, range(rows))
    assert float((drawn == 0).double().mean()) == pytest.approx(share, abs=0.025)  # over three standard errors


@pytest.mark.parametrize("temperature", [1e-3, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1)) * 20
    drawn = sampler(GenerateOptions(temperature=temperature))(logits, range(50))
    assert torch.equal(drawn, logits.argmax(-1))


def test_changed_options_are_checked_as_if_given_anew() -> None:
    options = GenerateOptions(seed=5)
    assert options.changed(temperature=0.5) == GenerateOptions(seed=5, temperature=0.5)
    with pytest.raises(SettingsError, match="unknown setting 'max_new_token'; did you mean max_new_tokens"):
        options.changed(max_new_token=3)
    for wrong in ({"temperature": float("nan")}, {"max_new_tokens": 0}, {"top_k": "many"}, {"seed": 2**31}):
        with pytest.raises(SettingsError, match=f"generate.{next(iter(wrong))}="):
            options.changed(**wrong)
