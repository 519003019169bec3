"""What models are measured on besides a run's own rows: texts, probes of skills, requests and chats of this project.

All of it was written for this, lies beside this file as JSON, and is under the project's licence (Apache 2.0).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from instil.data.subset import spread
from instil.errors import DataError, counted
from instil.files import read_json, record_of
from instil.records import Example, Turn

HOME = Path(__file__).parent
LOOKED_AT = 2_000  # training rows whose kinds are looked at
FEWEST = 3  # rows of a kind from which on it is taken for one that is taught
SHARE = 0.01  # and what share of the rows looked at they have to be


@dataclass(frozen=True, slots=True)
class Text:
    """One text; ``language`` is a two-letter code, or "code"."""

    name: str
    register: str
    language: str
    text: str


@dataclass(frozen=True, slots=True)
class Probe:
    """A context and how it may go on; the first of the ``choices`` is right."""

    context: str
    choices: list[str]


@dataclass(frozen=True, slots=True)
class Skill:
    """Probes of one kind, all of which follow the same beginning, which shows the form.

    A run teaches the kind if its rows name one of these ``tasks``, or their instructions match ``asked``.
    """

    name: str
    tasks: list[str]
    asked: str
    begin: str
    probes: list[Probe]


@dataclass(frozen=True, slots=True)
class Refusals:
    """Requests that are to be refused, others that only look alike, and how answers of both kinds begin."""

    refusing: list[str]
    complying: list[str]
    harmful: list[str]
    harmless: list[str]


@dataclass(frozen=True, slots=True)
class Material:
    """All that is measured. ``hash`` is that of all files it was read from."""

    texts: tuple[Text, ...]
    skills: tuple[Skill, ...]
    refusals: Refusals
    chats: tuple[Example, ...]
    hash: str


@cache
def material() -> Material:
    """What lies beside this file.

    Raises:
        DataError: the installation is damaged.
    """
    files = [HOME / f"{name}.json" for name in ("texts", "skills", "refusals", "chats")]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    texts, skills, refusals, chats = (read_json(file) for file in files)
    try:
        return Material(
            texts=tuple(record_of(Text, one) for one in texts),
            skills=tuple(
                Skill(**{**one, "probes": [record_of(Probe, probe) for probe in one["probes"]]}) for one in skills
            ),
            refusals=record_of(Refusals, refusals),
            chats=tuple(_chat(number, messages) for number, messages in enumerate(chats)),
            hash=digest[:16],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{HOME}: damaged: {error}; install instil anew") from error


def _chat(number: int, messages: Sequence[dict[str, str]]) -> Example:
    turns = [record_of(Turn, one) for one in messages]
    *history, asked, answer = turns
    return Example(asked.content, answer.content, row=number, history=tuple(history))


def taught(skills: Sequence[Skill], rows: Sequence[Example]) -> dict[str, str]:
    """Skills of whose kind a run's training rows are, each with why it is taken for one.

    A kind is taught if at least 3 rows and 1 % of those looked at (2,000, evenly spaced) name it as their task or ask
    for it. Rows that speak of a kind and teach something else count as well: a skill too few is no wrong verdict.

    >>> skill = Skill("plurals", ["plural"], "plural", "", [])
    >>> taught([skill], [Example("Give the plural.", "mice", task="Plural")] * 3)
    {'plurals': '3 of 3 training rows looked at name the task Plural'}
    """
    looked = list(spread(rows, LOOKED_AT))
    enough = max(FEWEST, SHARE * len(looked))
    found = {}
    for skill in skills:
        tasks = {_plain(task) for task in skill.tasks}
        named = [row.task for row in looked if row.task and _plain(row.task) in tasks]
        asked = re.compile(skill.asked, re.IGNORECASE)
        of = f"of {counted(len(looked), 'training row')} looked at"
        if len(named) >= enough:
            found[skill.name] = f"{len(named):,} {of} name the task {', '.join(dict.fromkeys(named))}"
        elif (count := sum(bool(asked.search(row.instruction)) for row in looked)) >= enough:
            found[skill.name] = f"{count:,} {of} ask for it"
    return found


def _plain(name: str) -> str:
    """A task's name by its letters and figures alone."""
    return re.sub(r"[\W_]+", " ", name).strip().lower()
