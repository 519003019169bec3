"""Taking a model elsewhere: from a run, a folder or a file to a form that other programs read."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from instil.assistant.assistant import Assistant, load
from instil.assistant.folder import SAMPLES, export_folder
from instil.data import gguf_vocabulary
from instil.data.encoding import begin_text, encode_prompt, stop_id
from instil.data.gguf_tokenizer import AWKWARD, gguf_values
from instil.data.gguf_vocabulary import KNOWN_ENDS
from instil.data.templates.kept import GGUF_KEY, put_in_archive
from instil.errors import ModelError, SettingsError
from instil.files import check_new, json_text, plain_name, write_whole
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.gguf_writer import LARGEST_F16, PRECISIONS, write_gguf
from instil.model.files.pth import has_form, reads_back, save_pth
from instil.model.load import load_decoder
from instil.recipes.agreement import Agreement, agreement, answered
from instil.runs.folder import RUN_FILE, RunFolder
from instil.runs.model_card import model_card
from instil.screen import Screen

CLOSE = 1e-4  # of logits, where norms were kept as their distance from one, or by other factors of rope


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and where it lies."""

    form: str
    path: Path
    agreement: Agreement

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        files = self.path.rglob("*") if self.path.is_dir() else (self.path,)
        return {
            "to": self.form,
            "out": str(self.path),
            "bytes": sum(f.stat().st_size for f in files if f.is_file()),
            "agreement": asdict(self.agreement),
        }


def export(
    model: str | Path,
    form: str,
    out: str | Path | None = None,
    *,
    dtype: str | None = None,
    template: str | None = None,
    adapter: str | Path | None = None,
    screen: Screen | None = None,
) -> Exported:
    """Write a model in another form.

    Args:
        model: a run folder, a model folder, a GGUF or ``.pth`` file, or a name.
        form: ``hf`` (a folder that transformers opens), ``gguf`` (a file that llama.cpp and Ollama run) or ``pth``
            (a state dictionary under the book's names).
        out: where to; by default a name made of the model's, in the working directory.
        dtype: of the numbers in it, one of those in `DTYPES`; by default ``f32``, in which the model is held.
        template: the prompt form that goes along, only for models that come without one.
        adapter: a folder of LoRA adapters that are merged into the model before.
        screen: where it is said what is to be known of the files; nowhere by default.

    Raises:
        UserError: there is something at ``out`` already, or the model has no such form; nothing was written.
    """
    if form not in FORMS:
        raise SettingsError(f"--to {form}: wanted one of {', '.join(FORMS)}")
    write, ending = FORMS[form]
    chosen = dtype or "f32"
    if chosen not in DTYPES[form]:
        raise SettingsError(f"--dtype {chosen}: --to {form} takes {', '.join(DTYPES[form])}")
    target = Path(out) if out is not None else Path(f"{plain_name(Path(model).resolve())}{ending}")
    check_new(target)
    if form == "gguf":
        check_new(modelfile_of(target))
    assistant = load(model, template=template, adapter=adapter)
    shown = screen or Screen(quiet=True)
    for note in assistant.decoder.notes:
        shown.say(note, "yellow")
    asked = answered(assistant, model)
    write(assistant, target, chosen)
    found = _opened_again(assistant, asked, target, exact=chosen == "f32")
    shown.say(found.line())
    _beside(assistant, Path(model), form, target)
    return Exported(form, target, found)


def _beside(assistant: Assistant, model: Path, form: str, target: Path) -> None:
    """What goes along: a card with a run's folder, a Modelfile with a GGUF file."""
    if form == "hf" and (model / RUN_FILE).is_file():
        write_whole(target / "README.md", model_card(RunFolder(model)).encode())
    if form == "gguf":
        write_whole(modelfile_of(target), modelfile(assistant, target).encode())


def modelfile_of(target: Path) -> Path:
    """Where the Modelfile of a GGUF file lies."""
    return target.with_name(f"{target.name.removesuffix('.gguf')}.Modelfile")


def modelfile(assistant: Assistant, file: Path) -> str:
    """What `ollama create NAME -f MODELFILE` reads.

    Every end is written down as a stop, since Ollama does not take all of them from the file; no TEMPLATE is, which
    would count in place of the chat template that the file carries.
    """
    tokenizer, template = assistant.tokenizer, assistant.template
    ends = sorted(tokenizer.stop_ids | {stop_id(template, tokenizer)})
    stops = [f"PARAMETER stop {json.dumps(tokenizer.token(end), ensure_ascii=False)}" for end in ends]
    lines = [f"FROM ./{file.name}", *stops, f"PARAMETER num_ctx {assistant.decoder.spec.context}"]
    return "\n".join([*lines, ""])


def _opened_again(
    assistant: Assistant, asked: Sequence[tuple[list[int], list[int]]], target: Path, *, exact: bool
) -> Agreement:
    """How far what was written says what the model says; what should be exact and is not, is not left there."""
    found = agreement(assistant, load_decoder(target, device=assistant.decoder.device), asked)
    if exact and not found.exact:
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        raise ModelError(f"{target} does not answer as the model does, so it was removed again; {found.line()}")
    return found


def _hf(assistant: Assistant, out: Path, dtype: str) -> None:
    if dtype != "f32":
        assistant = _rounded(assistant, dtype)
    if found := export_folder(assistant.decoder, assistant.tokenizer, assistant.template, out):
        shutil.rmtree(out)
        raise ModelError("; ".join(found[:3]))


def _rounded(assistant: Assistant, dtype: str) -> Assistant:
    """The same with weights of 16 bits; the model itself stays as it is."""
    decoder = copy.deepcopy(assistant.decoder)
    largest = max(float(value.abs().max()) for value in decoder.parameters())
    if dtype == "f16" and not largest <= LARGEST_F16:
        raise ModelError(f"a weight is {largest:.3g}, which float16 cannot hold; export with --dtype bf16 or f32")
    return replace(assistant, decoder=decoder.to({"f16": torch.float16, "bf16": torch.bfloat16}[dtype]))


def _pth(assistant: Assistant, out: Path, dtype: str) -> None:
    del dtype  # float32 is what the book reads
    spec = assistant.decoder.spec
    if not reads_back(spec):
        found = f"a {spec.family}" + (f" with heads {spec.head_width} wide" if has_form(spec) else "")
        raise ModelError(
            f"this model is {found}; a .pth file carries no configuration, and only the book's GPT-2 (heads 64 wide) "
            "is known by its names and shapes. Use --to hf"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    save_pth(assistant.decoder, out, lambda part: put_in_archive(assistant.template, part))


def _gguf(assistant: Assistant, out: Path, dtype: str) -> None:
    decoder, template = assistant.decoder, assistant.template
    tokenizer = assistant.tokenizer
    fast = tokenizer.saved()
    fast.encode_special_tokens = True  # as it is in a tokenizer here: a user's "<|im_end|>" is text
    begin = begin_text(template, tokenizer).rstrip()  # llama.cpp puts a space after it by itself
    values = gguf_values(
        fast,
        eos_id=stop_id(template, tokenizer),
        bos_id=tokenizer.bos_id,
        stop_ids=tokenizer.stop_ids,
        size=decoder.spec.vocab_size,
        chat_template=template.chat_template(begin),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    values[GGUF_KEY] = json_text(template.as_json())
    exact = dtype == "f32"
    write_gguf(decoder, values, out, lambda file: _same_answers(assistant, fast, file, exact=exact), dtype)


def _same_answers(assistant: Assistant, fast: Any, file: Path, *, exact: bool) -> None:
    """ModelError where a file gives other ids, or should be exact and gives other logits, than what it was made of.

    Ids are compared for awkward texts, for every token's own text, and for prompts with the control tokens of the
    template. A text with a space at its beginning is left out where the template puts something before it.
    """
    found = gguf_vocabulary.read(file).fast
    tokenizer, template = assistant.tokenizer, assistant.template
    for row in SAMPLES:
        found.encode_special_tokens = False
        prompt = encode_prompt(row, template, tokenizer)
        begins = bool(begin_text(template, tokenizer))  # else it does so by itself, or nothing does
        if list(found.encode(template.prompt(row), add_special_tokens=begins).ids) != prompt:
            raise ModelError(
                f"llama.cpp would cut prompts of the template {template.name!r} into other tokens than this tokenizer, "
                "which takes white space beside its marks, or puts it there. Use --to hf, or another template"
            )
    found.encode_special_tokens = True
    size = min(fast.get_vocab_size(with_added_tokens=True), assistant.decoder.spec.vocab_size)
    own = [fast.decode([index], skip_special_tokens=False) for index in range(size)]
    asked = template.prompt(SAMPLES[0])
    texts = [*AWKWARD, asked, *(text for text in own if "\ufffd" not in text)]
    if not asked.startswith(SAMPLES[0].instruction):
        texts = [text for text in texts if not text.startswith(" ")]
    # llama.cpp takes some tokens for ends by their names, though they are not called special here
    ends = [token.content for token in fast.get_added_tokens_decoder().values() if not token.special]
    texts = [text for text in texts if not any(end in text for end in ends if end in KNOWN_ENDS)]
    theirs, ours = (one.encode_batch(texts, add_special_tokens=True) for one in (found, fast))
    unlike = [text for text, one, other in zip(texts, theirs, ours, strict=True) if one.ids != other.ids]
    if unlike:
        raise ModelError(
            f"llama.cpp would cut {len(unlike):,} of {len(texts):,} texts into other tokens than this tokenizer, "
            f"such as {unlike[0]!r}. Use --to hf"
        )
    if not exact:
        return
    again = load_decoder(file, device=assistant.decoder.device)
    ids = torch.arange(min(16, again.spec.context)) * 7 % again.spec.vocab_size
    wanted = _logits(assistant.decoder, ids)
    apart = ((_logits(again, ids) - wanted).abs().max() / wanted.abs().max().clamp_min(1e-6)).item()
    if not apart < CLOSE:
        raise ModelError(f"the file's logits are {apart:.1e} of the greatest from the model's. Use --to hf")


def _logits(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch_of_ids(ids[None].to(decoder.device)))).float()


# How each form is written, and what its name ends with by default.
FORMS: dict[str, tuple[Callable[[Assistant, Path, str], None], str]] = {
    "hf": (_hf, "-hf"),
    "gguf": (_gguf, ".gguf"),
    "pth": (_pth, ".pth"),
}
DTYPES: dict[str, tuple[str, ...]] = {"hf": ("f32", "bf16", "f16"), "gguf": tuple(PRECISIONS), "pth": ("f32",)}
