"""Templates to the byte, and user text that stays text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.templates import TEMPLATES, Piece, Template, template_named
from instil.errors import DataError
from instil.records import Example, Turn, blank

WITH = Example(
    "Identify the correct spelling of the following word.", "The correct spelling is 'Occasion.'", "Ocassion"
)
WITHOUT = Example("What is an antonym of 'complicated'?", "An antonym of 'complicated' is 'simple'.")


def test_alpaca_is_the_books_prompt_to_the_byte() -> None:
    alpaca = template_named("alpaca")
    assert alpaca.full_text(WITH) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nIdentify the correct spelling of the following word."
        "\n\n### Input:\nOcassion"
        "\n\n### Response:\nThe correct spelling is 'Occasion.'"
    )
    assert alpaca.full_text(WITHOUT) == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nWhat is an antonym of 'complicated'?"
        "\n\n### Response:\nAn antonym of 'complicated' is 'simple'."
    )


def test_phi3_is_the_form_of_the_figure() -> None:
    phi3 = template_named("phi3")
    assert phi3.full_text(WITH) == (
        "<|user|>\nIdentify the correct spelling of the following word.\nOcassion\n"
        "<|assistant|>\nThe correct spelling is 'Occasion.'"
    )
    assert phi3.prompt(WITHOUT) == "<|user|>\nWhat is an antonym of 'complicated'?\n<|assistant|>\n"


def test_chatml_marks_its_control_tokens() -> None:
    pieces = template_named("chatml").prompt_pieces(WITHOUT)
    assert [piece.text for piece in pieces if piece.control] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


@pytest.mark.parametrize("blank_input", [" ", "\n", "\r\n \t", "\u00a0", "\u3000", "\u200b"])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_blank_input_is_none(name: str, blank_input: str) -> None:
    template = template_named(name)
    assert template.pieces(Example("Say hi.", "Hi.", blank_input)) == template.pieces(Example("Say hi.", "Hi."))
    earlier = Turn("user", "Before.", blank_input), Turn("assistant", "Yes.")
    plain = Turn("user", "Before."), Turn("assistant", "Yes.")
    assert template.pieces(Example("a", "b", history=earlier)) == template.pieces(Example("a", "b", history=plain))
    assert template.prompt(Example("Say hi.", input=" x ")) != template.prompt(Example("Say hi."))
    assert " x " in template.prompt(Example("Say hi.", input=" x "))


@given(st.text(), st.text(min_size=1).filter(lambda text: not blank(text)))
@pytest.mark.parametrize("name", TEMPLATES)
def test_user_text_goes_in_once_and_unchanged(name: str, instruction: str, text: str) -> None:
    nasty = instruction + "{input}{instruction}{control:<|im_end|>}"
    pieces = template_named(name).prompt_pieces(Example(nasty, "", text))
    controls = [piece for piece in pieces if piece.control]
    harmless = [piece for piece in template_named(name).prompt_pieces(Example("a", "", "b")) if piece.control]
    assert controls == harmless
    assert nasty in "".join(piece.text for piece in pieces)
    assert text in "".join(piece.text for piece in pieces)


def test_a_conversation_is_one_row_of_many_turns() -> None:
    """Every question in the template's form, every answer trained on with its end; a system text before the first."""
    history = (Turn("system", "Be brief."), Turn("user", "One and one?"), Turn("assistant", "Two."))
    row = Example("And one more?", "Three.", history=history)
    pieces = template_named("chatml").pieces(row)
    assert "".join(piece.text for piece in pieces) == (
        "<|im_start|>user\nBe brief.\n\nOne and one?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>"
        "<|im_start|>user\nAnd one more?<|im_end|>\n<|im_start|>assistant\nThree.<|im_end|>"
    )
    assert [piece.text for piece in pieces if piece.trained] == ["Two.", "<|im_end|>", "Three.", "<|im_end|>"]
    assert template_named("chatml").pieces(Example("Hi", "Ho"))[-2:] == [
        Piece("Ho", trained=True, answer=True),
        Piece("<|im_end|>", control=True, trained=True),
    ]


def test_a_turn_without_a_form_is_refused() -> None:
    row = Example("And?", "So.", history=(Turn("tool", "{}"),))
    with pytest.raises(DataError, match="no form for a turn of the tool"):
        template_named("alpaca").pieces(row)


def test_hashes_differ_and_survive_the_file() -> None:
    assert len({template.hash for template in TEMPLATES.values()}) == len(TEMPLATES)
    for template in TEMPLATES.values():
        assert Template.from_json(template.as_json(), "x") == template


def test_an_edited_template_file_is_refused() -> None:
    stored = template_named("alpaca").as_json()
    with pytest.raises(DataError, match="hash"):
        Template.from_json({**stored, "without_input": "Do: {instruction}"}, "template.json")
    with pytest.raises(DataError, match="not a template"):
        Template.from_json({"name": "x"}, "template.json")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean alpaca"):
        template_named("alpacca")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_renders_the_same_prompt(name: str) -> None:
    import jinja2

    text = 'A "quoted" {{ thing }}\nwith lines.'
    rendered = (
        jinja2.Environment()
        .from_string(template_named(name).chat_template())
        .render(messages=[{"role": "user", "content": text}], add_generation_prompt=True)
    )
    assert rendered == template_named(name).prompt(Example(text))
