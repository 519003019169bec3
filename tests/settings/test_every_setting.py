"""Every setting is seen to do what it is documented to do, and not merely to be held by an attribute.

The tables beside this file have an entry for each: by which change it is seen, and how. A new setting fails here until
it has one.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib.figure import Figure

import instil
from instil.settings.options import SECTIONS, Settings
from instil.settings.resolve import known_settings, resolve
from tests.conftest import TINY_VOCABULARY, tiny_reference
from tests.settings.seen_in_answers import ANSWERS
from tests.settings.seen_in_loggers import LOGGED
from tests.settings.seen_in_pairs import PAIRS
from tests.settings.seen_in_requests import REQUESTS
from tests.settings.seen_in_training import TRAINING
from tests.settings.world import PROMPTS, Table, World

ELSEWHERE = ("train.shard",)
EVERY: Table = {**TRAINING, **PAIRS, **ANSWERS, **REQUESTS, **LOGGED}


@pytest.fixture(scope="module")
def world(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Pictures are not drawn, which takes longer than training does here."""
    other = tmp_path_factory.mktemp("other")
    tiny_reference("llama", vocab_size=TINY_VOCABULARY, seed=2).save_pretrained(other)
    for file in tiny_folder.iterdir():
        if file.suffix != ".safetensors":
            (other / file.name).write_bytes(file.read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda self, path, **how: None)
        yield World(tmp_path_factory.mktemp("world"), tiny_folder, other)


def test_the_table_has_every_setting() -> None:
    assert EVERY.keys() == known_settings().keys()


@pytest.mark.parametrize("name", EVERY)
def test_it_arrives(name: str, world: World) -> None:
    assignment, check = EVERY[name]
    section, _, leaf = name.partition(".")
    changed, default = (getattr(getattr(one, section), leaf) for one in (resolve(assignments=[assignment]), Settings()))
    assert changed != default
    world.used.clear()
    check(world)
    assert assignment in world.used


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_it_would_be_missed(name: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every check fails where whoever reads the setting finds its default, whatever was chosen."""
    if name in ELSEWHERE:
        pytest.skip("other processes read it, in which nothing is patched")
    section, _, leaf = name.partition(".")
    default = SECTIONS[section].model_fields[leaf].default
    monkeypatch.setattr(SECTIONS[section], leaf, property(lambda options: default), raising=False)
    with pytest.raises(AssertionError):
        EVERY[name][1](World(tmp_path, world.model, world.other))


TWISTED = ("generate.max_new_tokens=3", "generate.temperature=100", "generate.top_k=1", "generate.header=false")


def test_verbs_that_answer_hand_on_how(world: World) -> None:
    """At a temperature of 100 nothing but ``top_k=1`` makes answers greedy; and they are short."""
    greedy = world.answers("generate.max_new_tokens=3", "generate.header=false")
    wanted = [one.text for one in greedy]
    rows = world.command("respond", world.model, "--data", world.file(PROMPTS), "--json", settings=TWISTED)
    assert [row["model_response"] for row in rows.json["rows"]] == wanted
    for row, said in zip(PROMPTS, wanted, strict=True):
        given = ("-i", row["instruction"], "--input", row.get("input", ""))
        assert world.command("respond", world.model, *given, settings=TWISTED).out.strip() == said
        assert world.command("respond", world.model, *given, "--json", settings=TWISTED).json["model_response"] == said


def test_a_run_answers_as_its_settings_say_and_its_assistant_goes_on_so(world: World) -> None:
    run = world.run("train.max_steps=1", *TWISTED, verb="run")
    assistant = instil.load(run.path)
    plain = instil.load(run.path / "model", max_new_tokens=3, header=False)
    rows = run.read("responses/tuned.json")
    again = assistant.respond_all(rows)
    assert [row["model_response"] for row in rows] == [one.text for one in again]
    assert [one.ids for one in again] == [one.ids for one in plain.respond_all(rows)]
    assert {len(one.ids) for one in again} == {3}
    warm = assistant.respond_all(rows, top_k=0)
    assert [one.ids for one in warm] != [one.ids for one in again]  # it was the run's top_k that made them greedy
    base = [row["model_response"] for row in run.read("responses/base.json")]
    greedy = instil.load(world.model, max_new_tokens=3, header=False)
    assert base == [one.text for one in greedy.respond_all(rows)]
