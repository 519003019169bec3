"""The tokenizer inside a GGUF file, read as llama.cpp reads it (``src/llama-vocab.cpp``).

Files say less than llama.cpp makes of them: it knows by a token's text that it ends an answer or is a control token,
and by the name of a pre-tokenizer whether BOS comes first. What it infers is inferred here, so that a text becomes the
same ids here and there. One thing is not done here: a text that spells a control token does not become it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from instil.data.byte_level import ELSEWHERE, PRE_TOKENIZERS, byte_level
from instil.data.sentencepiece import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Pieces, from_scores
from instil.errors import ModelError, did_you_mean
from instil.gguf_header import read_gguf

# Texts by which llama.cpp knows that a token ends an answer.
_ENDS = (
    "<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s> <|eom_id|> "
    "<EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response> [e~[ "
    "<｜end▁of▁sentence｜>"
).split()
# Tokens with which code is filled in: the key that names one, the older key, and the texts by which it is known where
# there is neither. The last three end an answer, too.
_FILL_IN = (
    (
        "fim_pre_token_id",
        "prefix_token_id",
        "<|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE> <|code_prefix|> <|prefix|>",
    ),
    (
        "fim_suf_token_id",
        "suffix_token_id",
        "<|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF> <|code_suffix|> <|suffix|>",
    ),
    (
        "fim_mid_token_id",
        "middle_token_id",
        "<|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID> <|code_middle|> <|middle|>",
    ),
    ("fim_pad_token_id", "", "<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]"),
    ("fim_rep_token_id", "", "<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame>"),
    ("fim_sep_token_id", "", "<|file_sep|>"),
)
# Texts that say so without a key of the file.
KNOWN_ENDS = frozenset([*_ENDS, *(name for _, _, names in _FILL_IN[3:] for name in names.split())])
_ALWAYS_SHOWN = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")  # user-defined, whatever a file says


@dataclass(frozen=True, slots=True)
class GgufVocabulary:
    """A tokenizer and what its file says of it.

    Attributes:
        fast: a `tokenizers.Tokenizer`; its post-processor puts BOS in front if llama.cpp would.
        eos: the text of the end token.
        stops: texts of all others that end an answer.
        bos: the text of the token that begins a text, if there is one.
    """

    fast: Any
    eos: str
    stops: tuple[str, ...]
    bos: str | None


def read(path: Path) -> GgufVocabulary:
    """The tokenizer of a GGUF file.

    Raises:
        ModelError: the file is damaged, holds no vocabulary, or one of a kind that is not built here.
    """
    values = {
        key.removeprefix("tokenizer.ggml."): value
        for key, value in read_gguf(path).values.items()
        if key.startswith("tokenizer.ggml.")
    }
    model, pre = values.get("model"), str(values.get("pre") or "default")
    _refuse(path, model, pre)
    tokens, kinds = _tokens(path, values)
    bytes_spelled = model == "gpt2"
    assumed = (11, 11) if bytes_spelled else (1, 2)  # what llama.cpp takes where a file says nothing
    kind = PRE_TOKENIZERS[pre] if bytes_spelled else None
    begin = _id(values, "bos_token_id", tokens, assumed[0] if kind is None or kind.bos else None)
    adds_bos = bool(values.get("add_bos_token", kind is None or kind.adds_bos))
    end = _id(values, "eos_token_id", tokens, None if bytes_spelled else assumed[1])
    if end is None:
        raise ModelError(f"{path}: it names no end token (tokenizer.ggml.eos_token_id)")
    ends = _ends(values, tokens, kinds, end)
    if kind is not None:
        fast = _byte_level(path, values, pre, tokens, kinds)
    else:
        fast = from_scores(
            Pieces(tokens, _scores(path, values, len(tokens)), kinds, bool(values.get("add_space_prefix", True))),
            str(path),
        )
    if adds_bos:
        if begin is None:
            raise ModelError(f"{path}: it puts a token in front of texts and does not say which (no bos_token_id)")
        _put_first(fast, tokens[begin], begin)
    named = begin is not None and (adds_bos or kind is None or "bos_token_id" in values)
    return GgufVocabulary(
        fast,
        tokens[end],
        tuple(tokens[index] for index in sorted(ends - {end})),
        tokens[begin] if named and begin is not None else None,
    )


def _refuse(path: Path, model: Any, pre: str) -> None:
    """ModelError for the kinds that are not built here."""
    advice = "Put the model's tokenizer.json beside the file."
    if model not in ("gpt2", "llama"):
        raise ModelError(
            f"{path}: its vocabulary is of the kind {model!r}; built here are gpt2 (byte-pair) and llama "
            f"(SentencePiece). {advice}"
        )
    if model == "gpt2" and pre not in PRE_TOKENIZERS:
        reason = "which cannot be built here" if pre in ELSEWHERE else "which is not known here"
        raise ModelError(
            f"{path}: its pre-tokenizer is {pre!r}, {reason}{did_you_mean(pre, PRE_TOKENIZERS)}. {advice} "
            f"Built here: {', '.join(PRE_TOKENIZERS)}"
        )


def _tokens(path: Path, values: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    """The texts of all tokens, and their kinds as llama.cpp takes them."""
    tokens, kinds = values.get("tokens"), values.get("token_type")
    if not _are(tokens, str) or not tokens:
        raise ModelError(f"{path}: it holds no vocabulary (tokenizer.ggml.tokens)")
    if kinds is None:
        kinds = [NORMAL] * len(tokens)
    if not _are(kinds, int) or len(kinds) < len(tokens):
        raise ModelError(
            f"{path}: damaged: it does not say the kind of each of its {len(tokens):,} tokens. Fetch it again."
        )
    texts = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
    ids = {text: index for index, text in enumerate(texts)}
    if len(ids) < len(texts):
        raise ModelError(f"{path}: damaged: {len(texts) - len(ids):,} of its tokens are there twice")
    kinds = kinds[: len(texts)]
    known = [text for text in _ENDS if text in ids]
    for key, older, names in _FILL_IN:
        if key not in values and older not in values:
            known += [name for name in names.split() if name in ids][:1]
    for text in known:
        kinds[ids[text]] = CONTROL
    for text in _ALWAYS_SHOWN:
        if text in ids:
            kinds[ids[text]] = USER_DEFINED
    if "<|end|>" in ids and ids.keys() & {"<|call|>", "<|calls|>"} and ids.keys() & {"<|return|>", "<|flush|>"}:
        kinds[ids["<|end|>"]] = USER_DEFINED  # there it ends a part of an answer
    if "</s>" in ids and "<|tool_response>" in ids:
        kinds[ids["</s>"]] = NORMAL  # there it is a piece of HTML
    return texts, kinds


def _ends(values: Mapping[str, Any], tokens: Sequence[str], kinds: Sequence[int], end: int) -> set[int]:
    """The ids that end an answer: those that the file names, and those known by their texts."""
    ids = {text: index for index, text in enumerate(tokens)}
    found: set[int | None] = {ids[text] for text in _ENDS if text in ids}
    for key, _, names in _FILL_IN[3:]:
        known = [ids[name] for name in names.split() if name in ids]
        found.add(_id(values, key, tokens) if key in values else known[0] if known else None)
    found |= {end, _id(values, "eot_token_id", tokens), _id(values, "eom_token_id", tokens)}
    kept = {index for index in found if index is not None}
    return {index for index in kept if tokens[index] not in ("<|end|>", "</s>") or kinds[index] == CONTROL}


def _id(values: Mapping[str, Any], key: str, tokens: Sequence[str], assumed: int | None = None) -> int | None:
    """The id that a key names, or the one assumed where it is absent or beyond the vocabulary."""
    for index in (values.get(key), assumed):
        if isinstance(index, int) and 0 <= index < len(tokens):
            return index
    return None


def _byte_level(path: Path, values: Mapping[str, Any], pre: str, tokens: list[str], kinds: Sequence[int]) -> Any:
    from tokenizers import AddedToken

    merges = values.get("merges")
    if not _are(merges, str):
        raise ModelError(f"{path}: it holds no merges (tokenizer.ggml.merges)")
    vocabulary = {token: index for index, token in enumerate(tokens)}
    pairs = dict.fromkeys(map(_pair, merges))
    control = {token: index for index, token in enumerate(tokens) if kinds[index] in (CONTROL, UNKNOWN)}
    try:
        fast = byte_level(vocabulary, list(pairs), pre, control)
    except Exception as error:  # the library raises bare Exception for merges of what is no token
        raise ModelError(f"{path}: its vocabulary and merges do not belong together: {error}") from error
    own = [token for index, token in enumerate(tokens) if kinds[index] == USER_DEFINED]
    fast.add_tokens([AddedToken(token, special=False, normalized=False) for token in own])
    return fast


def _pair(merge: str) -> tuple[str, str]:
    """The two halves of a merge; a space at its beginning is part of the first.

    >>> _pair("Ġ the")
    ('Ġ', 'the')
    """
    cut = merge.find(" ", 1)
    return (merge[:cut], merge[cut + 1 :]) if cut > 0 else (merge, "")


def _scores(path: Path, values: Mapping[str, Any], count: int) -> list[float]:
    scores = values.get("scores")
    if not _are(scores, int | float) or len(scores) < count:
        raise ModelError(f"{path}: damaged: it does not hold a score for each of its {count:,} tokens")
    return [float(score) for score in scores[:count]]


def _are(values: Any, kind: Any) -> TypeGuard[list[Any]]:
    """Whether these are a list of such values."""
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)


def _put_first(fast: Any, text: str, index: int) -> None:
    from tokenizers.processors import TemplateProcessing

    fast.post_processor = TemplateProcessing(
        single=["bos", "$A"],
        pair=["bos", "$A", "bos:1", "$B:1"],
        special_tokens=[{"id": "bos", "ids": [index], "tokens": [text]}],
    )
