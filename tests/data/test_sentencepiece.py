"""``tokenizer.model`` files: the ids of SentencePiece itself, for models trained here."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from instil.data import sentencepiece
from instil.errors import ModelError
from tests.data.test_gguf_vocabulary import TEXTS, made_up

theirs = pytest.importorskip("sentencepiece")

LIKE_LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
LIKE_GEMMA = {**LIKE_LLAMA, "add_dummy_prefix": False, "user_defined_symbols": ["<think>", "\n\n", "[a]"]}
OTHERS = {
    "llama": LIKE_LLAMA,
    "gemma": LIKE_GEMMA,
    "squeezed": {"normalization_rule_name": "identity", "user_defined_symbols": ["<think>"], "split_digits": True},
    "without bytes": {**LIKE_LLAMA, "byte_fallback": False, "control_symbols": ["<|im_end|>"]},
}


def trained(kind: str, **how: Any) -> bytes:
    model = io.BytesIO()
    theirs.SentencePieceTrainer.train(
        sentence_iterator=iter([*(text for text in made_up(5, 300) if text.strip()), "a <think> b [a]"]),
        model_writer=model,
        model_type=kind,
        vocab_size=700,
        character_coverage=0.98,
        hard_vocab_limit=False,
        minloglevel=2,
        **how,
    )
    return model.getvalue()


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
@pytest.mark.parametrize("how", OTHERS)
def test_ids_are_sentencepieces_own(kind: str, how: str, tmp_path: Path) -> None:
    model = trained(kind, **OTHERS[how])
    (tmp_path / "tokenizer.model").write_bytes(model)
    wanted = theirs.SentencePieceProcessor(model_proto=model)
    ours = sentencepiece.read(tmp_path / "tokenizer.model")
    ours.encode_special_tokens = True
    texts = [*TEXTS, *made_up(6, 150), "a <think> b", "x\n\n\ny", "b<think>c  d[a]", "  a  ", "<s></s><unk><0x0A>"]
    spelled = "<s></s><unk><0x0A>" if kind == "unigram" else ""  # cut where a control token would come out
    apart = {
        text: (wanted.encode_as_pieces(text), ours.encode(text).tokens)
        for text in texts
        if wanted.encode(text) != ours.encode(text).ids
    }
    assert apart.keys() - {spelled, "<|im_start|>user\n<think></think><s></s>[INST]"} == set()
    assert ours.get_vocab_size() == wanted.get_piece_size()
    control = {index for index in range(wanted.get_piece_size()) if wanted.is_control(index)}
    assert all(control.isdisjoint(ours.encode(text).ids) for text in texts)
    for text in ("the  café", "x y"):
        ids = wanted.encode(text)
        if wanted.unk_id() not in ids:
            assert ours.decode(ids) == wanted.decode(ids)


def test_it_goes_through_tokenizer_json(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    (tmp_path / "tokenizer.model").write_bytes(trained("bpe", **LIKE_GEMMA))
    ours = sentencepiece.read(tmp_path / "tokenizer.model")
    again = Tokenizer.from_str(ours.to_str())
    texts = [*TEXTS, "a<think>b", "\n\n\n"]
    assert [again.encode(text).ids for text in texts] == [ours.encode(text).ids for text in texts]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a model of SentencePiece"),
        (b"{}", "not a model of SentencePiece"),
        (b"\x0a\xff\xff\xff\xff\x0f", "not a model of SentencePiece"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_model_is_refused(content: bytes | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=says):
        sentencepiece.read(path)


def test_a_model_that_is_cut_off_or_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(trained("bpe", **LIKE_LLAMA)[:-30])
    with pytest.raises(ModelError, match="not a model of SentencePiece, or cut off"):
        sentencepiece.read(path)
    path.write_bytes(trained("char"))
    with pytest.raises(ModelError, match=r"single characters; read here .* Put the model's tokenizer\.json beside it"):
        sentencepiece.read(path)
