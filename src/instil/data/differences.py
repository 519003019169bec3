"""Two texts side by side: what differs between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from instil.data.words import folded, tokens

ALIKE = 0.3  # share of equal words below which marking each difference would mark everything
MOST_WORDS = 400  # difflib's time grows with their square
EXCERPT, BEFORE = 110, 30  # characters shown in a line, and of these before what differs first
HIDDEN = "\N{REPLACEMENT CHARACTER}"  # for what would steer a terminal


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of text, and whether it is marked."""

    text: str
    marked: bool = False


def marked(one: str, other: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces: words that only one of them has are marked, where most words are in both.

    >>> marked("It is red.", "It was red.")[1]
    [Piece(text='It ', marked=False), Piece(text='was', marked=True), Piece(text=' red.', marked=False)]
    """
    ours, theirs = tokens(one), tokens(other)
    if not ours or not theirs or max(len(ours), len(theirs)) > MOST_WORDS:
        return [Piece(one)], [Piece(other)]
    match = SequenceMatcher(None, [_plain(token) for token in ours], [_plain(token) for token in theirs], False)
    if match.ratio() < ALIKE:
        return [Piece(one)], [Piece(other)]
    ours_equal, theirs_equal = [False] * len(ours), [False] * len(theirs)
    for block in match.get_matching_blocks():
        ours_equal[block.a : block.a + block.size] = [True] * block.size
        theirs_equal[block.b : block.b + block.size] = [True] * block.size
    return _pieces(ours, ours_equal), _pieces(theirs, theirs_equal)


def _plain(token: str) -> str:
    return folded(token.strip())


def _pieces(tokens: Sequence[str], equal: Sequence[bool]) -> list[Piece]:
    pieces: list[Piece] = []

    def add(text: str, is_marked: bool) -> None:
        if pieces and pieces[-1].marked == is_marked:
            pieces[-1] = Piece(pieces[-1].text + text, is_marked)
        elif text:
            pieces.append(Piece(text, is_marked))

    for at, (token, same) in enumerate(zip(tokens, equal, strict=True)):
        goes_on = not same and at + 1 < len(tokens) and not equal[at + 1]
        text = token if goes_on else token.rstrip()  # the space after a marked word is not marked
        add(text, not same)
        add(token[len(text) :], False)
    return pieces


def in_a_line(pieces: Sequence[Piece], width: int = EXCERPT) -> str:
    """Pieces as one line, marked ones in «»; of a long text the part from shortly before the first mark on.

    >>> in_a_line(marked("It is red.", "It was red.")[1])
    'It «was» red.'
    """
    text = "".join(f"«{piece.text}»" if piece.marked else piece.text for piece in pieces)
    text = one_line(text)
    start = min(max(0, text.find("«") - BEFORE), max(0, len(text) - width))
    return f"{'...' if start else ''}{text[start : start + width]}{'...' if len(text) > start + width else ''}"


def one_line(text: str) -> str:
    """A text as one line, without what would steer a terminal.

    >>> one_line("It is  red.\\n")
    'It is red.'
    """
    return " ".join("".join(char if char.isprintable() or char.isspace() else HIDDEN for char in text).split())
