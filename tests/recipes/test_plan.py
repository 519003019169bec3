"""A plan: what a run will take, from a few real steps, with nothing left behind."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from instil.cli.show import tables
from instil.model.load import open_model
from instil.recipes.plan import plan as plan_module
from instil.recipes.plan import timing as timing_module
from instil.recipes.plan.plan import Memory, Plan, plan
from instil.recipes.plan.timing import holds_gradients, typical_steps, work_of
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.task import loader_for
from tests.conftest import rows
from tests.processes import instil as command

GB = 10**9


@pytest.fixture(scope="module")
def planned(tiny_folder: Path) -> Plan:
    return plan(rows(40), tiny_folder, resolve(values={"max_new_tokens": 8, "epochs": 2}), Screen(quiet=True))


def test_a_plan_says_all_there_is_to_know(planned: Plan) -> None:
    assert planned.rows == {"train": 34, "validation": 2, "test": 4, "batch": 8}
    assert (planned.work.steps, planned.answered, planned.timed_steps) == (10, 4, 10)
    assert list(planned.seconds) == list(plan_module.STAGES)
    assert min(planned.seconds.values()) > 0
    assert planned.seconds["train"] == pytest.approx(10 * planned.step_seconds)
    assert planned.total_seconds == pytest.approx(sum(planned.seconds.values()))
    memory = planned.memory
    assert memory.measured
    assert memory.fits
    assert memory.weights == 4 * planned.parameters
    assert memory.training == 3 * memory.weights + memory.activations + memory.others  # gradients are not held
    assert memory.answering < memory.training
    json.dumps(planned.as_json(), allow_nan=False)


@pytest.mark.parametrize(("gain", "said"), [(2.5, "products take 40 % of float32's time"), (0.1, "no less than")])
def test_it_says_what_bfloat16_would_be_worth(planned: Plan, gain: float, said: str) -> None:
    assert planned.narrow_gain > 0
    job = next(iter(tables(replace(planned, narrow_gain=gain))))
    cells = [str(cell) for column in job.columns for cell in column.cells]  # type: ignore[union-attr]
    assert any(said in cell for cell in cells)
    assert any("train.precision=bf16" in cell for cell in cells)


def test_what_does_not_fit_is_said_and_not_tried(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_loading(prepared: object) -> None:
        raise AssertionError("loaded a model that does not fit")

    monkeypatch.setattr(plan_module, "machine_memory", lambda device: 10**6)
    monkeypatch.setattr(plan_module, "load", no_loading)
    made = plan(rows(20), tiny_folder, resolve(), Screen(quiet=True))
    assert not made.memory.fits
    assert made.seconds == {}
    shown = [getattr(one, "plain", "") for one in tables(made)]
    assert any("nothing was timed. Lower train.micro_batch" in line for line in shown)
    json.dumps(made.as_json(), allow_nan=False)


def test_longest_rows_that_would_not_fit_are_scaled(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(100)  # so that the large step of the typical ones is not the one with the long row
    data[3]["output"] = "word " * 400
    monkeypatch.setattr(plan_module, "memory_now", lambda device: 0)
    monkeypatch.setattr(timing_module, "memory_now", lambda device: 0)
    monkeypatch.setattr(timing_module, "peak_memory", lambda device: 90 * 10**6)
    monkeypatch.setattr(plan_module, "machine_memory", lambda device: 100 * 10**6)
    tight = plan(data, tiny_folder, resolve(values={"max_new_tokens": 2}), Screen(quiet=True))
    memory = tight.memory
    assert not memory.measured
    assert not memory.fits
    assert memory.activations > 2 * (90 * 10**6 - 3 * memory.weights)  # the longest row is much longer than the rest
    assert tight.timed_steps == 9
    assert tight.seconds["train"] > 0
    shown = "".join(getattr(one, "plain", "") for one in tables(tight))
    assert "nothing was timed" not in shown
    assert "Lower train.micro_batch" in shown


def test_the_cache_of_answers_counts() -> None:
    memory = Memory(8 * GB, 0, GB, 2 * GB, GB, 0, 9 * GB, 0, measured=True)
    assert memory.training == 4 * GB
    assert memory.predicted == memory.answering == 10 * GB
    assert not memory.fits


@pytest.mark.slow
def test_the_command_leaves_nothing_behind(tiny_folder: Path, data_file: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = command(
        "plan", "--model", tiny_folder, "--data", data_file, "-s", "generate.max_new_tokens=2", "--json", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["steps"] == 20
    assert said["memory"]["fits"]
    assert said["chapter_minutes"]["A100 GPU"] == {"gpt2-small": 0.39, "gpt2-medium": 0.86}
    shown = command("plan", data_file, "-m", tiny_folder, "-s", "generate.max_new_tokens=2", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    for words in ("optimizer steps", "evaluate", "peak of training", "15.78", "this machine"):
        assert words in shown.stdout
    assert sorted(tmp_path.rglob("*")) == before
    twice = command("plan", data_file, "--data", data_file, "-m", tiny_folder)
    assert twice.returncode == 2


def test_the_steps_timed_are_a_small_one_a_middling_one_and_a_large_one(tiny_folder: Path) -> None:
    data = [{**row, "output": row["output"] + " again" * (n % 7)} for n, row in enumerate(rows(80))]
    for order in ("seeded", "book"):
        loader = loader_for(prepare(data, tiny_folder, resolve(values={"order": order})), "train")
        assert loader is not None
        sizes = [work_of(step).positions for step in typical_steps(loader)]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]
        assert set(sizes) <= {sum(step) for step in loader.sizes()}


@pytest.mark.parametrize(
    ("options", "held"),
    [({}, False), ({"clip": 1.0}, True), ({"micro_batch": 4}, True), ({"micro_batch": 8}, False)],
)
def test_gradients_are_held_only_where_something_waits_for_all(options: dict[str, float], held: bool) -> None:
    assert holds_gradients(resolve(values=options).train) is held


@pytest.mark.parametrize(("tokens", "packed"), [(63, 0), (64, 1)])
def test_answering_takes_two_seats_a_row_and_the_weights_twice(
    tokens: int, packed: int, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that outgrow their seat move while the old one is still there; and long answers want faster weights."""
    monkeypatch.setattr(plan_module, "backend", lambda: "onednn")
    data = [{**row, "instruction": row["instruction"] + " word" * 40} for row in rows(40)]
    prepared = prepare(data, tiny_folder, resolve(values={"max_new_tokens": tokens}))
    spec = open_model(prepared.model_path).spec
    longest = max(len(row.ids[: row.prompt_length]) for row in prepared.rows["test"])
    assert longest < 128 < longest + tokens < 256
    each = 2 * spec.layers * spec.kv_heads * spec.head_width * 4
    found = plan_module._cache_bytes(prepared, spec, 10**6, torch.device("cpu"))
    assert found == 4 * 256 * each + packed * 10**6
    convolving = replace(spec, convolutions=(3, None))  # a layer that keeps its inputs instead
    found = plan_module._cache_bytes(prepared, convolving, 10**6, torch.device("cpu"))
    assert found == 4 * 256 * (each // 2 + 4 * spec.width) + packed * 10**6
    monkeypatch.setattr(plan_module, "available_memory", lambda device: 3 * 10**5)
    assert plan_module._cache_bytes(prepared, spec, 10**6, torch.device("cpu")) == 10**5  # a share of what there is
