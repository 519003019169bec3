"""OpenAI's responses, without state: nothing is kept, so nothing can be gone on with by its id."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from instil.serve.asked import Number, Wanted, asked, chat_prompt, format_of, refuse
from instil.serve.errors import OpenAIError, ServeError, described
from instil.serve.flow import Whole, begun, lines, named_event_line, whole
from instil.serve.grammar import Grammars
from instil.serve.models import Models
from instil.serve.worker import Piece, Worker

NOT_DONE: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (), "conversation": (), "prompt": (), "tools": ([],), "tool_choice": ("none", "auto"),
    "background": (False,), "reasoning": ({},), "max_tool_calls": (), "top_logprobs": (0,),
    "modalities": (["text"],), "truncation": ("disabled",), "max_tokens": (), "max_completion_tokens": (), "n": (1,),
    "stop": ([],), "seed": (), "response_format": (), "top_k": (), "min_p": (), "repetition_penalty": (1, 1.0),
    "frequency_penalty": (0, 0.0), "presence_penalty": (0, 0.0), "logit_bias": ({},), "logprobs": (False,),
    "messages": (),
}  # fmt: skip
LOGPROBS = "message.output_text.logprobs"
TEXTS = ("input_text", "output_text", "text")


class Asked(BaseModel):
    """A text or a conversation, and how it is to be answered."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr
    input: StrictStr | list[dict[str, Any]] = Field(min_length=1)
    instructions: StrictStr | None = None
    stream: bool | None = Field(None, strict=True)
    temperature: Number | None = Field(None, ge=0, le=100)
    top_p: Number | None = Field(None, gt=0, le=1)
    max_output_tokens: StrictInt | None = Field(None, ge=1)
    text: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    include: list[StrictStr] | None = None


def responses_routes(models: Models, worker: Worker, grammars: Grammars) -> APIRouter:
    """The endpoint ``/v1/responses``."""
    routes = APIRouter(prefix="/v1", tags=["OpenAI"], responses=described(OpenAIError))

    @routes.post(
        "/responses",
        summary="The answer to a text or a conversation",
        response_model=None,
        responses=described(OpenAIError, "text/event-stream"),
    )
    async def responses(given: Asked, request: Request) -> Response:
        served = models[given.model]
        refuse(given.model_extra or {}, NOT_DONE)
        if LOGPROBS in (given.include or ()):  # the others name what an answer here never has, such as reasoning
            raise ServeError(
                400, f"include: {LOGPROBS} cannot be told here; /v1/chat/completions does", param="include"
            )
        refuse(given.text or {}, {"verbosity": ("medium",)})
        held = format_of((given.text or {}).get("format"), "text.format")
        wanted = Wanted(limit=given.max_output_tokens, temperature=given.temperature, top_p=given.top_p, format=held)
        worker.check_room(served)
        prompt = await asyncio.to_thread(chat_prompt, served, _messages(given))
        put, text = await asyncio.to_thread(asked, served, prompt, wanted, grammars)
        told = _Told(given, served.name, put.max_new_tokens, put.sampling.temperature, len(prompt))
        pieces = worker.answer(served, put, text)
        if not given.stream:
            return JSONResponse(told.response(await whole(pieces), "completed"))
        return lines(request, told.events(await begun(pieces)), named_event_line)

    return routes


class _Told:
    """One response, as it is told while it is made and when it is done."""

    def __init__(self, given: Asked, model: str, limit: int, temperature: float, known: int) -> None:
        self._given, self._model, self._limit, self._temperature = given, model, limit, temperature
        self._known, self._created = known, int(time.time())
        self._id, self._item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"

    def response(self, found: Whole, status: str) -> dict[str, Any]:
        """All of it, as far as it is there."""
        cut = status == "completed" and found.finish == "length"
        done = status != "in_progress"
        usage = {
            "input_tokens": self._known,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": found.tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._known + found.tokens,
        }
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": "incomplete" if cut else status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "instructions": self._given.instructions,
            "max_output_tokens": self._limit,
            "model": self._model,
            "output": [self._message(found, "incomplete" if cut else "completed")] if done else [],
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": self._temperature,
            "text": self._given.text or {"format": {"type": "text"}},
            "tool_choice": "none",
            "tools": [],
            "top_p": self._given.top_p if self._given.top_p is not None else 1.0,
            "truncation": "disabled",
            "usage": usage if done else None,
            "metadata": self._given.metadata or {},
        }

    def _message(self, found: Whole, status: str) -> dict[str, Any]:
        content = [_part(found.text)] if status != "in_progress" else []
        return {"id": self._item, "type": "message", "status": status, "role": "assistant", "content": content}

    async def events(self, flow: AsyncIterator[Piece]) -> AsyncIterator[dict[str, Any] | str]:
        """What happens, one after another and numbered."""
        found, count = Whole(), 0

        def event(kind: str, **more: Any) -> dict[str, Any]:
            nonlocal count
            count += 1
            return {"type": f"response.{kind}", "sequence_number": count - 1, **more}

        at = {"item_id": self._item, "output_index": 0, "content_index": 0}
        yield event("created", response=self.response(found, "in_progress"))
        yield event("in_progress", response=self.response(found, "in_progress"))
        yield event("output_item.added", output_index=0, item=self._message(found, "in_progress"))
        yield event("content_part.added", **at, part=_part(""))
        async for piece in flow:
            found.add(piece)
            if piece.text:
                yield event("output_text.delta", **at, delta=piece.text, logprobs=[])
        yield event("output_text.done", **at, text=found.text, logprobs=[])
        yield event("content_part.done", **at, part=_part(found.text))
        response = self.response(found, "completed")
        yield event("output_item.done", output_index=0, item=response["output"][0])
        yield event("incomplete" if response["incomplete_details"] else "completed", response=response)


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _messages(given: Asked) -> list[dict[str, Any]]:
    """The input as messages."""
    first = [{"role": "system", "content": given.instructions}] if given.instructions else []
    if isinstance(given.input, str):
        return [*first, {"role": "user", "content": given.input}]
    return [*first, *(_message(item, f"input[{at}]") for at, item in enumerate(given.input))]


def _message(item: Mapping[str, Any], where: str) -> dict[str, Any]:
    if item.get("type", "message") != "message":
        raise ServeError(400, f"{where} is of the type {item['type']!r}; only messages can be read here", param="input")
    return {"role": item.get("role"), "content": _text(item.get("content"), where)}


def _text(content: Any, where: str) -> Any:
    """A message's content, with its parts under the names that conversations have."""
    if not isinstance(content, Sequence) or isinstance(content, str):
        return content
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in TEXTS:
            raise ServeError(400, f"{where} has a part of the type {kind!r}; only text can be read here", param="input")
    return [{"type": "text", "text": part.get("text")} for part in content]
