"""The second copy of the weights, in the order in which oneDNN reads them: made where many passes are to come."""

from __future__ import annotations

from dataclasses import replace

import pytest

from instil.generate import engine as engine_file
from instil.generate.engine import Engine
from instil.generate.request import Request
from tests.train.test_training import SPECS, decoder


def packed_after(monkeypatch: pytest.MonkeyPatch, *limits: int, rows: int = 8) -> list[int]:
    """Passes done when weights were packed, of one engine and requests of so many new tokens each."""
    monkeypatch.setitem(SPECS, "long", replace(SPECS["llama"], context=400))
    engine = Engine(decoder("long"), rows=rows, speculate=False)  # one token a pass
    done: list[int] = []
    monkeypatch.setattr(engine_file, "pack", lambda model: done.append(engine.passes))
    for limit in limits:
        engine.submit(Request([1, 2, 3], limit, frozenset()))
    assert len(list(engine.run())) == len(limits)
    engine.close()
    return done


def test_short_answers_are_done_before_it_would_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """As while training goes on: two answers of 48 tokens, and no second copy of the model."""
    assert packed_after(monkeypatch, 48, 48) == []
    assert packed_after(monkeypatch, 63) == []


def test_long_ones_and_many_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert packed_after(monkeypatch, 100) == [32]
    assert packed_after(monkeypatch, 48, 100) == [32]
    assert packed_after(monkeypatch, 48, 48, 48, rows=1) == [32]  # others wait
    assert packed_after(monkeypatch, *[20] * 12, rows=1) == [32]
    assert packed_after(monkeypatch, *[20] * 12, rows=8) == []
