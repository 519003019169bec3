"""Which prompt form a run takes where none is asked for, and which where one is."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.model.find import find_model
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.task import Prepared
from tests.conftest import rows

CHAT = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{{ 'assistant: ' if add_generation_prompt }}"
)


@pytest.fixture(scope="module")
def talker(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a chat template."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("talker") / "model"))
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return folder


def made(model: str | Path, as_in_book: bool = False, **settings: Any) -> Prepared:
    return prepare(rows(20), model, resolve(values=settings, as_in_book=as_in_book))


def test_a_model_that_carries_a_template_takes_it(talker: Path, tiny_folder: Path) -> None:
    prepared = made(talker)
    assert (prepared.template.name, prepared.settings.data.template) == ("model", "model")
    assert prepared.own_template is None  # it is asked in its own form anyway
    assert "assistant: " in prepared.template.prompt(prepared.held_out[1][0])
    assert made(tiny_folder).template.name == "alpaca"


def test_the_books_form_is_taken_where_it_is_asked_for(talker: Path) -> None:
    assert made(talker, template="alpaca").template.name == "alpaca"
    assert made(talker, as_in_book=True).template.name == "alpaca"


def test_a_template_that_cannot_be_used_gives_way(talker: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} and no end")
    prepared = made(folder)
    assert prepared.settings.data.template == "alpaca"
    assert any(
        note.startswith("rows are put to the model in the form alpaca, since") for note in prepared.preflight.notes
    )


def test_what_is_laid_down_for_a_name_holds_for_that_name() -> None:
    assert made("smollm2-135m").template.name == "alpaca"
    assert made(find_model("smollm2-135m")).template.name == "model"


def test_a_run_says_which_it_took_and_keeps_it(talker: Path, tmp_path: Path) -> None:
    run = instil.finetune(rows(20), model=talker, out=tmp_path / "run", max_steps=1, max_new_tokens=2)
    assert tomllib.loads((run.path / "run.toml").read_text())["settings"]["data"]["template"] == "model"
    again = made(run.path)
    assert (again.template.name, again.own_template) == ("model", None)
