"""Models taken to llama.cpp: the same ids, the same greedy tokens, or a refusal that says why.

A family is held by a line of `tests.model.family_cases.CASES`; ``gguf=None`` there says that llama.cpp computes
something else, and the export has to say so, too.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast

import instil
from instil.data.byte_level import byte_level
from instil.data.encoding import encode_prompt
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.errors import ModelError, SettingsError, UserError
from instil.generate.prompts import generate
from instil.gguf_header import read_gguf
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.load import load_decoder
from instil.recipes.export.export import export
from instil.records import Example
from tests.conftest import tiny_reference
from tests.llama_cpp import apart, llama_cpp
from tests.model.family_cases import CASES

EXPORTED = [name for name, case in CASES.items() if case.gguf is not None]
PROMPTS = ("the thing in the hen", "Name 3 colours", "x")
END, TURN, THINK = "<|endoftext|>", "<|im_end|>", "<think>"


def byte_pairs(pre: str = "smollm") -> Fast:
    """A small byte-level vocabulary with control tokens and one that is user-defined."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("h", "e"), ("Ġt", "he"), ("i", "n"), ("r", "e"), ("o", "n"), ("Ġ", "a"), ("Ċ", "Ċ")]
    tokens = [*letters, *("".join(pair) for pair in merges), END, "<|im_start|>", TURN, THINK]
    ids = {token: index for index, token in enumerate(tokens)}
    fast = byte_level(ids, merges, pre, {token: ids[token] for token in (END, "<|im_start|>", TURN)})
    fast.add_tokens([AddedToken(THINK, special=False, normalized=False)])
    return fast


def folder_of(path: Path, family: str, fast: Fast | None = None, end: str = TURN, **changes: Any) -> Path:
    """A random model of a case, with a tokenizer, as a folder."""
    fast = fast or byte_pairs()
    size = fast.get_vocab_size() + 3  # an embedding with rows that no token has
    tiny_reference(family, vocab_size=size, **changes).save_pretrained(path)
    FastTokenizer(fast, end).save(path)
    for name in ("config.json", "generation_config.json"):
        said = json.loads((path / name).read_text())
        said["eos_token_id"] = fast.token_to_id(end)
        (path / name).write_text(json.dumps(said))
    return path


def logits(model: Path) -> torch.Tensor:
    decoder = load_decoder(model)
    with torch.no_grad():
        return decoder.logits(decoder(batch_of_ids(torch.arange(40).view(2, 20))))


# Values of cases for which llama.cpp has no words in a family, changed.
OLMO = {"tied": False, "attention_bias": False, "hidden_size": 24, "head_dim": 8}
IN_GGUF: dict[str, dict[str, Any]] = {
    "gemma": {"attention_bias": False},
    "olmo2": {**OLMO, "head_dim": 4},
    "olmo3": {**OLMO, **(CASES["olmo3"].gguf or {})},
    "olmo3-yarn": OLMO,
    "qwen3": {"attention_bias": False},
    "phi3": {"sliding_window": None},
    "gpt_neox": {"tied": False},
    # llama.cpp takes the short factors for contexts of up to that, and makes every context a multiple of 256
    "phi3-longrope": {"original_max_position_embeddings": 256, "max_position_embeddings": 1024},
}


@pytest.mark.parametrize("family", EXPORTED)
def test_llama_cpp_says_the_same_tokens(family: str, tmp_path: Path) -> None:
    """Scores to the rounding of float32, greedy tokens of prompts, and the ids of texts, in every family."""
    folder = folder_of(tmp_path / "hf", family, **for_llama_cpp(family))
    file = export(folder, "gguf", tmp_path / "x.gguf").path
    torch.testing.assert_close(logits(file), logits(folder), rtol=1e-4, atol=1e-4)
    tokenizer, decoder = load_tokenizer(folder), load_decoder(folder)
    with llama_cpp(file) as theirs:
        assert apart(theirs, decoder, tokenizer.encode("the thing"), tokenizer.encode("x")[0]) < rounding(decoder)
    both = list(said_by_both(folder, file))
    assert len(both) == len(PROMPTS)
    for ours, wanted in both:
        assert ours == wanted


def rounding(decoder: Decoder) -> float:
    """How far llama.cpp's scores may be from ours: it looks GELU up in a table of half precision."""
    return 1e-3 if decoder.spec.mlp in ("gelu", "gelu_exact", "geglu") else 1e-5


def for_llama_cpp(family: str) -> dict[str, Any]:
    """Changes of a case with which llama.cpp computes it."""
    return {**(CASES[family].gguf or {}), **IN_GGUF.get(family, {})}


def said_by_both(folder: Path, file: Path) -> Iterator[tuple[list[int], list[int]]]:
    """Ids of prompts and of what follows them greedily, here and in llama.cpp; as far as the file's context goes."""
    tokenizer, decoder = load_tokenizer(folder), load_decoder(folder)
    context = load_decoder(file).spec.context
    with llama_cpp(file) as theirs:
        for text in PROMPTS:
            ids = tokenizer.encode(text)
            if len(ids) < context:
                count = min(12, context - len(ids))
                (said,) = generate(decoder, [ids], max_new_tokens=count, stop_ids=frozenset())
                found = theirs.greedy(ids, len(said.ids), ignore_eos=True)["tokens"]
                yield [*ids, *said.ids], [*theirs.ids(text), *found]


@pytest.mark.parametrize("family", ["mistral-window", "phi3", "qwen2-windows"])
def test_windows_that_llama_cpp_does_not_know_shorten_the_context(family: str, tmp_path: Path) -> None:
    even = {"head_dim": 4} if family == "qwen2-windows" else {}
    folder = folder_of(tmp_path / "hf", family, **even)
    file = export(folder, "gguf", tmp_path / "x.gguf").path
    window = min(window for window in load_decoder(folder).spec.windows if window)
    assert load_decoder(file).spec.context == window
    ids = load_tokenizer(folder).encode("in")
    (said,) = generate(load_decoder(folder), [ids], max_new_tokens=window - len(ids), stop_ids=frozenset())
    with llama_cpp(file) as theirs:
        assert theirs.greedy(ids, len(said.ids), ignore_eos=True)["tokens"] == list(said.ids)


@pytest.mark.parametrize(
    ("family", "changes", "says"),
    [
        ("qwen3", {}, r"reads no blocks\.\{i\}\.attention\.out\.bias in a qwen3 model\. Use --to hf"),
        ("qwen2-windows", {}, r"reads no 6 heads of 8 in a width of 24 in a qwen2 model"),
        ("gpt_neox", {}, r"reads one without head\.weight in a gpt_neox model"),
        ("starcoder2-window", {}, r"one without blocks.*bias"),
        ("smollm3-windows", {"attention_bias": False}, r"no words for rope_layers=\(False, True, False\)"),
        ("gemma3", {"query_pre_attn_scalar": 7}, r"no words for attention_multiplier=0\.37.* would take 0\.31"),
        ("gemma2", {"query_pre_attn_scalar": 7}, r"no words for attention_multiplier=0\.37.* would take 0\.31"),
        ("gemma2", {"query_pre_attn_scalar": 10, "attn_logit_softcapping": None}, "no words for attention_softcap"),
        ("gemma2", {"query_pre_attn_scalar": 10, "tied": False}, r"reads no head\.weight in a gemma2 model"),
        ("olmo2", {}, r"reads no blocks.*bias and one without head\.weight and no 6 heads of 8 in a width of 20"),
        ("olmo3", OLMO, "no words for window_rope_theta=70.0"),
        (
            "qwen2",
            {"rope_parameters": {"rope_type": "llama3", "rope_theta": 3e3, "factor": 4.0, "low_freq_factor": 1.0,
                                 "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
            "does not scale the rope of a qwen2 model by 'llama3'",
        ),
    ],
)  # fmt: skip
def test_what_llama_cpp_does_not_compute_is_refused(
    family: str, changes: dict[str, Any], says: str, tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "hf", family, **changes)
    with pytest.raises(ModelError, match=says):
        export(folder, "gguf", tmp_path / "x.gguf")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


def test_the_scaling_of_llama_3_goes_along(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}  # fmt: skip
    folder = folder_of(tmp_path / "hf", "llama", rope_parameters=rope)
    file = export(folder, "gguf", tmp_path / "x.gguf").path
    assert load_decoder(file).spec.rope_scaling == load_decoder(folder).spec.rope_scaling
    ids = load_tokenizer(folder).encode("the thing in the hen and the hen in the thing")
    (said,) = generate(load_decoder(folder), [ids], max_new_tokens=20, stop_ids=frozenset())
    with llama_cpp(file) as theirs:
        assert theirs.greedy(ids, 20, ignore_eos=True)["tokens"] == list(said.ids)


def test_a_file_is_not_written_over_and_nothing_is_left_of_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path / "hf", "llama")
    (tmp_path / "x.gguf").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        export(folder, "gguf", tmp_path / "x.gguf")
    assert (tmp_path / "x.gguf").read_text() == "mine"
    monkeypatch.setattr("instil.model.files.reader.pairs_from_halves", lambda rows, width: rows)
    with pytest.raises(ModelError, match=r"the file's logits are .* of the greatest from the model's"):
        export(folder, "gguf", tmp_path / "y.gguf")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["hf", "x.gguf"]


@pytest.mark.parametrize("begins", [True, False])
@pytest.mark.parametrize("template", ["chatml", "alpaca"])
def test_llama_cpp_is_asked_with_the_ids_of_training(template: str, begins: bool, tmp_path: Path) -> None:
    """With one BOS, or none, as the tokenizer puts it."""
    fast = byte_pairs()
    if begins:
        put_first(fast, "<|im_start|>")
    folder = folder_of(tmp_path / "hf", "llama", fast, max_position_embeddings=512)
    file = export(folder, "gguf", tmp_path / "x.gguf", template=template).path
    assistant = instil.load(folder, template=template)
    question = "What is in <think>the hen</think>?\n\nSay\u00e9 it."
    trained = encode_prompt(Example(question, "", ""), assistant.template, assistant.tokenizer)
    with llama_cpp(file, context=512) as theirs:
        asked = theirs.ids(theirs.rendered(("user", question)), special=True, parse=True)
        stopped = theirs.greedy(trained, 4, logit_bias=[[fast.token_to_id(TURN), 1e6]])
    first = fast.token_to_id("<|im_start|>")
    if begins and trained[0] != first:
        trained = [first, *trained]
    assert asked == trained
    assert stopped["stop_type"] == "eos"


def put_first(fast: Fast, token: str) -> None:
    from tokenizers.processors import TemplateProcessing

    fast.post_processor = TemplateProcessing(single=[token, "$A"], special_tokens=[(token, fast.token_to_id(token))])


def test_tokens_keep_their_kinds(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", "llama")
    file = export(folder, "gguf", tmp_path / "x.gguf").path
    ours, again = load_tokenizer(folder), load_tokenizer(file)
    for text in (f"a{THINK}b", "<|im_end|>", " <|endoftext|> ", "[PAD271]"):
        assert again.encode(text) == ours.encode(text)
    assert ours.control_id(THINK) in again.encode(f"a{THINK}b")
    assert again.eos_id == ours.eos_id == ours.control_id(TURN)
    assert again.stop_ids == {ours.control_id(TURN), ours.control_id(END)}
    again.save(tmp_path)
    assert load_tokenizer(tmp_path).encode(f"a{THINK}b") == ours.encode(f"a{THINK}b")


def test_an_end_that_is_not_called_special_is_a_control_token_there(tmp_path: Path) -> None:
    """Phi-3 has such a one, which takes the white space behind it along."""
    fast = byte_pairs()
    fast.add_tokens([AddedToken("</s>", special=False, normalized=False, rstrip=True)])
    folder = folder_of(tmp_path / "hf", "llama", fast)
    file = export(folder, "gguf", tmp_path / "x.gguf").path
    end = fast.token_to_id("</s>")
    assert end in load_tokenizer(file).stop_ids
    with llama_cpp(file) as theirs:
        assert theirs.ids("a</s> b", parse=True)[1] == end
        assert end not in theirs.ids("a</s> b")
    fast.add_tokens([AddedToken("<mask>", special=False, normalized=False, lstrip=True)])
    with pytest.raises(ModelError, match="the token '<mask>' takes white space around it"):
        export(folder_of(tmp_path / "other", "llama", fast), "gguf", tmp_path / "y.gguf")


def test_marks_that_take_white_space_along_are_refused_where_the_template_has_them(tmp_path: Path) -> None:
    """Phi-3's, which llama.cpp knows by the model's name alone."""
    fast = byte_pairs()
    fast.add_special_tokens([AddedToken("<|user|>", special=True, normalized=False, rstrip=True)])
    folder = folder_of(tmp_path / "hf", "llama", fast)
    export(folder, "gguf", tmp_path / "x.gguf", template="alpaca")
    with pytest.raises(ModelError, match="would cut prompts of the template 'phi3' into other tokens"):
        export(folder, "gguf", tmp_path / "y.gguf", template="phi3")


def test_a_control_token_beyond_the_embedding_is_left_out(tmp_path: Path) -> None:
    """Gemma 3's mark of an image."""
    fast = byte_pairs()
    fast.add_special_tokens([AddedToken("<image_soft_token>", special=True, normalized=False)])
    folder = folder_of(tmp_path / "hf", "llama", fast)
    tiny_reference("llama", vocab_size=fast.get_vocab_size() - 1).save_pretrained(folder)
    assert load_tokenizer(export(folder, "gguf", tmp_path / "x.gguf").path).vocab_size == fast.get_vocab_size() - 1


def sentencepiece_like(kind: str) -> Fast:
    """A byte-pair encoding that marks spaces, in the ways of tokenizer.json."""
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("i", "n"), ("r", "e"), ("▁", "▁"), ("▁▁", "▁▁"), ("o", "n")]
    letters = [*"▁abcdefghijklmnopqrstuvwxyz.,N3\n"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    tokens += ["".join(pair) for pair in merges]
    ids = {token: index for index, token in enumerate(tokens)}
    fast = Fast(models.BPE(ids, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replaced = normalizers.Replace(" ", "▁")
    if kind == "prepended":
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), replaced])
    elif kind == "metaspace":
        fast.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        fast.normalizer = replaced
        fast.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")])
    fast.add_tokens([AddedToken(THINK, special=False, normalized=False)])
    put_first(fast, "<s>")
    return fast


@pytest.mark.parametrize("kind", ["prepended", "metaspace", "plain"])
def test_a_vocabulary_that_marks_spaces_becomes_sentencepiece(kind: str, tmp_path: Path) -> None:
    fast = sentencepiece_like(kind)
    folder = folder_of(tmp_path / "hf", "llama", fast, end="</s>")
    if kind == "metaspace":  # after a token in the text it puts no space, where llama.cpp does
        with pytest.raises(ModelError, match=r"llama\.cpp would cut .* texts into other tokens"):
            export(folder, "gguf", tmp_path / "y.gguf")
        return
    file = export(folder, "gguf", tmp_path / "x.gguf").path
    with llama_cpp(file) as theirs:
        for text in ("the  thing in    the hen", "Name 3 colours é\n漢", f"a {THINK} b", " ", ""):
            assert theirs.ids(text, special=True) == fast.encode(text).ids, text


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"pre_tokenizer": pre_tokenizers.Whitespace()}, "cuts text into words by .*Whitespace.*Use --to hf"),
        ({"pre_tokenizer": pre_tokenizers.ByteLevel(add_prefix_space=True)}, "no name"),
        ({"pre_tokenizer": pre_tokenizers.Split(r"abc", behavior="isolated")}, "no name for the way .*: abc"),
        ({"normalizer": normalizers.Lowercase()}, "changes text by .*Lowercase"),
        ({"normalizer": normalizers.Replace("th", "ht")}, "changes text by .*Replace"),
    ],
)
def test_tokenizers_without_words_in_gguf_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    fast = byte_pairs()
    for name, value in changes.items():
        setattr(fast, name, value)
    with pytest.raises(ModelError, match=says):
        export(folder_of(tmp_path / "hf", "llama", fast), "gguf", tmp_path / "x.gguf")


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_goes_out_whole_and_answers_alike(tmp_path: Path) -> None:
    file = export("smollm2-135m", "gguf", tmp_path / "x.gguf", template="chatml").path
    assistant = instil.load("smollm2-135m", template="chatml")
    with llama_cpp(file, context=256) as theirs:
        for question in ("Name three colours.", "What is the capital of France?", "Écris 2 mots."):
            trained = encode_prompt(Example(question, "", ""), assistant.template, assistant.tokenizer)
            assert theirs.ids(theirs.rendered(("user", question)), special=True, parse=True) == trained
            (said,) = generate(assistant.decoder, [trained], max_new_tokens=24, stop_ids=assistant.tokenizer.stop_ids)
            found = theirs.greedy(trained, 24)["tokens"]
            assert [index for index in found if index not in assistant.tokenizer.stop_ids] == list(said.ids)


WIDE = {"hidden_size": 96, "intermediate_size": 64, "head_dim": 16}
IN_FEW_BITS = {
    "gpt2": {"n_embd": 96},
    "llama": WIDE,
    "qwen3": WIDE,
    "gemma3": {**WIDE, "query_pre_attn_scalar": 16},
    "lfm2": {"hidden_size": 96, "head_dim": 16},
}


@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0", "q5_1", "q4_1"])
@pytest.mark.parametrize("family", IN_FEW_BITS)
def test_fewer_bits_are_read_by_both(family: str, dtype: str, tmp_path: Path) -> None:
    """llama.cpp takes the file; the weights read here are the model's but for rounding, and norms are exact."""
    folder = folder_of(tmp_path / "hf", family, **{**for_llama_cpp(family), **IN_FEW_BITS[family]})
    made = export(folder, "gguf", tmp_path / "x.gguf", dtype=dtype)
    kinds = {tensor.kind.name for tensor in read_gguf(made.path).tensors.values()}
    assert dtype.upper() in kinds
    assert kinds <= {"F32", "F16", "Q8_0", dtype.upper()}
    whole, rounded = (dict(load_decoder(path).named_parameters()) for path in (folder, made.path))
    steps = {"f16": 2**-11, "bf16": 2**-8, "q8_0": 1 / 127, "q5_1": 1 / 31, "q4_1": 1 / 15}  # of the greatest
    differ = []
    for name, value in whole.items():
        apart = (rounded[name] - value).abs().max() / value.abs().max()
        assert apart <= (2e-7 if value.dim() == 1 else steps[dtype]), name
        differ.append(apart > 0)
    assert any(differ)
    assert made.agreement.places > 0
    assert made.as_json()["agreement"]["places"] == made.agreement.places
    with llama_cpp(made.path) as theirs:
        assert len(theirs.greedy(load_tokenizer(folder).encode("in"), 4, ignore_eos=True)["tokens"]) == 4
        assert theirs.ids("the thing") == load_tokenizer(folder).encode("the thing")


def test_eight_bits_take_a_quarter_of_the_room(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", "llama", **WIDE)
    tensors = {}
    for dtype in ("f32", "q8_0", "q4_1"):
        file = export(folder, "gguf", tmp_path / f"{dtype}.gguf", dtype=dtype).path
        found = [one for one in read_gguf(file).tensors.values() if len(one.shape) == 2 and "token" not in one.name]
        tensors[dtype] = sum(one.size for one in found)
    assert tensors["q8_0"] / tensors["f32"] == 34 / 128
    assert tensors["q4_1"] / tensors["f32"] == 20 / 128


def test_what_a_number_format_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "hf", "llama", **WIDE)
    stored = load_file(folder / "model.safetensors")
    stored["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    for form in ("gguf", "hf"):
        with pytest.raises(ModelError, match=r"1e\+05, which float16 cannot"):
            export(folder, form, tmp_path / "x", dtype="f16")
    with pytest.raises(SettingsError, match="--dtype q8_0: --to hf takes f32, bf16, f16"):
        export(folder, "hf", tmp_path / "x", dtype="q8_0")
    with pytest.raises(SettingsError, match="--dtype bf16: --to pth takes f32"):
        export(folder, "pth", tmp_path / "x", dtype="bf16")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]


@pytest.mark.parametrize(("dtype", "wanted"), [(None, torch.float32), ("bf16", torch.bfloat16), ("f16", torch.float16)])
def test_a_folder_for_transformers_has_the_numbers_asked_for(
    dtype: str | None, wanted: torch.dtype, tmp_path: Path
) -> None:
    import transformers

    folder = folder_of(tmp_path / "hf", "llama")
    made = export(folder, "hf", tmp_path / "out", dtype=dtype)
    assert {value.dtype for value in load_file(made.path / "model.safetensors").values()} == {wanted}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(made.path)
    assert theirs.dtype == wanted
    assert made.agreement.exact or dtype


def test_a_file_that_says_something_else_is_not_left_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "hf", "llama")

    def other(path: Path, **how: Any) -> Decoder:
        found = load_decoder(path, **how)
        with torch.no_grad():
            found.embed.weight.copy_(found.embed.weight.flip(0))
        return found

    monkeypatch.setattr("instil.recipes.export.export.load_decoder", other)
    for form in ("hf", "gguf"):
        monkeypatch.setattr("instil.recipes.export.models._same_answers", lambda *given, **how: None)
        with pytest.raises(ModelError, match="does not answer as the model does, so it was removed again"):
            export(folder, form, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["hf"]
