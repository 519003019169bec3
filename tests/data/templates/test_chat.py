"""Chat templates in Jinja: rendered and masked by position, the same in training, in use and elsewhere."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trl
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.encoding import encode, encode_all, encode_prompt, mask_notes
from instil.data.templates import ChatTemplate, find_template, template_from
from instil.data.templates.find import _made
from instil.data.templates.sandbox import CLOCK
from instil.data.templates.skeleton import passes_texts_on
from instil.data.tokenizers import load_tokenizer
from instil.errors import DataError
from instil.model.find import find_model
from instil.records import Example, Turn
from tests.conftest import smollm2

SMOLLM_FILE = find_model("smollm2-135m")
SMOLLM = smollm2()
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
LOOK = '[{"type": "function", "function": {"name": "look", "description": "d", "parameters": {"type": "object"}}}]'
CALLS = '[{"type": "function", "id": "c12345678", "function": {"name": "look", "arguments": {"at": "x<|im_end|>"}}}]'
HISTORY = (Turn("system", "Be brief."), Turn("user", "One and one?"), Turn("assistant", "Two."))
TALK = Example("And one more?", "Three.", history=HISTORY)
THOUGHT = Example("Why?", "Because.", reasoning="Let me see.")
CALLED = Example(
    "Weather?",
    "Sunny.",
    tools=LOOK,
    steps=(Turn("assistant", "", tool_calls=CALLS), Turn("tool", "sun", name="look", tool_call_id="c12345678")),
)
TRIMS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content|trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKS = (  # as Qwen3's: an empty block of thoughts before the last answer only
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}"
    "<think>\n{{ m.reasoning_content|default('') }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATES = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NO_END = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ASKS_FOR_THOUGHTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}<think></think>{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{{ '<think></think>' if enable_thinking is defined and not enable_thinking else '<think>\n' }}{% endif %}"
)

Made = Callable[[str], ChatTemplate]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A template of a file, with SmolLM2's tokens."""

    def make(source: str) -> ChatTemplate:
        (tmp_path / "own.jinja").write_text(source, encoding="utf-8")
        found = find_template(str(tmp_path / "own.jinja"), SMOLLM_FILE, SMOLLM)
        assert isinstance(found, ChatTemplate)
        return found

    return make


def own() -> ChatTemplate:
    found = find_template("model", SMOLLM_FILE, SMOLLM)
    assert isinstance(found, ChatTemplate)
    return found


def text_of(template: ChatTemplate, row: Example, **how: Any) -> str:
    return "".join(piece.text for piece in template.pieces(row, **how))


def learnt(template: ChatTemplate, row: Example, **how: Any) -> list[str]:
    """The trained parts, each as one text."""
    parts: list[str] = []
    before = False
    for piece in template.pieces(row, **how):
        if piece.trained:
            parts = [*parts[:-1], parts[-1] + piece.text] if before else [*parts, piece.text]
        before = piece.trained
    return parts


def test_the_models_own_template_to_the_byte() -> None:
    template = own()
    assert (template.name, template.stop, template.written) == ("model", "<|im_end|>", "")
    assert text_of(template, Example("Hi", "Ho")) == (
        f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"
    )
    assert text_of(template, TALK) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nOne and one?<|im_end|>\n<|im_start|>assistant\n"
        "Two.<|im_end|>\n<|im_start|>user\nAnd one more?<|im_end|>\n<|im_start|>assistant\nThree.<|im_end|>"
    )
    assert learnt(template, TALK) == ["Two.<|im_end|>", "Three.<|im_end|>"]
    assert learnt(template, TALK, turns="last") == ["Three.<|im_end|>"]
    asked = template.prompt(Example("Sum.", input="2 and 3"))
    assert asked.endswith("user\nSum.\n2 and 3<|im_end|>\n<|im_start|>assistant\n")


def test_texts_that_a_template_strips(made: Made) -> None:
    row = Example(" Hi \n", "\n Ho ", history=(Turn("user", " a "), Turn("assistant", " b\n")))
    assert text_of(made(TRIMS), row) == (
        "<|im_start|><|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"  # the first is bos_token
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHo<|im_end|>"
    )
    assert learnt(made(TRIMS), row) == ["b<|im_end|>", "Ho<|im_end|>"]


def test_an_empty_block_of_thoughts_is_learnt_and_earlier_answers_are_read(made: Made) -> None:
    template = made(THINKS)
    assert template.written == template.preface(header=True) == "<think>\n\n</think>\n\n"
    assert learnt(template, Example("Hi", "Ho")) == ["<think>\n\n</think>\n\nHo<|im_end|>"]
    assert learnt(template, THOUGHT) == ["<think>\nLet me see.\n</think>\n\nBecause.<|im_end|>"]
    assert template.prompt(Example("Hi")) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    rendered = template.rendered(TALK)
    assert rendered.left_out == 1
    assert learnt(template, TALK) == ["<think>\n\n</think>\n\nThree.<|im_end|>"]
    assert template.rendered(TALK, turns="last").left_out == 0
    unweighed = replace(TALK, history=(*HISTORY[:2], replace(HISTORY[2], weight=0)))
    assert template.rendered(unweighed).left_out == 0
    note = "1 earlier answer only read, not trained on, since the template writes them otherwise"
    assert note in mask_notes([encode(TALK, template, SMOLLM)])[0]
    assert mask_notes([encode(Example("Hi", "Ho"), template, SMOLLM)]) == []


def test_a_template_that_asks_for_thoughts_is_told_that_there_are_none(made: Made) -> None:
    template = made(ASKS_FOR_THOUGHTS)
    assert ("enable_thinking", False) in template.variables
    assert template.prompt(Example("Hi")).endswith("<|im_start|>assistant\n<think></think>")
    assert learnt(template, Example("Hi", "Ho")) == ["Ho<|im_end|>"]


def test_generation_blocks_are_taken(made: Made) -> None:
    assert learnt(made(GENERATES), TALK) == ["Two.<|im_end|>", "Three.<|im_end|>"]


def test_a_template_without_an_end_gets_the_tokenizers(made: Made) -> None:
    template = made(NO_END)
    assert template.stop == ""
    pieces = template.pieces(Example("Hi", "Ho"))
    assert [(piece.text, piece.control) for piece in pieces if piece.trained] == [("Ho", False), ("", True)]
    assert template.rendered(TALK).left_out == 1
    assert encode(Example("Hi", ""), template, SMOLLM).ids[-1] == SMOLLM.eos_id


def test_calls_of_tools_are_learnt_with_all_their_marks() -> None:
    template = of_trl("qwen3_instruct_2507")
    call = '<tool_call>\n{"name": "look", "arguments": {"at": "x<|im_end|>"}}\n</tool_call><|im_end|>'
    assert learnt(template, CALLED) == [call, "Sunny.<|im_end|>"]
    controls = [piece.text for piece in template.pieces(CALLED) if piece.form and "<|im_end|>" in piece.text]
    assert all("x<|im_end|>" not in text for text in controls)
    encoded = encode(CALLED, template, SMOLLM)
    ends = [at for at, index in enumerate(encoded.ids) if index == SMOLLM.control_id("<|im_end|>")]
    assert len(ends) == 5  # of the tools, the question, the call, the tool's message and the answer


class MarksOfAll:
    """A tokenizer that has the marks of every family."""

    eos = "<|eos|>"
    names: Mapping[str, str] = {"bos_token": "<|bos|>", "eos_token": "<|eos|>"}

    def marks_in(self, text: str) -> list[tuple[str, bool]]:
        marks = r"(<[|｜][^|｜]*[|｜]>|<(?:start|end)_of_turn>|<turn\||<\|turn>)"
        return [(part, number % 2 == 1) for number, part in enumerate(re.split(marks, text)) if part]


def of_trl(name: str) -> ChatTemplate:
    found = find_template(str(TRL / f"{name}.jinja"), SMOLLM_FILE, MarksOfAll())
    assert isinstance(found, ChatTemplate)
    return found


TRL = Path(trl.__file__).parent / "chat_templates"
NOT_RENDERED = ("deepseek_r1_distill", "deepseekv3", "idefics3", "smolvlm", "llava_next")
NAMES = sorted(path.stem for path in TRL.glob("*.jinja") if not path.stem.startswith(NOT_RENDERED))
ROWS = {"plain": Example("Hi there", "Ho you"), "talk": TALK, "thought": THOUGHT, "called": CALLED}


@pytest.mark.parametrize("name", NAMES)
def test_it_is_what_transformers_renders(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole conversations as far as the last answer's end, and prompts, by the source and by what is exported."""
    from transformers.utils import chat_template_utils as theirs

    class Today:
        now = staticmethod(lambda: CLOCK)

    monkeypatch.setattr(theirs, "datetime", Today)
    template, source = of_trl(name), (TRL / f"{name}.jinja").read_text(encoding="utf-8")
    rendered = 0
    for row in ROWS.values():
        try:
            whole = text_of(template, row)
        except DataError:
            continue
        rendered += 1
        messages = [turn.as_json() for turn in row.turns]
        tools, variables = json.loads(row.tools) if row.tools else None, dict(template.variables)
        wanted = theirs.render_jinja_template([messages], tools=tools, chat_template=source, **variables)[0][0]
        assert wanted.startswith(whole)
        assert len(wanted.strip()) - len(whole) <= len("<|END_OF_TURN_TOKEN|>")  # which some write after their end
        variables.pop("enable_thinking", None)
        monkeypatch.setattr(Today, "now", lambda: 1 / 0)
        prompt = theirs.render_jinja_template(
            [messages[:-1]],
            tools=tools,
            chat_template=template.chat_template(),
            add_generation_prompt=True,
            **variables,
        )[0][0]
        monkeypatch.setattr(Today, "now", lambda: CLOCK)
        assert prompt == template.prompt(row) == whole[: len(prompt)]
    assert rendered


@pytest.mark.parametrize("name", ["deepseek_r1_distill", "deepseekv3"])
def test_a_template_that_asks_otherwise_than_it_writes_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"asks for an answer with .*<think>.* but writes one after"):
        of_trl(name)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """SmolLM2's tokenizer as transformers opens it, with its chat template."""
    from transformers import AutoTokenizer

    folder = tmp_path_factory.mktemp("smollm2")
    SMOLLM.save(folder)
    (folder / "chat_template.jinja").write_text(own().chat_template(), encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"]), min_size=1, max_size=20)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=3), st.one_of(st.none(), TEXT))
def test_ids_are_those_of_apply_chat_template(reference: Any, turns: list[tuple[str, str]], system: str | None) -> None:
    """As long as no text spells a control token, which there becomes one."""
    history = [turn for ask, say in turns[:-1] for turn in (Turn("user", ask), Turn("assistant", say))]
    if system is not None:
        history.insert(0, Turn("system", system))
    row = Example(*turns[-1], history=tuple(history))
    messages = [turn.as_json() for turn in row.turns]
    asked = reference.apply_chat_template(messages[:-1], add_generation_prompt=True, tokenize=True)["input_ids"]
    assert encode_prompt(row, own(), SMOLLM) == asked
    whole = reference.apply_chat_template(messages, tokenize=True)["input_ids"]
    assert SMOLLM.decode(whole[-1:]) == "\n"
    encoded = encode(row, own(), SMOLLM)
    if not turns[-1][1].startswith("\n"):
        assert list(encoded.ids) == whole[:-1]
    assert list(encoded.ids[: encoded.prompt_length]) == asked


def test_named_templates_and_tokens_of_a_folder(tmp_path: Path) -> None:
    SMOLLM.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    with_tools = GENERATES.replace("{% for m", "{{ tools|tojson }}{% for m", 1)
    named = [{"name": "default", "template": TRIMS}, {"name": "tool_use", "template": with_tools}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": named}))
    template = find_template("model", tmp_path, load_tokenizer(tmp_path))
    assert template.prompt(Example("Hi")).startswith("<|im_start|>user\nHi" if not config.get("bos_token") else "<")
    assert '"name": "look"' in template.prompt(replace(CALLED, steps=()))
    assert template.chat_template() == TRIMS
    assert template.other_chat_templates == {"tool_use": with_tools}
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "rag.jinja").write_text(GENERATES)
    (tmp_path / "chat_template.jinja").write_text(GENERATES)
    template = find_template("model", tmp_path, load_tokenizer(tmp_path))
    assert template.chat_template() == GENERATES
    assert set(template.other_chat_templates) == {"rag", "tool_use"}


LOSES = {
    "tools": (GENERATES, CALLED, "does not tell the model of tools"),
    "reasoning": (GENERATES, THOUGHT, "leaves out the reasoning of a message of the assistant"),
    "a system message": (
        GENERATES.replace("for m in messages", "for m in messages if m.role != 'system'"),
        TALK,
        "leaves out the text of the system message",
    ),
    "a part of an answer": (
        GENERATES.replace("{{ m.content }}<|im_end|>{% endg", "{{ m.content[:50] }}<|im_end|>{% endg"),
        Example("Hi", "Hello " * 20),
        "leaves out a part of a message of the assistant",
    ),
    "alternation": (
        "{% if messages[0].role == 'system' %}{{ raise_exception('No rules') }}{% endif %}" + GENERATES,
        TALK,
        "it refuses this conversation: No rules",
    ),
}


@pytest.mark.parametrize("kind", LOSES)
def test_nothing_of_a_row_is_lost_in_silence(made: Made, kind: str) -> None:
    source, row, said = LOSES[kind]
    with pytest.raises(DataError, match=said):
        made(source).pieces(row)
    template = made(source)
    with pytest.raises(DataError, match="2 rows cannot be put into this form") as caught:
        encode_all(
            [replace(row, row=3), Example("a", "b"), replace(row, row=7)], lambda one: encode(one, template, SMOLLM)
        )
    assert "rows 3, 7: the template 'own'" in str(caught.value)


def test_arguments_of_calls_are_objects_or_text(made: Made) -> None:
    as_text = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for c in m.tool_calls|default([]) %}"
        "{{ c.function.name + c.function.arguments }}{% endfor %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    written_as_text = CALLS.replace('{"at": "x<|im_end|>"}', json.dumps('{"at": "x<|im_end|>"}'))
    for calls in (CALLS, written_as_text):
        row = Example("Weather?", tool_calls=calls)
        assert made(as_text).texts_of_calls
        assert learnt(made(as_text), row) == ['look{"at": "x<|im_end|>"}<|im_end|>']
        assert '{"name": "look", "arguments": {"at": "x<|im_end|>"}}' in text_of(of_trl("qwen3"), row)


def test_it_survives_its_file_and_a_pickle(made: Made) -> None:
    for template in (own(), made(THINKS), made(ASKS_FOR_THOUGHTS)):
        stored = json.loads(json.dumps(template.as_json()))
        assert template_from(stored, "x") == template
        assert pickle.loads(pickle.dumps(template)) == template
        with pytest.raises(DataError, match="hash"):
            template_from({**stored, "templates": {"default": "other"}}, "x")
        with pytest.raises(DataError, match="not a template"):
            template_from({**stored, "templates": {"default": 3}}, "x")
    assert made(THINKS).hash != made(TRIMS).hash


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{{ messages", "own.jinja cannot be used: .* it fails: "),
        ("{% for i in range(10**9) %}{% endfor %}", "own.jinja cannot be used: .* it was stopped: "),
        ("{{ raise_exception('never') }}", "it refuses this conversation: never"),
        (
            GENERATES.replace("<|im_end|>", "<|done|>"),
            "ends answers with '<|done|>', which is no control token of this",
        ),
        ("nothing", "leaves out the text of a message of the user"),
        ("{% for m in messages %}{{ m.content }}{{ 'a' * 10**9 }}{% endfor %}", "it was stopped: it makes too much"),
    ],
)
def test_a_file_that_is_no_chat_template(made: Made, source: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        made(source)


def test_what_is_not_there_is_said(tmp_path: Path, tiny_folder: Path) -> None:
    with pytest.raises(DataError, match="no such file; wanted a chat template"):
        find_template(str(tmp_path / "none.jinja"), SMOLLM_FILE, SMOLLM)
    with pytest.raises(DataError, match="carries no chat template; take one by name"):
        find_template("model", tiny_folder, load_tokenizer(tiny_folder))
    with pytest.raises(DataError, match="did you mean chatml"):
        find_template("chatlm", SMOLLM_FILE, SMOLLM)


PASSES = (
    "{% for m in messages %}{% if m.role == 'user' or not loop.last %}<{{ m['role'] ~ '>' ~ m['content'] ~ '\n' }}"
    "{% else %}<assistant>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
READS = {  # what hangs on a text, or reads more than text and role
    "a filter": "{% for m in messages %}{{ m.content|trim }}{% endfor %}",
    "a method": "{% for m in messages %}{{ m.content.strip() }}{% endfor %}",
    "a test": "{% for m in messages %}{% if m.content %}{{ m.content }}{% endif %}{% endfor %}",
    "a comparison": "{% for m in messages %}{{ 'a' in m.content }}{% endfor %}",
    "a choice": "{% for m in messages %}{{ m.content if m.role == 'user' else '' }}{% endfor %}",
    "a slice": "{% for m in messages %}{{ m.content[1:] }}{% endfor %}",
    "a letter": "{% for m in messages %}{{ m.content[0] }}{% endfor %}",
    "a name": "{% for m in messages %}{% set c = m.content %}{{ c }}{% endfor %}",
    "a message": "{% for m in messages %}{{ m }}{% endfor %}",
    "messages": "{{ messages }}",
    "the first message": "{{ messages[0] }}{{ messages[0].content == 'a' }}",
    "some messages": "{% for m in messages[1:] %}{{ m.content }}{% endfor %}",
    "messages in a condition": "{% for m in messages if m.content %}{{ m.content }}{% endfor %}",
    "another field": "{% for m in messages %}{{ m.name }}{{ m.content }}{% endfor %}",
    "a field by its name": "{% for m in messages %}{{ m[m.role] }}{% endfor %}",
    "keys": "{% for m in messages %}{% for k in m %}{{ k }}{% endfor %}{% endfor %}",
    "tools": "{% for m in messages %}{{ m.content }}{% endfor %}{{ tools }}",
    "neighbours": "{% for m in messages %}{{ loop.previtem.content }}{{ m.content }}{% endfor %}",
    "a changed value": "{% for m in messages %}{{ loop.changed(m.content) }}{% endfor %}",
    "a macro": "{% macro f(m) %}{{ m.content }}{% endmacro %}{% for m in messages %}{{ f(m) }}{% endfor %}",
    "twice": "{% for m in messages %}{{ m.content * 2 }}{% endfor %}",
    "a loop named messages": "{% for messages in messages %}{{ messages.content }}{% endfor %}",
    "no template": "{% for",
}


def test_what_passes_texts_on_is_seen() -> None:
    assert passes_texts_on(dict(own().sources)["default"])
    assert passes_texts_on(PASSES) and passes_texts_on(NO_END)
    assert [name for name, source in READS.items() if passes_texts_on(source)] == []


CONTENT = st.text("a \n<|im_end|>\u00e9", max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(CONTENT, CONTENT, st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=3),
    st.booleans(),
    st.sampled_from(["all", "last"]),
)
@pytest.mark.parametrize("source", ["model", PASSES, NO_END])
def test_a_skeleton_gives_what_rendering_gives(
    source: str, turns: list[tuple[str, str, float]], system: bool, which: str
) -> None:
    template = own() if source == "model" else _made("own", {"default": source}, SMOLLM, "own")
    history = [Turn("system", "Be \n brief. ")] * system
    for ask, say, weight in turns[:-1]:
        history += [Turn("user", f"q{ask}"), Turn("assistant", f"a{say}", weight=weight)]
    row = Example(f"q{turns[-1][0]}", turns[-1][1], history=tuple(history), weight=turns[-1][2], input="x")
    in_full = SimpleNamespace(
        rendered=lambda *how: template._in_full(row.turns, "", "response", how[2]),
        writes_begin=True,
        stop=template.stop,
    )
    assert template._skeleton(row.turns, "") is not None
    ours = encode(row, template, SMOLLM, turns=which)  # type: ignore[arg-type]
    assert ours == encode(row, in_full, SMOLLM, turns=which)  # type: ignore[arg-type]
    assert template.prompt(row) == template._render(row.turns[:-1], "", prompt=True)
    assert list(ours.ids[: ours.prompt_length]) == encode_prompt(row, template, SMOLLM)


def test_a_skeleton_leaves_out_nothing() -> None:
    """What is not in it is rendered in full, which says what is missing."""
    without_rules = (
        "{% for m in messages %}{% if m.role != 'system' %}<{{ m.role }}>{{ m.content }}{% endif %}{% endfor %}"
    )
    template = _made(
        "own", {"default": without_rules + "{% if add_generation_prompt %}<assistant>{% endif %}"}, SMOLLM, ""
    )
    assert passes_texts_on(dict(template.sources)["default"])
    for row in (TALK, THOUGHT, CALLED):
        with pytest.raises(DataError, match=r"leaves out the|does not tell the model"):
            template.pieces(row)
    with pytest.raises(DataError, match="leaves out the text of the system message"):
        template.prompt_pieces(TALK)


def test_a_template_that_escapes_is_refused(made: Made) -> None:
    """What it writes as HTML would be told from a user's text no more."""
    template = made(
        GENERATES.replace("{{ m.content }}<|im_end|>{% endg", "{{ m.content|escape + '<|im_end|>' }}{% endg")
    )
    with pytest.raises(DataError, match="escapes text"):
        template.pieces(Example("Hi", "Ho"))
