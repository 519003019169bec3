"""What the first of several processes and the others tell one another, where something goes wrong with one of them."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from instil.errors import RankLost
from instil.model.decoder import Decoder
from instil.model.elsewhere import load_elsewhere
from instil.model.fast import gemm
from instil.recipes.run import crew, follow
from instil.recipes.run.crew import Crew, Order, echo
from instil.runs.folder import RUN_FILE, RunFolder
from instil.stopping import Stopped
from instil.train.parallel.launch import NUMBER
from instil.train.ranks import ALONE, Ranks
from tests.conftest import make_tinier


class Gone(Ranks):
    """The first of two, of which the other is gone."""

    world = 2

    def agree(self, value: Any) -> Any:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

    def gather(self, value: Any) -> Any:
        raise RuntimeError("Connection closed by peer [127.0.0.1]:1234")

    def is_loss(self, error: BaseException) -> bool:
        return "closed" in str(error)


def stopped() -> Any:
    raise Stopped(signal.SIGINT)


def test_a_signal_is_what_is_told_though_the_others_are_gone() -> None:
    """Not that they are: they had the same signal."""
    of = Crew(Gone())
    with pytest.raises(Stopped), of.at_work():
        of._waiting = True
        stopped()
    with pytest.raises(Stopped), of.at_work():
        of.start(stopped)


def test_without_a_signal_it_is_that_they_are_gone(tmp_path: Path) -> None:
    (tmp_path / RUN_FILE).write_bytes(b"mark")
    of = Crew(Gone())
    with pytest.raises(RankLost), of.at_work():
        of.check_shared(RunFolder(tmp_path))


class Told(Ranks):
    """The second of two, which is told this."""

    rank, world = 1, 2

    def __init__(self, *orders: Any) -> None:
        self.orders: Iterator[Any] = iter(orders)
        self.said: list[Any] = []

    def agree(self, value: Any) -> Any:
        return next(self.orders)

    def gather(self, value: Any) -> Any:
        self.said.append(value)
        return [value, value]


def test_all_compute_products_as_the_first_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would measure for itself which is faster, and last bits would hang on it."""
    monkeypatch.delenv("INSTIL_GEMM", raising=False)
    monkeypatch.setattr(follow, "prepare", lambda *given: None)
    monkeypatch.setattr(follow, "what_is_alike", lambda prepared: {})
    (tmp_path / RUN_FILE).write_bytes(b"mark")
    for name in ("onednn", "torch"):
        look = Order("look", (str(tmp_path), b"mark", name))
        ranks = Told(True, look, Order("end", (0,)))
        with gemm.own_products():
            assert follow.follow("rows.json", "model", None, ranks) == 0  # type: ignore[arg-type]
            assert gemm._before == name
        assert ranks.said[-1][1] is True


class Notes(Ranks):
    """The first of two, each with a part of every weight, which notes what it tells."""

    world, sharded = 2, True

    def __init__(self) -> None:
        self.told: list[Any] = []

    def agree(self, value: Any) -> Any:
        self.told.append(value)
        return value

    def collected(self, decoder: Decoder) -> Decoder:
        return decoder


def test_others_are_told_that_no_more_is_asked_for_where_saving_fails(tmp_path: Path) -> None:
    """They would wait to hand something over, and could not be told how it ends."""
    make_tinier(tmp_path)
    ranks = Notes()
    of = Crew(ranks)
    with pytest.raises(OSError, match="no room"), of.at_work():
        of._waiting = True
        with of.saving(load_elsewhere(tmp_path)):
            raise OSError("no room")
    assert ranks.told == [Order("hand over"), "", Order("end", (1,))]


def test_a_second_signal_is_one_where_each_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NUMBER, raising=False)
    assert (echo(ALONE), echo(Gone())) == (0.0, crew.ECHO)
    monkeypatch.setenv(NUMBER, "2")
    assert echo(Gone()) == 0.0
