"""The probe of learning rates: each trial is an honest short run from the same weights, and test rows stay unseen."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from instil.errors import DataError, RunFolderTaken, SettingsError, TrainingDiverged, UserError
from instil.recipes import probe as probe_module
from instil.recipes.probe import Probed, Tried, planned_rounds, probe
from instil.recipes.run.run import run
from instil.screen import Screen
from instil.settings.resolve import resolve
from tests.conftest import rows

QUIET = Screen(quiet=True)
RATES = (3e-4, 3e-3, 1e-2, 3e-2)
PROC = r"^/proc/x: the folder cannot be made: .*; choose another --out$"


def probed(model: Path, *assignments: str, data: Any = None, **options: Any) -> Probed:
    chosen = resolve(assignments=["train.epochs=3", *assignments])
    return probe(data or rows(40), model, chosen, screen=QUIET, **options)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("free", [10**12, 0])
def test_a_trial_is_an_ordinary_short_run(
    method: str, free: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit, whether the first weights come from memory or from the file, and whatever was tried before."""
    monkeypatch.setattr(probe_module, "available_memory", lambda device: free)
    how = (f"train.method={method}", "train.warmup=0.25")
    found = probed(tiny_folder, *how, rates=RATES, steps=4)
    assert [(one.rate, one.steps) for one in found.tried[:4]] == [(rate, 4) for rate in RATES]
    last = found.tried[-1]
    assert last.steps == 8
    for one in (found.tried[2], last):
        chosen = resolve(assignments=[*how, f"train.learning_rate={one.rate}", f"train.max_steps={one.steps}"])
        alone = run(rows(40), tiny_folder, tmp_path / f"{one.steps}", chosen, answers=False, screen=QUIET)
        assert one.loss == alone.validation_loss
    first = json.loads((tmp_path / "4" / "metrics.jsonl").read_text().splitlines()[0])
    assert found.untrained == first["val_loss"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["full", "lora"])
def test_preference_tuning_is_probed_as_it_is_done(method: str, tiny_folder: Path, tmp_path: Path) -> None:
    """The loss is that of the pairs beside the reference, not of their texts."""
    pairs = [{**row, "chosen": row["output"] + " Yes.", "rejected": row["output"] + " No!"} for row in rows(40)]
    how = (f"train.method={method}", "train.objective=dpo", "train.epochs=3")
    found = probe(pairs, tiny_folder, resolve(assignments=how), rates=[1e-3, 1e-2], steps=4, screen=QUIET)
    assert found.untrained == pytest.approx(math.log(2))
    chosen = resolve(assignments=[*how, "train.learning_rate=1e-2", "train.max_steps=4"])
    alone = run(pairs, tiny_folder, tmp_path / "run", chosen, answers=False, screen=QUIET)
    assert found.losses(1e-2)[4] == alone.validation_loss


def test_losses_in_another_precision_are_not_gone_on_with(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``auto`` is hangs on the machine, and a probe may go on on another one."""
    tried: list[str] = []
    real = probe_module.train

    def seen(decoder: Any, loader: Any, options: Any, **more: Any) -> Any:
        tried.append(options.precision)
        return real(decoder, loader, options, **more)

    monkeypatch.setattr(probe_module, "train", seen)
    for precision in ("fp32", "fp32", "bf16"):
        monkeypatch.setattr("instil.tasks.prepare.precision_for", lambda asked, device, found=precision: found)
        probed(tiny_folder, "train.precision=auto", rates=RATES[:2], steps=1, out=tmp_path / "probe", resume=True)
    assert tried == ["fp32", "fp32", "bf16", "bf16"]


def test_the_better_half_goes_on(tiny_folder: Path) -> None:
    found = probed(tiny_folder, rates=(1e-5, 3e-3, 1e-3, 3e-4), steps=3)
    assert [(one.rate, one.steps) for one in found.tried[:4]] == [(1e-5, 3), (3e-4, 3), (1e-3, 3), (3e-3, 3)]
    order = sorted(found.tried[:4], key=lambda one: one.loss or 0)
    assert [one.rate for one in found.tried[4:]] == [one.rate for one in order[:2]]
    assert all(one.steps == 6 for one in found.tried[4:])
    assert found.best == min(found.tried[4:], key=lambda one: one.loss or 0)
    assert found.advice()[0] == f"--set train.learning_rate={found.best.rate:g}"
    assert sum(one.steps for one in found.tried) == sum(n * each for n, each in planned_rounds(4, 3, 15))


def test_test_rows_are_not_looked_at_and_nothing_is_written(tiny_folder: Path) -> None:
    before = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in tiny_folder.iterdir()}
    changed = rows(40)
    for row in changed[34:38]:  # the test rows of the book's split
        row.update(instruction="Something else.", output="Never.")
    one, other = probed(tiny_folder, rates=RATES, steps=2), probed(tiny_folder, data=changed, rates=RATES, steps=2)
    assert one.tried == other.tried
    changed[38]["output"] = "A validation row."
    assert probed(tiny_folder, data=changed, rates=RATES, steps=2).tried != one.tried
    assert before == {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in tiny_folder.iterdir()}


def test_what_diverges_is_marked_and_out(tiny_folder: Path, tmp_path: Path) -> None:
    found = probed(tiny_folder, rates=(1e-3, 1e30), steps=3, out=tmp_path / "out")
    assert found.losses(1e30) == {3: None}
    assert found.best is not None and found.best.rate == 1e-3
    assert (tmp_path / "out" / "probe.png").stat().st_size > 1000
    stored = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert stored["tried"][1] == {"rate": 1e30, "steps": 3, "validation_loss": None}
    assert stored["learning_rate"] == 1e-3
    lost = probed(tiny_folder, rates=(1e30,), steps=3)
    assert lost.best is None
    assert lost.advice()[0].startswith("no rate came below")
    assert "--rates 1e-05,3e-05,0.0001,0.0003,0.001,0.003" in lost.advice()[0]
    gentle = probed(tiny_folder, "train.method=lora", rates=(1e30,), steps=1)
    assert "--rates 0.0001,0.0003,0.001,0.003,0.01,0.03" in gentle.advice()[0]


def test_as_in_the_book_every_trial_sees_the_same_rows(tiny_folder: Path) -> None:
    """The chapter's way of evaluating draws another order each time; here the first and a later trial are alike."""
    chosen = resolve(as_in_book=True)
    alone = probe(rows(40), tiny_folder, chosen, rates=[1e-3], steps=3, screen=QUIET)
    after = probe(rows(40), tiny_folder, chosen, rates=[1e-4, 1e-3], steps=3, screen=QUIET)
    assert after.losses(1e-3) == alone.losses(1e-3)


def made(*tried: Tried, real: int = 100) -> Probed:
    return Probed("m", "d", "full", 3.0, real, tried, 1.0)


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ([1.0, 2.0, 2.5], "that is the lowest rate tried, so a better one may lie beyond: --rates 0.1,0.3,1"),
        ([2.5, 2.0, 1.0], "that is the highest rate tried, so a better one may lie beyond: --rates 9,30,3"),
        ([2.5, 1.0, 2.0], ""),
    ],
)
def test_the_edge_of_the_grid_is_pointed_out(losses: list[float], says: str) -> None:
    advice = made(*(Tried(rate, 100, loss) for rate, loss in zip((1.0, 2.0, 3.0), losses, strict=True))).advice()
    assert advice[1:] == ([says] if says else [])


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        ((1e30,), "try rates about the usual ones (--rates 1e-05,0.001, as without --rates)"),
        ((0.011,), "try rates about the usual ones"),
        ((1e-9, 1e-8), "try rates about the usual ones"),
        ((0.01, 1e30), "try lower rates (--rates 0.001,0.0033) or more --steps"),
        ((1e-5, 1e-3), "try lower rates (--rates 1e-06,3.3e-06) or more --steps"),
    ],
)
def test_where_no_rate_helps_others_are_named_that_may(rates: tuple[float, ...], says: str) -> None:
    tried = tuple(Tried(rate, 10, None) for rate in rates)
    (advice,) = Probed("m", "d", "full", 3.0, 100, tried, 1.0, usual=(1e-5, 1e-3)).advice()
    assert says in advice


def test_the_last_round_decides_and_short_runs_say_so() -> None:
    found = made(
        Tried(1.0, 10, 1.0), Tried(2.0, 10, 0.9), Tried(3.0, 10, 1.1), Tried(1.0, 20, 0.8), Tried(2.0, 20, 0.85)
    )
    assert found.best == Tried(1.0, 20, 0.8)
    assert "found in runs of 20 steps; the real run has 100" in found.advice()[-1]
    assert made(Tried(1.0, 10, 3.5)).best is None


def test_what_cannot_be_probed(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="--rates: -1 is no learning rate"):
        probed(tiny_folder, rates=(-1.0,))
    with pytest.raises(SettingsError, match="nan is no learning rate"):
        probed(tiny_folder, rates=(float("nan"),))
    cut = [*rows(5), *[{"instruction": f"{n} long " * 400, "output": "cut"} for n in range(2)]]
    with pytest.raises(DataError, match="no rows are held out for validation"):
        probed(tiny_folder, data=cut)
    with pytest.raises(UserError, match=PROC):
        probed(tiny_folder, rates=(1e-4,), steps=1, out=Path("/proc/x"))
    (tmp_path / "file").touch()
    with pytest.raises(RunFolderTaken, match="is a file"):
        probed(tiny_folder, out=tmp_path / "file")
    with pytest.raises(RunFolderTaken, match="is a file"):
        probed(tiny_folder, out=tmp_path / "file" / "out", rates=(1e-3,), steps=1)

    def refused(path: Any, *rest: Any) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    monkeypatch.setattr(os, "mkdir", refused)
    with pytest.raises(UserError, match="out: the folder cannot be made: Permission denied"):
        probed(tiny_folder, out=tmp_path / "out", rates=(1e-3,), steps=1)


def test_a_model_without_a_loss_is_no_matter_of_rates(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = probe_module.load

    def broken(prepared: Any) -> Any:
        decoder = load(prepared)
        next(decoder.parameters()).data.fill_(float("nan"))
        return decoder

    monkeypatch.setattr(probe_module, "load", broken)
    with pytest.raises(TrainingDiverged, match="before the first update"):
        probed(tiny_folder, rates=RATES, steps=2)
