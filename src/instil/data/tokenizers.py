"""Text to ids and back, always with a user's text as plain text.

`FastTokenizer` is any of them through Hugging Face's `tokenizers`: read from a folder (`tokenizer_files.py`), or built
from GPT-2's two files or from the vocabulary inside a GGUF file. It never turns text into a control token: those
come from a template (`Piece`) or from `eos_id`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

from instil.data import gguf_vocabulary
from instil.data.byte_level import END_OF_TEXT, gpt2_files
from instil.data.control_tokens import Cut, Pipeline, check_ids
from instil.data.end_tokens import is_ordinary, special_tokens
from instil.data.panics import panics_as_errors
from instil.data.templates import TEMPLATES
from instil.data.token_bytes import byte_characters, spelled
from instil.data.tokenizer_files import gpt2_tokenizer, in_front, put_in_front, read_folder
from instil.errors import ModelError
from instil.files import json_text

_HALF = re.compile("[\ud800-\udfff]")


class Tokenizer(Protocol):
    """What the rest of the house asks of a tokenizer."""

    eos_id: int
    stop_ids: frozenset[int]  # the end token, and any other that ends an answer
    eos: str  # the end token by its name
    begin_ids: tuple[int, ...]  # what every text begins with: a beginning-of-sequence token, or nothing
    begin: tuple[str, ...]  # the same by their names
    bos_id: int | None  # the token that is called the beginning, whether texts begin with it or not
    notes: tuple[str, ...]  # what is to be said of how its files were read
    names: Mapping[str, str]  # what its special tokens are called: ``bos_token`` and the like
    vocab_size: int  # number of ids, control tokens included
    largest_id: int
    exact: bool  # whether plain ASCII comes back as it was

    @property
    def control_tokens(self) -> frozenset[str]:
        """Names of the tokens that no text is made of."""

    @property
    def hash(self) -> str:
        """Of all that shapes ids."""

    def spells(self, text: str) -> bool:
        """Whether a text is known to come back as it was; if not, it may do so all the same."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text, without `begin_ids`; names of control tokens inside it are plain text too."""

    def cut(self, parts: Sequence[tuple[str, bool]]) -> Cut:
        """Ids of a row, cut as one text: parts of plain text, and control tokens (True) by their names.

        An empty name is the end token. Without `begin_ids`.

        Raises:
            ModelError: the vocabulary has no such token.
        """

    def cut_many(self, rows: Sequence[Sequence[tuple[str, bool]]]) -> list[Cut]:
        """`cut` of many rows at once, which is quicker.

        Raises:
            ModelError: as `cut`.
        """

    def by_words(self, parts: Sequence[tuple[str, bool]], alone: Sequence[int] = ()) -> Cut | None:
        """`cut` where it can be had word by word, which is quickest, else None.

        So it is where what comes before the parts ``alone``, by their numbers, has other ids by itself.

        Raises:
            ModelError: as `cut`.
        """

    def marks_in(self, text: str) -> list[tuple[str, bool]]:
        """A template's text cut into plain text and the names of control tokens (True)."""

    def beyond(self, size: int) -> list[str]:
        """Ordinary tokens with ids of ``size`` or more, which no table of so many rows can hold."""

    def control_id(self, name: str) -> int:
        """The id of a control token.

        Raises:
            ModelError: the vocabulary has no such token.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are left out, broken UTF-8 becomes U+FFFD."""

    def token(self, index: int) -> str:
        """The text of one token, as its vocabulary has it."""

    def shown(self, index: int) -> str:
        """What a token adds to a text; the name of one that adds nothing."""

    def bytes_of(self, index: int) -> bytes | None:
        """What a token adds to the UTF-8 of a text, whole characters or not; None: a control token, or none at all."""

    def saved(self) -> Any:
        """The `tokenizers.Tokenizer` with which others give texts the ids that they have here."""

    def save(self, folder: Path) -> None:
        """Write the files with which ``transformers`` opens the same tokenizer."""


class FastTokenizer:
    """Any tokenizer that Hugging Face's `tokenizers` can hold.

    Args:
        tokenizer: the pipeline, whose post-processor says what every text begins with.
        eos: the token that ends a text.
        stop_ids: other tokens that end an answer.
        marks: tokens that only a template writes, though they are not flagged as special.
        names: what its special tokens are called: ``bos_token`` and the like.
        notes: what is to be said of how its files were read.
    """

    def __init__(
        self,
        tokenizer: Any,
        eos: str,
        stop_ids: Sequence[int] = (),
        *,
        marks: Iterable[str] = (),
        names: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        found = tokenizer.token_to_id(eos)
        if found is None:
            raise ModelError(f"the end token {eos!r} that the model's files name is not in its vocabulary")
        self.eos, self.eos_id = eos, int(found)
        self.stop_ids = frozenset({self.eos_id, *stop_ids})
        before, after = in_front(tokenizer)
        self.begin_ids = tuple(before)
        self.begin = tuple(str(tokenizer.id_to_token(index)) for index in before)
        self.names: Mapping[str, str] = dict(names or {})
        self._ids: dict[str, int] = tokenizer.get_vocab(with_added_tokens=True)
        check_ids(self._ids)
        self.vocab_size, self.largest_id = len(self._ids), max(self._ids.values())
        self.bos_id = before[0] if before else self._ids.get(self.names.get("bos_token", ""))
        if after:  # texts that are gone on with have no end yet
            put_in_front(tokenizer, self.begin)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._state: dict[str, Any] = json.loads(tokenizer.to_str())
        self.notes = (*notes, *_without_dropout(self._state))
        self._control = self._control_tokens(tokenizer, marks)
        longest_first = sorted(self._control, key=len, reverse=True)
        self._marks = re.compile("(" + "|".join(re.escape(name) for name in longest_first) + ")")
        for token in self._state["added_tokens"]:
            # one that is ordinary text, such as a "!" to pad with, is cut as transformers does, and stays in an answer
            token["special"] = token["content"] in self._control
            if token["content"] in self._control:
                token["normalized"] &= _normalized(tokenizer, token["content"]) == token["content"]
        self.exact = _is_exact(self._state)
        self._lacking = _lacking_bytes(self._state) if self.exact else None
        if not self.exact and self._state["model"].get("unk_token") == eos:
            raise ModelError(
                f"the end token {eos!r} is also what this vocabulary has for all that it cannot spell, so that texts "
                "would end there; name another in tokenizer_config.json as eos_token"
            )
        self._views: dict[frozenset[str], Pipeline] = {}
        self._tokenizer = self._view(frozenset()).fast

    def _control_tokens(self, tokenizer: Any, marks: Iterable[str]) -> frozenset[str]:
        """All that is never made from text: flagged, named, or written by a template as a mark between turns."""
        usual = {name for template in TEMPLATES.values() for name in template.control_tokens}
        stops = {str(tokenizer.id_to_token(index)) for index in self.stop_ids}
        known = {*special_tokens(tokenizer), *self.names.values(), *marks, *usual, *stops, *self.begin}
        return frozenset(
            name for name in known if tokenizer.token_to_id(name) is not None and not is_ordinary(tokenizer, name)
        )

    def __getstate__(self) -> dict[str, Any]:
        """Without pipelines, which are made again where they are asked for."""
        return {**self.__dict__, "_views": {}, "_tokenizer": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._tokenizer = self._view(frozenset()).fast

    def _view(self, more: frozenset[str]) -> Pipeline:
        """The pipeline with some more control tokens, those of a template."""
        more -= self._control
        if more not in self._views:
            self._views[more] = Pipeline(self._state, self._control | more)
        return self._views[more]

    @property
    def control_tokens(self) -> frozenset[str]:
        return self._control

    @cached_property
    def hash(self) -> str:
        shaping = [self._state, self.eos, sorted(self.stop_ids), self.begin_ids, sorted(self._control)]
        return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:16]

    def spells(self, text: str) -> bool:
        if self._lacking is None:
            return False
        try:
            written = text.encode("utf-8")
        except UnicodeEncodeError:  # half of a surrogate pair
            return False
        return len(written.translate(None, self._lacking)) == len(written)

    def encode(self, text: str) -> list[int]:
        return self.cut([(text, False)]).ids

    def cut(self, parts: Sequence[tuple[str, bool]]) -> Cut:
        names, whole = self._named(parts)
        return self._view(frozenset(names)).cut(whole, [self.control_id(name) for name in names])

    def cut_many(self, rows: Sequence[Sequence[tuple[str, bool]]]) -> list[Cut]:
        cuts: dict[int, Cut] = {}
        asked: dict[frozenset[str], dict[int, tuple[list[tuple[str, bool]], list[int]]]] = {}
        for number, parts in enumerate(rows):
            names, whole = self._named(parts)
            # Those of one view in their order, in which a row comes after its prompt.
            of_view = asked.setdefault(frozenset(names) - self._control, {})
            of_view[number] = whole, [self.control_id(name) for name in names]
        for names_of_view, some in asked.items():
            cuts |= zip(some, self._view(names_of_view).cut_many(list(some.values())), strict=True)
        return [cuts[number] for number in range(len(rows))]

    def by_words(self, parts: Sequence[tuple[str, bool]], alone: Sequence[int] = ()) -> Cut | None:
        names, whole = self._named(parts)
        return self._view(frozenset(names)).by_words(whole, map(self.control_id, names), alone)

    def _named(self, parts: Sequence[tuple[str, bool]]) -> tuple[list[str], list[tuple[str, bool]]]:
        """The control tokens of a row, and its parts with them by their names and text that has UTF-8."""
        names = [text or self.eos for text, control in parts if control]
        return names, [(text or self.eos if control else _valid(text), control) for text, control in parts]

    def control_id(self, name: str) -> int:
        found = self._ids.get(name)
        if found is None:
            raise ModelError(
                f"this model's vocabulary has no control token {name!r}; choose another template, "
                "such as --set data.template=alpaca, which needs none"
            )
        return found

    def decode(self, ids: Sequence[int]) -> str:
        with panics_as_errors():
            return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def token(self, index: int) -> str:
        return str(self._tokenizer.id_to_token(index))

    def marks_in(self, text: str) -> list[tuple[str, bool]]:
        parts = self._marks.split(text) if self._control else [text]
        return [(part, number % 2 == 1) for number, part in enumerate(parts) if part]

    def shown(self, index: int) -> str:
        return self._adds(index) or self.token(index)

    def bytes_of(self, index: int) -> bytes | None:
        name = self._tokenizer.id_to_token(index)
        if name is None or name in self._control:
            return None
        found = None if index in self._added else spelled(name, self._state["decoder"])
        return self._adds(index).encode() if found is None else found

    @cached_property
    def _added(self) -> frozenset[int]:
        """Tokens whose names are what they write."""
        return frozenset(int(token["id"]) for token in self._state["added_tokens"])

    def _adds(self, index: int) -> str:
        before = self.encode("b")[-1:]  # some decoders take a space from the beginning of a text
        return self.decode([*before, index])[len(self.decode(before)) :]

    def beyond(self, size: int) -> list[str]:
        outside = [token for token, index in self._ids.items() if index >= size and token not in self._control]
        return sorted(outside, key=self._ids.__getitem__)

    def saved(self) -> Any:
        """The `tokenizers.Tokenizer` with which others give texts the ids that they have here."""
        from tokenizers import Tokenizer as Fast

        state = self._state
        there = {token["content"] for token in state["added_tokens"]}
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        missing = [
            {"id": self.control_id(name), "content": name, **flags, "special": True} for name in self._control - there
        ]
        marks = {"special": True, "single_word": False}
        kept = [{**token, **(marks if token["content"] in self._control else {})} for token in state["added_tokens"]]
        tokens = sorted([*kept, *missing], key=lambda token: int(token["id"]))
        return Fast.from_str(json.dumps({**state, "added_tokens": tokens}))

    def save(self, folder: Path) -> None:
        text = self.saved().to_str(pretty=True)  # its own way of writing has no error for a full disk
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **({"bos_token": self.token(self.bos_id)} if self.bos_id is not None else {}),
            **({"add_bos_token": True} if self.begin else {}),
            "eos_token": self.eos,
            "pad_token": self.eos,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
        }
        (folder / "tokenizer_config.json").write_text(json_text(settings, ascii_only=True), encoding="utf-8")

    @classmethod
    def from_folder(cls, folder: Path) -> FastTokenizer:
        """Read the tokenizer of a model's folder, whatever files it consists of.

        Raises:
            ModelError: there is none, it is damaged or of another kind, or no end token is named.
        """
        files = read_folder(folder)
        stops = [int(files.fast.token_to_id(text)) for text in files.stops]
        return cls(files.fast, files.eos, stops, marks=files.marks, names=files.names, notes=files.notes)

    @classmethod
    def gpt2(cls) -> FastTokenizer:
        """GPT-2's byte-pair encoding (chapter 2.5), fetched if it is not on this machine.

        Raises:
            ModelError: it is not, and cannot be fetched.
        """
        folder = gpt2_files()
        return cls.from_gpt2_files(folder / "encoder.json", folder / "vocab.bpe")

    @classmethod
    def from_gpt2_files(cls, vocabulary: Path, merges: Path) -> FastTokenizer:
        """GPT-2's ``vocab.json`` and ``merges.txt`` (OpenAI calls them encoder.json and vocab.bpe).

        Raises:
            ModelError: they are damaged.
        """
        return cls(gpt2_tokenizer(vocabulary, merges), END_OF_TEXT)

    @classmethod
    def from_gguf(cls, path: Path) -> FastTokenizer:
        """Build the tokenizer from a GGUF file's own vocabulary and merges.

        Raises:
            ModelError: the vocabulary is of a kind that is not built here (see `instil.data.gguf_vocabulary`).
        """
        found = gguf_vocabulary.read(path)
        others = [int(found.fast.token_to_id(text)) for text in found.stops]
        names = {"bos_token": found.bos} if found.bos else {}
        return cls(found.fast, found.eos, others, names=names)


def _normalized(tokenizer: Any, text: str) -> str:
    with panics_as_errors():
        return str(tokenizer.normalizer.normalize_str(text)) if tokenizer.normalizer else text


def _valid(text: str) -> str:
    """The same without halves of surrogate pairs, which have no UTF-8."""
    if text.isascii() or not _HALF.search(text):
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _is_exact(state: Mapping[str, Any]) -> bool:
    """Whether a tokenizer cuts text by its bytes, as it is."""
    pre = state["pre_tokenizer"] or {}
    steps = pre.get("pretokenizers", [pre])
    return state["normalizer"] is None and any(step.get("type") == "ByteLevel" for step in steps)


def _lacking_bytes(state: Mapping[str, Any]) -> bytes | None:
    """The bytes that a byte-level vocabulary has no token for and drops; None where texts lose something besides."""
    swallowing = any(token["lstrip"] or token["rstrip"] for token in state["added_tokens"] if not token["special"])
    pre = state["pre_tokenizer"]
    steps = {step.get("type") for step in pre.get("pretokenizers", [pre])}
    if state["model"].get("type") != "BPE" or swallowing or steps - {"ByteLevel", "Digits", "Split"}:
        return None
    characters = byte_characters()
    return bytes(byte for byte in range(256) if characters[byte] not in state["model"]["vocab"])


def _without_dropout(state: dict[str, Any]) -> list[str]:
    """Switch off what would cut the same text into other tokens each time."""
    dropout = state["model"].get("dropout")
    if not dropout:
        return []
    state["model"]["dropout"] = None
    return [f"the tokenizer's BPE dropout of {dropout} is switched off: a text has the same ids every time"]


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that belongs to a model's folder or GGUF file.

    Raises:
        ModelError: none is found there, or it cannot be read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".pth":
        return FastTokenizer.gpt2()  # a .pth file holds the book's GPT-2
    if path.is_file():  # a GGUF file, whatever it is called: such as a blob of Ollama's, which has no ending
        try:
            return FastTokenizer.from_gguf(path)  # its own vocabulary, whatever lies beside it
        except ModelError:
            if not (folder / "tokenizer.json").is_file():
                raise
    return FastTokenizer.from_folder(folder)
