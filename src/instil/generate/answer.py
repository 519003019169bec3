"""Rows answered: examples in, completions out.

The response is what comes after the prompt by token position; text is never searched or replaced, so
an answer may itself contain ``### Response:``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from instil.data.encoding import encode_prompt, stop_id
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.generate.engine import Generated, generate
from instil.generate.options import GenerateOptions
from instil.generate.sampling import sampler
from instil.model.decoder import Decoder
from instil.records import Completion, Example


def answer(
    decoder: Decoder,
    tokenizer: Tokenizer,
    template: Template,
    examples: Sequence[Example],
    options: GenerateOptions,
    on_done: Callable[[], None] = lambda: None,
) -> list[Completion]:
    """Answer every example, in their order.

    A prompt that leaves no room for an answer in the model's context gets an empty completion with
    ``finish="no_room"`` and is thereby visible in every count.
    """
    prompts = [encode_prompt(example, template, tokenizer, header=options.header) for example in examples]
    fits = [index for index, prompt in enumerate(prompts) if len(prompt) < decoder.spec.context]
    generated: dict[int, Generated] = {}
    draw = sampler(options)

    def pick(logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        return draw(logits_BV, [fits[row] for row in rows])  # a row's stream goes by its place among all

    if fits:
        found = generate(
            decoder,
            [prompts[index] for index in fits],
            max_new_tokens=options.max_new_tokens,
            stop_ids=tokenizer.stop_ids | {stop_id(template, tokenizer)},
            pick=pick,
            batch_size=options.batch_size,
            on_done=lambda row, result: on_done(),
        )
        generated = dict(zip(fits, found, strict=True))
    completions = []
    for index, example in enumerate(examples):
        result = generated.get(index, Generated((), "no_room"))
        completions.append(
            Completion(
                text=_text(tokenizer.decode(result.ids), "" if options.header else template.header),
                ids=result.ids,
                finish=result.finish,
                prompt_tokens=len(prompts[index]),
                row=example.row,
            )
        )
    return completions


def _text(decoded: str, header: str) -> str:
    """The answer without white space around, and without the header where the model had to write it.

    Only a header at the very beginning goes; the chapter deletes every occurrence.
    """
    return decoded.strip().removeprefix(header.strip()).strip()
