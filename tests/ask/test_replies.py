"""What comes back from servers: how it ended, what stands instead of a text, how much was read, which model it is."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import instil
from instil.ask import patience as asking
from instil.ask.attention import Attention
from instil.ask.client import ModelRequest, Reply
from instil.ask.journal import Journal
from instil.ask.loose_json import NotJson, whole_json
from instil.ask.named import opened
from instil.errors import JudgeError
from instil.evaluate.judging import unread
from instil.recipes.score import score_path
from instil.recipes.sweep.sweep import _check_judge
from instil.screen import Screen
from instil.settings.asking import MakeOptions, ScoreOptions
from instil.synthesis.reading import read_fields
from instil.synthesis.writing import TextRequest, write_all, writer
from tests.faults.judge_server import judging
from tests.faults.test_judge_faults import answered


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "INSTIL_API_KEY", "OLLAMA_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


def chat(message: Any, **more: Any) -> str:
    """The fault in which a server says this message."""
    return "body " + json.dumps({"choices": [{"message": message, "finish_reason": "stop", **more}]})


def lines(*given: dict[str, Any]) -> str:
    """The same for Ollama."""
    return "body " + "\n".join(json.dumps(one) for one in given)


MESSAGES: list[tuple[Any, float | None, str]] = [
    ({"content": [{"type": "text", "text": "85"}]}, 85, ""),
    ({"content": [{"type": "reasoning", "text": "20"}, {"type": "output_text", "text": "85"}]}, 85, ""),
    ({"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "20"}]}, {"type": "text", "text": "85"}]},
     85, ""),
    ({"content": "85", "reasoning_content": "I'd give it 20."}, 85, ""),
    ({"content": "85", "thinking": "20"}, 85, ""),
    ({"content": [{"type": "reasoning", "text": "20"}]}, None, "a thought and no answer"),
    ({"content": "", "reasoning_content": "I'd give it 20."}, None, "a thought and no answer"),
    ({"content": None, "reasoning": "20"}, None, "a thought and no answer"),
    ({"content": None, "refusal": "I cannot help with 20."}, None, "the model refuses: I cannot help"),
    ({"content": "85", "refusal": "No."}, None, "the model refuses: No."),
    ({"content": [{"type": "refusal", "refusal": "No 20."}]}, None, "the model refuses: No 20."),
    ({"content": None, "tool_calls": [{"type": "function", "function": {"name": "rate", "arguments": "20"}}]}, None,
     "a call of a tool (rate), not a text"),
    ({"content": "", "function_call": {"name": "rate", "arguments": "20"}}, None, "a call of a tool (rate)"),
    ({"content": [{"type": "image_url", "image_url": {"url": "20"}}]}, None, "parts of type image_url"),
    ({"content": [{"text": "20"}]}, None, "parts of type"),
    ({"content": 20}, None, "no text"), ({"content": ["20"]}, None, "no text"), ({"content": [None]}, None, "no text"),
    ({"content": ""}, None, "the reply is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "score", "reason"), MESSAGES)
def test_a_message_is_its_text_or_is_named_for_what_it_is(message: Any, score: float | None, reason: str) -> None:
    with judging(always=chat(message)) as server:
        verdict = instil.score(answered(1), f"{server.url}/v1", prompt="book")[0]
        assert verdict.score == score
        assert reason in verdict.reason
        with writer(f"{server.url}/v1", MakeOptions()) as model:
            written = write_all(model, [TextRequest(0, "?", 1, "test")], MakeOptions(), Journal())[0]
        assert (written.text is None) == (score is None)
        assert reason in written.reason


@pytest.mark.parametrize("reason", ["content_filter", "SAFETY", "content_filtered", "RECITATION", "sensitive"])
@pytest.mark.parametrize("said", ['{"score": 8', "85"])
def test_a_reply_that_a_filter_stopped_is_no_score(reason: str, said: str) -> None:
    with judging(always=chat({"content": said}, finish_reason=reason)) as server:
        verdict = instil.score(answered(1), f"{server.url}/v1", prompt="book")[0]
        assert (verdict.score, verdict.reason) == (None, "the reply was stopped by a filter of its content")
        assert len(server.asked) == 1


@pytest.mark.parametrize("reason", ["length", "max_tokens", "MAX_TOKENS", "model_length"])
def test_a_reply_that_had_no_more_room_is_no_score(reason: str) -> None:
    for message in ({"content": "85"}, {"content": None, "reasoning_content": "20"}):
        with judging(always=chat(message, finish_reason=reason)) as server:
            verdict = instil.score(answered(1), f"{server.url}/v1", prompt="book")[0]
            assert (verdict.score, verdict.reason) == (None, "the reply was cut off; raise score.max_tokens")


@pytest.mark.parametrize("fault", [
    chat({"content": "8"}, finish_reason="error"), chat({"content": "8"}, finish_reason="abort"),
    chat({"content": "8"}, error={"code": 502, "message": "upstream"}),
    chat({"content": "8"}, finish_reason="insufficient_system_resource"),
    chat({"content": "8"}, finish_reason="OTHER"), chat({"content": "8"}, finish_reason="MALFORMED_FUNCTION_CALL"),
    chat({"content": "8"}, native_finish_reason="repetition"), 'status 498 {"error":"capacity exceeded"}',
    'status 409 {"error":"conflict"}',
])  # fmt: skip
def test_a_reply_that_ended_by_error_is_asked_for_again(fault: str) -> None:
    with judging(faults={0: fault}, say=lambda message, number: "85") as server:
        assert instil.score(answered(1), f"{server.url}/v1", prompt="book")[0].score == 85
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    "reason", ["stop", "eos", "eos_token", "end_turn", "stop_sequence", "COMPLETE", None, "tool_calls"]
)
def test_ends_that_are_none_of_these_are_whole(reason: str | None) -> None:
    with judging(always=chat({"content": "85"}, finish_reason=reason)) as server:
        assert instil.score(answered(1), f"{server.url}/v1", prompt="book")[0].score == 85


@pytest.mark.parametrize(("ends", "reason"), [
    ({"finish_reason": None, "stop_reason": "max_tokens"}, "cut off"),
    ({"native_finish_reason": "MAX_TOKENS"}, "cut off"),
    ({"finish_reason": {"type": "length"}}, "cut off"), ({"finish_details": {"type": "max_tokens"}}, "cut off"),
    ({"native_finish_reason": "SAFETY"}, "a filter"), ({"finish_reason": "model_context_window_exceeded"}, "cut off"),
    ({"stop_reason": "length:"}, ""),
])  # fmt: skip
def test_ends_by_other_names_and_in_other_shapes(ends: dict[str, Any], reason: str) -> None:
    with judging(always=chat({"content": "85"}, **ends)) as server:
        verdict = instil.score(answered(1), f"{server.url}/v1", prompt="book")[0]
        assert (reason in verdict.reason) if reason else (verdict.score == 85)


@pytest.mark.parametrize(("body", "shown"), [
    ({"error": {"message": "boom"}}, "the server said: boom"), ({"message": "overloaded"}, "overloaded"),
    ({"object": "error", "message": "bad luck"}, "bad luck"), ({"detail": "busy"}, "busy"),
])  # fmt: skip
def test_an_error_under_the_status_of_a_success_keeps_its_words(body: dict[str, Any], shown: str) -> None:
    with judging(always="body " + json.dumps(body)) as server:
        reason = instil.score(answered(1), f"{server.url}/v1", prompt="book", tries=1)[0].reason
        assert shown in reason
        assert "{'message': 'boom'}" not in reason


def test_a_text_that_a_server_will_not_read_is_refused_for_its_row_alone() -> None:
    flagged = 'status 403 {"error":{"message":"your input was flagged"}}'
    echoed = 'status 422 {"detail":"the file was not found"}'
    with judging(faults={1: flagged, 2: echoed}) as server:
        verdicts = instil.score(answered(4), f"{server.url}/v1", prompt="book", concurrency=1)
        assert [verdict.score is None for verdict in verdicts][0:4:3] == [False, False]
        assert "flagged" in verdicts[1].reason


def test_a_server_that_wants_to_be_paid_is_asked_once() -> None:
    with judging(always='status 402 {"error":{"message":"Insufficient credits"}}') as server:
        with pytest.raises(JudgeError, match=r"wants to be paid first.*Insufficient credits"):
            instil.score(answered(5), f"{server.url}/v1", prompt="book", concurrency=1)
        assert len(server.asked) == 1


@pytest.mark.parametrize(("given", "reason"), [
    (({"message": {"content": "", "thinking": "20"}}, {"done": True, "done_reason": "stop"}), "a thought and no"),
    (({"message": {"content": "", "tool_calls": [{"function": {"name": "rate"}}]}}, {"done": True}), "(rate)"),
    (({"message": {"content": '{"score": 8'}}, {"done": True, "done_reason": "stop"}), "still open"),
    (({"message": {"content": "85"}}, {"done": True, "done_reason": "length"}), "cut off"),
    (({"message": {"content": ""}}, {"done": True, "done_reason": "stop"}), "the reply is empty"),
])  # fmt: skip
def test_the_same_of_ollama(given: tuple[dict[str, Any], ...], reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with judging(always=lines(*given)) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        verdict = instil.score(answered(1), "ollama:judge", prompt="book")[0]
        assert verdict.score is None
        assert reason in verdict.reason


def test_ollama_that_only_loaded_its_model_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    fault = lines({"message": {"content": ""}, "done": True, "done_reason": "load"})
    with judging(faults={0: fault}, say=lambda message, number: "85") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        assert instil.score(answered(1), "ollama:judge", prompt="book")[0].score == 85


def test_waits_in_all_their_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(asking, "_sleep", lambda stopped, seconds: slept.append(seconds))
    faults = [
        "retry-after 1.5", 'headers {"retry-after-ms": "2500"}', 'headers {"x-ratelimit-reset-tokens": "3s"}',
        'status 429 {"error":{"message":"Rate limit. Please try again in 1m2s."}}',
        'body {"error":{"message":"Rate limit. Please try again in 40s.","code":429}}',
    ]  # fmt: skip
    with judging(faults=dict(enumerate(faults))) as server:
        assert instil.score(answered(1), f"{server.url}/v1", tries=9)[0].score is not None
    assert [seconds for seconds in slept if seconds >= 1] == [1.5, 2.5, 3, 62, 40]  # not those after a lost connection


USAGES = {
    "OpenAI": ({"usage": {"prompt_tokens": 12, "prompt_tokens_details": {"cached_tokens": 900}}}, None),
    "llama.cpp": ({"usage": {"prompt_tokens": 12}, "timings": {"prompt_n": 12, "cache_n": 900}}, None),
    "Anthropic": ({"usage": {"prompt_tokens": 12, "cache_read_input_tokens": 500, "cache_creation_input_tokens": 400}},
                  None),
    "DeepSeek": ({"usage": {"prompt_tokens": 12, "prompt_cache_hit_tokens": 900}}, None),
    "none": ({"usage": {"prompt_tokens": 12}}, "the judge read 12 tokens"),
    "few": ({"usage": {"prompt_tokens": 12, "prompt_tokens_details": {"cached_tokens": 3}}}, "judge read 12 tokens"),
    "no count": ({"usage": None}, None),
}  # fmt: skip


@pytest.mark.parametrize("server", USAGES)
def test_tokens_read_before_are_added(server: str) -> None:
    counts, reason = USAGES[server]
    body = {"choices": [{"message": {"content": '{"score": 4}'}, "finish_reason": "stop"}], **counts}
    with judging(always="body " + json.dumps(body)) as running:
        verdict = instil.score(answered(1), f"{running.url}/v1")[0]
        assert (reason in verdict.reason) if reason else (verdict.score == 75)


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("whole", [0, 3, 5])
def test_a_small_count_proves_nothing_once_a_prompt_was_read_whole(
    kind: str, whole: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server counts new tokens only; the prompt that it had not seen before comes at any place."""
    seen: list[str] = []

    def read(message: str) -> int:
        seen.append(message)
        return len(message) // 4 if len(seen) == whole + 1 else 9

    with judging(read=read) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        judge = "ollama:judge" if kind == "ollama" else f"{server.url}/v1"
        rows = answered(6)
        for number, row in enumerate(rows):
            row["model_response"] += " so" * number  # later ones are longer
        assert [verdict.reason for verdict in instil.score(rows, judge, concurrency=1)] == [""] * 6


def test_a_prompt_that_fills_half_of_what_was_read_of_a_shorter_one_was_cut() -> None:
    def message(words: int) -> ModelRequest:
        return ModelRequest("word " * words, None, 1, 2048)

    attention = Attention()
    assert not unread(Reply("85", prompt_tokens=1900), message(1500), attention=attention)
    assert unread(Reply("85", prompt_tokens=1026), message(3000), attention=attention)
    assert not unread(Reply("85", prompt_tokens=100), message(3000), attention=attention)
    assert not unread(Reply("85", prompt_tokens=1000), message(1500), attention=attention)
    assert unread(Reply("85", prompt_tokens=100), ModelRequest("word " * 3000, None, 1, 8192), attention=attention)


@pytest.mark.parametrize(("models", "wanted", "warned"), [
    (("a/b",), "a/b:free", False), (("*",), "gpt-4o", False), (("openai/*",), "openai/gpt-4o", False),
    (("llama3:latest",), "llama3", False), (("models/gemini-2.0-flash",), "gemini-2.0-flash", False),
    (("other",), "judge", True), ((), "judge", True), ((), "", True),
])  # fmt: skip
def test_a_model_that_is_not_listed_is_asked(
    models: tuple[str, ...], wanted: str, warned: bool, tmp_path: Path
) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(2)))
    with judging(models=models) as server:
        said: list[str] = []
        judge = f"{server.url}/v1" + (f"#{wanted}" if wanted else "")
        with opened(judge, ScoreOptions(), said.append):
            assert bool(said) == warned
        assert score_path(file, judge)["said"].coverage == 1
        assert {body["model"] for body in server.asked} == {wanted or "default"}


@pytest.mark.parametrize("status", [401, 403, 404, 405, 500, 502])
@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_a_list_that_is_refused_is_no_hindrance(kind: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with judging(listing=status) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        judge = "ollama:judge" if kind == "ollama" else f"{server.url}/v1#judge"
        assert instil.score(answered(1), judge)[0].score is not None
        server.always = 'status 404 {"error":"no model judge"}'
        with pytest.raises(JudgeError, match="does not have it") as caught:
            instil.score(answered(1), judge)
        assert ("does not list its models" in str(caught.value)) == (kind == "ollama" or status not in (404, 405))


def test_the_command_line_warns_of_a_model_that_is_not_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from instil.cli import app

    (tmp_path / "said.json").write_text(json.dumps(answered(2)))
    with judging() as server:
        app(["score", str(tmp_path / "said.json"), "--judge", f"{server.url}/v1#jugde"], standalone_mode=False)
        said = capsys.readouterr().err
        with pytest.warns(UserWarning, match="lists no model 'jugde'"):
            instil.score(answered(1), f"{server.url}/v1#jugde")
    assert "lists no model 'jugde'; there: judge; did you mean judge?" in said


def test_a_sweep_says_what_it_found_of_its_judge(capsys: pytest.CaptureFixture[str]) -> None:
    with judging() as server:
        run: Any = SimpleNamespace(settings=SimpleNamespace(score=ScoreOptions()))
        file: Any = SimpleNamespace(judge=f"{server.url}/v1#jugde", runs=[run])
        _check_judge(file, Screen())
    assert "lists no model 'jugde'" in capsys.readouterr().err


@pytest.mark.parametrize("said", ["[THINK]I'd give it 1.[/THINK]", '{"score": 4}', "Score: 1 (max 10)"])
def test_a_score_that_would_be_read_differently_now_is_asked_for_anew(said: str, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(2)))
    with judging() as server:
        score_path(file, f"{server.url}/v1")
        journal = file.with_suffix(".journal")
        kept = [json.loads(line) for line in journal.read_text().splitlines()]
        kept[1] |= {"score": 0.0, "said": said}
        journal.write_text("".join(json.dumps(line) + "\n" for line in kept))
        found = score_path(file, f"{server.url}/v1")["said"]
        assert (found.found, found.asked) == (1, 1)


LOOSE = {
    '{"a": "x", }': {"a": "x"}, "{'a': 'x'}": {"a": "x"}, "{'a': 'It's so', 'b': True, 'c': None}":
    {"a": "It's so", "b": True, "c": None}, '{a: 1}': {"a": 1}, '{"a": 1, // one\n "b": 2}': {"a": 1, "b": 2},
    "{'a': 1, # one\n}": {"a": 1}, '/* so */ {"a": [1, 2,],}': {"a": [1, 2]}, '```json\n{"a": 1}\n```': {"a": 1},
    '```{"a": 1}```': {"a": 1}, "~~~JSON5\r\n{'a': 1}\r\n~~~": {"a": 1}, '{"a": "x\ny"}': {"a": "x\ny"},
    "{\u201ca\u201d: \u201cx\u201d}": {"a": "x"}, "{'a': 'say \"x\"'}": {"a": 'say "x"'},
}  # fmt: skip
NONE = (
    '{"a": "x"', '{"a": 1', '{"a": ', "{'a': 'x", '{"a": "x"} more', '{"a": 1}{"a": 2}', "{a: so it is}", '{"a" 1}',
    "{" * 500, '{"a":' * 500, '{"a": "x" "b": 1}', "", "{'a': 'x', b'}",
)  # fmt: skip


@pytest.mark.parametrize("text", LOOSE)
def test_json_as_models_write_it(text: str) -> None:
    assert whole_json(text) == LOOSE[text]


@pytest.mark.parametrize("text", NONE)
def test_json_that_is_not_whole_is_none(text: str) -> None:
    with pytest.raises(NotJson):
        whole_json(text)


def test_fields_of_loose_json_and_of_json_that_does_not_end() -> None:
    assert read_fields("```json\n{'passive': 'It was seen.',}\n```", ["passive"]) == ({"passive": "It was seen."}, "")
    assert read_fields('{"passive": "It was', ["passive"]) == (None, "the reply is JSON that does not end")
