"""Preference tuning as a whole: runs that learn what is preferred, and what is refused before any work."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.cli.options import chosen_settings
from instil.data.splits import PARTS
from instil.errors import DataError, ModelError, SettingsError, UserError
from instil.model.load import file_hash
from instil.recipes.microscope.rows import inspected_rows
from instil.recipes.plan.forecast import looking_before
from instil.recipes.plan.plan import plan
from instil.recipes.plan.work import Work
from instil.recipes.respond import respond_rows
from instil.recipes.sweep.rows import loss_of
from instil.records import Encoded, EncodedPair
from instil.runs.folder import RunFolder
from instil.runs.identity import Identity
from instil.screen import Screen
from instil.settings.options import Settings
from instil.settings.resolve import resolve
from instil.tasks.pairs import reference as reference_file
from instil.tasks.pairs.batches import PairCollator
from instil.tasks.pairs.fading import FadingWatch
from instil.tasks.pairs.reference import pairs_at_once
from instil.tasks.prepare import load, prepare
from instil.tasks.task import loader_for
from instil.train.metrics import StepRecord, read_metrics
from tests.conftest import TINY_VOCABULARY, single_bytes, tiny_reference

BYTES = single_bytes()


def pairs(count: int) -> list[dict[str, str]]:
    """One side always ends politely."""
    return [
        {
            "instruction": f"Double the number {n}.",
            "output": f"It is {2 * n}.",
            "chosen": f"It is {2 * n}, thanks for asking.",
            "rejected": f"It is {2 * n}, go away.",
        }
        for n in range(count)
    ]


def alike(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Both answers begin with the same hundred words."""
    return [
        {**row, **{side: "The same words here. " * 25 + row[side] for side in ("chosen", "rejected")}} for row in rows
    ]


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_lengths_are_of_the_longer_answer(side: str, tiny_folder: Path) -> None:
    """What pre-flight says would keep all keeps all, whichever answer is the long one."""
    data = pairs(12)
    data[3][side] = "long " * 90
    settings = {"objective": "dpo", "data": {"max_length": 60}}
    cut = prepare(data, tiny_folder, resolve(values=settings)).preflight
    assert cut.cut == (3,)
    whole = {"objective": "dpo", "data": {"max_length": cut.longest - 1}}
    kept = prepare(data, tiny_folder, resolve(values=whole)).preflight
    assert kept.cut == ()
    assert f"data.max_length={cut.longest - 1} would keep all" in "\n".join(cut.lines())
    assert not any("lose the end" in line for line in kept.lines())
    one_less = {"objective": "dpo", "data": {"max_length": cut.longest - 2}}
    assert prepare(data, tiny_folder, resolve(values=one_less)).preflight.cut == (3,)


# Each loss in one of the two ways; in both with `make test-all`.
SECOND = [("full", "ipo"), ("full", "simpo"), ("lora", "orpo"), ("lora", "kto")]
WAYS = [("full", "dpo"), ("lora", "dpo"), ("lora", "ipo"), ("lora", "simpo"), ("full", "orpo"), ("full", "kto")]


@pytest.mark.parametrize(("method", "loss"), [*WAYS, *(pytest.param(*way, marks=pytest.mark.slow) for way in SECOND)])
def test_a_run_learns_what_is_preferred(tiny_folder: Path, tmp_path: Path, loss: str, method: str) -> None:
    run = instil.finetune(
        pairs(40), model=tiny_folder, out=tmp_path / "run", objective="dpo", loss=loss, method=method,
        rank=4, learning_rate=5e-3 if method == "full" else 5e-2, epochs=2, max_new_tokens=3, patience=9,
    )  # fmt: skip
    records = read_metrics(run.path / "metrics.jsonl")
    first, last = records[0], records[-1]
    assert first.val_metrics is not None
    assert last.val_metrics is not None
    assert first.val_loss is not None
    assert run.validation_loss is not None
    assert run.validation_loss < first.val_loss
    assert last.val_metrics["margin"] > first.val_metrics["margin"] + 1e-3
    assert last.val_metrics["accuracy"] == 1.0
    assert (run.path / "adapter").is_dir() == (method == "lora")
    assert instil.load(run.path).respond("Double the number 3.", max_new_tokens=3) is not None
    line = json.loads((run.path / "metrics.jsonl").read_text().splitlines()[-1])
    assert set(line["preference"]) >= {"margin", "accuracy", "chosen_logp", "rejected_logp"}
    assert ("kl" in line["preference"]) == (loss not in ("simpo", "orpo"))
    assert run.scores["tuned"]["score"] >= 0  # agreement with the chosen answers


def test_plain_rows_have_no_such_columns(tiny_folder: Path, tmp_path: Path) -> None:
    rows = [{"instruction": row["instruction"], "output": row["output"]} for row in pairs(20)]
    run = instil.finetune(rows, model=tiny_folder, out=tmp_path / "run", max_steps=1, max_new_tokens=2)
    assert "preference" not in (run.path / "metrics.jsonl").read_text()


def test_pairs_without_the_method_are_told_of_it(tiny_folder: Path) -> None:
    rows = [{key: value for key, value in row.items() if key != "output"} for row in pairs(20)]
    with pytest.raises(DataError, match="these are preference pairs; add --method dpo"):
        prepare(rows, tiny_folder, resolve())


def test_the_rows_of_a_run_can_be_answered_again(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.json"
    rows = pairs(20)
    del rows[0]["output"]  # which pairs need not have
    data.write_text(json.dumps(rows))
    values = {"objective": "dpo", "max_steps": 1, "max_new_tokens": 2}
    run = instil.finetune(data, model=tiny_folder, out=tmp_path / "run", **values)
    stored = json.loads((run.path / "responses" / "tuned.json").read_text())
    assert respond_rows(str(run.path), None, "test", None, Settings(), Screen(quiet=True)) == stored
    data.write_text(json.dumps(rows).replace("thanks", "thank you", 1))
    with pytest.raises(UserError, match="has changed since the run"):
        respond_rows(str(run.path), None, "test", None, Settings(), Screen(quiet=True))


def test_a_run_that_is_the_reference_is_not_replaced(tiny_folder: Path, tmp_path: Path) -> None:
    values: dict[str, Any] = {"objective": "dpo", "max_steps": 1, "max_new_tokens": 2}
    first = instil.finetune(pairs(20), model=tiny_folder, out=tmp_path / "run", **values)
    kept = (first.path / "model" / "model.safetensors").read_bytes()
    for reference in (first.path, first.path / "model"):
        with pytest.raises(UserError, match="run"):
            instil.finetune(
                pairs(20), model=tiny_folder, out=first.path, overwrite=True, reference=str(reference), **values
            )
        assert (first.path / "model" / "model.safetensors").read_bytes() == kept


def test_products_in_bfloat16(tiny_folder: Path, tmp_path: Path) -> None:
    """More scored tokens than the model is wide: the tied head leaves a table, which is not to be kept in bfloat16."""
    values: dict[str, Any] = {"objective": "dpo", "precision": "bf16", "max_steps": 1, "max_new_tokens": 2}
    run = instil.finetune(pairs(20), model=tiny_folder, out=tmp_path / "run", **values)
    before, first = read_metrics(run.path / "metrics.jsonl")[:2]
    assert before.val_loss == pytest.approx(math.log(2), abs=1e-6)  # evaluations are in float32
    assert first.train_loss == pytest.approx(math.log(2), abs=1e-5)  # what is rounded is so of the reference, too


def test_the_books_evaluations_of_pairs_meet_a_reference_in_float32(tiny_folder: Path, tmp_path: Path) -> None:
    """They look at training pairs, and are in float32 where steps are in bfloat16."""
    values: dict[str, Any] = {"objective": "dpo", "precision": "bf16", "max_steps": 1, "max_new_tokens": 2}
    book: dict[str, Any] = {"evaluation": "book", "eval_every": 1, "eval_batches": 2}
    run = instil.finetune(pairs(20), model=tiny_folder, out=tmp_path / "run", **values, **book)
    seen = [one.eval_train_loss for one in read_metrics(run.path / "metrics.jsonl")]
    assert seen[0] == pytest.approx(math.log(2), abs=1e-6)


@pytest.mark.slow
def test_another_reference(tiny_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    tiny_reference("llama", vocab_size=TINY_VOCABULARY, seed=5).save_pretrained(other)
    for file in tiny_folder.iterdir():
        if not (other / file.name).exists():
            (other / file.name).write_bytes(file.read_bytes())
    run = instil.finetune(
        pairs(20), model=tiny_folder, out=tmp_path / "run", objective="dpo", reference=str(other), max_steps=1,
        max_new_tokens=2,
    )  # fmt: skip
    first = read_metrics(run.path / "metrics.jsonl")[0].val_metrics
    assert first is not None
    assert abs(first["margin"]) > 1e-4  # the model is not its own reference
    assert first["kl"] > 1e-3
    stored = RunFolder(run.path).read_settings()
    assert stored["hashes"]["reference"] == file_hash(other)
    changed = {**stored, "hashes": {**stored["hashes"], "reference": "0"}}
    chosen = resolve(values={"objective": "dpo", "reference": str(other), "max_steps": 1, "max_new_tokens": 2})
    identity = Identity.of(prepare(pairs(20), tiny_folder, chosen))
    assert identity.differences(stored) == []
    assert identity.differences(changed) == ["another reference"]  # a sweep does not take it for the same run


@pytest.mark.parametrize(
    ("rows", "settings", "error", "said"),
    [
        ([{"instruction": "a", "output": "b", "chosen": "c"}] * 9, {}, DataError, "wanted .* chosen and rejected"),
        ([{"instruction": "a", "chosen": "c", "rejected": "c"}] * 9, {}, DataError, "equal"),
        (pairs(20), {"max_length": 3}, DataError, "within 3 tokens"),
        (alike(pairs(20)), {"max_length": 80}, DataError, "every training pair are equal within 80 .* raise data.max"),
        (pairs(20), {"loss": "ipo", "label_smoothing": 0.1}, SettingsError, "label_smoothing"),
        (pairs(20), {"loss": "simpo", "reference": "any"}, SettingsError, "simpo has no reference"),
        (pairs(20), {"loss": "dop"}, SettingsError, "dpo.loss"),
        (pairs(20), {"reference": "no/where/at/all"}, ModelError, "no such file"),
        (pairs(1), {"loss": "kto"}, DataError, "only one training pair is left; add pairs"),
        (pairs(20), {"batch_size": 64, "drop_last": True}, DataError, "larger than"),
        (pairs(20), {"method": "lora", "targets": ("nothing",)}, SettingsError, "lora.targets"),
        (pairs(20), {"reference": "nowhere"}, ModelError, r"dpo\.reference: nowhere: no such file"),
    ],
)
def test_what_is_refused(
    tiny_folder: Path, tmp_path: Path, rows: Any, settings: dict[str, Any], error: type[UserError], said: str
) -> None:
    with pytest.raises(error, match=said):
        instil.finetune(rows, model=tiny_folder, out=tmp_path / "run", objective="dpo", **settings)
    assert not (tmp_path / "run").exists()


def test_a_reference_of_another_vocabulary(tiny_folder: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    tiny_reference("gpt2", vocab_size=257).save_pretrained(small)
    BYTES.save(small)
    with pytest.raises(ModelError, match="vocabulary of 257 ids"):
        prepare(pairs(20), tiny_folder, resolve(values={"objective": "dpo", "reference": str(small)}))
    same_size = tmp_path / "same-size"
    tiny_reference("llama", vocab_size=TINY_VOCABULARY).save_pretrained(same_size)
    BYTES.save(same_size)
    with pytest.raises(ModelError, match="other ids for the same text"):
        prepare(pairs(20), tiny_folder, resolve(values={"objective": "dpo", "reference": str(same_size)}))


def test_a_reference_that_is_no_model(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.json").write_text("[]")
    Path("empty").mkdir()
    bare = Path(shutil.copytree(tiny_folder, "bare"))
    for file in bare.glob("*token*"):
        file.unlink()
    for name in ("rows.json", "empty", "bare"):
        with pytest.raises(ModelError, match=rf"^dpo\.reference: {name} cannot be read as a model.*: {name}"):
            prepare(pairs(20), tiny_folder, resolve(values={"objective": "dpo", "reference": name}))


def test_a_reference_that_cannot_hold_the_rows(tiny_folder: Path, tmp_path: Path) -> None:
    short = Path(shutil.copytree(tiny_folder, tmp_path / "short"))
    stored = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps({**stored, "max_position_embeddings": 32}))
    values = {"objective": "dpo", "reference": str(short)}
    with pytest.raises(ModelError, match=r"context of 32 tokens, and rows have up to \d+; set data\.max_length=32"):
        prepare(pairs(20), tiny_folder, resolve(values=values))
    brief = [{"instruction": "Go.", "chosen": "Yes.", "rejected": "No."}] * 9
    prepare(brief, tiny_folder, resolve(values={**values, "template": "plain"}))


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_long_pairs_go_through_the_reference_a_few_at_a_time(tiny_folder: Path, layout: str) -> None:
    rows = pairs(60)
    rows[3]["chosen"] *= 60
    found = prepare(rows, tiny_folder, resolve(values={"objective": "dpo", "layout": layout})).rows["train"]
    collate = PairCollator(0, 512, layout)
    batches = [[found[at] for at in batch] for batch in pairs_at_once(found, collate)]
    assert [pair for batch in batches for pair in batch] == found
    most = max(map(len, batches))
    assert most == 16 if layout == "padded" else most > 16  # these share their form
    assert all(collate.positions(batch) <= 8192 for batch in batches)


def test_pairs_that_begin_alike_go_through_the_reference_together(tiny_folder: Path) -> None:
    """The more the longer that is; what they share is computed once."""
    rows = [{**row, "instruction": "You are one who helps. " * 20 + row["instruction"]} for row in pairs(60)]
    found = prepare(rows, tiny_folder, resolve(values={"objective": "dpo"})).rows["train"]
    collate = PairCollator(0, 512)
    first, *_ = batches = pairs_at_once(found, collate)
    assert len(first) > 20 and [at for batch in batches for at in batch] == list(range(len(found)))
    assert collate.positions([found[at] for at in first]) < 0.5 * sum(collate.positions([found[at]]) for at in first)


def test_chosen_answers_that_are_cut_are_not_taken_for_shared() -> None:
    """Each of several rejected answers beside the same chosen one: none of these is computed for nothing."""

    def row(*start: int) -> Encoded:
        return Encoded((*range(10), *start, *range(100, 3000)), (True,) * (2910 + len(start)), prompt_length=10)

    found = [EncodedPair(row(7, at // 4), row(8, at), range(10, 2912), range(10, 2912)) for at in range(128)]
    collate = PairCollator(0, 1024)
    batches = pairs_at_once(found, collate)
    assert [at for batch in batches for at in batch] == list(range(128))
    assert max(collate.positions([found[at] for at in batch]) for batch in batches) <= 8192


def test_of_very_many_pairs_lengths_alone_decide(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = prepare(pairs(60), tiny_folder, resolve(values={"objective": "dpo"})).rows["train"]
    monkeypatch.setattr(reference_file, "SORTED", len(found) - 1)
    batches = pairs_at_once(found, PairCollator(0, 512))
    assert [at for batch in batches for at in batch] == list(range(len(found)))
    assert {len(batch) for batch in batches[:-1]} == {16}


def test_pairs_that_are_cut_or_left_out_are_named(tiny_folder: Path) -> None:
    rows = pairs(20)
    rows[3]["rejected"] += " Go away." * 30
    rows[5]["instruction"] *= 20
    settings = resolve(values={"objective": "dpo", "max_length": 80})
    lines = "\n".join(prepare(rows, tiny_folder, settings).preflight.lines())
    assert "1 pair is skipped, an answer lies beyond 80 tokens: rows [5]" in lines
    assert "2 pairs lose the end of an answer at 80 tokens: rows [3, 5]" in lines


def test_pairs_that_are_equal_once_cut_are_left_out_and_named(tiny_folder: Path) -> None:
    rows = pairs(60)
    rows[::3] = alike(rows[::3])
    settings = resolve(values={"objective": "dpo", "max_length": 80})
    prepared = prepare(rows, tiny_folder, settings)
    lines = "\n".join(prepared.preflight.lines())
    parts = {part: [pair.row for pair in prepared.rows[part]] for part in PARTS}
    named = [row for part in PARTS for row in parts[part] if row % 3 == 0]
    assert all(any(row % 3 == 0 for row in parts[part]) for part in PARTS)
    assert f"20 pairs are skipped, whose answers are equal within 80 tokens and prefer nothing: rows {named}" in lines
    for part in PARTS:
        loader = loader_for(prepared, part)
        left = [] if loader is None else sorted(pair.row for pair in loader.rows)
        assert sorted(row for row in parts[part] if row % 3) == left
    book = resolve(values={"objective": "dpo", "max_length": 80, "keep_equal": True})
    kept = prepare(rows, tiny_folder, book)
    assert f"20 pairs have equal answers within 80 tokens, which teaches nothing: rows {named}" in kept.preflight.notes
    loader = loader_for(kept, "train")
    assert loader is not None
    assert [pair.row for pair in loader.rows] == parts["train"]  # type: ignore[attr-defined]


def test_one_training_pair_is_too_few_for_kto(tiny_folder: Path) -> None:
    """However many the file has."""
    values = {"objective": "dpo", "loss": "kto", "max_length": 80}
    first = prepare(pairs(20), tiny_folder, resolve(values=values)).split.train[0].row
    rows = alike(pairs(20))
    rows[first] = pairs(20)[first]
    with pytest.raises(DataError, match="only one training pair is left; add pairs, or take another loss"):
        prepare(rows, tiny_folder, resolve(values=values))


def test_the_doctor_sees_the_pairs_as_they_are_cut(tiny_folder: Path) -> None:
    rows = [
        {"instruction": f"Double {n}.", "chosen": f"{2 * n}. " + "So it is. " * 40 + "Thanks!",
         "rejected": f"{2 * n + 1}. " + "So it is. " * 40 + "Bother!"}
        for n in range(60)
    ]  # fmt: skip
    told = "\n".join(prepare(rows, tiny_folder, resolve(values={"objective": "dpo"})).preflight.notes)
    assert "thanks" in told
    cut = prepare(rows, tiny_folder, resolve(values={"objective": "dpo", "max_length": 80})).preflight.notes
    assert "60 pairs lose the end of an answer" in "\n".join(cut)
    assert "thanks" not in "\n".join(cut)


def test_settings_of_preference_tuning() -> None:
    plain = resolve(values={"objective": "dpo"})
    assert (plain.train.learning_rate, plain.train.epochs, plain.dpo.beta, plain.dpo.reduction) == (5e-6, 1, 0.1, "sum")
    assert resolve(values={"objective": "dpo", "learning_rate": 1e-3}).train.learning_rate == 1e-3
    assert resolve(values={"objective": "dpo", "loss": "simpo"}).dpo.beta == 2.0
    assert resolve(values={"objective": "dpo", "loss": "simpo", "beta": 5.0}).dpo.beta == 5.0
    book = resolve(as_in_book=True, values={"objective": "dpo"})
    assert (book.dpo.reduction, book.dpo.scored, book.dpo.keep_equal) == ("mean", "book", True)
    assert (book.train.weight_decay, book.train.schedule) == (0.01, "constant")
    assert resolve(as_in_book=True).train.learning_rate == 5e-5


@pytest.mark.parametrize("methods", [["full", "lora"], ["dpo", "kto"], ["sft", "dpo", "lora"], ["dpo", "full", "ipo"]])
def test_methods_that_contradict_each_other(methods: list[str]) -> None:
    with pytest.raises(UserError, match=r"--method \w+ and --method \w+ contradict each other; leave one out"):
        chosen_settings(None, None, methods=methods)


def test_methods_that_go_together() -> None:
    chosen = chosen_settings(None, None, methods=["lora", "kto", "kto"])
    assert (chosen.train.method, chosen.train.objective, chosen.dpo.loss) == ("lora", "dpo", "kto")


def test_losses_of_preference_that_cannot_be_compared() -> None:
    def of(**values: Any) -> dict[str, Any]:
        return loss_of({"settings": resolve(values=values).model_dump(mode="json"), "hashes": {}})

    assert of(objective="dpo", loss="ipo") != of(objective="dpo", loss="dpo")
    assert of(objective="dpo", beta=0.3) != of(objective="dpo")
    assert of(beta=0.3) == of()  # of plain rows the loss has no beta


def test_a_plan_of_preference_tuning(tiny_folder: Path) -> None:
    made = plan(pairs(40), tiny_folder, resolve(values={"objective": "dpo"}), screen=Screen(quiet=True))
    assert made.work.steps == 5
    assert made.timed_steps > 0
    assert made.seconds["train"] > made.work.steps * made.step_seconds  # the reference is asked before
    found = prepare(pairs(40), tiny_folder, resolve(values={"objective": "dpo"}))
    assert looking_before(found).positions > made.work.steps * made.work.step.positions  # of validation rows, too
    assert (
        looking_before(prepare(pairs(40), tiny_folder, resolve(values={"objective": "dpo", "loss": "orpo"}))) == Work()
    )


def test_fading_answers_are_told_of_once() -> None:
    watch = FadingWatch(Screen(quiet=True))

    def record(step: int, change: float | None) -> StepRecord:
        told = None if change is None else {"chosen_change": change}
        return StepRecord(step, 0.0, 0, 0.1, 0.1, 0.0, 0.0, 0.0, val_metrics=told)

    assert watch.warning(record(1, None)) is None
    assert watch.warning(record(2, -0.1)) is None
    assert "-0.70 nats" in (watch.warning(record(3, -0.7)) or "")
    assert watch.warning(record(4, -2.0)) is None
    watch = FadingWatch(Screen(quiet=True))
    assert watch.warning(record(0, -0.9)) is None  # another reference, and nothing has been trained yet
    assert watch.warning(record(1, -1.2)) is None
    assert "-0.60 nats" in (watch.warning(record(2, -1.5)) or "")


def test_both_answers_under_the_microscope(tiny_folder: Path) -> None:
    prepared = prepare(pairs(20), tiny_folder, resolve(values={"objective": "dpo"}))
    chosen, rejected = inspected_rows(prepared, 2)
    assert (chosen.part, rejected.part) == ("train, chosen", "train, rejected")
    for slide, wanted in ((chosen, "It is 4, thanks for asking.<end>"), (rejected, "It is 4, go away.<end>")):
        assert "".join(token.text for token in slide.tokens if token.mask == "trained").endswith(wanted[-6:])
        assert "".join(token.text for token in slide.tokens if token.mask == "trained").startswith(wanted[:8])
    assert inspected_rows(prepared, 99) == []


def test_only_pairs_that_are_seen_are_asked_about(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And each of them: nothing is trained on with a reference of zeros."""
    asked: list[int] = []
    real = reference_file.reference_log_probs

    def counted(decoder: Any, batch: Any, precision: str) -> Any:
        asked.extend(batch.examples)
        return real(decoder, batch, precision)

    monkeypatch.setattr(reference_file, "reference_log_probs", counted)
    for max_steps, wanted in ((2, 16), (0, 34)):
        asked.clear()
        prepared = prepare(pairs(40), tiny_folder, resolve(values={"objective": "dpo", "max_steps": max_steps}))
        found = prepared.task.ready(prepared, load(prepared), Screen(quiet=True))
        assert len(asked) == wanted + 2
        after = loader_for(found, "train")
        assert after is not None
        seen = [batch for step in list(after.steps())[: max_steps or None] for batch in step]
        assert all(bool((batch.reference_M != 0).all()) for batch in seen)  # type: ignore[attr-defined]
        assert len(found.rows["train"]) == 34
