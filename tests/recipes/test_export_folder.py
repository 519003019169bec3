"""What transformers finds in an exported folder: numbers of the base, every end, and our prompts to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken
from tokenizers import Tokenizer as Fast
from transformers import AutoTokenizer

import instil
from instil.assistant.folder import export_folder
from instil.data.encoding import begin_text, encode_prompt
from instil.data.templates import TEMPLATES, FormTemplate, Template, find_template
from instil.data.tokenizers import load_tokenizer
from instil.model.find import find_here
from instil.model.load import load_decoder, stored_as
from instil.recipes.export.export import export
from instil.records import Example, Turn
from tests.conftest import rows
from tests.recipes.test_export_adapters import Heard
from tests.recipes.test_export_gguf import END, byte_pairs, folder_of, put_first
from tests.recipes.test_model_template import CHAT

SYSTEM, FIRST = Turn("system", "Be brief."), (Turn("user", "Hm?"), Turn("assistant", "No."))
TALKS = {
    "one turn": (),
    "with a system prompt": (SYSTEM,),
    "several turns": FIRST,
    "several turns and a system prompt": (SYSTEM, *FIRST),
    "many turns": FIRST * 3,
}
FORMLESS = {
    "two questions": [("user", "a"), ("user", "b")],
    "an answer first": [("assistant", "a"), ("user", "b")],
    "a system message at last": [("user", "a"), ("assistant", "b"), ("system", "c")],
    "a tool's result": [("user", "a"), ("tool", "b")],
    "a developer's": [("developer", "a"), ("user", "b")],
}


def vocabulary(template: Template, *, begins: bool = False) -> Fast:
    """One with the control tokens of a template."""
    fast = byte_pairs()
    fast.add_special_tokens([AddedToken(name, special=True) for name in sorted(template.control_tokens)])
    if begins:
        put_first(fast, END)
    return fast


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize("name", [*TEMPLATES, "chat.jinja"])
def test_transformers_renders_our_prompts_to_the_byte(name: str, begins: bool, tmp_path: Path) -> None:
    """From the file of its own and from ``tokenizer_config.json``; it refuses what has no form, and drops no turn."""
    (tmp_path / "chat.jinja").write_text(CHAT)
    named = TEMPLATES.get(name)
    fast = vocabulary(named, begins=begins) if named else byte_pairs()
    folder = folder_of(tmp_path / "model", "llama", fast)
    tokenizer = load_tokenizer(folder)
    template = named or find_template(str(tmp_path / name), folder, tokenizer)
    out = tmp_path / "out"
    assert not export_folder(load_decoder(folder), tokenizer, template, out)
    stored = (out / "chat_template.jinja").read_text()
    assert json.loads((out / "tokenizer_config.json").read_text())["chat_template"] == stored
    for where in ("chat_template.jinja", "tokenizer_config.json"):
        theirs = AutoTokenizer.from_pretrained(out)
        for history in TALKS.values():
            row = Example("And {now}?\n\n1,234.5 \u00e9", history=history)
            messages = [turn.as_json() for turn in row.turns[:-1]]
            end = tokenizer.token(tokenizer.eos_id)
            pieces = template.prompt_pieces(row)
            wanted = begin_text(template, tokenizer)
            wanted += "".join(piece.text or end if piece.control else piece.text for piece in pieces)
            assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == wanted, where
            ids = theirs.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)["input_ids"]
            assert ids == encode_prompt(row, template, tokenizer)
        for what, said in FORMLESS.items():
            if not isinstance(template, FormTemplate) or (template.system and what == "a system message at last"):
                continue
            messages = [{"role": role, "content": content} for role, content in said]
            with pytest.raises(jinja2.TemplateError):
                theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        (out / "chat_template.jinja").unlink(missing_ok=True)


def test_every_end_and_the_beginning_are_named(tmp_path: Path) -> None:
    """The template's end first, which need not be one of the base's."""
    template = TEMPLATES["llama3"]
    fast = vocabulary(template, begins=True)
    folder = folder_of(tmp_path / "model", "llama", fast, end=END)
    tokenizer = load_tokenizer(folder)
    assert not export_folder(load_decoder(folder), tokenizer, template, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    eot, end = fast.token_to_id("<|eot_id|>"), fast.token_to_id(END)
    assert eot not in tokenizer.stop_ids
    assert said["eos_token_id"] == [eot, end]
    assert said["bos_token_id"] == end
    theirs, again = AutoTokenizer.from_pretrained(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    assert (theirs.bos_token_id, theirs.eos_token_id) == (end, end)
    assert theirs("in")["input_ids"] == [end, *again.encode("in")]
    assert (again.begin_ids, again.stop_ids) == ((end,), {eot, end})


# Numbers


def stored_in(folder: Path, kind: torch.dtype) -> Path:
    """The same weights, rounded and stored in another type."""
    file = folder / "model.safetensors"
    save_file({name: value.to(kind) for name, value in load_file(file).items()}, file, {"format": "pt"})
    return folder


@pytest.mark.parametrize(("kind", "name"), [(torch.bfloat16, "bf16"), (torch.float16, "f16"), (torch.float32, "f32")])
def test_a_folder_has_the_numbers_of_its_base(kind: torch.dtype, name: str, tmp_path: Path) -> None:
    folder = stored_in(folder_of(tmp_path / "model", "llama"), kind)
    assert stored_as(folder) == name
    heard = Heard()
    made = export(folder, "hf", tmp_path / "out", screen=heard)
    assert {value.dtype for value in load_file(made.path / "model.safetensors").values()} == {kind}
    assert json.loads((made.path / "config.json").read_text())["dtype"] == str(kind).removeprefix("torch.")
    assert made.as_json()["dtype"] == name
    assert made.agreement.exact
    told = [line for line in heard.lines if line.startswith("written in")]
    assert told == [] if name == "f32" else told[0].startswith(f"written in {name}, as {folder} is stored; nothing is")
    whole = export(folder, "hf", tmp_path / "whole", dtype="f32")
    assert {value.dtype for value in load_file(whole.path / "model.safetensors").values()} == {torch.float32}


def test_a_run_has_the_numbers_of_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    folder = stored_in(folder_of(tmp_path / "model", "llama", max_position_embeddings=512), torch.bfloat16)
    run = instil.finetune(rows(12), model=folder, out=tmp_path / "run", max_steps=2, max_new_tokens=2, template="plain")
    heard = Heard()
    made = export(run.path, "hf", tmp_path / "out", screen=heard)
    assert made.dtype == "bf16"
    assert {value.dtype for value in load_file(made.path / "model.safetensors").values()} == {torch.bfloat16}
    assert any("the tuned weights are rounded to it (--dtype f32 keeps every digit)" in line for line in heard.lines)
    assert any(line.startswith("opened again: the likeliest next token is the model's at") for line in heard.lines)
    folder.rename(tmp_path / "gone")  # then nobody knows
    assert export(run.path, "hf", tmp_path / "other").dtype == "f32"


def test_blocks_of_few_bits_are_no_numbers_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "model", "llama", hidden_size=96, intermediate_size=64, head_dim=16)
    for dtype in ("q8_0", "bf16", "f32"):
        file = export(folder, "gguf", tmp_path / f"{dtype}.gguf", dtype=dtype).path
        assert stored_as(file) == dtype
    assert export(tmp_path / "q8_0.gguf", "hf", tmp_path / "a").dtype == "f32"
    assert export(tmp_path / "bf16.gguf", "hf", tmp_path / "b").dtype == "bf16"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path))
    for name in ("no/such-model", "gpt2-xl", "nothing", "../.."):
        assert find_here(name) is None or Path(name).exists()


# Rows in chat programs


def test_rows_that_a_chat_program_asks_in_another_form_are_counted(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "model", "llama", max_position_embeddings=1024)
    how: dict[str, Any] = {"max_steps": 1, "max_new_tokens": 2}
    for template, said in (("alpaca", True), ("chatml", False)):
        run = instil.finetune(rows(40), model=folder, out=tmp_path / template, template=template, **how)
        heard = Heard()
        export(run.path, "gguf", tmp_path / f"{template}.gguf", screen=heard)
        held_out = json.loads((run.path / "responses" / "tuned.json").read_text())
        inputs = sum(bool(row["input"]) for row in held_out)
        wanted = f"{inputs} of {len(held_out)} held-out rows have an input, which the template 'alpaca' puts under a"
        assert 0 < inputs < len(held_out)
        assert any(line.startswith(wanted) for line in heard.lines) == said
