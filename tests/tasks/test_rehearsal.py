"""Texts that the model writes itself and that are mixed into training."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import instil
from instil.data.collate import collate, collate_shared
from instil.data.subset import Joined, Lazy
from instil.errors import SettingsError
from instil.generate.sampling import Sampling
from instil.model.decoder import batch_of_ids
from instil.model.load import load_decoder
from instil.recipes.plan.plan import plan
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks import rehearsal
from instil.tasks.prepare import load, prepare
from instil.tasks.rehearsal import LIKELIEST, OTHERS, rehearsed, soft_of, thought, written
from instil.tasks.task import Prepared
from instil.tasks.tune import tune
from instil.train import training
from instil.train.losses import nll_sum
from instil.train.ranks import Ranks
from tests.conftest import rows

QUIET = Screen(quiet=True)


def prepared(model: Path, *settings: str, count: int = 40) -> Prepared:
    return prepare(rows(count), model, resolve(assignments=["train.rehearse=0.25", "data.template=plain", *settings]))


class Journal:
    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}

    def keep(self, key: str, entry: Any) -> None:
        self.entries[key] = json.loads(json.dumps(entry))

    def kept(self, key: str) -> Any:
        return self.entries.get(key)


def test_texts_are_of_the_model_s_own_distribution(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a temperature of 1, nothing cut off; each of its own draw, and the same ones again."""
    given: list[Sampling] = []
    plain = rehearsal.generate

    def watched(*args: Any, **how: Any) -> Any:
        given.extend(how["sampling"](row) for row in range(len(args[1])))
        return plain(*args, **how)

    monkeypatch.setattr(rehearsal, "generate", watched)
    one = prepared(tiny_folder)
    decoder = load(one).eval()
    texts = written(decoder, range(6), one.tokenizer, 20, 7, QUIET)
    assert texts == written(decoder, range(6), one.tokenizer, 20, 7, QUIET)
    assert texts != written(decoder, range(6), one.tokenizer, 20, 8, QUIET)
    assert len({tuple(text) for text in texts}) == 6
    assert all(text[0] == one.tokenizer.eos_id and 1 < len(text) <= 20 for text in texts)
    assert {(each.temperature, each.top_k, each.top_p, each.min_p) for each in given} == {(1.0, 0, 1.0, 0.0)}
    assert len({each.seed for each in given}) == 12  # six with each seed


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_where_the_model_begins_nothing_is_to_be_learnt_of_them(
    tiny_folder: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it thinks is what it is to think: the gradient is that of nothing, and of the drawn ids it is not."""
    monkeypatch.setattr(rehearsal, "LIKELIEST", 10**6)
    one = prepared(tiny_folder)
    decoder = load(one).double()
    texts = rehearsed(one, decoder, QUIET).rehearsal
    sizes = []
    for rows_ in (texts, [replace(text, soft=None) for text in texts]):
        decoder.zero_grad()
        batch = collate(rows_, 0) if layout == "padded" else collate_shared(rows_)
        assert batch.trained_tokens == pytest.approx(sum(len(text.ids) - 1 for text in texts))
        (nll_sum(decoder, batch) / batch.trained_tokens).backward()
        sizes.append(math.sqrt(sum(float(p.grad.square().sum()) for p in decoder.parameters() if p.grad is not None)))
    assert sizes[0] < 1e-5 * sizes[1]


def test_what_is_kept_of_a_place_are_its_likeliest_ids(tiny_folder: Path) -> None:
    one = prepared(tiny_folder)
    decoder = load(one).eval()
    ids = [one.tokenizer.eos_id, 5, 9, 2]
    with torch.no_grad():
        wanted_TV = decoder.logits(decoder(batch_of_ids(torch.tensor([ids])))).softmax(-1)[:-1]
    soft = soft_of(thought(decoder, ids, 1))
    assert soft.ids_TK.shape == soft.shares_TK.shape == (3, LIKELIEST + OTHERS)
    for ids_K, shares_K, wanted_V in zip(soft.ids_TK, soft.shares_TK, wanted_TV, strict=True):
        best = wanted_V.topk(LIKELIEST)
        assert ids_K[:LIKELIEST].tolist() == best.indices.tolist()
        assert shares_K[:LIKELIEST] == pytest.approx(best.values.numpy(), rel=1e-5)
        assert not set(ids_K[LIKELIEST:].tolist()) & set(best.indices.tolist())
        assert shares_K[LIKELIEST:] == pytest.approx(float(1 - best.values.sum()) / OTHERS, rel=1e-4)
    assert soft == soft_of(thought(decoder, ids, 1))
    assert soft != soft_of(thought(decoder, ids, 2))
    assert soft != soft_of(thought(decoder, [*ids[:2], 3, 2], 1))


def test_the_others_stand_for_all_others(tiny_folder: Path) -> None:
    """Over many draws each id has the share that the model gives it, so that nothing is learnt of them on average."""
    one = prepared(tiny_folder)
    decoder = load(one).eval()
    ids = [one.tokenizer.eos_id, 5]
    with torch.no_grad():
        wanted_V = decoder.logits(decoder(batch_of_ids(torch.tensor([ids])))).softmax(-1)[0]
    mean_V = torch.zeros_like(wanted_V)
    for seed in range(400):
        soft = soft_of(thought(decoder, ids, seed))
        mean_V.index_add_(0, torch.tensor(soft.ids_TK[0]), torch.tensor(soft.shares_TK[0]) / 400)
    assert float(mean_V.sum()) == pytest.approx(1, rel=1e-5)
    for tenth in wanted_V.argsort().chunk(10):  # of the vocabulary, from unlikely to likely
        assert float(mean_V[tenth].sum()) == pytest.approx(float(wanted_V[tenth].sum()), rel=0.15)


def test_so_many_for_each_row_and_all_of_each_is_learnt(tiny_folder: Path) -> None:
    before = prepared(tiny_folder)
    decoder = load(before)
    ready = rehearsed(before, decoder, QUIET)
    assert decoder.training is load(before).training
    assert len(ready.rehearsal) == 9  # a quarter of 34
    assert [text.row for text in ready.rehearsal] == list(range(40, 49))
    assert all(text.trained == (False, *[True] * (len(text.ids) - 1)) for text in ready.rehearsal)
    loader = ready.training
    assert len(loader) == len(before.training) == -(-43 // 8)  # known before the texts are
    given = Counter(row for step in loader.steps(0) for batch in step for row in batch.examples)
    assert given == Counter([*range(34), *range(40, 49)])
    assert len(before.usable("train")) == 34  # they are no rows of the user's


def test_what_is_learnt_is_what_was_written(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = prepared(tiny_folder)
    decoder = load(one)
    with pytest.raises(ValueError, match="not ready"):
        tune(one, decoder)
    ready = one.task.ready(one, decoder, QUIET)
    assert ready.looked_at
    ids = [list(text.ids) for text in ready.rehearsal]
    model = load_decoder(tiny_folder).eval()
    assert ids == written(model, range(9), one.tokenizer, 64, 123, QUIET)
    thoughts = [thought(model, one, 123 * 1_000_003 + at) for at, one in enumerate(ids)]
    assert [text.soft for text in ready.rehearsal] == [soft_of(one) for one in thoughts]
    monkeypatch.setattr(rehearsal, "written", lambda *args: pytest.fail("no texts were asked for"))
    none = prepare(rows(40), tiny_folder, resolve(assignments=["data.template=plain"]))
    assert none.task.ready(none, decoder, QUIET).rehearsal == ()


def test_a_journal_keeps_them(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, journal = prepared(tiny_folder), Journal()
    first = rehearsed(one, load(one), QUIET, journal=journal)
    monkeypatch.setattr(rehearsal, "written", lambda *args: pytest.fail("written again"))
    assert rehearsed(one, load(one), QUIET, journal=journal).rehearsal == first.rehearsal


def test_a_run_with_texts_goes_on_to_the_same_bits(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after an epoch and extended: the texts are those of the journal or of the first weights, not written anew
    by the model as it is by then.
    """
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows(40)))
    how: dict[str, Any] = {"rehearse": 0.25, "template": "plain", "max_new_tokens": 3, "epochs": 2, "save_every": "4"}
    whole = instil.finetune(file, model=tiny_folder, out=tmp_path / "whole", **how)
    assert whole.steps == 2 * -(-43 // 8)
    stop, take = "stopped here", training.Training._take

    def some(self: Any, step: Any, started: float) -> bool:
        if self.ledger.done == 9:
            raise KeyboardInterrupt(stop)
        return take(self, step, started)

    monkeypatch.setattr(training.Training, "_take", some)
    with pytest.raises(KeyboardInterrupt, match=stop):
        instil.finetune(file, model=tiny_folder, out=tmp_path / "part", **how)
    monkeypatch.setattr(training.Training, "_take", take)
    instil.finetune(file, model=tiny_folder, out=tmp_path / "part", resume=True, **how)
    one, other = ((tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "part"))
    assert one == other


def test_length_is_that_of_the_model_at_most(tiny_folder: Path) -> None:
    short = prepared(tiny_folder, "data.max_length=40")
    assert max(len(text.ids) for text in short.rehearsal) <= 40


@pytest.mark.parametrize(
    ("settings", "said"),
    [(["train.order=book", "train.evaluation=book"], "book's order"), (["train.objective=dpo"], "objective=sft")],
)
def test_where_there_is_no_place_for_them_it_is_said_before(settings: list[str], said: str, tiny_folder: Path) -> None:
    data = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in rows(40)]
    chosen = resolve(assignments=["train.rehearse=0.25", "data.template=plain", *settings])
    with pytest.raises(SettingsError, match=said):
        prepare(data if "dpo" in settings[0] else rows(40), tiny_folder, chosen)


def test_all_processes_take_the_texts_of_the_first(tiny_folder: Path) -> None:
    class Second(Ranks):
        def agree(self, value: Any) -> Any:
            return [([7, 8, 9], value[0][1])] * len(value)

    one = prepared(tiny_folder)
    assert {text.ids for text in rehearsed(one, load(one), QUIET, ranks=Second()).rehearsal} == {(7, 8, 9)}


def test_what_another_process_has_kept_is_not_written_again(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file may have it where this one's was not written yet."""

    class First(Ranks):
        def gather(self, value: Any) -> Any:
            return [value, [([7, 8, 9], said)] * 9]

    monkeypatch.setattr(rehearsal, "written", lambda *args: pytest.fail("written again"))
    one = prepared(tiny_folder)
    said = thought(load(one), [7, 8, 9], 1)
    assert {text.ids for text in rehearsed(one, load(one), QUIET, ranks=First()).rehearsal} == {(7, 8, 9)}


def test_a_plan_counts_them(tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(rows(40)))
    steps = [
        plan(str(file), str(tiny_folder), resolve(assignments=[f"train.rehearse={share}"]), QUIET).work.steps
        for share in (0, 1)
    ]
    assert steps == [4 * 5, 4 * 9]


def test_joined_rows_are_not_copied() -> None:
    class Numbers(Lazy[int]):
        def __len__(self) -> int:
            return 1_000_000_000

        def __getitem__(self, at: Any) -> Any:
            return at

    both = Joined(Numbers(), [-1, -2])
    assert (len(both), both[5], both[999_999_999], both[1_000_000_001], both[-1]) == (
        1_000_000_002,
        5,
        999_999_999,
        -2,
        -2,
    )
