"""Two answers set against one another: what follows the order counts as a tie, and is counted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instil.ask import patience as asking
from instil.errors import StoppedEarly, UserError
from instil.evaluate.pairwise import PairwiseVerdict, read_choice
from instil.recipes.compare import compare_pairwise
from instil.settings.asking import ScoreOptions
from tests.faults.judge_server import JudgeServer, judging


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "FIRST_WAIT", 0.01)


def shown(message: str) -> tuple[str, str]:
    """The two answers, in the order in which the judge sees them."""
    first, second = re.findall(r"<<< (?:first|second) answer \w+\n(.*)\n>>>", message)
    return json.loads(first), json.loads(second)


def prefers(better: Callable[[str, str], bool | None]) -> Callable[[str, int], str]:
    """A judge; ``better`` says whether the first of two answers is the better one, None for a tie."""

    def say(message: str, number: int) -> str:
        del number
        said = better(*shown(message))
        return json.dumps({"better": "tie" if said is None else "first" if said else "second"})

    return say


def files(folder: Path, a: list[str], b: list[str]) -> tuple[Path, Path]:
    """Two files of answers to the same rows."""
    made = []
    for name, answers in (("a", a), ("b", b)):
        rows = [{"instruction": f"Do {n}.", "output": "yes", "model_response": said} for n, said in enumerate(answers)]
        made.append(folder / f"{name}.json")
        made[-1].write_text(json.dumps(rows))
    return made[0], made[1]


A = ["good", "bad", "good", "same", "bad one"] * 6
B = ["bad", "good", "good!", "same", "good"] * 6


def test_a_judge_that_looks_at_the_answers(tmp_path: Path) -> None:
    a, b = files(tmp_path, A, B)
    better = prefers(lambda one, other: None if ("good" in one) == ("good" in other) else "good" in one)
    with judging(say=better) as server:
        found = compare_pairwise(a, b, f"{server.url}/v1").verdicts
        assert len(server.asked) == 2 * 24  # equal answers are not asked about
    assert (found.count("b"), found.count("a"), found.count("tie")) == (12, 6, 12)
    assert found.consistency == 1.0
    assert found.rate is not None
    assert found.rate.mean == pytest.approx(100 * (12 + 6) / 30)
    assert found.sentence("a", "b").startswith("b is not distinguishable from a (12 won, 12 tied, 6 lost")
    assert found.longer == pytest.approx(12 / 18)  # "good" beats the shorter "bad" and the longer "bad one"


def test_a_judge_that_likes_the_first_place_says_nothing(tmp_path: Path) -> None:
    a, b = files(tmp_path, A, B)
    with judging(say=prefers(lambda one, other: True)) as server:
        found = compare_pairwise(a, b, f"{server.url}/v1")
    assert (found.verdicts.count("b"), found.verdicts.count("a")) == (0, 0)
    assert found.verdicts.consistency == 0.0
    assert found.as_json()["position_consistency"] == 0.0


def test_a_clear_winner_is_named(tmp_path: Path) -> None:
    a, b = files(tmp_path, ["bad"] * 12, ["good"] * 12)
    with judging(say=prefers(lambda one, other: one == "good")) as server:
        assert "b.json is better than a.json (12 won" in compare_pairwise(a, b, f"{server.url}/v1").as_json()["verdict"]
        assert "b.json is worse than" not in compare_pairwise(a, b, f"{server.url}/v1").as_json()["verdict"]
        assert len(server.asked) == 24  # the second time nothing is asked
        assert "a.json is worse than b.json" in compare_pairwise(b, a, f"{server.url}/v1").as_json()["verdict"]


def test_replies_without_a_choice_and_failures_are_told(tmp_path: Path) -> None:
    a, b = files(tmp_path, ["x1", "x2", "x3", "x4"], ["y1", "y2", "y3", "y4"])
    options = ScoreOptions(concurrency=1, tries=1)
    with judging(faults={0: "say perhaps", 3: "status 500"}, say=prefers(lambda one, other: one[0] == "y")) as server:
        found = compare_pairwise(a, b, f"{server.url}/v1", options).verdicts
        reasons: dict[str, Any] = found.as_json()["unscored"]
        assert "no choice in the reply: 'perhaps'" in reasons["0"]
        assert "500" in reasons["1"]
        assert set(found.failed) == {1}
        assert found.count("b") == 2
        again = compare_pairwise(a, b, f"{server.url}/v1", options).verdicts
        assert again.asked == 2  # what failed, and nothing else
        assert again.count("b") == 4


def test_a_judge_that_goes_away_stops_it_with_the_work_kept(tmp_path: Path) -> None:
    a, b = files(tmp_path, ["x"] * 20, ["y"] * 20)
    options = ScoreOptions(concurrency=1, tries=1)
    with judging(faults=dict.fromkeys(range(9, 99), "status 503"), say=prefers(lambda one, other: None)) as server:
        with pytest.raises(StoppedEarly, match="9 of 40 verdicts are kept"):
            compare_pairwise(a, b, f"{server.url}/v1", options)
        server.faults = {}
        assert compare_pairwise(a, b, f"{server.url}/v1", options).verdicts.asked == 31


def test_a_metric_cannot_choose(tmp_path: Path) -> None:
    a, b = files(tmp_path, ["x"], ["y"])
    with pytest.raises(UserError, match="needs a model"):
        compare_pairwise(a, b, "offline")


@pytest.mark.parametrize(("reply", "choice"), [
    ('{"better": "first"}', "first"), ('```json\n{"better": "tie"}\n```', "tie"), ("The second.", "second"),
    ("<think>{\"better\": \"first\"}</think>{\"better\": \"second\"}", "second"), ("Tie!", "tie"),
    ('{"better": "both"}', None), ("first or second", None), ("not the first", None), ("The first is wrong.", None),
    ("At first glance they are equal.", None), ("second is worse", None), ("[\"first\"]", None),
    ("", None), ("[1]", None), ("12", None),
])  # fmt: skip
def test_choices_are_read_or_not(reply: str, choice: str | None) -> None:
    assert read_choice(reply) == choice


def test_outcomes_by_hand() -> None:
    outcomes = {
        ("first", "second"): "a", ("second", "first"): "b", ("first", "first"): "tie", ("second", "second"): "tie",
        ("tie", "tie"): "tie", ("first", "tie"): "tie", (None, "first"): None,
    }  # fmt: skip
    for (one, other), outcome in outcomes.items():
        assert PairwiseVerdict(0, one, other).outcome == outcome
    assert [PairwiseVerdict(0, one, other).consistent for one, other in outcomes] == [
        True,
        True,
        False,
        False,
        True,
        False,
        False,
    ]


def test_the_server_sees_both_orders(tmp_path: Path) -> None:
    a, b = files(tmp_path, ["left"], ["right"])
    server: JudgeServer
    with judging(say=prefers(lambda one, other: None)) as server:
        compare_pairwise(a, b, f"{server.url}/v1")
        assert {shown(message) for message in server.messages()} == {("left", "right"), ("right", "left")}


def test_nothing_is_concluded_from_few_choices_or_half_read_prompts(tmp_path: Path) -> None:
    a, b = files(tmp_path, ["bad"] * 30, ["good"] * 30)
    right = prefers(lambda one, other: one == "good")
    with judging(say=lambda message, n: right(message, n) if "Do 1" in message else "I cannot decide.") as server:
        found = compare_pairwise(a, b, f"{server.url}/v1").verdicts
        assert "not distinguishable" in found.sentence()
        assert "chose in only 11 of 30 rows" in found.sentence()
    with judging(say=right, read=lambda message: 12) as server:
        found = compare_pairwise(b, a, f"{server.url}/v1").verdicts
        assert found.coverage == 0
        assert "12 tokens of a prompt" in found.rows[0].reason
    with judging(always="status 400 no", say=right) as server:
        found = compare_pairwise(a, b, f"{server.url}/v1#judge", ScoreOptions(concurrency=1)).verdicts
        assert (found.coverage, found.failed, len(server.asked)) == (0, {}, 60 + 2 * 3)  # three of them in every form
