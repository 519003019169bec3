"""Making pairs is killed, stopped and refused, and goes on, to the bytes of one that was left in peace."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from instil.ask import patience as asking
from instil.ask.journal import Journal
from instil.errors import RunFolderTaken, StoppedEarly
from instil.recipes.prefer import prefer_between, prefer_rewrite
from instil.settings.resolve import resolve
from tests.conftest import rows
from tests.faults.judge_server import judging
from tests.processes import Command
from tests.synthesis.test_rewriting import say

ONE = resolve(assignments=["make.concurrency=1", "score.concurrency=1", "make.tries=2", "score.tries=2"])
COUNT = 40


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL", "INSTIL_API_KEY", "OLLAMA_API_KEY", "OLLAMA_HOST"):
        monkeypatch.delenv(name, raising=False)


def data(folder: Path) -> Path:
    """Rows to be rewritten."""
    path = folder / "rows.json"
    path.write_text(json.dumps(rows(COUNT)))
    return path


def client(*words: object) -> Command:
    """The command line, as a process of its own."""
    return Command("prefer", *words)


@pytest.mark.slow
def test_rewriting_killed_at_row_20_goes_on_where_it_was(tmp_path: Path) -> None:
    outs = [tmp_path / name / "pairs.json" for name in ("whole", "broken")]
    with judging(say=say) as server:
        words = ["--rewrite", "--data", data(tmp_path), "--with", f"{server.url}/v1", "-s", "make.concurrency=1"]
        whole = client(*words, "--out", outs[0])
        whole.communicate()
        assert whole.returncode == 0
        assert len(server.asked) == COUNT
        server.asked.clear()
        server.faults = {20: "hang 30"}
        process = client(*words, "--out", outs[1])
        while len(server.asked) < 21:
            time.sleep(0.01)
            assert process.poll() is None
        process.kill()
        process.communicate()
        assert not outs[1].exists()
        journal = outs[1].with_suffix(".journal")
        assert journal.read_bytes().count(b"\n") == 20
        journal.write_bytes(journal.read_bytes() + b'{"key": "torn')
        server.asked.clear()
        server.faults = {}
        again = client(*words, "--out", outs[1])
        _, said = again.communicate()
        assert again.returncode == 0
        assert len(server.asked) == COUNT - 20
        assert "1 damaged line" in said
    assert outs[0].read_bytes() == outs[1].read_bytes()
    assert len(json.loads(outs[0].read_text())) == COUNT


def test_a_model_that_dies_half_way_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, out = data(tmp_path), tmp_path / "pairs.json"
    with judging(say=say, faults={11: "die"}) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        with pytest.raises(StoppedEarly, match="11 of 40 replies are kept; the same command"):
            prefer_rewrite(file, "ollama:judge", out, settings=ONE)
        assert not out.exists()
    with judging(say=say) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        made = prefer_rewrite(file, "ollama:judge", out, settings=ONE)
        assert (made.asked, len(server.asked), len(made.pairing.made)) == (29, 29, COUNT)


def test_a_row_that_fails_is_named_and_asked_for_again_before_anything_is_written(tmp_path: Path) -> None:
    file, out = data(tmp_path), tmp_path / "pairs.json"

    def failing(message: str, number: int) -> str:
        return "" if "Double the number 7." in message else say(message, number)

    with judging(say=say, faults=dict.fromkeys((5, 6), "status 502")) as server:
        with pytest.raises(StoppedEarly, match=r"1 row could not be rewritten \(row 5: .*502"):
            prefer_rewrite(file, f"{server.url}/v1", out, settings=ONE)
        assert not out.exists()
        assert len(server.asked) == COUNT + 1
        server.faults = {}
        made = prefer_rewrite(file, f"{server.url}/v1", out, settings=ONE)
        assert (made.asked, len(server.asked), len(made.pairing.made)) == (1, COUNT + 2, COUNT)
        server.say = failing
        made = prefer_rewrite(file, f"{server.url}/v1", tmp_path / "other.json", settings=ONE)
    assert list(made.pairing.left_out.values()) == [[7]]
    assert "the reply is empty" in next(iter(made.pairing.left_out))
    assert len(json.loads((tmp_path / "other.json").read_text())) == COUNT - 1


def test_choosing_that_fails_is_taken_up(tmp_path: Path) -> None:
    files = []
    for name in "ab":
        files.append(tmp_path / f"{name}.json")
        files[-1].write_text(json.dumps([{**row, "model_response": f"{name} {n}"} for n, row in enumerate(rows(6))]))
    out = tmp_path / "pairs.json"

    def likes_a(message: str, number: int) -> str:
        del number
        return json.dumps({"better": "first" if message.index('"a ') < message.index('"b ') else "second"})

    with judging(say=likes_a, faults=dict.fromkeys((3, 4), "status 502")) as server:
        with pytest.raises(StoppedEarly, match=r"1 row could not be judged \(row 1"):
            prefer_between(*files, f"{server.url}/v1", out, options=ONE.score)
        assert not out.exists()
        made = prefer_between(*files, f"{server.url}/v1", out, options=ONE.score)
        assert (made.asked, len(server.asked)) == (1, 14)
    assert [pair["chosen"] for pair in json.loads(out.read_text())] == [f"a {n}" for n in range(6)]


def test_two_at_one_file_are_one_too_many(tmp_path: Path) -> None:
    out = tmp_path / "pairs.json"
    with (
        judging(say=say) as server,
        Journal(out.with_suffix(".journal")),
        pytest.raises(RunFolderTaken, match="another process"),
    ):
        prefer_rewrite(data(tmp_path), f"{server.url}/v1", out)
