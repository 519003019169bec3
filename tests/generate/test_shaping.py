"""Bias, penalties and constraints change a row's scores, whatever else is being answered; and what is told of them."""

from __future__ import annotations

import functools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from instil.errors import DataError, SettingsError
from instil.generate.engine import Engine
from instil.generate.request import Generated, Request, TokenLogprobs
from instil.generate.sampling import Sampling
from instil.model.decoder import Decoder, batch_of_ids
from tests.train.test_training import decoder

SIZE = 17
PROMPTS = st.lists(st.lists(st.integers(0, SIZE - 1), min_size=1, max_size=6), min_size=1, max_size=4)


class Alternating:
    """Even ids and odd ones take turns; 1 ends the answer where an odd one may come."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self, size: int) -> Tensor:
        return torch.arange(size) % 2 == len(self.taken) % 2

    def take(self, token: int) -> None:
        self.taken.append(token)


@torch.inference_mode()
def scores(model: Decoder, ids: list[int]) -> Tensor:
    return model.logits(model(batch_of_ids(torch.tensor([ids]))))[-1]


def naive(model: Decoder, prompt: list[int], limit: int, sampling: Sampling, *, alternate: bool = False) -> list[int]:
    """By the definitions, one token after another, everything computed again."""
    said: list[int] = []
    while len(said) < limit and len(prompt) + len(said) < model.spec.context:
        found = scores(model, prompt + said).tolist()
        for index, bias in sampling.logit_bias:
            found[index] += bias
        for index in set(prompt + said):
            factor = sampling.repetition_penalty
            found[index] = found[index] / factor if found[index] > 0 else found[index] * factor
        for index, count in Counter(said).items():
            found[index] -= sampling.frequency_penalty * count + sampling.presence_penalty
        if alternate:
            found = [one if at % 2 == len(said) % 2 else float("-inf") for at, one in enumerate(found)]
        best = max(range(len(found)), key=found.__getitem__)
        if alternate and best == 1:
            break
        said.append(best)
    return said


def answers(model: Decoder, requests: list[Request]) -> list[list[int]]:
    engine = Engine(model, rows=3)
    tickets = [engine.submit(request) for request in requests]
    done = dict(engine.run())
    return [list(done[ticket].ids) for ticket in tickets]


@settings(max_examples=40, deadline=None)
@given(
    PROMPTS,
    st.integers(0, 3),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.sampled_from([1.0, 1.3]),
    st.dictionaries(st.integers(0, SIZE - 1), st.floats(-9, 9), max_size=3),
)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_bias_and_penalties(
    family: str,
    prompts: list[list[int]],
    seed: int,
    frequency: float,
    presence: float,
    repetition: float,
    bias: dict[int, float],
) -> None:
    model = decoder(family, seed)
    sampling = Sampling(
        frequency_penalty=frequency,
        presence_penalty=presence,
        repetition_penalty=repetition,
        logit_bias=tuple(bias.items()),
    )
    asked = [Request(prompt, 6, sampling=sampling) for prompt in prompts]
    found = answers(model, [*asked, Request([3, 1], 5)])  # a neighbour without any of it
    assert found == [*(naive(model, prompt, 6, sampling) for prompt in prompts), naive(model, [3, 1], 5, Sampling())]


@settings(max_examples=30, deadline=None)
@given(PROMPTS, st.integers(0, 3))
def test_constraints_hold_and_leave_the_neighbours_alone(prompts: list[list[int]], seed: int) -> None:
    model = decoder("llama", seed)
    free = [Request(prompt, 6) for prompt in prompts]
    held = [Request(prompt, 6, frozenset([1]), constraint=Alternating()) for prompt in prompts]
    warm = Request(prompts[0], 6, frozenset([1]), Sampling(temperature=1.0, seed=seed), constraint=Alternating())
    found = answers(model, [*free, *held, warm])
    count = len(prompts)
    assert found[:count] == [naive(model, prompt, 6, Sampling()) for prompt in prompts]
    assert found[count:-1] == [naive(model, prompt, 6, Sampling(), alternate=True) for prompt in prompts]
    assert all(token % 2 == at % 2 for at, token in enumerate(found[-1]))


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.8, seed=3, frequency_penalty=1.0)])
def test_logprobs_are_the_models_own(sampling: Sampling) -> None:
    model, prompt = decoder("llama", 1), [4, 2, 9]
    told: list[TokenLogprobs] = []
    tokens: list[int] = []

    def on_token(token: int) -> None:
        assert told[-1].token == token
        tokens.append(token)

    request = Request(prompt, 6, sampling=sampling, logprobs=3, on_logprobs=told.append, on_token=on_token)
    quiet = Request([1], 6, on_logprobs=lambda one: pytest.fail("was not asked for"))
    found, _ = answers(model, [request, quiet])
    assert found == tokens == [one.token for one in told]
    for at, one in enumerate(told):
        wanted = scores(model, prompt + found[:at]).log_softmax(-1)
        assert one.logprob == pytest.approx(float(wanted[one.token]), abs=1e-5)
        best = wanted.topk(3)
        assert [index for index, _ in one.top] == best.indices.tolist()
        assert [value for _, value in one.top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_guessed_tokens_are_told_of_too() -> None:
    model = decoder("llama", 1)
    told: list[TokenLogprobs] = []
    engine = Engine(model)
    done: list[Generated] = []
    request = Request([5, 6, 5, 6, 5, 6], 9, logprobs=0, on_logprobs=told.append, on_done=done.append)
    engine.submit(request)
    for _ in engine.run():
        pass
    assert [one.token for one in told] == list(done[0].ids)
    assert all(one.top == () for one in told)


@pytest.mark.parametrize(
    "make",
    [
        functools.partial(Sampling, frequency_penalty=float("nan")),
        functools.partial(Sampling, presence_penalty=101.0),
        functools.partial(Sampling, logit_bias=((1, 1000.0),)),
    ],
)
def test_absurd_numbers_are_refused(make: functools.partial[Sampling]) -> None:
    with pytest.raises(SettingsError, match="wanted"):
        make()


def test_a_bias_of_an_unknown_id_is_refused() -> None:
    with pytest.raises(DataError, match="logit_bias"):
        Engine(decoder("llama", 1)).submit(Request([1], 3, sampling=Sampling(logit_bias=((SIZE + 99, 1.0),))))
