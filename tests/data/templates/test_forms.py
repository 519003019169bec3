"""Templates to the byte, and user text that stays text."""

from __future__ import annotations

from pathlib import Path

import pytest
import trl
from hypothesis import given
from hypothesis import strategies as st

from instil.data.templates import TEMPLATES, Piece, template_from, template_named
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
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nOne and one?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>\n"
        "<|im_start|>user\nAnd one more?<|im_end|>\n<|im_start|>assistant\nThree.<|im_end|>"
    )
    assert [piece.text for piece in pieces if piece.trained] == ["Two.", "<|im_end|>", "Three.", "<|im_end|>"]
    assert template_named("chatml").pieces(Example("Hi", "Ho"))[-2:] == [
        Piece("Ho", trained=True, answer=True),
        Piece("<|im_end|>", control=True, trained=True),
    ]


def test_hashes_differ_and_survive_the_file() -> None:
    assert len({template.hash for template in TEMPLATES.values()}) == len(TEMPLATES)
    for template in TEMPLATES.values():
        assert template_from(template.as_json(), "x") == template


def test_an_edited_template_file_is_refused() -> None:
    stored = template_named("alpaca").as_json()
    with pytest.raises(DataError, match="hash"):
        template_from({**stored, "without_input": "Do: {instruction}"}, "template.json")
    with pytest.raises(DataError, match="not a template"):
        template_from({"name": "x"}, "template.json")


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(DataError, match="did you mean alpaca"):
        template_named("alpacca")


HISTORY = (Turn("system", "Be brief."), Turn("user", "One and one?"), Turn("assistant", "Two."))
CONVERSATION = Example("And one more?", "Three.", history=HISTORY)
START = "<|start_header_id|>"
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
# Every template's bytes of a whole conversation, up to the last answer's end token (an empty one is the tokenizer's).
WRITTEN = {
    "alpaca": (
        f"{PREAMBLE}\n\n### Instruction:\nBe brief.\n\nOne and one?\n\n### Response:\nTwo."
        f"{PREAMBLE}\n\n### Instruction:\nAnd one more?\n\n### Response:\nThree."
    ),
    "alpaca-stanford": (
        f"{PREAMBLE}\n\n### Instruction:\nBe brief.\n\nOne and one?\n\n### Response:Two."
        f"{PREAMBLE}\n\n### Instruction:\nAnd one more?\n\n### Response:Three."
    ),
    "phi3": ("<|user|>\nBe brief.\n\nOne and one?\n<|assistant|>\nTwo.<|user|>\nAnd one more?\n<|assistant|>\nThree."),
    "chatml": (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne and one?<|im_end|>\n"
        "<|im_start|>assistant\nTwo.<|im_end|>\n<|im_start|>user\nAnd one more?<|im_end|>\n"
        "<|im_start|>assistant\nThree.<|im_end|>"
    ),
    "llama3": (
        f"{START}system<|end_header_id|>\n\nBe brief.<|eot_id|>{START}user<|end_header_id|>\n\nOne and one?<|eot_id|>"
        f"{START}assistant<|end_header_id|>\n\nTwo.<|eot_id|>{START}user<|end_header_id|>\n\nAnd one more?<|eot_id|>"
        f"{START}assistant<|end_header_id|>\n\nThree.<|eot_id|>"
    ),
    "gemma": (
        "<start_of_turn>user\nBe brief.\n\nOne and one?<end_of_turn>\n<start_of_turn>model\nTwo.<end_of_turn>\n"
        "<start_of_turn>user\nAnd one more?<end_of_turn>\n<start_of_turn>model\nThree.<end_of_turn>"
    ),
    "plain": "Be brief.\n\nOne and one?\nTwo.And one more?\nThree.",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_conversation_to_the_byte(name: str) -> None:
    pieces = template_named(name).pieces(CONVERSATION)
    assert "".join(piece.text for piece in pieces) == WRITTEN[name]
    end = template_named(name).stop
    assert [piece.text for piece in pieces if piece.trained] == ["Two.", end, "Three.", end]
    last = [piece.text for piece in template_named(name).pieces(CONVERSATION, turns="last") if piece.trained]
    assert last == ["Three.", end]


def test_stanfords_two_preambles() -> None:
    stanford = template_named("alpaca-stanford")
    assert stanford.prompt(WITH) == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request."
        "\n\n### Instruction:\nIdentify the correct spelling of the following word."
        "\n\n### Input:\nOcassion\n\n### Response:"
    )
    assert stanford.prompt(WITHOUT) == (
        f"{PREAMBLE}\n\n### Instruction:\nWhat is an antonym of 'complicated'?\n\n### Response:"
    )


@pytest.mark.parametrize(("ours", "theirs"), [("llama3", "llama3"), ("gemma", "gemma"), ("chatml", "smollm2")])
def test_the_usual_markups_are_those_of_their_models(ours: str, theirs: str) -> None:
    """But for what begins a text, which a tokenizer puts there, and the line break after the last end."""
    history = CONVERSATION.history[1:] if ours == "gemma" else CONVERSATION.history  # gemma's knows no system message
    row = Example(CONVERSATION.instruction, CONVERSATION.output, history=history)
    text = "".join(piece.text for piece in template_named(ours).pieces(row))
    assert f"<s>{text}" == rendered_by_transformers(theirs, row).removesuffix("\n").replace("<s><s>", "<s>")


def rendered_by_transformers(name: str, row: Example) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    source = SMOLLM2 if name == "smollm2" else (TRL / f"{name}.jinja").read_text(encoding="utf-8")
    messages = [turn.as_json() for turn in row.turns]
    return str(render_jinja_template([messages], chat_template=source, bos_token="<s>", eos_token="</s>")[0][0])


TRL = Path(trl.__file__).parent / "chat_templates"
SMOLLM2 = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("begin", ["", "<s>", "<s> "])
@pytest.mark.parametrize("name", TEMPLATES)
def test_the_chat_template_renders_the_same_conversation(name: str, begin: str) -> None:
    """In transformers' own sandbox: the prompt of several turns, with and without a system message, and the whole."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = template_named(name)
    text = 'A "quoted" {{ thing }} {control:<|im_end|>}\nwith lines.\u00e9'
    for row in (Example(text), Example(text, history=HISTORY), Example(text, history=HISTORY[1:]), Example(" x")):
        messages = [turn.as_json() for turn in row.turns[:-1]]
        (made,), _ = render_jinja_template(
            [messages], chat_template=template.chat_template(begin), add_generation_prompt=True, eos_token="</s>"
        )
        wanted = "".join(piece.text or "</s>" * piece.control for piece in template.prompt_pieces(row))
        space = " " if begin.endswith(" ") and not wanted.startswith(" ") else ""
        assert made == begin.strip() + space + wanted
        answered = Example(text, "Ho", history=row.history)
        (made,), _ = render_jinja_template(
            [[turn.as_json() for turn in answered.turns]], chat_template=template.chat_template(), eos_token="</s>"
        )
        assert made == "".join(piece.text or "</s>" for piece in template.pieces(answered))


ASKED, SAID = Turn("user", "Hm?"), Turn("assistant", "So.")
WITHOUT_FORM = {
    "tool": (ASKED, Turn("assistant", "", tool_calls='[{"function": {"name": "f"}}]'), Turn("tool", "{}"), SAID),
    "calls": (ASKED, Turn("assistant", "", tool_calls='[{"function": {"name": "f"}}]')),
    "reasoning": (ASKED, Turn("assistant", "So.", reasoning="Hm")),
    "two questions": (ASKED, ASKED, SAID),
    "an answer first": (SAID, ASKED, SAID),
    "a system message before an answer": (ASKED, Turn("system", "x"), SAID),
}


@pytest.mark.parametrize("kind", WITHOUT_FORM)
@pytest.mark.parametrize("name", TEMPLATES)
def test_what_has_no_form_is_refused_here_and_in_the_chat_template(name: str, kind: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    turns = WITHOUT_FORM[kind]
    at = max(number for number, turn in enumerate(turns) if turn.role == "user")
    row = Example(
        turns[at].content,
        turns[-1].content,
        history=turns[:at],
        steps=turns[at + 1 : -1],
        reasoning=turns[-1].reasoning,
        tool_calls=turns[-1].tool_calls,
    )
    with pytest.raises(DataError, match=r"no form for|system message after"):
        template_named(name).pieces(row)
    messages = [turn.as_json() for turn in row.turns]
    with pytest.raises(Exception, match="no form for"):
        render_jinja_template([messages], chat_template=template_named(name).chat_template(), eos_token="</s>")


@pytest.mark.parametrize("name", TEMPLATES)
def test_tools_have_no_form(name: str) -> None:
    with pytest.raises(DataError, match="no form for tools"):
        template_named(name).pieces(Example("a", "b", tools='[{"type": "function"}]'))
    with pytest.raises(DataError, match="no form for tools"):
        template_named(name).prompt_pieces(Example("a", "b", tools='[{"type": "function"}]'))
