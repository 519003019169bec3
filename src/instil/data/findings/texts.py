"""What should not stand in texts: marks of prompts and of ends, invisible and broken characters, secrets.

Many rows are searched as one text, which is dozens of times faster than row by row: most patterns are asked for only
where a text that is part of every match stands somewhere in it.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from instil.data.findings.finding import KEPT, Finding, Severity, named, quoted
from instil.data.findings.seen import Seen
from instil.errors import counted

AT_ONCE = 1_000_000  # characters that are searched as one text
BETWEEN = "\n\x00\n"  # texts with NUL are refused when they are read; a newline, so that lines begin and end
FIRST_NAMED = 4  # of what was found


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for: a pattern, and texts of which one stands in every match (none: no match is in ASCII).

    ``name`` says what a match is called; ``accept`` looks at a match and what stands around it.
    """

    kind: str
    pattern: re.Pattern[str]
    needles: Sequence[str] = ()
    name: Callable[[str], str] = quoted
    accept: Callable[[re.Match[str]], bool] = bool


# Marks of prompts and ends

FORMS = (
    "<|im_start|>", "<|user|>", "<|assistant|>", "<|system|>", "[INST]", "<<SYS>>", "<start_of_turn>",
    "<|start_header_id|>", "<|begin_of_text|>", "Below is an instruction that describes a task",
)  # fmt: skip
ENDS = (
    "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<eos>",
    "[/INST]", "<|return|>", "<unk>", "<pad>", "<bos>", "[EOS]", "[BOS]", "<\uff5cend\u2581of\u2581sentence\uff5c>",
)  # fmt: skip
_HEADING = r"##+ ?(?i:Instruction|Input|Response|Human|Assistant|User):"
_HUMAN = r"^(?:Human|### ?Human):"  # an answer that goes on with the next question


_WAITING = (
    r"^(?:Human|User|USER):[^\x00]*^(?:Assistant|ASSISTANT):\s*(?=\x00)"  # a conversation that waits for an answer
)
_BRACKETED = re.compile(r"<\|[^|<>\s]{1,60}\|>|<[^<>|\s]{1,40}>|\[[^\[\]\s]{1,30}\]")
_PLAIN = {"<s>", "</s>"}  # also what is struck through in HTML
MOST_ODD = 50  # control tokens of another form that are looked for


def _marks(kind: str, own: Iterable[str]) -> list[Wanted]:
    """Most vocabularies have hundreds of control tokens in brackets, which are found as such and then looked up."""
    texts = {*FORMS, *ENDS, *filter(_is_mark, own)} - _PLAIN
    odd = sorted(text for text in texts if not _BRACKETED.fullmatch(text))[:MOST_ODD]
    return [
        Wanted(kind, _BRACKETED, ("<", "["), accept=lambda match: match.group() in texts),
        *(Wanted(kind, re.compile(re.escape(text)), (text,)) for text in odd),
        Wanted(kind, re.compile(_HEADING), ("##",)),
    ]


def _is_mark(text: str) -> bool:
    """Whether a control token would not stand in a text by chance: some are single letters or words."""
    return len(text) > 2 and not text.isalnum() and bool(text.strip())


def _ends_nothing(match: re.Match[str]) -> bool:
    """Whether a ``</s>`` is no end of what is struck through in HTML."""
    start = match.string.rfind("\x00", 0, match.start()) + 1
    return match.string.count("<s>", start, match.start()) <= match.string.count("</s>", start, match.start())


# Characters

_HIDDEN = (
    r"\u200b\u2060-\u2064\u180e\ufeff\ufff9-\ufffb\u00ad"  # zero-width, invisible operators, anchors, soft hyphen
    r"\x01-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f"  # control characters
)
_RIGHT_TO_LEFT = r"\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufeff"
_BIDI = rf"(?<![{_RIGHT_TO_LEFT}])[\u200e\u200f\u202a-\u202e\u2066-\u2069](?![{_RIGHT_TO_LEFT}])"
_JOINERS = r"[\u200c\u200d](?=[\x00-\x7f])|(?<=[\x00-\x7f])[\u200c\u200d]"  # other scripts and emoji need them
_TAGS = r"(?<![\U0001f3f4\U000e0020-\U000e007f])[\U000e0001-\U000e007f]"  # after a black flag they name a country
_CONTROL = r"[\x01-\x08\x0b\x0c\x0e-\x1f\x7f]"
# UTF-8 that was read as Windows-1252 or Latin-1: bytes 80 to BF as those have them, and the letters that begin a
# character of two bytes; what stands in ordinary text (an accented capital before a quotation mark) is left out.
_BYTE = (
    "\u0080-\u00bf\u20ac\u201a\u0192\u201e\u2020\u2021\u02c6\u2030\u0160"
    "\u2039\u0152\u017d\u2018\u201c\u2022\u02dc\u2122\u0161\u203a\u0153\u017e\u0178"
)
_LATE = "\u2019\u201d\u2013\u2014\u2026\u00bb"
_BROKEN = (
    rf"[\u00c2\u00c3](?![\u2018\u201c\u203a\u00bb])[{_BYTE}]"
    rf"|(?:[\u00c4-\u00df][{_BYTE}{_LATE}]){{2,}}"
    rf"|\u00e2[\u20ac\u0080][{_BYTE}{_LATE}]|\u00e2\u201a\u00ac|\u00e2\u201e\u00a2|\u00ef\u00bb\u00bf|\u00ef\u00bf\u00bd"
    rf"|\u00f0\u0178[{_BYTE}{_LATE}]{{2}}|(?:[\u00e0-\u00ef][{_BYTE}{_LATE}]{{2}}){{2,}}|\ufffd"
)


def _code(char: str) -> str:
    return f"U+{ord(char):04X}"


# Secrets: forms with a mark of their own, so that a match is hardly ever anything else

SECRETS = {
    "private key": (r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----", "PRIVATE KEY"),
    "AWS key": (r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b", "AKIA", "ASIA"),
    "GitHub token": (r"\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{50,}\b", "_"),
    "GitLab token": (r"\bglpat-[A-Za-z0-9_-]{20,}", "glpat-"),
    "Hugging Face token": (r"\bhf_[A-Za-z0-9]{30,40}\b", "hf_"),
    "API key": (r"\bsk-(?:proj-|svcacct-|ant-[a-z0-9]+-)?[A-Za-z0-9_-]{32,}", "sk-"),
    "Google key": (r"\bAIza[A-Za-z0-9_-]{35}\b", "AIza"),
    "Slack token": (r"\bxox[abeoprs]-[A-Za-z0-9-]{20,}", "xox"),
    "Stripe key": (r"\b[rs]k_live_[A-Za-z0-9]{20,}\b", "k_live_"),
    "npm token": (r"\bnpm_[A-Za-z0-9]{36}\b", "npm_"),
    "PyPI token": (r"\bpypi-AgEIcHlwaS5vcmc[A-Za-z0-9_-]{50,}", "pypi-"),
    "SendGrid key": (r"\bSG\.[A-Za-z0-9_-]{22}\.[A-Za-z0-9_-]{43}\b", "SG."),
    "AWS secret": (
        r"(?i:secret_?access_?key)[\"'\s:=]{1,6}[A-Za-z0-9/+]{40}(?![A-Za-z0-9/+])",
        "_key",
        "_KEY",
        "AccessKey",
    ),
    "JSON web token": (r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}", "eyJ"),
}
FEW_LETTERS = 10  # different ones: "xxxxxxxx" stands where a secret was


def _is_secret(match: re.Match[str]) -> bool:
    """Not a word with the same beginning, nor what stands where a secret was."""
    text = match.group()
    if "PRIVATE KEY" in text:
        return True
    mixed = any(char.isdigit() for char in text) or (text != text.lower() and text != text.upper())
    return mixed and len(set(text)) >= FEW_LETTERS


_MAIL = r"\b[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}\b"


def _wanted_in_prompts(own: Sequence[str]) -> list[Wanted]:
    waiting = Wanted(
        "whole_prompt", re.compile(_WAITING, re.MULTILINE), ("Assistant:", "ASSISTANT:"), lambda _: '"Assistant:"'
    )
    return [*_marks("whole_prompt", own), waiting]


def _wanted_in_answers(own: Sequence[str]) -> list[Wanted]:
    human = Wanted("end_marker", re.compile(_HUMAN, re.MULTILINE), ("Human:",))
    end = Wanted("end_marker", re.compile("</s>"), ("</s>",), accept=_ends_nothing)
    return [*_marks("end_marker", own), human, end]


def _wanted_anywhere() -> list[Wanted]:
    may_hide = rf"(?=[{_HIDDEN}\u200c-\u200f\u202a-\u202e\u2066-\u2069\U000e0001-\U000e007f])"
    hidden = re.compile(rf"{may_hide}(?:[{_HIDDEN}]|{_BIDI}|{_JOINERS}|{_TAGS})")
    return [
        Wanted("invisible", re.compile(_CONTROL), ("",), _code),
        Wanted("invisible", hidden, (), _code),
        Wanted("mojibake", re.compile(rf"(?=[\u00c2-\u00f0\ufffd])(?:{_BROKEN})"), ()),
        *(
            Wanted("secret", re.compile(pattern), needles, lambda _, name=name: name, _is_secret)  # type: ignore[misc]
            for name, (pattern, *needles) in SECRETS.items()
        ),
        Wanted("mail", re.compile(_MAIL), ("@",), lambda _: ""),
    ]


# What is said of each kind: severity, noun, what they hold, and what to do
SAID: dict[str, tuple[Severity, str, str, str]] = {
    "secret": (
        "warning", "row", "something like a secret",
        "take them out: a model can repeat what it was trained on",
    ),
    "whole_prompt": (
        "warning", "prompt", "marks of a prompt's form",
        "give instruction and input without them: the template is put around what stands there, and marks in a text "
        "are read as plain text",
    ),
    "end_marker": (
        "warning", "answer", "marks that end an answer or begin a prompt",
        "cut them off: the end is added by itself, and the model would learn to write these out",
    ),
    "invisible": ("warning", "row", "invisible characters", "take them out, if they have no purpose"),
    "mojibake": (
        "warning", "row", "characters that were broken on the way",
        "read the original as UTF-8, or mend it with a tool such as ftfy",
    ),
    "mail": ("note", "row", "e-mail addresses", ""),
}  # fmt: skip


class Texts:
    """Looks for all of that, in as many rows as it is shown.

    Args:
        own: the control tokens of the model at hand, by name.
    """

    def __init__(self, own: Sequence[str] = ()) -> None:
        self._found: dict[str, dict[int, set[str]]] = defaultdict(dict)
        sides = (_wanted_in_prompts(own), _wanted_in_answers(own))
        self._sides = [
            _Side([*wanted, *(one for one in _wanted_anywhere() if one.needles)], self._found) for wanted in sides
        ]
        self._odd = _Side([one for one in _wanted_anywhere() if not one.needles], self._found)

    def see(self, row: Seen) -> None:
        """One more row."""
        prompts, answers = self._sides
        prompts.add(row.row, row.prompt)
        for text in row.answers:
            answers.add(row.row, text)
        for text in (row.prompt, *row.answers):
            if not text.isascii():
                self._odd.add(row.row, text)

    def findings(self) -> list[Finding]:
        """What was found, by kind."""
        for side in (*self._sides, self._odd):
            side.search()
        return [_finding(kind, rows) for kind in SAID if (rows := self._found.get(kind))]


def _finding(kind: str, found: dict[int, set[str]]) -> Finding:
    severity, noun, what, remedy = SAID[kind]
    rows = sorted(found)
    times = Counter(name for names in found.values() for name in names if name)
    often = sorted(times.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{name} in {count:,}" for name, count in often[:FIRST_NAMED]]
    told = f" ({', '.join(shown)}{', ...' if len(times) > FIRST_NAMED else ''})" if shown else ""
    hold = "holds" if len(rows) == 1 else "hold"
    said = f"{counted(len(rows), noun)} {hold} {what}{told}: {named(rows)}"
    return Finding(kind, severity, said, remedy, tuple(rows[:KEPT]), len(rows))


class _Side:
    """Texts of many rows, searched as one."""

    def __init__(self, wanted: Sequence[Wanted], found: dict[str, dict[int, set[str]]]) -> None:
        self._wanted, self._found = wanted, found
        self._texts: list[str] = []
        self._rows: list[int] = []
        self._size = 0

    def add(self, row: int, text: str) -> None:
        self._texts.append(text)
        self._rows.append(row)
        self._size += len(text)
        if self._size > AT_ONCE:
            self.search()

    def search(self) -> None:
        text = BETWEEN.join(["", *self._texts, ""])
        starts, at = [], len(BETWEEN)
        for part in self._texts:
            starts.append(at)
            at += len(part) + len(BETWEEN)
        for wanted in self._wanted:
            if wanted.needles and not any(needle in text for needle in wanted.needles):
                continue
            for match in wanted.pattern.finditer(text):
                if wanted.accept(match):
                    row = self._rows[bisect_right(starts, match.start()) - 1]
                    self._found[wanted.kind].setdefault(row, set()).add(wanted.name(match.group()))
        self._texts, self._rows, self._size = [], [], 0
