"""The verb keep: what a finished run has lost and gained outside of its rows, though nobody measured it then."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.data.templates import OWN, Template
from instil.errors import InstilError, UserError
from instil.evaluate.general.material import material, taught
from instil.evaluate.general.measure import Measured, Subject
from instil.model.load import file_hash
from instil.recipes.base_of_run import base_of, products_of
from instil.recipes.keep.measuring import measured, own_chat
from instil.recipes.rows_of_run import part_of_run
from instil.runs.facts import read_facts
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.general import (
    About,
    GeneralVerdict,
    alone,
    differing_rows,
    measured_key,
    read_general,
    write_general,
    write_measured,
)
from instil.runs.report.report import refresh_report
from instil.screen import Screen


@dataclass(frozen=True, slots=True)
class KeptOfRun:
    """What is told of a run; ``general`` is None where its base is not there, and ``untold`` then says so.

    ``there`` is whether it was measured before, and only shown.
    """

    run: Path
    general: GeneralVerdict | None
    there: bool = False
    untold: list[str] = field(default_factory=list)
    tuned: dict[str, float] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What is told, line by line."""
        if self.general is None:
            figures = [f"{name}, of the tuned model alone: {value:.3f}" for name, value in self.tuned.items()]
            return [*self.untold, *figures]
        return [*self.general.lines(), *self.general.beside(), *self.untold]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.run),
            "general": self.general.as_json() if self.general else None,
            "there": self.there,
            "untold": self.untold,
            **({"tuned": self.tuned} if self.tuned else {}),
        }


def keep(run: str | Path, *, again: bool = False, screen: Screen | None = None) -> KeptOfRun:
    """What a run has lost and gained; it is measured where the run did not, and written into its folder and report.

    Base and tuned model are loaded one after the other.

    Args:
        run: a finished run's folder.
        again: measure anew what was measured already.
        screen: where progress is shown; nowhere by default.

    Raises:
        UserError: it is no run folder, or not finished.
        DataError, ModelError: a file of it is damaged.
    """
    folder, screen = finished_run(run), screen or Screen(quiet=True)
    found = None if again else read_general(folder)
    if found is not None:
        return KeptOfRun(folder.path, found, there=True, untold=differing_rows(folder, found))
    facts = folder.read_settings()
    with products_of(folder):
        left_out, notes = kinds_taught(folder)
        try:
            path, base = base_of(folder)
        except InstilError as error:
            screen.say("the tuned model: general texts, small skills and refusals")
            tuned = load(folder.path)
            values = measured(Subject(tuned.decoder, tuned.tokenizer, tuned.template), left_out, screen)
            untold = [f"nothing can be said of what was lost: {error}"]
            return KeptOfRun(folder.path, None, untold=untold, tuned=alone(values))
        return _compared(folder, facts, path, base, left_out, notes, screen)


def _compared(
    folder: RunFolder,
    facts: dict[str, Any],
    path: Path,
    base: Assistant,
    left_out: dict[str, str],
    notes: list[str],
    screen: Screen,
) -> KeptOfRun:
    own, note = own_chat(path, base.tokenizer, base.decoder.spec.vocab_size)
    forms, run_form = read_facts(folder).forms, folder.template()
    asked = own if forms is not None and forms.form == OWN and own is not None else run_form
    keys: dict[str, str] = {}
    found: dict[str, list[Measured]] = {}
    names = {"chat": own.name if own else "", "base": asked.name, "tuned": run_form.name}

    def look(side: str, model: Assistant, template: Template, weights: str) -> None:
        screen.say(f"{'the base' if side == 'base' else 'the tuned model'}: general texts, small skills, refusals")
        device = model.decoder.device.type
        keys[side] = measured_key(weights, template.hash, own.hash if own else "", device, left_out)
        found[side] = measured(Subject(model.decoder, model.tokenizer, template, own), left_out, screen)

    new = int(facts.get("model_facts", {}).get("new_rows", 0))
    look("base", base, asked, f"{facts['hashes']['model']} {new}")
    texts = [base.tokenizer.encode(text.text) for text in material().texts]
    del base
    tuned = load(folder.path)
    look("tuned", tuned, run_form, file_hash(folder.model))
    if [tuned.tokenizer.encode(text.text) for text in material().texts] != texts:
        notes = [*notes, "the tuned model cuts texts into other tokens than its base; bits a byte can be compared"]
    for side, values in found.items():
        write_measured(folder, side, values)
    notes = [*notes, *([note] if note else [])]
    general = write_general(folder, keys, About(names, left_out, notes))
    refresh_report(folder)
    return KeptOfRun(folder.path, general)


def finished_run(run: str | Path) -> RunFolder:
    """The folder of a run that is finished.

    Raises:
        UserError: it is not.
    """
    folder = RunFolder(Path(run))
    if not (folder.path / RUN_FILE).is_file():
        raise UserError(f"{run}: no {RUN_FILE} in it, so it is not a run folder")
    if not folder.finished:
        raise UserError(f"{run}: the run is not finished; go on with it (--resume), and ask then")
    return folder


def kinds_taught(folder: RunFolder) -> tuple[dict[str, str], list[str]]:
    """Skills that the run's rows teach, or a note that this is not known."""
    try:
        rows = part_of_run(folder, "train")
    except InstilError as error:
        why = str(error).split(";")[0]
        return {}, [f"no skill is left out as one that the run taught, since its rows cannot be read again: {why}"]
    return taught(material().skills, rows), []
