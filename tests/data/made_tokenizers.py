"""Tokenizers of every kind, drawn at random: vocabularies, normalizers, pre-tokenizers, post-processors, added tokens.

Each is saved by `transformers`, as the models of the hub are.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\n### Input:\n### Response:\nuser\nassistant\nsystem\n<|user|>\n<|assistant|>\n",
    "The quick brown fox jumps over the lazy dog 0123456789 times; it's naïve, isn't it? Café, 漢字 and 🙂!",
    "Name a colour. Red. Write it in C#, please. Paris is the capital of France (of course) [yes] {no} | a/b.",
    "  two spaces,\ttabs\r\nand new lines\n\n\nand an end. ЗДРАВСТВУЙТЕ, Ångström, ﬁne ½ ① İstanbul ß",
] * 3
WORDS = [
    "Name a colour.", "Red", " Paris", "write it in C#, please", "naïve café", "It's 1234", "漢字 🙂", "two  spaces",
    "x\ty", "new\nline", "\n\nlead", "trail \n", "ÀÉ", "THE END", "e\u0301", "ﬁne ½", "<s>", "</s>", "<|im_end|>",
    "<|endoftext|>", "[SEP]", "<think>a</think>", "ZZ", "a", " ", "#", "user\n", "<|im_start|>assistant",
    "\ufdd0n\ufdd1", "B" * 12,
]  # fmt: skip
MARKS = [
    "<|im_start|>",
    "<|im_end|>",
    "<|user|>",
    "<|assistant|>",
    "<think>",
    "</think>",
    "<end_of_turn>",
    "ZZ",
    "[SEP]",
]


@dataclass
class Made:
    """A tokenizer in a folder, and how it was drawn."""

    folder: Path
    theirs: Any
    drawn: dict[str, Any] = field(default_factory=dict)


@cache
def vocabulary(kind: str) -> str:
    """A small trained vocabulary of a kind, as JSON."""
    if kind == "bytes":
        fast = Tokenizer(models.BPE())
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=420, initial_alphabet=alphabet, show_progress=False)
    elif kind == "sentencepiece":
        fast = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    elif kind == "unigram":
        fast = Tokenizer(models.Unigram())
        fast.pre_tokenizer = pre_tokenizers.Metaspace()
        special = ["<unk>", "<s>", "</s>"]
        trainer = trainers.UnigramTrainer(
            vocab_size=200, special_tokens=special, unk_token="<unk>", show_progress=False
        )
    else:
        fast = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        fast.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordPieceTrainer(vocab_size=300, special_tokens=["[UNK]", "[CLS]"], show_progress=False)
    fast.train_from_iterator(CORPUS, trainer)
    state = json.loads(fast.to_str())
    state["added_tokens"] = []
    return json.dumps(state)


def make(folder: Path, seed: int) -> Made:
    """Draw a tokenizer and save it with a configuration of a Llama."""
    import transformers

    draw = random.Random(seed)
    kind = draw.choice(["bytes", "bytes", "sentencepiece", "sentencepiece", "unigram", "wordpiece"])
    fast = Tokenizer.from_str(vocabulary(kind))
    drawn: dict[str, Any] = {"kind": kind}
    chosen = _pipeline(fast, kind, draw)
    drawn |= chosen
    eos = draw.choice(["</s>", "<|endoftext|>", "<|im_end|>", "END"])
    bos = draw.choice(["<s>", eos if eos != "END" else "<s>"])
    tokens = [AddedToken(eos, special=draw.random() < 0.8 or eos == "END", normalized=False)]
    tokens += [AddedToken(bos, special=True, normalized=False)] * (bos != eos)
    for mark in draw.sample(MARKS, draw.randint(0, 6)):
        flags = {flag: draw.random() < 0.25 for flag in ("lstrip", "rstrip", "normalized", "single_word")}
        if mark in (eos, bos):
            continue
        tokens.append(AddedToken(mark, special=draw.random() < 0.5, **flags))
    for token in tokens:
        (fast.add_special_tokens if token.special else fast.add_tokens)([token])
    drawn["tokens"] = tokens
    drawn["after"] = after = draw.choice(["none", "none", "bos", "bos eos", "eos", "roberta", "bytes"])
    ids = {token: fast.token_to_id(token) for token in (bos, eos)}
    if after == "bytes":
        fast.post_processor = processors.ByteLevel(trim_offsets=True)
    elif after == "roberta":
        fast.post_processor = processors.RobertaProcessing((eos, ids[eos]), (bos, ids[bos]))
    elif after != "none":
        single = " ".join([*([bos] if "bos" in after else []), "$A", *([eos] if "eos" in after else [])])
        fast.post_processor = processors.TemplateProcessing(single=single, special_tokens=list(ids.items()))
    names = {"eos_token": eos, "bos_token": bos}
    if kind in ("sentencepiece", "unigram"):
        names["unk_token"] = "<unk>"
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **names)
    made.save_pretrained(folder)
    rows = max(made.get_vocab().values()) + 1
    transformers.LlamaConfig(vocab_size=rows).save_pretrained(folder)
    return Made(folder, transformers.AutoTokenizer.from_pretrained(folder), drawn)


def _pipeline(fast: Tokenizer, kind: str, draw: random.Random) -> dict[str, str]:
    usual: list[Any] = [None, None, normalizers.NFC(), normalizers.NFKC(), normalizers.Lowercase()]
    usual.append(normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(), normalizers.Lowercase()]))
    norm = draw.choice(usual)
    if kind == "bytes":
        steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=draw.random() < 0.3, use_regex=True)]
        more = draw.choice(["", "digits", "split"])
        if more == "digits":
            steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
        if more == "split":
            pattern = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
            steps.insert(0, pre_tokenizers.Split(pattern, behavior="isolated"))
            steps[1] = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        pre, decoder = pre_tokenizers.Sequence(steps), decoders.ByteLevel()
    elif kind == "sentencepiece" and draw.random() < 0.5:  # the older form: by normalizers
        prepend = [normalizers.Prepend("▁")] if draw.random() < 0.8 else []
        norm = normalizers.Sequence([*([norm] if norm else []), *prepend, normalizers.Replace(" ", "▁")])
        pre, more = None, "older"
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prepend else steps)
    elif kind in ("sentencepiece", "unigram"):
        more = draw.choice(["always", "first", "never"])
        pre = pre_tokenizers.Metaspace(prepend_scheme=more, split=draw.random() < 0.5)
        decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme=more)])
    else:
        more = draw.choice(["", "bert"])
        norm = normalizers.BertNormalizer(lowercase=draw.random() < 0.5) if more else norm
        pre = pre_tokenizers.BertPreTokenizer() if more else pre_tokenizers.Whitespace()
        decoder = decoders.WordPiece()
    if norm is not None:
        fast.normalizer = norm
    if pre is not None:
        fast.pre_tokenizer = pre
    fast.decoder = decoder
    return {"normalizer": repr(norm), "more": more}


def text(draw: random.Random) -> str:
    """A text of a few words, some of which are tokens' names."""
    return "".join(draw.choice(WORDS) + draw.choice(["", " ", "\n"]) for _ in range(draw.randint(1, 4)))
