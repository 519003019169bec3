"""A run that goes on for longer than it was begun for: more epochs, or more steps.

``run.toml`` says so: ``[[extended]]`` has what the settings were before, and after how many steps it went on. The
schedule of the learning rate spans all steps, so past steps had the rates of a shorter one; that is said, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from instil.errors import RunFolderTaken, SettingsError, counted
from instil.runs.checkpoints import Checkpoints
from instil.runs.folder import FACTS, RunFolder
from instil.runs.identity import GROWING, Identity, check_same
from instil.settings.options import TrainOptions
from instil.tasks.task import Prepared
from instil.train.schedule import learning_rate, planned_steps
from instil.train.state import TrainState


@dataclass(frozen=True, slots=True)
class Earlier:
    """What a run was to be before it was extended."""

    epochs: int
    max_steps: int

    def of(self, prepared: Prepared) -> Prepared:
        """The run as it was to be."""
        train = prepared.settings.train.model_copy(update={"epochs": self.epochs, "max_steps": self.max_steps})
        return replace(prepared, settings=prepared.settings.model_copy(update={"train": train}))


def former(facts: Mapping[str, Any], prepared: Prepared) -> list[Mapping[str, str]]:
    """What a run was to its checkpoints before it was extended, each time."""
    return [
        Identity.of(Earlier(int(one["epochs"]), int(one["max_steps"])).of(prepared)).short()
        for one in facts.get("extended", ())
    ]


def extend(folder: RunFolder, prepared: Prepared, *, answers: bool = True) -> list[str]:
    """Let a run, finished or not, be one that takes more steps; returns what is to be said of it.

    Where it was extended so before, and has not come to its end since, nothing is to be done.

    Raises:
        SettingsError: it is another run, would not be longer, or there is no checkpoint that it could go on from.
        RunFolderTaken: it is finished, and is as long as is asked for.
    """
    facts, wanted = folder.read_settings(), Identity.of(prepared)
    differences = wanted.differences(facts)
    if not differences:
        try:
            check_same(folder, wanted, answers=answers)
        except RunFolderTaken as error:
            raise RunFolderTaken(f"{error}; to extend it, set a larger {' or '.join(GROWING)}") from error
        return []
    stored = facts["settings"].get("train", {})
    earlier = Earlier(int(stored.get("epochs", 0)), int(stored.get("max_steps", 0)))
    then = earlier.of(prepared)
    if Identity.of(then).differences(facts):
        check_same(folder, wanted, answers=answers)  # says in what it is another run
    in_an_epoch, options = len(prepared.training), prepared.settings.train
    before, now = planned_steps(in_an_epoch, then.settings.train), planned_steps(in_an_epoch, options)
    if now <= before:
        raise SettingsError(
            f"{folder.path}: --extend lets a run take more steps; it was begun for {before:,}, and "
            f"{' and '.join(GROWING)} as given make {counted(now, 'step')}"
        )
    found = Checkpoints(folder.checkpoints, Identity.of(then).short(), former(facts, prepared)).newest()
    if found.state is None:
        wrong = "; ".join(found.damaged) or f"there is none in {folder.checkpoints}"
        raise SettingsError(
            f"{folder.path}: no checkpoint to extend it from: {wrong}. A finished run keeps one with "
            "train.keep_checkpoint=true; without it the run has to be made anew, with another --out or --overwrite"
        )
    progress = found.state.progress
    if options.patience and progress.worse >= options.patience:
        raise SettingsError(
            f"{folder.path}: train.patience ended it after step {progress.done:,}, and more steps would not change "
            "that; its model can be trained on as the --model of another run"
        )
    _begin_anew(folder, facts, prepared, {**vars_of(earlier), "steps": before, "after": progress.done})
    return _said(progress.done, before, now, options)


def vars_of(earlier: Earlier) -> dict[str, int]:
    """As ``run.toml`` has it."""
    return {"epochs": earlier.epochs, "max_steps": earlier.max_steps}


def extended(state: TrainState, planned: int) -> TrainState:
    """A state of a training that takes so many steps now."""
    at = state.progress
    if at.planned == planned:
        return state
    next_loss = at.next_loss if at.done < at.planned else None  # at the end it is that of the last step
    return replace(state, progress=replace(at, planned=planned, next_loss=next_loss))


def _begin_anew(folder: RunFolder, facts: dict[str, Any], prepared: Prepared, entry: dict[str, int]) -> None:
    """It is not finished any more, and what was made of its model is another's."""
    (folder.path / FACTS).unlink(missing_ok=True)
    (folder.path / "responses" / "tuned.json").unlink(missing_ok=True)
    for file in (folder.path / "scores").glob("tuned.*"):
        file.unlink()
    facts["settings"] = prepared.settings.model_dump()
    facts["extended"] = [*facts.get("extended", ()), entry]
    folder.write_settings(facts)


def _said(done: int, before: int, now: int, options: TrainOptions) -> list[str]:
    lines = [f"extended from {before:,} to {now:,} steps"]
    if options.schedule != "constant" or options.warmup:
        was = learning_rate(done - 1, before, options) if done else 0.0
        rates = f"the last step had {was:.3g}, the next has {learning_rate(done, now, options):.3g}"
        lines.append(f"the schedule ({options.schedule}) spans all {now:,} steps from here on: {rates}")
    return lines
