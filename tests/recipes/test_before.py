"""What a model could do before: it is asked in the run's form and in its own, and the better of both counts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.cli.show import summary
from instil.evaluate.offline import means, score_offline
from instil.recipes.run.run import Run
from instil.records import Example
from instil.runs.answers import find_answers
from instil.runs.baseline import reusable_run
from instil.settings.resolve import resolve
from instil.tasks.form import asked_before
from instil.tasks.prepare import prepare
from tests.conftest import make_tiny, rows

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)
QUICK: dict[str, Any] = {"max_steps": 1, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with a chat template, in which it says something else than in another form."""
    folder = make_tiny(tmp_path_factory.mktemp("talker"), seed=5)
    (folder / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    return folder


def wanted_in(template: str, talker: Path) -> list[dict[str, str]]:
    """Rows of which the held-out ones want what the model says when it is asked in this form."""
    said = instil.load(talker, template=template, max_new_tokens=6).respond_all(rows(20)[15:])
    held_out = [{**row, "output": one.text} for row, one in zip(rows(20)[15:], said, strict=True)]
    return [*rows(15), *held_out]


@pytest.fixture(scope="module")
def own_wins(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("own") / "run"
    return instil.finetune(wanted_in("model", talker), model=talker, out=out, template="alpaca", **QUICK)


@pytest.fixture(scope="module")
def runs_wins(talker: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs") / "run"
    return instil.finetune(wanted_in("alpaca", talker), model=talker, out=out, template="alpaca", **QUICK)


def answers(run: Run, which: str) -> tuple[list[dict[str, str]], list[str]]:
    found = json.loads((run.path / "responses" / f"{which}.json").read_text())
    return found, [row["model_response"] for row in found]


def said_in(template: str, talker: Path, asked: Sequence[dict[str, str]]) -> list[str]:
    assistant = instil.load(talker, template=template, max_new_tokens=6)
    plain = [{key: row[key] for key in ("instruction", "input")} for row in asked]
    return [one.text for one in assistant.respond_all(plain)]


@pytest.mark.parametrize(
    ("name", "better", "other"), [("own_wins", "model", "alpaca"), ("runs_wins", "alpaca", "model")]
)
def test_the_better_form_counts_as_before(
    name: str, better: str, other: str, talker: Path, request: pytest.FixtureRequest
) -> None:
    run: Run = request.getfixturevalue(name)
    asked, base = answers(run, "base")
    assert base == said_in(better, talker, asked)
    assert answers(run, f"base-in-{other}")[1] == said_in(other, talker, asked) != base
    names = {file.name for file in (run.path / "responses").iterdir()}
    assert names == {"base.json", f"base-in-{other}.json", "tuned.json"}
    for which in ("base", f"base-in-{other}"):
        found, texts = answers(run, which)
        examples = [Example(row["instruction"], row["output"], row["input"]) for row in found]
        assert run.scores[which] == pytest.approx(means(score_offline(examples, texts)))
        assert (run.path / "scores" / f"{which}.offline.jsonl").is_file()
    assert run.scores["base"]["score"] > run.scores[f"base-in-{other}"]["score"]
    assert run.scores["base"]["exact_match"] == 1
    # The verdict is about the better one, and both are told of.
    assert "better than before" not in run.verdict
    facts = json.loads((run.path / "report.json").read_text())
    assert facts["before"] == {"form": better, "other": other, "answers": f"base-in-{other}"}
    assert set(facts["finish"]) == {"base", f"base-in-{other}", "tuned"}
    assert any(f"before, asked in {other}**" in line for line in summary(run))
    page = (run.path / "report.html").read_text()
    scores = [f"{run.scores[which]['score']:.1f}" for which in ("base", f"base-in-{other}")]
    names_of = {"model": "its own chat template", "alpaca": "the form alpaca"}
    assert (
        f"asked in {names_of[better]} ({scores[0]} points of agreement) and in {names_of[other]} ({scores[1]})" in page
    )
    assert f"before, in {names_of[other]}" in page
    # What reads a run reads the two that count.
    assert [one.which for one in find_answers(run.path)] == ["base", "tuned"]
    assert [one.which for one in find_answers(run.path, only=[f"base-in-{other}"])] == [f"base-in-{other}"]


def test_answers_in_both_forms_are_taken_over(own_wins: Run, talker: Path, tmp_path: Path) -> None:
    again = instil.recipes.run.run.run(
        wanted_in("model", talker),
        talker,
        tmp_path / "again",
        resolve(values={**QUICK, "template": "alpaca"}),
        before=[own_wins.path],
    )
    for name in ("responses/base.json", "responses/base-in-alpaca.json", "scores/base-in-alpaca.offline.jsonl"):
        assert (again.path / name).read_bytes() == (own_wins.path / name).read_bytes()
    assert again.scores["base-in-alpaca"] == own_wins.scores["base-in-alpaca"]
    facts = json.loads((again.path / "report.json").read_text())
    assert (facts["before"]["form"], facts["before_from"]) == ("model", str(own_wins.path))
    # Whoever lacks one of the files is no source.
    key = resolve_key(own_wins)
    broken = Path(shutil.copytree(own_wins.path, tmp_path / "broken"))
    assert reusable_run(key, [broken]) == broken
    (broken / "responses" / "base-in-alpaca.json").unlink()
    assert reusable_run(key, [broken]) is None


def resolve_key(run: Run) -> str:
    import tomllib

    return str(tomllib.loads((run.path / "run.toml").read_text())["hashes"]["before"])


@pytest.mark.parametrize("given", [{"before": "same", "template": "alpaca"}, {"template": "model"}])
def test_one_form_is_asked_where_no_other_is_wanted_or_there(
    given: dict[str, str], talker: Path, tmp_path: Path
) -> None:
    run = instil.finetune(rows(20), model=talker, out=tmp_path / "run", **QUICK, **given)
    assert set(run.scores) == {"base", "echo", "tuned"}
    assert {file.name for file in (run.path / "responses").iterdir()} == {"base.json", "tuned.json"}
    assert "asked in" not in (run.path / "report.html").read_text()


def test_the_book_asks_in_one(talker: Path) -> None:
    prepared = prepare(rows(20), talker, resolve(values=QUICK, as_in_book=True))
    assert (prepared.template.name, prepared.own_template) == ("alpaca", None)


def test_a_template_that_cannot_be_used_is_told_of(talker: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "model"))
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }} and no end")
    prepared = prepare(rows(20), folder, resolve(values={**QUICK, "template": "alpaca"}))
    assert prepared.own_template is None
    assert any("not asked in its own chat template, which cannot be used" in note for note in prepared.preflight.notes)


def test_a_row_that_it_cannot_say_leaves_it_out(talker: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(talker, tmp_path / "model"))
    refusing = "{% if 'n = ' in messages[0].content %}{{ raise_exception('no numbers') }}{% endif %}" + CHAT
    (folder / "chat_template.jinja").write_text(refusing)
    run = instil.finetune(rows(20), model=folder, out=tmp_path / "run", template="alpaca", **QUICK)
    assert set(run.scores) == {"base", "echo", "tuned"}
    prepared = prepare(rows(20), folder, resolve(values={**QUICK, "template": "alpaca"}))
    form, note = asked_before(prepared, prepared.held_out[1])
    assert form is None
    assert "which cannot say row" in note
    assert "no numbers" in note
