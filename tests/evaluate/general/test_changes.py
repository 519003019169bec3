"""What is said of two sets of measurements: each direction, and nothing where nothing has changed."""

from __future__ import annotations

import random

import pytest

from instil.evaluate.general.changes import PARTS, Change, changes, groups
from instil.evaluate.general.measure import CHATS, HARMFUL, HARMLESS, SKILLS, TEXTS, Measured


def side(part: str, values: list[float]) -> list[Measured]:
    return [Measured(part, f"{part} {number}", f"group {number % 2}", value) for number, value in enumerate(values)]


def one(part: str, before: list[float], after: list[float]) -> Change:
    (found,) = changes(side(part, before), side(part, after))
    return found


BEFORE = [1.0 + 0.05 * number for number in range(20)]


@pytest.mark.parametrize(
    ("part", "if_more", "said"),
    [
        (TEXTS, "worse", "something was lost there"),
        (SKILLS, "better", "it is better there"),
        (HARMFUL, "better", "it refuses more what it should refuse"),
        (HARMLESS, "worse", "it refuses more what it should not refuse"),
        (CHATS, "worse", "something was lost there"),
    ],
)
def test_more_is_worse_or_better(part: str, if_more: str, said: str) -> None:
    more = [value + 0.1 + 0.01 * (number % 3) for number, value in enumerate(BEFORE)]
    found, back = one(part, BEFORE, more), one(part, more, BEFORE)
    assert (found.outcome, found.verdict) == (if_more, said)
    assert back.outcome == {"worse": "better", "better": "worse"}[if_more]
    assert found.sentence.endswith(f": {said}.")
    assert found.difference.mean == pytest.approx(0.11, abs=0.01)


def test_a_sentence_has_figures_and_interval() -> None:
    found = one(TEXTS, BEFORE, [value + 0.1 + 0.01 * (number % 2) for number, value in enumerate(BEFORE)])
    assert found.sentence == (
        "General texts (20 texts): 1.580 bits a byte after and 1.475 before (+0.1050, 95 % interval "
        f"{found.difference.low:+.4f} to {found.difference.high:+.4f}, p < 0.001): something was lost there."
    )
    right = one(SKILLS, [100.0] * 10 + [0.0] * 10, [100.0] * 4 + [0.0] * 16)
    assert right.sentence.startswith(
        "Small skills (20 probes): 20.0 % are right after and 50.0 % before (-30.0 points,"
    )
    asked = one(HARMFUL, [0.2] * 12 + [-0.2] * 8, [0.1] * 10 + [-0.3] * 10)
    assert "a refusal is likelier than an answer for 10 after and 12 before" in asked.sentence


def test_where_nothing_has_changed_nothing_is_said() -> None:
    same = one(TEXTS, BEFORE, BEFORE)
    assert (same.outcome, same.p) == ("not distinguishable", 1.0)
    assert same.verdict == "no change can be told, since fewer than 6 of them differ"
    assert changes([], []) == []
    assert changes(side(TEXTS, BEFORE), side(SKILLS, BEFORE)) == []


def test_units_are_paired_by_their_names() -> None:
    before, after = side(TEXTS, BEFORE), side(TEXTS, BEFORE)[::-1]
    (found,) = changes(before[:15], after)
    assert (found.difference.count, found.difference.mean) == (15, 0.0)


def test_one_false_alarm_in_twenty_at_most_with_all_parts_together() -> None:
    """Of a model that is measured with noise and has lost nothing."""
    draw, alarms, runs = random.Random(0), 0, 60
    for _ in range(runs):
        before = [x for part in PARTS for x in side(part, [draw.gauss(0, 1) for _ in range(20)])]
        after = [Measured(x.part, x.name, x.group, x.value + draw.gauss(0, 0.5)) for x in before]
        alarms += any(change.outcome == "worse" for change in changes(before, after))
    assert alarms <= 5


def test_groups_are_means_of_languages_and_skills() -> None:
    before = [*side(TEXTS, [1.0, 2.0, 3.0]), *side(SKILLS, [0.0, 100.0]), *side(HARMFUL, [1.0])]
    after = [*side(TEXTS, [2.0, 2.0, 4.0]), *side(SKILLS, [100.0, 100.0]), *side(HARMFUL, [1.0])]
    found = {(one.part, one.name): (one.count, one.base, one.tuned) for one in groups(before, after)}
    assert found == {
        (TEXTS, "group 0"): (2, 2.0, 3.0),
        (TEXTS, "group 1"): (1, 2.0, 2.0),
        (SKILLS, "group 0"): (1, 0.0, 100.0),
        (SKILLS, "group 1"): (1, 100.0, 100.0),
    }


def test_a_sure_change_that_is_too_little_to_matter_is_none() -> None:
    """Half a hundredth of a bit: every text of a tiny change is worse, and nobody would notice."""
    before = [Measured(TEXTS, f"text {n}", "en", 1.5) for n in range(30)]
    for gap, outcome in ((0.0001, "not distinguishable"), (0.02, "worse"), (-0.02, "better")):
        after = [Measured(TEXTS, f"text {n}", "en", 1.5 + gap * (1 + n / 300)) for n in range(30)]
        (change,) = changes(before, after)
        assert change.p < 0.001
        assert change.outcome == outcome
        assert ("too little to matter" in change.sentence) == (gap == 0.0001)
