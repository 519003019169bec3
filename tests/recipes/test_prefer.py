"""Pairs made in each of the three ways: what is written, what is left out, and that a second time costs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest

from instil.data.sources import read_source
from instil.errors import DataError, InstilError, RunFolderTaken, SettingsError, UserError
from instil.recipes.prefer import check_pairs, prefer_between, prefer_rewrite, prefer_samples
from instil.recipes.score import score_path
from instil.settings.options import Settings
from instil.settings.resolve import resolve
from instil.tasks.pairs.source import read_pairs
from tests.conftest import rows
from tests.faults.judge_server import judging

SHORT = resolve(assignments=["generate.max_new_tokens=6", 'generate.stop=["a", "e", "i"]'])


def answers(path: Path, count: int, say: Any) -> Path:
    """A file of answered rows."""
    path.write_text(json.dumps([{**row, "model_response": say(n)} for n, row in enumerate(rows(count))]))
    return path


def choose(message: str, number: int) -> str:
    """A judge that likes the answer that ends with a dot, whatever the order; and two that agree."""
    del number
    first, second = (json.loads(part.split("\n")[1]) for part in message.split("<<< ")[-2:])
    if first[-1:] == second[-1:]:
        return json.dumps({"better": "first"})  # which goes with the order
    return json.dumps({"better": "first" if first.endswith(".") else "second"})


def test_two_models_answers_become_pairs(tmp_path: Path) -> None:
    a = answers(tmp_path / "a.json", 10, lambda n: f"It is {2 * n}" if n % 2 else f"It is {2 * n}.")
    b = answers(tmp_path / "b.json", 12, lambda n: f"It is {2 * n}." if n < 8 else f"Is it {2 * n}?")
    out = tmp_path / "made" / "pairs.json"
    with judging(say=choose) as server:
        made = prefer_between(a, b, f"{server.url}/v1", out)
        again = prefer_between(a, b, f"{server.url}/v1", out)
        written = json.loads(out.read_text())
    assert again.asked == 0
    order = "the choice went with the order of the answers"
    assert made.pairing.left_out == {"both answers are equal": [0, 2, 4, 6], order: [9]}
    assert [row["provenance"]["from"] for row in written] == [[1], [3], [5], [7], [8]]
    assert written[0] == {
        "instruction": "Double the number 1.", "input": "", "output": "It is 2.",
        "chosen": "It is 2.", "rejected": "It is 2",
        "provenance": {
            "from": [1], "way": "between", "judge": f"{server.url}/v1", "identity": f"{server.url}/v1#judge",
            "seed": 123, "chosen_from": "b.json", "rejected_from": "a.json",
        },
    }  # fmt: skip
    assert written[4]["provenance"]["chosen_from"] == "a.json"
    assert "2 rows are only in b.json" in made.lines()
    assert made.diagnosis.pairs == 5
    assert (tmp_path / "made" / "pairs.journal").is_file()


def test_answers_that_cannot_be_written_down_make_no_pair(tmp_path: Path) -> None:
    odd = {1: "half \ud800.", 2: "nothing\x00."}
    a = answers(tmp_path / "a.json", 4, lambda n: f"It is {2 * n}")
    b = answers(tmp_path / "b.json", 4, lambda n: odd.get(n, f"It is {2 * n}."))
    with judging(say=choose) as server:
        made = prefer_between(a, b, f"{server.url}/v1", tmp_path / "pairs.json")
    assert made.pairing.left_out == {
        "an answer holds half of a surrogate pair (broken Unicode)": [1],
        "an answer holds a NUL character": [2],
    }
    assert [pair.row for pair in read_pairs(tmp_path / "pairs.json").pairs] == [0, 1]


def test_a_judge_that_goes_with_the_order_makes_no_pair(tmp_path: Path) -> None:
    a = answers(tmp_path / "a.json", 3, lambda n: f"{n}")
    b = answers(tmp_path / "b.json", 3, lambda n: f"-{n}")
    with judging(say=choose) as server, pytest.raises(InstilError, match=r"no pair came of 3 rows.*3 rows \(0, 1, 2\)"):
        prefer_between(a, b, f"{server.url}/v1", tmp_path / "pairs.json")
    assert not (tmp_path / "pairs.json").exists()
    with pytest.raises(UserError, match="does not choose"):
        prefer_between(a, b, "offline", tmp_path / "pairs.json")


def sampled(journal: Path) -> list[list[Any]]:
    """Texts of all rows' samples, with whether they ended, as the journal has them."""
    blocks = [json.loads(line) for line in journal.read_text().splitlines()]
    return [mine for block in blocks if "samples" in block for mine in block["samples"]]


def test_samples_of_one_model_are_ranked(tiny_folder: Path, tmp_path: Path, data_file: Path) -> None:
    with pytest.raises(InstilError):  # the references are nothing that this model would say
        prefer_samples(tiny_folder, data_file, 4, "offline", tmp_path / "first.json", gap=99, settings=SHORT)
    said = sampled(tmp_path / "first.journal")
    own = rows(40)
    for row, mine in zip(own, said, strict=True):
        row["output"] = mine[2][0].strip() or "?"  # now each third sample is a copy of it
    data_file.write_text(json.dumps(own))
    out, journal = tmp_path / "pairs.json", tmp_path / "pairs.journal"
    made = prefer_samples(tiny_folder, data_file, 4, "offline", out, settings=SHORT)
    assert sampled(journal) == said
    whole = out.read_bytes()
    written = json.loads(whole)
    assert made.pairing.rows == 40
    ended = {n for n, mine in enumerate(said) if mine[2][1] and mine[2][0].strip()}
    assert len(ended) > 10
    assert {row["provenance"]["from"][0] for row in written if row["provenance"]["samples"][0] == 2} >= {
        n for n in ended if len({text.strip() for text, done in said[n] if done and text.strip()}) == 4
    }
    for row in written:
        best, worst = row["provenance"]["scores"]
        assert best - worst >= 10
        assert row["provenance"]["temperature"] == 0.8
    lines = journal.read_bytes().splitlines(keepends=True)
    assert len(lines) == 3  # blocks of sixteen rows
    journal.write_bytes(lines[1])  # another process had only come so far
    prefer_samples(tiny_folder, data_file, 4, "offline", out, settings=SHORT)
    assert out.read_bytes() == whole
    assert sorted(journal.read_bytes().splitlines(keepends=True)) == sorted(lines)
    other = resolve(assignments=["generate.seed=7"], values=SHORT.model_dump(include={"generate": {"stop"}}))
    with pytest.raises(InstilError):
        prefer_samples(tiny_folder, data_file, 4, "offline", tmp_path / "seed.json", gap=99, settings=other)
    assert sampled(tmp_path / "seed.journal")[0] != said[0]


def test_samples_are_scored_by_a_judge_once_each(tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(12)))
    grades = [json.dumps({"score": grade}) for grade in (1, 2)]
    with judging(say=lambda message, number: grades[crc32(message.encode()) % 2]) as server:
        made = prefer_samples(tiny_folder, data, 3, f"{server.url}/v1", tmp_path / "p.json", settings=SHORT)
        messages = server.messages()
        assert len(messages) == len(set(messages)) == made.asked > 0
        again = prefer_samples(tiny_folder, data, 3, f"{server.url}/v1", tmp_path / "p.json", settings=SHORT)
    assert again.asked == 0
    assert again.pairing == made.pairing
    assert made.pairing.made[0].provenance["scores"] == [25.0, 0.0]
    assert made.notes[-1].startswith(f"{len(made.pairing.made)} chosen answers (")  # all of them are poor


def test_samples_that_did_not_end_are_not_used(tiny_folder: Path, tmp_path: Path, data_file: Path) -> None:
    settings = resolve(assignments=["generate.max_new_tokens=2"])
    with pytest.raises(InstilError, match=r"no pair came of 40 rows.*raise generate\.max_new_tokens"):
        prefer_samples(tiny_folder, data_file, 2, "offline", tmp_path / "pairs.json", settings=settings)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"count": 1}, "a pair takes at least 2"),
        ({"gap": 101.0}, "wanted points from 0 to 100"),
        ({"judge": "likelihood"}, "likelihood is taken of references"),
        ({"settings": resolve(assignments=["generate.temperature=0"])}, "one answer again and again"),
    ],
)
def test_samples_that_cannot_be_ranked_are_refused(
    change: dict[str, Any], words: str, tmp_path: Path, data_file: Path
) -> None:
    given = {"count": 2, "judge": "offline", **change}
    with pytest.raises((SettingsError, UserError), match=words):
        prefer_samples("nowhere", data_file, given.pop("count"), given.pop("judge"), tmp_path / "p.json", **given)


def test_answers_are_rewritten(tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(9)))
    out = tmp_path / "pairs.jsonl"
    with judging(say=lambda message, number: f"So {message.rpartition(': ')[2][-9:]}") as server:
        made = prefer_rewrite(data, f"{server.url}/v1", out, settings=Settings())
        assert made.asked == 9
        whole = out.read_bytes()
        assert prefer_rewrite(data, f"{server.url}/v1", out, settings=Settings()).asked == 0
    assert out.read_bytes() == whole
    assert whole.count(b"\n") == 9
    source = read_pairs(out)
    assert source.notes == ()  # the provenance is known
    assert read_source(out).notes == ("key 'chosen' of 9 rows is not used", "key 'rejected' of 9 rows is not used")
    assert sum(pair.chosen == pair.example.output for pair in source.pairs) in range(1, 9)
    assert made.as_json()["doctor"]["pairs"] == 9


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(3)))
    other = tmp_path / "notes.json"
    other.write_text("mine")
    with judging(say=lambda message, number: f"Well {number}") as server:
        name = f"{server.url}/v1"
        with pytest.raises(RunFolderTaken, match="is there already"):
            prefer_rewrite(data, name, other)
        with pytest.raises(UserError, match="is what the pairs are made of"):
            prefer_rewrite(data, name, data, overwrite=True)
        for folder in (tmp_path, Path(), Path("..")):
            with pytest.raises(DataError, match="is a folder"):
                prefer_rewrite(data, name, folder)
        assert other.read_text() == "mine"
        assert not server.asked
        prefer_rewrite(data, name, other, overwrite=True)
    assert len(json.loads(other.read_text())) == 3


def test_pairs_of_other_rows_are_not_replaced(tmp_path: Path) -> None:
    """The same way and the same place, but another file of rows; with more rows it goes on."""
    data, fewer = tmp_path / "rows.json", tmp_path / "fewer.json"
    data.write_text(json.dumps(rows(5)))
    fewer.write_text(json.dumps(rows(2)))
    out = tmp_path / "pairs.json"
    with judging(say=lambda message, number: f"Well {number}") as server:
        prefer_rewrite(data, f"{server.url}/v1", out)
        whole = out.read_bytes()
        with pytest.raises(RunFolderTaken, match="is there already, made otherwise or of other rows"):
            prefer_rewrite(fewer, f"{server.url}/v1", out)
        assert out.read_bytes() == whole
        data.write_text(json.dumps(rows(6)))
        prefer_rewrite(data, f"{server.url}/v1", out)
    assert len(json.loads(out.read_text())) == 6


def test_a_journal_beside_a_file_does_not_make_it_ours(tmp_path: Path) -> None:
    a, b = (answers(tmp_path / f"{name}.json", 3, lambda n, name=name: f"{name} {n}") for name in "ab")
    before = a.read_text()
    with judging() as server:
        score_path(a, f"{server.url}/v1")  # leaves a.journal
        server.say = lambda message, number: "Well then"
        with pytest.raises(RunFolderTaken, match=r"a\.json is there already"):
            prefer_rewrite(b, f"{server.url}/v1", a)
        assert a.read_text() == before
        out = tmp_path / "pairs.json"
        prefer_rewrite(b, f"{server.url}/v1", out)
        prefer_rewrite(b, f"{server.url}/v1", out)
        server.say = choose
        with pytest.raises(RunFolderTaken, match="is there already"):
            prefer_between(a, b, f"{server.url}/v1", out)


def test_rows_that_are_no_pairs_are_an_error_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "pairs.json"
    good = {"instruction": "Say hi.", "chosen": "Hi.", "rejected": "What?"}
    file.write_text(json.dumps([good, {**good, "chosen": ""}, {**good, "rejected": "Hi."}]))
    found = check_pairs(file)
    assert not found.usable
    assert found.findings[0].rows == (1,)
    assert "row 1: chosen is empty" in found.lines()[1]
    file.write_text(json.dumps([good]))
    assert check_pairs(file).usable
