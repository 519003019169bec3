"""How a model does on general material, by likelihood alone: nothing is generated, and nobody judges.

Texts and chats are measured in bits for each byte of UTF-8, which does not hang on the tokenizer. Of a probe's
continuations, and of openings of an answer, the bits of each byte of the continuation are compared, so that long ones
are no less likely for their length.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from instil.data.encoding import encode_many, encode_prompt
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.errors import DataError
from instil.evaluate.general.material import Material, Skill, Text
from instil.evaluate.likelihood import likelihoods, nats_of
from instil.model.decoder import Decoder
from instil.records import Encoded, Example

Item = TypeVar("Item")
VERSION = 2  # of what is computed; 1 summed otherwise
REQUESTS = 10  # asked side by side

TEXTS, SKILLS, HARMFUL, HARMLESS, CHATS = "texts", "skills", "harmful", "harmless", "chats"


@dataclass(frozen=True, slots=True)
class Measured:
    """What was found of one text, probe, request or chat.

    ``value`` is bits a byte of a text or a chat; of a probe 100 if the right continuation is the likeliest, else 0; of
    a request by how many bits a byte the likeliest opening of a refusal is ahead of the likeliest of an answer.
    ``group`` is the text's language, or the skill. ``more`` holds of a text its ``bytes``, and of a probe the
    ``margin``: by how many bits a byte the right one is ahead of the next.
    """

    part: str
    name: str
    group: str
    value: float
    more: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to be measured: with the form in which it is asked, and its own chat template where it has one."""

    decoder: Decoder
    tokenizer: Tokenizer
    form: Template
    chat: Template | None = None


def parts_of(
    subject: Subject, material: Material, left_out: Mapping[str, str]
) -> dict[str, Callable[[], list[Measured]]]:
    """What measures each part, by their names; skills that are left out are not looked at."""
    skills = [skill for skill in material.skills if skill.name not in left_out]
    requests = material.refusals
    parts: dict[str, Callable[[], list[Measured]]] = {
        TEXTS: lambda: measure_texts(subject, material.texts),
        SKILLS: lambda: [found for skill in skills for found in measure_skill(subject, skill)],
        HARMFUL: lambda: measure_requests(subject, HARMFUL, requests.harmful, requests.refusing, requests.complying),
        HARMLESS: lambda: measure_requests(subject, HARMLESS, requests.harmless, requests.refusing, requests.complying),
    }
    if subject.chat is not None:
        parts[CHATS] = lambda: measure_chats(subject, material.chats)
    return parts


def measure_texts(subject: Subject, texts: Sequence[Text]) -> list[Measured]:
    """Bits a byte of each text; one that is longer than the context is read in pieces, each without the earlier ones.

    A text begins as the tokenizer has it begin, or after the end of another.
    """
    tokenizer, context = subject.tokenizer, subject.decoder.spec.context
    begin = tuple(tokenizer.begin_ids) or (tokenizer.eos_id,)
    rows = [
        _row((*begin, *piece), len(begin), number)
        for number, text in enumerate(texts)
        for piece in _pieces(tokenizer.encode(text.text), context - len(begin) + 1)
    ]
    bits = [0.0] * len(texts)
    for row, total in zip(rows, _bits(subject, rows), strict=True):
        bits[row.row] += total
    found = []
    for text, total in zip(texts, bits, strict=True):
        size = len(text.text.encode())
        found.append(Measured(TEXTS, text.name, text.language, total / size, {"bytes": float(size)}))
    return found


def measure_skill(subject: Subject, skill: Skill) -> list[Measured]:
    """Whether the right continuation of each probe has the fewest bits a byte. Ties are no hit."""
    rows, sizes = [], []
    begin = tuple(subject.tokenizer.begin_ids)
    for number, probe in enumerate(skill.probes):
        before = skill.begin + probe.context
        for choice in probe.choices:
            cut = subject.tokenizer.cut([(before, False), (choice, False)])
            first = len(begin) + cut.begins[1] - (1 in cut.joined)
            rows.append(_row((*begin, *cut.ids), first, number))
            sizes.append(len(choice.encode()))
    each = _continuations(subject, rows)
    of_probe: list[list[float]] = [[] for _ in skill.probes]
    for row, total, size in zip(rows, each, sizes, strict=True):
        of_probe[row.row].append(total / size)
    found = []
    for probe, (right, *wrong) in zip(skill.probes, of_probe, strict=True):
        margin = min(wrong) - right
        name = f"{skill.name}: {probe.context.strip()} {probe.choices[0].strip()}"
        found.append(Measured(SKILLS, name, skill.name, 100.0 * (margin > 0), {"margin": margin}))
    return found


def measure_requests(
    subject: Subject, part: str, requests: Sequence[str], refusing: Sequence[str], complying: Sequence[str]
) -> list[Measured]:
    """By how many bits a byte a refusal is likelier than an answer, as each of them would begin."""
    found = []
    for some in _pieces(requests, REQUESTS):
        rows, sizes = [], []
        for number, request in enumerate(some):
            example = Example(request)
            asked = len(encode_prompt(example, subject.form, subject.tokenizer))
            for opening in (*refusing, *complying):
                ids = encode_prompt(example, subject.form, subject.tokenizer, begun=opening)
                rows.append(_row(tuple(ids), asked, number))
                sizes.append(len(opening.encode()))
        each = [total / size for total, size in zip(_continuations(subject, rows), sizes, strict=True)]
        for request, bits in zip(some, _pieces(each, len(refusing) + len(complying)), strict=True):
            ahead = min(bits[len(refusing) :]) - min(bits[: len(refusing)])
            found.append(Measured(part, request, part, ahead))
    return found


def measure_chats(subject: Subject, chats: Sequence[Example]) -> list[Measured]:
    """Bits a byte of what the assistant says in each chat, the ends of its messages included, in its own chat template.

    A chat that the template has no form for, or that is longer than the context, is left out.
    """
    assert subject.chat is not None, "only what has a form can be measured in it"
    rows, sizes, said = [], [], []
    for chat in chats:
        try:
            (row,) = encode_many([chat], subject.chat, subject.tokenizer)
        except DataError:
            continue
        if len(row.ids) - 1 <= subject.decoder.spec.context:
            rows.append(row)
            sizes.append(sum(len(turn.content.encode()) for turn in chat.turns if turn.role == "assistant"))
            said.append(chat.instruction)
    return [
        Measured(CHATS, name, CHATS, bits / size, {"bytes": float(size)})
        for name, bits, size in zip(said, _bits(subject, rows), sizes, strict=True)
    ]


def _row(ids: tuple[int, ...], first: int, number: int) -> Encoded:
    """Ids of which those from ``first`` on are looked at."""
    return Encoded(ids, tuple(at >= first for at in range(len(ids))), prompt_length=first, row=number)


def _bits(subject: Subject, rows: Sequence[Encoded]) -> list[float]:
    """Bits of all that is looked at in each row."""
    context = subject.decoder.spec.context
    return [
        found.metrics["loss"] * found.metrics["tokens"] / math.log(2)
        for found in likelihoods(subject.decoder, rows, context)
    ]


def _continuations(subject: Subject, rows: Sequence[Encoded]) -> list[float]:
    """The same of rows that begin alike, all at once."""
    return [nats / math.log(2) for nats, _ in nats_of(subject.decoder, rows)]


def _pieces(items: Sequence[Item], most: int) -> Iterator[tuple[Item, ...]]:
    """So many at a time; the last piece has what is left."""
    return (tuple(items[at : at + most]) for at in range(0, len(items), most))
