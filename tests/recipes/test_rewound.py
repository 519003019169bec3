"""A run that went back, since it diverged, and on without some rows; killed after that, it ends as if it never was."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.errors import DataError
from instil.runs import rewinding
from instil.runs.checkpoints import Checkpoints
from instil.runs.observers import MetricsFile
from instil.runs.rewinding import EarlierOnDisk
from instil.train import training
from instil.train.rewind import Skipped
from tests.kills.left import left_by
from tests.recipes.test_going_on import Here, Told
from tests.train.test_rewind import poison

pytestmark = pytest.mark.usefixtures("one_backend")

REWINDS: dict[str, Any] = {"on_divergence": "rewind", "max_steps": 9, "eval_every": 0}
ROW = 22  # diverges, in step 4


@pytest.fixture
def here(tinier: Path, tmp_path: Path) -> Here:
    return Here(tinier, tmp_path / "run")


def spoil(patch: pytest.MonkeyPatch, row: int) -> None:
    """An update with this row leaves weights that are no numbers, which the next loss shows."""
    before = training._step

    def spoils(decoder: Any, step: Any, *rest: Any) -> Any:
        found = before(decoder, step, *rest)
        if any(row in batch.examples for batch in step):
            with torch.no_grad():
                next(one for one in decoder.parameters() if one.requires_grad).fill_(math.nan)
        return found

    patch.setattr(training, "_step", spoils)


FAULTS = {"loss": poison, "weights": spoil}
PLACES = {"before it is noted": (EarlierOnDisk, "skip", 1), "after it is noted": (MetricsFile, "on_resume", 1)}


@pytest.mark.parametrize("killed_at", ["before it is noted", "after it is noted", 0, 1, 2, 3])
@pytest.mark.parametrize("every", ["1", "2"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_run_that_went_back_is_killed_and_goes_on(
    fault: str, every: str, killed_at: Any, here: Here, monkeypatch: pytest.MonkeyPatch
) -> None:
    FAULTS[fault](monkeypatch, ROW)
    how = {**REWINDS, "save_every": every}
    whole = Here(here.model, here.out.with_name("whole"))
    whole.go(**how)
    (noted,) = [json.loads(line) for line in (whole.out / "skipped.jsonl").read_text().splitlines()]
    assert ROW in noted["rows"]
    assert (noted["step"], noted["back_to"]) == (4, 3 if every == "1" else 2)
    if isinstance(killed_at, int):  # so many steps after it went back; one more has shown what the weights are
        here.killed(training, "_step", 4 + (fault == "weights") + 1 + killed_at, **how)
    else:
        here.killed(*PLACES[killed_at], **how)
    here.go(resume=True, **how)
    assert left_by(here.out) == left_by(whole.out)


def earlier(folder: Path, begins: int | None = None) -> EarlierOnDisk:
    return EarlierOnDisk(Checkpoints(folder), folder / "skipped.jsonl", Told(), dict, begins)


def test_what_it_goes_without_is_written_whole_and_read_again(tmp_path: Path) -> None:
    """A disk that fills up in the middle of a line leaves the lines before, and no half of one."""
    first, second = Skipped(4, [3, 5], "no number", 2), Skipped(9, [7], "no number", 8)
    assert earlier(tmp_path).skipped() == []
    earlier(tmp_path).skip(first)
    noting = earlier(tmp_path)
    noting.skip(second)
    assert noting.skipped() == earlier(tmp_path).skipped() == [first, second]
    before = (tmp_path / "skipped.jsonl").read_bytes()
    with pytest.MonkeyPatch.context() as patch:

        def full(path: Path, write: Any) -> None:
            path.with_name("skipped.jsonl.unfinished").write_bytes(b'{"st')
            raise OSError(28, "No space left on device")

        patch.setattr(rewinding, "write_whole", full)
        full_disk = earlier(tmp_path)
        full_disk.skip(Skipped(9, [8], "no number", 8))
    assert "the rows cannot be named there: No space left on device" in full_disk._screen.text  # type: ignore[attr-defined]
    assert (tmp_path / "skipped.jsonl").read_bytes() == before
    (tmp_path / "skipped.jsonl").write_bytes(before[:-5])
    with pytest.raises(DataError, match=r"damaged: line 2: .*; remove the line .*with its rows once more"):
        earlier(tmp_path)


def test_what_was_found_out_later_than_where_it_begins_is_forgotten(tmp_path: Path) -> None:
    """The newest checkpoint is damaged, and the one before is of a training that still had the rows."""
    first, second = Skipped(4, [3, 5], "no number", 2), Skipped(9, [7], "no number", 8)
    for one in (first, second):
        earlier(tmp_path).skip(one)
    assert earlier(tmp_path, 8).skipped() == [first, second]
    assert earlier(tmp_path, 6).skipped() == earlier(tmp_path).skipped() == [first]
    assert earlier(tmp_path, 0).skipped() == earlier(tmp_path).skipped() == []
    assert not (tmp_path / "skipped.jsonl").exists()
