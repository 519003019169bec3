"""Which token ends a text, where the files of a model say several, or none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instil.data.panics import panics_as_errors
from instil.data.templates.marks import Marks
from instil.errors import ModelError
from instil.files import read_json_object

_MARK = re.compile(r"[<\[{|].+[>\]}|]", re.DOTALL)


def looks_like_a_mark(token: str) -> bool:
    """Whether a token is spelt as no word is: ``<|end|>``, ``[SEP]``."""
    return bool(_MARK.fullmatch(token))


def object_of(path: Path) -> dict[str, Any]:
    """What a file says; nothing if there is no such file."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = read_json_object(path, error=ModelError)
    try:
        json.dumps(found, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError) as error:
        raise ModelError(f"{path}: damaged: half of a surrogate pair in it, which no text has") from error
    return found


def added_tokens(fast: Any) -> dict[str, Any]:
    """The tokens added to a vocabulary, by their text, with their flags."""
    return {str(token): token for token in fast.get_added_tokens_decoder().values()}


def special_tokens(fast: Any) -> frozenset[str]:
    """Those of them that are flagged as special."""
    return frozenset(text for text, token in added_tokens(fast).items() if token.special)


def is_ordinary(fast: Any, token: str) -> bool:
    """Whether plain text is made of this token, so that it can be no mark: ``#`` is, ``<|endoftext|>`` is not."""
    if looks_like_a_mark(token):
        return False
    index = fast.token_to_id(token)
    with panics_as_errors():
        spelt = fast.decode([index], skip_special_tokens=False)
    texts = (token, f"a{token}", spelt, f"a{spelt}")
    return any(index in _plain_ids(fast, text) for text in texts)


def _plain_ids(fast: Any, text: str) -> list[int]:
    """Ids of a text by the vocabulary alone, as if nothing had been added to it."""
    try:
        with panics_as_errors():
            text = fast.normalizer.normalize_str(text) if fast.normalizer else text
            words = fast.pre_tokenizer.pre_tokenize_str(text) if fast.pre_tokenizer else [(text, None)]
            return [token.id for word, _ in words for token in fast.model.tokenize(word)]
    except Exception:  # a vocabulary without a token for the unknown refuses what it cannot spell
        return []


def listed_ends(folder: Path, fast: Any) -> list[tuple[str, str]]:
    """The tokens that ``generation_config.json`` and ``config.json`` call ends, with the file's name."""
    found: list[tuple[str, str]] = []
    for name in ("generation_config.json", "config.json"):
        ids = object_of(folder / name).get("eos_token_id")
        for index in ids if isinstance(ids, list) else [ids]:
            if type(index) is int and 0 <= index < 2**31 and (text := fast.id_to_token(index)) is not None:
                found.append((name, str(text)))
    return found


def end_of(
    folder: Path, fast: Any, named: str | None, marks: Marks, listed: list[tuple[str, str]], special: frozenset[str]
) -> str:
    """The token that ends a text: the tokenizer's own, else that of its chat template, else a special one."""
    if named:
        found = fast.token_to_id(named)
        if found is None:
            raise ModelError(f"{folder}: the end token {named!r} that its files name is not in its vocabulary")
        if is_ordinary(fast, named):
            raise ModelError(
                f"{folder}: its files name {named!r} (id {found}) as the end token, which is an ordinary token: every "
                f"text with {named!r} in it would end there. Name the model's own in tokenizer_config.json as eos_token"
                + (f", such as {min(special - {named}, key=fast.token_to_id)!r}" if special - {named} else "")
            )
        return named
    if marks.end and not is_ordinary(fast, marks.end):
        return marks.end
    usable = [text for _, text in listed if text in special and not is_ordinary(fast, text)]
    usable = usable or [text for _, text in listed if not is_ordinary(fast, text)]
    if usable:
        return usable[0]
    if len(special) == 1:
        return next(iter(special))
    if listed:
        name, text = listed[0]
        raise ModelError(
            f"{folder}: {name} says that texts end with id {fast.token_to_id(text)}, which is the ordinary token "
            f"{text!r}, and tokenizer_config.json names no eos_token; name it there"
        )
    raise ModelError(
        f"{folder}: no end token: no usable eos_token_id in config.json, no eos_token in tokenizer_config.json"
    )


def end_notes(
    fast: Any, eos: str, named: str | None, marks: Marks, listed: list[tuple[str, str]], special: frozenset[str]
) -> Iterator[str]:
    """One line where the files disagree on what ends an answer, or say nothing of it."""
    taken = f"answers are trained to end with {eos!r} ({fast.token_to_id(eos)})"
    if not named and eos != marks.end and all(eos != text for _, text in listed):
        yield f"its files name no end token; {taken}, the only special token there is"
    said: dict[tuple[str, ...], list[str]] = {}
    for file in dict.fromkeys(name for name, _ in listed):
        texts = tuple(text for name, text in listed if name == file)
        if eos not in texts or not all(text in special | marks.turn for text in texts):
            said.setdefault(texts, []).append(file)
    for texts, files in said.items():
        yield (
            f"{' and '.join(files)} end texts with "
            + "; ".join(
                f"{text!r} ({fast.token_to_id(text)}), "
                + (
                    "which ends an answer, too"
                    if text in special | marks.turn
                    else "an ordinary token, which ends nothing"
                )
                for text in texts
                if text != eos
            )
            + f"; {taken}"
            + (", the tokenizer's own" if eos == named else "")
        )
