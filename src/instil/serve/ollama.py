"""Ollama's interface: what is served, chat and generate, as lines of JSON.

Names match with and without ``:latest``, which Ollama's clients add.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr

from instil.errors import DataError
from instil.files import json_kind
from instil.serve.asked import MOST_LOGPROBS, Format, Number, Wanted, asked, chat_prompt, refuse, stops, text_prompt
from instil.serve.errors import OllamaError, ServeError, described
from instil.serve.flow import Whole, begun, json_line, lines, whole
from instil.serve.grammar import Grammars
from instil.serve.logprobs import tokens_told
from instil.serve.models import Models, Served, UnknownModel
from instil.serve.worker import Worker
from instil.version import __version__

LATEST = ":latest"
CAPABILITIES = ["completion"]
NOT_DONE: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "images": ([],), "think": (False,), "suffix": ("",), "context": ([],), "template": ("",),
}  # fmt: skip
OPTIONS_NOT_DONE: dict[str, tuple[Any, ...]] = {
    "mirostat": (0,), "tfs_z": (1, 1.0), "typical_p": (1, 1.0), "penalize_newline": (True,), "draft_num_predict": (),
}  # fmt: skip


class Options(BaseModel):
    """Ollama's options that change an answer; those of memory and threads change none and are left alone."""

    model_config = ConfigDict(extra="allow")

    num_predict: StrictInt | None = Field(None, ge=-2, description="-1, -2: as long as there is room")
    temperature: Number | None = Field(None, ge=0, le=100)
    top_k: StrictInt | None = Field(None, ge=0)
    top_p: Number | None = Field(None, gt=0, le=1)
    min_p: Number | None = Field(None, ge=0, le=1)
    repeat_penalty: Number | None = Field(None, ge=0.01, le=100)
    frequency_penalty: Number | None = Field(None, ge=-2, le=2)
    presence_penalty: Number | None = Field(None, ge=-2, le=2)
    seed: StrictInt | None = Field(None, ge=-(2**63), lt=2**64)
    stop: StrictStr | list[StrictStr] | None = None


class Common(BaseModel):
    """What both kinds of requests have."""

    model_config = ConfigDict(extra="allow")

    model: StrictStr
    stream: bool | None = Field(None, strict=True, description="true where it is left out")
    format: Any = None
    options: Options | None = None
    logprobs: bool | None = Field(None, strict=True)
    top_logprobs: StrictInt | None = Field(None, ge=0, le=MOST_LOGPROBS)

    def wanted(self) -> Wanted:
        """The same in the words of this package."""
        given = self.options or Options()
        refuse(self.model_extra or {}, NOT_DONE)
        refuse(given.model_extra or {}, OPTIONS_NOT_DONE)
        if given.repeat_penalty not in (None, 1):
            refuse(given.model_extra or {}, {"repeat_last_n": (-1,)})  # the penalty counts the whole text
        if given.num_predict == 0:
            raise ServeError(400, "num_predict is 0; wanted 1 or more, or -1 for as long as there is room")
        limit = "context" if given.num_predict in (-1, -2) else given.num_predict
        return Wanted(
            limit=limit,
            temperature=given.temperature,
            top_k=given.top_k,
            top_p=given.top_p,
            min_p=given.min_p,
            repetition_penalty=given.repeat_penalty,
            frequency_penalty=given.frequency_penalty or 0.0,
            presence_penalty=given.presence_penalty or 0.0,
            seed=given.seed,
            stop=stops(given.stop),
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
            format=_format(self.format),
        )


class Chat(Common):
    """A conversation to be gone on with; without messages the model is only named, as by ``ollama run``."""

    messages: list[dict[str, Any]] = Field(default_factory=list, max_length=4096)


class Generate(Common):
    """A question, put in the model's form, or just as it stands (``raw``)."""

    prompt: StrictStr = ""
    system: StrictStr = ""
    raw: bool = Field(False, strict=True)


class Named(BaseModel):
    """A model by its name, under either of the keys that clients use."""

    model: StrictStr | None = None
    name: StrictStr | None = None


def ollama_routes(models: Models, worker: Worker, grammars: Grammars) -> APIRouter:
    """Endpoints below ``/api``."""
    routes = APIRouter(prefix="/api", tags=["Ollama"], responses=described(OllamaError))

    @routes.get("/version", summary="The version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    @routes.get("/tags", summary="What is served")
    async def tags() -> dict[str, Any]:
        return {"models": [_listed(served) for served in models.values()]}

    @routes.get("/ps", summary="What is in memory, which is all that is served")
    async def running() -> dict[str, Any]:
        until = (datetime.now(UTC) + timedelta(days=365)).isoformat()
        more = [
            {
                **_listed(served),
                "expires_at": until,
                "size_vram": 0,
                "context_length": served.assistant.decoder.spec.context,
            }
            for served in models.values()
        ]
        return {"models": more}

    @routes.post("/show", summary="What a model is")
    async def show(named: Named) -> dict[str, Any]:
        return _shown(_find(models, named.model or named.name or ""))

    @routes.post(
        "/chat",
        summary="The next message of a conversation",
        response_model=None,
        responses=described(OllamaError, "application/x-ndjson"),
    )
    async def chat(given: Chat, request: Request) -> Response:
        served = _find(models, given.model)
        if not given.messages:
            return _loaded(given.model, {"message": {"role": "assistant", "content": ""}})
        goes_on = given.messages[-1].get("role") == "assistant"  # as Ollama does it
        if goes_on and given.format not in (None, ""):
            raise ServeError(400, "format holds a whole answer; it does not go with a last message of the assistant")
        made = await _made(served, given, lambda: chat_prompt(served, given.messages, goes_on=goes_on), bare=goes_on)
        return await _answered(
            worker, made, given, request, lambda text: {"message": {"role": "assistant", "content": text}}
        )

    @routes.post(
        "/generate",
        summary="The answer to a question, or what comes after a text",
        response_model=None,
        responses=described(OllamaError, "application/x-ndjson"),
    )
    async def generate(given: Generate, request: Request) -> Response:
        served = _find(models, given.model)
        if not given.prompt:
            return _loaded(given.model, {"response": ""})
        system = [{"role": "system", "content": given.system}] if given.system else []
        messages = [*system, {"role": "user", "content": given.prompt}]
        raw = given.raw
        made = await _made(
            served, given, lambda: text_prompt(served, given.prompt) if raw else chat_prompt(served, messages), bare=raw
        )
        return await _answered(worker, made, given, request, lambda text: {"response": text})

    async def _made(served: Served, given: Common, prompt: Any, *, bare: bool = False) -> _Made:
        begin = time.monotonic_ns()
        wanted = given.wanted()
        worker.check_room(served)
        ids = await asyncio.to_thread(prompt)
        put, text = await asyncio.to_thread(asked, served, ids, wanted, grammars, bare=bare)
        return _Made(served, put, text, len(ids), begin)

    return routes


class _Made:
    """A request as the engine takes it, and what is told of it at its end."""

    def __init__(self, served: Served, request: Any, text: Any, known: int, begin: int) -> None:
        self.served, self.request, self.text, self.known, self.begin = served, request, text, known, begin

    def end(self, found: Whole) -> dict[str, Any]:
        """Durations in nanoseconds, and counts."""
        now = time.monotonic_ns()
        first = found.first or now
        return {
            "done": True,
            "done_reason": "length" if found.finish == "length" else "stop",
            "total_duration": now - self.begin,
            "load_duration": 0,
            "prompt_eval_count": self.known,
            "prompt_eval_duration": first - self.begin,
            "eval_count": found.tokens,
            "eval_duration": now - first,
        }


async def _answered(worker: Worker, made: _Made, given: Common, request: Request, as_said: Any) -> Response:
    pieces = worker.answer(made.served, made.request, made.text)

    def logprobs(found: Any) -> dict[str, Any]:
        if not given.logprobs:
            return {}
        return {"logprobs": tokens_told(made.served.assistant.tokenizer, found)}

    if given.stream is False:
        found = await whole(pieces)
        told = {**_head(given.model), **as_said(found.text), **logprobs(found.logprobs), **made.end(found)}
        return JSONResponse(told)
    flow = await begun(pieces)

    async def told_lines() -> AsyncIterator[dict[str, Any] | str]:
        found = Whole()
        async for piece in flow:
            found.add(piece)
            if piece.text or (given.logprobs and piece.logprobs):
                yield {**_head(given.model), **as_said(piece.text), **logprobs(piece.logprobs), "done": False}
        yield {**_head(given.model), **as_said(""), **made.end(found)}

    return lines(request, told_lines(), json_line)


def _head(model: str) -> dict[str, Any]:
    return {"model": model, "created_at": datetime.now(UTC).isoformat()}


def _loaded(model: str, said: dict[str, Any]) -> JSONResponse:
    """What is told where nothing is asked: the model is there."""
    return JSONResponse({**_head(model), **said, "done": True, "done_reason": "load"})


def _find(models: Models, name: str) -> Served:
    try:
        return models[name]
    except UnknownModel:
        if name.endswith(LATEST):
            return models[name.removesuffix(LATEST)]
        raise


def _format(value: Any) -> Format | None:
    """Ollama's ``format``: "json", or a schema."""
    if value in (None, ""):
        return None
    if value == "json":
        return Format()
    if isinstance(value, dict):
        return Format(value)
    raise DataError(f'format is {json_kind(value)}; wanted "json" or a JSON schema')


def _listed(served: Served) -> dict[str, Any]:
    return {
        "name": served.name,
        "model": served.name,
        "modified_at": datetime.fromtimestamp(served.created, UTC).isoformat(),
        "size": sum(one.nbytes for one in served.assistant.decoder.parameters()),
        "digest": hashlib.sha256(f"{served.name} {served.created}".encode()).hexdigest(),
        "details": _details(served),
        "capabilities": CAPABILITIES,
    }


def _details(served: Served) -> dict[str, Any]:
    decoder = served.assistant.decoder
    count = sum(one.numel() for one in decoder.parameters())
    size = f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.2f}M"
    kinds = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
    dtype = str(decoder.embed.weight.dtype).removeprefix("torch.")
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": decoder.spec.family,
        "families": [decoder.spec.family],
        "parameter_size": size,
        "quantization_level": kinds.get(dtype, dtype),
    }


def _shown(served: Served) -> dict[str, Any]:
    assistant = served.assistant
    spec = assistant.decoder.spec
    options = assistant.options
    set_here = {"temperature": options.temperature, "num_predict": options.max_new_tokens}
    parameters = [f"{name} {value}" for name, value in set_here.items()]
    parameters += [f'stop "{text}"' for text in options.stop]
    family = spec.family
    return {
        "modelfile": f"# served by instil\nFROM {served.name}\n",
        "parameters": "\n".join(parameters),
        "template": assistant.template.chat_template(""),
        "details": _details(served),
        "model_info": {
            "general.architecture": family,
            "general.parameter_count": sum(one.numel() for one in assistant.decoder.parameters()),
            f"{family}.context_length": spec.context,
            f"{family}.embedding_length": spec.width,
            f"{family}.block_count": spec.layers,
        },
        "capabilities": CAPABILITIES,
        "modified_at": datetime.fromtimestamp(served.created, UTC).isoformat(),
    }
