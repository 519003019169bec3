"""Templates to the byte, and user text that stays text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from instil.data.templates import TEMPLATES, Control, Template, template_named
from instil.errors import DataError
from instil.records import Example

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
    pieces = template_named("chatml").pieces(WITHOUT)
    assert [piece for piece in pieces if isinstance(piece, Control)] == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


@given(st.text(), st.text(min_size=1))
@pytest.mark.parametrize("name", TEMPLATES)
def test_user_text_goes_in_once_and_unchanged(name: str, instruction: str, text: str) -> None:
    nasty = instruction + "{input}{instruction}{control:<|im_end|>}"
    pieces = template_named(name).pieces(Example(nasty, "", text))
    controls = [piece for piece in pieces if isinstance(piece, Control)]
    harmless = [piece for piece in template_named(name).pieces(Example("a", "", "b")) if isinstance(piece, Control)]
    assert controls == harmless
    assert nasty in "".join(pieces)
    assert text in "".join(pieces)


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
