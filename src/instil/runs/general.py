"""What a run has lost and gained outside of its rows: ``keep.json``, and what it hangs on (``keep/*.jsonl``).

The measurements of base and tuned model lie in the run's folder, one a line, so that every figure can be computed
again. Of runs that were made of the same base, those of the base are taken over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from instil.ask.journal import key_of
from instil.errors import DataError
from instil.evaluate.general.changes import PARTS, Change, changes, groups
from instil.evaluate.general.material import material
from instil.evaluate.general.measure import VERSION, Measured
from instil.files import make_folder, others_than, read_json_object, record_of, records_in, sha256_of, write_rows
from instil.runs.folder import KEEP, KEEP_ROWS, RunFolder
from instil.version import __version__

FORMAT = 1
SIDES = ("base", "tuned")


@dataclass(frozen=True, slots=True)
class GeneralVerdict:
    """What a run says of it.

    Attributes:
        format: of this file.
        material: the hash of what was measured on.
        measured: what each side's measurements hang on, as one hash.
        forms: the prompt form in which each side is asked requests, and ``chat``, the base's own chat template, if any.
        left_out: skills that the run's rows teach, with why they are taken for that.
        notes: what must be known beside.
        sentences: what is to be said of each part; the file has the figures (`changes`, `groups`), too.
        warnings: what is worse.
        rows: SHA-256 of the measurements' files.
    """

    format: int
    material: str
    measured: dict[str, str]
    forms: dict[str, str]
    left_out: dict[str, str]
    notes: list[str]
    sentences: list[str]
    warnings: list[str]
    rows: dict[str, str]

    def lines(self) -> list[str]:
        """One sentence for each part, and what is worse once more."""
        return [*self.sentences, *(f"warning: {line}" for line in self.warnings)]

    def beside(self) -> list[str]:
        """What was left out, and what must be known besides."""
        names = ", ".join(self.left_out)
        return [*([f"skills left out, since the run's rows teach them: {names}"] if names else []), *self.notes]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {name: getattr(self, name) for name in ("sentences", "warnings", "left_out", "notes", "forms")}


@dataclass(frozen=True, slots=True)
class About:
    """What measurements are of, besides the models."""

    forms: dict[str, str]
    left_out: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def measured_key(model: str, form: str, chat: str, device: str, left_out: Mapping[str, str]) -> str:
    """The hash of all that measurements of a model hang on: hashes of weights, of both templates, and so on."""
    return key_of("general", __version__, VERSION, material().hash, model, form, chat, device, sorted(left_out))


def write_measured(folder: RunFolder, side: str, found: Sequence[Measured]) -> None:
    """Write down one side's measurements.

    Raises:
        OSError: they cannot be written.
    """
    path = _rows(folder, side)
    if not path.parent.exists():
        make_folder(path.parent)
    write_rows(path, map(asdict, found))


def read_measured(folder: RunFolder, side: str) -> list[Measured]:
    """One side's measurements.

    Raises:
        DataError: the file is absent or damaged.
    """
    return records_in(_rows(folder, side), Measured, advice="; instil keep --again writes it anew")


def reusable_base(key: str, runs: Sequence[Path]) -> list[Measured] | None:
    """The base's measurements of the first of these runs that have this key and are whole."""
    for run in runs:
        folder = RunFolder(run)
        try:
            kept = read_general(folder)
            if kept is not None and kept.measured.get("base") == key and not differing_rows(folder, kept):
                return read_measured(folder, "base")
        except DataError:
            continue
    return None


def figures(base: Sequence[Measured], tuned: Sequence[Measured]) -> dict[str, Any]:
    """All of ``keep.json`` that comes of the measurements."""
    found = changes(base, tuned)
    return {
        "sentences": [change.sentence for change in found],
        "changes": [change.as_json() for change in found],
        "groups": [asdict(group) for group in groups(base, tuned)],
        "warnings": [warning(change) for change in found if change.outcome == "worse"],
    }


def alone(found: Sequence[Measured]) -> dict[str, float]:
    """The mean of each part of one model's measurements."""
    values: dict[str, list[float]] = {}
    for one in found:
        values.setdefault(one.part, []).append(one.value)
    return {f"{PARTS[part].title}, {PARTS[part].unit}": sum(some) / len(some) for part, some in values.items()}


def warning(change: Change) -> str:
    """What is said where something is worse, in a few words; the sentence says how sure that is."""
    told = PARTS[change.part]
    gap = f"{change.gap} {'points' if told.unit == '%' else told.unit}"
    if change.leading is None and change.base.mean:
        gap += f" ({change.difference.mean / change.base.mean:+.1%})"
    return f"{told.title}: {told.if_worse}, {gap}"


def write_general(folder: RunFolder, measured: Mapping[str, str], about: About) -> GeneralVerdict:
    """Write ``keep.json`` of measurements that are written down.

    Raises:
        DataError, OSError: those cannot be read, or it cannot be written.
    """
    base, tuned = (read_measured(folder, side) for side in SIDES)
    value = {
        "format": FORMAT,
        "material": material().hash,
        "measured": dict(measured),
        "forms": about.forms,
        "left_out": about.left_out,
        "notes": about.notes,
        **figures(base, tuned),
        "rows": {f"{KEEP_ROWS}/{side}.jsonl": sha256_of(_rows(folder, side)) for side in SIDES},
    }
    folder.write_json(KEEP, value)
    return record_of(GeneralVerdict, value, strict=False)


def read_general(folder: RunFolder) -> GeneralVerdict | None:
    """``keep.json``; None of a run that has none.

    Raises:
        DataError: it is damaged, or of another version.
    """
    file = folder.path / KEEP
    if not file.is_file():
        return None
    try:
        found = record_of(GeneralVerdict, read_json_object(file, error=DataError), strict=False)
    except ValueError as error:
        raise DataError(f"{file}: damaged: {error}; instil keep --again writes it anew") from error
    if found.format != FORMAT:
        raise DataError(f"{file}: has format {found.format}, and {FORMAT} is read here; another version wrote it")
    return found


def differing_rows(folder: RunFolder, kept: GeneralVerdict) -> list[str]:
    """Files of measurements that are not those that ``keep.json`` is of, each with what is wrong."""
    return others_than(folder.path, kept.rows, KEEP)


def _rows(folder: RunFolder, side: str) -> Path:
    return folder.path / KEEP_ROWS / f"{side}.jsonl"
