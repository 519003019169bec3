"""The general material: enough of it, nothing twice, and what of it a run's rows teach."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from instil.data.sources import examples_from
from instil.errors import DataError
from instil.evaluate.general import material as module
from instil.evaluate.general.material import Material, taught
from instil.files import read_json
from instil.records import Example

HOME = Path(module.__file__).parent


@pytest.fixture(scope="module")
def whole() -> Material:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "HOME", HOME)
        return module.material.__wrapped__()


def test_there_is_enough_of_everything(whole: Material) -> None:
    assert len(whole.texts) >= 60
    assert len({text.register for text in whole.texts}) >= 10
    languages = Counter(text.language for text in whole.texts)
    assert languages["en"] > len(whole.texts) / 2 > 3
    assert {"de", "fr", "es", "it", "pl", "ru", "zh", "hi", "ar", "code"} <= set(languages)
    assert len(whole.skills) >= 20
    assert sum(len(skill.probes) for skill in whole.skills) >= 200
    assert len(whole.refusals.harmful) == len(whole.refusals.harmless) == 20
    assert len(whole.chats) >= 10
    assert any(len(chat.turns) == 4 for chat in whole.chats)


def test_names_pair_what_is_measured(whole: Material) -> None:
    names = [text.name for text in whole.texts]
    asked = [*whole.refusals.harmful, *whole.refusals.harmless]
    probes = [(skill.name, probe.context, probe.choices[0]) for skill in whole.skills for probe in skill.probes]
    for found in (
        names,
        asked,
        probes,
        [skill.name for skill in whole.skills],
        [one.instruction for one in whole.chats],
    ):
        assert len(set(found)) == len(found)


def test_each_probe_has_one_right_continuation_and_its_form(whole: Material) -> None:
    for skill in whole.skills:
        re.compile(skill.asked)
        assert skill.begin.endswith("\n"), skill.name
        for probe in skill.probes:
            assert 2 <= len(probe.choices) <= 4, probe
            assert len(set(probe.choices)) == len(probe.choices), probe
            assert f"{probe.context}{probe.choices[0]}" not in skill.begin, probe


def test_the_skills_that_the_starter_rows_teach_are_known(whole: Material) -> None:
    rows = examples_from(read_json(Path(module.__file__).parents[2] / "data" / "starter.json")).examples
    found = taught(whole.skills, rows)
    assert {"capitals", "arithmetic", "spelling", "opposites", "plurals", "past tense"} <= found.keys()
    assert not {"English to French", "colours", "pronouns"} & found.keys()
    assert "of 1,378 training rows looked at name the task capital" in found["capitals"]


def test_a_kind_is_taught_by_some_rows_and_not_by_two(whole: Material) -> None:
    asked = Example("What is the plural of mouse?", "mice")
    other = Example("Hello.", "Hi.")
    assert taught(whole.skills, [asked] * 3 + [other] * 200).keys() == {"plurals"}
    assert taught(whole.skills, [asked] * 2 + [other] * 10) == {}
    assert taught(whole.skills, [asked] * 3 + [other] * 500) == {}  # less than one in a hundred
    assert taught(whole.skills, []) == {}


def test_what_is_damaged_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(HOME, tmp_path / "general", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.setattr(module, "HOME", tmp_path / "general")
    (tmp_path / "general" / "skills.json").write_text('[{"name": "capitals"}]')
    with pytest.raises(DataError, match="damaged: 'probes'; install instil anew"):
        module.material.__wrapped__()
