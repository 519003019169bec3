"""What a client is told when something is wrong, in the two shapes that clients read.

OpenAI's is ``{"error": {"message", "type", "param", "code"}}``; Ollama's, under ``/api/``, is ``{"error": "..."}``.
"""

from __future__ import annotations

import http
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from instil.errors import InstilError, UserError
from instil.serve.models import UnknownModel

OLLAMA_PATHS: Final = "/api/"
OWN_FAULT: Final = "the server failed at this request; what went wrong is in its log"
SHOWN = 3  # fields of a request that are named before "and N more"


class ErrorTold(BaseModel):
    """What is inside of OpenAI's errors."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """OpenAI's form of an error."""

    error: ErrorTold


class OllamaError(BaseModel):
    """Ollama's form of an error."""

    error: str


def described(form: type[BaseModel], stream: str = "") -> dict[int | str, dict[str, Any]]:
    """What the description of an interface says of its replies: errors, and the kind of its streams."""
    said = {
        400: "What was asked cannot be read or done",
        404: "No such model",
        503: "Too many ask, or the server is about to end",
    }
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": form, "description": text} for status, text in said.items()
    }
    return {**found, 200: {"content": {stream: {}}}} if stream else found


class ServeError(Exception):
    """What is wrong with a request, or with the server, in the words that the client gets.

    Args:
        status: the code of HTTP, 400 or more.
        message: what was found, what was wanted, what to do next.
        kind: OpenAI's ``type``; a status of 500 or more turns the usual one into ``server_error``.
        param: the field of the request that is wrong.
        code: OpenAI's ``code``, such as ``model_not_found``.
        retry_after: after how many seconds it is worth asking again.
        headers: more headers of the reply.

    >>> ServeError(404, "no model 'x'", code="model_not_found").body("/v1/models/x")["error"]["code"]
    'model_not_found'
    >>> ServeError(503, "too many ask").body("/api/chat")
    {'error': 'too many ask'}
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind = "server_error" if status >= 500 and kind == "invalid_request_error" else kind
        self.retry_after = retry_after
        self.more_headers = dict(headers or {})

    def body_openai(self) -> dict[str, dict[str, str | None]]:
        """The error as OpenAI's clients read it."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def body_ollama(self) -> dict[str, str]:
        """The error as Ollama's clients read it."""
        return {"error": self.message}

    def body(self, path: str) -> dict[str, Any]:
        """The error in the shape of those who ask at this path."""
        return self.body_ollama() if path.startswith(OLLAMA_PATHS) else self.body_openai()

    def headers(self) -> dict[str, str]:
        """Headers of the reply beyond those of its body."""
        retry = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return {**self.more_headers, **retry}

    def reply(self, path: str) -> JSONResponse:
        """The whole reply to who asked at this path; it is an ASGI application."""
        return JSONResponse(self.body(path), self.status, headers=self.headers())


def install(app: FastAPI) -> None:
    """Have whatever an endpoint raises told in the two shapes, and never as HTML."""
    for kind in (ServeError, InstilError, UnknownModel, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _told)


async def _told(request: Request, error: Exception) -> JSONResponse:
    return as_serve_error(error, request.method, request.url.path).reply(request.url.path)


def as_serve_error(error: Exception, method: str, path: str) -> ServeError:
    """What the client is told of an exception; of one that nobody expected, nothing but that it happened."""
    match error:
        case ServeError():
            return error
        case UnknownModel():
            return ServeError(404, str(error), param="model", code="model_not_found")
        case UserError():
            return ServeError(400, str(error))
        case InstilError():
            return ServeError(500, str(error))
        case RequestValidationError():
            return _of_fields(error.errors())
        case HTTPException():
            return _of_http(error, method, path)
        case _:
            return ServeError(500, OWN_FAULT)


def _of_http(error: HTTPException, method: str, path: str) -> ServeError:
    """Starlette's own refusals, which say little: "Not Found"."""
    headers = dict(error.headers or {})
    message = str(error.detail)
    if message == http.HTTPStatus(error.status_code).phrase:
        if error.status_code == 404:
            message = f"there is nothing at {path[:200]}"
        elif error.status_code == 405:
            allowed = next((value for name, value in headers.items() if name.lower() == "allow"), "")
            message = f"{path[:200]} does not take {method[:20]}" + (f"; it takes {allowed}" if allowed else "")
    return ServeError(error.status_code, message, headers=headers)


def _of_fields(problems: Sequence[Mapping[str, Any]]) -> ServeError:
    """Fields that cannot be read, by name; what stood in them is not repeated."""
    said = [_of_field(problem) for problem in problems]
    more = f"; and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
    shown = "; ".join(f"{name}: {text}" if name else text for name, text in said[:SHOWN])
    return ServeError(400, shown + more, param=next((name for name, _ in said if name), None))


def _of_field(problem: Mapping[str, Any]) -> tuple[str, str]:
    """Its name in the request, such as ``messages.0.role``, and what is wrong."""
    where = [str(step) for step in problem["loc"][1:]]
    if problem["type"] == "json_invalid":
        return "", f"the body is not JSON: {problem['ctx']['error']}"
    if problem["loc"] == ("body",):
        missing = problem["type"] == "missing"
        return "", "a body is wanted, a JSON object" if missing else "the body is not a JSON object"
    text = re.sub(r"^Value error, ", "", str(problem["msg"]))
    return ".".join(where)[:200], text[:1].lower() + text[1:]
