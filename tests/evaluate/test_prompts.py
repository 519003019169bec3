"""What judges are asked: the book's words to the byte, and texts that cannot leave their quotation."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.errors import SettingsError
from instil.evaluate.prompts import PROMPTS, RUBRIC, pairwise_text, prompt_named
from instil.records import Example, blank

TEXT = st.text(st.sampled_from("ab \n\"'`{}<>\\\u2028é漢"), max_size=30)


def chapter_prompt(entry: dict[str, str]) -> str:
    """Chapter 7.8, written as there."""
    instruction_text = (
        f"Below is an instruction that describes a task. "
        f"Write a response that appropriately completes the request."
        f"\n\n### Instruction:\n{entry['instruction']}"
    )
    input_text = f"\n\n### Input:\n{entry['input']}" if entry["input"] else ""
    return (
        f"Given the input `{instruction_text + input_text}` "
        f"and correct output `{entry['output']}`, "
        f"score the model response `{entry['model_response']}`"
        f" on a scale from 0 to 100, where 100 is the best score. "
    )


@given(TEXT, TEXT, TEXT, TEXT)
def test_the_books_prompts_to_the_byte(instruction: str, given_input: str, output: str, response: str) -> None:
    given_input = "" if blank(given_input) else given_input  # which is no input here, and an empty section there
    entry = {"instruction": instruction, "input": given_input, "output": output, "model_response": response}
    row = Example(instruction, output, given_input)
    assert prompt_named("book-verbose").ask(row, response) == chapter_prompt(entry)
    assert prompt_named("book").ask(row, response) == chapter_prompt(entry) + "Respond with the integer number only."


def test_slots_inside_a_row_stay_as_written() -> None:
    asked = prompt_named("book").ask(Example("{output}", "{response}"), "{input}")
    assert asked.count("{output}") == asked.count("{response}") == asked.count("{input}") == 1


@given(TEXT, TEXT, TEXT, TEXT)
def test_no_text_leaves_its_quotation(instruction: str, given_input: str, output: str, response: str) -> None:
    asked = prompt_named("rubric").ask(Example(instruction, output, given_input), response)
    assert asked.startswith(RUBRIC)  # constant, so that servers compute it once
    lines = asked.removeprefix(RUBRIC).lstrip("\n").split("\n")
    word = lines[0].rpartition(" ")[2]
    assert re.fullmatch("[0-9a-f]{12}", word)
    assert len(lines) == 9
    names = [line.split(" ", 1)[1].rpartition(" ")[0] for line in lines[::3]]
    assert names == ["task", "reference", "answer"]
    assert [json.loads(line) for line in lines[1::3]][1:] == [output, response]
    assert all(word not in line for line in lines[1::3])


def test_the_code_word_depends_on_every_text_and_on_nothing_else() -> None:
    def word(answer: str, output: str = "4") -> str:
        return prompt_named("rubric").ask(Example("2+2?", output), answer).rpartition(" ")[2]

    assert word("4") == word("4")
    assert len({word("4"), word("5"), word("4", "four"), word(word("4"))}) == 4


def test_pairwise_shows_both_in_the_order_given() -> None:
    row = Example("2+2?", "4")
    assert pairwise_text(row, "aaa", "bbb").index("aaa") < pairwise_text(row, "aaa", "bbb").index("bbb")
    assert pairwise_text(row, "bbb", "aaa").index("bbb") < pairwise_text(row, "bbb", "aaa").index("aaa")


def test_prompts_are_known_by_their_hash() -> None:
    assert {name: prompt.hash for name, prompt in PROMPTS.items()} == {
        "rubric": "5b705cd75cba3411",
        "book": "f1d8e3b153398e32",
        "book-verbose": "7b85df4a8ab85019",
    }  # a change of any of them makes earlier verdicts others; say so in the changelog
    with pytest.raises(SettingsError, match="did you mean rubric"):
        prompt_named("rubrik")
