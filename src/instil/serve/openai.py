"""OpenAI's interface: models, chat completions and completions. Stateless; nothing is kept.

Fields that change nothing of an answer are ignored, as OpenAI's clients expect; those that would, and cannot be done
here, are refused.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from instil.generate.answer import AnswerStream
from instil.generate.request import Request as Put
from instil.generate.request import TokenLogprobs, check_prompt
from instil.serve.asked import (
    MOST_LOGPROBS,
    Number,
    Wanted,
    asked,
    biases,
    chat_prompt,
    format_of,
    refuse,
    stops,
    text_prompt,
)
from instil.serve.errors import OpenAIError, ServeError, described
from instil.serve.flow import Whole, begun, event_line, lines, whole
from instil.serve.grammar import Grammars
from instil.serve.logprobs import lists_told, tokens_told
from instil.serve.models import Models, Served
from instil.serve.worker import Piece, Worker

MOST_PROMPTS = 128

T = TypeVar("T")

# What would change an answer and cannot be done here, with the values that change nothing.
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "n": (1,), "best_of": (1,), "suffix": ("",), "tools": ([],), "tool_choice": ("none", "auto"),
    "functions": ([],), "function_call": ("none", "auto"), "modalities": (["text"],), "audio": (), "prediction": (),
    "web_search_options": (), "reasoning_effort": ("none",), "mirostat": (0,), "grammar": (),
    "guided_json": (), "guided_regex": (), "guided_choice": (), "guided_grammar": (), "ignore_eos": (False,),
    "min_tokens": (0,), "length_penalty": (1, 1.0), "use_beam_search": (False,), "repeat_penalty": (1, 1.0),
    "typical_p": (1, 1.0), "tfs_z": (1, 1.0), "top_a": (0, 0.0), "dynatemp_range": (0, 0.0),
    "xtc_probability": (0, 0.0), "dry_multiplier": (0, 0.0), "samplers": (), "json_schema": (), "lora": ([],),
    "structured_outputs": (),
    "guided_decoding": (), "stop_token_ids": ([],), "bad_words": ([],), "allowed_token_ids": (), "chat_template": (),
    "chat_template_kwargs": ({},), "documents": ([],), "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,), "truncate_prompt_tokens": (), "prompt_logprobs": (0, False),
    "verbosity": ("medium",),
}  # fmt: skip


class Sampled(BaseModel):
    """What both kinds of completions can be asked for."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr
    stream: bool | None = Field(None, strict=True)
    stream_options: StreamOptions | None = None
    max_tokens: StrictInt | None = Field(None, ge=1)
    temperature: Number | None = Field(None, ge=0, le=100)
    top_p: Number | None = Field(None, gt=0, le=1)
    top_k: StrictInt | None = Field(None, ge=0, description="not OpenAI's; llama.cpp and vLLM take it, too")
    min_p: Number | None = Field(None, ge=0, le=1, description="not OpenAI's")
    repetition_penalty: Number | None = Field(None, ge=0.01, le=100, description="not OpenAI's; as transformers has it")
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, Number] | None = None
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**64)
    stop: StrictStr | list[StrictStr] | None = None
    response_format: dict[str, Any] | None = None

    def wanted(self, limit: int | None, logprobs: int | None) -> Wanted:
        """The same in the words of this package."""
        refuse(self.model_extra or {}, NOT_DONE)
        return Wanted(
            limit=limit,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            frequency_penalty=self.frequency_penalty or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            logit_bias=biases(self.logit_bias),
            seed=self.seed,
            stop=stops(self.stop),
            logprobs=logprobs,
            format=format_of(self.response_format, "response_format"),
        )

    @property
    def tells_usage(self) -> bool:
        """Whether a flow ends with how many tokens it took."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class StreamOptions(BaseModel):
    """How a flow is told."""

    include_usage: bool | None = Field(None, strict=True)


class Chat(Sampled):
    """A conversation to be gone on with."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=4096)
    max_completion_tokens: StrictInt | None = Field(None, ge=1)
    logprobs: bool | None = Field(None, strict=True)
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MOST_LOGPROBS)
    continue_final_message: bool | None = Field(
        None, strict=True, description="vLLM's: the last message is the answer's beginning"
    )
    add_generation_prompt: bool | None = Field(None, strict=True)


class Completion(Sampled):
    """A text to be gone on with, or several."""

    prompt: StrictStr | list[StrictInt] | list[StrictStr] | list[list[StrictInt]] = Field(max_length=1 << 20)
    logprobs: StrictInt | None = Field(None, ge=0, le=MOST_LOGPROBS)
    max_tokens: StrictInt | None = Field(None, ge=0, description="0 goes with echo: nothing new is wanted")
    echo: bool | None = Field(None, strict=True, description="the prompt is told before the answer, and its logprobs")


Sampled.model_rebuild()
Chat.model_rebuild()
Completion.model_rebuild()


def openai_routes(models: Models, worker: Worker, grammars: Grammars) -> APIRouter:
    """Endpoints below ``/v1``."""
    for served in models.values():
        fingerprint(served)  # reads the whole vocabulary the first time, and nobody else is answered meanwhile
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=described(OpenAIError))

    @routes.get("/models", summary="What is served")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(served) for served in models.values()]}

    @routes.get("/models/{name:path}", summary="One of them")
    async def one_model(name: str) -> dict[str, Any]:
        return _model(models[name])

    @routes.post(
        "/chat/completions",
        summary="The next message of a conversation",
        response_model=None,
        responses=described(OpenAIError, "text/event-stream"),
    )
    async def chat_completions(chat: Chat, request: Request) -> Response:
        served = models[chat.model]
        if chat.top_logprobs is not None and not chat.logprobs:
            raise ServeError(400, "top_logprobs goes with logprobs: true", param="top_logprobs")
        if chat.continue_final_message and chat.add_generation_prompt:
            raise ServeError(400, "continue_final_message and add_generation_prompt exclude one another")
        if chat.add_generation_prompt is False and not chat.continue_final_message:
            raise ServeError(400, "add_generation_prompt: false goes with continue_final_message: true")
        logprobs = (chat.top_logprobs or 0) if chat.logprobs else None
        wanted = chat.wanted(chat.max_completion_tokens or chat.max_tokens, logprobs)
        if chat.continue_final_message and wanted.format is not None:
            raise ServeError(400, "response_format holds a whole answer; it does not go with continue_final_message")
        worker.check_room(served)
        prompt = await asyncio.to_thread(chat_prompt, served, chat.messages, goes_on=bool(chat.continue_final_message))
        put, text = await asyncio.to_thread(
            asked, served, prompt, wanted, grammars, bare=bool(chat.continue_final_message)
        )
        pieces = worker.answer(served, put, text)
        head = _head("chatcmpl", "chat.completion", served)
        if not chat.stream:
            found = await whole(pieces)
            return JSONResponse(
                {
                    **head,
                    "choices": [
                        {
                            "index": 0,
                            "message": {"role": "assistant", "content": found.text, "refusal": None},
                            "logprobs": _chat_logprobs(served, found.logprobs) if chat.logprobs else None,
                            "finish_reason": finish_reason(found.finish),
                        }
                    ],
                    "usage": usage(len(prompt), found.tokens),
                }
            )
        flow = await begun(pieces)
        return lines(request, _chat_chunks(flow, chat, served, head, len(prompt)), event_line)

    @routes.post(
        "/completions",
        summary="What comes after a text",
        response_model=None,
        responses=described(OpenAIError, "text/event-stream"),
    )
    async def completions(asks: Completion, request: Request) -> Response:
        served = models[asks.model]
        if asks.max_tokens == 0 and not asks.echo:
            raise ServeError(400, "max_tokens is 0; wanted 1 or more, or echo: true", param="max_tokens")
        if asks.echo and asks.stream:
            raise ServeError(400, "echo tells the prompt at once; it does not go with stream: true", param="echo")
        wanted = asks.wanted(asks.max_tokens or None, asks.logprobs)
        prompts = await asyncio.to_thread(_prompts, served, asks.prompt)
        if asks.stream and len(prompts) > 1:
            raise ServeError(400, "a stream tells the answer to one prompt; leave stream out, or ask singly")
        worker.check_room(served, len(prompts))
        puts = [
            None if asks.max_tokens == 0 else await asyncio.to_thread(asked, served, ids, wanted, grammars, bare=True)
            for _, ids in prompts
        ]
        head, known = _head("cmpl", "text_completion", served), sum(len(ids) for _, ids in prompts)
        if asks.stream and puts[0] is not None:
            flow = await begun(worker.answer(served, *puts[0]))
            return lines(request, _text_chunks(flow, asks, served, head, known), event_line)
        told_of = asks.logprobs if asks.echo else None
        found = await _all(
            complete(worker, served, ids, put, told_of) for (_, ids), put in zip(prompts, puts, strict=True)
        )
        choices = [
            _text_choice(served, asks, prompt, *one, index)
            for index, (prompt, one) in enumerate(zip(prompts, found, strict=True))
        ]
        made = sum(answer.tokens for _, answer in found)
        return JSONResponse({**head, "choices": choices, "usage": usage(known, made)})

    return routes


async def complete(
    worker: Worker, served: Served, ids: Sequence[int], put: tuple[Put, AnswerStream] | None, told_of: int | None
) -> tuple[list[TokenLogprobs] | None, Whole]:
    """What the model thinks of a prompt, if it is asked, and then its answer, if one is wanted.

    An answer that ends before it has begun leaves what the model thought of that end behind the prompt's tokens: who
    asks for one token wants to see one.
    """
    told = None
    if told_of is not None:
        told = await worker.read(served, ids, told_of, sorted(put[0].stop_ids) if put else ())
    found = Whole(finish="length") if put is None else await whole(worker.answer(served, *put))
    if told is not None and put is not None and (found.tokens or found.finish != "stop"):
        told.pop()
    return told, found


async def _all(several: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in several]
    except ExceptionGroup as errors:  # the first says enough
        raise errors.exceptions[0] from errors
    return [task.result() for task in tasks]


async def _chat_chunks(
    flow: AsyncIterator[Piece], chat: Chat, served: Served, head: dict[str, Any], known: int
) -> AsyncIterator[dict[str, Any] | str]:
    """What a flow of chat tells."""
    head = {**head, "object": "chat.completion.chunk"}
    more: dict[str, Any] = {"usage": None} if chat.tells_usage else {}
    tokens = 0

    def chunk(delta: dict[str, Any], logprobs: Any = None, finish: str | None = None) -> dict[str, Any]:
        return {
            **head,
            "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}],
            **more,
        }

    yield chunk({"role": "assistant", "content": ""})
    async for piece in flow:
        tokens += piece.tokens
        told = _chat_logprobs(served, piece.logprobs) if chat.logprobs and piece.logprobs else None
        if piece.text or told:
            yield chunk({"content": piece.text}, told)
        if piece.finish:
            yield chunk({}, finish=finish_reason(piece.finish))
    if chat.tells_usage:
        yield {**head, "choices": [], "usage": usage(known, tokens)}
    yield "[DONE]"


async def _text_chunks(
    flow: AsyncIterator[Piece], asks: Completion, served: Served, head: dict[str, Any], known: int
) -> AsyncIterator[dict[str, Any] | str]:
    """What a flow of a completion tells."""
    tokens, offset = 0, 0
    more: dict[str, Any] = {"usage": None} if asks.tells_usage else {}
    async for piece in flow:
        tokens += piece.tokens
        told = None if asks.logprobs is None else lists_told(served.assistant.tokenizer, piece.logprobs, offset)
        offset += sum(map(len, told["tokens"])) if told else 0
        finish = finish_reason(piece.finish) if piece.finish else None
        if piece.text or piece.logprobs or finish:
            choice = {"index": 0, "text": piece.text, "logprobs": told, "finish_reason": finish}
            yield {**head, "choices": [choice], **more}
    if asks.tells_usage:
        yield {**head, "choices": [], "usage": usage(known, tokens)}
    yield "[DONE]"


def _text_choice(
    served: Served,
    asks: Completion,
    prompt: tuple[str | None, list[int]],
    read: Sequence[TokenLogprobs] | None,
    found: Whole,
    index: int,
) -> dict[str, Any]:
    tokenizer, (text, ids) = served.assistant.tokenizer, prompt
    if not asks.echo:
        text = ""
    elif text is None:
        text = tokenizer.decode(ids)
    told = None
    if asks.logprobs is not None:
        told = lists_told(tokenizer, [*(read or ()), *found.logprobs], 0, first=None if read is None else ids[0])
    return {
        "index": index,
        "text": text + found.text,
        "logprobs": told,
        "finish_reason": finish_reason(found.finish),
    }


def _prompts(served: Served, given: str | Sequence[Any]) -> list[tuple[str | None, list[int]]]:
    """Prompts of a completion, text (if it was given) and ids: a text, several, ids, or several lists of them."""
    several: Sequence[Any] = [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given
    if not 0 < len(several) <= MOST_PROMPTS:
        raise ServeError(400, f"prompt holds {len(several)} prompts; wanted 1 to {MOST_PROMPTS}", param="prompt")
    found: list[tuple[str | None, list[int]]] = [
        (one, text_prompt(served, one)) if isinstance(one, str) else (None, list(one)) for one in several
    ]
    for _, ids in found:
        check_prompt(ids, served.assistant.decoder.spec.vocab_size)
    return found


def _model(served: Served) -> dict[str, Any]:
    return {"id": served.name, "object": "model", "created": served.created, "owned_by": "instil"}


def _head(prefix: str, kind: str, served: Served) -> dict[str, Any]:
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": served.name,
        "system_fingerprint": fingerprint(served),
    }


def fingerprint(served: Served) -> str:
    """The same for the same weights and template."""
    assistant = served.assistant
    told = f"{served.created} {assistant.template.hash} {assistant.tokenizer.hash}"
    return f"fp_{hashlib.sha256(told.encode()).hexdigest()[:10]}"


def finish_reason(finish: str) -> str:
    """OpenAI's word for why an answer ended."""
    return "length" if finish in ("length", "no_room") else "stop"


def usage(prompt: int, answer: int) -> dict[str, int]:
    """Tokens that were taken and made."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _chat_logprobs(served: Served, told: Sequence[TokenLogprobs]) -> dict[str, Any]:
    return {"content": tokens_told(served.assistant.tokenizer, told), "refusal": None}
