"""Cached = uncached, token for token; a row's answer does not depend on its neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.batches import Batch
from instil.data.templates import template_named
from instil.data.tokenizers import FastTokenizer
from instil.errors import DataError, InstilError, SettingsError
from instil.generate.answer import answer
from instil.generate.engine import Engine
from instil.generate.prefixes import PrefixCache
from instil.generate.prompts import generate
from instil.generate.request import Generated, Request
from instil.generate.sampling import Sampling, probabilities
from instil.generate.speculation import PromptLookup
from instil.layouts import Tree
from instil.model.cache import Part, position_bytes
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.spec import DecoderSpec
from instil.records import Example
from instil.settings.options import GenerateOptions
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


def whole_and_pieces(model: Decoder, ids: list[int], cuts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states in one pass, and through a cache in pieces."""
    cache = model.new_cache(len(ids))
    cache.add()
    pieces = []
    for first, last in zip([0, *cuts], [*cuts, len(ids)], strict=True):
        part = torch.tensor(ids[first:last])
        batch = Batch.untargeted(part, torch.arange(first, last), torch.zeros(len(part)), Tree.of([len(part)]))
        pieces.append(model(batch, [Part(cache, (0,), (len(part),))]))
    assert cache.lengths == [len(ids)]
    return model(batch_of_ids(torch.tensor([ids]))), torch.cat(pieces)


@torch.inference_mode()
def test_drawn_tokens_are_by_each_rows_own_numbers() -> None:
    """One number a token, in order; where it stands among all of them, as wide as they are likely."""
    model, prompts, sampling = decoder(), [[1, 2, 3], [4], [5, 6]], Sampling(temperature=1.0, top_k=9)
    found = generate(
        model, prompts, max_new_tokens=8, stop_ids=frozenset(), sampling=lambda row: replace(sampling, seed=row)
    )
    for row, prompt in enumerate(prompts):
        ids, own = list(prompt), torch.Generator().manual_seed(row)
        for _ in range(8):
            logits = model.logits(model(batch_of_ids(torch.tensor([ids]))))[-1:]
            sums = probabilities(logits, sampling)[0].cumsum(0)
            ids.append(int((sums <= torch.rand((), generator=own, dtype=torch.float64) * sums[-1]).sum()))
        assert list(found[row].ids) == ids[len(prompt) :]


@given(st.lists(st.integers(0, 16), min_size=2, max_size=15), st.data())
@pytest.mark.parametrize("family", SPECS)
def test_the_cache_is_invisible(family: str, ids: list[int], data: st.DataObject) -> None:
    """E1: hidden states in pieces through a cache, against one pass."""
    cuts = sorted(data.draw(st.sets(st.integers(1, len(ids) - 1), max_size=4)))
    whole, pieces = whole_and_pieces(decoder(family), ids, cuts)
    torch.testing.assert_close(pieces, whole, rtol=1e-11, atol=1e-12)


@settings(max_examples=30, deadline=None)
@given(PROMPTS, st.integers(1, 9), st.integers(1, 3), st.integers(0, 3), st.data())
@pytest.mark.parametrize("family", SPECS)
def test_rows_that_come_and_go_do_not_matter(
    family: str, prompts: list[list[int]], limit: int, rows: int, seed: int, data: st.DataObject
) -> None:
    """E2: requests handed in at any time, some cancelled, with prompts in pieces and slots that are outgrown."""
    model = decoder(family, seed)
    stop = frozenset({3})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instil.generate.engine.PROMPT_TOKENS", data.draw(st.integers(1, 12)))
        patch.setattr("instil.generate.slots.SMALLEST", 2)
        engine = Engine(model, rows=rows, memory=1 << 30, speculate=data.draw(st.booleans()))
        found, tickets, cancelled = {}, {}, set()
        for prompt in prompts:
            request = Request(prompt, limit, stop, keep=data.draw(st.booleans()))
            tickets[engine.submit(request)] = prompt
            for _ in range(data.draw(st.integers(0, 3))):
                found.update(engine.step())
            if data.draw(st.integers(0, 5)) == 0:
                cancelled.add(ticket := data.draw(st.sampled_from(sorted(tickets))))
                engine.cancel(ticket)
        found.update(engine.run())
    assert set(found) == set(tickets)
    for ticket, prompt in tickets.items():
        ids, finish = naive(model, prompt, limit, stop)
        if found[ticket].finish == "cancelled":
            assert ticket in cancelled
            assert list(found[ticket].ids) == ids[: len(found[ticket].ids)]
        else:
            assert (list(found[ticket].ids), found[ticket].finish) == (ids, finish)


def test_a_cancelled_row_is_gone_after_the_step() -> None:
    engine = Engine(decoder(), rows=1)
    first, second = (engine.submit(Request([1, 2], 8)) for _ in range(2))
    engine.step()
    engine.cancel(first)
    (gone,) = engine.step()
    assert gone[0] == first
    assert gone[1].finish == "cancelled"
    assert len(gone[1].ids) == 1
    assert [ticket for ticket, _ in engine.run()] == [second]
    engine.cancel(second)
    engine.cancel(99)
    assert engine.step() == []


class Tied(Decoder):
    """Two scores so close that a pass with others beside it may exchange them."""

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        scores = torch.zeros(len(hidden_SD), self.spec.vocab_size)
        alone = self.whole_text
        scores[:, 5], scores[:, 6] = (1.0, 1.0001) if alone else (1.0001, 1.0)
        return scores

    def forward(self, batch: Batch, past: Any = None, **rest: Any) -> torch.Tensor:
        self.whole_text = past is None
        return super().forward(batch, past, **rest)  # type: ignore[no-any-return]


def test_a_near_tie_is_decided_alone() -> None:
    model = Tied(SPECS["llama"])
    engine = Engine(model)
    found = generate(model, [[1, 2], [3]], max_new_tokens=2, stop_ids=frozenset(), engine=engine)
    assert [one.ids for one in found] == [(6, 6), (6, 6)]
    assert engine.recomputed == 4


def test_what_prompts_begin_with_alike_is_computed_once() -> None:
    model = decoder()
    prompts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 7, 8], [1, 2, 3, 4, 5, 9]]
    engine = Engine(model, speculate=False)
    found = generate(model, prompts, max_new_tokens=1, stop_ids=frozenset(), engine=engine)
    assert [list(one.ids) for one in found] == [naive(model, prompt, 1, frozenset())[0] for prompt in prompts]
    assert engine.tokens == 1 + 2 + 1  # beside the five that were computed before
    assert len(engine.prefixes) == 1


def test_a_conversation_goes_on_from_where_it_was() -> None:
    model = decoder()
    engine = Engine(model, speculate=False)
    first = [1, 2, 3]
    ((_, said),) = [*ends(engine, Request(first, 4, keep=True))]
    before = engine.tokens
    second = [*first, *said.ids, 9, 9]
    ((_, again),) = [*ends(engine, Request(second, 1))]
    assert list(again.ids) == naive(model, second, 1, frozenset())[0]
    assert engine.tokens - before == 3  # the last token that was said was never computed


def test_what_is_remembered_is_forgotten_with_the_weights() -> None:
    model = decoder()
    engine = Engine(model)
    prompts = [[1, 2, 3, 4, 5], [1, 2, 3, 4, 6]]
    generate(model, prompts, max_new_tokens=2, stop_ids=frozenset(), engine=engine)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    found = generate(model, prompts, max_new_tokens=2, stop_ids=frozenset(), engine=engine)
    assert [list(one.ids) for one in found] == [naive(model, prompt, 2, frozenset())[0] for prompt in prompts]


def test_prefixes_stay_within_their_memory() -> None:
    model = decoder()
    each = position_bytes(model.spec, torch.float64)
    prefixes = PrefixCache(model, 7 * each)
    cache = model.new_cache(8)
    cache.add()
    cache.lengths[0] = 8
    prefixes.keep([1, 2, 3], cache, 0)
    prefixes.keep([4, 5, 6], cache, 0)
    assert prefixes.fill([1, 2, 9], cache, 0) == 2  # used just now, so the other one goes
    prefixes.keep([7, 8, 9], cache, 0)
    assert (len(prefixes), prefixes.bytes) == (2, 6 * each)
    assert prefixes.fill([4, 5, 6, 7], cache, 0) == 0
    assert prefixes.fill([1, 2, 3], cache, 0) == 2  # the last id is always computed
    prefixes.keep([1, 2], cache, 0)
    prefixes.keep(range(8), cache, 0)
    assert len(prefixes) == 2
    prefixes.keep([1, 2, 3, 4], cache, 0)  # covers the shorter one
    assert (len(prefixes), prefixes.bytes) == (2, 7 * each)


def test_memory_sizes_the_batch_down_or_refuses() -> None:
    model = decoder()
    each = position_bytes(model.spec, torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("instil.generate.slots.SMALLEST", 4)
        engine = Engine(model, rows=8, memory=2 * 8 * each, speculate=False)
        with pytest.raises(DataError, match=r"need 0\.00 GB and 0\.00 GB are there"):
            Engine(model, memory=4 * each).submit(Request([1, 2, 3], 5))
        for _ in range(3):
            engine.submit(Request([1, 2, 3], 5))
        engine.step()
        assert (len(engine._active), len(engine._waiting)) == (2, 1)
        assert len(list(engine.run())) == 3


def test_an_exception_ends_its_own_request_alone() -> None:
    model = decoder()
    wanted = naive(model, [4, 5], 6, frozenset())[0]

    def fails(token: int) -> bool:
        raise KeyboardInterrupt

    for speculate in (True, False):
        engine = Engine(model, speculate=speculate)
        engine.submit(Request([1, 2, 3], 6, on_token=fails))
        other = engine.submit(Request([4, 5], 6))
        with pytest.raises(KeyboardInterrupt):
            engine.step()
        found = dict(engine.run())
        assert list(found.pop(other).ids) == wanted
        assert [one.finish for one in found.values()] == ["cancelled"]
        assert not engine._slots._taken


def test_a_pass_that_breaks_off_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = decoder()
    engine = Engine(model)
    ticket = engine.submit(Request([4, 5], 6))
    engine.step()
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(model, "logits", lambda hidden: (_ for _ in ()).throw(MemoryError))
        engine.step()
    assert list(dict(engine.run())[ticket].ids) == naive(model, [4, 5], 6, frozenset())[0]


def test_what_others_left_on_an_engine_does_not_matter() -> None:
    model = decoder()
    engine = Engine(model)
    told: list[Generated] = []
    engine.submit(Request([7], 3, on_done=told.append))
    prompts = [[1, 2], [3]]
    wanted = [naive(model, prompt, 2, frozenset())[0] for prompt in prompts]

    def fails(row: int, token: int) -> bool:
        raise ValueError(row)

    with pytest.raises(ValueError, match=r"^[01]$"):
        generate(model, prompts, max_new_tokens=2, stop_ids=frozenset(), engine=engine, on_token=fails)
    with pytest.raises(DataError):
        generate(model, [*prompts, [99]], max_new_tokens=2, stop_ids=frozenset(), engine=engine)
    found = generate(model, prompts, max_new_tokens=2, stop_ids=frozenset(), engine=engine)
    assert [list(one.ids) for one in found] == wanted
    list(engine.run())
    assert [list(one.ids) for one in told] == [naive(model, [7], 3, frozenset())[0]]


@pytest.mark.parametrize("how", ["in place", "assigned", "data"])
def test_every_way_to_change_weights_is_seen(how: str) -> None:
    model, other = decoder(seed=1), decoder(seed=2)
    engine = Engine(model)
    prompt = [1, 2, 3, 4, 5, 6]
    engine.submit(Request(prompt, 2, keep=True))
    list(engine.run())
    if how == "assigned":
        model.load_state_dict(other.state_dict(), assign=True)
    for mine, new in zip(model.parameters(), other.parameters(), strict=True):
        if how == "in place":
            with torch.no_grad():
                mine.copy_(new)
        elif how == "data":
            mine.data = new.data
    engine.prefixes.fill(prompt, model.new_cache(8), 0)
    assert len(engine.prefixes) == 0


def test_requests_that_cannot_be_met_are_refused() -> None:
    engine = Engine(decoder())
    for prompt in ([17], [-1], [1, 99]):
        with pytest.raises(DataError, match="ids outside of the model's 17"):
            engine.submit(Request(prompt, 2))
    with pytest.raises(DataError, match="max_new_tokens is 0"):
        engine.submit(Request([1], 0))
    with pytest.raises(SettingsError, match="rows is 0"):
        Engine(decoder(), rows=0)
    engine.warm([])
    engine.warm([1] * 99)
    assert len(engine.prefixes) == 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_are_no_numbers_are_an_error(temperature: float) -> None:
    model = decoder()
    with torch.no_grad():
        model.norm.weight.fill_(float("nan"))
    with pytest.raises(InstilError, match="no finite numbers"):
        generate(
            model,
            [[1, 2]],
            max_new_tokens=3,
            stop_ids=frozenset(),
            sampling=lambda row: Sampling(temperature=temperature),
        )


def test_a_model_made_for_inference_alone_answers() -> None:
    with torch.inference_mode():
        model = Decoder(SPECS["llama"])
    assert len(generate(model, [[1, 2]], max_new_tokens=3, stop_ids=frozenset())[0].ids) == 3


def test_guessing_saves_passes_and_changes_nothing() -> None:
    """A model that repeats itself is foreseen."""
    model = decoder(seed=1)
    prompt = [1, 2, 3]
    wanted = naive(model, prompt, 12, frozenset())[0]
    engines = [Engine(model, speculate=speculate) for speculate in (True, False)]
    found = [[one for _, one in ends(engine, Request(prompt, 12))] for engine in engines]
    assert [list(one.ids) for (one,) in found] == [wanted, wanted]
    assert len(set(wanted)) < 8, "the case is one of repetition"
    assert engines[0].passes < engines[1].passes == 12


def test_guessing_that_does_not_pay_ends() -> None:
    lookup = PromptLookup()
    ids = [1, 2, 3, 1, 2]
    assert lookup.guess(ids, 5) == [3, 1, 2]
    assert lookup.guess(ids, 0) == []
    lookup.saw(30, 2)
    assert lookup.guess(ids, 5) == []


def ends(engine: Engine, request: Request) -> list[tuple[int, Generated]]:
    engine.submit(request)
    return list(engine.run())


def test_prompts_that_cannot_be_answered_are_refused_with_numbers() -> None:
    with pytest.raises(DataError, match="prompt 1 has 16 tokens; the model's context is 16"):
        generate(decoder(), [[1], [1] * 16], max_new_tokens=1, stop_ids=frozenset())
    with pytest.raises(DataError, match="prompt 0 is empty"):
        generate(decoder(), [[]], max_new_tokens=1, stop_ids=frozenset())


class Parrot(Decoder):
    """Says what it was told to, whatever the prompt: a decoder for tests of what is around it.

    Its hidden states are positions, so that each token's answer goes by where it stands.
    """

    def __init__(self, tokenizer: FastTokenizer, text: str) -> None:
        super().__init__(
            DecoderSpec(
                family="llama", vocab_size=50257, width=4, layers=1, heads=1, kv_heads=1, head_width=4, mlp_width=4,
                context=200, norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope",
            )
        )  # fmt: skip
        self.script = [*tokenizer.encode(text), tokenizer.eos_id]
        self.first: float | None = None

    def forward(self, batch: Batch, past: Any = None, tied: Any = None, wanted_U: Any = None) -> torch.Tensor:
        super().forward(batch, past)
        positions = batch.positions_N if wanted_U is None else batch.positions_N[wanted_U]
        return positions[:, None].float()

    def logits(self, hidden_SD: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = float(hidden_SD[0])
        said = [self.script[min(int(at - self.first), len(self.script) - 1)] for at in hidden_SD[:, 0].tolist()]
        scores = torch.full((len(said), 50257), -1.0)
        scores[torch.arange(len(said)), said] = 1.0
        return scores


def test_the_response_is_cut_by_position() -> None:
    """An answer that holds the response header, or repeats the prompt, comes back whole."""
    tokenizer, template = FastTokenizer.gpt2(), template_named("alpaca")
    text = "Write '### Response:' and then ### Response: again; Below is an instruction."
    said = answer(Parrot(tokenizer, text), tokenizer, template, [Example("Go.")], GenerateOptions())
    assert said[0].text == text
    assert said[0].finish == "stop"
    assert 50256 not in said[0].ids


@pytest.mark.parametrize("stop", [13, 50256])
def test_every_end_of_the_tokenizer_ends_an_answer(stop: int) -> None:
    tokenizer, template = FastTokenizer.gpt2(), template_named("alpaca")
    tokenizer.stop_ids = frozenset({13, 50256})  # 13 is "."
    text = "Yes. No" if stop == 13 else "Yes, no"
    said = answer(Parrot(tokenizer, text), tokenizer, template, [Example("Go.")], GenerateOptions())
    assert (said[0].text, said[0].finish) == (("Yes", "stop") if stop == 13 else ("Yes, no", "stop"))


def test_a_prompt_without_room_is_an_empty_answer_that_is_counted() -> None:
    tokenizer, template = FastTokenizer.gpt2(), template_named("alpaca")
    rows = [Example("word " * 300, row=0), Example("Go.", row=1)]
    said = answer(Parrot(tokenizer, "Hi."), tokenizer, template, rows, GenerateOptions())
    assert [(one.text, one.finish, one.row) for one in said] == [("", "no_room", 0), ("Hi.", "stop", 1)]
