"""A model's own chat template from the first row to the last export."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import instil
from instil.assistant.assistant import load
from instil.assistant.folder import differences
from instil.data.encoding import begin_text, encode_prompt
from instil.data.templates import TEMPLATES, FormTemplate, carries_its_own, kept_template, read_template
from instil.errors import DataError, SettingsError, TemplateMismatch
from instil.model.find import find_model
from instil.recipes.export.export import export
from instil.recipes.inspect import inspect
from instil.records import Example, Turn
from instil.settings.options import Settings
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from tests.conftest import rows, smollm2
from tests.recipes.test_export import gpt2_folder
from tests.recipes.test_export_gguf import folder_of

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content|trim }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
QUICK: dict[str, Any] = {"max_steps": 2, "max_new_tokens": 3}
TALK = Example("So?", "Yes.", history=(Turn("system", "Be brief."), Turn("user", "Hm?"), Turn("assistant", "No.")))


@pytest.fixture(scope="module")
def talker(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("talker") / "model"))
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tuned(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned")
    (out / "rows.json").write_text(json.dumps(rows(40)))
    return instil.finetune(out / "rows.json", model=talker, out=out / "run", template="model", **QUICK).path


def test_a_run_keeps_the_models_template(talker: Path, tuned: Path) -> None:
    stored = read_template(tuned / "model" / "template.json")
    assert (stored.name, stored.stop) == ("model", "<|endoftext|>")
    settings = instil_toml(tuned)
    assert settings["settings"]["data"]["template"] == "model"
    assert settings["hashes"]["template"] == stored.hash
    assert (tuned / "model" / "chat_template.jinja").read_text() == CHAT
    assert load(tuned).template == stored == load(talker, template="model").template
    assert load(tuned).respond("Double 2.", max_new_tokens=2) is not None
    # What was tuned is tuned on with the same, and with no other.
    again = prepare(rows(40), tuned, Settings())
    assert (again.template, again.settings.data.template) == (stored, "model")
    with pytest.raises(TemplateMismatch, match="was tuned with the template 'model', not 'alpaca'"):
        prepare(rows(40), tuned, with_template("alpaca"))
    with pytest.raises(TemplateMismatch, match="was tuned with the template 'model', not 'phi3'"):
        load(tuned, template="phi3")


def instil_toml(run: Path) -> dict[str, Any]:
    import tomllib

    return tomllib.loads((run / "run.toml").read_text())


def test_transformers_renders_the_exported_prompt_with_the_ids_of_training(tuned: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    out = export(tuned, "hf", tmp_path / "hf").path
    theirs, assistant = AutoTokenizer.from_pretrained(out), load(tuned)
    for row in (TALK, Example("Double 3.")):
        messages = [turn.as_json() for turn in row.turns[:-1]]
        asked = theirs.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
        assert asked == encode_prompt(row, assistant.template, assistant.tokenizer)
    assert differences(out, assistant.tokenizer, assistant.template, [TALK]) == []
    (out / "chat_template.jinja").write_text(CHAT.replace("[{{ m.role", "<{{ m.role"), encoding="utf-8")
    found = differences(out, assistant.tokenizer, assistant.template, [TALK])
    assert any("the chat template of 'So?' has other ids than in training" in line for line in found)


@pytest.mark.parametrize("name", ["alpaca", "plain", "chatml"])
def test_a_saved_folder_reads_earlier_answers_as_in_training(name: str, tmp_path: Path) -> None:
    template, tokenizer = TEMPLATES[name], smollm2()
    tokenizer.save(tmp_path)
    chat = template.chat_template(begin_text(template, tokenizer))
    (tmp_path / "chat_template.jinja").write_text(chat, encoding="utf-8")
    assert not [line for line in differences(tmp_path, tokenizer, template, [TALK]) if "other ids" in line]
    (tmp_path / "chat_template.jinja").write_text(f"?{chat}", encoding="utf-8")
    assert differences(tmp_path, tokenizer, template, [TALK], name=Path("model"))[-1].startswith("model: the chat tem")


def test_a_gguf_file_carries_it(tuned: Path, tmp_path: Path) -> None:
    out = export(tuned, "gguf", tmp_path / "model.gguf").path
    (tmp_path / "template.json").unlink(missing_ok=True)
    assert load(out, template="model").template.prompt(TALK) == load(tuned).template.prompt(TALK)


@pytest.fixture(scope="module", params=["model", "own.jinja", "own.json", "plain", "today.jinja"])
def tuned_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a template of every kind, one of which writes the day of training; of a model with few tokens."""
    folder, called = tmp_path_factory.mktemp("kinds"), request.param
    model = talking(folder / "model")
    own = FormTemplate("own", "Q: {instruction} {input}\nA: ", "Q: {instruction}\nA: ", header="\nA: ")
    (folder / "own.json").write_text(json.dumps(own.as_json()))
    (folder / "own.jinja").write_text(CHAT.replace("[", "<").replace("]", ">"))
    (folder / "today.jinja").write_text("{{ strftime_now('%d %B') }} " + CHAT)
    name = str(folder / called) if "." in called else called
    return instil.finetune(
        rows(30), model=model, out=folder / "run", template=name, max_steps=3, learning_rate=1e-2, max_new_tokens=4
    ).path


@pytest.mark.parametrize("form", ["hf", "gguf"])
def test_what_is_exported_answers_as_the_run_does(form: str, tuned_run: Path, tmp_path: Path) -> None:
    """With the template that the run was tuned with, wherever the file lies and whatever it is called."""
    out = export(tuned_run, form, tmp_path / f"x.{form}").path
    run, again = load(tuned_run), load(out)
    assert (again.template, again.template.hash) == (run.template, run.template.hash)
    assert again.decoder.notes == ()
    asked = [{"instruction": f"Double the number {n}.", "input": ""} for n in (1, 12)]
    assert again.respond_all(asked, max_new_tokens=8) == run.respond_all(asked, max_new_tokens=8)
    with pytest.raises(TemplateMismatch, match=r"was tuned with the template .*, not 'phi3'"):
        load(out, template="phi3")
    # It is tuned on with the same: by the name that it had, and by the one that the settings of a run then have.
    first = instil_toml(tuned_run)["settings"]["data"]["template"]
    assert prepare(rows(12), out, with_template(first)).template == run.template
    known = prepare(rows(12), out, Settings())
    assert known.template == run.template
    assert prepare(rows(12), out, with_template(known.settings.data.template)).template == run.template
    moved = out.rename(tmp_path / "sha256-0123")
    assert load(moved).template == run.template
    assert load(export(moved, "gguf", tmp_path / "again.gguf").path).template == run.template


def test_a_pth_file_answers_as_what_it_was_made_of(tmp_path: Path) -> None:
    folder = gpt2_folder(tmp_path / "gpt2")
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    out = export(folder, "pth", tmp_path / "x.pth", template="model").path
    asked, told, again = [{"instruction": "Double the number 3."}], load(folder, template="model"), load(out)
    assert again.template == told.template
    assert again.respond_all(asked, max_new_tokens=4) == told.respond_all(asked, max_new_tokens=4)
    first = out.read_bytes()
    again_written = export(folder, "pth", tmp_path / "again" / "x.pth", template="model").path
    assert again_written.read_bytes() == first
    torch.save(torch.load(out, weights_only=True), out)  # as another program writes it
    assert kept_template(out) is None


def talking(folder: Path) -> Path:
    """A model of few tokens with a chat template."""
    model = folder_of(folder, "llama", max_position_embeddings=512)
    (model / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    config = json.loads((model / "tokenizer_config.json").read_text())  # which names a token that a saved one does not
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "unk_token": "<|endoftext|>"}))
    return model


def test_what_others_made_is_asked_in_its_own_form_or_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, bare = talking(tmp_path / "model"), folder_of(tmp_path / "bare", "llama")
    usual, own = load(model), load(model, template="model")
    assert usual.template == own.template
    assert usual.decoder.notes == own.decoder.notes == load(model, template="alpaca").decoder.notes == ()
    assert (load(bare).template, load(bare).decoder.notes) == (TEMPLATES["alpaca"], ())
    monkeypatch.setattr("instil.assistant.assistant.template_of", lambda name: "alpaca")  # as for smollm2-135m
    (note,) = load(model).decoder.notes
    assert note == f"{model}: asked in the form 'alpaca'; its own chat template is used with --template model"
    assert load(bare).decoder.notes == ()
    assert carries_its_own(find_model("smollm2-135m"))
    assert kept_template(find_model("smollm2-135m")) is None


def test_a_changed_template_in_a_file_is_refused(tmp_path: Path) -> None:
    out = export(talking(tmp_path / "model"), "gguf", tmp_path / "x.gguf", template="model").path
    raw = out.read_bytes()
    out.write_bytes(raw.replace(b'"stop": "<|im_end|>"', b'"stop": "<|im_enD|>"'))
    with pytest.raises(DataError, match=r"x\.gguf: the template in it: its text has hash [0-9a-f]+ but it says"):
        load(out)
    out.write_bytes(raw.replace(b'"stop": "<|im_end|>"', b'"stop": "<|im_end|>,'))
    with pytest.raises(DataError, match=r"x\.gguf: the template in it is not valid JSON: "):
        load(out)


def with_template(name: str) -> Settings:
    return resolve(values={"data": {"template": name}})


def test_a_file_is_a_template_too(talker: Path, tiny_folder: Path, tuned: Path, tmp_path: Path) -> None:
    own = tmp_path / "my own.jinja"
    own.write_text(CHAT.replace("[", "<").replace("]", ">"))
    found = prepare(rows(40), tiny_folder, with_template(str(own)))
    assert found.template.prompt(Example("Hi")) == "<user> Hi\n<assistant> "
    assert found.settings.data.template == str(own)
    stored = tuned / "model" / "template.json"
    other = prepare(rows(40), tiny_folder, with_template(str(stored)))
    assert other.template == read_template(stored)
    (tmp_path / "config.json").write_text(json.dumps({"chat_template": CHAT}))
    assert prepare(rows(40), tiny_folder, with_template(str(tmp_path / "config.json"))).template.chat_template() == CHAT
    with pytest.raises(DataError, match="no such file"):
        prepare(rows(40), talker, with_template("none.jinja"))
    with pytest.raises(DataError, match="carries no chat template"):
        prepare(rows(40), tiny_folder, with_template("model"))


def test_settings_know_the_names() -> None:
    for name in (*TEMPLATES, "model", "some/where.jinja", "template.json"):
        assert resolve(values={"data": {"template": name}}).data.template == name
    with pytest.raises(SettingsError, match=r"'gemma', 'plain' or 'model', or a file \(.jinja, .json\)"):
        resolve(values={"data": {"template": "alpacca"}})
    with pytest.raises(SettingsError, match="'all' or 'last'"):
        resolve(values={"data": {"turns": "first"}})


def test_inspect_shows_the_mask(talker: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows(40)))
    seen = inspect(str(tmp_path / "rows.json"), str(talker), resolve(values={"data": {"template": "model"}}), [1])
    tokens = seen.rows[0].tokens
    assert "".join(token.text for token in tokens if token.mask == "trained") == "It is 2.<end>"
    assert (
        "".join(token.text for token in tokens if token.mask == "seen") == "[user] Double the number 1.\n[assistant] "
    )


def test_preflight_counts_what_is_masked_at_a_border(tiny_folder: Path) -> None:
    """A line break at the end of an instruction is one id with the first of the header."""
    given = [
        {**row, "instruction": row["instruction"] + "\n" * (n == 3), "input": ""} for n, row in enumerate(rows(40))
    ]
    options = resolve(values={"data": {"train_on": "response_with_header"}})
    said = prepare(given, tiny_folder, options).preflight.lines()
    assert "1 id across the border of what is trained on is not trained on: rows 3" in said
    clean = prepare(given, tiny_folder, resolve(values={})).preflight.lines()
    assert not any("across the border" in line for line in clean)
