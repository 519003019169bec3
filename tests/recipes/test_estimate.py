"""How much a run computes, counted before it does; and a run that says how long it will take, and took."""

from __future__ import annotations

import json
from itertools import chain
from pathlib import Path

import pytest

import instil
from instil.cli.show import summary
from instil.recipes.plan.forecast import workload
from instil.recipes.plan.work import Pace, Work, answering, guessed_lengths, pace_of
from instil.recipes.run.run import Run
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.task import Prepared, evaluator_for, loader_for
from instil.train.metrics import read_metrics
from tests.conftest import rows

SETTINGS = [
    {},
    {"micro_batch": 3, "eval_every": 2, "drop_last": True},
    {"max_steps": 7, "eval_batches": 1, "batch_size": 5},
    {"epochs": 3, "eval_every": 0, "sample": "epoch"},
]


def prepared_with(values: dict[str, object], folder: Path) -> Prepared:
    uneven = [{**row, "output": row["output"] + " again" * (n % 7)} for n, row in enumerate(rows(40))]
    return prepare(uneven, folder, resolve(values=values))


@pytest.mark.parametrize(
    "values", [*SETTINGS, {"layout": "padded"}, {"order": "book", "evaluation": "book", "eval_batches": 1}]
)
def test_steps_are_measured_without_making_batches(values: dict[str, object], tiny_folder: Path) -> None:
    loader = loader_for(prepared_with(values, tiny_folder), "train")
    assert loader is not None
    if "order" not in values:
        for epoch in range(2):
            made = [[len(batch.ids_N) for batch in step] for step in loader.steps(epoch)]
            assert loader.sizes(epoch) == made
    longest = max(int(batch.positions_N.max()) for step in loader.steps() for batch in step)
    assert int(loader.longest()[0].positions_N.max()) == longest


@pytest.mark.parametrize("values", SETTINGS)
def test_the_work_counted_is_the_work_done(values: dict[str, object], tiny_folder: Path, tmp_path: Path) -> None:
    prepared = prepared_with(values, tiny_folder)
    loader = loader_for(prepared, "train")
    assert loader is not None
    work = workload(prepared, loader, evaluator_for(prepared, loader))
    done = instil.finetune(
        [example.as_json() for example in prepared.source.examples],
        model=tiny_folder, out=tmp_path / "run", **{"max_new_tokens": 2, **values},
    )  # fmt: skip
    records = read_metrics(done.path / "metrics.jsonl")
    samples = [json.loads(line)["step"] for line in (done.path / "samples.jsonl").read_text().splitlines()]
    assert work.steps == done.steps
    assert work.evaluations == sum(record.val_loss is not None for record in records)
    assert work.samples == len(set(samples))
    positions = list(chain.from_iterable(loader.sizes()))
    assert work.step.positions == pytest.approx(sum(positions) / len(loader))


def test_a_pace_is_found_again() -> None:
    true = Pace(0.2, 0.003)
    works = [Work(1, 50), Work(2, 400), Work(1, 900)]
    found = pace_of([(work, true.seconds(work)) for work in works])
    assert found.seconds(Work(3, 700)) == pytest.approx(true.seconds(Work(3, 700)))


def test_a_pace_is_never_negative() -> None:
    for timed in ([(Work(1, 100), 3.0), (Work(1, 200), 2.0)], [(Work(1, 100), 1.0), (Work(1, 200), 4.0)], []):
        found = pace_of(timed)
        assert found.a_pass >= 0
        assert found.a_position >= 0
    assert pace_of([(Work(1, 100), 2.0)]).seconds(Work(4, 200)) == pytest.approx(4.0)


def test_answers_are_counted_as_the_engine_makes_them() -> None:
    # two seats, longest prompts first: 9 for 4 passes; 5 for 2, and then 3 for 10
    assert answering([9, 3, 5], [4, 10, 2], 2) == Work(1 + 12, 17 + 16)
    assert answering([], [], 64) == Work(0, 0)


def test_guessed_lengths_have_the_mean_that_was_seen() -> None:
    lengths = guessed_lengths(50, 1000, 10_000, 500)
    assert sum(lengths) / len(lengths) == pytest.approx(20, rel=0.1)
    assert guessed_lengths(0, 0, 8, 2) == [8, 8]
    assert guessed_lengths(3, 3, 8, 2) == [1, 1]


@pytest.fixture(scope="module")
def finished(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("estimated") / "run"
    return instil.finetune(rows(40), model=tiny_folder, out=out, max_new_tokens=4, eval_every=3)


def test_a_run_says_how_good_its_estimate_was(finished: Run) -> None:
    estimate = finished.as_json()["estimate"]
    assert estimate["estimated_seconds"] > 0
    assert estimate["took_seconds"] >= sum(finished.seconds.values()) * 0.95
    assert finished.outlook.startswith("estimated ")
    assert finished.outlook in summary(finished)
    assert finished.outlook in (finished.path / "report.html").read_text()


def test_a_run_of_one_step_makes_no_estimate(tiny_folder: Path, tmp_path: Path) -> None:
    only = instil.finetune(rows(12), model=tiny_folder, out=tmp_path / "x", max_steps=1, max_new_tokens=2)
    assert only.as_json()["estimate"] is None
    assert only.outlook == ""
