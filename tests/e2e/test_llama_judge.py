"""A real llama.cpp with SmolLM2 as the judge: weak, but all that lies between the answers and the verdicts is real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.errors import JudgeError
from tests.conftest import BOOK_DATA

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def llama() -> Iterator[str]:
    """The address of a llama.cpp server in a process of its own."""
    program = (
        "import sys, xllamacpp\n"
        "from instil.model.find import find_model\n"
        "params = xllamacpp.CommonParams()\n"
        "params.model.path = str(find_model('smollm2-135m'))\n"
        "params.n_ctx, params.n_parallel, params.verbosity = 2048, 1, -1\n"
        "server = xllamacpp.Server(params)\n"
        "print(server.listening_address, flush=True)\n"
        "sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait()
    process.stdout.close()


def answered(count: int) -> list[dict[str, Any]]:
    """Held-out rows of the starter set with answers that are right, or of another row."""
    from importlib import resources

    rows = json.loads((resources.files("instil.data") / "starter.json").read_text(encoding="utf-8"))[-count:]
    return [{**row, "model_response": (rows[n - 1] if n % 2 else row)["output"]} for n, row in enumerate(rows)]


def test_a_server_is_asked_in_json_and_every_row_has_a_score(llama: str) -> None:
    verdicts = instil.score(answered(2), f"{llama}/v1", concurrency=1)
    assert all(verdict.score in (0, 25, 50, 75, 100) for verdict in verdicts)
    assert all(set(json.loads(verdict.said)) == {"score"} for verdict in verdicts)


@pytest.mark.slow
def test_its_probabilities_weigh_the_score(llama: str) -> None:
    for verdict in instil.score(answered(2), f"{llama}/v1", concurrency=1, weighted=True):
        assert verdict.score is not None
        assert 0 < verdict.score < 100
        assert verdict.metrics["probability"] > 0.5


def test_a_prompt_beyond_its_context_is_unscored(llama: str) -> None:
    rows = answered(2)
    rows[0]["model_response"] = "word " * 3000
    verdicts = instil.score(rows, f"{llama}/v1", concurrency=1)
    assert "exceeds the available context" in verdicts[0].reason
    assert "score.num_ctx" in verdicts[0].reason
    assert verdicts[1].score is not None


@pytest.mark.slow
def test_in_this_process_the_same_question_gets_the_same_reply(tmp_path: Path) -> None:
    rows = answered(4)
    first = instil.score(rows, "llamacpp:smollm2-135m", journal=tmp_path / "one")
    again = instil.score(rows[2:], "llamacpp:smollm2-135m")  # with nothing computed before
    assert [verdict.said for verdict in first[2:]] == [verdict.said for verdict in again]
    assert first[0].judge == "llamacpp:smollm2-135m"
    with pytest.raises(JudgeError, match="no GGUF file"):
        (tmp_path / "x.gguf").write_bytes(b"nothing")
        instil.score(rows, f"llamacpp:{tmp_path / 'x.gguf'}")


@pytest.mark.slow
@pytest.mark.skipif(not BOOK_DATA.is_dir(), reason="the book's data are not on this machine")
def test_the_books_110_answers_with_the_client_killed_at_row_57(llama: str, tmp_path: Path) -> None:
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "said.json").write_bytes((BOOK_DATA / "instruction-data-with-response.json").read_bytes())

    def scoring(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "instil.cli", "score", str(tmp_path / name / "said.json"), "--json"]
        settings = ["--judge", f"{llama}/v1", "--set", "score.concurrency=1"]
        return subprocess.Popen([*command, *settings], stdout=subprocess.PIPE, text=True, env=os.environ)

    whole, _ = scoring("whole").communicate()
    assert json.loads(whole)["scores"]["said"]["scored"] == 110
    journal = tmp_path / "broken" / "said.journal"
    process = scoring("broken")
    while not journal.exists() or journal.read_bytes().count(b"\n") < 56:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    kept = journal.read_bytes().count(b"\n")
    broken, _ = scoring("broken").communicate()
    found = json.loads(broken)["scores"]["said"]
    assert (found["found"], found["asked"]) == (kept, 110 - kept)
    files = [next((tmp_path / name).glob("said.*.jsonl")).read_bytes() for name in ("whole", "broken")]
    assert files[0] == files[1]
    assert re.fullmatch(r"(\{.*\}\n){110}", files[0].decode())
