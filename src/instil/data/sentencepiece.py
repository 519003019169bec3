"""SentencePiece vocabularies (Kudo and Richardson, 2018): the file ``tokenizer.model``, and merges from scores.

The file is a protocol buffer; the few fields that matter are read here, so that nothing need be installed for it.
Control tokens are flagged special, and never come out of text; user-defined ones are single tokens in any text.

Two things differ from SentencePiece itself: no space is put in front of a text that is nothing but a user-defined
token; and where a file maps characters (``nmt_nfkc``; Llama's, Mistral's and Gemma's map none), combining marks behind
such a character are lost, as they are with `tokenizers` and so with transformers.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from instil.errors import ModelError

SPACE = "▁"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # kinds of tokens, here and in GGUF
UNIGRAM, BPE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types of protocol buffers


@dataclass(frozen=True, slots=True)
class Pieces:
    """A vocabulary with scores: the higher a token's score, the earlier it is made.

    Attributes:
        tokens: their texts, with U+2581 for a space.
        scores: one for each.
        kinds: of each.
        space_first: whether a space is put in front of a text.
    """

    tokens: Sequence[str]
    scores: Sequence[float]
    kinds: Sequence[int]
    space_first: bool

    def of(self, *kinds: int) -> list[str]:
        """The tokens of these kinds, in order of their ids."""
        return [token for token, kind in zip(self.tokens, self.kinds, strict=True) if kind in kinds]


def read(path: Path) -> Any:
    """A `tokenizers.Tokenizer` that gives SentencePiece's ids.

    Raises:
        ModelError: the file is damaged, or of a kind that is not built here.
    """
    from tokenizers import Regex, normalizers

    try:
        whole = path.read_bytes()
        pieces, trainer, normalizer = _model(whole)
        if not trainer or UNKNOWN not in pieces.kinds or NORMAL not in pieces.kinds:
            raise ValueError("it says nothing of its kind, or has no tokens")
        if normalizer.get(2):
            check_charsmap(normalizer[2])
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path}: not a model of SentencePiece, or cut off ({error}). Fetch it again.") from error
    kind = trainer.get(3, UNIGRAM)
    if kind not in (UNIGRAM, BPE):
        raise ModelError(
            f"{path}: a vocabulary of whole words or single characters; read here are those of byte-pair and unigram "
            "kind. Put the model's tokenizer.json beside it."
        )
    if trainer.get(24, 0) or not normalizer.get(5, 1):
        raise ModelError(
            f"{path}: it keeps white space behind words, or does not mark it, which is not read here. "
            "Put the model's tokenizer.json beside it."
        )
    falls_back = bool(trainer.get(35, 0))
    if kind == BPE:
        fast = _byte_pair(pieces, byte_fallback=falls_back, where=str(path))
    else:
        fast = _unigram(pieces, byte_fallback=falls_back)
    steps: list[Any] = []
    if normalizer.get(2):
        steps.append(normalizers.Precompiled(normalizer[2]))
    if normalizer.get(4, 1):  # runs of spaces become one, and those at the ends go
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    own = pieces.of(USER_DEFINED)
    if pieces.space_first:  # of the whole text; such a token by itself stays what it is
        alone = "|".join(re.escape(token) for token in own)
        not_alone = rf"(?!(?:{alone})\z)" if own else ""
        steps.append(normalizers.Replace(Regex(rf"\A{not_alone}(?=[\s\S])"), SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    fast.normalizer = normalizers.Sequence(steps)
    normal = {token for token in own if fast.normalizer.normalize_str(token) == token}
    if kind == BPE:
        _add_tokens(fast, pieces, own, normal)
    else:  # there they only weigh more than others
        _add_tokens(fast, pieces, [token for token in own if token not in normal])
    return fast


def from_scores(pieces: Pieces, where: str) -> Any:
    """A byte-pair encoding whose merges are made by score, as llama.cpp makes them.

    Every part of a text between user-defined tokens begins with a space, if any does. Characters that are no tokens
    become their bytes.

    Args:
        pieces: the vocabulary.
        where: the file, for messages.

    Raises:
        ModelError: the scores do not say which of two tokens is made first.
    """
    from tokenizers import normalizers

    fast = _byte_pair(pieces, byte_fallback=True, where=where)
    spaces = [normalizers.Replace(" ", SPACE)]
    fast.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), *spaces] if pieces.space_first else spaces)
    _add_tokens(fast, pieces, pieces.of(USER_DEFINED))
    return fast


def _byte_pair(pieces: Pieces, *, byte_fallback: bool, where: str) -> Any:
    from tokenizers import Tokenizer as Fast
    from tokenizers import models

    unknown = pieces.of(UNKNOWN)
    model = models.BPE(
        vocab={token: index for index, token in enumerate(pieces.tokens)},
        merges=list(_merges(pieces, where)),
        unk_token=unknown[0] if unknown else None,
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )
    return Fast(model)


def _unigram(pieces: Pieces, *, byte_fallback: bool) -> Any:
    """Control tokens, and those that stand for bytes, would come out of text: so their spellings are cut in two."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    least = min(score for score, kind in zip(pieces.scores, pieces.kinds, strict=True) if kind == NORMAL)
    own = -0.1  # the score of user-defined ones there: better than that of any other
    vocabulary = [
        (token, score if kind == NORMAL else own if kind == USER_DEFINED else least)
        for token, score, kind in zip(pieces.tokens, pieces.scores, pieces.kinds, strict=True)
    ]
    fast = Fast(models.Unigram(vocabulary, unk_id=pieces.kinds.index(UNKNOWN), byte_fallback=byte_fallback))
    spelled = [token for token in pieces.of(CONTROL, UNKNOWN, BYTE, UNUSED) if len(token) > 1]
    cut = "|".join(f"{re.escape(token[0])}(?={re.escape(token[1:])})" for token in spelled)
    fast.pre_tokenizer = pre_tokenizers.Split(Regex(cut), behavior="isolated") if cut else None
    return fast


def _add_tokens(fast: Any, pieces: Pieces, own: Sequence[str], normal: Collection[str] = ()) -> None:
    """The tokens taken out of a text beforehand, of its normal form or as it is, and how white space is taken back."""
    from tokenizers import AddedToken, decoders

    back = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence([*back, decoders.Strip(" ", 1, 0)] if pieces.space_first else back)
    control = pieces.of(CONTROL, UNKNOWN)
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    fast.add_tokens([AddedToken(token, special=False, normalized=token in normal) for token in own])


def _merges(pieces: Pieces, where: str) -> Iterator[tuple[str, str]]:
    """Every pair of tokens whose joined text is a token, in the order of its score.

    Control tokens, and those that stand for bytes, are never made of text: there SentencePiece and this part with
    llama.cpp, which would make them.
    """
    known = {
        token: score
        for token, score, kind in zip(pieces.tokens, pieces.scores, pieces.kinds, strict=True)
        if kind in (NORMAL, USER_DEFINED, UNUSED)
    }
    for token in known:
        lost = _lost(token, known)
        if lost:
            raise ModelError(
                f"{where}: its token {token!r} is made of {lost!r}, which is no token itself, and cannot be made here. "
                "Put the model's tokenizer.json beside it."
            )
    made = [
        (-known[token], -len(first), index, first, second)
        for index, token in enumerate(pieces.tokens)
        if token in known and len(token) > 1
        for first, second in _halves(token, known)
    ]
    made.sort()  # of equal scores the longest beginning comes first: runs of spaces grow from the left
    for _, tied in groupby(made, key=lambda entry: entry[0]):
        pairs = [(first, second) for *_, first, second in tied]
        unsure = _unsure(pairs)
        if unsure:
            raise ModelError(
                f"{where}: its tokens {unsure[0]!r} and {unsure[1]!r} have one score, so that scores do not say what "
                "words are made of. Put the model's tokenizer.json beside it."
            )
        yield from pairs


def _unsure(pairs: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """Two tokens of one score that can want the same part of a text, of which the later here comes first there.

    There it is the one further left. Runs of one character are made alike.
    """
    ranks: dict[str, tuple[int, str]] = {}
    for rank, (first, second) in enumerate(pairs):
        ranks.setdefault(first, (rank, first + second))
    for rank, (first, second) in enumerate(pairs):
        earlier, other = ranks.get(second, (rank, ""))
        token = first + second
        if earlier < rank and other != token and len({*token, *other}) > 1:
            return token, other
    return None


def _lost(token: str, known: Collection[str]) -> str:
    """A character that is no token and from which, with a token or another such, this one would be made there."""
    for at in (1, len(token) - 1) if len(token) > 1 else ():
        first, second = token[:at], token[at:]
        for part, other in ((first, second), (second, first)):
            if len(part) == 1 and part not in known and (other in known or len(other) == 1):
                return part
    return ""


def _halves(token: str, known: Collection[str]) -> list[tuple[str, str]]:
    """The pairs of tokens that join to this one."""
    cuts = ((token[:at], token[at:]) for at in range(1, len(token)))
    return [(first, second) for first, second in cuts if first in known and second in known]


def _model(whole: bytes) -> tuple[Pieces, dict[int, Any], dict[int, Any]]:
    """The vocabulary, and the fields of the specifications of trainer and normalizer, by their numbers."""
    tokens, scores, kinds = [], [], []
    specifications: dict[int, dict[int, Any]] = {2: {}, 3: {}}
    for number, value in _fields(whole):
        if number == 1:
            piece = dict(_fields(value))
            tokens.append(piece[1].decode("utf-8"))
            scores.append(struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0)
            kinds.append(piece.get(3, NORMAL))
        elif number in specifications:
            specifications[number] = dict(_fields(value))
    if not all(map(math.isfinite, scores)):
        raise ValueError("a score of a token is no number")
    if not tokens or UNKNOWN not in kinds or len(set(tokens)) < len(tokens):
        raise ValueError("it holds no vocabulary, or a damaged one")
    space_first = bool(specifications[3].get(3, 1))
    return Pieces(tokens, scores, kinds, space_first), specifications[2], specifications[3]


def check_charsmap(raw: bytes) -> None:
    """Look at a map of characters before `tokenizers` does, which believes the lengths in it.

    It is the length of a trie (four bytes, little-endian), the trie, whose units have four bytes, and the texts.

    Raises:
        ValueError: it is damaged.
    """
    size = int.from_bytes(raw[:4], "little") if len(raw) >= 4 else -1
    if size < 0 or size % 4 or 4 + size > len(raw):
        raise ValueError("its map of characters is cut off")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Numbers and values of a message: whole numbers, or bytes."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _BYTES:
            size, at = _varint(message, at)
        elif wire in (_FIXED32, _FIXED64):
            size = 4 if wire == _FIXED32 else 8
        else:
            raise ValueError(f"a field of the wire type {wire}")
        if at + size > len(message):
            raise ValueError("it ends in the middle of a field")
        yield number, message[at : at + size]
        at += size


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError("a number without an end")
