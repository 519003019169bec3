"""Taking a model elsewhere: from a run, a folder or a file to a form that other programs read."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.errors import ModelError, SettingsError, counted
from instil.files import check_new, plain_name, unfinished_of, write_whole
from instil.hub import check_push, push
from instil.model.files.gguf_lora import ADAPTER_DTYPES
from instil.model.files.gguf_writer import PRECISIONS
from instil.model.find import find_here
from instil.model.load import load_decoder, stored_as
from instil.model.lora import merge
from instil.recipes.export.adapters import GGUF, MLX, adapted, how_to_use, put_on_base, template_of, write_adapters
from instil.recipes.export.agreement import Agreement, agreement, answered, unlike_in_chat
from instil.recipes.export.models import modelfile, modelfile_of, rounds, write_gguf_file, write_hf, write_pth
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.model_card import model_card
from instil.screen import Screen


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, in which numbers, and where it lies; ``pushed`` is its address on the hub."""

    form: str
    path: Path
    agreement: Agreement
    dtype: str = "f32"
    pushed: str = ""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        files = self.path.rglob("*") if self.path.is_dir() else (self.path,)
        return {
            "to": self.form,
            "out": str(self.path),
            "dtype": self.dtype,
            "bytes": sum(f.stat().st_size for f in files if f.is_file()),
            "agreement": asdict(self.agreement),
            **({"pushed": self.pushed} if self.pushed else {}),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """One form: what its name ends with by default, its types of numbers, and how a whole model is written in it.

    ``beside`` is the file that is written next to it.
    """

    ending: str
    dtypes: tuple[str, ...]
    write: Callable[[Assistant, Path, str], None] | None = None
    beside: Callable[[Path], Path] | None = None


FORMS = {
    "hf": Form(ending="-hf", dtypes=("f32", "bf16", "f16"), write=write_hf),
    "gguf": Form(ending=".gguf", dtypes=tuple(PRECISIONS), write=write_gguf_file, beside=modelfile_of),
    "pth": Form(ending=".pth", dtypes=("f32",), write=write_pth),
    GGUF: Form(ending="-lora.gguf", dtypes=ADAPTER_DTYPES, beside=template_of),
    MLX: Form(ending="-mlx", dtypes=("f32",)),
}


def export(
    model: str | Path,
    form: str,
    out: str | Path | None = None,
    *,
    dtype: str | None = None,
    template: str | None = None,
    adapter: str | Path | None = None,
    push_to: str | None = None,
    public: bool = False,
    screen: Screen | None = None,
) -> Exported:
    """Write a model in another form.

    Args:
        model: a run folder, a model folder, a GGUF or ``.pth`` file, or a name.
        form: ``hf`` (a folder that transformers opens), ``gguf`` (a file that llama.cpp and Ollama run), ``pth``
            (a state dictionary under the book's names), ``gguf-lora`` or ``mlx-lora`` (a run's adapters alone, for
            llama.cpp or mlx-lm to put on their base).
        out: where to; by default a name made of the model's, in the working directory.
        dtype: of the numbers in it, one of the form's (`FORMS`); by default ``f32``, in which the model is held, and
            of ``hf`` that in which its base is stored.
        template: the prompt form that goes along, only for models that come without one.
        adapter: a folder of LoRA adapters that are merged into the model before, or that are written themselves.
        push_to: of ``hf``: the repository on the hub (``owner/name``) that is made of the folder.
        public: make it one that everybody sees.
        screen: where it is said what is to be known of the files; nowhere by default.

    Raises:
        UserError: there is something at ``out`` or ``push_to`` already, or the model has no such form; nothing was
            written.
    """
    if form not in FORMS:
        raise SettingsError(f"--to {form}: wanted one of {', '.join(FORMS)}")
    kind = FORMS[form]
    if dtype is not None and dtype not in kind.dtypes:
        raise SettingsError(f"--dtype {dtype}: --to {form} takes {', '.join(kind.dtypes)}")
    if push_to is not None and form != "hf":
        raise SettingsError("--push takes a folder to the hub; it goes with --to hf")
    if public and push_to is None:
        raise SettingsError("--public goes with --push OWNER/NAME")
    target = Path(out) if out is not None else Path(f"{plain_name(Path(model).resolve())}{kind.ending}")
    check_new(target)
    if kind.beside:
        check_new(kind.beside(target))
    if push_to is not None:
        check_push(push_to)
    shown = screen or Screen(quiet=True)
    if kind.write is None:
        return _adapters(model, form, target, dtype or "f32", template, adapter, shown)
    assistant = load(model, template=template, adapter=adapter)
    for note in assistant.decoder.notes:
        shown.say(note, "yellow")
    chosen = dtype or (_dtype_of_base(assistant, model, shown) if form == "hf" else "f32")
    asked = answered(assistant, model)
    with _whole_or_gone(target, kind):
        kind.write(assistant, target, chosen)
        found = agreement(assistant, load_decoder(target, device=assistant.decoder.device), asked)
        _check(target, found, exact=chosen == "f32")
        if form == "hf" and (Path(model) / RUN_FILE).is_file():
            write_whole(target / "README.md", model_card(RunFolder(Path(model))))
        if form == "gguf":
            write_whole(modelfile_of(target), modelfile(assistant, target))
    shown.say(found.line())
    _say_of_chat(assistant, model, shown)
    made = Exported(form, target, found, chosen)
    if push_to is None:
        return made
    shown.say(f"sending {target} to the hub, {'for everybody' if public else 'for its owner alone (--public)'}")
    return replace(made, pushed=push(target, push_to, public=public))


def _adapters(
    model: str | Path,
    form: str,
    target: Path,
    dtype: str,
    template: str | None,
    adapter: str | Path | None,
    shown: Screen,
) -> Exported:
    """The same of adapters alone; what was written is put on the base again, which must answer as the merged model."""
    given = adapted(model, adapter, template)
    decoder = given.assistant.decoder
    for note in decoder.notes:
        shown.say(note, "yellow")
    with _whole_or_gone(target, FORMS[form]):
        write_adapters(given, form, target, dtype)
        merge(decoder)
        asked = answered(given.assistant, model)
        found = agreement(given.assistant, put_on_base(given, form, target), asked)
        _check(target, found, exact=dtype == "f32" and not given.rounded)
    shown.say(found.line())
    if given.rounded:
        shown.say("the adapters were trained beside weights in few bits; others put them on the exact ones", "yellow")
    _say_of_chat(given.assistant, model, shown)
    shown.say(how_to_use(form, target))
    return Exported(form, target, found, dtype)


def _say_of_chat(assistant: Assistant, model: str | Path, shown: Screen) -> None:
    """That programs that chat put some rows in another form than training did, where it is so."""
    unlike, rows = unlike_in_chat(assistant, model)
    if unlike:
        shown.say(
            f"{unlike:,} of {counted(rows, 'held-out row')} have an input, which the template "
            f"{assistant.template.name!r} puts under a heading of its own; a chat message has none, so programs that "
            "chat ask such a row in another form (docs/use.md)",
            "yellow",
        )


@contextmanager
def _whole_or_gone(target: Path, form: Form) -> Iterator[None]:
    """Nothing of an export stays that was not finished; what lay there before does."""
    made = [target, *([form.beside(target)] if form.beside else [])]
    mine = [*made, *(path for path in map(unfinished_of, made) if not path.exists())]
    try:
        yield
    except BaseException:
        for path in mine:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        raise


def _check(target: Path, found: Agreement, *, exact: bool) -> None:
    """ModelError where what should be exact says something else than the model."""
    if exact and not found.exact:
        raise ModelError(f"{target} does not answer as the model does, so it was removed again; {found.line()}")


def _dtype_of_base(assistant: Assistant, model: str | Path, shown: Screen) -> str:
    """The numbers in which a model's base is stored, as far as a folder has them and they are on this machine."""
    base = str(model)
    if (Path(model) / RUN_FILE).is_file():
        base = RunFolder(Path(model)).base()
    path = find_here(base)
    stored = "f32" if path is None else stored_as(path)
    if stored == "f32" or stored not in FORMS["hf"].dtypes:
        return "f32"
    what = "the tuned weights are rounded to it" if rounds(assistant.decoder, stored) else "nothing is rounded"
    shown.say(f"written in {stored}, as {base} is stored; {what} (--dtype f32 keeps every digit)")
    return stored
