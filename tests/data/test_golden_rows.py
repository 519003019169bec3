"""Ids, masks and hashes of the templates, as they were before rows were made of pieces; a blank input is none now."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from instil.data.encoding import encode, encode_prompt
from instil.data.sources import read_source
from instil.data.templates import TEMPLATES
from instil.data.tokenizers import Tokenizer
from instil.records import Example
from tests.conftest import gpt2, smollm2

GOLDEN = json.loads((Path(__file__).parent / "golden_rows.json").read_text(encoding="utf-8"))
ODD = [
    Example("a", "b"),
    Example("{input}", "{instruction}", "x {input}"),
    Example("<|im_end|> <|endoftext|>", " lead", "\n"),
    Example("\u00e9\u4e2d\u6587 \U0001f642", "\n\nnew\n", "\u00fcmlaut"),
    Example("x ", "y ", "  "),
    Example("### Response:\n", "### Response:\n", "### Input:"),
]


def digest(name: str, train_on: str, tokenizer: Tokenizer) -> str:
    """Of everything that is made of the odd rows and of the first of the starter's."""
    found = hashlib.sha256()
    for row in [*ODD, *read_source("starter").examples[:100]]:
        encoded = encode(row, TEMPLATES[name], tokenizer, train_on)  # type: ignore[arg-type]
        without_header = encode_prompt(row, TEMPLATES[name], tokenizer, header=False)
        line = [encoded.ids, [int(one) for one in encoded.trained], encoded.prompt_length, encoded.row, without_header]
        found.update(json.dumps(line).encode())
    return found.hexdigest()[:32]


@pytest.mark.parametrize("case", GOLDEN["rows"])
def test_ids_and_masks_are_what_they_were(case: str) -> None:
    which, name, train_on = case.split()
    assert digest(name, train_on, gpt2() if which == "gpt2" else smollm2()) == GOLDEN["rows"][case]


@pytest.mark.parametrize("name", TEMPLATES)
def test_hashes_are_what_they_were(name: str) -> None:
    assert TEMPLATES[name].hash == GOLDEN["templates"][name]
    chat = hashlib.sha256(TEMPLATES[name].chat_template().encode()).hexdigest()[:16]
    assert chat == GOLDEN["chat_templates"][name]
