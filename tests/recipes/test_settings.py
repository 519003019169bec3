"""Settings: one home, one default; what is unknown is refused with the nearest right one."""

from __future__ import annotations

from pathlib import Path

import pytest

from instil.errors import SettingsError
from instil.recipes.settings import SECTIONS, Settings, known_settings, resolve


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("[train]\nepochs = 5\nbatch_size = 4\n[data]\ntemplate = 'phi3'\n")
    settings = resolve(config=file, assignments=["train.epochs=7"], values={"batch_size": 2})
    assert (settings.train.epochs, settings.train.batch_size, settings.data.template) == (7, 2, "phi3")
    assert settings.train.learning_rate == Settings().train.learning_rate


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
    ],
)
def test_wrong_settings_are_refused(assignment: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        resolve(assignments=[assignment])


def test_a_broken_settings_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    with pytest.raises(SettingsError, match="cannot be read"):
        resolve(config=file)
    file.write_text("[train\nepochs=1")
    with pytest.raises(SettingsError, match="not valid TOML"):
        resolve(config=file)


def test_every_setting_says_what_it_means() -> None:
    for options in SECTIONS.values():
        for name, field in options.model_fields.items():
            assert field.description, name
    assert len(known_settings()) >= 20
