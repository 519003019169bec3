"""Rows encoded together are as rows encoded one by one, whatever the tokenizer, the texts and the template."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.control_tokens import Pipeline
from instil.data.encoding import encode, encode_many
from instil.data.templates import TEMPLATES, template_named
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.data.word_ids import word_ids
from instil.errors import DataError, ModelError
from instil.records import Example, Turn
from instil.settings.options import TrainOn
from tests.conftest import gpt2, smollm2
from tests.data.made_tokenizers import make, text

SMOLLM = smollm2()
HEADED = FastTokenizer(SMOLLM.saved(), "<|endoftext|>")  # type: ignore[attr-defined]
BYTE_PAIR = gpt2()
# Characters that words are cut at: of all kinds.
ASCII = st.sampled_from([*"aZ09 '.,\n\t\r #_<|>", "'s", "'", "  ", "\n\n", " 1", "\n "])
OTHERS = st.sampled_from(["é", "\u0301", "\u00a0", "½", "漢", "٣", "🙂"])
PLAIN = st.lists(ASCII, max_size=20).map("".join)
TEXT = st.lists(st.one_of(ASCII, OTHERS, st.characters(exclude_categories=["Cs"])), max_size=30).map("".join)


def rows_of(text: st.SearchStrategy[str]) -> st.SearchStrategy[list[Example]]:
    turn = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), text)
    history = st.one_of(st.just(()), st.lists(turn, max_size=3).map(tuple))
    row = st.builds(Example, text, text, st.one_of(st.just(""), text), st.just(""), st.integers(0, 9), history)
    return st.lists(row, max_size=4)


# Every twentieth of these; INSTIL_FUZZ=10000:11000:3 tries others.
SEEDS = range(*map(int, os.environ.get("INSTIL_FUZZ", "0:400:20").split(":")))


def one_by_one(rows: Sequence[Example], *how: Any) -> list[Any]:
    return [encode(row, *how) for row in rows]


@settings(max_examples=200, deadline=None)
@given(examples=st.one_of(rows_of(PLAIN), rows_of(TEXT)), data=st.data())
def test_rows_of_any_characters(examples: list[Example], data: st.DataObject) -> None:
    """Conversations, and answers that begin or end with white space, too."""
    template = template_named(data.draw(st.sampled_from(sorted(TEMPLATES))))
    train_on = data.draw(st.sampled_from(get_args(TrainOn)))
    tokenizer = data.draw(st.sampled_from([SMOLLM, BYTE_PAIR]))
    try:
        list(map(tokenizer.control_id, template.control_tokens))
    except ModelError:  # the vocabulary lacks one
        return
    if train_on == "response_with_header" and not template.header:
        with pytest.raises(DataError):
            encode_many([Example("x", "y")], template, tokenizer, train_on)
        return
    how = template, tokenizer, train_on
    try:
        found: Any = one_by_one(examples, *how)
    except DataError as error:  # turns that the form has no place for
        with pytest.raises(DataError, match=re.escape(str(error))):
            encode_many(examples, *how)
        return
    assert encode_many(examples, *how) == found


@pytest.mark.parametrize("first", SEEDS)
def test_tokenizers_of_every_kind(first: int, tmp_path: Path) -> None:
    for seed in range(first, first + 2):
        tokenizer = load_tokenizer(make(tmp_path / f"made{seed}", seed).folder)
        draw = random.Random(seed)
        rows = [Example(text(draw), text(draw), draw.choice(["", text(draw)]), row=number) for number in range(8)]
        for template in TEMPLATES.values():
            try:
                wanted = one_by_one(rows, template, tokenizer)
            except ModelError:  # the vocabulary lacks a control token
                continue
            assert encode_many(rows, template, tokenizer) == wanted


def test_plain_rows_are_looked_up_word_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no word has to be cut in two nothing goes through the pipeline, rows in other scripts neither."""
    rows = [
        Example("Name 2 colours.", "Red, and « bleu »."),
        Example("你好吗?", "Я хорошо; 12\u00a0%", "naïve Ångström"),
    ]
    wanted = [one_by_one(rows, TEMPLATES[name], SMOLLM) for name in ("alpaca", "chatml")]
    encode_many(rows, TEMPLATES["alpaca"], SMOLLM)

    def never(*_: object) -> None:
        raise AssertionError("a plain row went through the pipeline")

    monkeypatch.setattr(Pipeline, "cut", never)
    monkeypatch.setattr(Pipeline, "_texts", never)
    assert [encode_many(rows, TEMPLATES[name], SMOLLM) for name in ("alpaca", "chatml")] == wanted


def test_a_row_goes_on_where_its_prompt_ended_and_a_prompt_after_what_all_begin_with() -> None:
    """So that of neither more is cut into words than what is new."""
    rows = [Example(f"Name {n} colours of a rainbow.", f"Red and {n} more.", row=n) for n in range(40)]
    wanted = one_by_one(rows, TEMPLATES["alpaca"], HEADED)
    assert encode_many(rows, TEMPLATES["alpaca"], HEADED) == wanted
    words = HEADED._view(frozenset())._words
    assert words is not None
    find, found = words._find, list[tuple[int, int]]()

    def counting(text: str, start: int, end: int) -> list[str]:
        found.append((start, len(text) - end))
        return find(text, start, end)

    words._find = counting
    try:
        assert encode_many(rows, TEMPLATES["alpaca"], HEADED) == wanted
    finally:
        words._find = find
    assert len(found) == 2 * len(rows)
    prompts, answers = found[::2], found[1::2]
    assert all(start > 100 and left > 10 for start, left in prompts)
    assert all(start > 150 and not left for start, left in answers)


def test_a_prompt_that_has_other_words_by_itself_is_not_cut_with_its_answer() -> None:
    """Two new lines are one word where nothing follows them; "'ll" is one where the answer ends it."""
    words = HEADED._view(frozenset())._words
    assert words is not None
    for prompt, answer in [("Say it:\n\n", "No."), ("Say that I'l", "l go"), ("So ", "so")]:
        assert words.cut([prompt, answer], [1]) is None
    for prompt, answer in [
        ("Say it:\n", "No."),
        ("Say that I", "'ll go"),
        ("So", " so"),
        ("Add 1", "2 to it"),
        ("So", ""),
    ]:
        ids, begins = words.cut([prompt, answer], [1]) or ([], [])
        assert begins == [0, len(SMOLLM.encode(prompt))]
        assert ids == SMOLLM.encode(prompt + answer)
    assert words.cut(["Say that I'l", "l go"]) is None
    assert words.cut(["Say", " it:", "\n", "No."], [3]) == (SMOLLM.encode("Say it:\nNo."), [0, 1, 3, 4])


@settings(max_examples=25, deadline=None)
@given(st.lists(PLAIN, min_size=1, max_size=6), st.sampled_from(["", "Below is an instruction that describes a task"]))
def test_texts_that_begin_alike_have_their_own_words(texts: list[str], head: str) -> None:
    """Where a common beginning ends inside a word, at a number or at white space, too."""
    rows = [[(head + text, False)] for text in texts for _ in range(9)]
    assert [cut.ids for cut in HEADED.cut_many(rows)] == [SMOLLM.encode(row[0][0]) for row in rows]


def test_other_pipelines_have_no_words() -> None:
    """Words that are cut otherwise than by this expression are noticed, and so is what changes a text before."""
    state = {**SMOLLM._state, "normalizer": {"type": "Lowercase"}}  # type: ignore[attr-defined]
    fast = SMOLLM._tokenizer  # type: ignore[attr-defined]
    assert word_ids(state, fast, frozenset()) is None
    swapped = {**SMOLLM._state, "pre_tokenizer": BYTE_PAIR._state["pre_tokenizer"]}  # type: ignore[attr-defined]
    assert word_ids(swapped, fast, frozenset()) is None  # 12 is one word there, and two in the pipeline
    assert word_ids(SMOLLM._state, fast, frozenset()) is not None  # type: ignore[attr-defined]


def test_an_added_token_that_is_ordinary_text_is_found_in_it(tmp_path: Path) -> None:
    """Such as one that the vocabulary's own makers added for a word; "ham" is not among the words of "hamster" then."""
    from tokenizers import AddedToken

    fast = SMOLLM.saved()
    fast.add_tokens([AddedToken("ham", normalized=False)])
    tokenizer = FastTokenizer(fast, "<|endoftext|>")
    rows = [Example("Feed the hamster.", "Done."), Example("Feed it.", "A ham.")]
    found = encode_many(rows, TEMPLATES["alpaca"], tokenizer)
    assert found == one_by_one(rows, TEMPLATES["alpaca"], tokenizer)
    added = tokenizer._ids["ham"]
    assert all(added in row.ids for row in found)


def test_a_row_of_no_text_is_named_as_by_itself() -> None:
    assert encode_many([], TEMPLATES["alpaca"], SMOLLM) == []
    with pytest.raises(ModelError, match=r"no control token '<\|im_start\|>'"):
        encode_many([Example("Hi.", "Hello.")], TEMPLATES["chatml"], BYTE_PAIR)


@settings(max_examples=60, deadline=None)
@given(TEXT)
def test_what_a_vocabulary_is_known_to_spell_comes_back(said: str) -> None:
    """SmolLM2's lacks some bytes; what is not known to come back is looked at."""
    for tokenizer in (SMOLLM, BYTE_PAIR):
        if tokenizer.spells(said):
            assert tokenizer.decode(tokenizer.encode(said)) == said
    assert BYTE_PAIR.spells(said)


def test_a_vocabulary_without_some_bytes_does_not_spell_them() -> None:
    assert SMOLLM.spells("naïve 漢字 🙂")
    assert not SMOLLM.spells("a\x04b")
    assert SMOLLM.decode(SMOLLM.encode("a\x04b")) == "ab"
    assert not SMOLLM.spells("\ud83d")
