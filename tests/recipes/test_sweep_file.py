"""The file of a sweep: every run settled, every mistake named, before anything is done."""

from __future__ import annotations

from pathlib import Path

import pytest

from instil.errors import SettingsError
from instil.recipes.sweep.file import Overrides, SweepFile, read_sweep, slug
from instil.runs.identity import Identity


def read(folder: Path, text: str, over: Overrides | None = None) -> SweepFile:
    file = folder / "three.toml"
    file.write_text(text, encoding="utf-8")
    return read_sweep(file, over)


def test_listed_runs_have_what_is_common_and_their_own(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        data = "book"
        [settings]
        train.epochs = 3
        train.seed = 7
        [[run]]
        name = "one"
        [[run]]
        name = "Two, other"
        model = "gpt2-small"
        data = "alpaca"
        settings.train.seed = 8
        settings.data.template = "phi3"
        """,
    )
    one, two = found.runs
    assert (one.data, one.model, one.settings.train.epochs, one.settings.train.seed) == ("book", "smollm2-135m", 3, 7)
    assert (two.data, two.model, two.settings.train.epochs, two.settings.train.seed) == ("alpaca", "gpt2-small", 3, 8)
    assert (two.name, two.folder, two.settings.data.template) == ("Two, other", "Two-other", "phi3")
    assert (found.out, found.judge) == (Path("runs/three"), "offline")


def test_a_grid_is_every_combination(tmp_path: Path) -> None:
    text = 'grid.train.seed = [1, 2]\ngrid."train.learning_rate" = [1e-4, 3e-5]\ngrid.model = ["a/x", "b"]'
    found = read(tmp_path, text)
    assert [(run.model, run.settings.train.seed, run.settings.train.learning_rate) for run in found.runs] == [
        (model, seed, rate) for model in ("a/x", "b") for seed in (1, 2) for rate in (1e-4, 3e-5)
    ]
    assert found.runs[1].name == "model=x seed=1 learning_rate=3e-05"
    assert found.runs[1].folder == "model=x-seed=1-learning_rate=3e-05"


def test_with_both_each_run_is_made_at_every_point(tmp_path: Path) -> None:
    text = '[[run]]\nname = "a"\n[[run]]\nname = "b"\nsettings.train.method = "lora"\n[grid]\ntrain.seed = [1, 2]'
    found = read(tmp_path, text)
    assert [(run.name, run.settings.train.method, run.settings.train.seed) for run in found.runs] == [
        ("a seed=1", "full", 1), ("a seed=2", "full", 2), ("b seed=1", "lora", 1), ("b seed=2", "lora", 2),
    ]  # fmt: skip


def test_the_command_line_is_for_all_and_wins(tmp_path: Path) -> None:
    over = Overrides(
        data="x.json", model="m", out=tmp_path, judge="ollama:l", assignments=["train.epochs=9"], as_in_book=True
    )
    text = 'out = "o"\n[settings]\ntrain.epochs = 1\n[[run]]\nname = "a"\nsettings.train.batch_size = 4\n[[run]]\n'
    found = read(tmp_path, text + 'name = "b"\nmodel = "own"', over)
    assert [(run.data, run.model) for run in found.runs] == [("x.json", "m"), ("x.json", "own")]
    assert [run.settings.train.epochs for run in found.runs] == [9, 9]
    assert [run.settings.train.batch_size for run in found.runs] == [4, 8]
    assert found.runs[0].settings.train.learning_rate == 5e-5
    assert (found.out, found.judge) == (tmp_path, "ollama:l")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no runs in it"),
        ("run = []", "no runs in it"),
        ("modle = 'a'", "unknown key 'modle' at the top of the file; did you mean model?"),
        ("train.epochs = 1", "unknown key 'train' at the top of the file; settings belong under"),
        ("epochs = 1", "unknown key 'epochs' at the top of the file; settings belong under"),
        ("model = 3", "model=3 at the top of the file: wanted a text"),
        ("data = ' '", "data is empty"),
        ("run = 3", "wanted an array of tables"),
        ("run = [3]", "wanted tables"),
        ("run.name = 'a'", "wanted an array of tables"),
        ("[[run]]\nsettings.train.epochs = 1", "[[run]] 1 has no name"),
        ("[[run]]\nname = 3", "name=3 in [[run]] 1: wanted a text"),
        ("[[run]]\nname = 'a'\nsetings.train.epochs = 1", "unknown key 'setings' in [[run]] 1; did you mean settings?"),
        ("[[run]]\nname = 'a'\ntrain.epochs = 1", "unknown key 'train' in [[run]] 1; write settings.train"),
        ("[[run]]\nname = 'a'\nrank = 1", "unknown key 'rank' in [[run]] 1; write settings.rank"),
        ("[[run]]\nname = 'a'\nsettings.train.epoch = 1", "run 'a': settings: unknown setting 'train.epoch'; did you"),
        ("[[run]]\nname = 'a'\nsettings.train.epochs = 'x'", "run 'a': train.epochs='x'"),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'a'\nsettings.train.seed = 1", "two runs are named 'a'"),
        ("[[run]]\nname = 'a b'\n[[run]]\nname = 'A/B'\nsettings.train.seed = 1", "the same folder"),
        ("[[run]]\nname = 'sweep.csv'", "cannot be the name of a folder"),
        ("[[run]]\nname = '..'", "cannot be the name of a folder"),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'b'\nsettings.train.seed = 123", "b is the same run as a"),
        ("[grid]\ntrain.sed = [1]", "unknown setting 'train.sed' in [grid]; did you mean train.seed?"),
        ("[grid]\ntrain.seed = 1", "wanted a list of values"),
        ("[grid]\ntrain.seed = []", "wanted a list of values"),
        ("[grid]\nmodel = [1]", "wanted a list of texts"),
        ("[grid]\ntrain.seed = [1, 'a']", "train.seed='a'"),
        ("[grid]\ntrain.seed = [1, 1]", "two runs are named 'seed=1'"),
        ("[grid]\ntrain.seed = [" + ",".join(map(str, range(1001))) + "]", "1,001 runs; wanted at most 1,000"),
        (
            "[grid]\n" + "\n".join(f"{key} = {list(range(1, 101))}" for key in ("rank", "seed", "epochs", "max_steps")),
            "100,000,000 runs; wanted at most 1,000",
        ),
        ("[grid]\nseed = [1, 2]\ntrain.seed = [3]", "[grid]: train.seed is given twice"),
        ("[grid]\n'train.seed' = [1, 2]\ntrain.seed = [3]", "[grid]: train.seed is given twice"),
        ("[settings]\nseed = 1\ntrain.seed = 3\n[[run]]\nname = 'a'", "[settings]: train.seed is given twice"),
        ("[[run]]\nname = 'a'\nsettings.seed = 1\nsettings.train.seed = 3", "run 'a': train.seed is given twice"),
        ('out = "a\\u0000"\n[[run]]\nname = "a"', "without a zero character"),
        ("[[run", "not valid TOML"),
    ],
)
def test_what_cannot_be_used_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as raised:
        read(tmp_path, text)
    assert says in str(raised.value)
    assert "three.toml" in str(raised.value)


def test_a_mistake_of_the_command_line_is_not_the_files(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"^--set: unknown setting"):
        read(tmp_path, "[[run]]\nname = 'a'", Overrides(assignments=["train.epoch=1"]))
    with pytest.raises(SettingsError, match="cannot be read"):
        read_sweep(tmp_path / "none.toml")


def test_settings_for_all_can_make_runs_equal(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="b is the same run as a"):
        read(
            tmp_path,
            "[[run]]\nname='a'\n[[run]]\nname='b'\nsettings.train.seed=1",
            Overrides(assignments=["train.seed=1"]),
        )


def test_folders_stay_inside() -> None:
    for name in ("../../etc", "a/b", "/abs", "~", "a\\b", "x" * 300, "größe 2"):
        made = slug(name)
        assert "/" not in made and "\\" not in made and ".." not in made and len(made) <= 80
    assert slug("größe 2") == "größe-2"


def test_long_names_have_folders_of_their_own(tmp_path: Path) -> None:
    long = "漢" * 100
    made = slug(f"{long} 1"), slug(f"{long} 2")
    assert made[0] != made[1] and made[0].startswith("漢漢")
    for one in made:
        (tmp_path / one).mkdir()  # no file system takes more than 255 bytes


def test_a_run_of_an_earlier_version_is_the_same_run() -> None:
    """It lacks the settings that came later, which it had as they are by default."""
    facts = {"settings": {"train": {"epochs": 1}}, "hashes": {}}
    for again in (False, True):
        now = Identity({"train": {"epochs": 1, "gradient_checkpointing": again}}, {})
        assert bool(now.differences(facts)) == again
    for ids in ([], [5]):
        now = Identity({"train": {"epochs": 1}, "lora": {"trainable_token_indices": ids}}, {})
        assert bool(now.differences(facts)) == bool(ids)
