"""Text to ids and back, always with a user's text as plain text.

`FastTokenizer` is any of them through Hugging Face's `tokenizers`: read from a ``tokenizer.json``, or built
from GPT-2's two files or from the vocabulary inside a GGUF file (`byte_level.py`). It never turns text into
a control token: those come from a template (`Piece`) or from `eos_id`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from instil.data import gguf_vocabulary
from instil.data.byte_level import END_OF_TEXT, byte_level, gpt2_files
from instil.errors import ModelError
from instil.files import json_object_or_empty, json_text


class Tokenizer(Protocol):
    """What the rest of the house asks of a tokenizer."""

    eos_id: int
    stop_ids: frozenset[int]  # the end token, and any other that ends an answer

    @property
    def vocab_size(self) -> int:
        """Number of ids, control tokens included."""

    def encode(self, text: str) -> list[int]:
        """Ids of plain text; names of control tokens inside it are plain text too."""

    def control_id(self, name: str) -> int:
        """The id of a control token.

        Raises:
            ModelError: the vocabulary has no such token.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; control tokens are left out, broken UTF-8 becomes U+FFFD."""

    def save(self, folder: Path) -> None:
        """Write the files with which ``transformers`` opens the same tokenizer."""


class FastTokenizer:
    """Any tokenizer that Hugging Face's `tokenizers` can hold."""

    def __init__(self, tokenizer: Any, eos: str, stop_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._tokenizer.encode_special_tokens = True  # a user's "<|im_end|>" is text
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._eos = eos
        found = tokenizer.token_to_id(eos)
        if found is None:
            raise ModelError(f"the end token {eos!r} that the model's files name is not in its vocabulary")
        self.eos_id = int(found)
        self.stop_ids = frozenset({self.eos_id, *stop_ids})

    @property
    def fast(self) -> Any:
        """The `tokenizers.Tokenizer` itself, for what is written with it."""
        return self._tokenizer

    @property
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=False).ids)
        except TypeError:  # half of a surrogate pair, which has no UTF-8
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return list(self._tokenizer.encode(whole, add_special_tokens=False).ids)

    def control_id(self, name: str) -> int:
        found = self._tokenizer.token_to_id(name)
        if found is None:
            raise ModelError(
                f"this model's vocabulary has no control token {name!r}; choose another template, "
                "such as --set data.template=alpaca, which needs none"
            )
        return int(found)

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def save(self, folder: Path) -> None:
        self._tokenizer.encode_special_tokens = False  # a setting of ours, not of the file
        try:
            text = self._tokenizer.to_str(pretty=True)  # its own way of writing has no error for a full disk
        finally:
            self._tokenizer.encode_special_tokens = True
        (folder / "tokenizer.json").write_text(text, encoding="utf-8")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": self._eos,
            "pad_token": self._eos,
            "clean_up_tokenization_spaces": False,
            "model_max_length": 1_000_000_000,
        }
        (folder / "tokenizer_config.json").write_text(json_text(settings, ascii_only=True), encoding="utf-8")

    @classmethod
    def from_folder(cls, folder: Path) -> FastTokenizer:
        """Read ``tokenizer.json``, with the end token that the folder's configuration names.

        Raises:
            ModelError: the file is damaged, or no end token is named.
        """
        from tokenizers import Tokenizer as Fast

        path = folder / "tokenizer.json"
        try:
            fast = Fast.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for damaged files
            raise ModelError(f"{path}: not a tokenizer that can be read: {error}") from error
        eos, stop_ids = _ends_of_folder(folder, fast)
        return cls(fast, eos, stop_ids)

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
        try:
            ids = json.loads(vocabulary.read_text(encoding="utf-8"))
            lines = merges.read_text(encoding="utf-8").split("\n")
            pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
            return cls(byte_level(ids, pairs, "gpt-2", {END_OF_TEXT: ids[END_OF_TEXT]}), END_OF_TEXT)
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise ModelError(f"{vocabulary}: not GPT-2's vocabulary and merges: {error}") from error

    @classmethod
    def from_gguf(cls, path: Path) -> FastTokenizer:
        """Build the tokenizer from a GGUF file's own vocabulary and merges.

        Raises:
            ModelError: the vocabulary is of a kind that is not built here (see `instil.data.gguf_vocabulary`).
        """
        found = gguf_vocabulary.read(path)
        others = [int(found.fast.token_to_id(text)) for text in found.stops]
        return cls(found.fast, found.eos, others)


def _pair(line: str) -> tuple[str, str]:
    first, _, second = line.partition(" ")
    return first, second


def _ends_of_folder(folder: Path, fast: Any) -> tuple[str, list[int]]:
    """The end token's text, and the ids of all that end an answer.

    A model may name several ends; the one it is trained to say is the tokenizer's own, if it is among them.
    """
    named = json_object_or_empty(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    for name in ("generation_config.json", "config.json"):
        found = json_object_or_empty(folder / name).get("eos_token_id")
        listed = found if isinstance(found, list) else [found]
        ids: list[int] = [i for i in listed if type(i) is int and 0 <= i < 2**31 and fast.id_to_token(i) is not None]
        if ids:
            texts = [str(fast.id_to_token(i)) for i in ids]
            return (named if isinstance(named, str) and named in texts else texts[0]), ids
    if isinstance(named, str):
        return named, []
    raise ModelError(
        f"{folder}: no end token: no usable eos_token_id in config.json, no eos_token in tokenizer_config.json"
    )


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer that belongs to a model's folder or GGUF file.

    Raises:
        ModelError: none is found there, or it cannot be read.
    """
    path = Path(path)
    folder = path if path.is_dir() else path.parent
    if path.suffix == ".gguf":
        try:
            return FastTokenizer.from_gguf(path)  # its own vocabulary, whatever lies beside it
        except ModelError:
            if not (folder / "tokenizer.json").is_file():
                raise
    if path.suffix == ".pth":
        return FastTokenizer.gpt2()  # a .pth file holds the book's GPT-2
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer.from_folder(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return FastTokenizer.from_gpt2_files(folder / "vocab.json", folder / "merges.txt")
    if (folder / "encoder.json").is_file() and (folder / "vocab.bpe").is_file():  # OpenAI's names of the two
        return FastTokenizer.from_gpt2_files(folder / "encoder.json", folder / "vocab.bpe")
    if json_object_or_empty(folder / "config.json").get("model_type") == "gpt2":
        return FastTokenizer.gpt2()
    raise ModelError(
        f"{folder}: no tokenizer found; wanted tokenizer.json, vocab.json with merges.txt, "
        "or encoder.json with vocab.bpe"
    )
