"""Rows answered: examples in, completions out; or one answer as it comes.

The response is what comes after the prompt by token position; text is never searched or replaced, so
an answer may itself contain ``### Response:``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from instil.data.encoding import encode_prompt, stop_id
from instil.data.templates import Template
from instil.data.tokenizers import Tokenizer
from instil.errors import counted
from instil.generate.engine import Engine
from instil.generate.prompts import generate
from instil.generate.request import Generated, Request
from instil.generate.sampling import Sampling
from instil.generate.text import TextStream
from instil.model.decoder import Decoder
from instil.records import Completion, Example
from instil.settings.options import GenerateOptions


def answer(
    decoder: Decoder,
    tokenizer: Tokenizer,
    template: Template,
    examples: Sequence[Example],
    options: GenerateOptions,
    on_done: Callable[[], None] = lambda: None,
    engine: Engine | None = None,
    *,
    known: Mapping[int, Completion] | None = None,
    on_answer: Callable[[int, Completion], None] = lambda index, completion: None,
) -> list[Completion]:
    """Answer every example, in their order.

    A prompt that leaves no room for an answer in the model's context gets an empty completion with
    ``finish="no_room"`` and is thereby visible in every count.

    Args:
        decoder: the model.
        tokenizer: its tokenizer.
        template: the form of the prompts.
        examples: the rows.
        options: how answers are made.
        on_done: called after each answer that is made now.
        engine: one to use, with what it remembers.
        known: answers that were made before, by the places of their rows, and are taken as they are. The others come
            out as they would beside them: a row's answer does not depend on its neighbours (`generate`).
        on_answer: told the place and the answer of each row as it is made now.
    """
    known = known or {}
    prompts = [encode_prompt(example, template, tokenizer, header=options.header) for example in examples]
    room = [len(prompt) < decoder.spec.context for prompt in prompts]
    fits = [index for index, has_room in enumerate(room) if has_room and index not in known]
    header = template.preface(header=options.header)
    texts = {index: TextStream(tokenizer, options.stop, header) for index in fits} if options.stop else {}
    made = dict(known)

    def completed(index: int, result: Generated) -> Completion:
        text = texts[index].text if index in texts else tokenizer.decode(result.ids)
        return Completion(
            text=without_header(text, header),
            ids=result.ids,
            finish=result.finish,
            prompt_tokens=len(prompts[index]),
            row=examples[index].row,
        )

    def take(row: int, result: Generated) -> None:
        made[fits[row]] = completed(fits[row], result)
        on_answer(fits[row], made[fits[row]])
        on_done()

    if fits:
        generate(
            decoder,
            [prompts[index] for index in fits],
            max_new_tokens=options.max_new_tokens,
            stop_ids=tokenizer.stop_ids | {stop_id(template, tokenizer)},
            sampling=lambda row: Sampling.of(options, fits[row]),  # a row's stream goes by its place among all
            batch_size=options.batch_size,
            on_token=(lambda row, token: _ends(texts[fits[row]], token)) if texts else None,
            on_done=take,
            engine=engine,
        )
    return [
        made[index] if index in made else completed(index, Generated((), "no_room")) for index in range(len(examples))
    ]


class AnswerStream:
    """The text of an answer while it is being made, as it is shown: without white space around it, and without the
    header where the model has to write it.

    Args:
        tokenizer: turns ids into text.
        stop: texts that end the answer and are no part of it.
        header: what the answer may begin with, where stop texts do not count.
        bare: show the text just as it comes, as going on from another.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), header: str = "", *, bare: bool = False) -> None:
        self._text = TextStream(tokenizer, stop, header, goes_on=bare)
        self._header, self._bare = header, bare
        self._said, self._shown = "", ""

    @property
    def stopped(self) -> bool:
        """Whether a stop text has come."""
        return self._text.stopped

    def push(self, token: int) -> str:
        """Take an id; what is to be shown now and was not before."""
        self._said += self._text.push(token)
        if not self._bare and self._header.strip().startswith(self._said.strip()):
            return ""  # nothing yet, or what may become the header
        return self._show()

    def finish(self) -> str:
        """What was held back, once no more ids come."""
        self._said += self._text.finish()
        return self._show()

    def _show(self) -> str:
        text = self._said if self._bare else without_header(self._said, self._header)
        new, self._shown = text[len(self._shown) :], text
        return new


def stream(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    stop_ids: frozenset[int],
    options: GenerateOptions,
    header: str = "",
) -> Iterator[str]:
    """The answer to one prompt in pieces (`AnswerStream`), as they become certain; leaving early ends the work on it.

    Prompt and answer are remembered, so that a next turn that begins with them goes on from there. ``header`` is what
    the answer may begin with, where stop texts do not count.

    Raises:
        DataError: as `Engine.submit`.
    """
    text = AnswerStream(tokenizer, options.stop, header)
    pieces: list[str] = []
    ended: list[Generated] = []

    def take(token: int) -> bool:
        pieces.append(text.push(token))
        return text.stopped

    request = Request(
        prompt, options.max_new_tokens, stop_ids, Sampling.of(options), keep=True, on_token=take, on_done=ended.append
    )
    ticket = engine.submit(request)
    try:
        while not ended:
            engine.step()
            yield from filter(None, pieces)
            pieces.clear()
        if rest := text.finish():
            yield rest
    finally:
        if not ended:
            engine.cancel(ticket)


def _ends(text: TextStream, token: int) -> bool:
    text.push(token)
    return text.stopped


def without_header(decoded: str, header: str) -> str:
    """The answer without white space around, and without the header where the model had to write it.

    Only a header at the very beginning goes; the chapter deletes every occurrence. The indentation of the first line
    is kept, as code needs it: a tab, or two blanks and more; one alone is what many models begin a text with.

    >>> without_header("\\n    return 1\\n", ""), without_header(" Yes.\\n", "")
    ('    return 1', 'Yes.')
    """
    said = decoded.strip()
    if header.strip() and said.startswith(header.strip()):
        decoded = said.removeprefix(header.strip())
    lines = decoded.rstrip()
    lead = lines[: len(lines) - len(lines.lstrip())]
    indent = lead.rpartition("\n")[2]
    kept = indent if not indent.strip(" \t") and (len(indent) > 1 or indent == "\t") else ""
    return kept + lines.lstrip()


def unended(answers: Sequence[Completion], limit: int) -> list[str]:
    """How many answers were cut, and how many prompts left no room for one."""
    cut = sum(completion.finish == "length" for completion in answers)
    without_room = [completion.row for completion in answers if completion.finish == "no_room"]
    lines = [f"{counted(cut, 'answer')} did not end within {counted(limit, 'token')}"] if cut else []
    if without_room:
        shown = ", ".join(str(row) for row in without_room[:20])
        prompts = counted(len(without_room), "prompt")
        lines.append(f"{prompts} left no room for an answer in the model's context: rows {shown}")
    return lines
