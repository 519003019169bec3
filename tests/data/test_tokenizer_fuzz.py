"""Tokenizers drawn at random: ids equal transformers' on the same text, in rows, and in what is saved.

Texts with a token's name in them are looked at apart: there it is that token to transformers, and text to us.
"""

from __future__ import annotations

import os
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from instil.assistant.folder import differences
from instil.data.encoding import begin_text, encode, encode_prompt, stop_id
from instil.data.templates import TEMPLATES, Template
from instil.data.templates.marks import rendered
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.records import Example
from tests.data.made_tokenizers import Made, make, text

# Three seeds from each of these; INSTIL_FUZZ=10000:11000:3 tries a thousand others.
SEEDS = range(*map(int, os.environ.get("INSTIL_FUZZ", "0:400:20").split(":")))


@pytest.mark.parametrize("first", SEEDS)
def test_ids_are_transformers_everywhere(first: int, tmp_path: Path) -> None:
    import transformers

    for seed in range(first, first + 3):
        made = make(tmp_path / f"made{seed}", seed)
        ours = load_tokenizer(made.folder)
        assert isinstance(ours, FastTokenizer)
        saved = tmp_path / f"saved{seed}"
        saved.mkdir()
        ours.save(saved)
        (saved / "config.json").write_bytes((made.folder / "config.json").read_bytes())
        again = transformers.AutoTokenizer.from_pretrained(saved)
        draw = random.Random(seed)
        for _ in range(5):
            _text_has_their_ids(made, ours, text(draw))
            for template in TEMPLATES.values():
                if all(name in made.theirs.get_vocab() for name in template.control_tokens):
                    row = Example(text(draw), text(draw), draw.choice(["", text(draw)]))
                    _row_is_whole(ours, template, row)
                    _row_has_their_ids(made, ours, template, row)
                    _chat_has_its_ids(again, ours, template, Example(row.instruction))


def _text_has_their_ids(made: Made, ours: FastTokenizer, said: str) -> None:
    if _names(made.theirs, said):
        assert not {made.theirs.convert_tokens_to_ids(name) for name in _marks(made)} & set(ours.encode(said))
    else:
        assert [*ours.begin_ids, *ours.encode(said)] == _without_end(made, ours, said), made.drawn


def _row_is_whole(ours: FastTokenizer, template: Template, row: Example) -> None:
    """The end stands once in what was asked and answered, and the prompt is as it is when the model answers."""
    encoded = encode(row, template, ours)
    assert list(encoded.ids[: encoded.prompt_length]) == encode_prompt(row, template, ours)
    assert list(encoded.ids[encoded.prompt_length :]).count(stop_id(template, ours)) == 1
    assert encoded.ids[-1] == stop_id(template, ours)
    assert not any(before and not after for before, after in pairwise(encoded.trained))


def _row_has_their_ids(made: Made, ours: FastTokenizer, template: Template, row: Example) -> None:
    words = row.instruction + row.input + row.output
    added = made.theirs.added_tokens_decoder.values()
    odd = ("single_word", "normalized")  # marks that are not found beside a word, or not where they stand
    marks = [token for token in added if token.content in template.full_text(row)]
    if any(getattr(token, flag) for token in marks for flag in odd) or _names(made.theirs, words):
        return
    prompt, encoded = _without_end(made, ours, template.prompt(row)), encode(row, template, ours)
    assert list(encoded.ids[: encoded.prompt_length]) == prompt, made.drawn
    whole = _without_end(made, ours, template.full_text(row) + (template.stop or ours.eos))
    if whole[: len(prompt)] == prompt and not row.output[:1].isspace():  # else it would change what comes before it
        assert list(encoded.ids) == whole, made.drawn


def _chat_has_its_ids(theirs: Any, ours: FastTokenizer, template: Template, row: Example) -> None:
    if not _names(theirs, row.instruction):
        asked = [{"role": "user", "content": row.instruction}]
        said = rendered(template.chat_template(begin_text(template, ours)), asked, {}, prompt=True)
        assert said is not None
        assert theirs(said, add_special_tokens=False)["input_ids"] == encode_prompt(row, template, ours)


def _without_end(made: Made, ours: FastTokenizer, said: str) -> list[int]:
    """transformers' ids of a text, without what its post-processor may put after it."""
    bare, whole = (len(made.theirs("a", add_special_tokens=more)["input_ids"]) for more in (False, True))
    ids: list[int] = made.theirs(said)["input_ids"]
    return ids[: len(ids) - (whole - bare - len(ours.begin_ids))]


def _names(theirs: Any, said: str) -> list[str]:
    """Tokens whose names stand in a text, in any case, since it may be lowered."""
    added = [token.content for token in theirs.added_tokens_decoder.values()]
    return [name for name in added if name.lower() in said.lower()]


def _marks(made: Made) -> list[str]:
    """Those that are flagged as special, and the ends; not what stands for all that cannot be spelt."""
    special = {token.content for token in made.theirs.added_tokens_decoder.values() if token.special}
    return sorted({*special, made.theirs.eos_token} - {"<unk>", "[UNK]"})


def test_nothing_differs_in_what_is_saved(tmp_path: Path) -> None:
    for seed in range(20):
        made = make(tmp_path / f"made{seed}", seed)
        ours = load_tokenizer(made.folder)
        saved = tmp_path / f"saved{seed}"
        saved.mkdir()
        ours.save(saved)
        template = TEMPLATES["alpaca"]
        (saved / "chat_template.jinja").write_text(template.chat_template(begin_text(template, ours)), encoding="utf-8")
        assert differences(saved, ours, template) == [], made.drawn
