"""Settings: one home, one default; what is unknown is refused with the nearest right one."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.data.splits import split_grouped
from instil.errors import SettingsError
from instil.recipes.sweep.file import read_sweep
from instil.records import Encoded, Example
from instil.settings.losses import LOSSES, read_by
from instil.settings.options import SECTIONS, DpoOptions, Settings
from instil.settings.resolve import idle, known_settings, resolve
from instil.tasks.pairs import losses
from instil.tasks.pairs.losses import Answers, Preference


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nepochs = 5\nbatch_size = 4\n[data]\ntemplate = 'phi3'\n")
    settings = resolve(config=file, assignments=["train.epochs=7"], values={"batch_size": 2})
    assert (settings.train.epochs, settings.train.batch_size, settings.data.template) == (7, 2, "phi3")
    assert settings.train.learning_rate == Settings().train.learning_rate


@pytest.mark.parametrize(
    ("assignments", "rate"),
    [
        ([], 1e-4),
        (["train.method=lora"], 1e-3),
        (["train.objective=dpo"], 5e-6),
        (["train.objective=dpo", "train.method=lora"], 5e-5),
        (["train.objective=dpo", "train.method=lora", "dpo.loss=simpo"], 5e-5),
        (["train.method=lora", "train.learning_rate=2e-4"], 2e-4),
        (["train.method=lora", "lora.scaling=alpha"], 1e-4),
    ],
)
def test_methods_have_rates_of_their_own(assignments: list[str], rate: float) -> None:
    assert resolve(assignments=assignments).train.learning_rate == rate
    if not assignments[1:]:  # the book's rates are its own
        assert resolve(assignments=assignments, as_in_book=True).train.learning_rate in (5e-5, 5e-6)


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train.epoch=3", "did you mean train.epochs"),
        ("epochs=3", "did you mean train.epochs"),
        ("trian.epochs=3", "did you mean train.epochs"),
        ("nonsense=3", "unknown setting 'nonsense'"),
        ("train.epochs", "wanted key=value"),
        ("train.epochs=many", "train.epochs='many'"),
        ("train.epochs=0", "greater than or equal to 1"),
        ("train.learning_rate=-1", "train.learning_rate"),
        ("data.template=alpacca", "data.template"),
        ("train.epochs=1.5", "train.epochs"),
        ("train.epochs=true", "train.epochs=True"),
        ("train.epochs=100001", "train.epochs=100001: .*less than or equal"),
        ("train.seed=-1", "train.seed=-1"),
        ("train.seed=2147483648", "train.seed=2147483648: .*less than or equal to 2147483647"),
        ("data.split_seed=-1", "data.split_seed=-1"),
        ("data.split_seed=2147483648", "data.split_seed=2147483648"),
        ("generate.seed=-1", "generate.seed=-1"),
        ("generate.seed=2147483648", "generate.seed=2147483648"),
        ("train.learning_rate=inf", "train.learning_rate=inf: .*finite number"),
        ("train.learning_rate=nan", "train.learning_rate=nan: .*finite number"),
        ("train.weight_decay=inf", "train.weight_decay=inf"),
        ("train.clip=nan", "train.clip=nan"),
        ("train.warmup=nan", "train.warmup=nan"),
        ("generate.temperature=inf", "generate.temperature=inf"),
        ("generate.temperature=nan", "generate.temperature=nan"),
    ],
)
def test_wrong_settings_are_refused(assignment: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        resolve(assignments=[assignment])


@pytest.mark.parametrize("seed", [0, 2**31 - 1])
def test_the_ends_of_the_range_of_seeds_can_be_used(seed: int) -> None:
    from instil.data.loader import Loader
    from instil.generate.sampling import Sampler, Sampling, drawn

    chosen = resolve(assignments=[f"{name}={seed}" for name in ("train.seed", "generate.seed", "data.split_seed")])
    rows = [Encoded((1, 2), (True, True))] * 3
    assert sorted(Loader(rows, 2, pad_id=0, seed=chosen.train.seed).order(99_999)) == [0, 1, 2]
    warm = chosen.generate.changed(temperature=1.0)
    assert drawn(torch.full((1, 5), 0.2), [Sampler(Sampling.of(warm, 10**6).seed).point])[0] in range(5)
    assert len(split_grouped([Example(f"{n}") for n in range(20)], chosen.data.split_seed).train) == 17


def test_a_broken_settings_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    with pytest.raises(SettingsError, match="cannot be read"):
        resolve(config=file)
    file.write_text("[train\nepochs=1")
    with pytest.raises(SettingsError, match="not valid TOML"):
        resolve(config=file)


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["dpo.gamma=2", "dpo.desirable=0"],
         ["dpo.gamma (for simpo), dpo.desirable (for kto) have no effect with dpo.loss=dpo; leave them out"]),
        (["dpo.loss=ipo", "dpo.reduction=sum"],
         ["dpo.reduction (for dpo and kto) has no effect with dpo.loss=ipo; leave it out"]),
        (["dpo.loss=kto", "dpo.reduction=mean", "dpo.desirable=2", "dpo.undesirable=2", "dpo.beta=0.2"], []),
        (["dpo.loss=simpo", "dpo.gamma=2", "dpo.nll=1", "dpo.keep_equal=true"], []),
    ],
)  # fmt: skip
def test_settings_of_another_loss_are_told_of(assignments: list[str], said: list[str]) -> None:
    settings = resolve(assignments=["train.objective=dpo", *assignments])
    assert idle(settings) == said


@pytest.mark.parametrize(
    ("assignments", "said"),
    [
        (["train.batch_tokens=64"], []),
        (["train.batch_size=4", "train.drop_last=true", "data.split=grouped", "data.split_seed=4"], []),
        (["train.batch_tokens=64", "train.batch_size=4", "train.drop_last=true"],
         ["train.batch_size and train.drop_last have no effect with train.batch_tokens=64; leave them out"]),
        (["data.split_seed=4"], ["data.split_seed has no effect with data.split=book; leave it out"]),
    ],
)  # fmt: skip
def test_settings_that_another_overrules_are_told_of(assignments: list[str], said: list[str]) -> None:
    assert idle(resolve(assignments=assignments)) == said


@pytest.mark.parametrize("loss", LOSSES)
def test_settings_that_nobody_chose_are_not_told_of(loss: str) -> None:
    values = {"objective": "dpo", "loss": loss}
    assert idle(resolve(values=values)) == []
    assert idle(resolve(as_in_book=True, values=values)) == []
    assert idle(resolve(values=resolve(values=values).model_dump())) == []  # as an earlier run wrote them down


def test_which_loss_reads_which_settings() -> None:
    """The table, the code and the documentation say the same."""
    own = {name: set(read_by(name)) for name in DpoOptions.model_fields if read_by(name)}
    changes = {
        "beta": 0.3, "nll": 0.5, "label_smoothing": 0.1, "reduction": "mean", "gamma": 2.0, "desirable": 2.0,
        "undesirable": 2.0,
    }  # fmt: skip
    of_the_rows = {"scored", "keep_equal"}  # whatever the loss is
    assert {"loss", "reference", *changes, *of_the_rows} == DpoOptions.model_fields.keys()
    answers = Answers(*(torch.tensor([value]) for value in (-1.0, -2.0, -1.3, -1.1)), distance=torch.tensor(0.2))

    def outcome(loss: str, **change: Any) -> tuple[Any, ...]:
        objective = Preference(DpoOptions.model_validate({"loss": loss, **change}))
        return objective.means, objective.nll, objective.loss_P(answers, objective.options).tolist()

    for name, value in changes.items():
        found = {loss for loss in LOSSES if outcome(loss, **{name: value}) != outcome(loss)}
        assert found == own.get(name, set(LOSSES)), name
    elsewhere = replace(answers, reference_chosen_P=torch.tensor([-5.0]))
    for loss in LOSSES:
        objective = Preference(DpoOptions(loss=loss))
        reads = not torch.equal(*(objective.loss_P(one, objective.options) for one in (answers, elsewhere)))
        assert reads == objective.needs_reference == (loss in own["reference"])
        moved = replace(answers, distance=torch.tensor(0.7))
        reads = not torch.equal(*(objective.loss_P(one, objective.options) for one in (answers, moved)))
        assert reads == objective.needs_distance


def test_the_documentation_has_every_loss() -> None:
    page = (Path(__file__).parents[2] / "docs" / "preference.md").read_text()
    table = {row.split("`")[1]: row.split("|") for row in page.splitlines() if row.startswith("| `")}
    assert [name for name in table if name in LOSSES] == list(LOSSES)
    for name, loss in LOSSES.items():
        _, _, what, settings, *_ = table[name]
        assert what.strip() == loss.what
        assert set(re.findall("`(.+?)`", settings)) == {"beta", *loss.settings} - {"reference"}
        for setting, value in loss.defaults.items():
            assert f"`{setting}` ({value:g} by default)" in settings
    formulas = losses.__doc__ or ""
    assert re.findall("^``([a-z]+)`` ", formulas, re.MULTILINE) == ["loss", *LOSSES]


def test_every_setting_says_what_it_means() -> None:
    for options in SECTIONS.values():
        for name, field in options.model_fields.items():
            assert field.description, name
    assert len(known_settings()) >= 20


UNREADABLE = [
    ("9" * 5000, "a whole number in it has more than 4,300 digits"),
    ("0x" + "f" * 5000, "a whole number in it has more than 4,300 digits"),  # whose digits are counted when it is shown
    ("[" * 3000 + "]" * 3000, "nested too deeply"),
    ("{" + ".".join("a" * 3000) + " = 1}", "nested too deeply"),
]


@pytest.mark.parametrize(("value", "says"), UNREADABLE)
def test_what_the_parser_of_toml_cannot_hold_is_one_sentence(value: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(f"[train]\nseed = {value}\n")
    with pytest.raises(SettingsError, match=rf"own\.toml: not valid TOML: {says}$"):
        resolve(config=file)
    file.write_text(f"[settings]\ntrain.seed = {value}\n")
    with pytest.raises(SettingsError, match=rf"own\.toml: not valid TOML: {says}$"):
        read_sweep(file)
    with pytest.raises(SettingsError, match=rf"--set train\.seed=.{{49}}\.\.\.: cannot be read: {says}$"):
        resolve(assignments=[f"train.seed={value}"])
