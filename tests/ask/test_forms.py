"""Servers that refuse a schema, each in its own words: asked again without what was refused, and once only."""

from __future__ import annotations

import json
from typing import Any

import pytest

import instil
from instil.ask import patience as asking
from instil.recipes.score import score_path
from instil.settings.asking import ScoreOptions
from tests.faults.judge_server import judging
from tests.faults.test_judge_faults import answered

WORDS: dict[str, tuple[int, Any]] = {
    "OpenAI, bounds": (400, {"error": {
        "message": "Invalid schema for response_format 'reply': In context=('properties', 'score'), 'minimum' is not "
        "permitted.", "type": "invalid_request_error", "param": "response_format"}}),
    "OpenAI, older model": (400, {"error": {"message": "Invalid parameter: 'response_format' of type 'json_schema' is "
        "not supported with this model.", "type": "invalid_request_error", "param": None}}),
    "Azure": (400, {"error": {"code": "BadRequest", "message": "response_format value as json_schema is enabled only "
        "for api versions 2024-08-01-preview and later"}}),
    "vLLM": (400, {"object": "error", "message": "The provided JSON schema contains features not supported by "
        "xgrammar.", "type": "BadRequestError", "code": 400}),
    "llama-server": (400, {"error": {"code": 400, "message": "JSON schema conversion failed:\nUnrecognized schema"}}),
    "llama-server, grammar": (500, {"error": {"code": 500, "message": "failed to parse grammar"}}),
    "LM Studio": (400, {"error": "'response_format.type' must be 'text'"}),
    "Groq": (400, {"error": {"message": "This model does not support response format `json_schema`."}}),
    "Groq, output": (400, {"error": {"message": "Failed to generate JSON.", "code": "json_validate_failed"}}),
    "Together": (400, {"error": {"message": "Input validation error: guided decoding is not available"}}),
    "OpenRouter": (404, {"error": {"message": "No endpoints found that can handle the requested parameters."}}),
    "Mistral": (422, {"object": "error", "message": {"detail": [{"type": "extra_forbidden", "loc": [
        "body", "response_format", "json_schema", "strict"], "msg": "Extra inputs are not permitted"}]}}),
    "FastAPI": (422, {"detail": [{"loc": ["body", "response_format", "type"],
                                  "msg": "Input should be 'text' or 'json_object'"}]}),
    "Gemini": (400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT", "message": "Invalid JSON payload received. "
        "Unknown name \"additionalProperties\" at 'generation_config.response_schema': Cannot find field."}}]),
    "SGLang": (400, {"object": "error", "message": "Failed to compile json grammar", "code": 400}),
    "TGI": (422, "Failed to deserialize the JSON body into the target type: response_format: unknown variant "
        "`json_schema`, expected one of `json_object`, `regex`"),
    "TGI, tool": (422, {"error": "Tool error: grammar is not supported", "error_type": "tool_error"}),
    "Ollama": (400, {"error": {"message": "invalid JSON schema in format"}}),
    "DeepSeek": (400, {"error": {"message": "This response_format type is unavailable now"}}),
    "names": (400, {"error": {"message": "Unrecognized request argument supplied: response_format",
                              "type": "invalid_request_error"}}),
    "context": (400, {"error": "schema: 'required' is not allowed in this context"}),
    "plan": (403, {"error": {"message": "structured outputs are not available on your plan"}}),
    "no words": (400, ""),
    "few words": (400, {"error": {"message": "Bad Request"}}),
    "other languages": (400, {"error": {"message": "\u53c2\u6570\u9519\u8bef"}}),
    "a parser's words": (400, {"error": {"message": "lark: EBNF parse error"}}),
    "a missing package": (422, {"error": {"message": "outlines is not installed"}}),
    "the prompt's words": (400, {"error": {"message": "the prompt must contain the word 'json' in some form"}}),
    "a name": (400, {"error": {"message": "name must match ^[a-z]+$"}}),
    "status 200": (200, {"error": {"message": "grammar: unknown keyword", "code": 400}}),
}  # fmt: skip


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "INSTIL_API_KEY", "OLLAMA_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


def refusing(server: str, taken: tuple[str, ...]) -> Any:
    """What a server does that takes some types of ``response_format`` (or of Ollama's ``format``) only."""
    status, body = WORDS[server]
    text = body if isinstance(body, str) else json.dumps(body)

    def refuses(asked: dict[str, Any]) -> str:
        given = asked.get("response_format", {}).get("type", "text")
        if "format" in asked:
            given = "json_object" if asked["format"] == "json" else "json_schema"
        if given in taken:
            return ""
        return f"body {text}" if status == 200 else f"status {status} {text or ' '}"

    return refuses


@pytest.mark.parametrize("taken", [("json_object", "text"), ("text",)], ids=["an object", "text"])
@pytest.mark.parametrize("server", WORDS)
def test_a_schema_that_is_refused_is_left_out_from_then_on(server: str, taken: tuple[str, ...]) -> None:
    with judging(refuses=refusing(server, taken)) as running:
        verdicts = instil.score(answered(6), f"{running.url}/v1", concurrency=1, tries=1)
        assert [verdict.reason for verdict in verdicts] == [""] * 6
        assert len(running.asked) <= 8  # twice refused at the most
        assert {body["response_format"]["type"] for body in running.asked[2:] if "response_format" in body} <= {
            "json_object"
        }


@pytest.mark.parametrize("server", ["Ollama", "llama-server, grammar", "status 200", "no words"])
def test_ollama_is_asked_again_without_its_format(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with judging(refuses=refusing(server, ("text",))) as running:
        monkeypatch.setenv("OLLAMA_HOST", running.url)
        verdicts = instil.score(answered(4), "ollama:judge", tries=1)
        assert [verdict.reason for verdict in verdicts] == [""] * 4
        assert ["format" in body for body in running.asked][-4:] == [False] * 4


def test_no_bounds_are_sent_and_verdicts_are_known_as_before(tmp_path: Any) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(1)))
    with judging() as running:
        score_path(file, f"{running.url}/v1", ScoreOptions())
    schema = running.asked[0]["response_format"]["json_schema"]["schema"]
    assert schema["properties"] == {"score": {"type": "integer", "enum": [1, 2, 3, 4, 5]}}
    assert not {"minimum", "maximum", "pattern"} & set(json.dumps(schema).split('"'))


@pytest.mark.parametrize("words", [
    "This model's maximum context length is 4096 tokens; reduce the length", "content filter",
    "The response was filtered due to Azure OpenAI's content management policy. invalid_prompt", "Insufficient credits",
    "The input length exceeds the context length", "no",
])  # fmt: skip
def test_what_is_refused_for_another_cause_is_asked_once(words: str) -> None:
    with judging(faults={1: f'status 400 {{"error":{{"message":"{words}"}}}}'}) as running:
        verdicts = instil.score(answered(3), f"{running.url}/v1", concurrency=1)
        assert [verdict.score is None for verdict in verdicts] == [False, True, False]
        assert [body["response_format"]["type"] for body in running.asked] == ["json_schema"] * 3


def test_a_prompt_too_long_for_its_schema_does_not_cost_the_others_theirs() -> None:
    words = "maximum context length is 4096 tokens (4000 in the messages, 200 in the response_format schema)"
    refuses = 'status 400 {"error":{"message":"' + words + '"}}'
    with judging(refuses=lambda body: refuses if "Double 1." in json.dumps(body) else "") as running:
        verdicts = instil.score(answered(3), f"{running.url}/v1", concurrency=1)
        assert [verdict.score is None for verdict in verdicts] == [False, True, False]
        assert running.asked[-1]["response_format"]["type"] == "json_schema"


def test_a_server_that_breaks_at_a_schema_is_asked_again_without_it() -> None:
    def breaks(body: dict[str, Any]) -> str:
        return 'status 500 {"error":"Internal Server Error"}' if "response_format" in body else ""

    with judging(refuses=breaks) as running:
        verdicts = instil.score(answered(4), f"{running.url}/v1", concurrency=1)
        assert [verdict.reason for verdict in verdicts] == [""] * 4
        assert len(running.asked) == 4 + 3


def test_a_server_that_breaks_once_keeps_its_schema() -> None:
    with judging(faults={0: 'status 500 {"error":"Internal Server Error"}', 3: "status 500 x"}) as running:
        verdicts = instil.score(answered(4), f"{running.url}/v1", concurrency=1)
        assert [verdict.reason for verdict in verdicts] == [""] * 4
        assert {body["response_format"]["type"] for body in running.asked} == {"json_schema"}


def test_vague_refusals_in_every_form_are_taken_for_what_they_are() -> None:
    with judging(always='status 400 {"error":"invalid request"}') as running:
        verdicts = instil.score(answered(9), f"{running.url}/v1", concurrency=1)
        assert {verdict.score for verdict in verdicts} == {None}
        assert len(running.asked) == 3 * 3 + 6


def test_other_parameters_and_the_schema_are_refused_one_after_the_other() -> None:
    def refuses(body: dict[str, Any]) -> str:
        for name in ("seed", "temperature", "response_format"):
            if name in body:
                return f'status 400 {{"error":{{"message":"Unsupported parameter in this context: {name}"}}}}'
        return ""

    with judging(refuses=refuses) as running:
        assert [one.reason for one in instil.score(answered(3), f"{running.url}/v1", concurrency=1)] == [""] * 3
        assert len(running.asked) == 6
