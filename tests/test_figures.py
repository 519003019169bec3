"""README tells no figure of its own: each is what docs/figures.json keeps, which a command writes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import figures
from benchmarks.figures import FIGURES, KEPT, MARKED, Figure, main, marked, read_kept, unmarked
from benchmarks.speeds import collected

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_marked_parts_are_what_is_kept() -> None:
    kept, _ = read_kept(KEPT)
    found = set()
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        found |= {match[2] for match in MARKED.finditer(text)}
        assert text.count("<!-- figure:") == text.count("<!-- end of figure -->") == len(MARKED.findall(text)), page
        assert marked(text, kept) == text, f"{page.name}: make figures"
    assert found == set(FIGURES) == set(kept)


def test_every_figure_says_where_it_is_from() -> None:
    kept, _ = read_kept(KEPT)
    for name, figure in kept.items():
        assert figure.command and figure.values, name
        assert re.search(r"\b\d+ core", figure.processor), name
        assert re.fullmatch(r"\d{4}-\d\d-\d\d( to \d{4}-\d\d-\d\d)?", figure.date), name
        assert figure.seeds or figure.files, name
        for file in figure.files:
            assert (ROOT / file).is_file(), file


def test_readme_has_no_figure_outside_the_marks() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, exempt = read_kept(KEPT)
    assert unmarked(text, exempt) == []
    for phrase in exempt:  # none that is not needed any more
        assert unmarked(text, {one: why for one, why in exempt.items() if one != phrase}), phrase


@pytest.mark.parametrize(
    "told",
    [
        "It is 3.5 times as fast.", "The correlation is 0.89.", "It needs 2 GB.", "So 28 % are right.",
        "In 12 minutes.", "It takes a quarter longer.", "| ours | 4.2 |", "It gains 12 points.", "Half as much.",
        "It takes five minutes.", "Steps are half as long again.",
    ],
)  # fmt: skip
def test_a_sentence_with_a_figure_of_its_own_is_found(told: str) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    _, exempt = read_kept(KEPT)
    between = "\n\n" if told.startswith("|") else " "
    text += f"\n\nFirst this.{between}{told}{between}And that.\n\n```\nx = 1.5 # 20 %\n```\n"
    assert unmarked(text, exempt) == [told]


def test_the_speeds_are_those_of_the_files() -> None:
    """With the same mathematics, so that losses are equal; from the files that are kept."""
    kept, _ = read_kept(KEPT)
    values, told = collected([ROOT / name for name in kept["speed"].files])
    assert json.loads(json.dumps(values)) == kept["speed"].values
    assert (told["processor"], told["date"]) == (kept["speed"].processor, kept["speed"].date)
    for file in kept["speed"].files:
        for case in json.loads((ROOT / file).read_text()).get("cases", {}).values():
            assert not case.get("unequal_losses")
    untied = values["gpt2-all/the book's code"][0]["ratio"]
    shared = json.loads((ROOT / kept["speed"].files[0]).read_text())["cases"]["gpt2-all"]["rows"]
    (row,) = (row for row in shared if row["contender"] == "the book's code")
    assert untied == pytest.approx(row["same_mathematics_times_as_fast"], abs=1e-3) != row["instil_times_as_fast"]


class Told:
    """What stands in for runs: each seed one more, and what was asked of them."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str, tuple[str, ...]]] = []

    def __call__(self, verb: str, data: str, model: str, settings: list[str]) -> dict[str, Any]:
        self.asked.append((verb, data, model, tuple(settings)))
        seed = int(next(one for one in settings if one.startswith("train.seed=")).partition("=")[2])
        scores = {"exact_match": 0.2 + seed / 100, "chrf": 60.0 + seed, "score": 50.0}
        times = 2.0 if "train.gradient_checkpointing=true" in settings else 1.0
        return {
            "scores": dict.fromkeys(("base", "tuned", "echo"), scores),
            "verdict": f"after is {'not distinguishable from' if seed == 2 else 'better than'} before (+1.0 points).",
            "seconds": {"prepare": 60.0, "train": 60.0 * times}, "rows": 7, "peak_memory_gb": 1.25 * times,
        }  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what is written."""
    (tmp_path / "docs").mkdir()
    shutil.copy(ROOT / "README.md", tmp_path)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(KEPT, tmp_path / "docs")
    monkeypatch.setattr(figures, "ROOT", tmp_path)
    monkeypatch.setattr(figures, "KEPT", tmp_path / "docs" / "figures.json")
    return tmp_path


def test_a_figure_measured_anew_is_kept_and_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    monkeypatch.setattr(figures, "tell", told)
    assert main(["--run", "headline", "demo", "memory", "--data", "rows.json", "--seeds", "1", "2", "3"]) == 0
    assert [one[3] for one in told.asked[:3]] == [("train.seed=1",), ("train.seed=2",), ("train.seed=3",)]
    assert told.asked[3] == (
        "run",
        "rows.json",
        "smollm2-135m",
        ("train.seed=123", "train.epochs=1", "generate.max_new_tokens=64", "train.precision=auto"),
    )
    assert {one[0] for one in told.asked[4:]} == {"train"}
    readme = (place / "README.md").read_text()
    assert "| after | 22.0 ± 1.0 % | 62.0 ± 1.0 | 50.0 ± 0.0 |" in readme
    assert '"After is better than before (+1.0 points)." (seed 1; better with 2 of 3 seeds)' in readme
    assert "core" in readme and "seeds 1, 2, 3" in " ".join(readme.split())
    assert "A step takes 2.00 times as long in full" in readme
    kept, _ = read_kept(place / "docs" / "figures.json")
    assert kept["headline"].seeds == (1, 2, 3)
    assert kept["headline"].taken_from == ""
    assert kept["headline"].command == "instil run book --model smollm2-135m, with each seed"
    capsys.readouterr()
    assert main(["--check"]) == 0
    (place / "README.md").write_text(readme.replace("22.0 ± 1.0", "32.0 ± 1.0") + "\nIt is 9.9 times as fast.\n")
    assert main(["--check"]) == 1
    said = capsys.readouterr().out
    assert "README.md: its marked parts are not what figures.json gives; run make figures" in said
    assert "a figure that no command writes: It is 9.9 times as fast." in said
    assert main([]) == 0
    assert "22.0 ± 1.0" in (place / "README.md").read_text()


def test_one_seed_is_told_as_one(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "tell", Told())
    main(["--run", "headline", "--seeds", "5", "--set", "train.epochs=1"])
    readme = (place / "README.md").read_text()
    assert "| after | 25.0 % | 65.0 | 50.0 |" in readme
    assert "seed 5, " in " ".join(readme.split())
    kept, _ = read_kept(place / "docs" / "figures.json")
    assert kept["headline"].command.startswith("instil run book --model smollm2-135m --set train.epochs=1")


def test_a_real_run_tells_what_is_kept(tiny_folder: Path, data_file: Path) -> None:
    settings = ["train.max_steps=1", "generate.max_new_tokens=2", "train.seed=4"]
    told = figures.tell("run", str(data_file), str(tiny_folder), settings)
    assert told["rows"] == 4
    assert {"base", "tuned", "echo"} <= told["scores"].keys()
    assert told["verdict"] and told["seconds"]["train"] > 0 and told["peak_memory_gb"] > 0
    assert isinstance(Figure("x", figures.processor(), (4,), figures.today(), told).where, str)
