"""Passes in memory that stays give the tokens of passes as they come, whatever comes and goes between them."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.errors import SettingsError
from instil.generate.engine import Engine
from instil.generate.replay import Replay, replays
from instil.generate.request import Request
from instil.generate.sampling import Sampling
from instil.model.cache import Part
from instil.model.decoder import Decoder
from tests.gpu.pretended import PretendedGpu, to_gpu
from tests.train.test_training import SPECS, decoder


def answers(model: Decoder, prompts: list[list[int]], limits: list[int], seed: int, *, replay: bool) -> list[list[int]]:
    """Some are greedy, some drawn; they come at different times."""
    engine = Engine(model, rows=3, memory=1 << 26, replay=replay, speculate=seed % 2 == 0)
    done: dict[int, list[int]] = {}
    drawn = random.Random(seed)
    tickets = []
    for prompt, limit in zip(prompts, limits, strict=True):
        sampling = Sampling(temperature=drawn.choice([0.0, 1.0]), seed=len(tickets))
        tickets.append(engine.submit(Request(prompt, limit, sampling=sampling)))
        for _ in range(drawn.randrange(4)):
            done |= {ticket: list(one.ids) for ticket, one in engine.step()}
    done |= {ticket: list(one.ids) for ticket, one in engine.run()}
    return [done[ticket] for ticket in tickets]


@settings(max_examples=12, deadline=None)
@given(st.lists(st.lists(st.integers(0, 16), min_size=1, max_size=9), min_size=1, max_size=6), st.integers(0, 99))
@pytest.mark.parametrize("family", SPECS)
def test_tokens_are_those_of_the_ordinary_passes(family: str, prompts: list[list[int]], seed: int) -> None:
    limits = [1 + (seed + at) % 9 for at in range(len(prompts))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instil.generate.replay.WORTH_IT", 0)
        found = answers(decoder(family), prompts, limits, seed, replay=True)
    assert found == answers(decoder(family), prompts, limits, seed, replay=False)


def test_slots_that_grow_and_caches_that_move(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows outgrow their slots, and other rows come, for which the cache is made anew."""
    monkeypatch.setattr("instil.generate.slots.SMALLEST", 4)
    monkeypatch.setattr("instil.generate.replay.WORTH_IT", 0)
    prompts, limits = [[1, 2], [3, 4, 5, 6, 7], [8], [9, 1, 2], [5]], [13, 9, 12, 11, 14]
    for seed in range(6):
        found = answers(decoder(), prompts, limits, seed, replay=True)
        assert found == answers(decoder(), prompts, limits, seed, replay=False)


def replayed(engine: Engine, counted: list[int]) -> Engine:
    """Counts the passes that are replayed."""
    replay = engine._replay
    assert replay is not None
    plain = replay.logits

    def logits(part: Part, ids: list[int]) -> torch.Tensor:
        counted.append(len(ids))
        return plain(part, ids)

    replay.logits = logits  # type: ignore[method-assign, assignment]
    return engine


def test_most_passes_of_answers_are_replayed_and_share_what_was_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instil.generate.replay.WORTH_IT", 8)
    counted: list[int] = []
    engine = replayed(Engine(decoder("gpt2"), rows=4, memory=1 << 26, replay=True), counted)
    for _ in range(3):
        for prompt in ([1, 2, 3], [4, 5], [6]):
            engine.submit(Request(prompt, 12, sampling=Sampling(temperature=1.0)))
        list(engine.run())
    assert len(counted) == 3 * 11 and engine.passes == 3 * 12  # all but the one with the prompts
    assert engine._replay is not None and len(engine._replay._passes) == 1
    counted.clear()
    engine.submit(Request([1, 2, 3], 5, sampling=Sampling(temperature=1.0)))  # too few to be recorded for
    list(engine.run())
    assert not counted


def test_what_was_recorded_is_forgotten_with_the_weights() -> None:
    model = decoder("gpt2")
    replay = Replay(model)
    cache = model.new_cache(8)
    cache.add()
    with torch.inference_mode():
        first = replay.logits(Part(cache, (0,), (1,)), [3]).clone()
        assert cache.lengths == [1]
        replay.look()
        assert len(replay._passes) == 1
        model.norm.weight = torch.nn.Parameter(2 * model.norm.weight.detach())  # type: ignore[assignment]
        replay.look()
        assert not replay._passes
        cache.lengths[0] = 0
        assert not torch.equal(replay.logits(Part(cache, (0,), (1,)), [3]), first)


def test_a_pass_is_made_anew_where_the_cache_has_moved() -> None:
    """What was recorded would go on writing to where it was."""
    model = decoder("gpt2")
    replay, cache = Replay(model), model.new_cache(8)
    cache.add()
    with torch.inference_mode():
        replay.logits(Part(cache, (0,), (1,)), [3])
        (first,) = replay._passes.values()
        replay.logits(Part(cache, (0,), (1,)), [4])
        assert list(replay._passes.values()) == [first]
        cache.reserve(5)
        assert not first.is_of(cache)
        replay.logits(Part(cache, (0,), (1,)), [5])
        (second,) = replay._passes.values()
    assert second is not first and second.is_of(cache) and cache.lengths == [3]


def test_who_replays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INSTIL_GRAPHS", raising=False)
    with PretendedGpu():
        there = to_gpu(decoder())
        assert replays(there) and not replays(decoder())
        assert Engine(there)._replay is not None and Engine(decoder())._replay is None
        there.norm.weight.to_local = lambda: None  # type: ignore[union-attr, assignment]  # as parts of weights have
        assert not replays(there)
        monkeypatch.setenv("INSTIL_GRAPHS", "no")
        assert not replays(to_gpu(decoder()))
    monkeypatch.setenv("INSTIL_GRAPHS", "sometimes")
    with pytest.raises(SettingsError, match="wanted yes or no"):
        replays(decoder())
