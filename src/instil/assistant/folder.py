"""The model folder: opens with `transformers`, and with this package."""

from __future__ import annotations

import shutil
from pathlib import Path

from instil.data.encoding import stop_id
from instil.data.templates import TEMPLATE_FILE, Template
from instil.data.tokenizers import Tokenizer
from instil.errors import UserError
from instil.files import json_text, unfinished_of
from instil.model.decoder import Decoder
from instil.model.files.folder import save_decoder

FILES = {  # of a model folder
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    "vocab.json", "merges.txt", "special_tokens_map.json", "chat_template.jinja", TEMPLATE_FILE,
}  # fmt: skip


def export_folder(decoder: Decoder, tokenizer: Tokenizer, template: Template, folder: Path) -> None:
    """Write weights, configuration, tokenizer and template; the folder appears complete or not at all.

    Raises:
        UserError: where it is to be made lies something that is not what an export leaves that was killed.
        OSError: it cannot be written.
    """
    unfinished = unfinished_of(folder)
    if unfinished.exists():
        if not unfinished.is_dir() or any(left.name not in FILES for left in unfinished.iterdir()):
            raise UserError(f"{unfinished} is in the way and is no unfinished model; move it, or choose another --out")
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    try:
        save_decoder(decoder, unfinished, eos_id=stop_id(template, tokenizer), stop_ids=tokenizer.stop_ids)
        tokenizer.save(unfinished)
        (unfinished / "chat_template.jinja").write_text(template.chat_template(), encoding="utf-8")
        (unfinished / TEMPLATE_FILE).write_text(json_text(template.as_json()), encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        unfinished.replace(folder)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise
