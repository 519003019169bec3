"""What people make of answers on the page, written down as rows for training (`instil.assistant.feedback`)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from instil.assistant.conversation import conversation_of
from instil.assistant.feedback import LABELLED, PAIRS, ROWS, add_row, kept_row, labelled_row, pair_row
from instil.data.shapes.messages import conversation, example_of
from instil.data.shapes.texts import Unusable, text_problem
from instil.errors import DataError, InstilError, UserError

LARGEST: Final = 1 << 20  # bytes of a request
MESSAGES: Final = 400  # of a conversation
Text = Annotated[str, Field(min_length=1, max_length=400_000)]
Given = list[dict[str, str]]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Message(_Strict):
    """One message of a conversation, a text."""

    role: Literal["system", "user", "assistant"]
    content: Text


Messages = Annotated[list[Message], Field(min_length=1, max_length=MESSAGES)]


class Thumb(_Strict):
    """An answer, the last of the messages, that is wanted ("up") or not ("down")."""

    kind: Literal["up", "down"]
    messages: Messages


class Better(_Strict):
    """Two answers to the prompt, of which the first is better."""

    kind: Literal["better"]
    prompt: Messages
    chosen: Text
    rejected: Text


_FEEDBACK: TypeAdapter[Thumb | Better] = TypeAdapter(Annotated[Thumb | Better, Field(discriminator="kind")])


def feedback_routes(folder: Path) -> APIRouter:
    """``POST /feedback``: an answer that is wanted or not, or the better one of two, becomes a line of a file.

    A thumb up goes to ``kept.jsonl``, a row to be trained on, and with its label to ``labelled.jsonl``; a thumb down to
    ``labelled.jsonl`` alone; the better of two to ``pairs.jsonl``. The reply says which files have a new line.
    """
    router = APIRouter()

    @router.post("/feedback")
    async def feedback(request: Request) -> dict[str, Any]:
        given = _given(await _body(request))
        rows = _rows(given)
        try:
            written = [str(await run_in_threadpool(add_row, folder / name, row)) for name, row in rows.items()]
        except InstilError as error:  # it is not the client's fault
            raise HTTPException(500, str(error)) from error
        return {"written": written, "files": list(rows)}

    return router


async def _body(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # others a foreign page could send without being asked whether it may
        raise HTTPException(415, f"the body is {kind[:100] or 'of no type'}; wanted application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise HTTPException(413, f"the body has more than {LARGEST:,} bytes")
    return bytes(body)


def _given(body: bytes) -> Thumb | Better:
    try:
        return _FEEDBACK.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))[:200]
        message = first["msg"][:1].lower() + first["msg"][1:]
        raise HTTPException(400, f"{where}: {message}" if where else message) from error


def _rows(given: Thumb | Better) -> dict[str, dict[str, Any]]:
    """Rows by the file that they go to, each of which the project's own readers take.

    Raises:
        HTTPException: they would not.
    """
    try:
        if isinstance(given, Better):
            prompt = _as_dicts(given.prompt)
            conversation_of(prompt)
            for name in ("chosen", "rejected"):
                if problem := text_problem(getattr(given, name)):
                    raise Unusable(f"{name} {problem}")
            return {PAIRS: pair_row(prompt, given.chosen, given.rejected)}
        messages = _as_dicts(given.messages)
        turns = conversation(messages, "messages").turns
        if turns[-1].role != "assistant":
            raise Unusable(f"the last of messages is the {turns[-1].role}'s; wanted an answer")
        example_of(turns, "messages", need_output=True)
        labelled = {LABELLED: labelled_row(messages, wanted=given.kind == "up")}
        return {ROWS: kept_row(messages), **labelled} if given.kind == "up" else labelled
    except (Unusable, DataError, UserError) as error:
        raise HTTPException(400, str(error)) from error


def _as_dicts(messages: list[Message]) -> Given:
    return [message.model_dump() for message in messages]
