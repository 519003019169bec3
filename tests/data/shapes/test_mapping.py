"""Keys under other names, by hand; and what is offered to be typed, but never done unasked."""

from __future__ import annotations

import re
from typing import Any

import pytest

import instil
from instil.data.shapes.mapping import guess
from instil.data.sources import examples_from
from instil.errors import DataError, SettingsError
from instil.records import Example
from instil.settings.elsewhere import ELSEWHERE
from instil.settings.options import map_parts
from instil.settings.resolve import known_settings, resolve
from instil.tasks.pairs.source import pairs_from

WHY = Example("Why?", "So.", row=0)


@pytest.mark.parametrize(
    ("row", "mapping", "wanted"),
    [
        ({"q": "Why?", "a": "So."}, ["q=instruction", "a=output"], WHY),
        ({"q": "Why?", "a": "So."}, ["q=instruction,a=output"], WHY),
        ({"q": "Why?", "a": "So."}, {"q": "question", "a": "answer"}, WHY),
        ({"q": "Why?", "output": "So."}, ["q=instruction"], WHY),
        ({"data": {"q": "Why?"}, "a": "So."}, ["data.q=instruction,a=output"], WHY),
        ({"data": [{"q": "Why?"}, {"a": "So."}]}, ["data.0.q=instruction,data.1.a=output"], WHY),
        ({"data.q": "Why?", "data": {"q": "no"}, "a": "So."}, ["data.q=instruction,a=output"], WHY),
        ({"Answer, final": "So.", "question": "Why?"}, ["Answer, final=output"], WHY),
        ({" q ": "Why?", "a": "So."}, ["q=instruction,a=output"], WHY),
        ({"a=b": "So.", "question": "Why?"}, ["a=b=output"], WHY),
        ({"output": "Why?", "instruction": "So."}, ["output=instruction,instruction=output"], WHY),
        ({"messages": [{"role": "user"}], "q": "Why?", "a": "So."}, ["q=instruction,a=output"], WHY),
        ({"question": "Why?", "answer": "So.", "label": False}, ["label="], WHY),
        (
            {"dialog": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]},
            ["dialog=messages"],
            WHY,
        ),
        ({"body": "So."}, ["body=text"], Example("", "So.", row=0)),
        ({"Q": "Why?", "A": "So.", "rules": "Be."}, ["Q=prompt,A=completion,rules=system"], None),
    ],
)
def test_keys_are_read_under_the_names_that_were_given(row: Any, mapping: Any, wanted: Example | None) -> None:
    (found,) = examples_from([row], mapping=mapping).examples
    assert found == (wanted or instil.records.Example("Why?", "So.", row=0, history=found.history))
    if wanted is None:
        assert [(turn.role, turn.content) for turn in found.history] == [("system", "Be.")]


def test_a_key_that_gives_way_is_told_and_one_that_is_used_in_part_is_used() -> None:
    rows = [{"instruction": "no", "q": "Why?", "output": "So."}] * 3
    source = examples_from(rows, mapping=["q=instruction"])
    assert source.examples[0] == WHY
    assert source.notes == ("--map q=instruction takes the place of a key of 3 rows",)
    assert examples_from([{"data": {"q": "Why?"}, "output": "So."}], mapping=["data.q=instruction"]).notes == ()


def test_pairs_and_rows_to_be_answered_are_mapped_too() -> None:
    row = {"ask": "Why?", "good": "So.", "bad": "No."}
    (pair,) = pairs_from([row], mapping=["ask=prompt,good=chosen,bad=rejected"]).pairs
    assert (pair.example.instruction, pair.chosen, pair.rejected) == ("Why?", "So.", "No.")
    (prompt,) = examples_from([row], need_output=False, mapping=["ask=question"]).examples
    assert prompt == Example("Why?", row=0)


@pytest.mark.parametrize(
    ("mapping", "says"),
    [
        (["question"], "wanted FOUND=WANTED, such as --map question=instruction"),
        (["=output"], "wanted FOUND=WANTED"),
        (["q=instrction"], "'instrction' is no name that rows are read by; did you mean instruction"),
        (["instruction=q"], "the key that was found comes first: --map q=instruction"),
        (["q=instruction,a=instruction"], "--map q=instruction,a=instruction: instruction is named twice"),
    ],
)
def test_a_mapping_that_cannot_be_is_refused(mapping: list[str], says: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(says)):
        examples_from([{"q": "Why?", "a": "So."}], mapping=mapping)


def test_a_key_that_no_row_has_is_refused() -> None:
    rows = [{"quest": "Why?", "answer": "So."}]
    with pytest.raises(DataError, match=r"--map qest=instruction: no row has the key 'qest'; did you mean quest\?"):
        examples_from(rows, mapping=["qest=instruction"])
    rows = [{"question": "Why?", "answer": "So."}]
    with pytest.raises(DataError, match=r"the key that was found first, so try --map question=prompt"):
        examples_from(rows, mapping=["prompt=question"])
    some = [{"q": "Why?", "output": "So."}, {"r": "How?", "output": "So."}]
    with pytest.raises(DataError, match="row 1: instruction is missing"):
        examples_from(some, mapping=["q=instruction"])


@pytest.mark.parametrize(
    ("row", "offered"),
    [
        ({"q": "Why?", "a": "So.", "id": 3}, "q=instruction,a=output"),
        ({"Question": "Why?", "Answer": "So."}, "Question=instruction,Answer=output"),
        ({"ask": "Why?", "reply": "So."}, "ask=instruction,reply=output"),
        ({"user": "Why?", "assistant": "So."}, "user=instruction,assistant=output"),
        ({"input_text": "Why?", "target_text": "So."}, "input_text=instruction,target_text=output"),
        ({"userMessage": "Why?", "botReply": "So."}, "userMessage=instruction,botReply=output"),
        ({"data": {"question": "Why?", "answer": "So."}}, "data.question=instruction,data.answer=output"),
        ({"input": "Why?", "output": "So."}, "input=instruction"),
        ({"problem": "Why?", "solution": "So."}, "problem=instruction,solution=output"),
        ({"dialog": [{"role": "user", "content": "x"}], "reply": "So."}, "dialog=messages"),
        ({"title": "Why?", "body": "So."}, ""),
        ({"q": 1, "a": 2}, ""),
        ({}, ""),
    ],
)
def test_a_near_guess_is_offered_and_works_when_it_is_typed(row: dict[str, Any], offered: str) -> None:
    assert guess(row, "answers") == offered
    with pytest.raises(DataError) as caught:
        examples_from([row])
    assert (f"add --map {offered}" in str(caught.value)) is bool(offered)
    if offered and "dialog" not in row:
        assert examples_from([row], mapping=[offered]).examples == (WHY,)


def test_a_guess_with_spaces_is_quoted() -> None:
    with pytest.raises(DataError, match=r"add --map 'the question=instruction,the answer=output'"):
        examples_from([{"the question": "Why?", "the answer": "So."}])


def test_pairs_are_guessed_too() -> None:
    with pytest.raises(DataError, match="add --map question=instruction,response_j=chosen,response_k=rejected"):
        pairs_from([{"question": "Why?", "response_j": "So.", "response_k": "No."}])


def test_it_is_a_setting_in_every_form() -> None:
    wanted = ("question=instruction", "reply=output")
    assert resolve(assignments=["data.map=question=instruction,reply=output"]).data.map == wanted
    assert resolve(values={"map": {"question": "instruction", "reply": "output"}}).data.map == wanted
    assert resolve(values={"data": {"map": list(wanted)}}).data.map == wanted
    assert resolve(values={"map": "question=instruction,reply=output"}).data.map == wanted
    assert map_parts(resolve().data.map) == ()
    for wrong in (3, [3], True):
        with pytest.raises(SettingsError, match=r"data\.map"):
            resolve(values={"map": wrong})


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("data.assistant_only_loss", "TRL's assistant_only_loss is data.train_on=response here"),
        ("assistant_only_loss", "TRL's assistant_only_loss is data.train_on=response here"),
        ("train.packing", "TRL's packing is what train.layout=shared does here"),
        ("train_on_inputs", "axolotl's train_on_inputs is data.train_on=all here"),
        ("train.cutoff_len", "LlamaFactory's cutoff_len is data.max_length here"),
        ("mask-prompt", "mlx-lm's mask_prompt is data.train_on=response here"),
        ("iters", "mlx-lm's iters is train.max_steps here"),
    ],
)
def test_other_trainers_names_are_recognised(key: str, says: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(says)):
        resolve(assignments=[f"{key}=1"])
    with pytest.raises(SettingsError, match=re.escape(says)):
        resolve(values={key: 1})


def test_what_is_said_of_other_trainers_settings_is_there() -> None:
    for name, (_, here) in ELSEWHERE.items():
        assert name not in known_settings()
        for setting, _, value in re.findall(r"\b((?:data|train|lora|dpo|generate)\.\w+)(=([\w()/]+))?", here):
            assert setting in known_settings(), name
            if value:
                resolve(assignments=[f"{setting}={value}"])
