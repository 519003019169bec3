"""``instil rivals``: the base asked in other ways, and what is said of that."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.errors import InstilError, ModelError, UserError
from instil.evaluate.comparison import Comparison
from instil.evaluate.statistics import Interval
from instil.recipes.rivals.asking import Asked, Asking
from instil.recipes.rivals.rivals import BASE, NAME, SHOWN, TOLD, TUNED, Rival, Rivals, _compared, rivals
from instil.recipes.rivals.shots import Nearest, in_the_question, instructed
from instil.records import Example, Turn
from instil.runs.answers import find_answers
from instil.runs.folder import RunFolder
from tests.conftest import make_tiny, rows
from tests.processes import instil as command

CHAT = (
    "{% for m in messages %}[{{ m.role }}] {{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a model with a chat template, on the rows of a file, with some held out for validation."""
    place = tmp_path_factory.mktemp("rivals")
    model = make_tiny(place / "base", seed=5)
    (model / "chat_template.jinja").write_text(CHAT, encoding="utf-8")
    (place / "rows.json").write_text(json.dumps(rows(60)))
    how: dict[str, Any] = {"max_steps": 4, "learning_rate": 1e-2, "max_new_tokens": 5, "template": "alpaca"}
    instil.finetune(place / "rows.json", model=model, out=place / "run", **how)
    return place / "run"


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "run"))


def said(file: Path) -> list[str]:
    return [row["model_response"] for row in json.loads(file.read_text())]


def test_the_base_is_asked_in_three_ways_and_nothing_twice(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = rivals(run, shots=(1, 3))
    assert [one.name for one in found.rivals] == [TUNED, BASE, TOLD, SHOWN]
    assert said(found.rivals[0].asked.file) == said(run / "responses" / "tuned.json")
    own = "base" if (run / "responses/base-in-alpaca.json").is_file() else "base-in-model"
    assert said(found.rivals[1].asked.file) == said(run / "responses" / f"{own}.json")  # in its own form
    lengths = [one.asked.prompt_tokens for one in found.rivals[1:]]
    assert lengths[0] < min(lengths[1:])  # the question alone; with an instruction; with examples
    assert set(found.tried) == {1, 3}
    assert all(one.asked.memory > 0 and one.asked.seconds > 0 for one in found.rivals)
    assert json.loads((run / NAME).read_text()) == json.loads(json.dumps(found.as_json()))
    monkeypatch.setattr(Asking, "timed", lambda *args: pytest.fail("asked again"))
    again = rivals(run, shots=(max(found.tried, key=lambda count: (found.tried[count], -count)),))
    assert [one.asked for one in again.rivals] == [one.asked for one in found.rivals]
    assert find_answers(run, only=("tuned",))  # a run's own answers are as they were


def test_answers_of_another_instruction_are_made_anew(run: Path) -> None:
    first = rivals(run, shots=(1,))
    other = rivals(run, shots=(1,), instruction="Answer in one word.")
    assert other.rivals[2].asked.prompt_tokens < first.rivals[2].asked.prompt_tokens
    assert "Answer in one word." in other.rivals[2].asked.how
    assert other.rivals[1].asked == first.rivals[1].asked


def test_p_values_are_adjusted_for_the_number_of_rivals() -> None:
    """Three rivals that differ from the tuned model in 7, 8 and 9 rows of 40, always to its favour."""
    examples = tuple(Example(row["instruction"], row["output"], row=n) for n, row in enumerate(rows(40)))
    right = [example.output for example in examples]

    def asked(name: str, wrong: int) -> Asked:
        said = ("?",) * wrong + tuple(right[wrong:])
        return Asked(name, "", said, frozenset(), 0.1, 10.0, 1, Path(name))

    found = _compared([asked(name, wrong) for name, wrong in ((TUNED, 0), ("a", 7), ("b", 8), ("c", 9))], examples)
    assert found[0].against is None
    ps = [one.against.p for one in found if one.against]
    alone = [2 / 2**7, 2 / 2**8, 2 / 2**9]
    assert ps == pytest.approx([alone[0], max(2 * alone[1], 3 * alone[2]), 3 * alone[2]])


def test_other_models_are_asked_the_same(run: Path, tmp_path: Path) -> None:
    model = make_tiny(tmp_path / "other", seed=9)
    found = rivals(run, shots=(1,), others=[str(model)])
    assert found.rivals[-1].name == str(model)
    assert len(found.rivals[-1].asked.answers) == found.rows


def test_a_base_that_is_gone_or_another_is_named(run: Path, tmp_path: Path) -> None:
    facts = (run / "run.toml").read_text()
    base = RunFolder(run).read_settings()["model"]
    for other, why in ((tmp_path / "gone", "gone"), (make_tiny(tmp_path / "other", seed=9), "another model by now")):
        (run / "run.toml").write_text(facts.replace(base, str(other)))
        found = rivals(run)
        assert [one.name for one in found.rivals] == [TUNED]
        assert any(why in note for note in found.notes)
        assert "cannot be told" in found.sentence()


def test_rows_that_are_not_at_hand_leave_out_examples_alone(tmp_path: Path, tiny_folder: Path) -> None:
    run = instil.finetune(rows(40), model=tiny_folder, out=tmp_path / "run", max_steps=1, max_new_tokens=3).path
    found = rivals(run)
    assert [one.name for one in found.rivals] == [TUNED, BASE, TOLD]
    assert any("not shown any examples" in note and "in memory" in note for note in found.notes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda run: (run / "run.toml").unlink(), "not a run folder"),
        (lambda run: (run / "responses/tuned.json").unlink(), "no answers of its tuned model"),
    ],
)
def test_what_is_no_run_or_has_no_answers_is_refused(change: Callable[[Path], object], said: str, run: Path) -> None:
    change(run)
    with pytest.raises(UserError, match=said):
        rivals(run)


def test_what_is_asked_wrongly_is_said_before_anybody_answers(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asking, "timed", lambda *args: pytest.fail("asked"))
    with pytest.raises(ModelError):
        rivals(run, others=[str(run / "none")])
    with pytest.raises(UserError, match="1 or more"):
        rivals(run, shots=())
    with pytest.raises(UserError, match="1 or more"):
        rivals(run, shots=(2, 0))
    with pytest.raises(UserError, match="is what a rival is called"):
        rivals(run, others=["base"])


def test_the_command_shows_a_table_or_json(run: Path) -> None:
    shown = command("rivals", run, "--shots", "1")
    assert shown.returncode == 0, shown.stderr
    assert "base, with examples" in shown.stdout and "tuned is ahead by" in shown.stdout
    told = json.loads(command("rivals", run, "--shots", "1", "--json").stdout)
    assert [one["name"] for one in told["rivals"]] == [TUNED, BASE, TOLD, SHOWN]
    for words in (["--shots", "x"], ["--instruction", " "]):
        wrong = command("rivals", run, *words)
        assert wrong.returncode == 2
        assert len(wrong.stderr.strip().splitlines()) == 1


TRAIN = [
    Example("Name the capital of France.", "Paris", row=0),
    Example("Add 2 and 3.", "5", row=1),
    Example("Name the capital of Spain.", "Madrid", row=2),
    Example("Talk.", "Hi.", row=3, history=(Turn("user", "a"), Turn("assistant", "b"))),
    Example("Say hello.", "Hello.", row=4, history=(Turn("system", "You are polite."),)),
]


def test_the_nearest_example_stands_last() -> None:
    nearest = Nearest(TRAIN)
    assert [row.row for row in nearest.rows] == [0, 1, 2, 4]  # a longer conversation is no example
    assert all(not row.history for row in nearest.rows)  # what the system says is said once, by the question's own row
    asked = Example("Name the capital of Spain, please.", "Madrid", row=9, history=(Turn("system", "Be brief."),))
    ((made,), fewer) = nearest.before([asked], 2, lambda row: 0, 100)
    assert fewer == 0
    assert [turn.content for turn in made.history] == [
        "Be brief.",
        "Name the capital of France.",
        "Paris",
        "Name the capital of Spain.",
        "Madrid",
    ]
    assert (made.instruction, made.output, made.row) == (asked.instruction, asked.output, 9)
    ((every,), fewer) = nearest.before([asked], 50, lambda row: 0, 100)
    assert len(every.history) == 9 and fewer == 0


def test_examples_that_find_no_room_are_left_out_the_farthest_first() -> None:
    nearest = Nearest(TRAIN)
    asked = Example("Name the capital of Spain, please.", row=9)
    ((made,), fewer) = nearest.before([asked], 3, lambda row: len(row.history), 2)
    assert [turn.content for turn in made.history] == ["Name the capital of Spain.", "Madrid"]
    assert fewer == 1
    ((bare,), fewer) = nearest.before([asked], 3, lambda row: 99, 2)
    assert (bare, fewer) == (asked, 1)


def test_an_instruction_goes_before_what_the_system_says() -> None:
    plain, told = instructed([TRAIN[1], replace(TRAIN[1], history=(Turn("system", "Be kind."),))], "Be brief.")
    assert [turn.content for turn in plain.history] == ["Be brief."]
    assert [turn.content for turn in told.history] == ["Be brief.\n\nBe kind."]
    assert in_the_question([TRAIN[1]], "Be brief.")[0].instruction == "Be brief.\n\nAdd 2 and 3."


def rival(name: str, low: float, high: float, p: float = 0.001) -> Rival:
    middle = Interval((low + high) / 2, low, high, 100)
    pair = Comparison(100, 100, middle, middle, middle, p, 1, 1, 1, (), (), 50, 5.0, (0.0, 0.0))
    return Rival(Asked(name, "", (), frozenset(), 0.1, 10.0, 1, Path("x")), {}, pair)


@pytest.mark.parametrize(
    ("others", "wanted"),
    [
        ([rival(BASE, 10, 20), rival(SHOWN, 2, 6)], "Tuning was worth it: it is better than its base however"),
        ([rival(BASE, 10, 20), rival(SHOWN, -2, 6, 0.5)], "cannot be told: the tuned model is not distinguishable"),
        ([rival(BASE, 10, 20), rival(SHOWN, -9, -6)], "Tuning was not worth it: base, with examples is better"),
        ([rival(BASE, 10, 20), rival("large", -9, -6)], "large is better than the tuned model."),
        ([rival("large", 1, 3)], "large is worse than the tuned model."),
        ([rival(TOLD, -9, -6), rival(BASE, -9, -6)], "base, instructed and base are better than the tuned model."),
    ],
)
def test_what_is_said_of_it(others: list[Rival], wanted: str) -> None:
    assert wanted in Rivals(Path("run"), 100, tuple(others)).sentence()


def test_the_smaller_of_two_gains_is_told() -> None:
    found = Rivals(Path("run"), 100, (rival(BASE, 10, 20), rival(SHOWN, 2, 6)))
    assert found.sentence().endswith("by 4.0 [2.0, 6.0] points (base, with examples).")


def test_an_error_of_the_base_is_no_end(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise InstilError("no room")

    monkeypatch.setattr("instil.recipes.rivals.rivals.base_of", broken)
    found = rivals(run)
    assert found.notes == ("the base is not asked: no room",)
