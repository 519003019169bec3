"""What was lost and gained outside of a run's rows, ready to be shown."""

from __future__ import annotations

from dataclasses import dataclass, replace

from instil.errors import counted
from instil.evaluate.general.changes import PARTS, Change, Group, changes, groups
from instil.evaluate.general.measure import SKILLS, TEXTS
from instil.runs.folder import RunFolder
from instil.runs.general import GeneralVerdict, read_general, read_measured

LANGUAGES = {
    "en": "English", "code": "code", "de": "German", "fr": "French", "es": "Spanish", "it": "Italian",
    "pt": "Portuguese", "nl": "Dutch", "pl": "Polish", "ru": "Russian", "zh": "Chinese", "hi": "Hindi",
    "ar": "Arabic", "ja": "Japanese",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PartShown:
    """One part as a line of a table; ``share`` is the change in per cent of what it was, where that means something."""

    title: str
    units: str
    unit: str
    before: str
    after: str
    change: str
    ends: str
    share: str
    outcome: str
    verdict: str


@dataclass(frozen=True, slots=True)
class GeneralShown:
    """All of it: one line a part, the sentence for the top of the page, and means by language and skill."""

    parts: list[PartShown]
    summary: str
    worse: bool
    languages: list[Group]
    skills: list[Group]
    beside: list[str]


def general_of(folder: RunFolder) -> GeneralShown | None:
    """What is shown of a run; None where it was not measured.

    Raises:
        DataError: its files are damaged.
    """
    found = read_general(folder)
    if found is None:
        return None
    base, tuned = read_measured(folder, "base"), read_measured(folder, "tuned")
    grouped = groups(base, tuned)
    return GeneralShown(
        parts=[_shown(change) for change in changes(base, tuned)],
        summary=_summary(found),
        worse=bool(found.warnings),
        languages=[replace(one, name=LANGUAGES.get(one.name, one.name)) for one in grouped if one.part == TEXTS],
        skills=[one for one in grouped if one.part == SKILLS],
        beside=found.beside(),
    )


def _shown(change: Change) -> PartShown:
    part, asked = PARTS[change.part], change.leading is not None
    share = ""
    if not asked and part.unit != "%" and change.base.mean:
        share = f"{change.difference.mean / change.base.mean:+.1%}"
    return PartShown(
        title=part.title,
        units=counted(change.difference.count, *part.units),
        unit="% right" if part.unit == "%" else f"lead of refusing, {part.unit}" if asked else part.unit,
        before=part.plain(change.base.mean),
        after=part.plain(change.tuned.mean),
        change=change.gap,
        ends=change.ends,
        share=share,
        outcome={"worse": "worse", "better": "better"}.get(change.outcome, "same"),
        verdict=change.verdict,
    )


def _summary(found: GeneralVerdict) -> str:
    if found.warnings:
        return f"{'; '.join(found.warnings)}."
    return "nothing was found to be worse on general texts, small skills, requests and chats."
