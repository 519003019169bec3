"""Judges that fail in every way of the catalogue (faults 26 to 34): retried, refused or stopped; never lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.ask import patience as asking
from instil.ask.journal import Journal
from instil.errors import DataError, JudgeError, RunFolderTaken, StoppedEarly
from instil.recipes.score import score_path
from instil.settings.asking import ScoreOptions
from tests.faults.judge_server import JudgeServer, judging
from tests.processes import Command

DATE = format_datetime(datetime.now(UTC) + timedelta(days=2), usegmt=True)


def answered(count: int) -> list[dict[str, str]]:
    """Rows with an answer each."""
    return [
        {"instruction": f"Double {n}.", "input": "", "output": f"It is {2 * n}.", "model_response": f"{2 * n + n % 3}"}
        for n in range(count)
    ]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "INSTIL_API_KEY", "OLLAMA_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judging() as running:
        yield running


def judge_of(server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The judge's name for one of the two interfaces."""
    if kind == "ollama":
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        return "ollama:judge"
    return f"{server.url}/v1"


PASSING = [
    "status 502",
    'status 503 {"error":"server busy, maximum pending requests exceeded"}',
    "status 500 oops",
    "retry-after 0",
    "retry-after nonsense",
    "hang 4",
    "drip 5",
    "drip-head 5",
    "torn",
    "body <html>hello</html>",
    "body null",
    "body [1]",
    "body " + "[" * 100_000,
    'body {"error":"the model runner has crashed"}',
    "bytes 7b22fffe227d",
    "gigabyte",
    "gzip",
]


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("fault", PASSING, ids=lambda fault: fault[:24])
def test_what_may_pass_is_asked_again_and_nothing_is_lost(
    server: JudgeServer, kind: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = {1: fault}
    started = time.monotonic()
    verdicts = instil.score(answered(3), judge_of(server, kind, monkeypatch), concurrency=1, timeout=1.5)
    assert [verdict.score is not None for verdict in verdicts] == [True] * 3
    assert len(server.asked) == 4
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_one_row_that_always_fails_has_its_reason_and_the_others_their_scores(
    server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults = dict.fromkeys((1, 2), "status 502")
    verdicts = instil.score(answered(4), judge_of(server, kind, monkeypatch), concurrency=1, tries=2)
    assert [verdict.score is None for verdict in verdicts] == [False, True, False, False]
    assert verdicts[1].reason == "the judge failed: the server answered 502"


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_after_five_failures_in_a_row_it_stops_and_keeps_what_it_has(
    server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.faults = dict.fromkeys(range(7, 100), "status 503")
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(30)))
    judge = judge_of(server, kind, monkeypatch)
    with pytest.raises(StoppedEarly, match=r"503.* 7 of 30 verdicts are kept; the same command"):
        score_path(file, judge, ScoreOptions(concurrency=1, tries=2))
    times = list(Counter(server.messages()).values())  # of each row, in the order of asking
    assert times == [1] * 7 + [2] * 5
    server.faults = {}
    found = score_path(file, judge, ScoreOptions(concurrency=1))["said"]
    assert (found.found, found.asked, found.coverage) == (7, 23, 1.0)


@pytest.mark.parametrize(("fault", "words"), [
    ('status 401 {"error":{"message":"Incorrect API key provided"}}', "refuses the key.*Incorrect API key"),
    ("""status 404 {"error":"model 'judge' not found"}""", "does not have it.*not found"),
    ("status 307", "another address"),
    ('status 429 {"error":{"message":"You exceeded your quota","code":"insufficient_quota"}}', "quota"),
])  # fmt: skip
def test_what_cannot_pass_stops_at_once(server: JudgeServer, fault: str, words: str) -> None:
    server.always = fault
    with pytest.raises(JudgeError, match=words):
        instil.score(answered(20), f"{server.url}/v1", concurrency=1)
    assert len(server.asked) == 1


def test_a_wait_that_the_server_asks_for_is_kept(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(asking, "_sleep", lambda stopped, seconds: slept.append(seconds))
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    server.faults = {0: "retry-after 7", 1: f"retry-after {soon}"}
    instil.score(answered(1), f"{server.url}/v1")
    assert slept[0] == 7
    assert 50 < slept[1] <= 60


@pytest.mark.parametrize("wait", ["100000", DATE], ids=["seconds", "a date"])
def test_a_wait_that_is_too_long_stops_with_the_work_kept(server: JudgeServer, wait: str) -> None:
    server.faults = {3: f"retry-after {wait}"}
    with pytest.raises(StoppedEarly, match=r"429.* 3 of 9 verdicts are kept"):
        instil.score(answered(9), f"{server.url}/v1", concurrency=1)
    assert len(server.asked) == 4


@pytest.mark.parametrize(("said", "score"), [
    ("I'd rate 85 out of 100.", 85), ("85/100", 85), ("**85**", 85), ('```json\n{"score": 85}\n```', 85), ("0", 0),
    ("150", "150 is not within 0 to 100"), ("-5", "-5 is not within"), ("\u0668\u0665", "digits other than 0 to 9"),
    ("80-90", "a range"),
    ("80 90", "no number is said to be the score"), ("", "empty"), ("<think>85", "thought"), ("fine", "no number"),
])  # fmt: skip
@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_a_reply_is_a_score_or_unscored_with_its_reason(
    server: JudgeServer, kind: str, said: str, score: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.say = lambda message, number: said
    verdict = instil.score(answered(1), judge_of(server, kind, monkeypatch), prompt="book")[0]
    if isinstance(score, int):
        assert (verdict.score, verdict.reason) == (score, "")
    else:
        assert verdict.score is None
        assert score in verdict.reason
    assert verdict.said == said


@pytest.mark.parametrize("content", [None, 85, [], {}])
def test_content_that_is_no_text_is_no_score(server: JudgeServer, content: Any) -> None:
    server.always = "body " + json.dumps({"choices": [{"message": {"content": content}}]})
    assert instil.score(answered(1), f"{server.url}/v1", prompt="book")[0].score is None


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_a_reply_that_was_cut_is_unscored(server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    server.always = "cut"
    verdict = instil.score(answered(1), judge_of(server, kind, monkeypatch), prompt="book")[0]
    assert verdict.score is None
    assert "score.max_tokens" in verdict.reason


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_a_prompt_that_was_cut_is_noticed(server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = answered(2)
    rows[1]["model_response"] = "word " * 3000
    server.read = lambda message: min(len(message) // 4, 1026)
    verdicts = instil.score(rows, judge_of(server, kind, monkeypatch))
    assert verdicts[0].score is not None
    assert verdicts[1].score is None
    assert "1026 tokens of a prompt of" in verdicts[1].reason
    assert "score.num_ctx" in verdicts[1].reason


def test_a_prompt_that_the_server_refuses_is_unscored_and_the_rest_goes_on(server: JudgeServer) -> None:
    long = 'status 400 {"error":{"message":"the input length exceeds the context length"}}'
    server.faults = dict.fromkeys(range(8), long)
    verdicts = instil.score(answered(10), f"{server.url}/v1", concurrency=1)
    assert [verdict.score is None for verdict in verdicts] == [True] * 8 + [False] * 2
    assert "score.num_ctx" in verdicts[0].reason


def test_failures_are_never_kept(server: JudgeServer, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(6)))
    options = ScoreOptions(concurrency=1, tries=1)
    server.faults = {1: "status 502", 3: "say none of your business"}
    first = score_path(file, f"{server.url}/v1", options)["said"]
    assert set(first.unscored) == {1, 3}
    assert set(first.failed) == {1}
    again = score_path(file, f"{server.url}/v1", options)["said"]
    assert (again.asked, again.found, again.unscored) == (2, 4, {})


@pytest.mark.slow
def test_a_judge_that_dies_at_row_57_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / name / "said.json" for name in ("whole", "broken")]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps(answered(110)))
    with judging() as server:
        judge = judge_of(server, "ollama", monkeypatch)
        score_path(files[0], judge)
    with judging(faults={56: "die"}) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(StoppedEarly, match="56 of 110 verdicts are kept"):
            score_path(files[1], judge)
        assert not list(files[1].parent.glob("*.jsonl"))
    with judging() as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        score_path(files[1], judge)
        assert len(server.asked) == 54
    whole, broken = (next(file.parent.glob("*.jsonl")).read_bytes() for file in files)
    assert whole == broken
    assert whole.count(b"\n") == 110


def client(file: Path, *more: str, env: dict[str, str] | None = None) -> Command:
    """The command line, as a process of its own."""
    return Command("score", file, *more, env={**os.environ, **(env or {})})


@pytest.mark.slow
def test_a_client_killed_at_row_57_goes_on_where_it_was(tmp_path: Path) -> None:
    files = [tmp_path / name / "said.json" for name in ("whole", "broken")]
    for file in files:
        file.parent.mkdir()
        file.write_text(json.dumps(answered(110)))
    with judging() as server:
        judge = f"{server.url}/v1"
        whole_run = client(files[0], "--judge", judge, "-s", "score.concurrency=1")
        whole_run.communicate()
        assert whole_run.returncode == 0
        server.asked.clear()
        server.faults = {56: "hang 30"}
        process = client(files[1], "--judge", judge, "-s", "score.concurrency=1")
        while len(server.asked) < 57:
            time.sleep(0.01)
            assert process.poll() is None
        process.kill()
        process.communicate()
        journal = files[1].with_suffix(".journal")
        lines = journal.read_bytes()
        assert lines.count(b"\n") == 56
        journal.write_bytes(lines + b'{"key": "torn')
        server.asked.clear()
        server.faults = {}
        again = client(files[1], "--judge", judge, "-s", "score.concurrency=1")
        _, said = again.communicate()
        assert again.returncode == 0
        assert len(server.asked) == 54
        assert "1 damaged line" in said
    whole, broken = (next(file.parent.glob("*.jsonl")).read_bytes() for file in files)
    assert whole == broken


def test_a_signal_ends_it_at_once_while_the_server_hangs(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(8)))
    with judging(faults={3: "hang 60"}) as server:
        process = client(file, "--judge", f"{server.url}/v1", "-s", "score.concurrency=1")
        while len(server.asked) < 4:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, said = process.communicate()
        assert process.returncode == 130
        assert time.monotonic() - started < 10
        assert "Traceback" not in said


@pytest.mark.parametrize(("faults", "code", "words"), [
    ({"always": "status 502"}, 4, "stopped answering"),
    ({"always": "gigabyte"}, 4, "longer than 1 MiB"),
    ({"always": "body {"}, 4, "not JSON"),
    ({"always": "die"}, 4, "stopped answering"),
    ({"always": 'status 401 {"error":"bad key sk-secret-123"}'}, 2, "refuses the key"),
    ({"always": "say no"}, 1, "only 0 of 8 rows have a score"),
    ({"faults": {5: "status 500"}}, 4, "1 row could not be judged"),
])  # fmt: skip
def test_no_traceback_and_no_key_reaches_the_user(
    tmp_path: Path, faults: dict[str, Any], code: int, words: str
) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(8)))
    with judging(**faults) as server:
        process = client(
            file, "--judge", f"{server.url}/v1", "-s", "score.tries=1", env={"INSTIL_API_KEY": "sk-secret-123"}
        )
        out, said = process.communicate()
        assert set(server.keys) == {"Bearer sk-secret-123"}
    assert process.returncode == code
    assert words in said
    assert "Traceback" not in said
    everything = out + said + "".join(path.read_text() for path in tmp_path.iterdir())
    assert "sk-secret" not in everything


def test_a_second_scoring_of_the_same_answers_is_refused(server: JudgeServer, tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(3)))
    with Journal(file.with_suffix(".journal")), pytest.raises(RunFolderTaken, match="another process"):
        score_path(file, f"{server.url}/v1")


def test_lines_that_cannot_be_read_are_left_out_and_the_rest_counts(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.journal"
    with Journal(path) as journal:
        journal.add("a", {"score": 1.0}, counts=True)
        journal.add("b", {"score": None}, counts=False)
    path.write_bytes(path.read_bytes() + b'nonsense\n[1]\n{"key": 5, "counts": true}\n{"key": "c", "cou')
    with Journal(path) as journal:
        assert journal.damaged == 3
        assert journal.find("a") == {"score": 1.0}
        assert journal.find("b") is None
        journal.add("c", {"score": 2.0}, counts=True)
    with Journal(path) as journal:
        assert journal.find("c") == {"score": 2.0}


def test_every_verdict_is_on_disk_before_the_next_is_waited_for(
    server: JudgeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(handle), real(handle))[1])
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(5)))
    score_path(file, f"{server.url}/v1")
    assert len(synced) >= 5


def test_rows_that_are_refused_do_not_stand_in_the_way_of_others(server: JudgeServer) -> None:
    server.faults = dict.fromkeys(range(7), 'status 400 {"error":{"message":"content filter"}}')
    verdicts = instil.score(answered(12), f"{server.url}/v1", concurrency=1)
    assert [verdict.score is None for verdict in verdicts] == [True] * 7 + [False] * 5
    assert "content filter" in verdicts[0].reason


def test_an_error_that_merely_mentions_a_parameter_changes_nothing(server: JudgeServer) -> None:
    words = "maximum context length is 4096 tokens; reduce the length of the messages or max_tokens"
    server.faults = {0: f'status 400 {{"error":{{"message":"{words}"}}}}'}
    instil.score(answered(2), f"{server.url}/v1", concurrency=1)
    assert [body["max_tokens"] for body in server.asked] == [512, 512]


@pytest.mark.parametrize("kind", ["ollama", "openai"])
def test_half_a_surrogate_pair_in_a_reply_can_be_written_down(
    server: JudgeServer, kind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(1)))
    server.say = lambda message, number: '{"score": 4} \ud800'
    found = score_path(file, judge_of(server, kind, monkeypatch))["said"]
    assert (found.verdicts[0].score, found.verdicts[0].said) == (75, '{"score": 4} ?')
    assert score_path(file, judge_of(server, kind, monkeypatch))["said"].verdicts == found.verdicts


@pytest.mark.parametrize("value", [1000, 1e308, float("nan"), float("inf"), "x", True, None])
def test_probabilities_that_are_none_are_not_used(server: JudgeServer, value: Any) -> None:
    server.say = lambda message, number: '{"score": 4}'
    server.logprobs = lambda said: [{"token": "4", "top_logprobs": [{"token": "4", "logprob": value}]}]
    with pytest.raises(JudgeError, match=r"leave out score\.weighted"):
        instil.score(answered(1), f"{server.url}/v1", weighted=True)


def test_a_key_that_the_server_echoes_is_not_shown(server: JudgeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTIL_API_KEY", "sk-SECRET-of-twenty-one")
    server.always = 'body {"error":"bad key sk-SECRET-of-twenty-one"}'
    verdict = instil.score(answered(1), f"{server.url}/v1", tries=1)[0]
    assert "bad key (key)" in verdict.reason
    server.always = "say 85 sk-SECRET-of-twenty-one"
    assert "SECRET" not in instil.score(answered(1), f"{server.url}/v1", prompt="book")[0].said


@pytest.mark.parametrize("key", ["score", "no-key-required"])
def test_a_key_that_is_a_word_stays_in_the_replies(
    server: JudgeServer, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    """Servers that ask for none are given any word."""
    monkeypatch.setenv("INSTIL_API_KEY", key)
    server.always = f"say 85 is the {key}"
    assert instil.score(answered(1), f"{server.url}/v1", prompt="book")[0].said == f"85 is the {key}"


@pytest.mark.parametrize(("variable", "value", "judge"), [
    ("ALL_PROXY", "socks5://127.0.0.1:1", "http://example.invalid/v1#m"),
    ("HTTP_PROXY", "foo://x:1", "http://example.invalid/v1#m"), ("X", "", "http://a..b/v1#m"),
    ("X", "", f"http://{'a' * 70}.example/v1#m"),
])  # fmt: skip
def test_addresses_and_proxies_that_cannot_be(
    variable: str, value: str, judge: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(JudgeError):
        instil.score(answered(1), judge)


def test_a_file_that_is_no_journal_is_left_alone(server: JudgeServer, tmp_path: Path) -> None:
    (tmp_path / "said.json").write_text(json.dumps(answered(2)))
    for text in (json.dumps(answered(2)), "my notes\n", '{"a": 1}\n{"b": 2}\n'):
        (tmp_path / "said.journal").write_text(text)
        with pytest.raises(DataError, match="is no journal, so it is left alone"):
            score_path(tmp_path / "said.json", f"{server.url}/v1")
        assert (tmp_path / "said.journal").read_text() == text
    assert server.asked == []


def test_files_and_judges_of_like_names_do_not_overwrite_one_another(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl", "a"):
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in answered(2)))
    with judging(models=("x/y:latest", "x-y:latest")) as server:
        for name in ("a.json", "a.jsonl", "a"):
            for judge in ("x/y", "x-y"):
                score_path(tmp_path / name, f"{server.url}/v1#{judge}")
    assert len(list(tmp_path.glob("a*.http*.jsonl"))) == 6
    long = tmp_path / ("n" * 245 + ".json")
    long.write_text(json.dumps(answered(1)))
    with judging() as server:
        assert score_path(long, f"{server.url}/v1")[long.stem].coverage == 1


@pytest.mark.parametrize("change", [{"metrics": None}, {"score": "4"}, {"score": None}, {"score": True}, {"said": 5}])
def test_lines_that_were_edited_are_asked_for_anew(server: JudgeServer, tmp_path: Path, change: dict[str, Any]) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(3)))
    first = score_path(file, f"{server.url}/v1")["said"]
    journal = tmp_path / "said.journal"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    lines[1].update(change)
    lines[2].pop("score")
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = score_path(file, f"{server.url}/v1")["said"]
    assert (again.asked, again.verdicts) == (2, first.verdicts)


def test_a_full_disk_stops_it_with_the_work_kept(tmp_path: Path) -> None:
    file = tmp_path / "said.json"
    file.write_text(json.dumps(answered(30)))
    with judging() as server:
        limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000)); import signal; "
        limited += "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from instil.cli import main; main()"
        command = [sys.executable, "-c", limited, "score", str(file), "--judge", f"{server.url}/v1"]
        done = subprocess.run([*command, "-s", "score.concurrency=1"], capture_output=True, text=True, check=False)
        assert done.returncode == 4, done.stderr
        assert "said.journal: cannot be written: File too large" in done.stderr
        before = len(server.asked)
        assert score_path(file, f"{server.url}/v1")["said"].found >= 5
        assert len(server.asked) - before < 30
