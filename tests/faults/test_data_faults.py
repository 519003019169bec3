"""Faults of data that cost people their runs: marks in texts, masks without a target, fewer rows than a split needs."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch

import instil
from instil.data.collate import collate, collate_shared
from instil.data.encoding import encode, encode_prompt
from instil.data.templates import TEMPLATES, template_named
from instil.data.tokenizers import load_tokenizer
from instil.errors import DataError
from instil.model.load import load_decoder
from instil.records import Encoded, Example
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.train.losses import LossSum, held_out_loss, nll_sum
from instil.train.metrics import read_metrics
from tests.conftest import TINY_END, rows

MARKS = "A <|endoftext|> B\n\n### Response:\nC <|im_end|> D</s> E"


# 10: marks in a user's text


@pytest.mark.parametrize("name", ["alpaca", "plain"])
def test_a_mark_in_a_text_is_text(name: str, tiny_folder: Path) -> None:
    tokenizer, template = load_tokenizer(tiny_folder), template_named(name)
    row = encode(Example(MARKS, MARKS, MARKS), template, tokenizer)
    assert [position for position, id_ in enumerate(row.ids) if id_ == tokenizer.eos_id] == [len(row.ids) - 1]
    assert row.ids[: row.prompt_length] == tuple(encode_prompt(Example(MARKS, "", MARKS), template, tokenizer))
    text = tokenizer.decode(list(row.ids))
    assert text == template.prompt(Example(MARKS, "", MARKS)) + MARKS
    assert tokenizer.decode([id_ for id_, kept in zip(row.ids, row.trained, strict=True) if kept]) == MARKS


def test_a_mark_in_a_text_is_warned_of_before_training(tiny_folder: Path) -> None:
    data = rows(20)
    data[2]["instruction"], data[4]["input"], data[6]["output"] = MARKS, MARKS, MARKS
    found = {one.kind: one for one in prepare(data, tiny_folder, resolve()).preflight.findings}
    assert found["whole_prompt"].rows == (2, 4)
    assert found["end_marker"].rows == (6,)
    assert '"<|endoftext|>" in 2' in found["whole_prompt"].said
    assert all(one.severity == "warning" for one in found.values())


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_templates_own_marks_in_a_text_are_warned_of(name: str, tiny_folder: Path) -> None:
    text = template_named(name).prompt(Example("Name it."))
    if text.strip() == "Name it.":
        pytest.skip("this template has no marks")
    data = rows(20)
    data[2]["instruction"] = text
    found = {one.kind: one for one in prepare(data, tiny_folder, resolve()).preflight.findings}
    assert found["whole_prompt"].rows == (2,)


# 12: masks without a target


@pytest.mark.parametrize("make", [partial(collate, pad_id=TINY_END), collate_shared], ids=["padded", "shared"])
def test_a_batch_without_a_target_counts_for_nothing(make: object, tiny_folder: Path) -> None:
    decoder = load_decoder(tiny_folder)
    masked = [Encoded((5, 6, 7, 8), (False,) * 4, 2, 0), Encoded((5, 6, 9), (False,) * 3, 2, 1)]
    batch = make(masked)  # type: ignore[operator]
    loss = nll_sum(decoder, batch)
    loss.backward()
    assert (loss.item(), batch.trained_tokens) == (0.0, 0)
    assert all(value.grad is None or not value.grad.any() for value in decoder.parameters())
    taught = make([Encoded((5, 6, 7, 8), (False, False, True, True), 2, 2), *masked])  # type: ignore[operator]
    both = held_out_loss(decoder, [batch, taught])
    assert both.tokens == 2
    assert math.isfinite(both.mean)
    assert torch.isfinite(nll_sum(decoder, taught))
    assert LossSum(0.0, 0) + both == both


def test_rows_without_a_target_are_in_no_batch_and_are_named(tiny_folder: Path, tmp_path: Path) -> None:
    data = rows(20)
    for number in range(8):
        data[number]["instruction"] = "long " * 100
    made = instil.finetune(
        data, model=tiny_folder, out=tmp_path / "run", max_length=60, batch_size=2, epochs=1, max_new_tokens=2
    )
    records = read_metrics(made.path / "metrics.jsonl")
    assert len(records) == 1 + 5  # of 17 training rows, 9 have something to learn
    assert all(math.isfinite(one.train_loss) for one in records[1:] if one.train_loss is not None)
    assert (made.path / "rejected.jsonl").read_text(encoding="utf-8").count("left out") == 8


def test_nothing_but_masked_rows_is_refused_before_anything_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    data = [{**row, "instruction": "long " * 100} for row in rows(20)]
    with pytest.raises(DataError, match="none of the 17 training rows has a response within 60 tokens") as no:
        instil.finetune(data, model=tiny_folder, out=tmp_path / "run", max_length=60)
    assert no.value.exit_code == 2
    assert not list(tmp_path.iterdir())


# 13: very few rows


@pytest.mark.parametrize("count", range(1, 11))
@pytest.mark.parametrize("split", ["book", "grouped"])
def test_very_few_rows_are_split_without_losing_one(count: int, split: str, tiny_folder: Path) -> None:
    prepared = prepare(rows(count), tiny_folder, resolve(values={"split": split}))
    found = prepared.preflight
    assert sum(found.rows.values()) == count
    assert found.rows["train"] >= 1
    told = [line for line in found.lines() if line.startswith("no ")]
    assert told == [f"no {part} rows" for part, rows_of in found.rows.items() if not rows_of]
    assert len(prepared.training) == 1


@pytest.mark.parametrize("count", [1, 2, 6])
def test_training_goes_on_without_validation_or_test_rows(count: int, tiny_folder: Path, tmp_path: Path) -> None:
    made = instil.finetune(rows(count), model=tiny_folder, out=tmp_path / "run", epochs=1, max_new_tokens=2)
    last = read_metrics(made.path / "metrics.jsonl")[-1]
    assert last.train_loss is not None
    assert math.isfinite(last.train_loss)
    assert (made.validation_loss is None) is (count == 1)
    assert (made.path / "report.html").is_file()
    assert "NaN" not in (made.path / "metrics.jsonl").read_text()


def test_a_batch_larger_than_the_rows_holds_them_all_or_is_refused(tiny_folder: Path) -> None:
    assert len(prepare(rows(5), tiny_folder, resolve(values={"batch_size": 64})).training) == 1
    with pytest.raises(DataError, match="a batch of 64 rows is larger than the 4 rows there are"):
        prepare(rows(5), tiny_folder, resolve(values={"batch_size": 64, "drop_last": True}))
