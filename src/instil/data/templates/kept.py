"""The template that a model was tuned with, wherever the model lies: a folder, a GGUF file, a ``.pth`` file.

A folder keeps it as ``template.json``. The two kinds of files carry the same text inside, where other programs pass it
over: a GGUF file under a key of its header, a ``.pth`` file, which is an archive, as one more member.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

from instil.data.templates.chat import DEFAULT, ChatTemplate
from instil.data.templates.find import (
    OWN,
    TEMPLATE_FILE,
    Marks,
    find_template,
    own_templates,
    read_template,
    template_from,
)
from instil.data.templates.forms import TEMPLATES
from instil.data.templates.stored import LONGEST
from instil.data.templates.template import Template
from instil.errors import DataError, UserError, parsing_problem
from instil.files import json_text
from instil.gguf_header import read_gguf

GGUF_KEY = "instil.template"
IN_ARCHIVE = f"extra/{TEMPLATE_FILE}"


def kept_template(model: Path) -> Template | None:
    """The template that a model's folder or file says it was tuned with; None if it says nothing.

    Raises:
        DataError: what it says is no template, or was changed.
    """
    if model.is_dir():
        file = model / TEMPLATE_FILE
        return read_template(file) if file.is_file() else None
    said = _in_archive(model) if model.suffix == ".pth" else _in_gguf(model)
    if said is None:
        return None
    try:
        stored: Any = json.loads(said)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{model}: the template in it is not valid JSON: {parsing_problem(error)}") from error
    return template_from(stored, f"{model}: the template in it")


def _in_gguf(model: Path) -> str | None:
    try:
        said = read_gguf(model).values.get(GGUF_KEY)
    except UserError:
        return None  # whoever reads its weights says what is wrong with it
    return said if isinstance(said, str) else None


def _in_archive(model: Path) -> bytes | None:
    try:
        with zipfile.ZipFile(model) as archive:
            found = next((one for one in archive.infolist() if one.filename.endswith(f"/{IN_ARCHIVE}")), None)
            return archive.read(found) if found is not None and found.file_size < LONGEST else None
    except (OSError, zipfile.BadZipFile, NotImplementedError):
        return None  # likewise


def put_in_archive(template: Template, file: Path) -> None:
    """Put a template beside the tensors of a ``.pth`` file, which `torch.load` reads as before.

    Raises:
        OSError: it cannot be written.
    """
    with zipfile.ZipFile(file, "a") as archive:
        top = archive.namelist()[0].partition("/")[0]
        member = zipfile.ZipInfo(f"{top}/{IN_ARCHIVE}")  # whose date is always the same
        archive.writestr(member, json_text(template.as_json()))


def is_kept(asked: str, kept: Template, model: Path, tokenizer: Marks) -> bool:
    """Whether a template asked for by name is the one that a model was tuned with.

    A chat template is told by its text: the special tokens' names that it was given are the tokenizer's, and a saved
    tokenizer names fewer of them.

    Raises:
        DataError: there is none of that name.
    """
    if asked == OWN and not _is_named(kept):
        return True  # as its files have it, it may say more, such as the day that it was trained with
    found = find_template(asked, model, tokenizer)
    if isinstance(found, ChatTemplate) and isinstance(kept, ChatTemplate):
        return found.sources == kept.sources
    return found.hash == kept.hash


def name_of_kept(kept: Template, model: Path) -> str:
    """What settings can call the template that a model was tuned with."""
    if _is_named(kept):
        return kept.name
    return OWN if kept.name == OWN or not model.is_dir() else str(model / TEMPLATE_FILE)


def _is_named(kept: Template) -> bool:
    return kept.name in TEMPLATES and TEMPLATES[kept.name].hash == kept.hash


def carries_its_own(model: Path) -> bool:
    """Whether a model's files hold a chat template, which is used where it is asked for (``model``)."""
    return DEFAULT in own_templates(model)
