"""The mask by position, the book's collate, and the loader's order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.batches import IGNORED
from instil.data.collate import collate
from instil.data.encoding import check_vocabulary, encode, encode_many, encode_prompt
from instil.data.loader import Loader
from instil.data.spelling import spelling
from instil.data.templates import TEMPLATES, template_named
from instil.data.tokenizers import FastTokenizer
from instil.errors import DataError, ModelError
from instil.records import Encoded, Example
from tests.conftest import gpt2, smollm2

BYTE_PAIR = gpt2()
SMOLLM = smollm2()
# SmolLM2's vocabulary lacks some bytes of control characters and unassigned planes.
SPELLABLE = st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"])
TEXT = st.text(SPELLABLE, min_size=1, max_size=30).map(lambda text: text + "### Response:\n<|endoftext|>")


@settings(max_examples=60, deadline=None)
@given(instruction=TEXT, answer=TEXT, given_input=st.one_of(st.just(""), TEXT))
@pytest.mark.parametrize(
    "name", [name for name in TEMPLATES if name not in ("llama3", "gemma")]
)  # SmolLM2 lacks theirs
def test_exactly_the_response_and_its_end_are_trained(
    name: str, instruction: str, answer: str, given_input: str
) -> None:
    template, example = template_named(name), Example(instruction, answer, given_input)
    row = encode(example, template, SMOLLM, "response")
    prompt = encode_prompt(example, template, SMOLLM)
    assert list(row.ids[: row.prompt_length]) == prompt
    assert row.trained == (False,) * len(prompt) + (True,) * (len(row.ids) - len(prompt))
    assert row.ids[-1] == 2  # both <|im_end|> and SmolLM2's own end
    assert SMOLLM.decode(row.ids[row.prompt_length :]) == answer
    everything = encode(example, template, SMOLLM, "all")
    assert everything.ids == row.ids
    assert all(everything.trained)


@pytest.mark.parametrize("tokenizer", [BYTE_PAIR, SMOLLM])
def test_a_text_without_a_question_is_learnt_whole(tokenizer: FastTokenizer) -> None:
    rows = [Example("", "A text of its own."), Example("", "Une té\U0001f600.")]
    for row, together in zip(rows, encode_many(rows, template_named("alpaca"), tokenizer), strict=True):
        alone = encode(row, template_named("alpaca"), tokenizer)
        assert alone == together
        assert list(alone.ids) == [*tokenizer.encode(row.output), tokenizer.eos_id]
        assert (alone.prompt_length, all(alone.trained)) == (0, True)


def test_the_books_ids_are_those_of_the_whole_text() -> None:
    example = Example("Rewrite the sentence.", "It is as fast as lightning.", "The car is fast.")
    template = template_named("alpaca")
    row = encode(example, template, BYTE_PAIR, "all")
    assert list(row.ids) == [*BYTE_PAIR.encode(template.full_text(example)), 50256]


def test_the_chapters_collate() -> None:
    batch = collate([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    assert torch.equal(
        batch.inputs, torch.tensor([[0, 1, 2, 3, 4], [5, 6, 50256, 50256, 50256], [7, 8, 9, 50256, 50256]])
    )
    assert torch.equal(
        batch.targets,
        torch.tensor([[1, 2, 3, 4, 50256], [6, 50256, -100, -100, -100], [8, 9, 50256, -100, -100]]),
    )
    assert batch.trained_tokens == 10
    assert batch.real_tokens == 10
    assert batch.rows_N.tolist() == [0] * 5 + [1, 1, -1, -1, -1] + [2, 2, 2, -1, -1]
    cut = collate([[0, 1, 2, 3, 4], [5, 6]], max_length=3)
    assert cut.inputs.tolist() == [[0, 1, 2], [5, 6, 50256]]
    assert cut.targets.tolist() == [[1, 2, 3], [6, 50256, -100]]


def naive_collate(rows: list[Encoded], pad: int, max_length: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Written another way: a grid of ids and a grid of targets, filled cell by cell."""
    width = max(len(row.ids) for row in rows) - 1
    width = min(width, max_length) if max_length else width
    inputs = torch.full((len(rows), width), pad)
    targets = torch.full((len(rows), width), IGNORED)
    for r, row in enumerate(rows):
        for t in range(min(width, len(row.ids) - 1)):
            inputs[r, t] = row.ids[t]
            if row.trained[t + 1]:
                targets[r, t] = row.ids[t + 1]
    return inputs, targets


ENCODED = st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=2, max_size=12).map(
    lambda pairs: Encoded(tuple(i for i, _ in pairs), tuple(t for _, t in pairs))
)


@given(st.lists(ENCODED, min_size=1, max_size=5), st.one_of(st.none(), st.integers(1, 8)))
def test_collate_equals_the_naive_grid(rows: list[Encoded], max_length: int | None) -> None:
    batch = collate(rows, pad_id=99, max_length=max_length)
    inputs, targets = naive_collate(rows, 99, max_length)
    assert torch.equal(batch.inputs, inputs)
    assert torch.equal(batch.targets, targets)
    assert batch.trained_tokens == int((targets != IGNORED).sum())


def test_an_end_token_inside_the_text_does_not_hide_the_true_end() -> None:
    """The book masks padding by value, so it would lose every end-of-text id after the first."""
    batch = collate([[7, 50256, 8], [1, 2, 3, 4, 5]])
    assert batch.targets[0].tolist() == [50256, 8, 50256, -100, -100]


def test_an_empty_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        collate([])
    with pytest.raises(ValueError, match="at least one id"):
        collate([[]])


def rows_of(count: int) -> list[Encoded]:
    return [Encoded((row, row, row), (False, True, True), 1, row) for row in range(count)]


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 4), st.integers(0, 3))
def test_every_row_leaves_exactly_once_in_a_seeded_order(count: int, batch: int, micro: int, epoch: int) -> None:
    loader = Loader(rows_of(count), batch, pad_id=0, micro_batch=micro, seed=7)
    seen = [row for step in loader.steps(epoch) for part in step for row in part.examples]
    assert sorted(seen) == list(range(count))
    assert len(list(loader.steps(epoch))) == len(loader)
    again = Loader(rows_of(count), batch, pad_id=0, micro_batch=micro, seed=7)
    assert again.order(epoch) == loader.order(epoch) == seen


@given(st.integers(2, 30), st.integers(1, 5), st.data())
def test_an_epoch_is_taken_up_at_any_step(count: int, batch: int, data: st.DataObject) -> None:
    loader = Loader(rows_of(count), batch, pad_id=0)
    start = data.draw(st.integers(0, len(loader)))
    whole = [step[0].examples for step in loader.steps(1)]
    assert [step[0].examples for step in loader.steps(1, start)] == whole[start:]


def test_epochs_and_seeds_differ() -> None:
    loader = Loader(rows_of(50), 8, pad_id=0, seed=1)
    assert loader.order(0) != loader.order(1)
    assert loader.order(0) != Loader(rows_of(50), 8, pad_id=0, seed=2).order(0)


def test_dropping_the_last_batch_is_the_books_way() -> None:
    assert len(Loader(rows_of(935), 8, pad_id=0, drop_last=True)) == 116
    assert len(Loader(rows_of(935), 8, pad_id=0)) == 117
    with pytest.raises(DataError, match="larger than the 5 rows"):
        Loader(rows_of(5), 8, pad_id=0, drop_last=True)
    with pytest.raises(DataError, match="no rows"):
        Loader([], 8, pad_id=0)


def test_a_template_the_vocabulary_cannot_hold_is_refused() -> None:
    with pytest.raises(ModelError, match="im_start"):
        check_vocabulary(template_named("chatml"), BYTE_PAIR, 50257)
    with pytest.raises(DataError, match="do not belong together"):
        check_vocabulary(template_named("alpaca"), BYTE_PAIR, 49152)


def test_characters_outside_the_vocabulary_are_noticed() -> None:
    assert spelling(Example("naïve 漢字 🙂\n", "ok"), SMOLLM) == "as written"
    assert spelling(Example("a\x04b", "ok"), SMOLLM) == "misspelt"
    assert spelling(Example("a\x04b", "ok"), BYTE_PAIR) == "as written"


def masked_as_in_exercise_7_2(example: Example, name: str) -> list[int]:
    """Targets of one row the exercise's way: the whole text's ids, shifted, then overwritten up to a count."""
    if name == "alpaca":
        asked = (
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
            f"\n\n### Instruction:\n{example.instruction}"
            + (f"\n\n### Input:\n{example.input}" if example.input else "")
        )
        answered = f"\n\n### Response:\n{example.output}"
    else:
        asked = f"<|user|>\n{example.instruction}" + (f"\n{example.input}" if example.input else "")
        answered = f"\n<|assistant|>\n{example.output}"
    targets = [*BYTE_PAIR.encode(asked + answered), 50256][1:]
    count = len(BYTE_PAIR.encode(asked))
    targets[: count - 1] = [IGNORED] * (count - 1)
    return targets


EXERCISE = [
    Example(
        "Sort the following list in alphabetical order.", "Crocodile, Elephant, Zebra", "Zebra, Elephant, Crocodile"
    ),
    Example("Name a colour.", "Red."),
    Example("End in a blank. ", "So be it.", "x\n"),  # the blank joins the header's first newline
]


@pytest.mark.parametrize("example", EXERCISE)
@pytest.mark.parametrize("name", ["alpaca", "phi3"])
def test_response_with_header_masks_as_exercise_7_2_does(name: str, example: Example) -> None:
    row = encode(example, template_named(name), BYTE_PAIR, "response_with_header")
    assert collate([row]).targets[0].tolist() == masked_as_in_exercise_7_2(example, name)
    assert row.ids == encode(example, template_named(name), BYTE_PAIR, "all").ids


@pytest.mark.parametrize(("name", "header"), [("alpaca", "\n\n### Response:\n"), ("phi3", "\n<|assistant|>\n")])
def test_only_the_header_lies_between_the_two_ways(name: str, header: str) -> None:
    for example in EXERCISE[:2]:
        clean = encode(example, template_named(name), BYTE_PAIR, "response")
        books = encode(example, template_named(name), BYTE_PAIR, "response_with_header")
        more = [i for i, a, b in zip(clean.ids, clean.trained, books.trained, strict=True) if b and not a]
        assert BYTE_PAIR.decode(more) == header
        assert all(b for a, b in zip(clean.trained, books.trained, strict=True) if a)


def test_the_header_is_the_exercises_ids() -> None:
    """What the solution to exercise 7.2 prints of this row: 46 masked, then two newlines, "###", " Response", ..."""
    targets = collate([encode(EXERCISE[0], template_named("alpaca"), BYTE_PAIR, "response_with_header")]).targets[0]
    header, response = [198, 198, 21017, 18261, 25, 198], [34, 12204, 375, 576, 11, 42651, 11, 1168, 37052, 50256]
    assert targets.tolist() == [IGNORED] * 46 + header + response


@pytest.mark.parametrize("name", ["chatml", "plain"])
def test_a_header_that_is_not_there_cannot_be_trained(name: str) -> None:
    with pytest.raises(DataError, match="has no response header"):
        encode(EXERCISE[0], template_named(name), SMOLLM, "response_with_header")
