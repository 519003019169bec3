"""Adapters alone, for programs that put them on a base: llama.cpp (GGUF) and mlx-lm."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from instil.assistant.assistant import Assistant, adapter_folder, load
from instil.data.encoding import begin_text
from instil.errors import ModelError, UserError
from instil.files import unfinished_of, write_whole
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.files.adapter_modules import add_adapters
from instil.model.files.gguf_lora import read_gguf_lora, write_gguf_lora
from instil.model.files.mlx_lora import read_mlx_lora, write_mlx_lora
from instil.model.files.peft import held_besides, rounded_base
from instil.model.find import find_model
from instil.model.load import load_decoder
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.model_card import base_on_hub

GGUF, MLX = "gguf-lora", "mlx-lora"
TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True, slots=True)
class Adapted:
    """A base with adapters beside its weights, and where both come from."""

    base: str
    path: Path
    folder: Path
    assistant: Assistant

    @property
    def rounded(self) -> bool:
        """Whether the adapters were trained beside weights in few bits, which no base of others has."""
        return rounded_base(self.folder) is not None


def adapted(model: str | Path, adapter: str | Path | None, template: str | None) -> Adapted:
    """The adapters of a run beside its base, or those of a folder beside the model given.

    Raises:
        ModelError: there are none, the base is not to be found, or the adapters change more than its linear layers.
    """
    base = str(model)
    if adapter is None:
        if not (Path(model) / RUN_FILE).is_file():
            raise ModelError(f"{model} has no adapters of its own; name their folder: --adapter FOLDER")
        base, adapter = RunFolder(Path(model)).base(), model
    folder = adapter_folder(Path(adapter), Path(base))
    try:
        path = find_model(base)
    except ModelError as error:
        raise ModelError(
            f"{folder}: the model that these adapters belong to is not to be found: {error} Say where it is: "
            f"instil export BASE --adapter {folder} --to ..."
        ) from error
    assistant = load(base, template=template, adapter=folder, merged=False)
    if besides := held_besides(assistant.decoder, folder):
        raise ModelError(
            f"{folder}: trained beside the adapters: {', '.join(besides[:5])}; neither llama.cpp nor mlx-lm puts more "
            "on a base than adapters of its linear layers. Take the merged model: --to hf or --to gguf"
        )
    return Adapted(base, path, folder, assistant)


def write_adapters(given: Adapted, form: str, out: Path, dtype: str) -> None:
    """Write the adapters and the chat template that they were tuned with; all of it appears, or nothing.

    Raises:
        UserError: something is in the way; the adapters have no such form.
        OSError: it cannot be written.
    """
    assistant = given.assistant
    begin = begin_text(assistant.template, assistant.tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    if form == GGUF:
        write_gguf_lora(assistant.decoder, out, dtype)
        write_whole(template_of(out), assistant.template.chat_template(begin.rstrip()))  # a space comes by itself
        return
    unfinished = unfinished_of(out)
    if unfinished.exists():
        raise UserError(f"{unfinished} is in the way; remove it, or choose another --out")
    try:
        unfinished.mkdir()
        write_mlx_lora(assistant.decoder, unfinished, base_on_hub(given.base) or Path(given.base).name)
        write_whole(unfinished / TEMPLATE, assistant.template.chat_template(begin))
        unfinished.replace(out)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def template_of(file: Path) -> Path:
    """Where the chat template of an adapter in GGUF lies."""
    return file.with_name(f"{file.name.removesuffix('.gguf')}.jinja")


def put_on_base(given: Adapted, form: str, out: Path) -> Decoder:
    """The base with what was written on it, as those programs take it: with its exact weights."""
    decoder = load_decoder(given.path, device=given.assistant.decoder.device)
    family = FAMILIES[decoder.spec.family]
    if form == GGUF:
        add_adapters(decoder, read_gguf_lora(out), family.gguf)
    else:
        add_adapters(decoder, read_mlx_lora(decoder, out), family.hub, family.prefix)
    return decoder


def how_to_use(form: str, out: Path) -> str:
    """In a line, what is done with it."""
    if form == GGUF:
        return (
            f"for the base's own GGUF (instil export BASE --to gguf --out BASE.gguf): llama-server -m BASE.gguf "
            f"--lora {out} --jinja --chat-template-file {template_of(out)}"
        )
    return f'mlx_lm.server --model BASE --adapter-path {out} --chat-template "$(cat {out / TEMPLATE})"'
