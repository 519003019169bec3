"""Settings of writing a run down elsewhere, each with what is seen of it at a stand-in for TensorBoard."""

from __future__ import annotations

from functools import partial

import pytest

from instil.runs.loggers import libraries
from tests.runs.loggers.test_logs import Kept
from tests.settings.world import Table, World, seen_in

LOGGED: Table = {}
sees = partial(seen_in, LOGGED)


def told(world: World, *settings: str) -> Kept:
    """What a logger is told of a run of one step."""
    kept = Kept()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(libraries.LOGGERS, "tensorboard", lambda: kept)
        patch.setattr(libraries, "find_spec", lambda name: object())
        command = ("train", world.one, "--model", world.model, "--out", world.new(), "--json")
        ended = world.command(*command, settings=("train.max_steps=1", *settings))
    assert ended.code == 0, ended.said
    return kept


@sees("log.to=tensorboard")
def to(world: World) -> None:
    assert list(told(world, "log.to=tensorboard").values) == [0, 1]
    assert told(world).values == {}


@sees("log.project=colours")
def project(world: World) -> None:
    named = [told(world, "log.to=tensorboard", *more).about[0].project for more in (("log.project=colours",), ())]
    assert named == ["colours", "instil"]


@sees("log.online=true")
def online(world: World) -> None:
    allowed = [told(world, "log.to=tensorboard", *more).about[0].online for more in (("log.online=true",), ())]
    assert allowed == [True, False]
