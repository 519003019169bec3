"""The model folder: opens with `transformers`, and with this package."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from instil.data.encoding import begin_text, encode, encode_prompt, stop_id
from instil.data.templates import TEMPLATE_FILE, Template
from instil.data.templates.marks import rendered
from instil.data.templates.stored import MORE, stored_template
from instil.data.tokenizers import Tokenizer, load_tokenizer
from instil.errors import ModelError, UserError
from instil.files import json_object_or_empty, json_text, read_json_object, unfinished_of
from instil.model.decoder import Decoder
from instil.model.files.folder import save_decoder
from instil.records import Example

SAMPLES = (  # looked at beside rows
    Example("Name the capital of France.", "Paris."),
    Example("Translate:  naïve café\n\n1,234.5", "été\n- 漢字 🙂", "It's two  spaces"),
)

FILES = {  # of a model folder
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "chat_template.jinja", MORE, TEMPLATE_FILE,
}  # fmt: skip
SHARD = re.compile(r"model-\d{5}-of-\d{5}\.safetensors|model\.safetensors\.index\.json")


def export_folder(
    decoder: Decoder, tokenizer: Tokenizer, template: Template, folder: Path, rows: Sequence[Example] = ()
) -> list[str]:
    """Write weights, configuration, tokenizer and template; the folder appears complete or not at all.

    Args:
        decoder: what is saved, with what belongs to it.
        tokenizer: see above.
        template: see above.
        folder: where to; what is there is replaced.
        rows: some that were trained on, whose ids are looked at again in what was saved.

    Returns:
        What differs (`differences`): nothing, if others will read texts and chats as they were trained on.

    Raises:
        UserError: where it is to be made lies something that is not what an export leaves that was killed.
        OSError: it cannot be written.
    """
    unfinished = unfinished_of(folder)
    if unfinished.exists():
        if not unfinished.is_dir() or any(_foreign(left.name) for left in unfinished.iterdir()):
            raise UserError(f"{unfinished} is in the way and is no unfinished model; move it, or choose another --out")
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        end, stops = stop_id(template, tokenizer), tokenizer.stop_ids
        save_decoder(decoder, unfinished, eos_id=end, stop_ids=stops, begin_ids=tokenizer.begin_ids)
        tokenizer.save(unfinished)
        _write_chat_template(unfinished, template.chat_template(begin_text(template, tokenizer)))
        for name, text in template.other_chat_templates.items():
            (unfinished / MORE).mkdir(exist_ok=True)
            (unfinished / MORE / f"{name}.jinja").write_text(text, encoding="utf-8")
        (unfinished / TEMPLATE_FILE).write_text(json_text(template.as_json()), encoding="utf-8")
        found = differences(unfinished, tokenizer, template, rows, name=folder)
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.replace(folder)
        return found
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _write_chat_template(folder: Path, text: str) -> None:
    """In a file of its own and in ``tokenizer_config.json``: who reads one of them does not always read the other."""
    (folder / "chat_template.jinja").write_text(text, encoding="utf-8")
    config = folder / "tokenizer_config.json"
    said = read_json_object(config, error=ModelError) | {"chat_template": text}
    config.write_text(json_text(said, ascii_only=True), encoding="utf-8")


def _foreign(name: str) -> bool:
    """Whether a file is none of those that a model folder is made of."""
    return name not in FILES and not SHARD.fullmatch(name)


def differences(
    folder: Path,
    tokenizer: Tokenizer,
    template: Template,
    rows: Sequence[Example] = (),
    *,
    name: Path | None = None,
) -> list[str]:
    """Where a saved folder gives other ids than training: as we read it, and as `transformers` reads text and chats.

    Rows that have a token's name in them are left out of the latter, since there it is that token. ``name`` is what the
    folder will be called.
    """
    from tokenizers import Tokenizer as Fast

    name = name or folder
    try:
        again = load_tokenizer(folder)
    except ModelError as error:
        return [f"{name}: the saved tokenizer cannot be read again: {error}"]
    theirs = Fast.from_file(str(folder / "tokenizer.json"))
    chat, names = stored_template(folder, {}), _names(json_object_or_empty(folder / "tokenizer_config.json"))
    marks = [token.content for token in theirs.get_added_tokens_decoder().values() if token.special]
    found = []
    stops = tokenizer.stop_ids | {stop_id(template, tokenizer)}  # its end need not be the base's
    if (again.eos_id, again.stop_ids, again.begin_ids) != (tokenizer.eos_id, stops, tokenizer.begin_ids):
        found.append(f"{name}: the saved tokenizer begins or ends texts with other tokens than in training")
    for row in (*SAMPLES, *rows):
        if encode(row, template, again) != encode(row, template, tokenizer):
            found.append(f"{name}: the saved tokenizer gives {row.instruction[:40]!r} other ids than in training")
            continue
        plain = replace(row, input="", output="")
        messages = [turn.as_json() for turn in plain.turns[:-1]]
        if row.tools or row.text_only or any(mark in json.dumps(messages, ensure_ascii=False) for mark in marks):
            continue
        wanted = encode_prompt(plain, template, tokenizer)
        text = rendered(chat, messages, names, prompt=True) or ""
        whole = theirs.encode(_as_text(template, plain, tokenizer), add_special_tokens=True).ids
        for said, ids in (("chat template", theirs.encode(text, add_special_tokens=False).ids), ("text", whole)):
            if list(ids) != wanted:
                found.append(f"{name}: the {said} of {row.instruction[:40]!r} has other ids than in training")
    return found


def _as_text(template: Template, example: Example, tokenizer: Tokenizer) -> str:
    """A prompt with all its control tokens by their names, that which ends an earlier answer among them."""
    end = tokenizer.token(tokenizer.eos_id)
    return "".join(piece.text or end if piece.control else piece.text for piece in template.prompt_pieces(example))


def _names(config: Mapping[str, Any]) -> dict[str, str]:
    """The tokens that a chat template knows by name."""
    return {key: value for key, value in config.items() if key in ("bos_token", "eos_token") and isinstance(value, str)}
