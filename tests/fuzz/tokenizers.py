"""Folders of tokenizers, and SentencePiece's files."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

from instil.data import sentencepiece
from instil.data.gguf_tokenizer import gguf_values
from instil.data.templates.find import find_template
from instil.data.tokenizers import FastTokenizer
from instil.errors import InstilError
from tests.fuzz.promise import Mutate, Target, file, folder
from tests.fuzz.trees import dumped, lay_out, parsed, tree_mutator
from tests.model.files.tensorflow_files import bytes_field, number_field, varint

SAID = "a b\n<|im_end|> Été 🙂 </s>12"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def in_use(tokenizer: FastTokenizer) -> None:
    """Text to ids and back, rows, and what is saved."""
    refused: list[InstilError] = []
    for use in (
        lambda: tokenizer.decode(tokenizer.encode(SAID)),
        lambda: tokenizer.cut([("a", False), ("", True), (SAID, False)]),
        lambda: tokenizer.cut_many([[("a", False), ("", True)], [(SAID, False)]]),
        lambda: [tokenizer.shown(tokenizer.eos_id), tokenizer.marks_in(SAID), tokenizer.hash, tokenizer.beyond(5)],
        lambda: tokenizer.saved().to_str(),
        lambda: gguf_values(
            tokenizer.saved(),
            eos_id=tokenizer.eos_id,
            bos_id=tokenizer.bos_id,
            stop_ids=tokenizer.stop_ids,
            size=min(tokenizer.largest_id + 2, 5000),
            chat_template="",
        ),
    ):
        try:
            use()
        except InstilError as error:
            refused.append(error)


def read(given: bytes) -> None:
    """The tokenizer of a folder, and its chat template."""
    try:
        files = parsed(given)
    except ValueError:
        files = {}
    with folder() as place:
        lay_out(place, files)
        tokenizer = FastTokenizer.from_folder(place)
        in_use(tokenizer)
        find_template("model", place, tokenizer)


def _state(model: dict[str, Any], **parts: Any) -> dict[str, Any]:
    """A ``tokenizer.json``."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added = [
        {"id": 0, "content": "<|im_start|>", "special": True, **flags},
        {"id": 1, "content": "<|im_end|>", "special": True, **flags},
    ]
    empty: dict[str, Any] = dict.fromkeys(
        ("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")
    )
    return {"version": "1.0", **empty, "added_tokens": added, "model": model, **parts}


def folders() -> list[Any]:
    """A folder for each kind of vocabulary, with files that agree."""
    ids = {
        "<|im_start|>": 0,
        "<|im_end|>": 1,
        "<unk>": 2,
        "a": 3,
        "b": 4,
        "Ġ": 5,
        "Ċ": 6,
        "ab": 7,
        "Ġa": 8,
        "▁": 9,
        "▁a": 10,
    }
    bpe = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": False,
        "vocab": ids,
        "merges": [["a", "b"], ["Ġ", "a"]],
    }
    space = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": "\\p{L}+|\\s+"}, "behavior": "Isolated", "invert": False},
            bytes_,
        ],
    }
    first = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [0], "tokens": ["<|im_start|>"]}},
    }
    unigram = {
        "type": "Unigram",
        "unk_id": 2,
        "byte_fallback": False,
        "vocab": [[token, -float(at)] for token, at in ids.items()],
    }
    pieces = {
        "type": "WordPiece",
        "unk_token": "<unk>",
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {**ids, "##b": 11},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "bos_token": "<|im_start|>",
        "chat_template": CHATML,
        "added_tokens_decoder": {
            "0": {"content": "<|im_start|>", "special": True},
            "1": {"content": "<|im_end|>", "special": True},
        },
    }
    model = {"model_type": "llama", "vocab_size": 12, "eos_token_id": 1, "bos_token_id": 0}
    lower = {
        "type": "Sequence",
        "normalizers": [{"type": "NFC"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}],
    }
    back = {
        "type": "Sequence",
        "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ],
    }
    made = [
        {"tokenizer.json": _state(bpe, pre_tokenizer=bytes_, decoder=bytes_, post_processor=first)},
        {"tokenizer.json": _state(bpe, pre_tokenizer=split, decoder=bytes_, post_processor=bytes_)},
        {
            "tokenizer.json": _state(
                {**bpe, "byte_fallback": True, "unk_token": "<unk>"}, normalizer=lower, decoder=back
            )
        },
        {"tokenizer.json": _state(unigram, pre_tokenizer=space, decoder=space)},
        {"tokenizer.json": _state(pieces, pre_tokenizer={"type": "Whitespace"}, normalizer={"type": "Lowercase"})},
    ]
    found = [{**files, "tokenizer_config.json": config, "config.json": model} for files in made]
    found.append(
        {
            **made[2],
            "tokenizer_config.json": {**config, "tokenizer_class": "LlamaTokenizer", "legacy": False},
            "config.json": model,
            "generation_config.json": {"eos_token_id": [1, 0]},
        }
    )
    end = {"<|endoftext|>": 12, '!"': 13, **{chr(code): code for code in range(33, 50)}}
    other = {
        "special_tokens_map.json": {"eos_token": {"content": "<|endoftext|>", "lstrip": False}},
        "added_tokens.json": {"<|im_end|>": 19},
        "tokenizer_config.json": {"tokenizer_class": "GPT2Tokenizer"},
    }
    found.append({"vocab.json": end, "merges.txt": '#version: 0.2\n! "\n', **other})
    found.append(
        {
            "vocab.json": end,
            "merges.txt": "",
            "tokenizer_config.json": {"tokenizer_class": "Qwen2Tokenizer"},
            "chat_template.jinja": CHATML,
            "additional_chat_templates/tool_use.jinja": CHATML,
        }
    )
    found.append(
        {
            "tokenizer.model": {"$bytes": next(models()).decode("latin-1")},
            "config.json": model,
            "chat_template.json": {"chat_template": CHATML},
        }
    )
    return found


WORDS: tuple[Any, ...] = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "config.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "generation_config.json",
    "eos_token",
    "bos_token",
    "unk_token",
    "pad_token",
    "additional_special_tokens",
    "extra_special_tokens",
    "added_tokens_decoder",
    "add_bos_token",
    "add_prefix_space",
    "LlamaTokenizer",
    "GPT2Tokenizer",
    "Qwen2Tokenizer",
    "GPTNeoXTokenizer",
    "legacy",
    "Metaspace",
    "ByteLevel",
    "Split",
    "Digits",
    "Punctuation",
    "Prepend",
    "NFC",
    "NFKC",
    "Strip",
    "StripAccents",
    "BertNormalizer",
    "Precompiled",
    "WordLevel",
    "FixedLength",
    "RobertaProcessing",
    "BertProcessing",
    "content",
    "special",
    "normalized",
    "single_word",
    "lstrip",
    "<|im_end|>",
    "</s>",
    "<unk>",
    "a",
    "▁",
    "Ġ",
    "ids",
    "model_type",
    "gpt2",
    "mistral",
    "eos_token_id",
    "dropout",
    0.5,
    {"type": "Digits", "individual_digits": True},
    {"type": "Prepend", "prepend": "▁"},
    {"type": "NFKC"},
    {"Regex": "(a|a)*$"},
    {"Regex": "("},
    {"type": "Truncate"},
    {"max_length": 1, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
    {"type": "Precompiled", "precompiled_charsmap": "AAAA"},
)


# SentencePiece


def read_pieces(given: bytes) -> None:
    """A ``tokenizer.model``, in use."""
    with file("tokenizer.model", given) as path:
        fast = sentencepiece.read(path)
        end = fast.id_to_token(fast.get_vocab_size() - 1)
        in_use(FastTokenizer(fast, end or "</s>"))


def models() -> Iterator[bytes]:
    """Byte-pair and unigram, with and without what falls back to bytes."""
    normal = ["▁", "a", "b", "▁a", "ab", "é"]
    for kind in (2, 1):
        for falls in (0, 1):
            pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
            pieces += [(f"<0x{code:02X}>", 0.0, 6) for code in range(256 * falls)]
            pieces += [(text, -float(at), 1) for at, text in enumerate(normal)] + [("<x>", 0.0, 4)]
            whole = b"".join(bytes_field(1, _piece(*piece)) for piece in pieces)
            trainer = number_field(3, kind) + number_field(35, falls)
            normalizer = bytes_field(1, b"identity") + number_field(3, 1) + number_field(4, kind - 1)
            yield whole + bytes_field(2, trainer) + bytes_field(3, normalizer)


def _piece(text: str, score: float, kind: int) -> bytes:
    return bytes_field(1, text.encode()) + varint(2 << 3 | 5) + struct.pack("<f", score) + number_field(3, kind)


def mutate_pieces(given: bytes, draw: Random, mutate: Mutate) -> bytes:
    """Fields of the message put elsewhere, left out, repeated, or changed, with their lengths made right."""
    if draw.random() < 0.2:
        return mutate(given, len(given) + 50)
    try:
        fields = list(_fields(given))
    except (ValueError, IndexError):
        return mutate(given, len(given) + 50)
    for _ in range(draw.choice((1, 1, 2, 3))):
        at = draw.randrange(len(fields) or 1)
        how = draw.randrange(5)
        if not fields or how == 0:
            fields.insert(at, (draw.randrange(1, 5), 2, mutate(b"a", 20)))
        elif how == 1:
            del fields[at]
        elif how == 2:
            fields.insert(draw.randrange(len(fields)), fields[at])
        else:
            number, wire, value = fields[at]
            fields[at] = (number, wire, _changed(value, draw, mutate))
    return _message(fields)


def _changed(value: Any, draw: Random, mutate: Mutate) -> Any:
    if isinstance(value, int):
        return draw.choice((0, 1, 2, 3, 4, 5, 6, 7, 255, 2**31, 2**64 - 1, value + 1))
    try:
        inner = list(_fields(value))
        at = draw.randrange(len(inner))
        number, wire, held = inner[at]
        if draw.random() < 0.2:
            del inner[at]
        elif isinstance(held, int):
            inner[at] = (number, wire, _changed(held, draw, mutate))
        elif wire == 5:
            inner[at] = (
                number,
                wire,
                draw.choice((b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\0\0\x80\x7f", held, b"\0\0\0\0")),
            )
        else:
            text = draw.choice((b"", b"a", b"ab", b"\xff", "▁".encode(), b"</s>", b"<0x41>", b"a" * 300, b"(", b"\0"))
            inner[at] = (number, wire, text if draw.random() < 0.5 else mutate(held, len(held) + 10))
        return _message(inner)
    except (ValueError, IndexError):
        return mutate(value, len(value) + 20)


def _fields(message: bytes) -> Iterator[tuple[int, int, Any]]:
    at = 0

    def number() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = number()
        wire = key & 7
        if wire == 0:
            yield key >> 3, 0, number()
            continue
        if wire not in (1, 2, 5):
            raise ValueError("no field")
        size = number() if wire == 2 else 8 if wire == 1 else 4
        if at + size > len(message):
            raise ValueError("cut off")
        yield key >> 3, wire, message[at : at + size]
        at += size


def _message(fields: Sequence[tuple[int, int, Any]]) -> bytes:
    made = b""
    for number, wire, value in fields:
        made += varint(number << 3 | wire)
        made += varint(value) if wire == 0 else (varint(len(value)) if wire == 2 else b"") + value
    return made


TARGETS = {
    "tokenizer": Target(read, lambda: [dumped(one) for one in folders()], tree_mutator(WORDS, folders), longest=30_000),
    "sentencepiece": Target(read_pieces, models, mutate_pieces, longest=10_000),
}
