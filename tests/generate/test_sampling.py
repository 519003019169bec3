"""Sampling: each row has a stream of its own, and the temperature is what it says."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.templates import template_named
from instil.errors import SettingsError
from instil.generate.answer import answer
from instil.generate.prompts import generate
from instil.generate.sampling import Sampler, Sampling, drawn, penalised, probabilities
from instil.model.decoder import Decoder
from instil.model.spec import DecoderSpec
from instil.records import Example
from instil.settings.options import GenerateOptions
from tests.conftest import gpt2
from tests.train.test_training import decoder

WARM = GenerateOptions(temperature=1.5, seed=3)


def sampled(prompts: list[list[int]], options: GenerateOptions = WARM) -> list[tuple[int, ...]]:
    found = generate(
        decoder(), prompts, max_new_tokens=8, stop_ids=frozenset(), sampling=lambda row: Sampling.of(options, row)
    )
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
    tokenizer, template = gpt2(), template_named("alpaca")
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
    shares = probabilities(torch.tensor([[0.0, math.log(3.0)]]), Sampling(temperature=temperature))[0]
    assert shares.tolist() == pytest.approx([share, 1 - share])
    stream, found = Sampler(3), []
    for _ in range(4000):
        found += drawn(shares[None], [stream.point])
        assert drawn(shares[None], [stream.point]) == found[-1:]  # the point stays until it is taken
        stream.take()
    assert found.count(0) / len(found) == pytest.approx(share, abs=0.025)  # over three standard errors


@pytest.mark.parametrize("temperature", [1e-3, 1e-300])
def test_a_temperature_near_zero_is_greedy(temperature: float) -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(1)) * 20
    shares = probabilities(logits, Sampling(temperature=temperature))
    assert drawn(shares, [Sampler(row).point for row in range(50)]) == logits.argmax(-1).tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-50, 50), min_size=4, max_size=9, unique=True),
    st.floats(0.1, 3),
    st.integers(0, 5),
    st.floats(0.05, 1),
    st.floats(0, 0.9),
    st.floats(0.5, 2),
    st.lists(st.integers(0, 3), max_size=4),
)
def test_it_is_the_fields_sampling(
    scores: list[int], temperature: float, k: int, p: float, least: float, penalty: float, said: list[int]
) -> None:
    """Against the processors of transformers, in its order."""
    from transformers.generation import logits_process as theirs

    logits = torch.tensor([scores], dtype=torch.float64) / 10
    ids = torch.tensor([said], dtype=torch.long)
    wanted = theirs.RepetitionPenaltyLogitsProcessor(penalty)(ids, logits) if said else logits
    for process in (
        theirs.TemperatureLogitsWarper(temperature),
        *([theirs.TopKLogitsWarper(k)] if k else []),
        theirs.TopPLogitsWarper(p),
        theirs.MinPLogitsWarper(least),
    ):
        wanted = process(ids, wanted)
    sampling = Sampling(temperature, k, p, least, penalty)
    found = probabilities(penalised(logits[0].clone(), said, penalty)[None], sampling)
    if not torch.equal(
        found > 0, wanted.softmax(-1) > 0
    ):  # a sum may reach p in one order of adding and not in another
        near = probabilities(penalised(logits[0].clone(), said, penalty)[None], replace(sampling, top_p=1.0, min_p=0.0))
        sums = near.sort(-1).values.cumsum(-1)
        assert ((sums - (1 - p)).abs().min() < 1e-9) or ((near / near.max() - least).abs().min() < 1e-9)
        return
    torch.testing.assert_close(found, wanted.softmax(-1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -1.0), ("temperature", math.nan), ("temperature", math.inf), ("top_k", -1), ("top_p", 0.0),
        ("top_p", 1.5), ("min_p", -0.1), ("repetition_penalty", 0.0), ("repetition_penalty", 1e9),
    ],
)  # fmt: skip
def test_absurd_values_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name} is .*; wanted"):
        Sampling(**{name: value})  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match=f"generate.{name}="):
        GenerateOptions().changed(**{name: value})


def test_a_penalty_ends_repetition() -> None:
    plain, changed = (
        generate(
            decoder(seed=1),
            [[1, 2, 3]],
            max_new_tokens=12,
            stop_ids=frozenset(),
            sampling=lambda row, value=penalty: Sampling(repetition_penalty=value),
        )[0].ids
        for penalty in (1.0, 100.0)
    )
    assert len(set(changed)) > len(set(plain))


def test_changed_options_are_checked_as_if_given_anew() -> None:
    options = GenerateOptions(seed=5)
    assert options.changed(temperature=0.5) == GenerateOptions(seed=5, temperature=0.5)
    with pytest.raises(SettingsError, match="unknown setting 'max_new_token'; did you mean max_new_tokens"):
        options.changed(max_new_token=3)
    for wrong in ({"temperature": float("nan")}, {"max_new_tokens": 0}, {"top_k": "many"}, {"seed": 2**31}):
        with pytest.raises(SettingsError, match=f"generate.{next(iter(wrong))}="):
            options.changed(**wrong)
