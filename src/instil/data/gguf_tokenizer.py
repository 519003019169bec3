"""A tokenizer put into a GGUF file: what its header says of it, in llama.cpp's words.

llama.cpp knows a byte-level vocabulary's way of cutting text into words by a name; it is found by comparing the regular
expressions of ``tokenizer.json`` with those of `PRE_TOKENIZERS`. A byte-pair encoding with U+2581 for spaces becomes a
SentencePiece vocabulary, whose scores are the order of the merges.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from instil.data.byte_level import GPT2_WORDS, PRE_TOKENIZERS, WRITTEN_ELSEWHERE, plain_pattern
from instil.data.gguf_vocabulary import KNOWN_ENDS
from instil.data.sentencepiece import BYTE, CONTROL, NORMAL, SPACE, UNKNOWN, UNUSED, USER_DEFINED
from instil.errors import ModelError

ADVICE = "Use --to hf."
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_PUNCTUATION = {"Contiguous": r"[\p{P}\$\+<=>\^~\|`]+", "Isolated": r"[\p{P}!-/:-@\[-`{-~]"}
# What is encoded by the tokenizer and by the file it was written to.
AWKWARD = (
    "", " ", "  ", "Hello, world!", " a  b   c\td\n\n\ne \n f\r\n", "It's 1 of 12 and 123, 1234567.", "we'LL don'T I'm",
    "naïve café ÉCOLE über Straße", "Привет, мир! Ελληνικά", "漢字かなカナ 한국어 中文123", "🙂👩‍👩‍👧 ½ ² ١٢٣", "नमस्ते",
    "def f(x):\n    return x_1 == 'y' # ...\n\n\n", "snake_case camelCase HTMLParser", "https://a.org/b?c=d&e=%20",
    "<|im_start|>user\n<think></think><s></s>[INST]", "      6 spaces", "$5.00 -- (x|y) <= {z}; ~/`^", "a\u00a0b",
)  # fmt: skip


def gguf_values(
    fast: Any, *, eos_id: int, bos_id: int | None, stop_ids: Collection[int], size: int, chat_template: str
) -> dict[str, Any]:
    """The values of a header, by their keys.

    Args:
        fast: a `tokenizers.Tokenizer`.
        eos_id: the end token that the model says.
        bos_id: the token that begins a text, if there is one; whether it comes first, the post-processor says.
        stop_ids: all that end an answer.
        size: how many rows the model's embedding has; rows beyond the vocabulary are named and never used.
        chat_template: in Jinja.

    Raises:
        ModelError: llama.cpp has no words for this tokenizer.
    """
    state = json.loads(fast.to_str())
    model = state["model"]
    if model["type"] != "BPE":
        raise ModelError(f"a GGUF file holds byte-pair tokenizers, and this one is {model['type']}. {ADVICE}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise ModelError(f"this tokenizer has {key}={model[key]!r}, for which GGUF has no words. {ADVICE}")
    tokens, kinds = _tokens(fast, state, size)
    first = list(fast.encode("", add_special_tokens=True).ids)
    if len(first) > 1 or (first and bos_id not in (None, first[0])):
        raise ModelError(
            f"this tokenizer puts {[tokens[index] for index in first]} around a text; GGUF has words for one token in "
            f"front. {ADVICE}"
        )
    begin = first[0] if first else bos_id
    values = {
        **(_sentencepiece(state, tokens, kinds) if _marks_spaces(state) else _byte_level(state)),
        "tokens": tokens,
        "token_type": kinds,
        "bos_token_id": eos_id if begin is None else begin,
        "eos_token_id": eos_id,
        "padding_token_id": eos_id,
        "add_bos_token": bool(first),
        "add_eos_token": False,
        **_ends(tokens, {*stop_ids} - {eos_id}),
    }
    said = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return {**said, "tokenizer.chat_template": chat_template}


def _tokens(fast: Any, state: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Texts and kinds of all ids; those that no token has are named as llama.cpp's converter names them."""
    vocabulary = fast.get_vocab(with_added_tokens=True)
    control = {token["content"] for token in state["added_tokens"] if token["special"]}
    # no row can have a control token beyond the table, such as that of an image
    vocabulary = {token: index for token, index in vocabulary.items() if index < size or token not in control}
    texts = {index: token for token, index in vocabulary.items()}
    if len(texts) < len(vocabulary) or max(texts) >= size:
        raise ModelError(
            f"this tokenizer has {len(vocabulary):,} tokens up to the id {max(texts):,}, and the model embeds "
            f"{size:,}; they do not belong together"
        )
    tokens = [texts.get(index, f"[PAD{index}]") for index in range(size)]
    kinds = [NORMAL if index in texts else UNUSED for index in range(size)]
    for token in state["added_tokens"]:
        special = token["special"] or token["content"] in KNOWN_ENDS  # which llama.cpp takes for control tokens
        if not special and (token["lstrip"] or token["rstrip"] or token["single_word"]):
            raise ModelError(
                f"the token {token['content']!r} takes white space around it, or stands for whole words only, for "
                f"which GGUF has no words. {ADVICE}"
            )
        if token["id"] < size:
            kinds[token["id"]] = CONTROL if special else USER_DEFINED
    return tokens, kinds


def _ends(tokens: Sequence[str], others: set[int]) -> dict[str, int]:
    """Ids that end an answer, of which llama.cpp does not know it by their texts."""
    named = sorted(index for index in others if tokens[index] not in KNOWN_ENDS)
    if len(named) > 2:
        raise ModelError(
            f"{len(named) + 1} tokens end an answer ({', '.join(tokens[index] for index in named)}, ...); GGUF has "
            f"words for three. {ADVICE}"
        )
    return dict(zip(("eot_token_id", "eom_token_id"), named, strict=False))


def _byte_level(state: dict[str, Any]) -> dict[str, Any]:
    model = state["model"]
    patterns = tuple(_patterns(state["pre_tokenizer"]))
    _check_normalizer(state["normalizer"])
    found = [name for name, kind in PRE_TOKENIZERS.items() if tuple(map(plain_pattern, kind.patterns)) == patterns]
    found.sort(key=lambda name: PRE_TOKENIZERS[name].ignore_merges != bool(model.get("ignore_merges")))
    if not found:
        raise ModelError(
            f"llama.cpp has no name for the way in which this tokenizer cuts text into words: {', '.join(patterns)}. "
            f"{ADVICE}"
        )
    if not model["merges"]:
        raise ModelError(f"this tokenizer has no merges, without which llama.cpp reads no vocabulary. {ADVICE}")
    return {"model": "gpt2", "pre": found[0], "merges": [_joined(merge) for merge in model["merges"]]}


def _joined(merge: Any) -> str:
    return merge if isinstance(merge, str) else " ".join(merge)


def _patterns(step: dict[str, Any] | None) -> Iterator[str]:
    """The regular expressions by which a pre-tokenizer cuts, in their plain form."""
    kind = "nothing" if step is None else step["type"]
    if step is not None and kind == "Sequence":
        for part in step["pretokenizers"]:
            yield from _patterns(part)
        return
    if step is not None and kind == "ByteLevel" and not step["add_prefix_space"]:
        if step["use_regex"]:
            yield GPT2_WORDS
        return
    if step is not None and kind == "Digits":
        yield r"\p{N}" if step["individual_digits"] else r"\p{N}+"
        return
    if step is not None and kind == "Punctuation" and step["behavior"] in _PUNCTUATION:
        yield _PUNCTUATION[step["behavior"]]
        return
    if (
        step is not None
        and kind == "Split"
        and (step["behavior"], step["invert"])
        in (
            ("Isolated", False),
            ("Isolated", True),
            ("Removed", True),  # of what lies between the matches, where there is nothing
        )
    ):
        (pattern,) = step["pattern"].values()
        pattern = pattern if "Regex" in step["pattern"] else re.escape(pattern)
        pattern = plain_pattern(pattern)
        yield WRITTEN_ELSEWHERE.get(pattern, pattern)
        return
    raise ModelError(f"this tokenizer cuts text into words by {step}, for which llama.cpp has no name. {ADVICE}")


def _check_normalizer(step: dict[str, Any] | None) -> None:
    """NFC alone, which llama.cpp leaves out: nearly all text is in that form already."""
    for part in [] if step is None else step["normalizers"] if step["type"] == "Sequence" else [step]:
        if part["type"] != "NFC":
            raise ModelError(f"this tokenizer changes text by {part}, for which GGUF has no words. {ADVICE}")


def _marks_spaces(state: dict[str, Any]) -> bool:
    return bool(state["model"].get("byte_fallback")) or f'"{SPACE}"' in json.dumps(
        [state["normalizer"], state["pre_tokenizer"]], ensure_ascii=False
    )


def _sentencepiece(state: dict[str, Any], tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Scores in the order of merges; changes tokens and kinds to those of SentencePiece."""
    model = state["model"]
    space_first = _space_first(state)
    unknown = model.get("unk_token")
    for index, token in enumerate(tokens):
        if token == unknown:
            kinds[index] = UNKNOWN
        elif kinds[index] == NORMAL and _BYTE.fullmatch(token):
            kinds[index] = BYTE
        elif kinds[index] == USER_DEFINED:
            tokens[index] = token.replace(SPACE, " ")  # llama.cpp looks for them before it marks spaces
    if len(set(tokens)) < len(tokens) or kinds.count(BYTE) != 256:
        raise ModelError(
            f"this tokenizer has {kinds.count(BYTE)} tokens for bytes, where a GGUF file must have 256. {ADVICE}"
        )
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        ranks.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), rank)
    scores = []
    for index, token in enumerate(tokens):
        last = -float(len(model["merges"]) + index)  # of what no merge makes
        scores.append(-float(ranks[token]) if token in ranks else last if kinds[index] == NORMAL else 0.0)
    said: dict[str, Any] = {"model": "llama", "pre": "default", "scores": scores, "add_space_prefix": space_first}
    return said if unknown is None else {**said, "unknown_token_id": tokens.index(unknown)}


def _space_first(state: dict[str, Any]) -> bool:
    """Whether a space is put in front of a text.

    Raises:
        ModelError: something else is done to it, too.
    """
    normalizer, splitter = state["normalizer"], state["pre_tokenizer"]
    steps = (
        [] if normalizer is None else normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    )
    replaced = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if splitter is not None and splitter["type"] == "Split" and splitter["pattern"] == {"String": " "}:
        splitter = None  # spaces are marked by then, so that it cuts nothing
    if splitter is None and steps == [replaced]:
        return False
    if splitter is None and steps == [{"type": "Prepend", "prepend": SPACE}, replaced]:
        return True
    marks = splitter is not None and splitter["type"] == "Metaspace" and splitter["replacement"] == SPACE
    if splitter is not None and marks and not steps and not splitter.get("split", True):
        return bool(splitter["prepend_scheme"] != "never")
    raise ModelError(
        f"this tokenizer changes text by {normalizer} and cuts it by {splitter}, for which GGUF has no words. {ADVICE}"
    )
