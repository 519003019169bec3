"""What models and servers reply, and the journal in which it is kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import httpx2

from instil.ask.client import ModelRequest
from instil.ask.http import Http, Passing, Refused
from instil.ask.journal import Journal
from instil.ask.loose_json import NotJson, whole_json
from instil.ask.ollama import Ollama
from instil.ask.openai import OpenAI
from instil.ask.thoughts import spoken
from instil.errors import JudgeError
from instil.evaluate.judging import _sound, read_reply
from instil.evaluate.offline import score_offline
from instil.evaluate.pairwise import read_choice
from instil.evaluate.parsing import read_score
from instil.evaluate.prompts import SCORE_SCHEMA
from instil.evaluate.scales import Scale
from instil.records import Example
from instil.settings.asking import ScoreOptions
from instil.synthesis.reading import answer_problem, read_fields, task_problem, tidy_input
from instil.synthesis.rewriting import read_rewriting
from tests.ask.test_thoughts import SPELLINGS
from tests.evaluate.test_parsing_fuzz import BEFORE, JSON, QUOTED, THOUGHTS, WORDS
from tests.fuzz.promise import Mutate, Target, file
from tests.fuzz.trees import dumped, parsed, tree_mutator

REQUEST = ModelRequest("Score this answer, please.", SCORE_SCHEMA, 1, 512)
PARTS = (
    *(one.replace("{{", "{").replace("}}", "}").replace("{n}", "85").replace("{d}", "20") for one in (*JSON, *WORDS)),
    *BEFORE,
    *(one.format(n=85, d=20, json='{"score": 20}') for one in QUOTED),
    *(one.format(d=20) for one in THOUGHTS),
    *(part for pair in SPELLINGS for part in pair),
    "```json\n",
    "```",
    "{",
    "}",
    '"score"',
    ":",
    ",",
    "'",
    "//",
    "/*",
    '{"better": "first"}',
    '{"passive": "It was seen."}',
    "\\",
    "\u201c",
    "#",
    "0" * 400,
    "(" * 200,
    "[" * 200,
    "\ud7ff",
    "1/2",
    "½",
    "٣",
    "three and a half million",
    "1,500",
    "1 500",
    "-",
    "%",
    "\n\n",
    "<",
    "</",
    "&lt;",
    "<|",
    "|>",
)


def read_verdict(given: bytes) -> None:
    """A reply read as a score, a choice, fields of a row, an answer."""
    text = given.decode("utf-8", "replace")
    for scale in (Scale(0, 100), Scale(1, 5)):
        found = read_score(text, scale)
        assert found.value is None or scale.low <= found.value <= scale.high
    read_choice(text)
    spoken(text)
    read_fields(text, ["passive"])
    task_problem(text, text)
    answer_problem("Name a colour.", "", text)
    tidy_input(text)
    read_rewriting(text, "It is red.")
    if len(text) < 2000:
        verdict = score_offline([Example("Add 1,500 and 2.", "It is 1,502.", "3 km", row=1)], [text])[0]
        assert verdict.score is not None and 0 <= verdict.score <= 100
    with suppress(NotJson):
        whole_json(text)


def replies() -> Iterator[bytes]:
    """Good verdicts."""
    yield from (part.encode("utf-8", "replace") for part in PARTS)


def mutate_reply(given: bytes, draw: Random, mutate: Mutate) -> bytes:
    """Parts put in, left out, repeated."""
    text = given.decode("utf-8", "replace")
    for _ in range(draw.choice((1, 1, 2, 4))):
        at = draw.randrange(len(text) + 1)
        to = min(len(text), at + draw.randrange(1, 40))
        how = draw.randrange(5)
        if how < 2:
            text = text[:at] + draw.choice(PARTS) + text[at:]
        elif how == 2:
            text = text[:at] + text[to:]
        elif how == 3:
            text = text[:at] + text[at:to] * draw.choice((2, 3, 200)) + text[to:]
        else:
            text = mutate(text.encode("utf-8", "replace"), len(text) + 40).decode("utf-8", "replace")
    return text.encode("utf-8", "replace")


# Servers


class _Given(Http):
    """Replies that were given beforehand, the last of them again and again."""

    def __init__(self, base: str, replies: list[Any]) -> None:
        super().__init__(base)
        self._replies, self._count = replies, 0

    def _send(self, *_: Any, **__: Any) -> tuple[int, httpx2.Headers, bytes]:
        reply = self._replies[min(self._count, len(self._replies) - 1)] if self._replies else {}
        self._count += 1
        if self._count > 20:
            raise AssertionError("asked twenty times")
        reply = reply if isinstance(reply, dict) else {"body": reply}
        status = reply.get("status", 200)
        status = status if type(status) is int and 200 <= status < 600 else 200
        status = 500 if status == 503 else status  # after which a minute is waited
        heads = reply.get("headers")
        pairs = {str(key): str(value) for key, value in heads.items()} if isinstance(heads, dict) else {}
        clean = {key.encode("ascii", "replace"): value.encode("latin-1", "replace") for key, value in pairs.items()}
        body = reply.get("body", "")
        lines = reply.get("lines")
        if isinstance(lines, list):
            raw = b"\n".join(map(dumped, lines))
        else:
            raw = body.encode("utf-8", "surrogatepass") if isinstance(body, str) else dumped(body)
        return status, httpx2.Headers(list(clean.items())), raw


def read_server(given: bytes) -> None:
    """A server's replies to the questions of a judge, by either interface."""
    try:
        found = parsed(given)
    except ValueError:
        found = None
    found = found if isinstance(found, dict) else {"replies": [found]}
    said = found.get("replies")
    said = said if isinstance(said, list) else [said]
    options = ScoreOptions(weighted=bool(found.get("weighted")))
    client: Any
    if found.get("ollama"):
        client = Ollama("http://127.0.0.1:1", "m", options)
        client._http = _Given("http://127.0.0.1:1", said)
    else:
        client = OpenAI("http://127.0.0.1:1", "m", options)
        client._http = _Given("http://127.0.0.1:1/v1", said)
    try:
        if found.get("open"):
            client.open()
        for ask in (client.chat, client.complete):
            reply = ask(REQUEST)
            reply.text.encode()
            read_reply(reply, REQUEST, Scale(1, 5), client.attention, weighted=bool(found.get("weighted")))
    except (Passing, Refused, JudgeError) as error:
        assert not isinstance(error, Passing) or error.wait >= 0
        str(error).encode("utf-8", "replace")


def servers() -> list[Any]:
    """Replies of every kind."""
    choice = {
        "message": {"role": "assistant", "content": '{"score": 3}'},
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": "3", "top_logprobs": [{"token": "3", "logprob": -0.1}]}]},
    }
    usage = {"prompt_tokens": 5, "prompt_tokens_details": {"cached_tokens": 3}}
    line = {"message": {"content": "3"}, "done": False}
    busy = {
        "status": 429,
        "headers": {"Retry-After": "1", "x-ratelimit-reset-tokens": "6m0s"},
        "body": {
            "error": {
                "message": "Rate limit reached. Please try again in 1m2s.",
                "type": "tokens",
                "code": "rate_limit",
            }
        },
    }
    refuses = {
        "status": 400,
        "body": {"error": {"message": "Unsupported parameter: 'response_format'", "param": "seed"}},
    }
    return [
        {"replies": [{"body": {"choices": [choice], "usage": usage}}], "weighted": True},
        {"replies": [{"body": {"data": [{"id": "m"}]}}, {"body": {"choices": [choice]}}], "open": True},
        {"replies": [busy]},
        {"replies": [refuses, refuses, {"body": {"choices": [choice]}}]},
        {"replies": [{"body": {"choices": [{"text": "3", "finish_reason": "length"}]}}]},
        {
            "replies": [
                {"body": {"choices": [{"message": {"content": [{"type": "text", "text": "3"}], "refusal": None}}]}}
            ]
        },
        {"replies": [{"lines": [line, {"done": True, "prompt_eval_count": 5, "done_reason": "stop"}]}], "ollama": True},
        {
            "replies": [
                {"body": {"models": [{"name": "m:latest", "digest": "1"}]}},
                {"lines": [{**line, "done": True}]},
            ],
            "ollama": True,
            "open": True,
        },
        {"replies": [{"status": 404, "body": {"error": "model 'm' not found"}}], "ollama": True},
        {"replies": [{"status": 500, "body": "<html>", "headers": {"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}}]},
    ]


WORDS_OF_SERVERS: tuple[Any, ...] = (
    "choices",
    "message",
    "content",
    "error",
    "finish_reason",
    "stop_reason",
    "usage",
    "logprobs",
    "top_logprobs",
    "token",
    "logprob",
    "refusal",
    "tool_calls",
    "reasoning_content",
    "status",
    "headers",
    "body",
    "lines",
    "done",
    "ollama",
    "open",
    "weighted",
    "retry-after",
    "retry-after-ms",
    "x-ratelimit-reset",
    "x-ratelimit-remaining",
    "length",
    "content_filter",
    "json_schema",
    "response_format",
    "max_tokens",
    "context length",
    "unsupported",
    400,
    401,
    404,
    422,
    429,
    500,
    -1e400,
    "99999999999999999999999999",
    "Wed, 21 Oct 9999 07:28:00 GMT",
    "2026-01-01T00:00:00Z",
    "1e9",
    "٣",
    "type",
    "text",
)


def read_journal(given: bytes) -> None:
    """A journal of verdicts, and what is taken out of it."""
    with file("verdicts.journal", given) as path, Journal(path) as journal:
        for key in ("a", "b", ""):
            entry = journal.find(key)
            _sound(entry, Scale(0, 100))
            journal.failures(key)
        journal.add("c", {"score": 1}, counts=True)


def journals() -> list[bytes]:
    """Lines as they are written, and a torn one."""
    line = {
        "key": "a",
        "row": 1,
        "judge": "ollama:m",
        "score": 50.0,
        "reason": "",
        "metrics": {"plain": 5.0},
        "said": "50",
        "counts": True,
    }
    lines = b"".join(json.dumps(one).encode() + b"\n" for one in (line, {**line, "key": "b", "failed": True}))
    return [lines, lines + b'{"key": "c", "ro', b""]


LINE = tree_mutator(("key", "a", "b", "counts", "score", "failed", "metrics", "said", "reason", True), list)


def mutate_journal(given: bytes, draw: Random, mutate: Mutate) -> bytes:
    """One line changed."""
    lines = given.split(b"\n")
    at = draw.randrange(len(lines))
    lines[at] = LINE(lines[at], draw, mutate) if lines[at] else mutate(b"{}", 50)
    return b"\n".join(lines)


TARGETS = {
    "verdict": Target(read_verdict, replies, mutate_reply, longest=6000),
    "server": Target(read_server, lambda: [dumped(one) for one in servers()], tree_mutator(WORDS_OF_SERVERS, servers)),
    "journal": Target(read_journal, journals, mutate_journal, longest=5000),
}
