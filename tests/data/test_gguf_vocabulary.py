"""Tokenizers out of GGUF files: llama.cpp is asked for the ids of awkward texts, for every pre-tokenizer it names."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, pre_tokenizers, trainers

from instil.data import gguf_vocabulary
from instil.data.byte_level import ELSEWHERE, PRE_TOKENIZERS
from instil.data.gguf_tokenizer import AWKWARD, gguf_values
from instil.data.gguf_vocabulary import KNOWN_ENDS
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.errors import ModelError
from tests.llama_cpp import LlamaCpp, llama_cpp, write_vocabulary

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
WORDS = (
    " the", "Hello", "WORLD", "don't", "12345", "  ", "\n\n", " привет", "中文", "foo_bar", "HTMLParser", " don'T",
    "été", "हिन्दी", "iPhone", "camelCase", "IMGIMGABZ", "<sentinel:12>", "a  1", "abc1234def", "we'LL 'ſ", " \r\n",
    "©\u2028©", "©\u3000©",
)  # fmt: skip
LETTERS = list("  \n\n\r\t'''sStTrReEvVlLdDmMaAzZ0123.,!?/\\-_()[]{}|<>=+$^~`\"#%&*;:@é") + list(
    "ÉßñЖжΩωλ中文字ひらカナ한국१٣①½ǅʰª्́̃🙂👩\u200d♀️€£©。，、！—“”…\u3000\u00a0\u2028\x85\x0b\x0c\x1c\u200c\ufeff𝒜𐐀ıİſK"
)
TEXTS = [
    *AWKWARD, *WORDS, "12345678", "a\u3000b\u2028c", "xX Xx xX's", "tab\there", *(" " * n for n in (3, 5, 17)),
    "we'RE 'TIS", "(x)\n\n  y", "…。！", "ㄅㄆ한글かな", "1 234 567 89", "e\u0301\u0301x", "\u094d\u0303a",
]  # fmt: skip


def made_up(seed: int, count: int) -> list[str]:
    """Texts of everything that pre-tokenizers tell apart."""
    rng = random.Random(seed)
    pick = (lambda: rng.choice(WORDS), lambda: rng.choice(LETTERS), lambda: rng.choice(LETTERS))
    return ["".join(rng.choice(pick)() for _ in range(rng.randrange(2, 25))) for _ in range(count)]


@pytest.fixture(scope="module")
def trained() -> dict[str, Any]:
    """A byte-level vocabulary whose tokens would cross every border of words, some of which merges do not make."""
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    trainer = trainers.BpeTrainer(
        vocab_size=1500, show_progress=False, max_token_length=12, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    fast.train_from_iterator([*TEXTS, *made_up(1, 400)], trainer)
    vocabulary = sorted(fast.get_vocab().items(), key=lambda entry: entry[1])
    merges = [" ".join(merge) for merge in json.loads(fast.to_str())["model"]["merges"]]
    whole = [token for token in ("Ġwhole", "HTMLParser", "xX", "ĠxX") if token not in fast.get_vocab()]
    return {"tokens": [*(token for token, _ in vocabulary), *whole], "merges": merges}


def differing(theirs: LlamaCpp, ours: Any, texts: Sequence[str], **how: bool) -> dict[str, tuple[list[int], list[int]]]:
    found = {text: (theirs.ids(text, **how), list(ours.encode(text).ids)) for text in texts}
    return {text: pair for text, pair in found.items() if pair[0] != pair[1]}


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_gives_llama_cpps_ids(pre: str, trained: dict[str, Any], tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "x.gguf", trained["tokens"], merges=trained["merges"], pre=pre, eos_token_id=3, bos_token_id=4
    )
    found = gguf_vocabulary.read(path)
    found.fast.encode_special_tokens = True
    names = [name for name, kind in PRE_TOKENIZERS.items() if kind is PRE_TOKENIZERS[pre]]
    texts = [*TEXTS, "a whole HTMLParser"] + (made_up(2, 80) if names[0] == pre else [])
    with llama_cpp(path) as theirs:
        assert differing(theirs, found.fast, texts, special=True) == {}


def test_a_pattern_that_is_another_names_is_noticed(trained: dict[str, Any], tmp_path: Path) -> None:
    """The texts tell all of them apart, so that each name is held by them."""
    ids = {}
    for pre, kind in PRE_TOKENIZERS.items():
        path = write_vocabulary(
            tmp_path / "x.gguf", trained["tokens"], merges=trained["merges"], pre=pre, eos_token_id=3, bos_token_id=4
        )
        if kind not in ids.values():
            ids[pre] = kind
            found = gguf_vocabulary.read(path).fast
            ids[pre] = kind, tuple(tuple(one.ids) for one in found.encode_batch([*TEXTS, "a whole", *made_up(2, 80)]))
    said = {}
    for pre, (kind, encoded) in ids.items():
        said.setdefault(encoded, {})[kind.patterns, kind.ignore_merges, kind.adds_bos] = pre
    alike = [set(names.values()) for names in said.values() if len(names) > 1]
    assert alike == [{"grok-2", "llada-moe"}]  # one is the other, written in another way


@pytest.mark.parametrize("pre", ELSEWHERE)
def test_those_that_cannot_be_built_are_refused_by_name(pre: str, trained: dict[str, Any], tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "x.gguf", trained["tokens"], merges=trained["merges"], pre=pre, eos_token_id=3)
    with pytest.raises(ModelError, match=f"its pre-tokenizer is '{pre}', which cannot be built here.*tokenizer.json"):
        gguf_vocabulary.read(path)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"pre": "qwen3"}, r"pre-tokenizer is 'qwen3', which is not known here \(did you mean 'qwen2'|qwen35"),
        ({"model": "t5"}, r"of the kind 't5'; built here are gpt2 \(byte-pair\) and llama \(SentencePiece\)"),
        ({"model": "bert"}, "of the kind 'bert'"),
        ({"merges": ["no such"]}, "do not belong together"),
        ({"eos_token_id": 10**6}, "names no end token"),
        ({"token_type": [1, 1]}, "does not say the kind of each"),
        ({"model": "llama"}, "does not hold a score for each"),
        ({"pre": "llama-bpe", "bos_token_id": 10**6}, None),
    ],
)
def test_other_vocabularies_are_refused(
    values: dict[str, Any], says: str | None, trained: dict[str, Any], tmp_path: Path
) -> None:
    said = {"merges": trained["merges"], "pre": "gpt-2", "eos_token_id": 3, **values}
    path = write_vocabulary(tmp_path / "x.gguf", trained["tokens"], **said)
    if says is None:  # llama.cpp then takes the token that stands there in its first vocabulary, and so is done here
        assert gguf_vocabulary.read(path).bos == trained["tokens"][11]
        return
    with pytest.raises(ModelError, match=says):
        gguf_vocabulary.read(path)


def test_tokens_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    path = write_vocabulary(tmp_path / "x.gguf", ["a", "b", "a"], merges=["a b"], pre="gpt-2", eos_token_id=0)
    with pytest.raises(ModelError, match="1 of its tokens are there twice"):
        gguf_vocabulary.read(path)


def with_tokens(trained: dict[str, Any], **kinds: int) -> dict[str, Any]:
    more = list(kinds)
    return {
        "tokens": [*trained["tokens"], *more],
        "token_type": [NORMAL] * len(trained["tokens"]) + [kinds[token] for token in more],
        "merges": trained["merges"],
    }


def test_user_defined_tokens_are_single_and_control_tokens_plain_text(trained: dict[str, Any], tmp_path: Path) -> None:
    kinds = {
        "<think>": USER_DEFINED,
        "</think>": USER_DEFINED,
        "<tool>": CONTROL,
        "<|im_end|>": NORMAL,
        "\n\n\n": USER_DEFINED,
    }
    kinds |= {"<|channel|>": CONTROL, "<|end|>": NORMAL, "</s>": NORMAL, "\n\n\n": USER_DEFINED}
    said = with_tokens(trained, **kinds)
    tokens = said.pop("tokens")
    end = tokens.index("<|im_end|>")
    path = write_vocabulary(tmp_path / "x.gguf", tokens, pre="qwen2", eos_token_id=end, **said)
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, FastTokenizer)
    texts = [f" a{token}b {token}{token}\n" for token in kinds] + ["<think>\n\n\n\nx</think>", "<|im_end|>"]
    with llama_cpp(path) as theirs:
        for text in texts:
            assert tokenizer.encode(text) == theirs.ids(text), text
    assert tokenizer.control_id("<think>") in tokenizer.encode("a<think>b")
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(f'{{"eos_token_id": {end}}}')
    again = load_tokenizer(tmp_path)
    assert [again.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("kinds", "values"),
    [
        (dict.fromkeys(KNOWN_ENDS - {"<|tool_response>", "<|return|>", "<|flush|>"}, NORMAL), {}),
        (dict.fromkeys(("<|end|>", "<|return|>", "<|call|>", "</s>", "<|tool_response>"), CONTROL), {}),
        (dict.fromkeys(("<|end|>", "<|calls|>", "<|flush|>", "</s>"), CONTROL), {}),
        ({"<a>": CONTROL, "<b>": CONTROL, "<c>": NORMAL}, {"eot_token_id": "<a>", "eom_token_id": "<b>"}),
        ({"<|file_sep|>": CONTROL, "<a>": CONTROL}, {"fim_sep_token_id": "<a>", "fim_pre_token_id": "<|file_sep|>"}),
        ({"<|eot|>": CONTROL, "[INST]": CONTROL, "<fim_middle>": CONTROL}, {}),
    ],
    ids=["all", "harmony", "solar", "named", "fill-in", "none"],
)
def test_the_tokens_that_end_an_answer_are_llama_cpps(
    kinds: dict[str, int], values: dict[str, str], trained: dict[str, Any], tmp_path: Path
) -> None:
    """Each is made the likeliest in turn: llama.cpp says whether it stopped at it."""
    several = ("<fim_pad>", "[PAD]", "<PAD>", "<fim-pad>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")
    kinds = {text: kind for text, kind in kinds.items() if text not in several}  # of which llama.cpp knows one each
    said = with_tokens(trained, **kinds)
    tokens = said.pop("tokens")
    ids = {token: index for index, token in enumerate(tokens)}
    named = {key: ids[text] for key, text in values.items()}
    path = write_vocabulary(tmp_path / "x.gguf", tokens, pre="qwen2", eos_token_id=3, **said, **named)
    found = gguf_vocabulary.read(path)
    with llama_cpp(path) as theirs:
        ends = {
            token
            for token in [tokens[3], tokens[5], *kinds]
            if theirs.greedy([7], 2, logit_bias=[[ids[token], 1e6]])["stop_type"] == "eos"
        }
    assert {found.eos, *found.stops} == ends


@pytest.fixture(scope="module")
def pieces() -> dict[str, Any]:
    """A vocabulary with scores, as SentencePiece's converter writes one."""
    fast = Fast(models.BPE(unk_token="<unk>"))
    marked = [re.sub(" ", "▁", f" {text}") for text in [*TEXTS, *made_up(3, 300), " " * 40, "aaaaaaaaaaaaa"]]
    letters = sorted({letter for text in marked for letter in text if ord(letter) < 0x500 or letter == "▁"})
    trainer = trainers.BpeTrainer(vocab_size=1200, show_progress=False, initial_alphabet=letters, limit_alphabet=400)
    fast.train_from_iterator(marked, trainer)
    state = json.loads(fast.to_str())["model"]
    merges = {"".join(merge): -float(rank) for rank, merge in enumerate(state["merges"])}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    scores = [0.0] * len(tokens)
    for token in sorted(state["vocab"], key=state["vocab"].__getitem__):
        tokens.append(token)
        kinds.append(NORMAL)
        scores.append(merges.get(token, -1e6))
    for run in range(2, 14):  # as in Llama 2: runs of spaces that share one score
        if (token := "▁" * run) in tokens:
            scores[tokens.index(token)] = -1e9
        else:
            tokens.append(token)
            kinds.append(NORMAL)
            scores.append(-1e9)
    for token, kind in {"<think>": USER_DEFINED, "[/INST]": CONTROL, "\n\n": USER_DEFINED, "unused": UNUSED}.items():
        if token not in tokens:
            tokens.append(token)
            kinds.append(kind)
            scores.append(-1000.0)
    return {"tokens": tokens, "token_type": kinds, "scores": scores}


@pytest.mark.parametrize("model", ["gpt2", "llama"])
@pytest.mark.parametrize("adds", [None, True, False])
def test_bos_comes_first_where_llama_cpp_puts_it(
    model: str, adds: bool | None, trained: dict[str, Any], pieces: dict[str, Any], tmp_path: Path
) -> None:
    said = {**pieces, "model": model} if model == "llama" else {**trained, "pre": "smollm", "bos_token_id": 9}
    said |= {"eos_token_id": 2} | ({} if adds is None else {"add_bos_token": adds})
    tokens = said.pop("tokens")
    path = write_vocabulary(tmp_path / "x.gguf", tokens, **said)
    found = gguf_vocabulary.read(path)
    with llama_cpp(path) as theirs:
        assert found.fast.encode("ab").ids == theirs.ids("ab", special=True)
    assert found.bos == tokens[1 if model == "llama" else 9]
    FastTokenizer(found.fast, found.eos).save(tmp_path)
    assert Fast.from_file(str(tmp_path / "tokenizer.json")).encode("ab").ids == found.fast.encode("ab").ids


@pytest.mark.parametrize("prefix", [None, True, False])
def test_sentencepiece_vocabularies_give_llama_cpps_ids(
    prefix: bool | None, pieces: dict[str, Any], tmp_path: Path
) -> None:
    said = dict(pieces) | ({} if prefix is None else {"add_space_prefix": prefix})
    path = write_vocabulary(tmp_path / "x.gguf", said.pop("tokens"), model="llama", **said)
    found = gguf_vocabulary.read(path)
    found.fast.encode_special_tokens = True
    texts = [
        *TEXTS,
        *made_up(4, 250),
        *(" " * n for n in range(40)),
        *("a" * n for n in range(12)),
        *("=" * n for n in range(9)),
    ]
    texts += ["a <think> b", "<think>x", "[/INST] x", "a\n\n\nb", "▁a▁", "unused"]
    with llama_cpp(path) as theirs:
        apart = differing(theirs, found.fast, texts, special=True)
    assert all("<s>" in text and 2 in ids and 2 not in ours for text, (ids, ours) in apart.items())  # it makes </s>
    assert len(apart) < 2
    assert (found.eos, found.stops, found.bos) == ("</s>", (), "<s>")
    for text in ("the  café\n漢 🙂", "x"):
        assert found.fast.decode(found.fast.encode(text).ids) == text


def test_tokens_of_characters_that_are_no_tokens_are_refused(pieces: dict[str, Any], tmp_path: Path) -> None:
    """llama.cpp makes them, which cannot be said to a byte-pair encoding."""
    said = {name: [*values] for name, values in pieces.items()}
    for name, value in (("tokens", "xþ"), ("token_type", NORMAL), ("scores", -1e5)):
        said[name].append(value)
    path = write_vocabulary(tmp_path / "x.gguf", said.pop("tokens"), model="llama", **said)
    with pytest.raises(ModelError, match="its token 'xþ' is made of 'þ', which is no token itself"):
        gguf_vocabulary.read(path)


def test_scores_that_say_nothing_are_refused(pieces: dict[str, Any], tmp_path: Path) -> None:
    said = {**pieces, "scores": [-1000.0] * len(pieces["tokens"])}
    path = write_vocabulary(tmp_path / "x.gguf", said.pop("tokens"), model="llama", **said)
    with pytest.raises(ModelError, match=r"its tokens .* have one score.*Put the model's tokenizer\.json beside"):
        gguf_vocabulary.read(path)


LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ISOLATED, CONTIGUOUS = {"behavior": "isolated"}, {"behavior": "contiguous"}


@pytest.mark.parametrize(
    ("steps", "ignores", "pre"),
    [
        ([("ByteLevel", {"use_regex": True})], False, "gpt-2"),
        ([("Digits", {"individual_digits": True}), ("ByteLevel", {"use_regex": True})], False, "smollm"),
        ([("Split", {"pattern": LLAMA3, **ISOLATED})], True, "llama-bpe"),
        ([("Split", {"pattern": LLAMA3, **ISOLATED})], False, "dbrx"),
        ([("Split", {"pattern": LLAMA3.replace("{1,3}", ""), "behavior": "removed", "invert": True})], False, "qwen2"),
        ([("Split", {"pattern": TEKKEN, **ISOLATED})], True, "tekken"),
        (
            [
                ("Punctuation", CONTIGUOUS),
                ("ByteLevel", {"use_regex": True}),
                ("Digits", {"individual_digits": False}),
                ("Split", {"pattern": "[0-9][0-9][0-9]", **ISOLATED}),
            ],
            False,
            None,
        ),
        (
            [
                ("Split", {"pattern": "[\r\n]", **ISOLATED}),
                ("Split", {"pattern": r"\s?\p{L}+", **ISOLATED}),
                ("Split", {"pattern": r"\s?\p{P}+", **ISOLATED}),
                ("Split", {"pattern": "[一-龥ࠀ-一가-\ud7ff]+", **ISOLATED}),
                ("Digits", {"individual_digits": True}),
            ],
            False,
            "deepseek-coder",
        ),
    ],
    ids=["gpt-2", "smollm", "llama-bpe", "dbrx", "qwen2", "tekken", "unknown", "deepseek-coder"],
)
def test_the_way_of_tokenizer_json_has_llama_cpps_name(steps: list[Any], ignores: bool, pre: str | None) -> None:
    from tokenizers import Regex

    ids = {letter: index for index, letter in enumerate([*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", "<e>"])}
    fast = Fast(models.BPE(ids, [("h", "e")], ignore_merges=ignores))
    made = []
    for kind, how in steps:
        more = {"pattern": Regex(how["pattern"])} if "pattern" in how else {}
        more |= {"add_prefix_space": False} if kind == "ByteLevel" else {}
        made.append(getattr(pre_tokenizers, kind)(**{**how, **more}))
    if steps[-1][0] != "ByteLevel":
        made.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    fast.pre_tokenizer = pre_tokenizers.Sequence(made)
    say = lambda: gguf_values(fast, eos_id=257, bos_id=None, stop_ids=(), size=258, chat_template="")  # noqa: E731
    if pre is None:
        with pytest.raises(ModelError, match="no name for the way"):
            say()
    else:
        assert say()["tokenizer.ggml.pre"] == pre


@pytest.mark.parametrize("pre", {kind: name for name, kind in reversed(PRE_TOKENIZERS.items())}.values())
def test_what_is_read_is_written_under_such_a_name(pre: str, trained: dict[str, Any], tmp_path: Path) -> None:
    path = write_vocabulary(
        tmp_path / "x.gguf", trained["tokens"], merges=trained["merges"], pre=pre, eos_token_id=3, bos_token_id=4
    )
    fast, size = gguf_vocabulary.read(path).fast, len(trained["tokens"])
    said = gguf_values(fast, eos_id=3, bos_id=4, stop_ids={3}, size=size, chat_template="")
    written = PRE_TOKENIZERS[said["tokenizer.ggml.pre"]]
    kind = PRE_TOKENIZERS[pre]
    assert (written.patterns, written.ignore_merges) == (kind.patterns, kind.ignore_merges)
    assert said["tokenizer.ggml.add_bos_token"] == kind.adds_bos
