"""The bytes that the names of tokens stand for: a character may be cut over several tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Any

_BYTE = re.compile("<0x([0-9A-Fa-f]{2})>")


@cache
def byte_characters() -> dict[int, str]:
    """The character that GPT-2's files write for each byte.

    >>> byte_characters()[65], byte_characters()[32]
    ('A', 'Ġ')
    """
    as_they_are = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in as_they_are]  # written as characters from 256 on
    return {byte: chr(byte) for byte in as_they_are} | {byte: chr(256 + at) for at, byte in enumerate(others)}


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {letter: byte for byte, letter in byte_characters().items()}


def spelled(name: str, decoder: Mapping[str, Any] | None) -> bytes | None:
    """The bytes that a token's name spells, where the vocabulary spells bytes; None where it stands for text.

    Args:
        name: of the token.
        decoder: of the tokenizer, as ``tokenizer.json`` has it.

    >>> spelled("Ġa", {"type": "ByteLevel"}), spelled("<0xF0>", {"type": "ByteFallback"}), spelled("▁a", None)
    (b' a', b'\\xf0', None)
    """
    kinds = {step.get("type") for step in (decoder or {}).get("decoders", [decoder or {}])}
    if "ByteLevel" in kinds and all(letter in _bytes_of_characters() for letter in name):
        return bytes(_bytes_of_characters()[letter] for letter in name)
    byte = _BYTE.fullmatch(name) if "ByteFallback" in kinds else None
    return bytes([int(byte[1], 16)]) if byte else None
