"""Taking a model elsewhere: from a run, a folder or a file to a form that other programs read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.assistant.folder import export_folder
from instil.errors import ModelError, SettingsError, UserError
from instil.model.files.pth import has_form, reads_back, save_pth
from instil.screen import Screen


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and where it lies."""

    form: str
    path: Path

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        files = self.path.rglob("*") if self.path.is_dir() else (self.path,)
        return {"to": self.form, "out": str(self.path), "bytes": sum(f.stat().st_size for f in files if f.is_file())}


def export(
    model: str | Path,
    form: str,
    out: str | Path | None = None,
    *,
    template: str | None = None,
    adapter: str | Path | None = None,
    screen: Screen | None = None,
) -> Exported:
    """Write a model in another form.

    Args:
        model: a run folder, a model folder, a GGUF or ``.pth`` file, or a name.
        form: ``hf`` (a folder that transformers opens) or ``pth`` (a state dictionary under the book's names).
        out: where to; by default a name made of the model's, in the working directory.
        template: the prompt form that goes along, only for models that come without one.
        adapter: a folder of LoRA adapters that are merged into the model before.
        screen: where it is said what is to be known of the files; nowhere by default.

    Raises:
        UserError: there is something at ``out`` already, or the model has no such form; nothing was written.
    """
    if form not in FORMS:
        raise SettingsError(f"--to {form}: wanted one of {', '.join(FORMS)}")
    write, ending = FORMS[form]
    target = Path(out) if out is not None else Path(f"{Path(model).resolve().stem}{ending}")
    if target.exists() or target.is_symlink():
        raise UserError(f"{target} is there already; choose another --out")
    assistant = load(model, template=template, adapter=adapter)
    for note in assistant.decoder.notes:
        (screen or Screen(quiet=True)).say(note, "yellow")
    write(assistant, target)
    return Exported(form, target)


def _hf(assistant: Assistant, out: Path) -> None:
    if found := export_folder(assistant.decoder, assistant.tokenizer, assistant.template, out):
        shutil.rmtree(out)
        raise ModelError("; ".join(found[:3]))


def _pth(assistant: Assistant, out: Path) -> None:
    spec = assistant.decoder.spec
    if not reads_back(spec):
        found = f"a {spec.family}" + (f" with heads {spec.head_width} wide" if has_form(spec) else "")
        raise ModelError(
            f"this model is {found}; a .pth file carries no configuration, and only the book's GPT-2 (heads 64 wide) "
            "is known by its names and shapes. Use --to hf"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_pth(assistant.decoder, out)


# How each form is written, and what its name ends with by default.
FORMS: dict[str, tuple[Callable[[Assistant, Path], None], str]] = {"hf": (_hf, "-hf"), "pth": (_pth, ".pth")}
