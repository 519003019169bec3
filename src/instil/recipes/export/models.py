"""Whole models in the forms that other programs read: a folder of `transformers`, GGUF, or the book's ``.pth``."""

from __future__ import annotations

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from instil.assistant.assistant import Assistant
from instil.assistant.folder import SAMPLES, export_folder
from instil.data import gguf_vocabulary
from instil.data.encoding import begin_text, encode_prompt, stop_id
from instil.data.gguf_tokenizer import AWKWARD, gguf_values
from instil.data.gguf_vocabulary import KNOWN_ENDS
from instil.data.templates.kept import GGUF_KEY, put_in_archive
from instil.errors import ModelError
from instil.files import json_text
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.gguf_writer import LARGEST_F16, write_gguf
from instil.model.files.pth import has_form, reads_back, save_pth
from instil.model.load import load_decoder

CLOSE = 1e-4  # of logits, where norms were kept as their distance from one, or by other factors of rope
TYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def write_hf(assistant: Assistant, out: Path, dtype: str) -> None:
    """A folder for `transformers`; ModelError where that would give texts other ids than in training."""
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
    return replace(assistant, decoder=decoder.to(TYPES[dtype]))


def rounds(decoder: Decoder, dtype: str) -> bool:
    """Whether any weight is another number in this type."""
    return any(not torch.equal(value.to(TYPES[dtype]).to(value.dtype), value) for value in decoder.parameters())


def write_pth(assistant: Assistant, out: Path, dtype: str) -> None:
    """The book's state dictionary, for a GPT-2 that its names and shapes describe; ModelError for others."""
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


def write_gguf_file(assistant: Assistant, out: Path, dtype: str) -> None:
    """A file for llama.cpp; ModelError where that would compute something else."""
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
