"""The description at ``/openapi.json`` is true: whatever it allows is answered as it says, and never with a failure."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from tests.conftest import TINY_END
from tests.serve.conftest import Running

CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip


@pytest.fixture(scope="package")
def described(server: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_endpoint_is_described(server: Running) -> None:
    found = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    assert {path for path in found if path.startswith(("/v1", "/api", "/health", "/metrics"))} == set(ENDPOINTS)


ENDPOINTS = {
    "/v1/models": "GET", "/v1/models/{name}": "GET", "/v1/chat/completions": "POST", "/v1/completions": "POST",
    "/v1/responses": "POST", "/api/version": "GET", "/api/tags": "GET", "/api/ps": "GET", "/api/show": "POST",
    "/api/chat": "POST", "/api/generate": "POST", "/health": "GET", "/metrics": "GET",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", ENDPOINTS)
def test_the_description_is_true(described: schemathesis.BaseSchema, path: str) -> None:
    operation = described[path][ENDPOINTS[path]]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy())
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=60)

    ask()


TEXT = st.text(min_size=1, max_size=20).filter(lambda text: text.strip())
CHATS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["tiny", "tiny:base"]),
        "messages": st.lists(TEXT, max_size=3).flatmap(
            lambda turns: st.just(
                [
                    {"role": ("assistant", "user")[(len(turns) - at) % 2], "content": text}
                    for at, text in enumerate([*turns, "Go."], start=1)
                ][len(turns) % 2 :]
            )
        ),
        "max_tokens": st.integers(1, 8),
    },
    optional={
        "stream": st.booleans(),
        "temperature": st.floats(0, 2),
        "top_p": st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(0, 10**6),
        "min_p": st.floats(0, 1),
        "repetition_penalty": st.floats(0.01, 100),
        "frequency_penalty": st.floats(-2, 2),
        "presence_penalty": st.floats(-2, 2),
        "logit_bias": st.dictionaries(st.integers(0, TINY_END).map(str), st.floats(-100, 100), max_size=3),
        "seed": st.integers(-(2**63), 2**64 - 1),
        "stop": st.one_of(TEXT, st.lists(TEXT, max_size=3)),
        "logprobs": st.booleans(),
        "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
        "user": TEXT,
    },
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(CHATS)
def test_whatever_is_in_range_is_answered(server: Running, body: dict[str, Any]) -> None:
    reply = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 200, reply.text
    if body.get("stream"):
        assert reply.text.endswith("data: [DONE]\n\n")
        assert '"error"' not in reply.text.split("data: ")[-2]
    else:
        assert reply.json()["usage"]["completion_tokens"] <= body["max_tokens"]
