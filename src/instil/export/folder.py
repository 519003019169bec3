"""The model folder: opens with `transformers`, and with this package."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from instil.data.encoding import stop_id
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.model.decoder import Decoder
from instil.model.weights import save_decoder

TEMPLATE_FILE = "template.json"


def export_folder(decoder: Decoder, tokenizer: Tokenizer, template: Template, folder: Path) -> None:
    """Write weights, configuration, tokenizer and template; the folder appears complete or not at all."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    if unfinished.exists():
        shutil.rmtree(unfinished)
    unfinished.mkdir(parents=True)
    tokenizer.save(unfinished)
    (unfinished / "chat_template.jinja").write_text(template.chat_template(), encoding="utf-8")
    _write_json(unfinished / TEMPLATE_FILE, template.as_json())
    save_decoder(decoder, unfinished, eos_id=stop_id(template, tokenizer), stop_ids=tokenizer.stop_ids)
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.replace(folder)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
