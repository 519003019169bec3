"""Rewriting answers: the coin is the row's own, replies are read with suspicion, and nothing equal gets through."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from instil.ask.journal import Journal
from instil.records import Example
from instil.settings.asking import MakeOptions
from instil.synthesis.rewriting import PROMPT, WISHES, RewriteResult, read_rewriting, request, rewrite_all, tone_of
from instil.synthesis.writing import writer
from tests.faults.judge_server import JudgeServer

ONE = MakeOptions(concurrency=1, tries=1)


def examples(count: int) -> list[Example]:
    """Rows with answers."""
    return [Example(f"Double {n}.", f"It is {2 * n}.", row=n) for n in range(count)]


def say(message: str, number: int) -> str:
    """What a decent model makes of the answer."""
    del number
    answer = message.rpartition("Answer:\n")[2]
    return f"Gladly: {answer}" if WISHES["polite"] in message else f"{answer} Obviously."


def rewritten(server: JudgeServer, rows: list[Example], journal: Path | None = None, **how: bool) -> RewriteResult:
    """All rows rewritten."""
    with writer(f"{server.url}/v1", ONE) as model, Journal(journal) as kept:
        return rewrite_all(model, rows, ONE, kept, **how)


def test_the_coin_is_the_rows_own_and_fair() -> None:
    tones = [tone_of(123, row) for row in range(1000)]
    assert 450 < tones.count("polite") < 550
    assert tones != [tone_of(124, row) for row in range(1000)]
    assert tones[700:] == [tone_of(123, row) for row in range(700, 1000)]


def test_polite_rewritings_are_chosen_and_impolite_ones_rejected(server: JudgeServer) -> None:
    server.say = say
    found = rewritten(server, examples(12))
    assert (len(found.pairing.made), found.pairing.left_out, found.asked) == (12, {}, 12)
    for row, made in enumerate(found.pairing.made):
        answer = f"It is {2 * row}."
        polite = tone_of(123, row) == "polite"
        assert made.pair.row == row
        expected = (f"Gladly: {answer}", answer) if polite else (answer, f"{answer} Obviously.")
        assert (made.pair.chosen, made.pair.rejected) == expected
        assert made.provenance["rewritten"] == ["chosen" if polite else "rejected"]
    seeds = [body["seed"] for body in server.asked]
    assert len(set(seeds)) == 12
    assert seeds == [made.provenance["seeds"][0] for made in found.pairing.made]


def test_both_ways_at_once(server: JudgeServer) -> None:
    server.say = say
    found = rewritten(server, examples(3), both=True)
    assert [(one.pair.chosen, one.pair.rejected) for one in found.pairing.made] == [
        (f"Gladly: It is {n}.", f"It is {n}. Obviously.") for n in (0, 2, 4)
    ]
    assert found.pairing.made[0].provenance["rewritten"] == ["chosen", "rejected"]


@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("It is 2.", "the reply is the answer again"),
        (" it is 2!", "the reply is the answer again"),
        ('Here is the rewritten answer: "It is 2."', "the reply is the answer again"),
        ("Here is the rewritten answer:", "the reply holds a preface and no answer"),
        ("I'm sorry, but I can't help with that.", "the model refuses"),
        ("Gladly: it is 2.\n\n(Note: I kept the number.)", "the reply ends with a remark on the rewriting"),
        ("Gladly: it is 2.<|im_end|>", "the reply holds marks of a chat template"),
        ("Gladly! " * 80, "the reply is more than 5 times as long as the answer"),
    ],
)
def test_a_bad_reply_is_asked_for_once_more_and_then_left_out(server: JudgeServer, first: str, reason: str) -> None:
    one = [Example("Double 1.", "It is 2.", row=7)]
    server.say = lambda message, number: first if number == 0 else "Gladly, two."
    better = rewritten(server, one)
    assert (len(better.pairing.made), better.again, better.asked) == (1, (7,), 2)
    assert server.asked[0]["seed"] != server.asked[1]["seed"]
    server.say = lambda message, number: first
    worse = rewritten(server, one)
    ((said, rows),) = worse.pairing.left_out.items()
    assert said == f"not rewritten more {tone_of(123, 7)}ly: {reason}"
    assert (rows, worse.pairing.made, len(server.asked)) == ([7], [], 4)


def test_prefaces_and_quotes_are_cut_off_and_told() -> None:
    read = read_rewriting('Sure! Here is a more polite version:\n\n"It is 4, thank you."', "It is 4.")
    assert (read.text, read.cut) == ("It is 4, thank you.", "Sure! Here is a more polite version:")
    assert read_rewriting('"It is 4, thank you."', "It is 4.").text == "It is 4, thank you."
    assert read_rewriting('"It is four, please."', '"It is 4."').text == '"It is four, please."'
    own = "Here is the revised sentence:\nIt is."
    assert read_rewriting("Here is the revised sentence:\nIt is, please.", own).text.startswith("Here is")  # type: ignore[union-attr]


def test_a_preface_that_was_cut_is_in_the_provenance(server: JudgeServer) -> None:
    server.say = lambda message, number: f"Here is the rewritten answer:\n\n{say(message, number)}"
    found = rewritten(server, examples(2))
    assert found.cut == (0, 1)
    assert found.pairing.made[0].provenance["cut"] == ["Here is the rewritten answer:"]
    assert not found.pairing.made[0].pair.chosen.startswith("Here is")


def test_a_row_without_an_answer_is_named_and_what_is_known_is_not_asked_for(
    server: JudgeServer, tmp_path: Path
) -> None:
    server.say = say
    rows = [*examples(3), Example("Say hi.", row=3)]
    first = rewritten(server, rows, tmp_path / "j")
    assert first.pairing.left_out == {"the row has no output to rewrite": [3]}
    again = rewritten(server, rows, tmp_path / "j")
    assert (again.asked, again.pairing.made) == (0, first.pairing.made)


def test_texts_of_a_row_stay_as_written() -> None:
    sent = request(Example("Say {answer} and {wish}.", "{task}", "{answer}", row=1), "polite", 1, 0)
    assert "Task:\nSay {answer} and {wish}.\n\n{answer}\n\nAnswer:\n{task}" in sent.text
    assert sent.text.count(WISHES["polite"]) == 1
    assert re.findall(r"\{(\w+)\}", PROMPT) == ["wish", "task", "answer"]


def test_a_tag_in_a_sentence_stays_and_a_thought_is_no_part(server: JudgeServer) -> None:
    """What is written as data is whole, or the row is left out with the reason."""
    said = {
        0: "Kindly put it between <think> and </think>, please.",
        1: "[THINK]More polite?[/THINK]It is certainly so, dear friend.",
        2: "It is so.\n<think>Is it more polite",
    }

    def reply(message: str, number: int) -> str:
        return next(text for row, text in said.items() if f"task {row}" in message)

    server.say = reply
    rows = [Example(f"Do task {row}.", f"It is {row}.", row=row) for row in said]
    rows.append(Example("Think.", "<think>2 + 2</think>4", row=3))
    found = rewritten(server, rows)
    texts = {
        one.pair.row: {one.pair.chosen, one.pair.rejected} - {f"It is {one.pair.row}."} for one in found.pairing.made
    }
    assert texts == {0: {said[0]}, 1: {"It is certainly so, dear friend."}}
    reasons = {row: reason for reason, left in found.pairing.left_out.items() for row in left}
    assert "a mark of a thought in its middle" in reasons[2]
    assert "begins with a thought" in reasons[3]
