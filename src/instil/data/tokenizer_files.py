"""What a folder's files say of its tokenizer: the pipeline, the tokens added to it, and what ends an answer.

The files disagree in practice, and they are read as `transformers` reads them: ``tokenizer.json`` says how text
is cut, ``tokenizer_config.json`` which of its tokens are special. A token is *special* where a file says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.data import sentencepiece
from instil.data.byte_level import END_OF_TEXT, byte_level, gpt2_files
from instil.data.chat_template import Marks, marks_of, stored_template
from instil.errors import ModelError
from instil.files import read_json_object

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Vocabularies of other kinds, which are named where they are all there is.
OTHER_FILES = (
    "tekken.json", "sentencepiece.bpe.model", "spiece.model", "spm.model", "tiktoken.model", "qwen.tiktoken",
    "vocab.txt", "tokenizer.model.v3", "vocab.model",
)  # fmt: skip
GPT2_VOCABULARY = 50_257
# The classes whose vocab.json and merges.txt are read, with the pre-tokenizer and end token that they stand for.
CLASSES = {"GPT2Tokenizer": ("gpt-2", END_OF_TEXT), "Qwen2Tokenizer": ("qwen2", END_OF_TEXT)}
CLASS_OF = dict.fromkeys(("gpt2", "starcoder2"), "GPT2Tokenizer") | dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer")
_MARK = re.compile(r"[<\[{|].+[>\]}|]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """A tokenizer as its files have it.

    Attributes:
        fast: its pipeline, with all tokens that are added to it; a `tokenizers.Tokenizer`.
        eos: the token that ends a text.
        stops: other tokens that end an answer.
        marks: tokens that only a template writes, flagged as special or not.
        names: what the special tokens are called: ``bos_token`` and the like.
        notes: where files disagree, which of them was taken.
    """

    fast: Any
    eos: str
    stops: tuple[str, ...] = ()
    marks: frozenset[str] = frozenset()
    names: Mapping[str, str] | None = None
    notes: tuple[str, ...] = ()


def read_folder(folder: Path) -> TokenizerFiles:
    """The tokenizer of a model's folder.

    Raises:
        ModelError: there is none, it is of a kind that is not read here, damaged, or ends texts with ordinary text.
    """
    config = _object(folder / "tokenizer_config.json")
    notes: list[str] = []
    if (path := folder / "tokenizer.json").is_file():
        fast = _parsed(path)
        default = CLASSES.get(_class(config), ("", ""))[1]
        default = default if default and fast.token_to_id(default) is not None else ""
        _class_settings(fast, config)
        _say_ignored_bos(fast, config, notes)
    else:
        fast, default = _of_other_files(folder, config)
    names = _add_tokens(fast, folder, config)
    if default and "eos_token" not in names:
        names["eos_token"] = default
        _add(fast, [_special(default)])
    if not (folder / "tokenizer.json").is_file() and config.get("add_bos_token") is True and names.get("bos_token"):
        put_in_front(fast, [names["bos_token"]])
    special = special_tokens(fast)
    marks = marks_of(stored_template(folder, config), names, [str(token) for token in _added(fast).values()])
    listed = _listed_ends(folder, fast)
    eos = _end(folder, fast, names.get("eos_token"), marks, listed, special)
    notes += _end_notes(fast, eos, names.get("eos_token"), marks, listed, special)
    stops = [text for _, text in listed if text in special | marks.turn] + ([marks.end] if marks.end else [])
    return TokenizerFiles(fast, eos, tuple(dict.fromkeys(stops)), marks.turn, names, tuple(notes))


def gpt2_tokenizer(vocabulary: Path, merges: Path, pre: str = "gpt-2") -> Any:
    """The byte-pair encoding of ``vocab.json`` and ``merges.txt`` (OpenAI calls them encoder.json and vocab.bpe).

    Raises:
        ModelError: they are damaged.
    """
    try:
        ids = json.loads(vocabulary.read_text(encoding="utf-8"))
        lines = merges.read_text(encoding="utf-8").split("\n")
        pairs = [pair_of(line) for line in lines if line and not line.startswith("#version")]
        control = {END_OF_TEXT: ids[END_OF_TEXT]} if END_OF_TEXT in ids else {}
        if not ids or not all(isinstance(index, int) for index in ids.values()):
            raise ValueError("it has no ids")
        fast = byte_level(ids, pairs, pre, control)
    except Exception as error:  # the library raises bare Exception for merges outside the vocabulary
        raise ModelError(f"{vocabulary}: not GPT-2's vocabulary and merges: {error}") from error
    if pre == "qwen2":
        from tokenizers import normalizers

        fast.normalizer = normalizers.NFC()
    return fast


def pair_of(line: str) -> tuple[str, str]:
    """The two halves of a merge."""
    first, _, second = line.partition(" ")
    return first, second


def added_tokens(fast: Any) -> dict[str, Any]:
    """The tokens added to a vocabulary, by their text, with their flags."""
    return {str(token): token for token in _added(fast).values()}


def special_tokens(fast: Any) -> frozenset[str]:
    """Those of them that are flagged as special."""
    return frozenset(text for text, token in added_tokens(fast).items() if token.special)


def is_ordinary(fast: Any, token: str) -> bool:
    """Whether plain text is made of this token, so that it can be no mark: ``#`` is, ``<|endoftext|>`` is not."""
    index = fast.token_to_id(token)
    spelt = fast.decode([index], skip_special_tokens=False)
    texts = (token, f"a{token}", spelt, f"a{spelt}")
    return not _MARK.fullmatch(token) and any(index in _plain_ids(fast, text) for text in texts)


def _plain_ids(fast: Any, text: str) -> list[int]:
    """Ids of a text by the vocabulary alone, as if nothing had been added to it."""
    try:
        text = fast.normalizer.normalize_str(text) if fast.normalizer else text
        words = fast.pre_tokenizer.pre_tokenize_str(text) if fast.pre_tokenizer else [(text, None)]
        return [token.id for word, _ in words for token in fast.model.tokenize(word)]
    except Exception:  # a vocabulary without a token for the unknown refuses what it cannot spell
        return []


def in_front(fast: Any) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and after every text."""
    try:
        whole = list(fast.encode("a", add_special_tokens=True).ids)
        bare = list(fast.encode("a", add_special_tokens=False).ids)
    except Exception:  # see above
        return [], []
    for at in range(len(whole) - len(bare) + 1):
        if whole[at : at + len(bare)] == bare:
            return whole[:at], whole[at + len(bare) :]
    return [], []


def put_in_front(fast: Any, tokens: Sequence[str]) -> None:
    """Let the post-processor put these tokens before every text, and nothing after it."""
    text, other = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    first, second = ([{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens] for kind in (0, 1))
    known = {token: {"id": token, "ids": [fast.token_to_id(token)], "tokens": [token]} for token in tokens}
    whole = {"single": [*first, text], "pair": [*first, text, *second, other], "special_tokens": known}
    _set_part(fast, "post_processor", {"type": "TemplateProcessing", **whole})


def _set_part(fast: Any, part: str, state: Mapping[str, Any]) -> None:
    """Give a pipeline a part in the form of ``tokenizer.json``, which says more than the constructors take."""
    from tokenizers import Tokenizer as Fast

    empty = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    setattr(fast, part, getattr(Fast.from_str(json.dumps({**empty, part: state})), part))


def _object(path: Path) -> dict[str, Any]:
    """What a file says; nothing if there is no such file."""
    return read_json_object(path, error=ModelError) if path.is_file() else {}


def _parsed(path: Path) -> Any:
    from tokenizers import Tokenizer as Fast

    try:
        return Fast.from_file(str(path))
    except Exception as error:  # the library raises bare Exception for damaged files
        raise ModelError(f"{path}: not a tokenizer that can be read: {error}") from error


def _class_settings(fast: Any, config: Mapping[str, Any]) -> None:
    """``add_prefix_space`` of the classes for which it counts more than what ``tokenizer.json`` says."""
    wanted = config.get("add_prefix_space")
    if _class(config) not in CLASSES or not isinstance(wanted, bool):
        return
    state = json.loads(fast.to_str())["pre_tokenizer"] or {}
    steps = state.get("pretokenizers", [state])
    if any(step.get("type") == "ByteLevel" and step.get("add_prefix_space") != wanted for step in steps):
        for step in steps:
            if step.get("type") == "ByteLevel":
                step["add_prefix_space"] = wanted
        _set_part(fast, "pre_tokenizer", state)


def _say_ignored_bos(fast: Any, config: Mapping[str, Any], notes: list[str]) -> None:
    before, _ = in_front(fast)
    said = config.get("add_bos_token")
    if isinstance(said, bool) and said != bool(before):
        put = ", ".join(repr(fast.id_to_token(i)) for i in before) or "nothing"
        notes.append(
            f"tokenizer_config.json says add_bos_token={str(said).lower()}, tokenizer.json puts {put} before a text; "
            "taken: tokenizer.json, as transformers does"
        )


def _class(config: Mapping[str, Any]) -> str:
    found = config.get("tokenizer_class")
    return found.removesuffix("Fast") if isinstance(found, str) else ""


def _of_other_files(folder: Path, config: Mapping[str, Any]) -> tuple[Any, str]:
    """The pipeline where there is no ``tokenizer.json``, and the end token that goes without saying."""
    model_config = _object(folder / "config.json")
    kind = str(model_config.get("model_type"))
    for vocabulary, merges in (("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")):
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            name = _class(config) or CLASS_OF.get(kind, "GPT2Tokenizer" if not model_config else "")
            if name not in CLASSES:
                said = f"tokenizer_class {name!r}" if name else f"a model of type {kind!r} and no tokenizer_class"
                raise ModelError(
                    f"{folder}: {vocabulary} and {merges} go with {said}; read here are those of "
                    f"{', '.join(CLASSES)}. Put the model's tokenizer.json beside them: "
                    "transformers writes it by AutoTokenizer.from_pretrained(...).save_pretrained(...)"
                )
            pre, end = CLASSES[name]
            fast = gpt2_tokenizer(folder / vocabulary, folder / merges, pre)
            _class_settings(fast, {"tokenizer_class": name, **config})
            return fast, end
    if (path := folder / "tokenizer.model").is_file():
        fast = sentencepiece.read(path)
        return fast, next((end for end in ("</s>", "<eos>") if fast.token_to_id(end) is not None), "")
    found = [name for name in OTHER_FILES if (folder / name).is_file()]
    if kind == "gpt2" and not found:
        _check_gpt2(folder, config, model_config)
        files = gpt2_files()
        return gpt2_tokenizer(files / "encoder.json", files / "vocab.bpe"), END_OF_TEXT
    if found:
        raise ModelError(
            f"{folder}: its tokenizer is {found[0]}, which is not read here; wanted tokenizer.json (transformers "
            "writes it by AutoTokenizer.from_pretrained(...).save_pretrained(...)), tokenizer.model, or vocab.json "
            "with merges.txt"
        )
    raise ModelError(
        f"{folder}: no tokenizer found; wanted tokenizer.json, tokenizer.model, vocab.json with merges.txt, "
        "or encoder.json with vocab.bpe"
    )


def _check_gpt2(folder: Path, config: Mapping[str, Any], model_config: Mapping[str, Any]) -> None:
    """Refuse OpenAI's byte pairs for a GPT-2 that was not trained with them."""
    size = model_config.get("vocab_size", GPT2_VOCABULARY)
    padded = isinstance(size, int) and any(size == -(-GPT2_VOCABULARY // step) * step for step in (1, 8, 16, 64, 128))
    name = _class(config)
    named = name if name not in ("", "GPT2Tokenizer") else ""
    if named or not (padded or size in (50_432, 50_688, 51_200)):
        said = f"tokenizer_class {named!r}" if named else f"a vocabulary of {size!r}"
        raise ModelError(
            f"{folder}: no tokenizer found. The model is a GPT-2 with {said}, so it is not sure that its tokens are "
            f"OpenAI's {GPT2_VOCABULARY:,}; put its tokenizer.json into the folder"
        )


def _content(token: Any) -> str:
    """The text of a token, which stands in the files as text or as an object."""
    found = token.get("content") if isinstance(token, Mapping) else token
    return found if isinstance(found, str) else ""


def _special(token: Any) -> Any:
    from tokenizers import AddedToken

    told = token if isinstance(token, Mapping) else {}
    flags = {key: bool(told.get(key)) for key in ("lstrip", "rstrip", "single_word")}
    return AddedToken(_content(token), special=True, normalized=False, **flags)


def _add_tokens(fast: Any, folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Add what the files beside the vocabulary add to it, in transformers' order; the names of special tokens."""
    from tokenizers import AddedToken

    told = dict(config)
    decoder = told.get("added_tokens_decoder")
    tokens: list[tuple[int, Any]] = []
    if isinstance(decoder, Mapping):
        for index, token in decoder.items():
            if _content(token) and str(index).isdigit():
                keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
                flags = {key: bool(token[key]) for key in keys if isinstance(token, Mapping) and key in token}
                tokens.append((int(index), AddedToken(_content(token), **flags)))
    else:
        for key, value in _object(folder / "special_tokens_map.json").items():
            told.setdefault(key, value)
        special = {_content(told.get(key)) for key in NAMED} | {_content(token) for token in _extra(told)}
        for text, index in _object(folder / "added_tokens.json").items():
            if isinstance(index, int) and text:
                is_special = text in special
                tokens.append((index, AddedToken(text, special=is_special, normalized=not is_special)))
    names = {key: _content(told.get(key)) for key in NAMED if _content(told.get(key))}
    _add(fast, [token for _, token in sorted(tokens, key=lambda pair: pair[0])])
    _add(fast, [_special(told[key]) for key in names])
    _add(fast, [_special(token) for token in _extra(told) if _content(token)])
    return names


def _extra(told: Mapping[str, Any]) -> Iterable[Any]:
    """Special tokens without a name of their own, and those whose name is the model's own."""
    for key in ("extra_special_tokens", "additional_special_tokens"):
        found = told.get(key)
        if found:
            yield from found.values() if isinstance(found, Mapping) else found if isinstance(found, list) else ()
    yield from (value for key, value in told.items() if key.endswith("_token") and key not in NAMED and _content(value))


def _add(fast: Any, tokens: Iterable[Any]) -> None:
    """Add tokens one by one; those that are there already keep their flags."""
    for token in tokens:
        (fast.add_special_tokens if token.special else fast.add_tokens)([token])


def _added(fast: Any) -> dict[int, Any]:
    found: dict[int, Any] = fast.get_added_tokens_decoder()
    return found


def _listed_ends(folder: Path, fast: Any) -> list[tuple[str, str]]:
    """The tokens that ``generation_config.json`` and ``config.json`` call ends, with the file's name."""
    found: list[tuple[str, str]] = []
    for name in ("generation_config.json", "config.json"):
        ids = _object(folder / name).get("eos_token_id")
        for index in ids if isinstance(ids, list) else [ids]:
            if type(index) is int and 0 <= index < 2**31 and (text := fast.id_to_token(index)) is not None:
                found.append((name, str(text)))
    return found


def _end(
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
    if marks.end:
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


def _end_notes(
    fast: Any, eos: str, named: str | None, marks: Marks, listed: list[tuple[str, str]], special: frozenset[str]
) -> Iterator[str]:
    """One line where the files disagree on what ends an answer, or say nothing of it."""
    taken = f"answers are trained to end with {eos!r} ({fast.token_to_id(eos)})"
    if not named and eos != marks.end and all(eos != text for _, text in listed):
        yield f"its files name no end token; {taken}, the only special token there is"
    for file in dict.fromkeys(name for name, _ in listed):
        texts = [text for name, text in listed if name == file]
        if eos in texts and all(text in special | marks.turn for text in texts):
            continue
        others = ", ".join(f"{text!r} ({fast.token_to_id(text)})" for text in texts if text != eos)
        ends = any(text in special | marks.turn for text in texts if text != eos)
        kept = "which ends an answer, too" if ends else "an ordinary token, which ends nothing"
        yield f"{file} ends texts with {others}: {kept}; {taken}" + (", the tokenizer's own" if eos == named else "")
