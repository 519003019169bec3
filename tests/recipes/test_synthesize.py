"""Making data from the command line's side: files, resumption in the same bytes, and every end with its message."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from instil.ask import patience as asking
from instil.data.sources import read_source
from instil.errors import InstilError, JudgeError, RunFolderTaken, SettingsError, StoppedEarly, UserError
from instil.recipes.synthesize import WAYS, Synthesized, check_outcome, report_file, synthesize
from instil.screen import Advance, Screen
from instil.settings.asking import MakeOptions
from instil.synthesis.writing import CALLS
from tests.faults.judge_server import JudgeServer, judging, message_of
from tests.synthesis.replies import messages, telling

ONE = MakeOptions(concurrency=1, tries=2)
ROWS = [{"instruction": f"Say what {n} is doubled.", "input": "", "output": f"The sum is {2 * n}."} for n in range(9)]


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "INSTIL_API_KEY", "OLLAMA_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[JudgeServer]:
    with judging() as running:
        telling(running)
        yield running


@pytest.fixture
def rows_file(tmp_path: Path) -> str:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps(ROWS))
    return str(file)


def made(server: JudgeServer, way: str, out: Path, rows: str, **how: Any) -> Synthesized:
    """Rows by a way, twelve at most."""
    options = how.pop("options", ONE)
    count = how.pop("count", 12)
    template = "chatml" if way == "magpie" else "auto"
    model = how.pop("model", f"{server.url}/v1")
    return synthesize(way, model, out, seeds=rows, count=count, chat_template=template, options=options, **how)


@pytest.mark.parametrize("kind", ["ollama", "openai"])
@pytest.mark.parametrize("way", WAYS)
def test_rows_are_made_and_can_be_trained_on(
    server: JudgeServer, way: str, kind: str, tmp_path: Path, rows_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.url)
    model = "ollama:judge" if kind == "ollama" else f"{server.url}/v1"
    result = made(server, way, tmp_path / "new.json", rows_file, model=model)
    wanted = {"self-instruct": 12, "magpie": 12, "reflect": 9, "passive": 18}[way]
    source = read_source(tmp_path / "new.json")
    assert len(source) == len(result.rows) == wanted
    assert source.notes == ()  # where rows come from is no key that nobody knows
    rows = json.loads((tmp_path / "new.json").read_text())
    for row in rows:
        assert list(row) == ["instruction", "input", "output", "provenance"]
        origin = row["provenance"]
        assert origin["way"] in (way, "kept")
        if origin["way"] != "kept":
            assert origin["made_by"] == (
                "ollama:judge@sha-judge:latest" if kind == "ollama" else f"{server.url}/v1#judge"
            )
            assert {"prompt", "seed", "from"} <= origin.keys()
    report = json.loads(report_file(tmp_path / "new.json").read_text())
    assert (report["way"], report["made"], report["left_out"]) == (way, result.made, [])
    assert report["given"][rows_file]["rows"] == 9
    check_outcome(result, 12)


@pytest.mark.parametrize("way", WAYS)
def test_a_model_that_dies_and_comes_back_ends_in_the_same_bytes(
    server: JudgeServer, way: str, tmp_path: Path, rows_file: str
) -> None:
    made(server, way, tmp_path / "whole.json", rows_file)
    whole = messages(server)
    server.asked.clear()
    server.faults = dict.fromkeys(range(5, 99), "status 503")
    with pytest.raises(StoppedEarly, match=r"503.* 5 replies are kept; the same command asks for the rest"):
        made(server, way, tmp_path / "broken.json", rows_file)
    assert not (tmp_path / "broken.json").exists()
    time.sleep(0.1)  # for a request that was on its way
    server.faults = {}
    server.asked.clear()
    result = made(server, way, tmp_path / "broken.json", rows_file)
    assert messages(server) == whole[5:]
    assert (result.found, result.asked) == (5, len(whole) - 5)
    for name in (".json", ".made.json"):
        assert (tmp_path / f"broken{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()
    again = made(server, way, tmp_path / "broken.json", rows_file)
    assert again.asked == 0
    assert (tmp_path / "broken.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


class FailingAt(dict[int, str]):
    """Faults for one request, however often it is made."""

    def __init__(self, server: JudgeServer, message: str) -> None:
        super().__init__()
        self.server, self.message = server, message

    def get(self, number: int, default: Any = "") -> Any:
        return "status 500" if message_of(self.server.asked[number]) == self.message else default


def test_a_request_that_always_fails_is_given_up_at_last(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    made(server, "self-instruct", tmp_path / "whole.json", rows_file, count=6)
    server.faults = FailingAt(server, messages(server)[2][0])
    for _ in range(CALLS - 1):
        with pytest.raises(StoppedEarly, match=r"500.*the same command asks for the rest"):
            made(server, "self-instruct", tmp_path / "new.json", rows_file, count=6)
    for _ in range(2):  # given up once and for all
        result = made(server, "self-instruct", tmp_path / "new.json", rows_file, count=6)
        assert len(result.rows) == 6
        assert [one.number for one in result.rejected] == [2]
        assert "the model failed 3 times: the server answered 500" in result.rejected[0].reason


@pytest.mark.parametrize("workers", [1, 4])
def test_an_outage_gives_nothing_up(server: JudgeServer, tmp_path: Path, rows_file: str, workers: int) -> None:
    """A model that answers nothing at all is not there, however often the command is given."""
    options = MakeOptions(concurrency=workers, tries=1)
    made(server, "self-instruct", tmp_path / "whole.json", rows_file, count=6)
    server.always = "status 503"
    for _ in range(CALLS + 2):
        with pytest.raises(StoppedEarly):
            made(server, "self-instruct", tmp_path / "new.json", rows_file, count=6, options=options)
    server.always = ""
    made(server, "self-instruct", tmp_path / "new.json", rows_file, count=6, options=options)
    assert (tmp_path / "new.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_a_given_row_is_never_given_up(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    made(server, "passive", tmp_path / "whole.json", rows_file)
    server.faults = FailingAt(server, messages(server)[2][0])
    for _ in range(CALLS + 1):
        with pytest.raises(StoppedEarly):
            made(server, "passive", tmp_path / "new.json", rows_file)


def test_more_rows_go_on_from_those_there_are(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    made(server, "self-instruct", tmp_path / "new.json", rows_file, count=4)
    few = json.loads((tmp_path / "new.json").read_text())
    result = made(server, "self-instruct", tmp_path / "new.json", rows_file, count=7)
    assert (result.found, result.asked) == (4, 3)
    assert json.loads((tmp_path / "new.json").read_text())[:4] == few


def test_what_exists_is_not_repeated(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    made(server, "self-instruct", tmp_path / "first.json", rows_file, count=4)
    result = made(
        server, "self-instruct", tmp_path / "new.json", rows_file, count=4, existing=[str(tmp_path / "first.json")]
    )
    assert {one.reason for one in result.rejected} == {
        f"it repeats row {n} of {tmp_path / 'first.json'}" for n in range(4)
    }
    assert result.reasons == {"it repeats another row": 4}
    report = json.loads(report_file(tmp_path / "new.json").read_text())
    assert [one["number"] for one in report["left_out"]] == [0, 1, 2, 3]
    assert all(one["text"] for one in report["left_out"])


def test_given_rows_that_cannot_be_used_are_refused_or_named(
    server: JudgeServer, tmp_path: Path, rows_file: str
) -> None:
    Path(rows_file).write_text(json.dumps([{"instruction": "Say it.", "output": ""}, *ROWS]))  # as Alpaca has them
    with pytest.raises(UserError, match=r"row 0: output is empty(.|\n)*data\.skip_bad=true"):
        made(server, "passive", tmp_path / "new.json", rows_file)
    subprocess.run(
        [*command(server, tmp_path / "new.json", rows_file), "--set", "data.skip_bad=true"], check=True, timeout=60
    )
    report = json.loads(report_file(tmp_path / "new.json").read_text())
    assert report["given"][rows_file]["skipped"] == ["row 0: output is empty"]
    rows = json.loads((tmp_path / "new.json").read_text())
    assert 0 not in {number for row in rows for number in row["provenance"]["from"]}


def test_fewer_rows_than_wanted_are_written_and_said(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    server.say = lambda message, number: "nothing of the kind"
    result = made(server, "self-instruct", tmp_path / "new.json", rows_file, count=2)
    with pytest.raises(InstilError, match=r"0 of 2 rows, because 10 requests .*; 10 times the reply is not JSON\."):
        check_outcome(result, 2)
    assert json.loads((tmp_path / "new.json").read_text()) == []
    result = made(server, "reflect", tmp_path / "better.json", rows_file)
    with pytest.raises(InstilError, match="nothing was made"):
        check_outcome(result, None)
    kept = json.loads((tmp_path / "better.json").read_text())
    assert [row["output"] for row in kept] == [row["output"] for row in ROWS]  # whole, not their first letters
    assert len(result.rejected) == 18


def test_a_key_that_is_revoked_half_way_keeps_what_came(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    server.faults = {6: 'status 401 {"error":"no"}'}
    with pytest.raises(StoppedEarly, match=r"refuses the key.* 6 replies are kept"):
        made(server, "self-instruct", tmp_path / "new.json", rows_file)
    server.always = 'status 401 {"error":"no"}'  # not by number: a request may still be on its way
    with pytest.raises(JudgeError, match="refuses the key"):
        made(server, "self-instruct", tmp_path / "other.json", rows_file)


@pytest.mark.parametrize(("how", "error", "words"), [
    ({"way": "selfinstruct"}, SettingsError, "did you mean self-instruct"),
    ({"way": "reflect"}, UserError, "say which with --seeds FILE"),
    ({"way": "magpie"}, SettingsError, "--chat-template: llama3"),
    ({"way": "magpie", "what": "answer"}, UserError, "--what is for --way reflect"),
    ({"way": "reflect", "what": "all"}, SettingsError, "known: instruction, answer, both"),
    ({"way": "self-instruct", "count": 0}, UserError, "wanted at least 1"),
    ({"way": "self-instruct", "count": 10**400}, UserError, "at most 10,000,000"),
    ({"way": "self-instruct", "out": Path()}, UserError, "is a folder"),
    ({"way": "passive", "seeds": "starter", "existing": ["starter"]}, UserError, "--existing is for"),
    ({"way": "self-instruct", "chat_template": "nonsense"}, UserError, "--chat-template is for --way magpie"),
    ({"way": "self-instruct", "model": "offline"}, JudgeError, "no model behind 'offline'"),
    ({"way": "self-instruct", "seeds": "nowhere.json"}, UserError, "no such file"),
])  # fmt: skip
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    how: dict[str, Any], error: type[Exception], words: str, tmp_path: Path
) -> None:
    given: dict[str, Any] = {"model": "http://127.0.0.1:9/v1", "out": tmp_path / "new.json", **how}
    with pytest.raises(error, match=words):
        synthesize(**given)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_not_from_here_is_not_written_over(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    with pytest.raises(RunFolderTaken, match="is there already"):
        made(server, "self-instruct", Path(rows_file), rows_file)
    made(server, "self-instruct", tmp_path / "new.json", rows_file, count=1)
    with pytest.raises(RunFolderTaken, match="holds rows of self-instruct"):
        made(server, "passive", tmp_path / "new.json", rows_file)


def test_what_is_read_is_not_written_over(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    out = tmp_path / "new.json"
    made(server, "self-instruct", out, rows_file, count=3)
    before = out.read_bytes()
    with pytest.raises(UserError, match="is read, so"):
        made(server, "self-instruct", out, str(out), count=2)
    with pytest.raises(UserError, match="is read, so"):
        made(server, "self-instruct", out, rows_file, count=2, existing=[str(out)])
    assert out.read_bytes() == before
    rows = tmp_path / "other.made.json"  # where the report would go
    rows.write_text(json.dumps(ROWS))
    with pytest.raises(UserError, match=r"other\.made\.json cannot be written"):
        made(server, "passive", tmp_path / "other.json", str(rows))


def test_jsonl_is_one_row_a_line(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    result = made(server, "self-instruct", tmp_path / "new.jsonl", rows_file, count=3)
    lines = (tmp_path / "new.jsonl").read_text().splitlines()
    assert [json.loads(line)["output"] for line in lines] == [row.example.output for row in result.rows]
    assert len(read_source(tmp_path / "new.jsonl")) == 3


def test_a_barren_stretch_tells_its_requests(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    told: list[tuple[str, int]] = []

    class Watched(Screen):
        @contextmanager
        def bar(self, what: str, total: int) -> Iterator[Advance]:
            del what, total
            yield lambda note="", steps=1: told.append((note, steps))

    telling(server)
    good = server.say
    server.say = lambda message, number: good(message, number) if number == 3 else "nothing of the kind"
    made(server, "self-instruct", tmp_path / "new.json", rows_file, count=1, screen=Watched(quiet=True))
    assert told == [("1 asked", 0), ("2 asked", 0), ("3 asked", 0), ("4 asked", 0), ("", 1)]


def command(server: JudgeServer, out: Path, rows: str, *more: str) -> list[str]:
    """The same from the command line."""
    words = ["generate", "--way", "self-instruct", "--with", f"{server.url}/v1", "--seeds", rows, "--out", str(out)]
    return [sys.executable, "-m", "instil.cli", *words, "--count", "30", "--set", "make.concurrency=1", *more]


@pytest.mark.slow
def test_a_process_that_is_killed_goes_on_in_the_same_bytes(
    server: JudgeServer, tmp_path: Path, rows_file: str
) -> None:
    whole = subprocess.run(
        command(server, tmp_path / "whole.json", rows_file, "--json"), capture_output=True, text=True, check=True
    )
    shown = json.loads(whole.stdout)  # one object and nothing else
    assert (shown["rows"], shown["made"], shown["found"]) == (30, 30, 0)
    assert "Explain" in whole.stderr  # rows are seen as they come
    first = before = len(server.asked)
    server.faults = {first + 11: "hang 60"}
    process = subprocess.Popen(command(server, tmp_path / "broken.json", rows_file), stderr=subprocess.DEVNULL)
    while len(server.asked) < before + 12:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "broken.json").exists()
    server.faults, before = {}, len(server.asked)
    again = subprocess.run(
        command(server, tmp_path / "broken.json", rows_file), capture_output=True, text=True, check=True
    )
    assert "11 answered before" in again.stdout
    assert len(server.asked) - before == first - 11
    for name in (".json", ".made.json"):
        assert (tmp_path / f"broken{name}").read_bytes() == (tmp_path / f"whole{name}").read_bytes()


@pytest.mark.slow
def test_exit_codes(server: JudgeServer, tmp_path: Path, rows_file: str) -> None:
    def code(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [*words], capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "200"}
        )
        return done.returncode, done.stderr

    one = command(server, tmp_path / "new.json", rows_file, "--set", "make.tries=1")
    assert code(*one, "--set", "make.temprature=1")[0] == 2
    assert code(*one, "--set", "train.epochs=1") == (
        2,
        "instil: --set train.epochs=1: only make.* settings matter here\n",
    )
    server.always = "status 503"
    exit_code, said = code(*one)
    assert exit_code == 4
    assert said.splitlines()[-1].startswith("instil: ")
    assert "0 replies are kept; the same command asks for the rest" in said
    server.always = "say no"
    exit_code, said = code(*one)
    assert exit_code == 1
    assert "0 of 30 rows" in said
