"""Rows of other shapes from the command line to the end: every verb that reads rows, and what each refuses by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import instil
from instil.cli import app
from instil.errors import InstilError
from tests.faults.judge_server import judging

QUICK = ["--set", "train.max_steps=2", "--set", "generate.max_new_tokens=3", "--set", "train.eval_every=1"]
MAP = ["--map", "ask=instruction", "--map", "reply=output"]


def write(path: Path, rows: Any) -> str:
    path.write_text(json.dumps(rows))
    return str(path)


def odd_rows(count: int) -> list[dict[str, str]]:
    return [{"ask": f"Double the number {n}.", "reply": f"It is {2 * n}."} for n in range(count)]


def chats(count: int) -> list[dict[str, Any]]:
    return [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": f"What is {n}?"},
                {"from": "gpt", "value": f"The number {n}."},
                {"from": "human", "value": "And its double?"},
                {"from": "gpt", "value": f"It is {2 * n}."},
            ]
        }
        for n in range(count)
    ]


def invoke(*words: object, code: int = 0) -> Result:
    done = CliRunner().invoke(app, [str(word) for word in words])
    error = done.exception
    ended = error.exit_code if isinstance(error, InstilError) else done.exit_code
    assert ended == code, (done.output, error)
    return done


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "ROWS", "--model", "MODEL", "--json"],
        ["train", "ROWS", "--model", "MODEL", "--out", "OUT", *QUICK],
        ["run", "ROWS", "--model", "MODEL", "--out", "OUT", *QUICK],
        ["respond", "MODEL", "--data", "ROWS", "--out", "OUT", "--set", "generate.max_new_tokens=3"],
        ["probe", "ROWS", "--model", "MODEL", "--rates", "1e-4", "--steps", "1", "--out", "OUT", *QUICK],
    ],
    ids=lambda words: words[0],
)
def test_every_verb_that_reads_rows_takes_a_map(words: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.json", odd_rows(40))
    stand_in = {"ROWS": rows, "MODEL": str(tiny_folder), "OUT": str(tmp_path / "out")}
    given = [stand_in.get(word, word) for word in words]
    refused = invoke(*given, code=2)
    assert "if that is what they mean, add --map ask=instruction" in str(refused.exception)
    assert not (tmp_path / "out").exists()
    invoke(*given, *MAP)
    if words[0] == "run":  # whose rows are read again under the same names
        answers = tmp_path / "again.json"
        invoke("respond", tmp_path / "out", "--out", answers, "--set", "generate.max_new_tokens=3")
        assert json.loads(answers.read_text())[0]["instruction"] == "Double the number 34."


def test_what_makes_data_takes_a_map(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = write(tmp_path / "rows.json", odd_rows(2))
    with judging(say=lambda message, number: f"Said {number}, with pleasure") as server:
        name = f"{server.url}/v1"
        rewrite = ["prefer", "--rewrite", "--data", rows, "--with", name, "--out", "pairs.json", "--json"]
        assert "--map ask=instruction" in str(invoke(*rewrite, code=2).exception)
        assert json.loads(invoke(*rewrite, *MAP).stdout)["pairs"] == 2
        make = ["generate", "--way", "reflect", "--with", name, "--out", "new.json", "--rows", rows, "--json"]
        assert "--map ask=instruction" in str(invoke(*make, code=2).exception)
        invoke(*make, *MAP, code=1)  # nothing it said could be read
        assert [row["instruction"] for row in json.loads((tmp_path / "new.json").read_text())] == [
            row["ask"] for row in odd_rows(2)
        ]
    pairs = write(tmp_path / "other.json", [{"ask": "Why?", "yes": "So.", "no": "Not."}] * 2)
    found = invoke("prefer", "--check", pairs, "--map", "ask=prompt,yes=chosen,no=rejected", "--json")
    assert json.loads(found.stdout)
    refused = invoke("prefer", "--from", "a", "b", "--map", "a=output", "--judge", "x", code=2)
    assert "--map goes with --samples and --rewrite and --check" in str(refused.exception)
    assert "--map names keys of the rows of --data" in str(
        invoke("respond", "none", "-i", "Hi", "--map", "a=output", code=2).exception
    )


def test_conversations_from_file_to_scores(tiny_folder: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.json", chats(40))
    out = tmp_path / "run"
    invoke("run", rows, "--model", tiny_folder, "--out", out, *QUICK)
    answered = json.loads((out / "responses" / "tuned.json").read_text())
    assert answered[0]["instruction"] == "And its double?"
    assert [turn["role"] for turn in answered[0]["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    invoke("score", out)
    report = json.loads((out / "samples.jsonl").read_text().splitlines()[0])
    assert report["instruction"].startswith("System: Be brief.\n\nUser: What is ")
    answers, few = tmp_path / "answers.json", write(tmp_path / "few.json", chats(3))
    invoke("respond", out, "--data", few, "--out", answers, "--set", "generate.max_new_tokens=3")
    assert [one.row for one in instil.score(json.loads(answers.read_text()))] == [0, 1, 2]
    with judging(say=lambda message, number: '{"score": 4}') as server:
        invoke("score", answers, "--judge", f"{server.url}/v1")
        asked = server.messages()
    assert any("User: What is 2?\\n\\nAssistant: The number 2.\\n\\nUser: And its double?" in one for one in asked)
    with judging(say=lambda message, number: f"Said {number}, with pleasure") as server:
        words = ["prefer", "--rewrite", "--data", few, "--with", f"{server.url}/v1", "--out", tmp_path / "pairs.json"]
        invoke(*words)
        assert all("User: What is " in one for one in server.messages())
    pairs = json.loads((tmp_path / "pairs.json").read_text())
    assert pairs[0]["messages"][3] == {"role": "user", "content": "And its double?"}
    assert json.loads(invoke("prefer", "--check", tmp_path / "pairs.json", "--json").stdout)
    out = tmp_path / "dpo"
    invoke("train", tmp_path / "pairs.json", "--model", tiny_folder, "--method", "dpo", "--out", out, *QUICK)


def test_conversations_are_no_seeds(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.json", [*chats(2)])
    for way in ("reflect", "self-instruct"):
        refused = invoke("generate", "--way", way, "--with", "ollama:x", "--out", tmp_path / "o.json", "--seeds", rows,
                         code=2)  # fmt: skip
        assert "rows 0, 1: is a conversation" in str(refused.exception)
    texts = write(tmp_path / "texts.json", [{"text": "Once."}] * 2)
    refused = invoke("generate", "--way", "reflect", "--with", "ollama:x", "--out", tmp_path / "o.json", "--seeds",
                     texts, code=2)  # fmt: skip
    assert "rows 0, 1: is a text without a question" in str(refused.exception)
    refused = invoke("prefer", "--rewrite", "--data", texts, "--with", "ollama:x", "--out", tmp_path / "o.json", code=2)
    assert "texts without a question" in str(refused.exception)


def test_texts_are_trained_on_whole_and_not_answered(tiny_folder: Path, tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.json", [{"text": f"Once there were {n} colours."} for n in range(40)])
    seen = json.loads(invoke("inspect", rows, "--model", tiny_folder, "--json").stdout)
    tokens = seen["rows"][0]["tokens"]
    assert "".join(token["text"] for token in tokens) == "Once there were 0 colours.<end>"
    assert {token["fate"] for token in tokens[1:]} == {"trained"}
    assert seen["preflight"]["repeated_prompts"] == 0
    out = tmp_path / "run"
    done = invoke("run", rows, "--model", tiny_folder, "--out", out, *QUICK)
    assert "the rows ask nothing, so nothing will be answered or scored" in done.stderr
    assert (out / "model" / "config.json").is_file()
    assert not (out / "responses" / "tuned.json").exists()
    refused = invoke("respond", out, "--data", rows, code=2)
    assert "--map text=instruction" in str(refused.exception)
    refused = invoke("respond", out, "--split", "test", code=2)
    assert "texts without a question" in str(refused.exception)
    invoke("respond", out, "--data", rows, "--map", "text=instruction", "--set", "generate.max_new_tokens=2")


def test_other_trainers_settings_are_recognised(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.json", odd_rows(3))
    refused = invoke("train", rows, "--set", "data.assistant_only_loss=true", code=2)
    assert "TRL's assistant_only_loss is data.train_on=response here" in str(refused.exception)
