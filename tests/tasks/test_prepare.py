"""What the settings of a run do to it, and which template a model that was tuned before keeps."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import instil
from instil.data.splits import PARTS
from instil.errors import DataError, SettingsError, TemplateMismatch, UserError
from instil.model.fast import gemm
from instil.model.load import load_decoder
from instil.recipes.respond import respond_one, respond_rows
from instil.recipes.run.run import run
from instil.screen import Advance, Screen
from instil.settings.options import Settings
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.task import loader_for
from instil.train.losses import held_out_loss
from instil.train.metrics import read_metrics
from tests.conftest import TINY_END, rows


def test_batches_are_cut_at_the_longest_length(tiny_folder: Path, tmp_path: Path) -> None:
    settings = resolve(values={"max_length": 44, "epochs": 1, "max_new_tokens": 2})
    lengths = [len(row.ids) - 1 for row in prepare(rows(40), tiny_folder, settings).rows["train"]]
    assert min(lengths) < 44 < max(lengths)
    made = run(rows(40), tiny_folder, tmp_path / "run", settings, answers=False)
    assert read_metrics(made.path / "metrics.jsonl")[-1].tokens_seen == sum(min(length, 44) for length in lengths)


def test_evaluations_use_so_many_batches(tiny_folder: Path, tmp_path: Path) -> None:
    values = {"max_steps": 1, "batch_size": 1, "eval_batches": 1}
    made = run(rows(40), tiny_folder, tmp_path / "run", resolve(values=values), answers=False)
    held_back = loader_for(prepare(rows(40), tiny_folder, resolve(values=values)), "validation")
    assert held_back is not None
    assert len(held_back) == 2
    decoder = load_decoder(tiny_folder)
    first, both = (held_out_loss(decoder, list(held_back.batches())[:count]).mean for count in (1, 2))
    found = read_metrics(made.path / "metrics.jsonl")[0].val_loss
    assert found == pytest.approx(first, rel=1e-6)
    assert found != pytest.approx(both, rel=1e-6)


def test_rows_left_out_are_told_of_in_the_report(tiny_folder: Path, tmp_path: Path) -> None:
    data = rows(20)
    data[5]["output"] = ""
    data[18]["instruction"] = " "
    with pytest.raises(DataError, match="2 of 20 rows"):
        instil.finetune(data, model=tiny_folder, out=tmp_path / "run")
    made = instil.finetune(data, model=tiny_folder, out=tmp_path / "run", skip_bad=True, max_steps=1, max_new_tokens=2)
    report = (made.path / "report.html").read_text(encoding="utf-8")
    assert "2 rows of the file were left out" in report
    assert "row 5: output is empty" in report
    assert "row 18: instruction is empty" in report
    split = json.loads((made.path / "split.json").read_text())
    assert sorted(row for part in PARTS for row in split[part]) == [n for n in range(20) if n not in (5, 18)]


def test_a_batch_larger_than_the_rows_is_refused_before_anything_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    values = {"drop_last": True, "batch_size": 11}  # of twelve rows ten are for training
    with pytest.raises(
        DataError, match=r"batch of 11 rows is larger than the 10 rows .* lower train\.batch_size"
    ) as no:
        instil.finetune(rows(12), model=tiny_folder, out=tmp_path / "run", **values)
    assert no.value.exit_code == 2
    assert not list(tmp_path.iterdir())


def test_a_tuned_model_keeps_its_template(plain_run: Path, tmp_path: Path) -> None:
    """A run stands for its model, in `find_model` as in the next run."""
    again = instil.finetune(rows(12), model=plain_run, out=tmp_path / "again", max_steps=1, max_new_tokens=2)
    assert tomllib.loads((again.path / "run.toml").read_text())["settings"]["data"]["template"] == "plain"
    assert instil.load(again.path).template.name == "plain"
    assert instil.load(again.path / "model").template.name == "plain"
    same = prepare(rows(12), plain_run / "model", resolve(values={"template": "plain"}))
    assert same.template.name == "plain"
    assert same.model_path == plain_run / "model"
    for model in (plain_run, plain_run / "model"):
        with pytest.raises(
            TemplateMismatch, match=r"tuned with the template 'plain', not 'alpaca'; leave data\.template"
        ):
            instil.finetune(rows(12), model=model, out=tmp_path / "other", template="alpaca")
        with pytest.raises(TemplateMismatch, match="tuned with the template 'plain', not 'alpaca'"):
            instil.load(model, template="alpaca")
    assert not (tmp_path / "other").exists()


def test_the_settings_of_a_run_can_be_used_again(plain_run: Path, tmp_path: Path) -> None:
    again = resolve(config=plain_run / "run.toml")
    assert (
        again.model_dump(mode="json") == tomllib.loads((plain_run / "run.toml").read_text(encoding="utf-8"))["settings"]
    )
    assert (again.data.template, again.train.max_steps) == ("plain", 2)
    assert resolve(config=plain_run / "run.toml", assignments=["train.max_steps=7"]).train.max_steps == 7


def test_data_that_changed_since_the_run_are_noticed(copied_run: Path) -> None:
    facts = tomllib.loads((copied_run / "run.toml").read_text(encoding="utf-8"))
    moved = copied_run.parent / "moved.jsonl"
    shutil.copy(facts["data_path"], moved)
    toml = (copied_run / "run.toml").read_text(encoding="utf-8").replace(facts["data_path"], str(moved))
    (copied_run / "run.toml").write_text(toml, encoding="utf-8")
    asked = (str(copied_run), None, "validation", None, Settings(), Screen())
    assert len(respond_rows(*asked)) == 2
    moved.write_bytes(moved.read_bytes().replace(b"Double", b"Treble", 1))
    with pytest.raises(UserError, match=r"moved\.jsonl has changed since the run; answer its rows with --data"):
        respond_rows(*asked)
    moved.unlink()
    with pytest.raises(UserError, match="no such file"):
        respond_rows(*asked)


def test_a_model_of_several_ends_stops_at_each_before_and_after_it_was_tuned(tiny_folder: Path, tmp_path: Path) -> None:
    """The tiny model repeats one token; once that is an end as well, it says nothing, wherever it is asked."""
    import transformers

    repeated = instil.load(tiny_folder).respond_all([{"instruction": "Go."}], max_new_tokens=3)[0].ids
    assert len(repeated) == 3
    several = Path(shutil.copytree(tiny_folder, tmp_path / "several"))
    state = json.loads((several / "tokenizer.json").read_text(encoding="utf-8"))
    model = state["model"]  # what it repeats becomes a control token, which no text is made of
    (word,) = [token for token, index in model["vocab"].items() if index == repeated[0]]
    model["vocab"] = {"<|eot|>" if token == word else token: index for token, index in model["vocab"].items()}
    model["merges"] = [pair for pair in model["merges"] if word not in ("".join(pair), *pair)]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    state["added_tokens"].append({"id": repeated[0], "content": "<|eot|>", **flags, "special": True})
    (several / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    settings = json.loads((several / "generation_config.json").read_text())
    (several / "generation_config.json").write_text(json.dumps({**settings, "eos_token_id": [TINY_END, repeated[0]]}))
    assert instil.load(several).respond_all([{"instruction": "Go."}], max_new_tokens=3)[0].finish == "stop"

    values = {"max_steps": 1, "learning_rate": 1e-6, "max_new_tokens": 3}
    made = instil.finetune(rows(20), model=several, out=tmp_path / "run", **values)
    for which in ("base", "tuned"):
        answered = json.loads((made.path / "responses" / f"{which}.json").read_text())
        assert [row["model_response"] for row in answered] == ["", ""]
    again = instil.load(made.path)
    assert [(said.text, said.finish) for said in again.respond_all(rows(20)[17:19])] == [("", "stop")] * 2
    assert (again.tokenizer.eos_id, again.tokenizer.stop_ids) == (TINY_END, {TINY_END, repeated[0]})
    theirs = transformers.GenerationConfig.from_pretrained(made.path / "model")
    assert theirs.eos_token_id == [TINY_END, repeated[0]]


def test_the_python_api_refuses_unknown_settings_of_generation(plain_run: Path) -> None:
    assistant = instil.load(plain_run)
    with pytest.raises(SettingsError, match="unknown setting 'max_tokens'; did you mean max_new_tokens"):
        assistant.respond("Name a colour.", max_tokens=3)
    with pytest.raises(SettingsError, match="did you mean temperature"):
        assistant.respond_all([{"instruction": "Name a colour."}], temprature=1.0)
    with pytest.raises(SettingsError, match="did you mean top_k"):
        instil.load(plain_run, topk=3)
    with pytest.raises(SettingsError, match=r"generate\.max_new_tokens=0"):
        assistant.respond("Name a colour.", max_new_tokens=0)


def test_a_prompt_without_room_is_refused_where_it_is_the_only_one(plain_run: Path) -> None:
    with pytest.raises(UserError, match=r"the prompt has \d+ tokens; the model's context is 512"):
        respond_one(str(plain_run), "long " * 700, "", None, Settings())


def test_settings_without_an_effect_are_told_of(tiny_folder: Path) -> None:
    def notes(*assignments: str, book: bool = False) -> list[str]:
        lines = prepare(rows(20), tiny_folder, resolve(assignments=assignments, as_in_book=book)).preflight.lines()
        return [line for line in lines if "no effect" in line]

    assert notes() == notes(book=True) == []
    (said,) = notes("lora.rank=4", "lora.dora=true")
    assert "lora.rank, lora.dora have no effect with train.method=full; add --method lora, or leave them out" in said
    (said,) = notes("dpo.beta=0.2", "train.method=lora", "lora.rank=4")
    assert "dpo.beta has no effect with train.objective=sft; add --method dpo" in said
    (said,) = notes("dpo.loss=simpo")
    assert "add --method simpo" in said
    assert notes("lora.alpha=16.0")  # the book's value, but not as in the book


@pytest.mark.parametrize(
    ("keys", "shown"),
    [
        ({"attention_dropout": 0.1, "hidden_dropout": 0.0}, "attention_dropout=0.1"),
        ({"attn_pdrop": 0.1, "embd_pdrop": 0.2, "resid_pdrop": 0}, "attn_pdrop=0.1, embd_pdrop=0.2"),
        ({"hidden_dropout": 0.3, "mlp_dropout": 0.4}, "hidden_dropout=0.3, mlp_dropout=0.4"),
        ({"embedding_dropout": 0.1, "residual_dropout": 0.2}, "embedding_dropout=0.1, residual_dropout=0.2"),
        (
            {"hidden_dropout_prob": 0.1, "attn_dropout_rate": 1},
            "hidden_dropout_prob=0.1, attn_dropout_rate=1",
        ),
        ({"layerdrop": 0.05}, "layerdrop=0.05"),
        ({"drop_path_rate": 0.1}, "drop_path_rate=0.1"),
        ({"stochastic_depth_prob": 0.1}, "stochastic_depth_prob=0.1"),
        ({"attention_dropout": 0.0, "resid_pdrop": None, "layerdrop": 0, "embd_pdrop": False}, ""),
        ({"summary_first_dropout": 0.1, "classifier_dropout": 0.1, "classifier_dropout_prob": 0.1}, ""),
    ],
)
def test_dropout_of_a_configuration_is_named_as_ignored(
    keys: dict[str, float], shown: str, tiny_folder: Path, tmp_path: Path
) -> None:
    """In one line before training; who asks the model for answers has nothing to do with it."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "model"))
    stored = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**stored, **keys}))
    lines = [line for line in prepare(rows(20), folder, Settings()).preflight.lines() if "drop" in line]
    wanted = f"{folder / 'config.json'} asks for dropout ({shown}), which is ignored: training here drops nothing"
    assert lines == ([wanted] if shown else [])
    assert load_decoder(folder).notes == ()


def test_the_search_for_leaks_is_shown_with_its_end_in_sight(tiny_folder: Path) -> None:
    """A bar of as many steps as are done, also where the split has looked before."""

    class Watched(Screen):
        @contextmanager
        def bar(self, what: str, total: int) -> Iterator[Advance]:
            done = 0

            def advance(note: str = "", steps: int = 1) -> None:
                nonlocal done
                done += steps

            yield advance
            bars.append((what, total, done))

    for split in ("book", "grouped"):
        bars: list[tuple[str, int, int]] = []
        settings = resolve(assignments=[f"data.split={split}"])
        prepared = prepare(rows(40), tiny_folder, settings, screen=Watched(quiet=True))
        [(what, total, done)] = bars
        assert (what, total) == ("looks for near-duplicates", done)
        assert total >= len(prepared.source)


def test_leaks_are_refused_before_anything_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    data = rows(40)
    data[36] = dict(data[2])
    with pytest.raises(
        DataError, match=r"1 held-out row is nearly training rows, and data\.leaks=refuse:\n    test row 36"
    ):
        instil.finetune(data, model=tiny_folder, out=tmp_path / "run", leaks="refuse")
    assert not (tmp_path / "run").exists()
    run = instil.finetune(data, model=tiny_folder, out=tmp_path / "run", leaks="drop", max_steps=1, max_new_tokens=2)
    split = json.loads((run.path / "split.json").read_text())
    assert 2 not in split["train"]
    assert [one["row"] for one in split["dropped"]] == [2]
    assert split["near_duplicates"] == []


@pytest.mark.parametrize(("gain", "found"), [(2.0, "bf16"), (0.5, "fp32")])
def test_a_run_keeps_what_was_found_for_train_precision_auto(
    gain: float, found: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that report and ``--resume`` know it, and another machine does not go on otherwise in silence."""
    monkeypatch.setattr(gemm, "narrow_gain", lambda: gain)
    values = {"max_steps": 2, "precision": "auto", "max_new_tokens": 2}
    made = run(rows(20), tiny_folder, tmp_path / "run", resolve(values=values), answers=False)
    stored = tomllib.loads((made.path / "run.toml").read_text(encoding="utf-8"))
    assert stored["settings"]["train"]["precision"] == found
    same = run(rows(20), tiny_folder, tmp_path / "same", resolve(values={**values, "precision": found}), answers=False)
    losses = [[one.train_loss for one in read_metrics(each.path / "metrics.jsonl")] for each in (made, same)]
    assert losses[0] == losses[1]
