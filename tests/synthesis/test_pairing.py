"""Pairs from judged answers: who wins is chosen, and every row that gives no pair has its reason."""

from __future__ import annotations

import pytest

from instil.evaluate.pairwise import PairwiseVerdict, PairwiseVerdicts
from instil.records import Example
from instil.synthesis.pairing import Candidate, distinct, pairs_from_choices, pairs_from_scores


def examples(count: int) -> list[Example]:
    """Rows whose numbers are not their places."""
    return [Example(f"Task {n}.", "Right.", row=10 + n) for n in range(count)]


def test_winners_become_chosen_and_all_others_are_named() -> None:
    outcomes = [
        ("first", "second"), ("second", "first"), ("tie", "tie"), ("first", "first"), ("first", "tie"),
        (None, "first"), ("first", "second"), ("first", "second"),
    ]  # fmt: skip
    verdicts = PairwiseVerdicts(
        tuple(
            PairwiseVerdict(10 + n, one, other, "unread" if one is None else "")
            for n, (one, other) in enumerate(outcomes)
        ),
        same=(18,),
    )
    a = [f"a{n}" for n in range(9)]
    b = [f" b{n} " for n in range(9)]
    a[6], b[7] = " ", ""
    pairing = pairs_from_choices(examples(9), a, b, verdicts, ("A", "B"))
    assert [(one.pair.row, one.pair.chosen, one.pair.rejected) for one in pairing.made] == [
        (10, "a0", "b0"),
        (11, "b1", "a1"),
    ]
    assert pairing.made[1].provenance == {"chosen_from": "B", "rejected_from": "A"}
    assert pairing.left_out == {
        "a tie": [12],
        "the choice went with the order of the answers": [13, 14],
        "no choice: unread": [15],
        "the preferred answer is empty": [16],
        "the other answer is empty": [17],
        "both answers are equal": [18],
    }
    assert pairing.rows == 9


def scored(*texts_and_scores: tuple[str, float | None]) -> list[Candidate]:
    """Samples that have been scored."""
    return [Candidate(text, n, True, score, "no") for n, (text, score) in enumerate(texts_and_scores)]


@pytest.mark.parametrize(
    ("samples", "found"),
    [
        (scored(("bad", 0.0), ("good", 90.0), ("fair", 50.0), ("best", 90.0)), ("good", "bad", [90.0, 0.0], [1, 0])),
        (scored(("good", 90.0), ("fair", 80.0)), ("good", "fair", [90.0, 80.0], [0, 1])),
        (scored(("good", 90.0), ("fair", 80.1)), "best and worst are less than 10 points apart"),
        (scored(("good", 90.0), (" good ", None)), "all samples are equal"),
        (scored(("good", 90.0), ("x", None), ("y", None)), "fewer than two answers have a score: no"),
        ([Candidate("a", 0, False), Candidate("b", 1)], "fewer than two samples came to an end"),
        ([Candidate("a", 0), Candidate(" ", 1)], "fewer than two different samples"),
        (scored(("good", 90.0), ("bad\x00", 0.0)), "fewer than two different samples"),
    ],
)
def test_the_best_is_set_against_the_worst(samples: list[Candidate], found: object) -> None:
    pairing = pairs_from_scores(examples(1), [samples], 10.0)
    if isinstance(found, str):
        ((reason, rows),) = pairing.left_out.items()
        assert reason.startswith(found)
        assert (rows, pairing.made) == ([10], [])
    else:
        (made,) = pairing.made
        said = made.provenance
        assert (made.pair.chosen, made.pair.rejected, said["scores"], said["samples"]) == found


def test_no_gap_is_no_preference() -> None:
    pairing = pairs_from_scores(examples(1), [scored(("a", 50.0), ("b", 50.0))], 0.0)
    assert not pairing.made
    assert list(pairing.left_out) == ["best and worst are less than 0 points apart"]


def test_each_text_is_judged_once() -> None:
    samples = [Candidate("a ", 0), Candidate("a", 1), Candidate("cut", 2, False), Candidate("", 3), Candidate("b", 4)]
    assert [one.sample for one in distinct(samples)] == [0, 4]
