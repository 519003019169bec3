"""The bytes of tokens joined are the text of their ids, whatever the vocabulary spells bytes as."""

from __future__ import annotations

import pytest

from instil.data.encoding import encode, encode_prompt
from instil.data.templates import TEMPLATES
from instil.data.tokenizers import FastTokenizer
from instil.generate.text import TextStream
from instil.records import Example
from tests.conftest import single_bytes
from tests.data.test_tokenizer_seams import sentencepiece

TOKENIZERS = {
    "gpt2": FastTokenizer.gpt2,
    "bytes": single_bytes,
    "first": lambda: FastTokenizer(sentencepiece("first"), "</s>"),
    "always": lambda: FastTokenizer(sentencepiece("always"), "</s>"),
    "older": lambda: FastTokenizer(sentencepiece("older"), "</s>"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> FastTokenizer:
    return TOKENIZERS[request.param]()


def test_they_are_those_of_the_text(tokenizer: FastTokenizer) -> None:
    text = "b it is Paris \U0001f642 é\n"
    found = [tokenizer.bytes_of(index) for index in tokenizer.encode(text)]
    assert b"".join(one or b"?" for one in found).decode().removeprefix(" ") == text
    assert tokenizer.bytes_of(tokenizer.eos_id) is None
    assert tokenizer.bytes_of(10**6) is None


def test_a_text_that_is_gone_on_with_keeps_its_spaces(tokenizer: FastTokenizer) -> None:
    (space, *_) = [index for index in tokenizer.encode("x it") if (tokenizer.bytes_of(index) or b"").startswith(b" ")]
    flow = TextStream(tokenizer, goes_on=True)
    text = "".join(flow.push(index) for index in (space, *tokenizer.encode("a \U0001f642")[1:]))
    assert (text + flow.finish()).startswith(" ")
    assert "\U0001f642" in text


@pytest.mark.parametrize("name", ["alpaca", "plain"])
def test_what_is_begun_has_the_ids_of_training(tokenizer: FastTokenizer, name: str) -> None:
    for begun in ("Paris is it", "a", "\U0001f642 it"):
        row = encode(Example("is it", output=begun), TEMPLATES[name], tokenizer)
        found = encode_prompt(Example("is it"), TEMPLATES[name], tokenizer, begun=begun)
        assert found == list(row.ids[: len(found)])
        assert tokenizer.decode(row.ids[len(found) :]).strip() == ""
