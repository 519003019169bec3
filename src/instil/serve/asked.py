"""What clients ask, whichever interface they ask by, as requests to the engine.

Nothing that changes an answer is ignored in silence: what cannot be done as it is asked for is refused.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field

from instil.assistant.conversation import conversation_of
from instil.data.encoding import encode_prompt, stop_id
from instil.errors import DataError, SettingsError
from instil.files import json_kind
from instil.generate.answer import AnswerStream
from instil.generate.request import Request
from instil.generate.sampling import Sampling
from instil.serve.errors import ServeError
from instil.serve.grammar import Grammars
from instil.serve.models import Served
from instil.settings.asking import MAX_SEED
from instil.settings.options import GenerateOptions

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]  # of a request
MOST_LOGPROBS = 20
MOST_STOPS = 64  # texts that end an answer, and characters of each below
LONGEST_STOP = 256
MOST_BIASED = 1024
NO_TEXT = ("images", "image", "audio", "video", "files")  # keys of messages


@dataclass(frozen=True, slots=True)
class Format:
    """What an answer is held to: a JSON schema, or any JSON object."""

    schema: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How an answer is wanted; what is None is as the model's run has it.

    Attributes:
        seed: of sampling; None draws one, so that asking again may say something else.
        limit: longest answer in tokens; "context": as long as there is room.
        logprobs: how many of the likeliest tokens are told beside each; None: none.
        format: what the answer is held to; None: nothing.
    """

    limit: int | str | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    logprobs: int | None = None
    format: Format | None = None


def chat_prompt(served: Served, messages: Sequence[Mapping[str, Any]], *, goes_on: bool = False) -> list[int]:
    """The ids that a conversation is put to a model as.

    Args:
        served: the model.
        messages: as OpenAI's interface has them.
        goes_on: the last one is the assistant's, and the answer goes on with it.

    Raises:
        DataError: a message cannot be used, or the template cannot render them.
    """
    assistant = served.assistant
    for at, message in enumerate(messages):
        if found := [name for name in NO_TEXT if message.get(name)]:
            raise DataError(f"messages[{at}] has {found[0]}; only text can be read here")
    begun = ""
    if goes_on:
        last = messages[-1] if messages else {}
        if last.get("role") != "assistant":
            raise DataError("continue_final_message goes on with a message of the assistant, and the last is none")
        if not isinstance(last.get("content"), str):
            raise DataError(f"messages[{len(messages) - 1}] is to be gone on with, so its content has to be a text")
        messages, begun = messages[:-1], str(last["content"])
    header = assistant.options.header or goes_on  # an answer is told without it, so what is begun is after it
    example = conversation_of(messages)
    return encode_prompt(example, assistant.template, assistant.tokenizer, header=header, begun=begun)


def text_prompt(served: Served, text: str) -> list[int]:
    """The ids of a text without any form, begun as texts of this model begin."""
    tokenizer = served.assistant.tokenizer
    return [*tokenizer.begin_ids, *tokenizer.encode(text)] or [tokenizer.eos_id]


def asked(
    served: Served, prompt: Sequence[int], wanted: Wanted, grammars: Grammars, *, bare: bool = False
) -> tuple[Request, AnswerStream]:
    """What the engine is asked, and what makes a text of its answer.

    Args:
        served: the model.
        prompt: ids.
        wanted: how the answer is wanted.
        grammars: for answers that are held to something.
        bare: the answer is what comes after a text: nothing is taken off its ends.

    Raises:
        ServeError: the prompt leaves no room (400, ``context_length_exceeded``).
        SettingsError: a number is out of its range.
        DataError: the schema cannot be used.
    """
    assistant = served.assistant
    context = assistant.decoder.spec.context
    if len(prompt) >= context:
        raise ServeError(
            400,
            f"the prompt has {len(prompt):,} tokens and the model's context is {context:,}; shorten the conversation",
            param="messages",
            code="context_length_exceeded",
        )
    options = _options(assistant.options, wanted, context - len(prompt))
    sampling = replace(
        Sampling.of(options),
        frequency_penalty=wanted.frequency_penalty,
        presence_penalty=wanted.presence_penalty,
        logit_bias=wanted.logit_bias,
    )
    tokenizer = assistant.tokenizer
    request = Request(
        prompt,
        options.max_new_tokens,
        tokenizer.stop_ids | {stop_id(assistant.template, tokenizer)},
        sampling,
        keep=True,
        constraint=None if wanted.format is None else grammars.held(served, wanted.format.schema),
        logprobs=wanted.logprobs,
    )
    header = "" if bare else assistant.template.preface(header=options.header)
    return request, AnswerStream(tokenizer, options.stop, header, bare=bare)


def _options(usual: GenerateOptions, wanted: Wanted, room: int) -> GenerateOptions:
    given = {
        name: value
        for name in ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop")
        if (value := getattr(wanted, name)) is not None
    }
    limit = room if wanted.limit == "context" else wanted.limit if wanted.limit is not None else usual.max_new_tokens
    if not isinstance(limit, int) or limit < 1:
        raise SettingsError(f"the longest answer is {limit} tokens; wanted 1 or more")
    warm = given.get("temperature", usual.temperature) > 0
    seed = random.randrange(MAX_SEED + 1) if wanted.seed is None and warm else wanted.seed
    if seed is not None:
        given["seed"] = seed % (MAX_SEED + 1)  # clients send whole numbers of any size
    return usual.changed(max_new_tokens=min(limit, room), **given)


def stops(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Texts that end an answer, as they are sent: one, or a list.

    Raises:
        ServeError: there are too many, or one is too long or empty.

    >>> stops("###"), stops(None)
    (('###',), None)
    """
    if value is None:
        return None
    found = (value,) if isinstance(value, str) else tuple(value)
    if len(found) > MOST_STOPS or any(not 0 < len(text) <= LONGEST_STOP for text in found):
        raise ServeError(400, f"stop: wanted up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters", param="stop")
    return found


def biases(value: Mapping[str, float] | None) -> tuple[tuple[int, float], ...]:
    """OpenAI's ``logit_bias``: ids as texts, and what their scores are raised by.

    Raises:
        ServeError: an id is no whole number, one stands there twice (``7`` and ``07``), or there are too many.

    >>> biases({"7": -100})
    ((7, -100.0),)
    """
    if not value:
        return ()
    plain = all(name.isascii() and name.isdecimal() and len(name) < 10 for name in value)
    if len(value) > MOST_BIASED or not plain or len(set(map(int, value))) < len(value):
        raise ServeError(400, f"logit_bias: wanted up to {MOST_BIASED:,} token ids with numbers", param="logit_bias")
    return tuple((int(name), float(bias)) for name, bias in value.items())


def format_of(value: Any, where: str) -> Format | None:
    """What an answer is held to, as OpenAI's interface says it (``response_format``).

    Raises:
        ServeError: it is something else than text, json_object or json_schema.

    >>> format_of({"type": "json_schema", "json_schema": {"schema": {"type": "integer"}}}, "response_format")
    Format(schema={'type': 'integer'})
    """
    if value is None:
        return None
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return Format()
    if kind == "json_schema":
        inside = value.get("json_schema", value)  # the responses interface has it without the inner object
        schema = inside.get("schema") if isinstance(inside, Mapping) else None
        if not isinstance(schema, Mapping):
            raise ServeError(400, f"{where}: its schema is {json_kind(schema)}; wanted an object", param=where)
        return Format(schema)
    shown = repr(kind)[:60] if isinstance(value, Mapping) else json_kind(value)
    raise ServeError(400, f"{where} is {shown}; wanted text, json_object or json_schema", param=where)


def refuse(given: Mapping[str, Any], harmless: Mapping[str, tuple[Any, ...]]) -> None:
    """Refuse what would change an answer and cannot be done here.

    Args:
        given: a request's fields.
        harmless: fields that are refused, each with the values that change nothing; null and absent are always so.

    Raises:
        ServeError: one of them is there with another value.
    """
    for name, values in harmless.items():
        value = given.get(name)
        if value is not None and not any(value == one and type(value) is type(one) for one in values):
            shown = json_kind(value) if isinstance(value, list | dict) else repr(value)[:60]
            wanted = f"; it may only be {', '.join(map(repr, values))}" if values else "; leave it out"
            raise ServeError(400, f"{name} is {shown}, which cannot be done here{wanted}", param=name)
