"""What the commands print of scores: plain figures first, one line for one reason, and a word where it is due."""

from __future__ import annotations

import pytest

from instil.ask.attention import Attention
from instil.ask.client import ModelRequest, Reply
from instil.ask.journal import Journal
from instil.cli.show_verdicts import show_comparison, show_scores
from instil.evaluate.comparison import compare_verdicts
from instil.evaluate.judging import judge_answers
from instil.evaluate.offline import of_other_scripts, score_offline
from instil.recipes.compare import Compared
from instil.recipes.score import Scored
from instil.records import NO_ROOM, Example, Verdict
from instil.settings.asking import ScoreOptions


def test_reasons_that_differ_in_numbers_only_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    reasons = [f"the judge read {n} tokens of a prompt of {1.5 * n:,} words" for n in range(12)]
    verdicts = [Verdict(row, "ollama:m", None, reason) for row, reason in enumerate(reasons)]
    verdicts += [Verdict(12, "ollama:m", None, "the reply was cut off"), Verdict(13, "ollama:m", 50.0)]
    show_scores({"tuned": Scored("tuned", "ollama:m", tuple(verdicts))}, offline=False)
    lines = [line for line in capsys.readouterr().out.splitlines() if "no score:" in line]
    assert lines == [
        "  no score: 12 rows (0, 1, 2, 3, 4, 5, 6, 7, 8, 9): the judge read 0 tokens of a prompt of 0.0 words",
        "  no score: 1 row (12): the reply was cut off",
    ]


def test_plain_metrics_come_first_and_the_script_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [Example("a", "Париж", row=0), Example("b", "Лондон", row=1), Example("c", "Рим", row=2)]
    verdicts = tuple(score_offline(rows, ["Париж", "Париж", ""], no_room={2}))
    scored = Scored("base", "offline", verdicts, note=of_other_scripts(rows))
    show_scores({"base": scored, "tuned": scored}, offline=True)
    out = capsys.readouterr().out
    head, first = out.splitlines()[:2]
    assert head.index("exact match") < head.index("chrF") < head.index("agreement")
    assert "2/3" in first
    assert first.split()[2] == "50.0%"
    assert f"base: no score: 1 row (2): {NO_ROOM}" in out
    assert out.count("another script than Latin") == 1
    told = compare_verdicts(verdicts, verdicts)
    plain = {"exact_match": told, "chrf": told}
    show_comparison(Compared("A", "B", "offline", told, None, (), True, 0, 0, plain, (scored, scored)))
    out = capsys.readouterr().out
    assert "1 row is left out, whose prompt leaves no room for an answer." in out.splitlines()[0]
    assert out.index("exact match, %") < out.index("chrF") < out.index("score, 0 to 100")
    assert "another script than Latin" in out
    assert scored.as_json()["note"] == scored.note


class Asked:
    """A judge that wants no question."""

    name = identity = "nobody"
    workers = 1
    notes = ()
    attention = Attention()

    def open(self) -> None:
        raise AssertionError

    def chat(self, request: ModelRequest) -> Reply:
        raise AssertionError(request)


def test_a_judge_is_not_asked_about_a_row_without_room() -> None:
    rows = [Example("a", "b", row=0), Example("a", "b", row=1)]
    judged = judge_answers(Asked(), rows, ["", ""], ScoreOptions(), Journal(), no_room={0})
    assert [(verdict.score, verdict.reason) for verdict in judged.verdicts] == [(None, NO_ROOM), (0.0, "")]


def test_a_row_that_one_side_could_answer_lacks_a_score_and_counts() -> None:
    """Left out are rows that nobody could answer; else the difference would be of the rows that suit one side."""
    full = [Verdict(row, "offline", 10.0) for row in range(10)]
    left = [Verdict(0, "offline", None, NO_ROOM), *full[1:]]
    one_sided, both = compare_verdicts(left, full), compare_verdicts(left, left)
    assert (one_sided.rows, one_sided.scored, one_sided.no_room) == (10, 9, ())
    assert one_sided.outcome == "not distinguishable"
    assert (both.rows, both.scored, both.no_room, both.coverage) == (9, 9, (0,), 1.0)
    assert both.as_json()["no_room"] == [0]
    other = [Verdict(0, "offline", None, "the row has no reference answer"), *full[1:]]
    assert compare_verdicts(other, other).rows == 10
