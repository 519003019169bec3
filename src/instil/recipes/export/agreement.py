"""Whether a file that was exported says what the model says that it was made of: it is opened again and asked.

The model's own answers are gone through token by token: at every place the file's likeliest next token should be the
model's. What is exact must agree but for near ties, which rounding decides; what was rounded tells how often it does.

Shape suffixes: N places · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from instil.assistant.assistant import Assistant
from instil.assistant.folder import SAMPLES
from instil.data.encoding import encode_prompt
from instil.errors import DataError, counted
from instil.generate.prompts import generate
from instil.model.decoder import Decoder, batch_of_ids
from instil.records import Example
from instil.runs.answers import find_answers
from instil.runs.folder import RUN_FILE

ROWS = 32  # held-out rows that are gone through
TOKENS = 32  # of an answer, where the model has to be asked for it
TIE = 1e-3  # of the greatest score: nearer than that, rounding may exchange two tokens


@dataclass(frozen=True, slots=True)
class Agreement:
    """At how many places of some answers the likeliest next token is the model's; ``tied`` others are near ties."""

    answers: int
    places: int
    same: int
    tied: int

    @property
    def exact(self) -> bool:
        """Whether nothing differs but what rounding may decide."""
        return self.same + self.tied == self.places

    def line(self) -> str:
        """In a sentence.

        >>> Agreement(20, 400, 398, 1).line()
        "opened again: the likeliest next token is the model's at 398 of 400 places of 20 answers (99.5 %)"
        """
        share = f"{self.same / self.places:.1%}".replace("%", " %") if self.places else "none"
        return (
            f"opened again: the likeliest next token is the model's at {self.same:,} of {self.places:,} places of "
            f"{counted(self.answers, 'answer')} ({share})"
        )


def agreement(assistant: Assistant, again: Decoder, asked: Sequence[tuple[list[int], list[int]]]) -> Agreement:
    """Compare a model with what was read again.

    Args:
        assistant: the model that was exported.
        again: what was read.
        asked: prompts and what the model answered, as ids.
    """
    places = same = tied = 0
    for prompt, said in asked:
        ids = torch.tensor([*prompt, *said])[: again.spec.context]
        if len(prompt) >= len(ids):  # a file can have less room
            continue
        wanted_NV, found_NV = (_scores(decoder, ids, len(prompt)) for decoder in (assistant.decoder, again))
        wanted_N, found_N = wanted_NV.argmax(1), found_NV.argmax(1)
        lost_N = wanted_NV.gather(1, wanted_N[:, None]) - wanted_NV.gather(1, found_N[:, None])
        near_N = lost_N[:, 0] < TIE * wanted_NV.abs().amax(1)
        equal_N = wanted_N == found_N
        places, same = places + len(equal_N), same + int(equal_N.sum())
        tied += int((near_N & ~equal_N).sum())
    return Agreement(len(asked), places, same, tied)


def _scores(decoder: Decoder, ids: Tensor, begin: int) -> Tensor:
    with torch.inference_mode():
        hidden = decoder(batch_of_ids(ids[None].to(decoder.device)))
        return decoder.logits(hidden[begin - 1 :]).float().cpu()


def answered(assistant: Assistant, model: str | Path) -> list[tuple[list[int], list[int]]]:
    """Prompts and answers to go through: a run's held-out rows and what its tuned model said, else a few questions."""
    examples, texts = _of_run(Path(model))
    if not examples:
        examples = [Example(sample.instruction, "", sample.input) for sample in SAMPLES]
        texts = [one.text for one in assistant.respond_to(examples, assistant.options.changed(max_new_tokens=TOKENS))]
    tokenizer, context = assistant.tokenizer, assistant.decoder.spec.context
    found = []
    for example, text in zip(examples, texts, strict=True):
        prompt = encode_prompt(example, assistant.template, tokenizer, header=assistant.options.header)
        if len(prompt) < context:
            found.append((prompt, tokenizer.encode(text)[: context - len(prompt)]))
    return found or [_without_form(assistant)]


def unlike_in_chat(assistant: Assistant, model: str | Path) -> tuple[int, int]:
    """How many of a run's held-out rows a chat program asks in another form than training did, and of how many.

    A message has no field of its own for what an instruction is about; some templates (Alpaca's) have one.
    """
    examples = _of_run(Path(model))[0]
    tokenizer, template = assistant.tokenizer, assistant.template

    def in_chat(example: Example) -> list[int]:
        content = str(example.turns[-2].as_json()["content"])
        return encode_prompt(replace(example, instruction=content, input=""), template, tokenizer)

    asked = [one for one in examples if one.about and not one.steps]
    return sum(in_chat(one) != encode_prompt(one, template, tokenizer) for one in asked), len(examples)


def _without_form(assistant: Assistant) -> tuple[list[int], list[int]]:
    """A few ids and what follows them, where the model has no room for a prompt."""
    begin = max(1, assistant.decoder.spec.context // 2)
    ids = (assistant.tokenizer.encode(SAMPLES[0].instruction) or [assistant.tokenizer.eos_id])[:begin]
    (said,) = generate(assistant.decoder, [ids], max_new_tokens=TOKENS, stop_ids=frozenset())
    return ids, list(said.ids)


def _of_run(path: Path) -> tuple[list[Example], list[str]]:
    if not (path / RUN_FILE).is_file():
        return [], []
    try:
        rows = next((one for one in find_answers(path, only=("tuned",)) if one.which == "tuned"), None)
    except DataError:  # a run of training alone, or one whose answers are damaged, which is nothing to its model
        return [], []
    return (list(rows.examples[:ROWS]), list(rows.answers[:ROWS])) if rows else ([], [])
