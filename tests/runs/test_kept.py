"""What processes of a run have kept is not made again, whether they are more or fewer when it goes on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from instil.runs.folder import RunFolder
from instil.runs.kept import Kept, forget_kept
from instil.screen import Screen
from instil.tasks.pairs import reference
from instil.train.ranks import Ranks

QUIET = Screen(quiet=True)


def keep(folder: RunFolder, world: int) -> None:
    for rank in range(world):
        with Kept.of(folder, QUIET, rank, world) as journal:
            journal.keep(f"of {rank}", rank)


@pytest.mark.parametrize("then", [1, 2, 3, 4, 6])
def test_others_know_what_more_have_kept(then: int, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    keep(folder, 4)
    found = []
    for rank in range(then):
        with Kept.of(folder, QUIET, rank, then) as journal:
            found += [number for number in range(4) if journal.kept(f"of {number}") == number]
    assert sorted(found) == [0, 1, 2, 3]
    forget_kept(folder)
    assert not list(folder.checkpoints.iterdir())


def test_what_others_have_left_stays_as_it_is(tmp_path: Path) -> None:
    """Damaged or torn, nothing of it is used, and nobody is told: it is made anew."""
    folder = RunFolder(tmp_path)
    keep(folder, 3)
    torn, no_journal = folder.checkpoints / "1.kept.journal", folder.checkpoints / "2.kept.journal"
    torn.write_bytes(torn.read_bytes() + b'{"key": "torn')
    no_journal.write_bytes(b"\0" * 40)
    before = torn.read_bytes(), no_journal.read_bytes()
    with Kept.of(folder, QUIET) as journal:
        assert [journal.kept(f"of {rank}") for rank in range(3)] == [0, 1, None]
    assert (torn.read_bytes(), no_journal.read_bytes()) == before


class Three(Ranks):
    """The first of three; the second has kept the batches 0 and 3, the third the batch 1."""

    world = 3

    def gather(self, value: Any) -> list[Any]:
        return [value, [0, 3], [1]]


def test_a_reference_is_asked_once_for_each_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_key", lambda batch, prepared, precision: batch[0])
    journal = SimpleNamespace(kept=lambda key: "known" if key == "4" else None)
    batches = [range(at, at + 1) for at in range(7)]
    dealt = reference._dealt("0123456", batches, None, "fp32", journal, Three())  # type: ignore[arg-type]
    assert dealt == [1, 2, 0, 1, 0, 1, 2]
    assert reference._dealt("0123456", batches, None, "fp32", journal, Ranks()) == [0] * 7  # type: ignore[arg-type]
