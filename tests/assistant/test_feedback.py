"""What people make of answers: rows that the project's own readers take, in files of whole lines."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from instil.assistant.feedback import LABELLED, PAIRS, ROWS, add_row, kept_row, labelled_row, pair_row
from instil.data.sources import read_source
from instil.errors import UserError
from instil.tasks.pairs.source import read_pairs

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}]


def answered(text: str) -> list[dict[str, str]]:
    return [*ASKED, {"role": "assistant", "content": text}]


def test_rows_and_pairs_are_read_again(tmp_path: Path) -> None:
    add_row(tmp_path / ROWS, kept_row(answered("4\u2028!")))
    (example,) = read_source(str(tmp_path / ROWS)).examples
    assert (example.instruction, example.output, example.history[0].content) == ("2 + 2?", "4\u2028!", "Be brief.")
    add_row(tmp_path / PAIRS, pair_row(ASKED, "4", "5"))
    (pair,) = read_pairs(str(tmp_path / PAIRS)).pairs
    assert (pair.chosen, pair.rejected, pair.example.instruction) == ("4", "5", "2 + 2?")


def test_labels_of_one_prompt_come_to_a_pair(tmp_path: Path) -> None:
    for text, wanted in (("5", False), ("4", True), ("22", False)):
        add_row(tmp_path / LABELLED, labelled_row(answered(text), wanted=wanted))
    (pair,) = read_pairs(str(tmp_path / LABELLED), skip_bad=True).pairs  # one has no other to it
    assert (pair.chosen, pair.rejected) == ("4", "5")


@pytest.mark.parametrize("messages", [[], ASKED, answered("")])
def test_without_an_answer_there_is_nothing_to_keep(messages: list[dict[str, str]]) -> None:
    with pytest.raises(UserError, match="no answer to keep"):
        kept_row(messages)


def test_equal_answers_are_no_pair() -> None:
    with pytest.raises(UserError, match="both answers are the same"):
        pair_row(ASKED, "4", "4")


@pytest.mark.parametrize("file_name", [f"{number}.jsonl" for number in range(5)])  # the first lines are those at risk
def test_lines_are_whole_whoever_writes(tmp_path: Path, file_name: str) -> None:
    file = tmp_path / file_name
    texts = [chr(ord("a") + number % 26) * 40_000 + str(number) for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: add_row(file, kept_row(answered(text))), texts))
    said = [json.loads(line)["messages"][-1]["content"] for line in file.read_text().splitlines()]
    assert sorted(said) == sorted(texts)


def test_an_unfinished_line_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / ROWS
    file.write_text('{"messages": [')
    add_row(file, kept_row(answered("4")))
    assert json.loads(file.read_text().splitlines()[1]) == kept_row(answered("4"))


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be written"):
        add_row(tmp_path / ROWS, kept_row(answered("\ud800")))
    assert not (tmp_path / ROWS).exists()
    (tmp_path / PAIRS).mkdir()
    with pytest.raises(UserError, match=r"pairs\.jsonl: cannot be written"):
        add_row(tmp_path / PAIRS, pair_row(ASKED, "4", "5"))
