"""Errors as OpenAI's and Ollama's clients read them."""

from __future__ import annotations

from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field, field_validator

from instil.errors import DataError
from instil.serve import extra
from instil.serve.errors import OWN_FAULT, ServeError, install
from instil.serve.models import Models, UnknownModel


class Message(BaseModel):
    role: str


class Chat(BaseModel):
    messages: list[Message]
    temperature: float = Field(1.0, ge=0)

    @field_validator("messages")
    @classmethod
    def some(cls, messages: list[Message]) -> list[Message]:
        if not messages:
            raise ValueError("One message at least is wanted")
        return messages


RAISED: dict[str, Exception] = {
    "busy": ServeError(503, "the queue is full", retry_after=3),
    "row": DataError("no answer in this conversation"),
    "model": UnknownModel("no model 'x'; served: a"),
    "bug": KeyError("secret"),
}


@pytest.fixture(scope="module")
def client() -> TestClient:
    app = FastAPI()
    install(app)

    @app.post("/v1/chat")
    async def chat(body: Chat) -> dict[str, int]:
        return {"messages": len(body.messages)}

    @app.get("/v1/raise/{what}")
    @app.get("/api/raise/{what}")
    async def fail(what: str) -> None:
        raise RAISED[what]

    return TestClient(app, raise_server_exceptions=False)


def test_a_good_request_is_answered(client: TestClient) -> None:
    assert client.post("/v1/chat", json={"messages": [{"role": "user"}]}).json() == {"messages": 1}


@pytest.mark.parametrize(
    ("sent", "param", "message"),
    [
        ({"messages": [{"role": 3}]}, "messages.0.role", "messages.0.role: input should be a valid string"),
        (
            {"messages": [{"role": "user"}], "temperature": -1},
            "temperature",
            "temperature: input should be greater than or equal to 0",
        ),
        ({}, "messages", "messages: field required"),
        ({"messages": []}, "messages", "messages: one message at least is wanted"),
        ([], None, "the body is not a JSON object"),
    ],
)
def test_a_field_that_cannot_be_read_is_named(client: TestClient, sent: Any, param: str | None, message: str) -> None:
    reply = client.post("/v1/chat", json=sent)
    assert reply.status_code == 400
    assert reply.json()["error"] == {
        "message": message, "type": "invalid_request_error", "param": param, "code": None
    }  # fmt: skip


def test_of_many_fields_the_first_are_named(client: TestClient) -> None:
    message = client.post("/v1/chat", json={"messages": [{}] * 9}).json()["error"]["message"]
    assert message.count("field required") == 3
    assert message.endswith("; and 6 more")


@pytest.mark.parametrize("sent", [b"{", b"", b"[" * 100_000, b"\xff"])
def test_a_body_that_is_no_json(client: TestClient, sent: bytes) -> None:
    reply = client.post("/v1/chat", content=sent, headers={"content-type": "application/json"})
    assert reply.status_code == 400
    assert "body" in reply.json()["error"]["message"]


@pytest.mark.parametrize(
    ("what", "status", "message", "kind", "code"),
    [
        ("busy", 503, "the queue is full", "server_error", None),
        ("row", 400, "no answer in this conversation", "invalid_request_error", None),
        ("model", 404, "no model 'x'; served: a", "invalid_request_error", "model_not_found"),
        ("bug", 500, OWN_FAULT, "server_error", None),
    ],
)
def test_what_is_raised_is_told_in_both_shapes(
    client: TestClient, what: str, status: int, message: str, kind: str, code: str | None
) -> None:
    openai, ollama = client.get(f"/v1/raise/{what}"), client.get(f"/api/raise/{what}")
    assert openai.status_code == ollama.status_code == status
    assert ollama.json() == {"error": message}
    error = openai.json()["error"]
    assert (error["message"], error["type"], error["code"]) == (message, kind, code)
    assert set(error) == {"message", "type", "param", "code"}
    assert openai.headers.get("retry-after") == ("3" if what == "busy" else None)


def test_an_unknown_path_and_a_wrong_method_are_json(client: TestClient) -> None:
    assert client.get("/nothing").json()["error"]["message"] == "there is nothing at /nothing"
    assert client.get("/api/nothing").json() == {"error": "there is nothing at /api/nothing"}
    wrong = client.get("/v1/chat")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    assert wrong.json()["error"]["message"] == "/v1/chat does not take GET; it takes POST"


def test_a_model_that_is_not_served_is_404() -> None:
    with pytest.raises(UnknownModel, match="no model 'x'"):
        Models([])["x"]


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    extra.need_extra()
    monkeypatch.setattr(extra, "PACKAGES", ("no_such_package_at_all",))
    with pytest.raises(extra.UserError, match=r"^serving needs no_such_package_at_all: pip install 'instil\[serve\]'$"):
        extra.need_extra()
