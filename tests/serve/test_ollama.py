"""Ollama's interface, asked by Ollama's own client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import ollama
import pytest

from tests.serve.conftest import Running


@pytest.fixture
def client(server: Running) -> Iterator[ollama.Client]:
    client = ollama.Client(server.url)
    yield client
    client._client.close()


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def test_what_is_served(server: Running, client: ollama.Client) -> None:
    found = client.list().models
    assert [one.model for one in found] == ["tiny", "tiny:base"]
    assert found[0].details is not None
    assert found[0].details.quantization_level == "F32"
    assert found[0].size == sum(one.nbytes for one in server.twin.decoder.parameters())
    assert [one.model for one in client.ps().models] == ["tiny", "tiny:base"]
    assert httpx.get(f"{server.url}/api/version").json()["version"]
    shown = client.show("tiny:latest")
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 512
    assert "messages" in (shown.template or "")


def test_chat(server: Running, client: ollama.Client) -> None:
    found = client.chat("tiny", user("Go."))
    assert found.message.content == server.twin.chat(user("Go."))
    assert (found.done, found.done_reason, found.eval_count) == (True, "length", 12)
    assert found.total_duration == (found.prompt_eval_duration or 0) + (found.eval_duration or 0)
    pieces = list(client.chat("tiny:latest", user("Go."), stream=True))
    assert "".join(piece.message.content or "" for piece in pieces) == found.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]
    assert pieces[-1].eval_count == 12
    assert client.chat("tiny", []).done_reason == "load"


def test_a_message_of_the_assistant_is_gone_on_with(server: Running, client: ollama.Client) -> None:
    messages = [*user("Go."), {"role": "assistant", "content": "Hello"}]
    more = {"continue_final_message": True, "max_tokens": 4}
    wanted = httpx.post(
        f"{server.url}/v1/chat/completions", json={"model": "tiny", "messages": messages, **more}
    ).json()
    found = client.chat("tiny", messages, options={"num_predict": 4, "repeat_last_n": 64})
    assert found.message.content == wanted["choices"][0]["message"]["content"]
    assert found.prompt_eval_count == wanted["usage"]["prompt_tokens"]


def test_lines_are_the_default(server: Running) -> None:
    reply = httpx.post(f"{server.url}/api/chat", json={"model": "tiny", "messages": user("Go.")})
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert lines[-1]["done"] is True


def test_generate(server: Running, client: ollama.Client) -> None:
    found = client.generate("tiny", "Go.", system="Be brief.")
    wanted = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}]
    assert found.response == server.twin.chat(wanted)
    raw = client.generate("tiny", "One two", raw=True, options={"num_predict": 4})
    assert raw.prompt_eval_count == len(server.twin.tokenizer.encode("One two"))
    assert "".join(piece.response for piece in client.generate("tiny", "Go.", stream=True)) == (
        client.generate("tiny", "Go.").response
    )


def test_options_reach_the_engine(server: Running, client: ollama.Client) -> None:
    plain = client.generate("tiny", "Go.", logprobs=True, top_logprobs=2)
    assert plain.logprobs is not None
    assert len(plain.logprobs) == 12
    first, third = plain.logprobs[0].token, plain.logprobs[3].token
    stopped = client.generate("tiny", "Go.", options={"stop": [third], "num_ctx": 4096, "num_thread": 2})
    assert third not in stopped.response
    warm = [client.generate("tiny", "Go.", options={"temperature": 2.0, "seed": seed}).response for seed in (1, 1, 2)]
    assert warm[0] == warm[1] != warm[2]
    assert first
    endless = client.generate("tiny", "Go.", options={"num_predict": -1})
    assert (endless.eval_count or 0) + (endless.prompt_eval_count or 0) <= 512


def test_answers_are_held_to_a_schema(client: ollama.Client) -> None:
    schema = {"type": "object", "properties": {"yes": {"type": "boolean"}}, "required": ["yes"]}
    schema["additionalProperties"] = False
    said = client.chat("tiny", user("Go."), format=schema, options={"num_predict": 40}).message.content
    assert json.loads(said or "").keys() == {"yes"}
    assert client.generate("tiny", "Go.", format="json").response.startswith("{")


@pytest.mark.parametrize(
    ("given", "status", "told"),
    [
        ({"model": "no"}, 404, "served: tiny"),
        ({"messages": [{"role": "user", "content": "x", "images": ["aGk="]}]}, 400, "images"),
        ({"messages": user("word " * 700)}, 400, "context"),
        ({"options": {"num_predict": 0}}, 400, "num_predict"),
        ({"options": {"num_predict": -3}}, 400, "num_predict"),
        ({"options": {"temperature": -1}}, 400, "temperature"),
        ({"options": {"mirostat": 2}}, 400, "mirostat"),
        ({"tools": [{"type": "function"}]}, 400, "tools"),
        ({"format": 3}, 400, "format"),
        ({"think": True}, 400, "think"),
        ({"options": {"repeat_penalty": 1.3, "repeat_last_n": 64}}, 400, "repeat_last_n"),
        ({"messages": [*user("x"), {"role": "assistant", "content": "y"}], "format": "json"}, 400, "format"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_words(
    server: Running, given: dict[str, Any], status: int, told: str
) -> None:
    body = {"model": "tiny", "messages": user("Go."), **given}
    reply = httpx.post(f"{server.url}/api/chat", json=body)
    assert reply.status_code == status
    assert told in reply.json()["error"]
