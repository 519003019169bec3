"""Whether a judge can be trusted, asked before it is."""

from __future__ import annotations

from collections.abc import Sequence

from instil.evaluate.health import Health, check_judge, questions
from instil.evaluate.journal import Journal
from instil.evaluate.judging import judge_answers
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.offline import score_offline
from instil.evaluate.options import ScoreOptions
from instil.recipes.progress import Screen
from instil.recipes.score import opened
from instil.records import Example, Verdict


def check(judge: str, options: ScoreOptions, screen: Screen) -> Health:
    """Judge known-good, known-bad and shuffled answers, and canaries; nothing is kept.

    Raises:
        JudgeError, StoppedEarly: the judge is not there, or stopped answering.
    """
    if judge == OFFLINE:
        return check_judge(judge, score_offline)
    with (
        opened(judge, options) as asked,
        screen.bar(f"checking {asked.name}", questions() * options.repeats) as advance,
    ):

        def score(examples: Sequence[Example], answers: Sequence[str]) -> tuple[Verdict, ...]:
            judged = judge_answers(asked, examples, answers, options, Journal(), advance, empty_is_zero=False)
            return judged.verdicts

        return check_judge(judge, score)
