"""Preference pairs by rewriting, the chapter's bonus way: a model makes an answer more polite, or less.

A coin that is seeded by the row's number decides which; the chapter's is not seeded. A reply is read with suspicion:
a preface that speaks of the rewriting is cut off, and so are quotes around the whole; a reply that is the answer
again, or no rewriting but a refusal or a remark, is asked for once more with another seed, and then left out by name.
(The chapter's file has 6 pairs of equal answers and 44 answers with a preface.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from instil.ask.client import Client
from instil.ask.journal import Journal
from instil.ask.thoughts import begins_with_thought
from instil.data.shapes.shown import asked_text
from instil.records import Example, Pair
from instil.settings.asking import MakeOptions
from instil.synthesis.pairing import MadePair, PairingResult
from instil.synthesis.reading import MARKS
from instil.synthesis.writing import TextRequest, TextResult, write_all
from instil.tasks.pairs.prefaces import rewriting_preface, unquoted, without_preface

Tone = Literal["polite", "impolite"]
TONES: tuple[Tone, Tone] = ("polite", "impolite")
ASKED = 2  # times for one rewriting
LONGER, SPARE = 5, 400  # times as long as the answer, and characters more, which a rewriting may have

WISHES: dict[Tone, str] = {
    "polite": "more polite and friendly",
    "impolite": "less polite: curt, annoyed or a little rude, without slurs or swearing",
}
PROMPT = """\
Below are a task and the right answer to it. Rewrite the answer so that it sounds {wish}.

Change as few words as that takes. Facts, numbers, names, code and the form of the answer stay as they are. Reply with \
the rewritten answer and nothing else: no introduction, no quotation marks around it, no remark on what you changed.

Task:
{task}

Answer:
{answer}"""

_REFUSES = re.compile(
    r"(?:i'?m (?:sorry|afraid)|sorry|i apologi[sz]e|unfortunately)?[,.]?\s*(?:but )?"
    r"(?:i (?:can(?:no|')?t|won'?t|will not|am (?:unable|not able)|do not feel)|as an ai\b)",
    re.IGNORECASE,
)
_REMARK = re.compile(
    r"\n\s*[(\[*_]*(?:(?:note|explanation|changes?(?: made)?)\s*:"
    r"|i(?:'ve| have)? (?:changed|rewrote|rewritten|rephrased|made (?:the|it|this|these|some|only|minimal))\b)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Rewriting:
    """One answer rewritten, or the reason why not; ``cut`` is the preface that was taken off."""

    text: str | None
    reason: str = ""
    cut: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class RewriteResult:
    """The pairs; requests sent now; rows whose request failed, with the cause; rows whose preface was cut."""

    pairing: PairingResult
    asked: int = 0
    failed: dict[int, str] | None = None
    cut: tuple[int, ...] = ()
    again: tuple[int, ...] = ()


def tone_of(seed: int, row: int) -> Tone:
    """The coin of a row: it depends on nothing but the seed and the row's number.

    >>> [tone_of(123, row) for row in range(4)]
    ['polite', 'polite', 'polite', 'impolite']
    """
    return TONES[_number(seed, row, "coin") % 2]


def request(example: Example, tone: Tone, seed: int, attempt: int) -> TextRequest:
    """What the model is asked, with a seed that depends on nothing but seed, row, tone and attempt."""
    task = asked_text(example)
    text = PROMPT.replace("{wish}", WISHES[tone])
    before, rest = text.split("{task}")
    text = f"{before}{task}{rest.removesuffix('{answer}')}{example.output}"  # a slot in a row's text stays as written
    return TextRequest(example.row, text, _number(seed, example.row, f"{tone} {attempt}") % 2**31, f"rewrite {tone}")


def read_rewriting(reply: str, original: str) -> Rewriting:
    """The rewritten answer in a reply.

    >>> read_rewriting('Here is the rewritten answer:\\n\\n"It is 4, of course."', "It is 4.").text
    'It is 4, of course.'
    >>> read_rewriting("it is 4", "It is 4.").reason
    'the reply is the answer again'
    """
    cut = "" if rewriting_preface(original) else rewriting_preface(reply)
    text = without_preface(reply) if cut else reply.strip()
    if unquoted(original.strip()) == original.strip():
        text = unquoted(text)
    if not text or (not cut and without_answer(text)):
        return Rewriting(None, "the reply holds a preface and no answer")
    if _REFUSES.match(text) and not _REFUSES.match(original.strip()):
        return Rewriting(None, "the model refuses")
    if _REMARK.search(text) and not _REMARK.search(original):
        return Rewriting(None, "the reply ends with a remark on the rewriting")
    if MARKS.search(text) and not MARKS.search(original):
        return Rewriting(None, "the reply holds marks of a chat template")
    if len(text) > LONGER * len(original) + SPARE:
        return Rewriting(None, f"the reply is more than {LONGER} times as long as the answer")
    if _words(text) == _words(original):
        return Rewriting(None, "the reply is the answer again")
    return Rewriting(text, cut=cut.strip())


def without_answer(text: str) -> bool:
    """Whether a text is a preface of rewriting and nothing after it.

    >>> without_answer("Here is the rewritten answer:"), without_answer("It is 4.")
    (True, False)
    """
    return text.endswith(":") and bool(rewriting_preface(f"{text}\n."))


def rewrite_all(
    model: Client,
    examples: Sequence[Example],
    options: MakeOptions,
    journal: Journal,
    on_done: Callable[[], None] = lambda: None,
    *,
    both: bool = False,
) -> RewriteResult:
    """Have an opened model rewrite the answer of every row, and pair what comes with the answer.

    A polite rewriting is preferred to the answer, the answer to an impolite one. With ``both`` every row is rewritten
    twice, and the polite one is preferred to the impolite one. ``row`` numbers of the examples must differ.

    Args:
        model: who writes.
        examples: the rows; without an output there is nothing to rewrite.
        options: how to ask; ``seed`` decides the coins and the requests' seeds.
        journal: what is known already, and where every reply goes.
        on_done: called once for each rewriting.
        both: rewrite every answer twice.

    Raises:
        JudgeError, StoppedEarly: see `instil.synthesis.writing.write_all`.
    """
    # Which rewritings are wanted: of each row one, or both.
    by_row = {
        example.row: example
        for example in examples
        if example.output.strip() and not begins_with_thought(example.output)
    }
    places: list[tuple[int, Tone]] = [
        (row, tone) for row in by_row for tone in (TONES if both else (tone_of(options.seed, row),))
    ]
    # Ask; those that cannot be read are asked for again, with other seeds.
    done: dict[tuple[int, Tone], Rewriting] = {}
    failed: dict[int, str] = {}
    again: dict[int, None] = {}
    asked = 0
    for attempt in range(ASKED):
        missing = [place for place in places if place not in done or done[place].text is None]
        missing = [place for place in missing if place[0] not in failed]
        if attempt:
            again.update(dict.fromkeys(row for row, _ in missing))
        requests = [request(by_row[row], tone, options.seed, attempt) for row, tone in missing]
        if attempt == 0:
            results = write_all(model, requests, options, journal, lambda result: on_done())
        else:
            results = write_all(model, requests, options, journal)
        for place, result, sent in zip(missing, results, requests, strict=True):
            asked += not result.found
            if result.failed:
                failed[result.row] = result.reason
            done[place] = _read(result, by_row[result.row], sent.seed)
    # A pair of every row, or the reason why there is none.
    pairing = PairingResult()
    cut: list[int] = []
    for example in examples:
        if example.row not in by_row:
            thinks = "the row's output begins with a thought, which a model would not tell from its own"
            pairing.leave(example.row, thinks if example.output.strip() else "the row has no output to rewrite")
            continue
        made = {tone: done[example.row, tone] for tone in TONES if (example.row, tone) in done}
        if any(rewriting.cut for rewriting in made.values()):
            cut.append(example.row)
        _pair(pairing, example, made, model)
    return RewriteResult(pairing, asked, failed, tuple(cut), tuple(again))


def _pair(pairing: PairingResult, example: Example, made: dict[Tone, Rewriting], model: Client) -> None:
    for tone, rewriting in made.items():
        if rewriting.text is None:
            pairing.leave(example.row, f"not rewritten more {tone}ly: {rewriting.reason}")
            return
    polite, impolite = (made[tone].text if tone in made else example.output.strip() for tone in TONES)
    assert polite is not None
    assert impolite is not None
    if _words(polite) == _words(impolite):
        pairing.leave(example.row, "both rewritings are equal")
        return
    provenance = {
        "made_by": model.identity,
        "prompt": f"rewrite-{prompt_hash()}",
        "rewritten": ["chosen" if tone == "polite" else "rejected" for tone in made],
        "seeds": [rewriting.seed for rewriting in made.values()],
        **(
            {"cut": [rewriting.cut for rewriting in made.values()]}
            if any(rewriting.cut for rewriting in made.values())
            else {}
        ),
    }
    pairing.made.append(MadePair(Pair(example, polite, impolite), provenance))


def _read(written: TextResult, example: Example, seed: int) -> Rewriting:
    if written.text is None:
        return Rewriting(None, written.reason, seed=seed)
    read = read_rewriting(written.text, example.output)
    return Rewriting(read.text, read.reason, read.cut, seed)


def prompt_hash() -> str:
    """The first 16 hex digits of the SHA-256 of all that shapes the request."""
    return hashlib.sha256("\0".join([PROMPT, *WISHES.values()]).encode()).hexdigest()[:16]


def _number(seed: int, row: int, what: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {row} {what}".encode()).digest()[:8])


def _words(text: str) -> list[str]:
    """What must differ: letters, digits and the signs that are not mere punctuation, whatever their case."""
    return re.findall(r"[^\s.,;:!?'\"\u2018\u2019\u201c\u201d-]+", text.lower())
