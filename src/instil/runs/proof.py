"""An observer that lets a training go on only where it goes on as it was.

Two things are compared bit for bit: the loss of the next step, which the checkpoint has (`instil.train.proof`), and the
lines that the run had written after its checkpoint before it was killed, as the same steps are taken once more. The
first proves weights, order of rows, random states and the forward pass; the others optimizer's state and updates.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from instil.errors import InstilError
from instil.files import record_of
from instil.screen import Screen
from instil.train.metrics import StepRecord
from instil.train.observer import Observer
from instil.train.proof import Proof
from instil.train.state import TrainState

FORCE = "add --force to go on all the same, or --overwrite in place of --resume to begin anew"


class NotTheSame(InstilError):
    """A training would not go on as it was.

    Attributes:
        said: the message without what to do, which not every command has the options for.
    """

    def __init__(self, said: str) -> None:
        super().__init__(f"{said}; {FORCE}")
        self.said = said


class ProvesResume(Observer):
    """Says where a training is taken up, and refuses one that is not the same.

    Args:
        metrics: the run's ``metrics.jsonl`` as it was left, read at once; None where its steps had other rates.
        screen: where it is said.
        elsewhere: in what this machine and its libraries differ from those of the checkpoint; then other bits are no
            fault, and only said.
        force: go on in any case.
    """

    def __init__(self, metrics: Path | None, screen: Screen, elsewhere: str = "", *, force: bool = False) -> None:
        self._screen, self._elsewhere, self._force = screen, elsewhere, force
        self._left = _records(metrics) if metrics is not None else {}

    def on_proof(self, proof: Proof) -> None:
        """Compare the loss of the next step.

        Raises:
            NotTheSame: it is another, and nothing explains it.
        """
        last = proof.done == proof.planned
        which = "last" if last else "next"
        at = "at its end" if last else f"at step {proof.done:,} of {proof.planned:,}"
        if proof.was is None:
            self._left.clear()  # of steps that may have had rows that training goes on without by now
            self._screen.say(f"  taken up {at}")
        elif proof.same:
            self._screen.say(f"  taken up {at}: the loss of its {which} step is as it was")
        else:
            said = f"the loss of its {which} step is {proof.now!r} and was {proof.was!r}"
            self._differs(f"taken up {at}: {said}")

    def on_resume(self, state: TrainState) -> None:
        self._left = {step: record for step, record in self._left.items() if step > state.progress.done}

    def on_step(self, record: StepRecord) -> None:
        """Compare with what was written of this step before.

        Raises:
            NotTheSame: it is another, and nothing explains it.
        """
        before = self._left.pop(record.step, None)
        others = _differences(before, record) if before is not None else []
        if others:
            self._left.clear()
            self._differs(f"step {record.step:,} is not what it was before it was stopped: {'; '.join(others)}")

    def _differs(self, said: str) -> None:
        if self._elsewhere:
            self._screen.warn(f"  {said}; {self._elsewhere}, so last bits may differ from here on")
        elif self._force:
            self._screen.warn(f"  {said}; it goes on all the same (--force)")
        else:
            raise NotTheSame(
                f"{said}, on the same processor with the same libraries and threads, so something else has changed, "
                "and the run would not end as it would have"
            )


def _records(metrics: Path) -> dict[int, StepRecord]:
    """Whole lines of a file that may be torn."""
    found: dict[int, StepRecord] = {}
    if not metrics.is_file():
        return found
    for line in metrics.read_bytes().split(b"\n")[:-1]:
        try:
            record = record_of(StepRecord, json.loads(line))
        except (ValueError, RecursionError):
            continue
        found[record.step] = record
    return found


def _differences(before: StepRecord, now: StepRecord) -> list[str]:
    """In what two records of a step differ, but for times."""
    (old, new) = (replace(one, seconds=0.0, tokens_per_second=0.0).as_json() for one in (before, now))
    texts = {name: (json.dumps(old.get(name)), json.dumps(new.get(name))) for name in {**old, **new}}  # NaN is NaN
    return [f"{name} is {now_said}, and was {was}" for name, (was, now_said) in texts.items() if was != now_said]
