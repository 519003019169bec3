"""Chat templates in Jinja as training forms: the model's own, or the user's.

A template is rendered with messages whose text knows where it comes from (`instil.data.templates.tracked`), so what is
the template's and what is a user's is known by position, whatever the template does with it. An answer is what the
template writes from the end of the prompt that it gives for generation up to the token that ends the answer. That
holds if the prompt is the beginning of the whole, which is looked at in every row; so prompts in training and in use
are the same. An earlier answer is trained on only if the text up to its end is what it would be without what follows.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from instil.data.templates.messages import message_of, texts_of, with_origin
from instil.data.templates.program import dates_in, program
from instil.data.templates.sandbox import CLOCK
from instil.data.templates.skeleton import Skeleton, Slot, passes_texts_on
from instil.data.templates.template import Piece, Rendered, Template, all_trained
from instil.data.templates.tracked import Origin, Runs, Tracked
from instil.errors import DataError
from instil.records import Example, Role, Turn, blank

if TYPE_CHECKING:
    from instil.settings.options import TrainOn, Turns

DEFAULT, WITH_TOOLS = "default", "tool_use"  # names of templates, as transformers knows them
TOOLS = -1  # in origins, where other numbers are those of messages
THOUGHT = "</think>"


class _Span(NamedTuple):
    """Where an answer lies in a text, end token included."""

    start: int
    end: int
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class ChatTemplate(Template):
    """A chat template in Jinja.

    Attributes:
        sources: its text, or several by their names.
        variables: special tokens by the names that a template has for them, such as ``bos_token``; and what is set for
            the template because it needs it (``enable_thinking``).
        written: what it writes before an answer that the prompt lacks, such as an empty block of thoughts.
        texts_of_calls: whether arguments of tools' calls are text for it, not objects.
    """

    writes_begin = True

    name: str
    sources: tuple[tuple[str, str], ...]
    variables: tuple[tuple[str, str | bool], ...] = ()
    stop: str = ""
    written: str = ""
    texts_of_calls: bool = False
    header: str = ""

    def rendered(self, example: Example, train_on: TrainOn = "response", turns: Turns = "all") -> Rendered:
        if train_on == "response_with_header":
            raise DataError(
                f"the template {self.name!r} has no response header to train on; use data.train_on=response"
            )
        told = example.turns
        skeleton = self._skeleton(told, example.tools) if train_on == "response" else None
        if skeleton is not None:
            last = len(told) - 1
            wanted = {n for n in range(last) if told[n].role == "assistant" and told[n].weight > 0 and turns == "all"}

            def weight(number: int) -> float:
                return told[number].weight if number == last or number in wanted else 0.0

            return Rendered(skeleton.filled(texts_of(told), weight), len(wanted - skeleton.answers))
        return self._in_full(told, example.tools, train_on, turns)

    def _in_full(self, told: Sequence[Turn], tools: str, train_on: TrainOn, turns: Turns) -> Rendered:
        """A whole row by rendering it."""
        whole, answer = self._answered(told, tools)
        plain = self._render(told, tools, tracked=False)
        if plain != whole:
            raise DataError(f"the template {self.name!r} escapes text, so that it cannot be told from its own")
        self._check_nothing_lost(whole, told, tools)
        spans, left_out = [], 0
        for number, turn in enumerate(told[:-1]):
            wanted = train_on == "all" or (turn.weight > 0 and turns == "all")
            if turn.role != "assistant" or not wanted:
                continue
            span = self._as_last(whole, told[: number + 1], tools)
            if span is not None:
                spans.append(span)
            elif turn.weight > 0:
                left_out += 1
        end = Piece(self.stop, control=True, trained=answer.weight > 0, weight=answer.weight)
        pieces = [*self._pieces(whole, [*spans, answer]), *([] if self.stop else [end])]
        return Rendered(pieces, left_out) if train_on != "all" else Rendered(all_trained(pieces))

    def prompt_pieces(self, example: Example, *, header: bool = True) -> list[Piece]:
        del header
        told = example.turns[:-1]
        skeleton = self._skeleton(example.turns, example.tools)
        if skeleton is not None:
            return skeleton.asked(texts_of(example.turns))
        text = self._render(told, example.tools, prompt=True)
        self._check_nothing_lost(text, told, example.tools)
        return self._pieces(text, [])

    def _skeleton(self, turns: Sequence[Turn], tools: str) -> Skeleton | None:
        """What such a conversation only needs to be filled into, if the template passes texts on as they are."""
        odd = any(turn.reasoning or turn.tool_calls or turn.name or turn.tool_call_id for turn in turns)
        if tools or odd or not passes_texts_on(dict(self.sources)[DEFAULT]):
            return None
        found = _skeleton_of(self, tuple(turn.role for turn in turns))
        if found is None:
            return None
        written = {slot.message for slot in found.slots}
        lost = any(number not in written and not blank(turn.content) for number, turn in enumerate(turns))
        return None if lost else found

    def skeleton_of(self, roles: Sequence[Role]) -> Skeleton | None:
        """The pieces of conversations with these roles; None if they are not one text after another."""
        turns = [Turn(role, f"x{number}") for number, role in enumerate(roles)]
        last = len(turns) - 1
        try:
            whole, answer = self._answered(turns, "")
        except DataError:
            return None
        spans = {
            number: self._as_last(whole, turns[: number + 1], "")
            for number in range(last)
            if roles[number] == "assistant"
        }
        found = {number: span for number, span in spans.items() if span is not None} | {last: answer}
        pieces = self._pieces(whole, list(found.values()))
        texts = {turn.content: number for number, turn in enumerate(turns)}
        slots, at = [], 0
        for piece in pieces:
            inside = next((number for number, span in found.items() if span.start <= at < span.end), None)
            if not piece.form and piece.text not in texts:
                return None
            slots.append(Slot(piece, None if piece.form else texts[piece.text], inside))
            at += len(piece.text)
        if not self.stop:
            slots.append(Slot(Piece("", control=True), None, last))
        return Skeleton(tuple(slots), frozenset(found))

    def _render(self, turns: Sequence[Turn], tools: str, *, prompt: bool = False, tracked: bool = True) -> Tracked:
        """What the template makes of turns; with ``prompt`` as far as an answer begins."""
        sources, given = dict(self.sources), json.loads(tools) if tools else None
        source = sources.get(WITH_TOOLS if given else DEFAULT) or sources[DEFAULT]
        if tracked:
            given = with_origin(given, (TOOLS, "tools"))
        messages = [
            message_of(turn, number if tracked else None, self.texts_of_calls) for number, turn in enumerate(turns)
        ]
        length = len(tools) + sum(len(turn.content) + len(turn.input) + len(turn.tool_calls) + 99 for turn in turns)
        values = {**dict(self.variables), "messages": messages, "tools": given, "documents": None}
        try:
            made = program(source).render(length, add_generation_prompt=prompt, **values)
        except DataError as error:
            raise DataError(f"the template {self.name!r}: {error}") from error
        return made if isinstance(made, Tracked) else Tracked.of(made, None)

    def _as_last(self, whole: Tracked, turns: Sequence[Turn], tools: str) -> _Span | None:
        """Where an earlier answer lies, if all up to its end is what it is where nothing follows it."""
        try:
            then, span = self._answered(turns, tools)
        except DataError:
            return None
        return span if self.stop and whole.startswith(then[: span.end]) else None

    def _answered(self, turns: Sequence[Turn], tools: str) -> tuple[Tracked, _Span]:
        """A conversation that ends with an answer, and where that lies."""
        prompt = self._render(turns[:-1], tools, prompt=True)
        whole = self._render(turns, tools)
        last = len(turns) - 1
        if not whole.startswith(prompt):
            same = next(
                (at for at, pair in enumerate(zip(whole, prompt, strict=False)) if pair[0] != pair[1]), len(whole)
            )
            raise DataError(
                f"the template {self.name!r} asks for an answer with {prompt[max(0, same - 20) : same + 60]!r} but "
                f"writes one after {whole[max(0, same - 20) : same + 60]!r}, so what would be trained is not what is "
                "asked for; take another template, or a file of your own (data.template=FILE.jinja)"
            )
        first, end = _extent(whole.runs, last, len(prompt))
        if first < len(prompt):
            raise DataError(
                f"the template {self.name!r} writes an answer's text before the place where it is asked for"
            )
        if self.stop:
            at = str.find(whole, self.stop, end)
            if at < 0 or not _template_only(whole.runs, end, at + len(self.stop)):
                raise DataError(f"the template {self.name!r} does not write {self.stop!r} after an answer of this kind")
            end = at + len(self.stop)
        else:
            end = max(end, len(whole.rstrip()))
        return whole, _Span(len(prompt), end, turns[-1].weight)

    def around(self, turns: Sequence[Turn]) -> tuple[str, str]:
        """What the template writes after an answer, and before it where the prompt has ended."""
        whole, span = self._answered(turns, "")
        self._check_nothing_lost(whole, turns, "")
        first, end = _extent(whole.runs, len(turns) - 1, span.start)
        return whole[end:].plain, whole[span.start : first].plain

    def _pieces(self, text: Tracked, spans: Sequence[_Span]) -> list[Piece]:
        """A text as pieces, as far as the last answer in it ends."""
        pieces: list[Piece] = []
        borders = sorted({border for span in spans for border in span[:2]})
        stop = borders[-1] if spans else len(text)
        borders.append(len(text))
        at = 0
        for length, origin in _merged(text.runs):
            end = at + length
            while at < min(end, stop):
                until = min(end, next(border for border in borders if border > at))
                here = next((span for span in spans if span.start <= at < span.end), None)
                weight = here.weight if here else 1.0
                pieces.append(
                    Piece(
                        str.__getitem__(text, slice(at, until)),
                        trained=here is not None and weight > 0,
                        answer=bool(spans) and at == spans[-1].start,
                        form=origin is None,
                        weight=weight,
                    )
                )
                at = until
        if spans and spans[-1].start == spans[-1].end:  # an empty answer of a template that writes no end
            pieces.append(Piece("", answer=True, trained=spans[-1].weight > 0, weight=spans[-1].weight))
        return pieces

    def _check_nothing_lost(self, text: Tracked, turns: Sequence[Turn], tools: str) -> None:
        """DataError where a template passes over something that a row says."""
        written: dict[Origin | None, int] = {}
        at = 0
        for length, origin in text.runs:
            part = str.__getitem__(text, slice(at, at + length))
            written[origin] = written.get(origin, 0) + length - sum(map(str.isspace, part))
            at += length
        if tools and not written.get((TOOLS, "tools")):
            raise DataError(f"the template {self.name!r} does not tell the model of tools{_ADVICE}")
        for number, turn in enumerate(turns):
            answer = number == len(turns) - 1 and turn.role == "assistant"
            said = {"content": turn.content, "tool_calls": turn.tool_calls}
            if answer:
                said["reasoning"] = turn.reasoning
            for field, value in said.items():
                if not blank(value) and not written.get((number, field)):
                    raise DataError(
                        f"the template {self.name!r} leaves out the {_FIELDS[field]} of {_who(turn)}{_ADVICE}"
                    )
            whole = len(turn.content) - sum(map(str.isspace, turn.content)) + len(turn.about)
            if answer and THOUGHT not in turn.content and written.get((number, "content"), 0) < whole:
                raise DataError(f"the template {self.name!r} leaves out a part of {_who(turn)}{_ADVICE}")

    def preface(self, *, header: bool) -> str:
        del header
        return self.written

    @property
    def control_tokens(self) -> frozenset[str]:
        return frozenset({self.stop, *(text for _, text in self.variables if isinstance(text, str))} - {""})

    @property
    def other_chat_templates(self) -> Mapping[str, str]:
        return {name: self._exported(source) for name, source in self.sources if name != DEFAULT}

    def chat_template(self, begin: str = "") -> str:
        del begin
        return self._exported(dict(self.sources)[DEFAULT])

    def _exported(self, source: str) -> str:
        """The source, with what was set in training: the day, and whether there are thoughts."""
        before = "".join(
            f"{{%- if {name} is not defined -%}}{{%- set {name} = {str(value).lower()} -%}}{{%- endif -%}}\n"
            for name, value in self.variables
            if isinstance(value, bool)
        )
        if said := {form: CLOCK.strftime(form) for form in dates_in(source)}:
            before += f"{{%- macro strftime_now(format) -%}}{{{{- {json.dumps(said)}[format] -}}}}{{%- endmacro -%}}\n"
        return before + source

    def content(self) -> dict[str, Any]:
        return {
            "kind": "jinja",
            "name": self.name,
            "templates": dict(self.sources),
            "variables": dict(self.variables),
            "stop": self.stop,
            "written": self.written,
            "texts_of_calls": self.texts_of_calls,
        }


_ADVICE = "; take a template that has a place for it, or leave it out of the rows"
_FIELDS = {"content": "text", "tool_calls": "calls of tools", "reasoning": "reasoning"}


@functools.lru_cache(maxsize=1024)
def _skeleton_of(template: ChatTemplate, roles: tuple[Role, ...]) -> Skeleton | None:
    return template.skeleton_of(roles)


def chat_from(stored: Mapping[str, Any]) -> ChatTemplate:
    """The chat template that ``template.json`` holds; KeyError or TypeError if it holds none."""
    sources, variables = stored["templates"], stored["variables"]
    texts = [stored["name"], stored["stop"], stored["written"], *sources.values(), *sources, *variables]
    values = all(isinstance(value, str | bool) for value in variables.values())
    if not values or not all(isinstance(text, str) for text in texts) or DEFAULT not in sources:
        raise TypeError("a chat template is text")
    return ChatTemplate(
        stored["name"],
        tuple(sorted(sources.items())),
        tuple(sorted(variables.items())),
        stored["stop"],
        stored["written"],
        stored["texts_of_calls"] is True,
    )


def _merged(runs: Runs) -> Iterator[tuple[int, Origin | None]]:
    """Runs in which what several fields of users say in a row is one."""
    length, kind = 0, None
    for count, origin in runs:
        if length and (origin is None) != (kind is None):
            yield length, kind
            length = 0
        length, kind = length + count, origin
    if length:
        yield length, kind


def _extent(runs: Runs, number: int, start: int) -> tuple[int, int]:
    """Where the text of a message begins and ends; at ``start`` if there is none."""
    places = [(begin, end) for begin, end, origin in _places(runs) if origin is not None and origin[0] == number]
    return (places[0][0], places[-1][1]) if places else (start, start)


def _template_only(runs: Runs, start: int, end: int) -> bool:
    """Whether all between two places is the template's."""
    return all(origin is None for begin, stop, origin in _places(runs) if begin < end and stop > start)


def _places(runs: Runs) -> Iterable[tuple[int, int, Origin | None]]:
    at = 0
    for length, origin in runs:
        yield at, at + length, origin
        at += length


def _who(turn: Turn) -> str:
    return {"system": "the system message", "tool": "a tool's message"}.get(turn.role, f"a message of the {turn.role}")
