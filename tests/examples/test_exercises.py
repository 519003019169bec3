"""The book's exercises as a sweep: the file says what docs/exercises.md says, and runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instil.recipes.sweep.file import Overrides, read_sweep
from instil.recipes.sweep.sweep import sweep
from instil.screen import Screen
from tests.conftest import rows

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "exercises.toml"


def test_each_run_differs_from_the_baseline_in_its_exercise_alone() -> None:
    found = read_sweep(FILE)
    assert (found.runs[0].data, found.runs[0].model, found.out) == ("starter", "smollm2-135m", Path("runs/exercises"))
    base = found.runs[0].settings.model_dump()
    different = {}
    for run in found.runs:
        own = run.settings.model_dump()
        different[run.name] = {
            f"{section}.{key}": own[section][key]
            for section in own
            for key in own[section]
            if own[section][key] != base[section][key]
        }
    assert base["data"]["train_on"] == "all"
    assert different == {
        "baseline": {},
        "phi3 prompt": {"data.template": "phi3"},
        "masked instructions": {"data.train_on": "response_with_header"},
        "LoRA": {
            "train.method": "lora",
            "lora.alpha": 16.0,
            "lora.scaling": "alpha",
            "lora.targets": ("all", "head"),
        },
    }
    page = (ROOT / "docs" / "exercises.md").read_text(encoding="utf-8")
    for name, changes in different.items():
        line = next(line for line in page.splitlines() if line.startswith(f"| {name} |"))
        shown = {key: ",".join(value) if isinstance(value, tuple) else value for key, value in changes.items()}
        assert all(f"`{key}={value}`" in line for key, value in shown.items())
    assert page.count("<!-- table -->\n") == page.count("<!-- end of table -->\n") == 1


def test_as_in_the_book_they_are_the_solutions_settings() -> None:
    found = read_sweep(FILE, Overrides(data="book", model="gpt2-medium", as_in_book=True))
    assert {run.settings.train.learning_rate for run in found.runs} == {5e-5}
    assert {run.settings.train.epochs for run in found.runs} == {2}
    assert (found.runs[3].settings.lora.rank, found.runs[3].settings.lora.scaling) == (16, "alpha")


@pytest.mark.slow
def test_they_run(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(rows(40)))
    quick = ("train.max_steps=2", "generate.max_new_tokens=2", "lora.rank=4")
    over = Overrides(str(tmp_path / "rows.json"), str(tiny_folder), tmp_path / "out", assignments=quick)
    done = sweep(FILE, over, screen=Screen(quiet=True))
    done.check()
    assert [row.status for row in done.table.rows] == ["done"] * 4
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir())
    assert names == ["LoRA", "baseline", "masked-instructions", "phi3-prompt"]
    assert [bool(row.before_from) for row in done.table.rows] == [False, False, True, True]
    assert done.table.as_markdown().count("not distinguishable") >= 3
