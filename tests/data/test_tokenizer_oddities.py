"""Tokenizers that are odd in ways that were met with: special tokens that are words, classes of their own, damage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from instil.assistant.folder import differences
from instil.data.encoding import begin_text, encode, encode_prompt
from instil.data.templates import template_named
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.errors import ModelError, UserError
from instil.records import Example
from tests.conftest import TINY_END as END
from tests.data.test_tokenizer_seams import CHAT, Save, gpt2, gpt2_files, mark, save, sentencepiece

ALPACA = template_named("alpaca")
__all__ = ["gpt2", "save"]  # fixtures


@pytest.mark.parametrize(
    "named",
    [
        {"pad_token": "!"},
        {"mask_token": "#"},
        {"added_tokens_decoder": {"0": {"content": "!", "special": True}}},
        {"additional_special_tokens": ["user"]},
    ],
)
def test_a_special_token_that_is_a_word_stays_in_answers(save: Save, named: dict[str, Any], tmp_path: Path) -> None:
    import transformers

    folder = save(named={**named, "bos_token": "<|endoftext|>"})
    tokenizer, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
    for text in ("wow!!", "hi!", "C#", "a user, users", "##"):
        assert tokenizer.encode(text) == theirs(text)["input_ids"]
        assert tokenizer.decode(tokenizer.encode(text)) == text
    row = Example("Hi user!", "Hooray!!#")
    assert tokenizer.decode(encode(row, ALPACA, tokenizer).ids).endswith(row.output)
    saved = tmp_path / "saved"
    saved.mkdir()
    tokenizer.save(saved)
    (saved / "chat_template.jinja").write_text(ALPACA.chat_template(begin_text(ALPACA, tokenizer)))
    assert differences(saved, tokenizer, ALPACA, [row]) == []
    again = transformers.AutoTokenizer.from_pretrained(saved)
    assert again("wow!! user#")["input_ids"] == tokenizer.encode("wow!! user#")


def test_the_map_of_special_tokens_is_above_the_configuration(save: Save) -> None:
    """As it is to transformers, where no list of added tokens stands in the latter."""
    import transformers

    folder = save(tokens=[mark("<|im_end|>")], special_tokens_map={"eos_token": "<|im_end|>"})
    assert load_tokenizer(folder).eos_id == transformers.AutoTokenizer.from_pretrained(folder).eos_token_id == END + 1
    decoder = {"added_tokens_decoder": {str(END + 1): {"content": "<|im_end|>", "special": True}}}
    listed = save(tokens=[mark("<|im_end|>"), mark("<a>")], named={**decoder, "eos_token": None},
                  special_tokens_map={"eos_token": "<|im_end|>"})  # fmt: skip
    assert load_tokenizer(listed).eos_id == END + 1


def test_an_id_that_a_token_cannot_have(tmp_path: Path) -> None:
    folder = gpt2_files(tmp_path, added_tokens={"<x>": 50300}, tokenizer_config={"tokenizer_class": "GPT2Tokenizer"})
    with pytest.raises(ModelError, match=r"give '<x>' the id 50,300, which would be 50,257"):
        load_tokenizer(folder)


@pytest.mark.parametrize(
    "name",
    ["vocab.json", "merges.txt", "encoder.json", "vocab.bpe", "sentencepiece.model", "my.model", "qwen.tiktoken",
     "source.spm", "bpe.codes", "tokenizer.model.v7", "rwkv_vocab_v20230424.txt", "tokenizer.pkl", "dict.txt",
     "tokenization_foo.py"],
)  # fmt: skip
def test_a_gpt2_with_a_part_of_another_tokenizer(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 50257}')
    (tmp_path / name).write_text("{}")
    with pytest.raises(ModelError, match=f"its tokenizer is {name}, which is not read here"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("file", "values", "says"),
    [
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["a.B", None]}}, "another tokenizer"),
        ("tokenizer_config.json", {"eos_token": "</s>"}, "the end '</s>'"),
        ("special_tokens_map.json", {"eos_token": "</s>"}, "the end '</s>'"),
        (
            "config.json",
            {"model_type": "gpt2", "vocab_size": 50257, "tokenizer_class": "BertTokenizer"},
            "BertTokenizer",
        ),
    ],
)
def test_a_gpt2_whose_files_name_another_tokenizer(file: str, values: Any, says: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 50257}')
    (tmp_path / file).write_text(json.dumps(values))
    with pytest.raises(ModelError, match=f"a GPT-2 with .*{says}"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("form", ["older", "first", "always", "never"])
@pytest.mark.parametrize("more", [{}, {"add_prefix_space": False}, {"legacy": True}])
def test_a_class_that_cuts_text_in_its_own_way(form: str, more: dict[str, Any], tmp_path: Path) -> None:
    """transformers 5 makes a Llama's pipeline anew, whatever ``tokenizer.json`` says."""
    import transformers

    fast = sentencepiece(form)
    fast.add_special_tokens(["<|user|>", "<|assistant|>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    named = {"tokenizer_class": "LlamaTokenizerFast", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**named, **more}))
    transformers.LlamaConfig(vocab_size=300).save_pretrained(tmp_path)
    tokenizer, theirs = load_tokenizer(tmp_path), transformers.AutoTokenizer.from_pretrained(tmp_path)
    phi3 = template_named("phi3")
    for text in ("is it a Paris", " Paris"):
        assert [1, *tokenizer.encode(text)] == theirs(text)["input_ids"]
        assert encode_prompt(Example(text), phi3, tokenizer) == theirs(phi3.prompt(Example(text)))["input_ids"]


@pytest.mark.parametrize(
    ("template", "stops"),
    [
        ("{% for m in messages %}{{ m.content }}and{% endfor %}", {END}),
        ("{% for m in messages %}{{ m.content }}##{% endfor %}", {END}),
        ("{% if tools is not none %}{{ tools[0].name }}{% endif %}" + CHAT, {END, END + 2}),
        ("{{ raise_exception('a system message first') if messages[0].role != 'system' }}" + CHAT, {END, END + 2}),
        (CHAT.replace("message['content']", "message['content'] | upper"), {END, END + 2}),
        (CHAT.replace("'assistant'", "'model'"), {END, END + 2}),
        ("{{ now() }}" + CHAT, {END}),
    ],
)
def test_what_a_chat_template_says_of_ends(save: Save, template: str, stops: set[int]) -> None:
    """A word is no end; marks are found where a template wants other values, and else by their names in it."""
    tokens = [mark("<|im_start|>", special=False), mark("<|im_end|>", special=False), mark("and", special=False)]
    tokenizer = load_tokenizer(save(tokens=tokens, named={"chat_template": template}))
    assert tokenizer.eos_id == END
    assert tokenizer.stop_ids == stops
    assert not {END + 1, END + 2} & set(tokenizer.encode("a<|im_end|><|im_start|>"))
    assert tokenizer.decode(tokenizer.encode("at and of and##")) == "at and of and##"


def test_each_end_is_told_of_for_what_it_is(save: Save) -> None:
    ends = {"eos_token_id": [END + 1, 2]}
    tokenizer = load_tokenizer(save(tokens=[mark("<a>")], config=ends, generation_config=ends))
    (said,) = tokenizer.notes
    assert said.startswith(
        f"generation_config.json and config.json end texts with '<a>' ({END + 1}), which ends an answer, too"
    )
    assert "'#' (2), an ordinary token, which ends nothing" in said


def test_a_beginning_where_no_latin_letter_can_be_spelt(tmp_path: Path) -> None:
    fast = Tokenizer(models.BPE({"<s>": 0, "</s>": 1, "я": 2, "ю": 3}, []))
    fast.add_special_tokens(["<s>", "</s>"])
    fast.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)])
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    assert load_tokenizer(tmp_path).begin == ("<s>",)


def test_an_end_that_stands_for_all_that_cannot_be_spelt(tmp_path: Path) -> None:
    fast = Tokenizer(models.BPE({"</s>": 0, "x": 1}, [], unk_token="</s>"))
    fast.add_special_tokens(["</s>"])
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    with pytest.raises(ModelError, match="texts would end there"):
        load_tokenizer(tmp_path)


def _panic(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    state["normalizer"] = {"type": "Precompiled", "precompiled_charsmap": "AAAA"}
    (folder / "tokenizer.json").write_text(json.dumps(state))


def _absent(folder: Path) -> None:
    state = json.loads((folder / "tokenizer.json").read_text())
    one, text = {"SpecialToken": {"id": "<gone>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    whole = {"single": [one, text], "pair": [one, text], "special_tokens": {}}
    state["post_processor"] = {"type": "TemplateProcessing", **whole}
    (folder / "tokenizer.json").write_text(json.dumps(state))


def _config(values: Any, name: str = "tokenizer_config.json") -> Callable[[Path], None]:
    return lambda folder: [(folder / name).write_text(json.dumps(values)), None][1]


@pytest.mark.parametrize(
    "damage",
    [
        _panic,
        _absent,
        _config({"eos_token": "\ud800"}),
        _config({"added_tokens_decoder": {"7": {"content": "\udc00"}}}),
        _config({"bos_token": "\ud800", "eos_token": "<|endoftext|>"}, "special_tokens_map.json"),
    ],
)
def test_damage_is_one_sentence(save: Save, damage: Callable[[Path], None]) -> None:
    folder = save()
    damage(folder)
    with pytest.raises(ModelError):
        load_tokenizer(folder)


@pytest.mark.parametrize("key", ["²", "9" * 5000, "-1", "x", ""])
def test_added_tokens_without_an_id_are_passed_over(save: Save, key: str) -> None:
    folder = save(named={"added_tokens_decoder": {key: {"content": "<z>"}}})
    assert load_tokenizer(folder).vocab_size == END + 1


def test_a_text_of_marks_alone(tmp_path: Path) -> None:
    """Thousands of a control token's spellings, in a vocabulary that finds them among its pieces."""
    letters = [(letter, -2.0) for letter in "ab/<s>"]
    fast = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), *letters], unk_id=0))
    fast.add_special_tokens([mark("</s>")])
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("</s>" * 3000)
    assert len(ids) == 12_000
    assert tokenizer.eos_id not in ids


def test_a_token_is_shown_with_its_space() -> None:
    fast = sentencepiece("first")
    tokenizer = FastTokenizer(fast, "</s>")
    shown = [tokenizer.shown(index) for index in encode_prompt(Example("is it"), template_named("plain"), tokenizer)]
    assert shown[:2] == ["<s>", " "]
    assert "".join(shown[1:]) == " is it\n"


def test_white_space_at_the_edges_is_not_altered() -> None:
    from instil.data.spelling import spelling

    fast = Tokenizer(models.BPE({"</s>": 0, "▁": 1, "a": 2, "B": 3, "é": 4}, []))
    fast.normalizer = normalizers.Sequence([])
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.add_special_tokens([AddedToken("</s>", special=True)])
    fast.decoder = sentencepiece("first").decoder
    tokenizer = FastTokenizer(fast, "</s>")
    assert spelling(Example(" aé", "B"), tokenizer) == "as written"
    assert spelling(Example("x", "B"), tokenizer) == "misspelt"


def with_ids(folder: Path, **ids: int) -> FastTokenizer:
    """A vocabulary of letters with these ids, and an end token."""
    fast = Tokenizer(models.BPE(vocab={"<end>": 0, **ids}, merges=[]))
    fast.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    state = json.loads(fast.to_str())
    state["model"]["vocab"] = {"<end>": 0, **ids}
    (folder / "tokenizer.json").write_text(json.dumps(state))
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    return FastTokenizer.from_folder(folder)


def test_a_vocabulary_that_leaves_ids_out(tmp_path: Path) -> None:
    """What stands for a control token while a text is cut gets the next id, which may be that of another token."""
    tokenizer = with_ids(tmp_path, a=1, b=4, c=5)
    cut = tokenizer.cut([("abc", False), ("", True), ("cb", False)])
    assert cut.ids == [1, 4, 5, 0, 5, 4]
    assert tokenizer.decode([1, 2, 3, 4, 5]) == "a b c"
    assert tokenizer.saved().get_vocab() == {"<end>": 0, "a": 1, "b": 4, "c": 5}


def test_two_tokens_with_one_id(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"'[ab]' and '[ab]' have 1;"):
        with_ids(tmp_path, a=1, b=1)


def test_ids_far_beyond_the_vocabulary(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ids up to 9,000,000"):
        with_ids(tmp_path, a=9_000_000)


YEARS = "(?:a|a)*b|."  # what it would take to see that a row of a's has no b


@pytest.mark.parametrize("part", ["pre_tokenizer", "normalizer", "decoder"])
def test_an_expression_that_would_take_years(part: str, tmp_path: Path) -> None:
    """`tokenizers` panics over it; where words are found here, the search ends by itself."""
    letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()), 1)}
    fast = Tokenizer(models.BPE(vocab={"<end>": 0, **letters}, merges=[]))
    fast.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    if part == "pre_tokenizer":
        steps.insert(0, pre_tokenizers.Split(Regex(YEARS), "isolated"))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if part == "normalizer":
        fast.normalizer = normalizers.Replace(Regex(YEARS), "x")
    if part == "decoder":
        fast.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace(Regex(YEARS), "x")])
    fast.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    tokenizer = FastTokenizer.from_folder(tmp_path)
    text = "a" * 40 + "c"
    with pytest.raises(UserError, match="cannot be used"):
        tokenizer.cut_many([[(text, False)]] * 2) if part != "decoder" else tokenizer.decode(tokenizer.encode(text))
