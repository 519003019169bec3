"""OpenAI's interface, asked by OpenAI's own client: answers are those of the model, whoever else is asking."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from instil.assistant.assistant import load
from instil.generate import reading
from instil.generate.request import Request
from instil.model.decoder import batch_of_ids
from instil.records import Example
from instil.serve import grammar
from instil.serve.app import make_app
from instil.serve.models import Models, Served
from instil.serve.worker import Worker
from tests.conftest import TINY_END
from tests.serve.conftest import Running

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 4}, "sure": {"type": "boolean"}},
    "required": ["name", "sure"],
    "additionalProperties": False,
}


@pytest.fixture
def client(server: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as client:
        yield client


def user(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def say(client: openai.OpenAI, text: str, **more: Any) -> Any:
    return client.chat.completions.create(model="tiny", messages=user(text), **more)


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [(one.id, one.object, one.owned_by) for one in client.models.list()] == [
        ("tiny", "model", "instil"),
        ("tiny:base", "model", "instil"),
    ]
    assert client.models.retrieve("tiny:base").created == 1_700_000_000


def test_an_answer_is_the_models_own(server: Running, client: openai.OpenAI) -> None:
    found = say(client, "Double the number 3.")
    (wanted,) = server.twin.respond_to([Example("Double the number 3.")])
    choice = found.choices[0]
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", wanted.text, "length")
    assert found.usage.completion_tokens == len(wanted.ids) == 12
    assert found.usage.prompt_tokens == wanted.prompt_tokens
    assert found.usage.total_tokens == wanted.prompt_tokens + 12
    assert found.object == "chat.completion"
    assert found.system_fingerprint == say(client, "Go.").system_fingerprint


def test_greedy_answers_stay_the_same_whatever_else_is_answered(server: Running, client: openai.OpenAI) -> None:
    questions = [f"Double the number {n}." + " Again." * (n % 5) for n in range(14)]
    wanted = server.twin.respond_all([{"instruction": question} for question in questions])

    def ask(at: int) -> str:
        time.sleep(0.01 * (at * 7 % 5))
        if at % 2:
            say(client, questions[at], temperature=1.5, max_tokens=5)  # a neighbour that is drawn
        if at % 3 == 0:  # and one that leaves
            flow = say(client, questions[at], stream=True, max_tokens=400)
            next(iter(flow))
            flow.close()
        return str(say(client, questions[at]).choices[0].message.content)

    with ThreadPoolExecutor(14) as pool:
        assert list(pool.map(ask, range(14))) == [one.text for one in wanted]


def unhurried(server: Running, patch: pytest.MonkeyPatch) -> None:
    """Let the tiny model take its time: a fast machine would be done before anybody reads, or leaves."""
    engine = server.worker.models["tiny"].assistant.engine
    step = engine.step

    def slowly() -> Any:
        time.sleep(0.003)
        return step()

    patch.setattr(engine, "step", slowly)


@pytest.mark.parametrize("usage", [True, False])
def test_a_flow_tells_the_same_in_pieces(
    server: Running, client: openai.OpenAI, usage: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    unhurried(server, monkeypatch)
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if usage else {}
    whole = say(client, "Name three colours.", logprobs=True, top_logprobs=2)
    chunks = list(say(client, "Name three colours.", logprobs=True, top_logprobs=2, stream=True, **more))
    assert chunks[0].choices[0].delta.role == "assistant"
    told = [chunk for chunk in chunks if chunk.choices]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * (len(told) - 1) + ["length"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(told) > 4
    logprobs = [one for chunk in told if chunk.choices[0].logprobs for one in chunk.choices[0].logprobs.content]
    assert [one.token for one in logprobs] == [one.token for one in whole.choices[0].logprobs.content]
    assert all(len(one.top_logprobs) == 2 and one.top_logprobs[0].logprob == one.logprob for one in logprobs)
    last = chunks[-1]
    assert (last.usage is not None and last.choices == [] and last.usage == whole.usage) == usage


def test_a_flow_is_of_server_sent_events_and_ends_as_it_should(server: Running) -> None:
    body = {"model": "tiny", "messages": user("Go."), "stream": True}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as reply:
        assert reply.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in reply.iter_lines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert [json.loads(line[6:])["object"] for line in lines[:-1]] == ["chat.completion.chunk"] * (len(lines) - 1)


def test_sampling_is_by_its_seed_and_otherwise_by_chance(client: openai.OpenAI) -> None:
    def drawn(**more: Any) -> str:
        return str(say(client, "Go.", temperature=2.0, **more).choices[0].message.content)

    assert drawn(seed=2**63) == drawn(seed=2**63)
    assert drawn(seed=1) != drawn(seed=2)
    assert len({drawn() for _ in range(3)}) > 1
    assert drawn(seed=1, extra_body={"top_k": 1}) == say(client, "Go.").choices[0].message.content


def test_stops_bias_and_penalties_reach_the_engine(server: Running, client: openai.OpenAI) -> None:
    (plain,) = server.twin.respond_all([{"instruction": "Go."}])
    tokenizer = server.twin.tokenizer
    third = tokenizer.decode([plain.ids[3]])
    stopped = say(client, "Go.", stop=[third]).choices[0]
    assert plain.text.startswith(stopped.message.content)
    assert third not in stopped.message.content
    assert stopped.finish_reason == "stop"
    first = plain.ids[0]
    biased = say(client, "Go.", logit_bias={str(first): -100}, logprobs=True).choices[0]
    assert tokenizer.decode([first]) != biased.logprobs.content[0].token
    forced = say(client, "Go.", logit_bias={"317": 100}, max_tokens=5).choices[0].message.content
    assert forced == tokenizer.decode([317] * 5).strip()
    once = say(client, "Go.", logit_bias={"317": 20}, presence_penalty=2, frequency_penalty=2, logprobs=True)
    assert [one.token for one in once.choices[0].logprobs.content].count(tokenizer.decode([317])) < 12


def test_answers_are_held_to_a_schema(client: openai.OpenAI) -> None:
    def held(kind: dict[str, Any], **more: Any) -> Any:
        return json.loads(say(client, "Go.", response_format=kind, max_tokens=60, **more).choices[0].message.content)

    schema: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
    for more in ({}, {"temperature": 1.5, "seed": 4}):
        found = held(schema, **more)
        assert found.keys() == {"name", "sure"}
        assert isinstance(found["sure"], bool)
        assert len(found["name"]) <= 4
    assert say(client, "Go.", response_format={"type": "json_object"}).choices[0].message.content.startswith("{")
    free = say(client, "Go.", response_format={"type": "text"}).choices[0].message.content
    assert free == say(client, "Go.").choices[0].message.content


def test_a_schema_that_takes_long_keeps_nobody_waiting(
    server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may come first is found where nobody waits for it, which is what takes seconds."""
    found: list[str] = []
    compute = grammar.Held._next
    monkeypatch.setattr(
        grammar.Held, "_next", lambda self: (found.append(threading.current_thread().name), compute(self))[1]
    )
    schema: Any = {"type": "json_schema", "json_schema": {"name": "it", "schema": SCHEMA}}
    assert say(client, "Go.", response_format=schema, max_tokens=3).choices
    assert found[0] != "answers"
    assert set(found[1:]) == {"answers"}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "wizard"),
        ({"messages": [*user("x"), {"role": "assistant", "content": "y"}]}, "assistant's; wanted one of the user"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "image_url"),
        ({"messages": user("word " * 700)}, "context is 512"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": 1e308}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": "x"}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"seed": 2**64}, "seed"),
        ({"stop": ["x"] * 10_000}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 1000}}, "logit_bias"),
        ({"top_logprobs": 3}, "logprobs"),
        ({"top_logprobs": 100, "logprobs": True}, "top_logprobs"),
        ({"n": 2}, "n is 2"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "xml"}}, "xml"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nonsense"}}}}, "schema"),
        ({"response_format": {"type": "json_schema"}}, "schema"),
        ({"model": "tinny"}, "did you mean tiny"),
        ({"model": "../../etc"}, "no model"),
        ({"continue_final_message": True}, "assistant"),
        ({"add_generation_prompt": False}, "continue_final_message"),
        ({"logit_bias": {"7": 1, "07": -1}}, "logit_bias"),
        ({"repeat_penalty": 1.3}, "repeat_penalty"),
        ({"stop_token_ids": [7]}, "stop_token_ids"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_refused_in_words(server: Running, given: dict[str, Any], told: str) -> None:
    body = {"model": "tiny", "messages": user("Go."), "max_tokens": 2, **given}
    for stream in (False, True):
        reply = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "stream": stream})
        assert reply.status_code == (404 if "model" in given else 400)
        error = reply.json()["error"]
        assert told in error["message"]
        assert error["type"] == "invalid_request_error"
    assert server.worker.under_way == 0


def test_unknown_fields_and_those_that_change_nothing_are_ignored(client: openai.OpenAI) -> None:
    more = {"n": 1, "user": "me", "store": False, "metadata": {"a": "b"}, "tools": [], "service_tier": "auto", "new": 1}
    more |= dict.fromkeys(("stream", "stream_options", "stop", "seed", "max_tokens", "continue_final_message"))
    found = say(client, "Go.", extra_body=more).choices[0].message.content
    assert found == say(client, "Go.").choices[0].message.content


def test_an_enormous_limit_is_the_room_that_there_is(client: openai.OpenAI) -> None:
    found = say(client, "Go.", max_tokens=1_000_000_000)
    assert found.usage.total_tokens <= 512


def test_a_message_of_the_assistant_is_gone_on_with(server: Running, client: openai.OpenAI) -> None:
    (whole,) = server.twin.respond_all([{"instruction": "Go."}])
    begin = server.twin.tokenizer.decode(whole.ids[:4])
    messages: Any = [*user("Go."), {"role": "assistant", "content": begin}]
    more = {"continue_final_message": True, "add_generation_prompt": False}
    found = client.chat.completions.create(model="tiny", messages=messages, extra_body=more, max_tokens=8)
    prompt = len(say(client, "Go.", max_tokens=1).choices) and say(client, "Go.", max_tokens=1).usage.prompt_tokens
    assert found.usage.prompt_tokens == prompt + len(server.twin.tokenizer.encode(begin))
    world = server.twin.tokenizer.encode(" world")[0]
    messages[-1] = {"role": "assistant", "content": "Hello"}
    found = client.chat.completions.create(
        model="tiny", messages=messages, extra_body=more, max_tokens=2, logit_bias={str(world): 100}
    )
    assert found.choices[0].message.content == " world world"  # what is begun and this are one text
    body = {"model": "tiny", "messages": messages, **more, "response_format": {"type": "json_object"}}
    assert httpx.post(f"{server.url}/v1/chat/completions", json=body).status_code == 400


def test_an_answer_that_said_nothing_can_be_followed(server: Running, client: openai.OpenAI) -> None:
    for nothing in ("", None):
        messages: Any = [*user("One?"), {"role": "assistant", "content": nothing}, *user("Two?")]
        found = client.chat.completions.create(model="tiny", messages=messages)
        assert found.choices[0].message.content == server.twin.chat(messages)


def test_the_bytes_of_tokens_are_those_of_the_text(server: Running, client: openai.OpenAI) -> None:
    tokenizer = server.twin.tokenizer
    smile = tokenizer.encode("\U0001f642")
    bias = {str(smile[0]): 100}
    whole = say(client, "Go.", logit_bias=bias, logprobs=True, top_logprobs=1, max_tokens=2).choices[0]
    part = bytes(whole.logprobs.content[0].bytes)
    assert "\U0001f642".encode().startswith(part)
    with pytest.raises(UnicodeDecodeError):
        part.decode()
    assert whole.logprobs.content[0].token == "".join(f"\\x{byte:02x}" for byte in part)
    drawn = say(client, "Go.", temperature=3.0, seed=5, logprobs=True, max_tokens=40).choices[0]
    told = b"".join(bytes(one.bytes) for one in drawn.logprobs.content)
    assert told.decode("utf-8", "replace").strip() == drawn.message.content.strip()
    ended = say(client, "Go.", logit_bias={str(tokenizer.eos_id): -100}, logprobs=True, top_logprobs=20, max_tokens=1)
    assert all(one.token for one in ended.choices[0].logprobs.content[0].top_logprobs)


def test_what_can_be_got_can_be_asked_for_its_headers(server: Running) -> None:
    for path in ("/v1/models", "/v1/models/tiny", "/api/tags", "/api/version", "/health"):
        reply = httpx.head(f"{server.url}{path}")
        assert (reply.status_code, reply.content) == (200, b"")
    assert httpx.head(f"{server.url}/v1/chat/completions").status_code == 405


def test_several_turns_and_a_system_message(server: Running, client: openai.OpenAI) -> None:
    messages: Any = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One?"}]},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    found = client.chat.completions.create(model="tiny", messages=messages)
    assert found.choices[0].message.content == server.twin.chat(messages)


def test_texts_are_gone_on_with(server: Running, client: openai.OpenAI) -> None:
    ids = server.twin.tokenizer.encode("One two")
    given: Any = ["One two", "Three"]
    found = client.completions.create(model="tiny", prompt=given, max_tokens=6, logprobs=2)
    assert [choice.index for choice in found.choices] == [0, 1]
    again = client.completions.create(model="tiny", prompt=ids, max_tokens=6)
    assert again.choices[0].text == found.choices[0].text
    told = found.choices[0].logprobs
    assert told is not None
    assert "".join(told.tokens or []) == found.choices[0].text
    assert all(len(one) <= 2 for one in told.top_logprobs or [])
    pieces = list(client.completions.create(model="tiny", prompt="One two", max_tokens=6, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == found.choices[0].text
    assert pieces[-1].choices[0].finish_reason == "length"


@pytest.mark.parametrize("given", [{"prompt": []}, {"prompt": [10**6]}, {"prompt": "x", "echo": 1}, {"prompt": 3}])
def test_texts_that_cannot_be_gone_on_with(server: Running, given: dict[str, Any]) -> None:
    reply = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", "max_tokens": 2, **given})
    assert reply.status_code == 400
    assert server.worker.under_way == 0


@pytest.mark.parametrize("at_once", [2, 256])
def test_what_the_model_thinks_of_a_text_is_told(
    at_once: int, server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "AT_ONCE", at_once)
    monkeypatch.setattr(reading, "SCORES", 1 if at_once > 2 else reading.SCORES)  # a token's
    twin, text = server.twin, "One two three, four."
    ids = [*twin.tokenizer.begin_ids, *twin.tokenizer.encode(text)]
    with torch.inference_mode():
        logits_ND = twin.decoder.logits(twin.decoder(batch_of_ids(torch.tensor([ids])))).log_softmax(-1)
    wanted = [float(logits_ND[at, token]) for at, token in enumerate(ids[1:])]
    found = client.completions.create(model="tiny", prompt=[text, "Three"], max_tokens=1, logprobs=3, echo=True)
    assert [choice.text[: len(start)] for choice, start in zip(found.choices, (text, "Three"), strict=True)] == [
        text,
        "Three",
    ]
    told = found.choices[0].logprobs
    assert told is not None and told.tokens and told.token_logprobs and told.top_logprobs and told.text_offset
    assert len(told.tokens) == len(told.token_logprobs) == len(told.top_logprobs) == len(ids) + 1
    assert told.token_logprobs[0] is None and told.top_logprobs[0] is None
    assert told.token_logprobs[1:-1] == pytest.approx(wanted, abs=1e-4)
    assert all(0 < len(one) <= 3 for one in told.top_logprobs[1:])
    best = [float(row.max()) for row in logits_ND[:-1]]
    assert [max(one.values()) for one in told.top_logprobs[1:-1]] == pytest.approx(best, abs=1e-4)
    # by ids, and without anything new
    bare = client.completions.create(model="tiny", prompt=ids, max_tokens=0, logprobs=0, echo=True)
    assert bare.choices[0].text == twin.tokenizer.decode(ids) and bare.usage and bare.usage.completion_tokens == 0
    assert bare.choices[0].logprobs and bare.choices[0].logprobs.token_logprobs == told.token_logprobs[:-1]
    plain = client.completions.create(model="tiny", prompt=text, max_tokens=4)
    echoed = client.completions.create(model="tiny", prompt=text, max_tokens=4, echo=True)
    assert echoed.choices[0].text == text + plain.choices[0].text and echoed.choices[0].logprobs is None


def test_an_answer_that_ends_at_once_leaves_what_was_thought_of_the_end(server: Running, client: openai.OpenAI) -> None:
    """Who asks for a prompt and one token more counts on one more being told."""
    end, ids = server.twin.tokenizer.eos_id, server.twin.tokenizer.encode("One two")
    asks: Any = {"model": "tiny", "prompt": ids, "max_tokens": 1, "logprobs": 1, "echo": True}
    found = client.completions.create(**asks, logit_bias={str(end): 100})
    told = found.choices[0].logprobs
    assert found.choices[0].finish_reason == "stop" and told is not None and told.token_logprobs
    assert len(told.token_logprobs) == len(ids) + 1


@pytest.mark.parametrize(
    "given",
    [
        {"prompt": "x", "max_tokens": 0},
        {"prompt": "x", "echo": True, "stream": True},
        {"prompt": [10**6], "echo": True, "logprobs": 0, "max_tokens": 0},
        {"prompt": [], "echo": True, "logprobs": 0, "max_tokens": 0},
        {"prompt": [1] * 5000, "echo": True, "logprobs": 0, "max_tokens": 0},
        {"prompt": [-1], "echo": True, "max_tokens": 0},
    ],
)
def test_texts_that_cannot_be_told_of(server: Running, given: dict[str, Any]) -> None:
    reply = httpx.post(f"{server.url}/v1/completions", json={"model": "tiny", **given})
    assert reply.status_code == 400, reply.text
    assert server.worker.under_way == 0


@pytest.mark.parametrize(("texts", "at_once"), [(["a b c " * 20] * 40, 256), (["a b c " * 60], 1)])
def test_answers_go_on_between_the_texts_that_are_read(
    texts: list[str], at_once: int, server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many texts or a long one keep nobody waiting for all of it; what was asked is answered as without them."""
    monkeypatch.setattr(reading, "AT_ONCE", at_once)
    alone = say(client, "One?").choices[0].message.content
    order: list[str] = []
    with ThreadPoolExecutor(2) as pool:

        def read() -> None:
            client.completions.create(model="tiny", prompt=texts, max_tokens=0, logprobs=0, echo=True)
            order.append("texts")

        being_read = pool.submit(read)
        while server.worker.under_way < (len(texts) + 1) // 2:
            time.sleep(0.001)
        assert say(client, "One?").choices[0].message.content == alone
        order.append("answer")
        being_read.result()
    assert order == ["answer", "texts"]


def test_responses(server: Running, client: openai.OpenAI) -> None:
    given: Any = [{"role": "user", "content": [{"type": "input_text", "text": "Go."}]}]
    found = client.responses.create(model="tiny", input=given, instructions="Be brief.")
    wanted = server.twin.chat([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Go."}])
    assert found.output_text == wanted
    assert (found.status, found.usage and found.usage.output_tokens) == ("incomplete", 12)
    kinds, deltas = [], []
    for event in client.responses.create(model="tiny", input="Go.", stream=True):
        assert event.sequence_number == len(kinds)
        kinds.append(event.type)
        if event.type == "response.output_text.delta":
            deltas.append(event.delta)
    assert "".join(deltas) == say(client, "Go.").choices[0].message.content
    assert [kind for kind in kinds if not kind.endswith("delta")] == [
        f"response.{name}"
        for name in (
            "created", "in_progress", "output_item.added", "content_part.added", "output_text.done",
            "content_part.done", "output_item.done", "incomplete",
        )
    ]  # fmt: skip
    assert client.responses.create(model="tiny", input="Go.", include=["reasoning.encrypted_content"]).output_text
    held: Any = {"format": {"type": "json_schema", "name": "it", "schema": SCHEMA}}
    assert json.loads(client.responses.create(model="tiny", input="Go.", text=held, max_output_tokens=60).output_text)


@pytest.mark.parametrize(
    "given",
    [
        {"previous_response_id": "resp_1"},
        {"include": ["message.output_text.logprobs"]},
        {"tools": [{"type": "web_search"}]},
        {"input": [{"type": "function_call_output", "call_id": "1", "output": "x"}]},
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
        {"input": ""},
        {"stop": ["x"]},
        {"seed": 3},
        {"frequency_penalty": 1.0},
        {"text": {"verbosity": "low"}},
    ],
    ids=str,
)
def test_responses_that_cannot_be_made(server: Running, given: dict[str, Any]) -> None:
    reply = httpx.post(f"{server.url}/v1/responses", json={"model": "tiny", "input": "Go.", **given})
    assert reply.status_code == 400
    assert reply.json()["error"]["message"]


def left(server: Running) -> float:
    """Answers that were broken off since their client went."""
    return (
        server.worker.metrics.registry.get_sample_value("instil_requests_total", {"model": "tiny", "outcome": "left"})
        or 0.0
    )


def test_a_client_that_leaves_ends_the_work(server: Running, client: openai.OpenAI) -> None:
    gone = left(server)
    engine = server.worker.models["tiny"].assistant.engine
    flow = say(client, "Go.", stream=True, max_tokens=450, logit_bias={str(TINY_END): -100})
    next(iter(flow))
    flow.close()
    until = time.monotonic() + 5
    while server.worker.under_way and time.monotonic() < until:
        time.sleep(0.01)
    before = engine.passes
    time.sleep(0.3)
    assert (server.worker.under_way, engine.passes, left(server)) == (0, before, gone + 1)


def test_who_waits_for_the_whole_and_leaves_ends_the_work_too(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = left(server)
    engine = server.worker.models["tiny"].assistant.engine
    began = engine.passes
    unhurried(server, monkeypatch)
    body = {"model": "tiny", "messages": user("Go."), "max_tokens": 450, "logit_bias": {str(TINY_END): -100}}
    sent = json.dumps(body).encode()
    address = server.url.removeprefix("http://")
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n"
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=5) as client:
        client.sendall(f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent)
        until = time.monotonic() + 5
        while not server.worker.under_way and time.monotonic() < until:  # it has been heard
            time.sleep(0.001)
    until = time.monotonic() + 5
    while server.worker.under_way and time.monotonic() < until:
        time.sleep(0.01)
    before = -1
    while engine.passes != before and time.monotonic() < until:  # a pass may be under way
        before = engine.passes
        time.sleep(0.3)
    assert (server.worker.under_way, engine.passes, left(server)) == (0, before, gone + 1)
    assert engine.passes - began < 100  # of some 230 to its end


def test_a_second_turn_computes_its_own_tokens_only(server: Running, client: openai.OpenAI) -> None:
    engine = server.worker.models["tiny"].assistant.engine
    messages: Any = user("Tell me a tale. " * 20)
    said = client.chat.completions.create(model="tiny", messages=messages).choices[0].message.content
    messages += [{"role": "assistant", "content": said}, {"role": "user", "content": "Go on."}]
    before = engine.tokens
    found = client.chat.completions.create(model="tiny", messages=messages, max_tokens=1)
    assert engine.tokens - before < 60 < found.usage.prompt_tokens


def test_health_metrics_and_paths_that_are_none(server: Running) -> None:
    assert httpx.get(f"{server.url}/health").json()["status"] == "ok"
    told = httpx.get(f"{server.url}/metrics").text
    assert 'instil_new_tokens_total{model="tiny"}' in told
    assert "instil_requests_under_way 0.0" in told
    for path in ("/v1/nothing", "/api/nothing"):
        reply = httpx.get(f"{server.url}{path}")
        assert reply.status_code == 404
        assert "error" in reply.json()


def test_no_request_waits_for_a_vocabulary_to_be_read(tiny_folder: Path) -> None:
    """What fingerprints are made of is there before the first request, which would hold up all others meanwhile."""
    served = Served("tiny", load(tiny_folder), 0)
    make_app(Worker(Models([served])))
    assert "hash" in vars(served.assistant.tokenizer)


def test_models_are_listed_while_one_answers(server: Running, client: openai.OpenAI) -> None:
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            say(client, "Go.", max_tokens=100)

    with ThreadPoolExecutor(2) as pool:
        for _ in range(2):
            pool.submit(keep_busy)
        assert len(client.models.list().data) == 2
        stop.set()


def test_a_model_whose_numbers_are_none_says_so_and_the_others_go_on(
    server: Running, client: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = server.worker.models["tiny:base"].assistant.engine
    with monkeypatch.context() as patch:
        patch.setattr(engine, "step", lambda: (_ for _ in ()).throw(MemoryError("no room")))
        with pytest.raises(openai.InternalServerError, match="MemoryError"):
            client.chat.completions.create(model="tiny:base", messages=user("Go."))
        assert say(client, "Go.").choices
    assert client.chat.completions.create(model="tiny:base", messages=user("Go.")).choices
    assert not engine._active and not engine._waiting
    assert engine.submit(Request([1], 1)) and engine.step() is not None
