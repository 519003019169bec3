"""What a folder's files say of its tokenizer: the pipeline, the tokens added to it, and what ends an answer.

The files disagree in practice, and they are read as `transformers` reads them: ``tokenizer.json`` says how text
is cut, ``tokenizer_config.json`` which of its tokens are special. A token is *special* where a file says so.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from instil.data import sentencepiece
from instil.data.byte_level import END_OF_TEXT, byte_level, gpt2_files
from instil.data.control_tokens import check_ids
from instil.data.end_tokens import (
    added_tokens,
    end_notes,
    end_of,
    is_ordinary,
    listed_ends,
    looks_like_a_mark,
    object_of,
    special_tokens,
)
from instil.data.panics import PANIC, panics_as_errors
from instil.data.templates.marks import marks_of
from instil.data.templates.stored import stored_template
from instil.errors import ModelError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Names of files that may hold a vocabulary of another kind, or a part of one, and those that hold none.
_VOCABULARY = re.compile(
    r"(?i).*(token|vocab|merges|bpe|spm|spiece|sentencepiece|tekken|dict\b|encoder\.json|\.model$|\.codes$).*"
)
_NO_VOCABULARY = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
GPT2_VOCABULARY = 50_257
# The classes whose vocab.json and merges.txt are read, with the pre-tokenizer and end token that they stand for.
CLASSES = {"GPT2Tokenizer": ("gpt-2", END_OF_TEXT), "Qwen2Tokenizer": ("qwen2", END_OF_TEXT)}
READ_AS_THEY_ARE = (
    "mistral",
    "phi3",
    "granite",
    "olmo2",
    "olmo3",
)  # types of models that transformers knows no class for
SPACE = "\u2581"  # stands for a space
PREFIXED = ("GPTNeoXTokenizer", "CohereTokenizer")  # those for which add_prefix_space counts, too
CLASS_OF = dict.fromkeys(("gpt2", "starcoder2"), "GPT2Tokenizer") | dict.fromkeys(("qwen2", "qwen3"), "Qwen2Tokenizer")
CHARSMAP = "precompiled_charsmap"
_INDEX = re.compile("[0-9]{1,9}")


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
    config = object_of(folder / "tokenizer_config.json")
    notes: list[str] = []
    if (path := folder / "tokenizer.json").is_file():
        fast = _parsed(path)
        default = CLASSES.get(_class(config), ("", ""))[1]
        default = default if default and fast.token_to_id(default) is not None else ""
        kind = str(object_of(folder / "config.json").get("model_type"))
        _class_settings(fast, config if _class(config) else {**config, "tokenizer_class": CLASS_OF.get(kind)})
        notes += _as_llama(fast, config, kind)
        notes += _ignored_bos(fast, config)
    else:
        fast, default = _of_other_files(folder, config)
    names = _add_tokens(fast, folder, config)
    if default and "eos_token" not in names:
        names["eos_token"] = default
        _add(fast, [_special(default)])
    if not (folder / "tokenizer.json").is_file() and config.get("add_bos_token") is True and names.get("bos_token"):
        put_in_front(fast, [names["bos_token"]])
    special = special_tokens(fast)
    marks = marks_of(stored_template(folder, config), names, list(added_tokens(fast)))
    listed = listed_ends(folder, fast)
    eos = end_of(folder, fast, names.get("eos_token"), marks, listed, special)
    notes += end_notes(fast, eos, names.get("eos_token"), marks, listed, special)
    others = {text for text in special | marks.turn if not is_ordinary(fast, text)}
    stops = [text for text in (*(text for _, text in listed), marks.end) if text in others]
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
        check_ids(ids)
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


def in_front(fast: Any) -> tuple[list[int], list[int]]:
    """The ids that the post-processor puts before and after every text."""
    for text in chain(("a",), _some_texts(fast)):  # the others only where an "a" does not do
        try:
            with panics_as_errors():
                whole = list(fast.encode(text, add_special_tokens=True).ids)
                bare = list(fast.encode(text, add_special_tokens=False).ids)
        except Exception:  # a vocabulary without a token for the unknown refuses what it cannot spell
            continue
        for at in range(len(whole) - len(bare) + 1) if bare else ():
            if whole[at : at + len(bare)] == bare:
                return whole[:at], whole[at + len(bare) :]
    return [], []


def _some_texts(fast: Any) -> Iterator[str]:
    """Texts of tokens that are not special, for a vocabulary that cannot spell just any."""
    special = special_tokens(fast)
    for index in range(min(fast.get_vocab_size(with_added_tokens=False), 2000)):
        token = fast.id_to_token(index)
        if token is not None and token not in special and not looks_like_a_mark(token):
            with panics_as_errors():
                text = str(fast.decode([index]))
            yield text


def put_in_front(fast: Any, tokens: Sequence[str]) -> None:
    """Let the post-processor put these tokens before every text, and nothing after it."""
    text, other = ({"Sequence": {"id": name, "type_id": kind}} for kind, name in enumerate("AB"))
    first, second = ([{"SpecialToken": {"id": token, "type_id": kind}} for token in tokens] for kind in (0, 1))
    known = {token: {"id": token, "ids": [fast.token_to_id(token)], "tokens": [token]} for token in tokens}
    whole = {"single": [*first, text], "pair": [*first, text, *second, other], "special_tokens": known}
    _set_part(fast, "post_processor", {"type": "TemplateProcessing", **whole})


def _part(fast: Any, name: str) -> Any:
    """A part of a pipeline in the form of ``tokenizer.json``, without writing the vocabulary; None if it has none."""
    part = getattr(fast, name)
    return None if part is None else json.loads(part.__getstate__())


def _set_part(fast: Any, part: str, state: Mapping[str, Any]) -> None:
    """Give a pipeline a part in the form of ``tokenizer.json``, which says more than the constructors take."""
    from tokenizers import Tokenizer as Fast

    empty = {"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}, "added_tokens": []}
    setattr(fast, part, getattr(Fast.from_str(json.dumps({**empty, part: state})), part))


def _parsed(path: Path) -> Any:
    from tokenizers import Tokenizer as Fast

    fast = None
    try:
        raw = path.read_bytes()
        if CHARSMAP.encode() in raw:
            for charsmap in _charsmaps(json.loads(raw)):
                sentencepiece.check_charsmap(charsmap)
        fast = Fast.from_buffer(raw)
        check_ids(fast.get_vocab(with_added_tokens=True))
        fast.encode("a", add_special_tokens=True)  # some damage is only met with in use
    except BaseException as error:  # the library raises bare Exception for damaged files, or panics
        if not isinstance(error, Exception) and type(error).__name__ != PANIC:
            raise  # a signal, such as Ctrl-C
        said = "" if fast is None or isinstance(error, ModelError) else str(error).lower()
        if "unk" in said and "token" in said:
            return fast  # it cannot spell an "a"
        raise ModelError(f"{path}: not a tokenizer that can be read: {error}") from error
    return fast


def _charsmaps(value: Any) -> Iterator[bytes]:
    """All maps of characters in a ``tokenizer.json``; those that are no base64 are left to the library."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        if key == CHARSMAP and isinstance(inner, str):
            with suppress(ValueError):
                yield base64.b64decode(inner, validate=True)
        elif isinstance(inner, dict | list):
            yield from _charsmaps(inner)


def _class_settings(fast: Any, config: Mapping[str, Any]) -> None:
    """``add_prefix_space`` of the classes for which it counts more than what ``tokenizer.json`` says."""
    wanted = config.get("add_prefix_space")
    if _class(config) not in (*CLASSES, *PREFIXED) or not isinstance(wanted, bool):
        return
    state = _part(fast, "pre_tokenizer") or {}
    steps = state.get("pretokenizers", [state])
    if any(step.get("type") == "ByteLevel" and step.get("add_prefix_space") != wanted for step in steps):
        for step in steps:
            if step.get("type") == "ByteLevel":
                step["add_prefix_space"] = wanted
        _set_part(fast, "pre_tokenizer", state)


def _as_llama(fast: Any, config: Mapping[str, Any], kind: str) -> list[str]:
    """Cut text as transformers' ``LlamaTokenizer`` does, whatever ``tokenizer.json`` says, where it is the class."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    if _class(config) != "LlamaTokenizer" or kind in READ_AS_THEY_ARE:
        return []
    pre, normalizer = (_part(fast, name) for name in ("pre_tokenizer", "normalizer"))
    said = json.dumps([pre, normalizer], ensure_ascii=False)
    if "ByteLevel" in json.dumps(pre) or SPACE not in said:
        return []
    legacy, space = bool(config.get("legacy", False)), config.get("add_prefix_space")
    scheme = "never" if space is False else "always" if legacy else "first"
    own = pre or {}
    if normalizer is None and own.get("type") == "Metaspace" and own.get("prepend_scheme") == scheme:
        return []
    fast.normalizer = normalizers.Sequence([])
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    fast.decoder = decoders.Sequence(steps if scheme == "never" else [*steps, decoders.Strip(" ", 1, 0)])
    return ["tokenizer.json cuts text otherwise than its class LlamaTokenizer; taken: the class, as transformers does"]


def _ignored_bos(fast: Any, config: Mapping[str, Any]) -> list[str]:
    """A line where ``add_bos_token`` says other than what ``tokenizer.json`` does."""
    before, _ = in_front(fast)
    said = config.get("add_bos_token")
    if not isinstance(said, bool) or said == bool(before):
        return []
    put = ", ".join(repr(fast.id_to_token(i)) for i in before) or "nothing"
    return [
        f"tokenizer_config.json says add_bos_token={str(said).lower()}, tokenizer.json puts {put} before a text; "
        "taken: tokenizer.json, as transformers does"
    ]


def _class(config: Mapping[str, Any]) -> str:
    found = config.get("tokenizer_class")
    return found.removesuffix("Fast") if isinstance(found, str) else ""


def _of_other_files(folder: Path, config: Mapping[str, Any]) -> tuple[Any, str]:
    """The pipeline where there is no ``tokenizer.json``, and the end token that goes without saying."""
    model_config = object_of(folder / "config.json")
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
    there = sorted(entry.name for entry in folder.iterdir() if entry.is_file())
    found = [name for name in there if _VOCABULARY.fullmatch(name) and name not in _NO_VOCABULARY]
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
    names = [_class(config), _class(model_config), "another tokenizer" if "auto_map" in config else ""]
    named = next((name for name in names if name not in ("", "GPT2Tokenizer")), "")
    special = {**object_of(folder / "special_tokens_map.json"), **config}
    ends = {_content(special.get(key)) for key in ("eos_token", "bos_token")} - {"", END_OF_TEXT}
    if named or ends or not (padded or size in (50_432, 50_688, 51_200)):
        said = (
            f"tokenizer_class {named!r}" if named else f"the end {min(ends)!r}" if ends else f"a vocabulary of {size!r}"
        )
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
            if _content(token) and _INDEX.fullmatch(str(index)):
                keys = ("single_word", "lstrip", "rstrip", "normalized", "special")
                flags = {key: bool(token[key]) for key in keys if isinstance(token, Mapping) and key in token}
                tokens.append((int(index), AddedToken(_content(token), **flags)))
    else:
        told |= object_of(folder / "special_tokens_map.json")
        special = {_content(told.get(key)) for key in NAMED} | {_content(token) for token in _extra(told)}
        for text, index in object_of(folder / "added_tokens.json").items():
            if isinstance(index, int) and text:
                is_special = text in special
                tokens.append((index, AddedToken(text, special=is_special, normalized=not is_special)))
    if not _content(told.get("eos_token")):  # transformers would know no end
        told["eos_token"] = object_of(folder / "special_tokens_map.json").get("eos_token")
    names = {key: _content(told.get(key)) for key in NAMED if _content(told.get(key))}
    _add(fast, [token for _, token in sorted(tokens, key=lambda pair: pair[0])])
    moved = [(str(token), index) for index, token in tokens if fast.token_to_id(str(token)) != index]
    if moved:
        raise ModelError(
            f"{folder}: its files give {moved[0][0]!r} the id {moved[0][1]:,}, which would be "
            f"{fast.token_to_id(moved[0][0]):,} in the order of the tokens; the vocabulary beside it is another"
        )
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
