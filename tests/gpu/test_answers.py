"""Answers on a GPU that is pretended: the same tokens, and the host waits for each pass once."""

from __future__ import annotations

import pytest
import torch

from instil.data.collate import collate_shared
from instil.errors import SettingsError
from instil.evaluate.likelihood import likelihoods, looked_at_together
from instil.generate.engine import Engine
from instil.generate.reading import Reading
from instil.generate.request import Request, TokenLogprobs
from instil.generate.sampling import Sampling
from instil.machine import available_memory
from instil.model.decoder import Decoder
from instil.model.rounded.weights import Weights, round_weights
from tests.gpu.pretended import GPU, PretendedGpu, from_gpu, to_gpu
from tests.train.test_training import SPECS, decoder, some_rows

PROMPTS = [[1, 2, 3], [4, 5], [6, 7, 8, 9, 1], [2], [3, 3, 3]]
SETTINGS = {
    "greedy": Sampling(),
    "sampled": Sampling(temperature=1.0, top_k=9, top_p=0.9, min_p=0.01, seed=5),
    "penalised": Sampling(repetition_penalty=1.3, frequency_penalty=0.2, logit_bias=((2, 0.5),)),
}


def answers(
    model: Decoder, sampling: Sampling, *, replay: bool, rows: int = 3, limit: int = 8, logprobs: int | None = None
) -> tuple[list[tuple[int, ...]], Engine, list[TokenLogprobs]]:
    engine = Engine(model, rows=rows, memory=1 << 24, replay=replay)
    told: list[TokenLogprobs] = []
    tickets = [
        engine.submit(Request(one, limit, sampling=sampling, logprobs=logprobs, on_logprobs=told.append))
        for one in PROMPTS
    ]
    done = dict(engine.run())
    return [done[ticket].ids for ticket in tickets], engine, told


@pytest.mark.parametrize(
    ("family", "how", "replay"),
    [*((family, "greedy", family in ("gemma2", "lfm2")) for family in SPECS)]
    + [("llama", how, replay) for how in ("sampled", "penalised") for replay in (False, True)],
)
def test_answers_are_the_same_and_each_pass_is_waited_for_once(family: str, how: str, replay: bool) -> None:
    with PretendedGpu() as gpu:
        found, engine, _ = answers(to_gpu(decoder(family)), SETTINGS[how], replay=replay)
    wanted, _, _ = answers(decoder(family), SETTINGS[how], replay=False)
    assert found == wanted
    assert len(gpu.waits) == engine.passes + engine.recomputed, gpu.waits


def test_a_prefix_that_is_remembered_and_what_is_thought_of_tokens() -> None:
    with PretendedGpu() as gpu:
        model = to_gpu(decoder())
        found, engine, told = answers(model, Sampling(), replay=False, logprobs=3)
        with gpu.counting() as waits:
            engine.warm([1, 2, 3, 4])
            engine.submit(Request([1, 2, 3, 4, 5], 1, keep=True))
            list(engine.run())
        assert len(waits) == 1, waits
        with gpu.counting() as waits:
            reading = Reading(model, [1, 2, 3, 4], top=2, ends=(7, 9))
            assert reading.step()
        assert len(waits) == 2, waits  # for the likeliest end, and for all tokens
    wanted, _, also = answers(decoder(), Sampling(), replay=False, logprobs=3)
    here = Reading(decoder(), [1, 2, 3, 4], top=2, ends=(7, 9))
    here.step()
    assert found == wanted
    for one, other in zip([*told, *reading.found], [*also, *here.found], strict=True):
        assert (one.token, [token for token, _ in one.top]) == (other.token, [token for token, _ in other.top])
        assert one.logprob == pytest.approx(other.logprob, rel=1e-5)


def test_likelihoods_are_waited_for_once_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instil.data.together.TOKENS", 0)
    monkeypatch.setattr("instil.data.together.TIMES", 0)
    with PretendedGpu() as gpu:
        found = likelihoods(to_gpu(decoder()), some_rows(), 16)
    wanted = likelihoods(decoder(), some_rows(), 16)
    assert [one.score for one in found] == pytest.approx([one.score for one in wanted], rel=1e-9)
    assert len(gpu.waits) == len(looked_at_together(some_rows(), 16)) == 2, gpu.waits


def test_the_memory_is_the_gpus() -> None:
    with PretendedGpu():
        assert available_memory(GPU) == 60 << 30
        engine = Engine(to_gpu(decoder()), replay=False)
        assert engine.memory == (60 << 30) // 3


@pytest.mark.parametrize("weights", ["int8", "bf16"])
def test_rounded_weights_for_the_cpu_are_refused(weights: Weights) -> None:
    with PretendedGpu(), pytest.raises(SettingsError, match=f"{weights} weights are for the CPU"):
        round_weights(to_gpu(decoder()), weights)


def test_a_batch_on_the_gpu_knows_what_it_counts() -> None:
    batch = collate_shared(some_rows())
    with PretendedGpu() as gpu:
        there = batch.to(GPU)
        assert there.to(GPU) is there
        assert (there.trained_tokens, there.real_tokens) == (batch.trained_tokens, batch.real_tokens)
        for ours, wanted in zip(there.states(), batch.states(), strict=True):
            assert torch.equal(from_gpu(ours), wanted)
        assert len(there.tensors()) == 8
    assert not gpu.waits
