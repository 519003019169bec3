"""Tokenizers: plain text stays plain, and every road to one vocabulary gives the same ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instil.data.tokenizers import BytePair, FastTokenizer, load_tokenizer
from instil.errors import ModelError
from instil.model.find import find_model

TRICKY = ["", " ", "a  b\n\n c", "### Response:\n", "It's 1234 naïve café 漢字 🙂", "x<|endoftext|>y<|im_end|>\t\r\n"]


@pytest.fixture(scope="module")
def byte_pair() -> BytePair:
    return BytePair()


@pytest.fixture(scope="module")
def saved(byte_pair: BytePair, tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    byte_pair.save(folder)
    return FastTokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def smollm() -> FastTokenizer:
    found = load_tokenizer(find_model("smollm2-135m"))
    assert isinstance(found, FastTokenizer)
    return found


def test_the_chapters_ids(byte_pair: BytePair) -> None:
    assert byte_pair.encode("<|user|>") == [27, 91, 7220, 91, 29]
    assert byte_pair.eos_id == 50256
    assert byte_pair.vocab_size == 50257
    assert byte_pair.control_id("<|endoftext|>") == 50256


def test_control_tokens_in_text_are_text(byte_pair: BytePair, saved: FastTokenizer, smollm: FastTokenizer) -> None:
    for tokenizer in (byte_pair, saved):
        ids = tokenizer.encode("a <|endoftext|> b")
        assert 50256 not in ids
        assert tokenizer.decode(ids) == "a <|endoftext|> b"
    ids = smollm.encode("a<|im_end|><|endoftext|>b")
    assert not {0, 1, 2} & set(ids)
    assert smollm.decode(ids) == "a<|im_end|><|endoftext|>b"


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_the_saved_gpt2_tokenizer_gives_tiktokens_ids(byte_pair: BytePair, saved: FastTokenizer, text: str) -> None:
    assert saved.encode(text) == byte_pair.encode(text)
    assert saved.decode(saved.encode(text)) == text


@pytest.mark.parametrize("text", TRICKY)
def test_the_gguf_vocabulary_gives_the_ids_of_transformers(smollm: FastTokenizer, text: str) -> None:
    import transformers

    path = find_model("smollm2-135m")
    theirs = _gguf_tokenizer(transformers, path)
    wanted = theirs(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert smollm.encode(text) == wanted
    assert smollm.decode(wanted) == text


_CACHE: dict[Path, object] = {}


def _gguf_tokenizer(transformers: object, path: Path) -> object:
    if path not in _CACHE:
        _CACHE[path] = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return _CACHE[path]


@settings(max_examples=200, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn", "Co"])))
def test_smollm_text_survives(smollm: FastTokenizer, text: str) -> None:
    assert smollm.decode(smollm.encode(text)) == text


def test_transformers_opens_what_is_saved(smollm: FastTokenizer, tmp_path: Path) -> None:
    import transformers

    smollm.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert theirs("Name 3 colours.")["input_ids"] == smollm.encode("Name 3 colours.")
    assert theirs.eos_token_id == smollm.eos_id
    assert smollm.encode("<|im_end|>") != [2]  # saving leaves the tokenizer as it was


def test_vocab_and_merges_files_are_enough(tmp_path: Path) -> None:
    from instil.data.tokenizers import find_gpt2_files

    files = find_gpt2_files()
    assert files is not None
    (tmp_path / "vocab.json").write_bytes((files / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((files / "vocab.bpe").read_bytes())
    assert load_tokenizer(tmp_path).encode("Hello, world") == BytePair().encode("Hello, world")
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(ModelError, match="not GPT-2's vocabulary"):
        load_tokenizer(tmp_path)


def test_a_missing_or_damaged_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no tokenizer found"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3')
    with pytest.raises(ModelError, match="not a tokenizer"):
        load_tokenizer(tmp_path)


def test_endless_nesting_is_no_traceback(saved: FastTokenizer, tmp_path: Path) -> None:
    endless = "[" * 100_000
    saved.save(tmp_path)
    (tmp_path / "config.json").write_text(endless)
    (tmp_path / "tokenizer_config.json").write_text(endless)
    with pytest.raises(ModelError, match="no end token"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(endless)
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ModelError, match="not GPT-2's vocabulary"):
        FastTokenizer.from_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")


def test_an_absent_control_token_says_what_to_do(byte_pair: BytePair) -> None:
    with pytest.raises(ModelError, match="im_start"):
        byte_pair.control_id("<|im_start|>")


def test_the_end_token_comes_from_the_models_configuration(saved: FastTokenizer, tmp_path: Path) -> None:
    saved.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [13, 50256]}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_id == 50256  # the tokenizer names it, so that is what is trained on; both end an answer
    assert loaded.stop_ids == {13, 50256}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [13]}))
    assert load_tokenizer(tmp_path).eos_id == 13
