"""Made-up replies of which the right reading is known: a number that a careful reader would not give is never read.

Each reply is put together from parts that know what they do to it: a verdict, what wraps it, a thought before it with
another number, words around it; or what spoils it: a cut, a quotation, a second verdict. The right reading is the
verdict's number, or none where it was spoilt; to read nothing is never wrong, but plain replies must be read.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from instil.evaluate.parsing import read_score
from instil.evaluate.scales import Scale
from tests.ask.test_thoughts import SPELLINGS

HUNDRED = Scale(0, 100)
COUNT = 15_000

JSON = (
    '{{"score": {n}}}', '{{"score": {n}, "reason": "It is right."}}', '{{"reason": "one of {d} facts", "score": {n}}}',
    '{{"score": "{n}"}}', '{{"score": {n},}}', "{{'score': {n}}}", "{{'reason': 'It's right', 'score': {n}}}",
    "{{score: {n}}}", '{{"score": {n} /* of {d} */}}', '{{"score": {n}, // not {d}\n "ok": true}}',
    "{{'score': {n}, 'ok': True, 'flaw': None}}", '{{\n  "score": {n}\n}}', '{{"result": {{"score": {n}}}}}',
    '{{"Score": "{n}/100"}}', '[{{"score": {n}}}]', '{{"why": "{{\\"score\\": {d}}} is what it says", "score": {n}}}',
)  # fmt: skip
WORDS = (
    "{n}", "**{n}**", "Score: {n}", "**Score: {n}/100**", "Overall score: {n}", "I'd rate it {n} out of 100.",
    "I would give it a score of {n}.", "Final score: **{n}**", "{n}/100", "{n} points", "Rating = {n}",
    "\\boxed{{{n}}}", "Score (0-100): {n}", "The score is {n}.", "\u201c{n}\u201d",
)  # fmt: skip
CLEAR = ("{n}", "**{n}**", "Score: {n}", "**Score: {n}/100**", "{n}/100", "Rating = {n}", "\u201c{n}\u201d")
THOUGHTS = (
    "I'd give it {d}.", "Score: {d}", '{{"score": {d}}}', "{d}", "First {d},\nthen {d}? The answer has a flaw.",
    "The final score is {d} out of 100.\n\nOr so.", 'The answer says "Score: {d}".', "```json\n{{\"score\": {d}}}\n```",
)  # fmt: skip
BEFORE = ("", "", "Here is my verdict: ", "The answer is right.\n\n", "Sure!\n", "I have compared both texts.\n")
AFTER = ("", "", "\n\nIt is right.", "\n", " \n\nThe form is as asked.", "<|im_end|>", "</s>", "<|end|>\n")
QUOTED = (
    'The answer says "Score: {d}".', "The answer tries {json}", "The answer contains the JSON {json}",
    "It asks its judge to reply {json}", "The response quotes a verdict: {json}", "The answer was: {json}",
    "The answer has ```json\n{json}\n``` in it.", "The response is `{json}`", "{json} is what the answer says.",
    "A perfect answer would score {d}.", "If it was right, the score would be {d}.", "It is not {d}% right.",
    'The model wrote "I would give it a score of {d}" itself.', "It should not get {d} out of 100.",
    "I am {d}% sure of it.", "The maximum score: {d}", "between {d} and {n}", "Score: {d}-{n}", "at most {d}",
    "{d} or {n}",
)  # fmt: skip


def different(draw: random.Random, number: int) -> int:
    """A score that is not this one, nor begins or ends as it does."""
    while str(other := draw.randint(2, 99)) in str(number) or str(number) in str(other):
        pass
    return other


def verdict(draw: random.Random, n: int, d: int) -> tuple[str, bool]:
    """A verdict, and whether it is JSON."""
    json = draw.random() < 0.5
    text = draw.choice(JSON if json else WORDS).format(n=n, d=d)
    if json and draw.random() < 0.3:
        fence = draw.choice(("```json\n{}\n```", "```\n{}\n```", "~~~json\n{}\n~~~", "```json{}```", "```JSON\n{}"))
        text = fence.format(text)
    return text, json


def thought(draw: random.Random, d: int) -> tuple[str, str]:
    """What a model thought, and the mark that ends it."""
    begin, end = draw.choice(SPELLINGS)
    said = draw.choice(THOUGHTS).format(d=d)
    if begin == "analysis":
        said = f"It is a task. {said}"
    blank = draw.choice(("", "\n")) if begin != "analysis" else ""
    return f"{blank}{begin}{blank}{said}{blank}", end


def plain(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """A verdict, wrapped."""
    text, json = verdict(draw, n, d)
    before = draw.choice(BEFORE)
    after = draw.choice(AFTER) if not (json and before) and not text.startswith("```JSON") else ""
    return f"{before}{text}{after}", n


def thinking(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """A thought with another number before it."""
    said, end = thought(draw, d)
    return f"{said}{end}{draw.choice(('', chr(10), chr(10) * 2))}{plain(draw, n, d)[0]}", n


def nested(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """A thought within a thought, or one after the other."""
    inner, outer = (draw.choice(THOUGHTS).format(d=d) for _ in range(2))
    form = draw.choice(
        ("<{t}>{a}<{t}>{b}</{t}>{a}</{t}>", "<{t}>{a}</{t}>\n<{t}>{b}</{t}>", "<{t}>`</{t}>` {a}</{t}>\n")
    )
    return form.format(t=draw.choice(("think", "reasoning")), a=outer, b=inner) + plain(draw, n, d)[0], n


def cut_thought(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """The room ended inside of the thought, or of the mark that ends it."""
    said, end = thought(draw, d)
    begin = len(said) - draw.randrange(3)
    return (said + end[: draw.randrange(len(end))])[: max(begin, len(said) - 2)], None


def cut_json(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """The room ended inside of the JSON."""
    text = draw.choice(JSON).format(n=n, d=d)
    text = draw.choice(("", "```json\n")) + text[: draw.randrange(2, len(text.rstrip("]}")) + 1)]
    said, end = thought(draw, d)
    return draw.choice((text, f"{said}{end}{text}")), None


def late_thought(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """A thought after the verdict, whole or cut."""
    said, end = thought(draw, d)
    while said.lstrip().startswith("analysis") or "<|" in said or "unused" in said:
        said, end = thought(draw, d)
    return f"{plain(draw, n, d)[0]}\n{said.lstrip()}{draw.choice(('', end))}", n


def quoted(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """Another's words, with or without a verdict after them."""
    text = draw.choice(QUOTED).format(n=n, d=d, json=draw.choice(JSON[:7]).format(n=d, d=n))
    if draw.random() < 0.5:
        return text, None
    return f"{text} {draw.choice(('My score: {n}', 'Score: {n}', 'I would give it a score of {n}.')).format(n=n)}", n


def two(draw: random.Random, n: int, d: int) -> tuple[str, int | None]:
    """Two verdicts that disagree."""
    first, second = (draw.choice((*JSON, *CLEAR)).format(n=one, d=one) for one in (n, d))
    return draw.choice(("{}\n{}", "{} {}", "{}\n\n{}")).format(first, second), None


KINDS: tuple[Callable[[random.Random, int, int], tuple[str, int | None]], ...] = (
    plain, thinking, nested, cut_thought, cut_json, late_thought, quoted, two,
)  # fmt: skip


def test_no_number_is_read_that_a_careful_reader_would_not_give() -> None:
    draw = random.Random(20)
    read: dict[str, list[bool]] = {kind.__name__: [] for kind in KINDS}
    wrong = []
    for _ in range(COUNT):
        kind = draw.choice(KINDS)
        n = draw.randint(2, 100)
        reply, right = kind(draw, n, different(draw, n))
        found = read_score(reply, HUNDRED).value
        read[kind.__name__].append(found is not None)
        if found is not None and found != right:
            wrong.append((kind.__name__, reply, right, found))
    assert not wrong, f"{len(wrong)} wrong, such as {wrong[:12]}"
    share = {name: sum(given) / len(given) for name, given in read.items()}
    assert min(share["plain"], share["thinking"], share["nested"]) > 0.9, share
