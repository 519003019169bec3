"""Texts from a model: each asked for once, cut and empty ones named, and a stop that loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from instil.ask.journal import Journal
from instil.errors import JudgeError, SettingsError, StoppedEarly
from instil.settings.asking import MakeOptions
from instil.synthesis.writing import TextRequest, TextResult, write_all, writer
from tests.faults.judge_server import JudgeServer

ONE = MakeOptions(concurrency=1, tries=2)


def wanted(count: int) -> list[TextRequest]:
    """Requests that differ."""
    return [TextRequest(n, f"request {n}", 7 + n, "test") for n in range(count)]


def name_of(server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The model's name behind one of the two interfaces."""
    if kind == "ollama":
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        return "ollama:judge"
    return f"{server.url}/v1"


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_texts_come_in_the_order_of_the_requests_and_only_once(
    server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[TextResult] = []
    with writer(name_of(server, kind, monkeypatch), MakeOptions(concurrency=3)) as model:
        for found in (False, True):
            with Journal(tmp_path / "j") as journal:
                written = write_all(model, wanted(9), MakeOptions(concurrency=3), journal, seen.append)
            assert [one.text for one in written] == [f"Said to request {n}." for n in range(9)]
            assert [one.row for one in written] == list(range(9))
            assert all(one.found is found for one in written)
    assert len(server.asked) == 9
    assert len(seen) == 18


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_a_raw_text_goes_as_it_is(server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = TextRequest(0, "<|im_start|>user\n", 5, "test", raw=True, stop=("<|im_end|>",))
    with writer(name_of(server, kind, monkeypatch), ONE) as model:
        assert write_all(model, [one], ONE, Journal())[0].text == "Said to <|im_start|>user\n."
    body = server.asked[0]
    assert body["prompt"] == "<|im_start|>user\n"
    assert "messages" not in body
    if kind == "ollama":
        assert body["raw"] is True
        assert body["options"]["stop"] == ["<|im_end|>"]
        assert body["options"]["seed"] == 5
        assert body["options"]["temperature"] == 0.7
    else:
        assert (body["stop"], body["seed"], body["temperature"]) == (["<|im_end|>"], 5, 0.7)


def test_a_server_without_raw_completion_is_named(server: JudgeServer) -> None:
    server.always = 'status 404 {"error":"page not found"}'
    with writer(f"{server.url}/v1", ONE) as model, pytest.raises(JudgeError, match=r"raw text needs .*/v1/completions"):
        write_all(model, [TextRequest(0, "<user>", 5, "test", raw=True)], ONE, Journal())


@pytest.mark.parametrize(("fault", "reason"), [
    ("cut", "the reply was cut off; raise make.max_tokens"),
    ("say ", "the reply is empty"),
    ("say <think>long and", "the reply holds a thought and no text"),
])  # fmt: skip
def test_a_reply_without_a_whole_text_has_a_reason_and_is_final(
    server: JudgeServer, fault: str, reason: str, tmp_path: Path
) -> None:
    server.faults = {1: fault}
    with writer(f"{server.url}/v1", ONE) as model:
        for _ in range(2):
            with Journal(tmp_path / "j") as journal:
                written = write_all(model, wanted(3), ONE, journal)
            assert [(one.text is None, one.reason, one.failed) for one in written] == [
                (False, "", False), (True, reason, False), (False, "", False)
            ]  # fmt: skip
        assert len(server.asked) == 3
        with Journal(tmp_path / "j") as journal:  # with more room it may come out otherwise
            again = write_all(model, wanted(3), ONE.changed(num_ctx=4096), journal)
        assert again[1].text == "Said to request 1."
    assert len(server.asked) == 4


def test_a_thought_is_no_part_of_the_text(server: JudgeServer) -> None:
    server.say = lambda message, number: "<think>first?</think>\nThe task."
    with writer(f"{server.url}/v1", ONE) as model:
        assert write_all(model, wanted(1), ONE, Journal())[0].text == "The task."


def test_equal_requests_are_one(server: JudgeServer) -> None:
    twice = [TextRequest(4, "same", 1, "test"), TextRequest(9, "same", 1, "test"), TextRequest(9, "same", 2, "test")]
    with writer(f"{server.url}/v1", ONE) as model:
        assert [one.row for one in write_all(model, twice, ONE, Journal())] == [4, 9, 9]
    assert len(server.asked) == 2


def test_what_shapes_a_reply_is_part_of_its_key(server: JudgeServer) -> None:
    with writer(f"{server.url}/v1", ONE) as model:
        journal = Journal()
        for options in (ONE, ONE.changed(temperature=0.9), ONE.changed(max_tokens=9), ONE.changed(timeout=9.0)):
            write_all(model, wanted(1), options, journal)
        write_all(model, [TextRequest(0, "request 0", 7, "test", raw=True)], ONE, journal)
    assert len(server.asked) == 4


def test_it_stops_when_the_model_is_gone_and_goes_on(server: JudgeServer, tmp_path: Path) -> None:
    server.faults = dict.fromkeys(range(4, 99), "status 503")
    with writer(f"{server.url}/v1", ONE) as model:
        with Journal(tmp_path / "j") as journal, pytest.raises(StoppedEarly, match="4 of 20 replies are kept"):
            write_all(model, wanted(20), ONE, journal)
        server.faults = {}
        with Journal(tmp_path / "j") as journal:
            assert all(one.text for one in write_all(model, wanted(20), ONE, journal))
    messages = server.messages()
    assert [messages.count(f"request {n}") for n in range(4)] == [1] * 4  # what came is not asked for again


def test_one_that_fails_is_asked_for_again_and_one_that_is_refused_has_the_servers_reason(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.faults = {1: "status 502", 2: "status 502", 3: 'status 400 {"error":"exceeds the available context size"}'}
    with writer(f"{server.url}/v1", ONE) as model:
        with Journal(tmp_path / "j") as journal:
            written = write_all(model, wanted(4), ONE, journal)
        assert [one.failed for one in written] == [False, True, False, False]
        assert "raise make.num_ctx" in written[2].reason
        with Journal(tmp_path / "j") as journal:
            assert all(one.text for one in write_all(model, wanted(4), ONE, journal))
    assert len(server.asked) == 5 + 2


@pytest.mark.parametrize(("name", "words"), [
    ("offline", "no model behind 'offline'; known: ollama:MODEL"), ("olama:x", "did you mean ollama"),
    ("ollama:", "no model behind"), ("http://127.0.0.1:9/v1", "llama-server -m FILE"),
])  # fmt: skip
def test_a_model_that_cannot_be_is_refused_in_one_line(name: str, words: str) -> None:
    with pytest.raises(JudgeError, match=words), writer(name, ONE):
        pass


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(SettingsError, match="did you mean temperature"):
        MakeOptions().changed(temprature=1.0)
    with pytest.raises(SettingsError, match="less than or equal to 2"):
        MakeOptions().changed(temperature=3.0)
