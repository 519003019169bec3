"""A run of very many pairs is the run that it would be in memory; what differs is where the pairs lie."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from instil.batches import PairBatch
from instil.data import together
from instil.data.encoding import encode
from instil.data.lengths import lengths_of
from instil.data.splits import PARTS
from instil.data.store import build, sources
from instil.data.store.examples import ExampleStore
from instil.data.store.pairs import EncodedPairs, PairStore
from instil.data.subset import Lazy
from instil.errors import DataError
from instil.recipes.microscope.rows import inspected_rows
from instil.recipes.run.run import run
from instil.records import EncodedPair
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.pairs import reference, task
from instil.tasks.pairs.encoding import is_told_apart, is_within
from instil.tasks.pairs.lengths import PairLengths, pair_lengths
from instil.tasks.pairs.source import PairRows, PairSource
from instil.tasks.prepare import load, prepare
from instil.tasks.rejected import rejected_rows
from instil.tasks.task import Prepared
from instil.train.metrics import read_metrics
from instil.train.ranks import Ranks

COUNT = 60


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def rows(count: int = COUNT) -> list[dict[str, Any]]:
    """Some are cut or left out at 60 tokens, equal within them, or equal altogether; one is a conversation."""
    made: list[dict[str, Any]] = [
        {
            "instruction": f"Halve the number {2 * n}.",
            "input": "" if n % 4 else f"It is cafe\u0301 no {n}.",
            "output": f"{n}",
            "chosen": f"{n}, with pleasure." + " Ask again." * (n % 5 == 0),
            "rejected": f"Work it out, it is {n}." + " Go." * (n % 7),
        }
        for n in range(count)
    ]
    made[4] |= {"chosen": "word " * 90 + "yes", "rejected": "word " * 90 + "no"}
    made[6] |= {"rejected": "long " * 90}
    made[9] |= {"instruction": "Read this. " * 40}
    made[11] |= {"chosen": "The same.", "rejected": "The same. "}
    made[13] |= {"chosen": "At the cafe\u0301.", "rejected": "At the caf\u00e9."}  # equal in a normal form
    made[57] = {**made[2]}  # the prompt of a training row
    made[58] |= {"chosen": "n/a"}
    return made


def a_file(folder: Path, made: list[dict[str, Any]] | None = None) -> Path:
    (folder / "pairs.json").write_text(json.dumps(made or rows()), encoding="utf-8")
    return folder / "pairs.json"


def batches(prepared: Prepared) -> list[PairBatch]:
    """The second epoch of training."""
    return [batch for step in prepared.training.steps(1) for batch in step]  # type: ignore[misc]


def same_batches(ours: Sequence[PairBatch], theirs: Sequence[PairBatch]) -> bool:
    """Bit by bit, with those of others."""
    for one, other in zip(ours, theirs, strict=True):
        for field in fields(one):
            a, b = getattr(one, field.name), getattr(other, field.name)
            if isinstance(a, PairBatch):
                assert same_batches([a], [b])
            else:
                assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b, field.name
    return True


WAYS: list[dict[str, Any]] = [
    {"keep_equal": True},
    {"skip_bad": True, "max_length": 60, "split": "grouped", "normalise": "nfc"},
    {"keep_equal": True, "max_length": 60, "train_on": "all", "loss": "kto"},
    {"keep_equal": True, "scored": "book", "template": "alpaca", "loss": "kto", "max_length": 90},
    {"keep_equal": True, "scored": "book", "batch_tokens": 300, "max_length": 60, "leaks": "drop"},
]


@pytest.mark.parametrize("values", WAYS, ids=str)
def test_a_store_changes_nothing_but_where_pairs_lie(
    values: dict[str, Any], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, settings = a_file(tmp_path), resolve(values={"objective": "dpo", **values})
    known = prepare(file, tiny_folder, settings)
    monkeypatch.setattr(sources, "MANY", COUNT)
    found = prepare(file, tiny_folder, settings)
    ours, theirs = found.source, known.source
    assert isinstance(ours, PairSource)
    assert isinstance(theirs, PairSource)
    assert isinstance(ours.examples, ExampleStore)
    assert isinstance(ours.pairs, PairStore)
    assert tuple(ours.examples) == theirs.examples
    assert tuple(ours.pairs) == tuple(ours.pairs[:]) == theirs.pairs
    answers_of = found.task.answers(ours)
    assert answers_of is not None
    assert [answers_of(one) for one in ours.examples] == [(pair.chosen, pair.rejected) for pair in theirs.pairs]
    for name in ("sha256", "rejected", "notes", "equal"):
        assert getattr(ours, name) == getattr(theirs, name)
    for part in PARTS:
        assert isinstance(found.rows[part], Lazy)
        assert tuple(found.split.part(part)) == tuple(known.split.part(part))
        assert list(found.rows[part]) == list(known.rows[part])
        assert list(found.usable(part)) == list(known.usable(part))
        columns = [lengths_of(known.task.measured(one.rows[part])) for one in (found, known)]
        for name in ("ids_R", "targets_R", "first_target_R", "row_R", "end_R"):
            assert np.array_equal(*(getattr(one, name) for one in columns))
    notes = {note for note in found.preflight.notes if not note.startswith("rows and their ids are kept")}
    assert notes == set(known.preflight.notes)
    assert len(found.preflight.notes) == len(known.preflight.notes) + 1
    assert replace(found.preflight, notes=known.preflight.notes) == known.preflight
    assert found.split.as_json() == known.split.as_json()
    assert found.leaks.lines() == known.leaks.lines()
    left_out = list(rejected_rows(known))
    assert list(rejected_rows(found)) == left_out
    assert bool(left_out) == ("max_length" in values)
    in_nfc = "normalise" in values
    assert theirs.pairs[0].example.input == ("It is caf\u00e9 no 0." if in_nfc else "It is cafe\u0301 no 0.")
    assert sorted(one.row for one in left_out if "equal within" in one.reason) == ([4, 13] if in_nfc else [])
    assert inspected_rows(found, 4) == inspected_rows(known, 4) != []
    assert same_batches(batches(found), batches(known))
    assert set(found.training.ids()) >= set(known.training.ids())
    assert found.training.sizes() == known.training.sizes()
    assert same_batches(found.training.longest(), known.training.longest())  # type: ignore[arg-type]


@pytest.mark.parametrize("loss", ["dpo", "kto", "simpo"])
def test_a_run_of_a_store_is_the_run_of_its_pairs(
    loss: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses and answers, with what the reference says; a second run opens what the first has stored."""
    values = {"objective": "dpo", "loss": loss, "keep_equal": True, "epochs": 1, "max_new_tokens": 2, "eval_every": 3}
    file, settings = a_file(tmp_path), resolve(values=values)
    known = run(file, tiny_folder, tmp_path / "known", settings)
    monkeypatch.setattr(sources, "MANY", COUNT)
    for name in ("found", "again"):
        found = run(file, tiny_folder, tmp_path / name, settings)
        ours, theirs = (read_metrics(one.path / "metrics.jsonl") for one in (found, known))
        for one, other in zip(ours, theirs, strict=True):
            assert (one.train_loss, one.val_loss) == (other.train_loss, other.val_loss)
            assert (one.metrics, one.val_metrics) == (other.metrics, other.val_metrics)
        assert (found.path / "responses/tuned.json").read_text() == (known.path / "responses/tuned.json").read_text()
        assert (found.path / "rejected.jsonl").read_text() == (known.path / "rejected.jsonl").read_text()


def test_pairs_are_read_and_encoded_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    """What is scored has ids of its own, and equal answers rows; the same file as answers is another store."""
    monkeypatch.setattr(sources, "MANY", COUNT)
    file, values = a_file(tmp_path), {"objective": "dpo", "keep_equal": True}
    first = prepare(file, tiny_folder, resolve(values=values))
    monkeypatch.setattr(PairRows, "__iter__", lambda _: pytest.fail("read again"))
    again = prepare(file, tiny_folder, resolve(values=values))
    assert again.preflight == first.preflight
    prepare(file, tiny_folder, resolve(values={**values, "scored": "book"}))
    monkeypatch.undo()
    monkeypatch.setenv("INSTIL_HOME", str(home))
    monkeypatch.setattr(sources, "MANY", COUNT)
    assert [len(list((home / "store").glob(f"{kind}-*"))) for kind in ("rows", "tokens")] == [1, 2]
    assert (
        len(prepare(file, tiny_folder, resolve(values={**values, "keep_equal": False, "skip_bad": True})).source) == 59
    )
    prepare(file, tiny_folder, resolve())
    assert [len(list((home / "store").glob(f"{kind}-*"))) for kind in ("rows", "tokens")] == [3, 4]


def test_pairs_in_memory_and_labelled_ones_are_stored_too(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled = [
        {"prompt": f"Say {n // 2}.", "completion": f"{n // 2}" if n % 2 else "No.", "label": bool(n % 2)}
        for n in range(2 * COUNT)
    ]
    settings = resolve(values={"objective": "dpo"})
    for data in (labelled, [row for row in rows() if row["chosen"].strip() != row["rejected"].strip()]):
        with monkeypatch.context() as patch:
            known = prepare(data, tiny_folder, settings)
            patch.setattr(sources, "MANY", 50)
            found = prepare(data, tiny_folder, settings)
        assert isinstance(found.source.examples, ExampleStore)
        assert isinstance(found.source, PairSource)
        assert isinstance(known.source, PairSource)
        assert tuple(found.source.pairs) == known.source.pairs
        assert [list(found.rows[part]) for part in PARTS] == [list(known.rows[part]) for part in PARTS]
        assert set(known.source.notes) == set(found.source.notes)


def test_pairs_that_cannot_be_used_are_named_as_in_memory(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rows()
    made[20] = {"instruction": "One answer only.", "chosen": "Yes."}
    file, settings = a_file(tmp_path, made), resolve(values={"objective": "dpo"})
    said = []
    for many in (COUNT + 1, COUNT):
        monkeypatch.setattr(sources, "MANY", many)
        with pytest.raises(DataError) as told:
            prepare(file, tiny_folder, settings)
        said.append(str(told.value))
    assert said[0] == said[1]
    assert "row 11: chosen and rejected are equal" in said[0]


def test_without_arrow_many_pairs_stay_in_memory_and_the_extra_is_named(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MANY", COUNT)
    monkeypatch.setattr(sources, "has_arrow", lambda: False)
    found = prepare(a_file(tmp_path), tiny_folder, resolve(values={"objective": "dpo", "keep_equal": True}))
    assert isinstance(found.source, PairSource)
    assert isinstance(found.source.pairs, tuple)
    assert any("60 rows and their ids are held in memory" in note for note in found.preflight.notes)
    assert any("pip install 'instil[data]'" in note for note in found.preflight.notes)


@pytest.mark.parametrize("scored", ["response", "book"])
@pytest.mark.parametrize("loss", ["dpo", "kto"])
@pytest.mark.parametrize("max_length", [4, 30, 44, 60, 1024])
def test_columns_say_of_pairs_what_each_says(scored: str, loss: str, max_length: int, tiny_folder: Path) -> None:
    values = {"objective": "dpo", "keep_equal": True, "scored": scored, "loss": loss, "template": "alpaca"}
    pairs: Sequence[EncodedPair] = prepare(rows(), tiny_folder, resolve(values=values)).rows["train"]
    found: PairLengths = pair_lengths(pairs)
    assert found.within_R(max_length).tolist() == [is_within(pair, max_length) for pair in pairs]
    assert found.told_apart_R(max_length).tolist() == [is_told_apart(pair, max_length) for pair in pairs]
    assert found.differ_R.tolist() == [pair.chosen.ids != pair.rejected.ids for pair in pairs]
    assert found.longest_R.tolist() == [len(pair.ids) for pair in pairs]


def test_a_build_that_was_killed_goes_on_to_the_same_bytes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While pairs are stored, and while they are encoded; what is complete is not written again."""
    for module in _with_batches():
        monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(sources, "MANY", COUNT)
    file, settings = a_file(tmp_path), resolve(values={"objective": "dpo", "keep_equal": True})

    class Killed(Exception):
        pass

    class Bar:
        def __init__(self, left: int) -> None:
            self.left = left

        def __call__(self, what: str, total: int) -> Bar:
            self.counts = what in ("storing rows", "encoding rows")
            return self

        def __enter__(self) -> Any:
            return self.advance

        def __exit__(self, *_: object) -> None:
            pass

        def advance(self, note: str = "", steps: int = 1) -> None:
            self.left -= self.counts
            if self.left < 0:
                raise Killed

    found = []
    for deaths in ([], [3, 0, 9, 1]):
        home = tmp_path / f"home{len(deaths)}"
        monkeypatch.setenv("INSTIL_HOME", str(home))
        for left in [*deaths, 10**9]:
            screen = Screen(quiet=True)
            monkeypatch.setattr(screen, "bar", Bar(left))
            before = {path: path.stat().st_mtime_ns for path in home.rglob("*.arrow")}
            try:
                prepare(file, tiny_folder, settings, screen=screen)
            except Killed:
                assert left < 10**9
            assert all(path.stat().st_mtime_ns == when for path, when in before.items())
        there = [path for path in home.rglob("*") if path.suffix in (".arrow", ".npy")]
        found.append({path.relative_to(home): path.read_bytes() for path in there})
        assert len(found[-1]) == 8 + 8 + 9 + 3 + 7
    assert found[0] == found[1]


def _with_batches() -> list[Any]:
    from instil.data.store import examples, pairs, shards, tokens

    return [build, examples, pairs, shards, tokens]


def test_pairs_are_encoded_by_several_processes(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instil.data.store import workers

    made = [row for row in rows(1500) if row["chosen"].strip() != row["rejected"].strip()]
    file, settings = a_file(tmp_path, made), resolve(values={"objective": "dpo"})
    monkeypatch.setattr(sources, "MANY", 100)
    monkeypatch.setattr(workers, "FEWEST", 100)
    monkeypatch.setattr(workers, "processors", lambda: 2)
    begun = []
    drive = workers._drive
    monkeypatch.setattr(workers, "_drive", lambda *given: (begun.append(1), drive(*given)))
    prepared = prepare(file, tiny_folder, settings)
    assert len(begun) == 2
    some = prepared.rows["train"]
    assert isinstance(some.rows, EncodedPairs)
    for at in (0, 700, 1100):
        example = prepared.split.train[at]
        assert some[at].chosen == encode(example, prepared.template, prepared.tokenizer)
        other = replace(example, output=made[at]["rejected"])
        assert some[at].rejected == encode(other, prepared.template, prepared.tokenizer)


def test_what_a_store_is_asked_is_answered_without_looking_at_a_pair(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lengths, those that are left out, steps of so many tokens: so that nothing grows with the pairs."""
    monkeypatch.setattr(sources, "MANY", COUNT)
    monkeypatch.setattr(task, "LOOKED_AT", 5)
    values = {"objective": "dpo", "keep_equal": True, "loss": "kto", "batch_tokens": 400}
    file, settings = a_file(tmp_path), resolve(values=values)
    looked: list[int] = []
    real = EncodedPairs.__getitem__

    def watched(pairs: EncodedPairs, at: Any) -> Any:
        looked.append(at)
        return real(pairs, at)

    monkeypatch.setattr(EncodedPairs, "__getitem__", watched)
    prepare(file, tiny_folder, settings)
    assert looked == []


@pytest.mark.parametrize("loss", ["dpo", "kto"])
@pytest.mark.parametrize("max_steps", [0, 2])
def test_what_the_reference_says_of_a_store(
    loss: str, max_steps: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in memory; it lies in a file, which nobody sees, and of pairs that nobody asks for nothing is known."""
    values = {"objective": "dpo", "keep_equal": True, "loss": loss, "max_steps": max_steps, "max_length": 60}
    file, settings = a_file(tmp_path), resolve(values=values)
    found = []
    for many in (COUNT + 1, COUNT):
        monkeypatch.setattr(sources, "MANY", many)
        prepared = prepare(file, tiny_folder, settings)
        found.append(prepared.task.ready(prepared, load(prepared), Screen(quiet=True)))
    known, ours = found
    for part in PARTS:
        assert isinstance(ours.rows[part], Lazy)
        assert list(ours.rows[part]) == list(known.rows[part])
        assert list(ours.usable(part)) == list(known.usable(part))
    with_it = [pair.reference is not None for pair in known.rows["train"]]
    assert sum(with_it) == (16 if max_steps else sum(known.task.left_out(p, 60) == "" for p in known.rows["train"]))
    assert same_batches(batches(ours), batches(known))
    assert inspected_rows(ours, 4) == inspected_rows(known, 4)


class OneOfTwo(Ranks):
    """One of two threads that stand for processes."""

    world = 2

    def __init__(self, rank: int, barrier: threading.Barrier, said: dict[int, Any]) -> None:
        self.rank, self._barrier, self._said = rank, barrier, said

    def gather(self, value: Any) -> Any:
        self._said[self.rank] = value
        self._barrier.wait(60)
        every = [self._said[rank] for rank in range(2)]
        self._barrier.wait(60)
        return every


@pytest.mark.parametrize("many", [COUNT, COUNT + 1], ids=["in a store", "in memory"])
def test_processes_tell_one_another_what_the_reference_says(
    many: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few batches at a time; each knows all of it afterwards, and has computed its share."""
    monkeypatch.setattr(sources, "MANY", many)
    monkeypatch.setattr(reference, "SHARED", 3)
    monkeypatch.setattr(reference, "REFERENCE_PAIRS", 5)
    monkeypatch.setattr(together, "TOKENS", 0)
    monkeypatch.setattr(together, "TIMES", 0)
    settings = resolve(values={"objective": "dpo", "keep_equal": True})
    prepared = prepare(a_file(tmp_path), tiny_folder, settings)
    wanted = prepared.task.ready(prepared, load(prepared), Screen(quiet=True))
    computed, real = [0, 0], reference.reference_log_probs
    ranks = threading.local()

    def counted(decoder: Any, batch: Any, precision: str) -> Any:
        computed[ranks.number] += 1
        return real(decoder, batch, precision)

    monkeypatch.setattr(reference, "reference_log_probs", counted)
    barrier, said, found = threading.Barrier(2), dict[int, Any](), dict[int, Prepared]()

    def work(rank: int) -> None:
        ranks.number = rank
        of_two = OneOfTwo(rank, barrier, said)
        found[rank] = prepared.task.ready(prepared, load(prepared), Screen(quiet=True), ranks=of_two)

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    for one in found.values():
        assert all(list(one.rows[part]) == list(wanted.rows[part]) for part in PARTS)
    assert len(found) == 2
    assert min(computed) > 3  # of twelve batches


def test_no_room_for_what_the_reference_says(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sources, "MANY", COUNT)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    settings = resolve(values={"objective": "dpo", "keep_equal": True})
    prepared = prepare(a_file(tmp_path), tiny_folder, settings)
    before = sorted((home / "store").iterdir())
    with pytest.raises(DataError, match=r"log-probabilities cannot be written: No space left .* INSTIL_HOME names"):
        prepared.task.ready(prepared, load(prepared), Screen(quiet=True))
    assert sorted((home / "store").iterdir()) == before
