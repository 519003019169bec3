"""Chat templates that put texts where they belong and do nothing else with them need not be rendered for every row.

Many templates read nothing of a message but its role, and write its text as it is. That is seen in the template's code
(`passes_texts_on`): then all conversations whose messages have the same roles are one skeleton, with texts filled in.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jinja2 import TemplateError, nodes

from instil.data.templates.sandbox import Sandbox
from instil.data.templates.template import Piece

TEXT, ROLE = "content", "role"
PLACES = frozenset(("first", "last", "index", "index0", "revindex", "revindex0", "length"))  # in a loop
KNOWN = frozenset(("messages", "loop", "add_generation_prompt", "bos_token", "eos_token", "unk_token", "pad_token"))
PLAIN = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.For, nodes.If, nodes.Name, nodes.Getattr, nodes.Getitem,
    nodes.Const, nodes.Compare, nodes.Operand, nodes.And, nodes.Or, nodes.Not, nodes.Add, nodes.Concat,
)  # fmt: skip


@functools.lru_cache(maxsize=32)
def passes_texts_on(source: str) -> bool:
    """Whether a template writes the texts of messages as they are, and nothing that it does hangs on them.

    >>> passes_texts_on("{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}")
    True
    >>> passes_texts_on("{% for m in messages %}{{ m.content|trim }}{% endfor %}")
    False
    """
    try:
        tree = Sandbox().parse(source)
    except (TemplateError, RecursionError):
        return False
    loops = list(tree.find_all(nodes.For))
    over = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}
    if not all(isinstance(node, PLAIN) for node in tree.find_all(nodes.Node)) or over & KNOWN:
        return False
    if not all(isinstance(loop.iter, nodes.Name) and loop.iter.name == "messages" and not loop.test for loop in loops):
        return False
    return all(_harmless(path, over) for path in _paths(tree, ()))


def _paths(node: nodes.Node, above: tuple[nodes.Node, ...]) -> Iterator[tuple[nodes.Node, ...]]:
    """Every node with all that it stands in, itself last."""
    here = (*above, node)
    yield here
    for child in node.iter_child_nodes():
        yield from _paths(child, here)


def _harmless(path: tuple[nodes.Node, ...], over: set[str]) -> bool:
    """Whether a node is no name, or one that is read as is allowed."""
    *above, node = path
    if not isinstance(node, nodes.Name):
        return True
    holder = above[-1]
    if node.name in over and node.ctx == "store":
        return True
    if node.name == "messages":
        if isinstance(holder, nodes.For):
            return True
        if not (isinstance(holder, nodes.Getitem) and isinstance(holder.arg, nodes.Const)):
            return False
        above, holder = above[:-1], above[-2]  # one of them by its number
    elif node.name == "loop":
        return _field(holder) in PLACES
    elif node.name not in over:
        return node.name in KNOWN
    field = _field(holder)
    if field == ROLE:
        return True
    outside = above[:-1]
    while outside and isinstance(outside[-1], nodes.Add | nodes.Concat):
        outside = outside[:-1]
    return field == TEXT and bool(outside) and isinstance(outside[-1], nodes.Output)


def _field(node: nodes.Node) -> str | None:
    if isinstance(node, nodes.Getattr):
        return node.attr
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return str(node.arg.value)
    return None


@dataclass(frozen=True, slots=True)
class Slot:
    """A piece of a skeleton: of the text of a message (by its number), or the template's; and the answer it is in."""

    piece: Piece
    message: int | None
    answer: int | None


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The pieces of all conversations with the same roles; ``answers`` are those that can be trained on."""

    slots: tuple[Slot, ...]
    answers: frozenset[int]

    def filled(self, texts: Sequence[str], weight: Callable[[int], float]) -> list[Piece]:
        """A whole row; ``weight`` says how often an answer counts."""
        pieces = []
        for slot in self.slots:
            piece = slot.piece
            text = piece.text if slot.message is None else texts[slot.message]
            if not (text or piece.answer or piece.control):
                continue
            counts = 1.0 if slot.answer is None else weight(slot.answer)
            trained = slot.answer is not None and counts > 0
            pieces.append(Piece(text, piece.control, trained, piece.answer, piece.form, counts))
        return pieces

    def asked(self, texts: Sequence[str]) -> list[Piece]:
        """All before the last answer."""
        pieces = self.filled(texts, lambda number: 0.0)
        end = next(number for number, piece in enumerate(pieces) if piece.answer)
        return [Piece(piece.text, piece.control, form=piece.form) for piece in pieces[:end]]
