"""Where other people's tokenizers meet ours: what ends and begins a text, which files count, what stays text."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from instil.data.encoding import check_vocabulary, encode, encode_prompt, ends_line
from instil.data.spelling import spelling
from instil.data.templates import template_named
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.errors import DataError, ModelError
from instil.records import Example
from tests.conftest import TINY_END as END
from tests.conftest import short_gpt2

ALPACA, CHATML, PHI3 = (template_named(name) for name in ("alpaca", "chatml", "phi3"))
ROW = Example("Write it in C#, please.", "Write it in C#.")
CHAT = (
    "{%- for message in messages -%}<|im_start|>{{ message['role'] }}\n{% if message['role'] == 'assistant' and "
    "loop.last %}<think>\n\n</think>\n\n{% endif %}{{ message['content'] }}<|im_end|>\n{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}"
)
Save = Callable[..., Path]


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A ``tokenizer.json`` of GPT-2's kind, which is read in a moment."""
    folder = tmp_path_factory.mktemp("gpt2")
    short_gpt2().save(folder)
    return (folder / "tokenizer.json").read_bytes()


@pytest.fixture
def save(tmp_path: Path, gpt2: bytes) -> Save:
    """Write that tokenizer with changes, as a folder of the hub has it."""

    def write(
        *, tokens: list[AddedToken] | None = None, named: dict[str, Any] | None = None, post: Any = None,
        change: Callable[[Any], None] | None = None, **files: Any,
    ) -> Path:  # fmt: skip
        folder = tmp_path / f"model{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if not tokens and post is None and change is None:
            (folder / "tokenizer.json").write_bytes(gpt2)
            fast = None
        else:
            fast = Tokenizer.from_buffer(gpt2)
        for token in tokens or []:
            (fast.add_special_tokens if token.special else fast.add_tokens)([token])
        if post is not None:
            fast.post_processor = post
        if change is not None:
            change(fast)
        if fast is not None:
            fast.save(str(folder / "tokenizer.json"))
        settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|endoftext|>"} | (named or {})
        values = {"tokenizer_config": {k: v for k, v in settings.items() if v is not None}, "config": {}, **files}
        for name, value in values.items():
            (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
        return folder

    return write


def mark(text: str, *, special: bool = True, **flags: bool) -> AddedToken:
    return AddedToken(text, special=special, **{"normalized": False, **flags})


class TestEnds:
    """The tokenizer's own end is what answers end with."""

    @pytest.mark.parametrize("file", ["config", "generation_config"])
    @pytest.mark.parametrize("ids", [2, [2], [2, 0]])
    def test_an_ordinary_token_of_a_configuration_ends_nothing(self, save: Save, file: str, ids: Any) -> None:
        """A Llama with transformers' default configuration (2) and GPT-2's beginning, where 2 is "#"."""
        tokenizer = load_tokenizer(save(**{file: {"model_type": "llama", "eos_token_id": ids}}))
        assert encode(ROW, ALPACA, tokenizer).ids[-1] == END
        assert tokenizer.stop_ids == {END}
        assert len(tokenizer.notes) == 1
        assert "'#' (2)" in tokenizer.notes[0] or "'\"' (1)" in tokenizer.notes[0]
        assert f"<|endoftext|>' ({END}), the tokenizer's own" in tokenizer.notes[0]

    @pytest.mark.parametrize("eos", ["#", "Ġthe", "e", "."])
    @pytest.mark.parametrize("form", [str, lambda text: {"content": text, "__type": "AddedToken"}])
    def test_a_tokenizer_that_ends_with_an_ordinary_token_is_refused(self, save: Save, eos: str, form: Any) -> None:
        with pytest.raises(ModelError, match=r"an ordinary token: every text.*such as '<\|endoftext\|>'"):
            load_tokenizer(save(named={"eos_token": form(eos)}))

    def test_what_is_special_ends_answers_too(self, save: Save) -> None:
        folder = save(tokens=[mark("<|eot|>"), mark("<|eom|>"), mark("word", special=False)])
        ends = {"eos_token_id": [END + 1, END + 2, END + 3, 2, 99999]}
        (folder / "generation_config.json").write_text(json.dumps(ends))
        tokenizer = load_tokenizer(folder)
        assert tokenizer.eos_id == END
        assert tokenizer.stop_ids == {END, END + 1, END + 2}

    def test_files_that_agree_say_nothing(self, save: Save) -> None:
        assert load_tokenizer(save(named={}, generation_config={"eos_token_id": END})).notes == ()

    def test_the_end_of_a_turn_where_the_tokenizer_names_none(self, save: Save) -> None:
        tokens = [mark("<|im_start|>"), mark("<|im_end|>", special=False)]
        folder = save(tokens=tokens, named={"eos_token": None, "chat_template": CHAT})
        assert load_tokenizer(folder).eos == "<|im_end|>"
        folder = save(tokens=tokens, named={"chat_template": CHAT})
        tokenizer = load_tokenizer(folder)
        assert (tokenizer.eos_id, tokenizer.stop_ids) == (END, {END, END + 2})  # the end of a turn stops, too

    def test_a_folder_that_names_no_end(self, save: Save) -> None:
        only = load_tokenizer(save(named={"eos_token": None}))
        assert only.eos_id == END
        assert "no end token" in only.notes[0]
        two = save(named={"eos_token": None}, tokens=[mark("<a>")])
        with pytest.raises(ModelError, match="no end token"):
            load_tokenizer(two)
        (two / "config.json").write_text('{"eos_token_id": 2}')
        with pytest.raises(ModelError, match=r"id 2, which is the ordinary token '#'.*name it there"):
            load_tokenizer(two)
        (two / "config.json").write_text(json.dumps({"eos_token_id": [END + 1, 2]}))
        assert load_tokenizer(two).eos == "<a>"

    def test_special_tokens_map_is_read(self, save: Save) -> None:
        folder = save(tokens=[mark("<end>")], named={"eos_token": None}, special_tokens_map={"eos_token": "<end>"})
        assert load_tokenizer(folder).eos_id == END + 1

    def test_a_damaged_configuration_is_not_passed_over(self, save: Save) -> None:
        folder = save()
        for name in ("tokenizer_config.json", "generation_config.json"):
            kept = (folder / name).read_bytes() if (folder / name).exists() else b"{}"
            (folder / name).write_text("{")
            with pytest.raises(ModelError, match=name.replace(".", r"\.")):
                load_tokenizer(folder)
            (folder / name).write_bytes(kept)


class TestBegins:
    """Exactly one beginning, in training and in answers, and in what is saved."""

    POST = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", END + 1)])
    BOTH = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", END + 1), ("</s>", END + 2)])
    TWO = processors.TemplateProcessing(
        single="<s> <|endoftext|> $A", special_tokens=[("<s>", END + 1), ("<|endoftext|>", END)]
    )

    @pytest.mark.parametrize(("post", "begin"), [(POST, [END + 1]), (BOTH, [END + 1]), (TWO, [END + 1, END])])
    @pytest.mark.parametrize("template", [ALPACA, PHI3])
    def test_what_the_post_processor_puts_in_front(
        self, save: Save, post: Any, begin: list[int], template: Any, tmp_path: Path
    ) -> None:
        import transformers

        folder = save(tokens=[mark("<s>"), mark("</s>")], post=post, named={"bos_token": "<s>"})
        tokenizer, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        row, prompt = encode(ROW, template, tokenizer), encode_prompt(ROW, template, tokenizer)
        whole = theirs(template.full_text(ROW))["input_ids"]
        assert list(row.ids) == [*whole[: -1 if post is self.BOTH else None], END]
        assert prompt[: len(begin)] == begin
        assert not set(begin) & set(prompt[len(begin) :])
        assert list(row.ids[: row.prompt_length]) == prompt
        assert not any(row.trained[: row.prompt_length])
        assert begin_ids(encode(ROW, template, tokenizer, "all").ids) == 1
        saved = tmp_path / "saved"
        saved.mkdir()
        tokenizer.save(saved)
        again = transformers.AutoTokenizer.from_pretrained(saved)
        assert again(template.prompt(ROW))["input_ids"] == prompt
        assert again.bos_token_id == END + 1
        assert load_tokenizer(saved).begin_ids == tuple(begin)

    def test_a_template_that_begins_by_itself(self, save: Save) -> None:
        tokenizer = load_tokenizer(save(tokens=[mark("<s>")], post=self.POST))
        own = template_named("plain")
        own = type(own)("own", "{control:<s>}{instruction}\n{input}\n", "{control:<s>}{instruction}\n")
        assert begin_ids(encode(ROW, own, tokenizer).ids) == 1

    def test_a_setting_that_tokenizer_json_contradicts(self, save: Save) -> None:
        tokenizer = load_tokenizer(save(tokens=[mark("<s>")], named={"add_bos_token": True, "bos_token": "<s>"}))
        assert tokenizer.begin_ids == ()
        assert "add_bos_token=true" in tokenizer.notes[0]

    def test_a_setting_beside_vocabulary_and_merges(self, tmp_path: Path) -> None:
        import transformers

        config = {"tokenizer_class": "GPT2Tokenizer", "add_bos_token": True, "bos_token": "<|endoftext|>"}
        folder = gpt2_files(tmp_path, tokenizer_config=config)
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        tokenizer = load_tokenizer(folder)
        prompt = encode_prompt(ROW, ALPACA, tokenizer)
        assert prompt == theirs(ALPACA.prompt(ROW))["input_ids"]
        assert prompt[0] == 50256


def begin_ids(ids: Any) -> int:
    return list(ids).count(END + 1)


def gpt2_files(folder: Path, **files: Any) -> Path:
    """GPT-2's vocabulary and merges under the names of the hub."""
    from instil.data.byte_level import find_gpt2_files

    found = find_gpt2_files()
    assert found is not None
    (folder / "vocab.json").write_bytes((found / "encoder.json").read_bytes())
    (folder / "merges.txt").write_bytes((found / "vocab.bpe").read_bytes())
    values = {"config": {"model_type": "gpt2", "vocab_size": 50257}, **files}
    for name, value in values.items():
        (folder / f"{name}.json").write_text(json.dumps(value), encoding="utf-8")
    return folder


class TestFiles:
    """The right tokenizer, or none."""

    def test_added_tokens_beside_vocabulary_and_merges(self, tmp_path: Path) -> None:
        import transformers

        folder = gpt2_files(
            tmp_path,
            added_tokens={"<|im_end|>": 50258, "<|im_start|>": 50257, "wort": 50259},
            tokenizer_config={"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|im_end|>"},
        )
        tokenizer, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        assert tokenizer.eos_id == 50258 == theirs.eos_token_id
        assert tokenizer.encode("antwort wort") == theirs("antwort wort")["input_ids"]
        assert tokenizer.encode("wort") == [50259]

    @pytest.mark.parametrize("name", ["tekken.json", "spiece.model", "vocab.txt", "tiktoken.model"])
    def test_a_gpt2_with_another_kind_of_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "config.json").write_text('{"model_type": "gpt2", "vocab_size": 50257}')
        (tmp_path / name).write_bytes(b"\n")
        with pytest.raises(ModelError, match=f"its tokenizer is {name}, which is not read here"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("size", [1000, 50000, 50258, 50260, 60000])
    def test_english_byte_pairs_only_for_their_size(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": size}))
        with pytest.raises(ModelError, match=f"a vocabulary of {size}.*put its tokenizer.json"):
            load_tokenizer(tmp_path)

    @pytest.mark.parametrize("size", [50257, 50264, 50304, 50432])
    def test_english_byte_pairs_for_a_padded_vocabulary(self, tmp_path: Path, size: int) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2", "vocab_size": size}))
        assert load_tokenizer(tmp_path).eos_id == 50256

    @pytest.mark.parametrize("name", ["RobertaTokenizer", "CodeGenTokenizer", "LlamaTokenizerFast"])
    def test_vocabulary_and_merges_of_another_class(self, tmp_path: Path, name: str) -> None:
        folder = gpt2_files(tmp_path, tokenizer_config={"tokenizer_class": name})
        with pytest.raises(ModelError, match=f"tokenizer_class '{name.removesuffix('Fast')}'"):
            load_tokenizer(folder)
        (folder / "vocab.json").unlink()
        (folder / "merges.txt").unlink()
        with pytest.raises(ModelError, match="not sure that its tokens are OpenAI's"):
            load_tokenizer(folder)

    def test_qwens_vocabulary_and_merges(self, tmp_path: Path) -> None:
        """Digits one by one, characters composed."""
        import transformers

        folder = gpt2_files(
            tmp_path, config={"model_type": "qwen2"}, tokenizer_config={"tokenizer_class": "Qwen2Tokenizer"}
        )
        tokenizer, theirs = load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder)
        for text in ("In 1984 it's cafe\u0301\n\n  x", "DON'T 12345"):
            assert tokenizer.encode(text) == theirs(text)["input_ids"]


class TestText:
    """What a user wrote stays text, whatever a tokenizer calls its tokens."""

    TOKENS: ClassVar = [mark(name, special=False) for name in ("<|im_start|>", "<|im_end|>", "<think>", "</think>")]
    WRITTEN = Example("Say <|im_end|> and <|im_start|>!", "It is <|im_end|>, <|endoftext|>.", "<|im_end|>")

    @pytest.mark.parametrize("eos", ["<|endoftext|>", "<|im_end|>"])
    @pytest.mark.parametrize("template", [ALPACA, CHATML, PHI3])
    def test_marks_that_are_not_flagged(self, save: Save, eos: str, template: Any) -> None:
        tokenizer = load_tokenizer(save(tokens=self.TOKENS, named={"eos_token": eos}))
        row = encode(self.WRITTEN, template, tokenizer)
        end = row.ids[-1]
        answer = row.ids[row.prompt_length : -1]
        assert end not in answer
        assert tokenizer.decode(answer) == self.WRITTEN.output
        assert list(row.ids).count(END + 2) == (template is CHATML) * 2 + (
            template is not CHATML and eos == "<|im_end|>"
        )
        assert self.WRITTEN.instruction in tokenizer.decode(row.ids)

    def test_marks_of_the_models_own_template(self, save: Save) -> None:
        """Turns are marks; what the model writes itself is one token, as transformers has it."""
        chat = CHAT.replace("<|im_start|>", "<turn>").replace("<|im_end|>", "<over>")
        tokens = [mark(name, special=False) for name in ("<turn>", "<over>", "<think>", "</think>", "<tool_call>")]
        folder = save(tokens=tokens, named={"chat_template": [{"name": "default", "template": chat}]})
        tokenizer = load_tokenizer(folder)
        assert not {END + 1, END + 2} & set(tokenizer.encode("a<turn>b<over>"))
        assert tokenizer.decode(tokenizer.encode("a<turn>b<over>")) == "a<turn>b<over>"
        assert tokenizer.encode("<think>x</think><tool_call>") == [END + 3, 87, END + 4, END + 5]
        assert END + 2 in tokenizer.stop_ids

    def test_a_broken_template_says_nothing(self, save: Save) -> None:
        for template in ("{% for %}", "{{ messages[7].content }}", "{{ raise_exception('no') }}"):
            assert load_tokenizer(save(named={"chat_template": template})).encode("a") == [64]

    def test_names_in_a_templates_own_text_are_tokens(self, save: Save) -> None:
        """Figure 7.4's marks are text to GPT-2, and tokens to Phi-3."""
        tokenizer = load_tokenizer(save(tokens=[mark("<|user|>"), mark("<|assistant|>")]))
        ids = encode(Example("Say <|user|>!", "Yes."), PHI3, tokenizer).ids
        assert (list(ids).count(END + 1), list(ids).count(END + 2)) == (1, 1)

    def test_a_vocabulary_that_spells_its_marks(self, tmp_path: Path) -> None:
        """WordPiece and Unigram find `</s>` among their pieces."""
        letters = [(letter, -2.0) for letter in "ab/<s>"]
        fast = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", -1.0), *letters], unk_id=0))
        fast.add_special_tokens([mark("</s>")])
        fast.save(str(tmp_path / "tokenizer.json"))
        (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "</s>"}')
        tokenizer = load_tokenizer(tmp_path)
        assert tokenizer.eos_id not in tokenizer.encode("a</s>b")
        assert "".join(fast.id_to_token(index) for index in tokenizer.encode("a</s>b</s></s>")) == "a</s>b</s></s>"
        cut = tokenizer.cut([("a</s>", False), ("", True), ("b</s></s>", False), ("", True), ("</s>a", False)])
        pieces = [cut.ids[first:end] for first, end in pairwise(cut.begins)]
        assert ["".join(map(fast.id_to_token, ids)) for ids in pieces] == [
            "a</s>",
            "</s>",
            "b</s></s>",
            "</s>",
            "</s>a",
        ]
        assert [cut.ids[begin] == tokenizer.eos_id for begin in cut.begins[:-1]] == [False, True, False, True, False]
        assert cut.ids.count(tokenizer.eos_id) == 2

    def test_text_that_looks_like_what_stands_for_a_token(self) -> None:
        tokenizer = FastTokenizer.gpt2()
        for text in ("\ufdd0nnn\ufdd1", "\ufdd00 nnn\ufdd1\ufdd0nnn\ufdd1"):
            row = encode(Example(text, text), ALPACA, tokenizer)
            assert tokenizer.decode(row.ids[row.prompt_length :]) == text
            assert max(row.ids) == 50256


def sentencepiece(form: str) -> Any:
    """A small vocabulary of words that begin with a space, cut in one of three forms."""
    words = ["▁a", "▁Paris", "Paris", "▁is", "▁it", "\n", "▁", "##", "a", "i", "s", "t", "#", ":", "P", "r"]
    ids = {piece: n for n, piece in enumerate(["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words])}
    merges = [("#", "#")]
    for word in words:
        if len(word) == 2 and word[0] == "▁":
            merges.append(("▁", word[1]))
    merges += [("i", "s")] if "is" in ids else []
    fast = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    if form == "older":
        fast.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.add_special_tokens(["<s>", "</s>"])
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return fast


class TestWhole:
    """A row's ids are those of its whole text."""

    @pytest.mark.parametrize("form", ["older", "first", "always"])
    @pytest.mark.parametrize("template", ["alpaca", "phi3", "plain"])
    def test_no_space_between_prompt_and_answer(self, form: str, template: str, tmp_path: Path) -> None:
        import transformers

        fast = sentencepiece(form)
        theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="</s>", bos_token="<s>")
        theirs.save_pretrained(tmp_path)
        tokenizer, chosen = load_tokenizer(tmp_path), template_named(template)
        for answer in ("Paris", " Paris", "a\nis it", "", "\nis"):
            row = encode(example := Example("is it a Paris", answer), chosen, tokenizer)
            assert list(row.ids[: row.prompt_length]) == theirs(chosen.prompt(example))["input_ids"]
            assert list(row.ids) == [*theirs(chosen.full_text(example))["input_ids"], 2]
            assert tokenizer.decode(row.ids[row.prompt_length :]) == answer.removeprefix(" ")

    @pytest.mark.parametrize("form", ["older", "first", "always"])
    def test_an_answer_that_is_cut_apart_begins_with_no_space(self, form: str) -> None:
        """The prompt's last space would be of the answer's first token."""
        tokenizer = FastTokenizer(sentencepiece(form), "</s>")
        own = type(ALPACA)("own", "{instruction} {input}: ", "{instruction}: ")
        row = encode(Example("is it", "a Paris"), own, tokenizer)
        assert list(row.ids[: row.prompt_length]) == encode_prompt(Example("is it"), own, tokenizer)
        answer = row.ids[row.prompt_length : -1]
        assert [tokenizer.token(index) for index in answer[:2]] == ["a", "▁"]
        assert tokenizer.decode(row.ids) == "is it: a Paris"

    @pytest.mark.parametrize("prefix", [True, False])
    def test_add_prefix_space(self, save: Save, prefix: bool) -> None:
        import transformers

        config = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": prefix, "bos_token": "<|endoftext|>"}
        folder = save(named=config)
        tokenizer, theirs = load_tokenizer(folder), transformers.GPT2Tokenizer.from_pretrained(folder)
        row = encode(Example("Name it.", "Red"), ALPACA, tokenizer)
        assert list(row.ids) == [*theirs(ALPACA.full_text(Example("Name it.", "Red")))["input_ids"], END]
        assert "".join(map(tokenizer.token, tokenizer.encode("Red"))) == ("ĠRed" if prefix else "Red")

    def test_an_answer_that_would_change_its_prompt_is_cut_apart(self) -> None:
        """What the model sees when it answers is the prompt alone."""
        tokenizer = FastTokenizer.gpt2()
        row = encode(Example("Go", "\n\nOn"), ALPACA, tokenizer)
        assert list(row.ids[: row.prompt_length]) == encode_prompt(Example("Go"), ALPACA, tokenizer)
        assert tokenizer.decode(row.ids[row.prompt_length :]) == "\n\nOn"


class TestTables:
    """Ids beyond the model's table."""

    def test_ids_that_no_row_can_have_do_not_matter(self, save: Save) -> None:
        """Gemma 3's mark of an image."""
        tokenizer = load_tokenizer(save(tokens=[mark("<image_soft_token>")]))
        check_vocabulary(ALPACA, tokenizer, END + 1)

    @pytest.mark.parametrize("what", ["word", "end", "template", "begin"])
    def test_ids_that_a_row_can_have_do(self, save: Save, what: str) -> None:
        token = mark("<|im_end|>" if what == "template" else "<new>", special=what != "word")
        more = [mark("<|im_start|>")] if what == "template" else []
        config = {"eos_token": "<new>"} if what == "end" else {}
        post = processors.TemplateProcessing(single="<new> $A", special_tokens=[("<new>", END + 1)])
        folder = save(tokens=[token, *more], named=config, post=post if what == "begin" else None)
        template = CHATML if what == "template" else ALPACA
        with pytest.raises(DataError, match=rf"no rows for .*{END + 1:,}; set model\.resize=true"):
            check_vocabulary(template, load_tokenizer(folder), END + 1)


class TestTold:
    """What a tokenizer does to text is said."""

    def test_lower_case(self, save: Save) -> None:
        lower = load_tokenizer(save(change=lambda fast: setattr(fast, "normalizer", normalizers.Lowercase())))
        assert spelling(Example("Name it.", "red"), lower) == "altered"
        assert spelling(Example("name it.", "red"), lower) == "as written"

    def test_accents_and_dropped_characters(self, save: Save) -> None:
        steps = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
        bare = load_tokenizer(save(change=lambda fast: setattr(fast, "normalizer", steps)))
        assert spelling(Example("Café", "x"), bare) == "altered"
        assert spelling(Example("कुछ हिन्दी", "x"), bare) == "altered"  # whose marks include vowels
        gone = load_tokenizer(save(change=lambda fast: setattr(fast, "normalizer", normalizers.Replace("q", ""))))
        assert spelling(Example("quick", "x"), gone) == "misspelt"

    def test_another_normal_form_is_as_written(self, save: Save) -> None:
        composed = load_tokenizer(save(change=lambda fast: setattr(fast, "normalizer", normalizers.NFC())))
        assert spelling(Example("cafe\u0301", "e\u0301"), composed) == "as written"

    def test_dropout_is_switched_off(self, save: Save, tmp_path: Path) -> None:
        def drop(fast: Any) -> None:
            fast.model.dropout = 0.5

        tokenizer = load_tokenizer(save(change=drop))
        assert "dropout of 0.5 is switched off" in tokenizer.notes[0]
        wanted = short_gpt2().encode("An instruction that describes a task")
        assert all(tokenizer.encode("An instruction that describes a task") == wanted for _ in range(20))
        saved = tmp_path / "saved"
        saved.mkdir()
        tokenizer.save(saved)
        assert json.loads((saved / "tokenizer.json").read_text())["model"]["dropout"] is None

    def test_one_line_for_every_preflight(self, save: Save) -> None:
        post = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", END + 1)])
        tokenizer = load_tokenizer(save(tokens=[mark("<s>")], post=post))
        assert ends_line(ALPACA, tokenizer) == (
            f"answers end with '<|endoftext|>' ({END}), prompts begin with '<s>' ({END + 1}); template alpaca"
        )
        assert "prompts begin with their text" in ends_line(ALPACA, FastTokenizer.gpt2())
