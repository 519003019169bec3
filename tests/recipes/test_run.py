"""Whole runs on a tiny model: everything a run promises to leave behind is there and is true."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import torch

import instil
from instil.cli.show import summary
from instil.errors import DataError, ModelError, RunFolderTaken, TemplateMismatch, UserError
from instil.evaluate.offline import means, score_offline
from instil.model.decoder import batch_of_ids
from instil.recipes.run.run import Run, run
from instil.recipes.score import score_path
from instil.records import Example
from instil.runs.answers import find_answers
from instil.runs.folder import RunFolder
from instil.runs.identity import is_whole
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.train.metrics import read_metrics
from tests.conftest import rows


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One run of two epochs."""
    out = tmp_path_factory.mktemp("runs") / "one"
    return instil.finetune(
        rows(40), model=tiny_folder, out=out, epochs=2, learning_rate=3e-3, max_new_tokens=8, eval_every=3
    )


def test_the_run_folder_is_complete(finished: Run) -> None:
    names = {str(file.relative_to(finished.path)) for file in finished.path.rglob("*") if file.is_file()}
    assert names == {
        "run.toml", "split.json", "rejected.jsonl", "data.json", "metrics.jsonl", "samples.jsonl", "loss.png",
        "loss.pdf", "report.html",
        "report.json", "status.json", "verdict.json", "keep.json", "keep/base.jsonl", "keep/tuned.jsonl",
        "scores/base.likelihood.jsonl", "scores/tuned.likelihood.jsonl",
        "responses/base.json", "responses/tuned.json", "scores/base.offline.jsonl", "scores/tuned.offline.jsonl",
        "model/config.json", "model/generation_config.json", "model/model.safetensors", "model/tokenizer.json",
        "model/tokenizer_config.json", "model/chat_template.jinja", "model/template.json",
    }  # fmt: skip


def test_the_settings_are_written_as_resolved(finished: Run) -> None:
    facts = tomllib.loads((finished.path / "run.toml").read_text())
    assert facts["settings"]["train"]["epochs"] == 2
    given = {"epochs": 2, "learning_rate": 3e-3, "max_new_tokens": 8, "eval_every": 3}
    assert facts["settings"] == resolve(values={**given, "template": "alpaca"}).model_dump(mode="json")
    assert set(facts["hashes"]) == {"data", "model", "template", "before"}


def test_split_and_metrics_agree_with_the_run(finished: Run) -> None:
    split = json.loads((finished.path / "split.json").read_text())
    assert (len(split["train"]), len(split["test"]), len(split["validation"])) == (34, 4, 2)
    records = read_metrics(finished.path / "metrics.jsonl")
    assert [record.step for record in records] == list(range(11))  # 5 steps in each of 2 epochs, and step 0
    assert records[-1].epoch == 2
    assert records[-1].val_loss == finished.validation_loss
    assert records[0].val_loss is not None
    assert records[-1].val_loss is not None
    assert records[-1].val_loss < records[0].val_loss


def test_responses_are_in_the_books_form_and_scores_follow_from_them(finished: Run) -> None:
    for which in ("base", "tuned"):
        answered = json.loads((finished.path / "responses" / f"{which}.json").read_text())
        assert [list(row) for row in answered] == [["instruction", "input", "output", "model_response"]] * 4
        examples = [Example(row["instruction"], row["output"], row["input"]) for row in answered]
        again = means(score_offline(examples, [row["model_response"] for row in answered]))
        assert finished.scores[which] == pytest.approx(again)
    assert set(finished.scores) == {"base", "tuned", "echo"}


def test_samples_follow_the_same_prompts(finished: Run) -> None:
    samples = [json.loads(line) for line in (finished.path / "samples.jsonl").read_text().splitlines()]
    steps = [sample["step"] for sample in samples]
    assert steps == [0, 0, 3, 3, 5, 5, 6, 6, 9, 9, 10, 10]
    assert len({sample["row"] for sample in samples}) == 2


def test_transformers_opens_the_model_with_the_same_logits_and_prompt(finished: Run) -> None:
    import transformers

    assistant = instil.load(finished.path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(finished.path / "model").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(finished.path / "model")
    chat = [{"role": "user", "content": "Double the number 4."}]
    prompt = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert prompt == assistant.template.prompt(Example("Double the number 4."))
    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False)["input_ids"]])
    assert ids[0].tolist() == assistant.tokenizer.encode(prompt)
    with torch.no_grad():
        ours = assistant.decoder.logits(assistant.decoder(batch_of_ids(ids)))
        torch.testing.assert_close(ours, theirs(ids).logits[0], rtol=1e-5, atol=1e-5)
        generated = theirs.generate(ids, max_new_tokens=8, do_sample=False)[0, ids.shape[1] :]
    assert tokenizer.decode(generated, skip_special_tokens=True).strip() == assistant.respond("Double the number 4.")


def test_loading_and_answering(finished: Run) -> None:
    assistant = instil.load(finished.path)
    answered = json.loads((finished.path / "responses" / "tuned.json").read_text())
    said = assistant.respond_all([{k: row[k] for k in ("instruction", "input")} for row in answered])
    assert [one.text for one in said] == [row["model_response"] for row in answered]
    assert assistant.options.max_new_tokens == 8
    assert len(instil.load(finished.path, max_new_tokens=2).respond_all([{"instruction": "a"}])[0].ids) <= 2


def test_scoring_rows(finished: Run) -> None:
    answered = json.loads((finished.path / "responses" / "tuned.json").read_text())
    verdicts = instil.score(answered)
    assert all(verdict.score is not None and 0 <= verdict.score <= 100 for verdict in verdicts)
    with pytest.raises(DataError, match="row 0: no text under 'model_response'"):
        instil.score([{"instruction": "a", "output": "b"}])


def test_the_same_seed_gives_the_same_run(finished: Run, tiny_folder: Path, tmp_path: Path) -> None:
    again = instil.finetune(
        rows(40),
        model=tiny_folder,
        out=tmp_path / "again",
        epochs=2,
        learning_rate=3e-3,
        max_new_tokens=8,
        eval_every=3,
    )
    assert again.validation_loss == pytest.approx(finished.validation_loss, rel=1e-5)


def test_a_template_that_was_changed_afterwards_is_refused(finished: Run, tmp_path: Path) -> None:
    import shutil

    from instil.data.templates import template_named

    copy = tmp_path / "copy"
    shutil.copytree(finished.path, copy)
    (copy / "model" / "template.json").write_text(json.dumps(template_named("phi3").as_json()))
    with pytest.raises(TemplateMismatch, match="tuned with"):
        instil.load(copy)
    with pytest.raises(TemplateMismatch, match="not 'phi3'"):
        instil.load(finished.path, template="phi3")


def test_a_taken_folder_is_left_alone(finished: Run, tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFolderTaken, match="--overwrite"):
        instil.finetune(rows(12), model=tiny_folder, out=finished.path)
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="left alone"):
        instil.finetune(rows(12), model=tiny_folder, out=mine, overwrite=True)
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_fewer_than_ten_rows_work(count: int, tiny_folder: Path, tmp_path: Path) -> None:
    settings = resolve(values={"epochs": 1, "max_new_tokens": 2, "batch_size": 16})
    few = run(rows(count), tiny_folder, tmp_path / "few", settings)
    assert few.steps == 1
    assert (few.path / "report.html").is_file()
    assert (few.validation_loss is None) == (count < 2)
    assert bool(few.scores) == (count >= 2)  # with no test rows the validation rows are answered


def test_training_alone_answers_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    only = run(rows(12), tiny_folder, tmp_path / "only", resolve(values={"max_steps": 1}), answers=False)
    assert only.scores == {}
    assert not list((only.path / "responses").iterdir())
    assert (only.path / "model" / "model.safetensors").is_file()


def test_rows_beyond_the_context_are_reported_not_lost(tiny_folder: Path, tmp_path: Path) -> None:
    data = rows(12)
    data[0]["output"] = "long " * 700
    data[1]["instruction"] = "long " * 700
    made = run(data, tiny_folder, tmp_path / "long", resolve(values={"max_steps": 1, "max_new_tokens": 2}))
    report = (made.path / "report.html").read_text()
    assert "1 row is longer than 512 tokens" in report
    assert "1 row is skipped" in report


def test_rows_without_room_for_an_answer_have_no_score(tiny_folder: Path, tmp_path: Path) -> None:
    data = rows(20)
    held_out = resolve(values={"max_steps": 1, "max_new_tokens": 2})
    data[17]["instruction"] = "long " * 700  # a test row
    made = run(data, tiny_folder, tmp_path / "run", held_out)
    assert "1 row is left out" in made.verdict
    for which, scored in score_path(made.path).items():
        assert len(scored.verdicts) == 2, which
        assert scored.coverage == 0.5
        assert list(scored.unscored.values()) == ["the prompt left no room for an answer in the model's context"]
        assert scored.unscored.keys() == {17}
        assert made.scores[which]["score"] == scored.scores[0]
    answers = json.loads((made.path / "responses" / "tuned.json").read_text())
    assert [row.get("finish") for row in answers] == ["no_room", None]
    assert [verdict.score is None for verdict in instil.score(answers)] == [True, False]
    found = instil.compare(made.path / "responses" / "base.json", made.path).comparison
    assert (found.rows, found.scored, found.no_room) == (1, 1, (17,))
    assert "1 row is left out, whose prompt leaves no room for an answer." in found.sentence()


def test_a_run_that_could_answer_nothing_ends_well(tiny_folder: Path, tmp_path: Path) -> None:
    data = rows(11)
    data[9]["instruction"] = "long " * 700
    made = run(data, tiny_folder, tmp_path / "run", resolve(values={"max_steps": 1, "max_new_tokens": 2}))
    assert made.scores["base"] == made.scores["tuned"] == {}
    assert "cannot be compared" in made.verdict
    assert any("no row has a score" in line for line in summary(made))


@pytest.mark.parametrize(
    ("warmup", "epochs", "said"),
    [(0.03, 1, True), (0.49, 1, True), (0.5, 1, False), (0.0, 1, False), (0.03, 20, False), (0.03, 16, True)],
)
def test_warmup_of_less_than_a_step_is_said(warmup: float, epochs: int, said: bool, tiny_folder: Path) -> None:
    settings = resolve(values={"warmup": warmup, "epochs": epochs, "batch_size": 8})
    notes = prepare(rows(12), tiny_folder, settings).preflight.notes  # two steps an epoch
    assert any("train.warmup" in note and "less than one step" in note for note in notes) is said


@pytest.mark.parametrize(
    ("train_on", "header", "warned"),
    [
        ("response", False, True),
        ("response", True, False),
        ("response_with_header", False, False),
        ("all", False, False),
    ],
)
def test_a_header_that_nobody_writes_is_pointed_out(
    train_on: str, header: bool, warned: bool, tiny_folder: Path
) -> None:
    settings = resolve(values={"train_on": train_on, "generate": {"header": header}})
    notes = prepare(rows(12), tiny_folder, settings).preflight.notes
    assert any("generate.header=true" in note for note in notes) is warned


@pytest.mark.parametrize("template", ["alpaca", "phi3"])
def test_a_run_whose_header_is_trained(template: str, tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(f"[data]\ntemplate = '{template}'\ntrain_on = 'response_with_header'\n")
    made = run(
        rows(12), tiny_folder, tmp_path / "made", resolve(config=file, values={"max_steps": 1, "max_new_tokens": 2})
    )
    assert made.steps == 1
    assert 'train_on = "response_with_header"' in (made.path / "run.toml").read_text()


@pytest.mark.parametrize("template", ["phi3", "plain"])
def test_other_templates_and_objectives(template: str, tiny_folder: Path, tmp_path: Path) -> None:
    settings = resolve(values={"template": template, "train_on": "all", "max_steps": 2, "max_new_tokens": 2})
    made = run(rows(12), tiny_folder, tmp_path / "made", settings)
    assert instil.load(made.path).template.name == template


def test_chatml_needs_its_control_tokens(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="alpaca, which needs none"):
        instil.finetune(rows(12), model=tiny_folder, out=tmp_path / "x", template="chatml")
    assert not (tmp_path / "x").exists()


def test_of_many_held_out_rows_some_are_answered(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = instil.finetune(rows(60), model=tiny_folder, out=tmp_path / "run", max_steps=1, max_new_tokens=2, max_rows=3)
    folder = RunFolder(made.path)
    split = json.loads((made.path / "split.json").read_text())
    assert (len(split["test"]), split["answered"]) == (6, [51, 53, 55])
    assert folder.held_out_rows() == split["answered"]
    answered = find_answers(made.path)
    assert [[example.row for example in one.examples] for one in answered] == [[51, 53, 55]] * 2
    assert "3 of 6 test rows will be answered and scored (generate.max_rows; 0 means all)" in capsys.readouterr().err
    assert is_whole(folder)
    assert [verdict.row for verdict in score_path(made.path)["tuned"].verdicts] == [51, 53, 55]
    (made.path / "split.json").write_text(json.dumps({**split, "answered": "51"}))
    with pytest.raises(DataError, match="damaged, wanted the numbers of the rows that are answered"):
        folder.held_out_rows()
