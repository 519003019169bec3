"""Agreement with the reference, without a judge: exact match, chrF and ROUGE-L for each row.

These compare words and letters, not meaning; they are labelled so. `trivial_baseline` shows what an
answer that merely repeats the input would get, because on short tasks that is a lot.

Sources: chrF, Popovic 2015, through `sacrebleu` (character 6-grams, beta 2); ROUGE-L, Lin 2004, the F1
of the longest common subsequence of lower-cased words, through `rapidfuzz`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from statistics import mean
from typing import Any

from instil.errors import DataError
from instil.records import Example, Verdict

JUDGE = "offline"
METRICS = ("exact_match", "chrf", "rouge_l")
_QUOTES = "\"'`\u2018\u2019\u201c\u201d"


def score_offline(examples: Sequence[Example], answers: Sequence[str]) -> list[Verdict]:
    """One verdict for each row: ``score`` is the sentence's chrF (0 to 100), ``metrics`` holds all.

    ``exact_match`` is 0 or 1, ``chrf`` 0 to 100, ``rouge_l`` 0 to 1. A row without a reference is not
    scored, and says so.

    Raises:
        DataError: there are not as many answers as rows.
    """
    if len(examples) != len(answers):
        raise DataError(f"{len(answers)} answers for {len(examples)} rows; wanted one for each")
    verdicts = []
    for example, answer in zip(examples, answers, strict=True):
        if not example.output.strip():
            verdicts.append(Verdict(example.row, JUDGE, None, "the row has no reference answer"))
            continue
        metrics = {
            "exact_match": float(plain(answer) == plain(example.output)),
            "chrf": chrf(answer, example.output),
            "rouge_l": rouge_l(answer, example.output),
        }
        verdicts.append(Verdict(example.row, JUDGE, metrics["chrf"], metrics=metrics))
    return verdicts


def trivial_baseline(examples: Sequence[Example]) -> list[Verdict]:
    """The verdicts of an answer that repeats the input, or the instruction where there is none."""
    return score_offline(examples, [example.input or example.instruction for example in examples])


def means(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Mean of each metric over the scored rows; empty when none was scored."""
    scored = [verdict.metrics for verdict in verdicts if verdict.score is not None]
    if not scored:
        return {}
    return {name: mean(metrics[name] for metrics in scored) for name in METRICS}


def plain(text: str) -> str:
    """Lower case, without the final full stop and the quotes around.

    >>> plain('"The answer is 4."') == plain("the answer is 4")
    True
    """
    previous = None
    text = text.strip().lower()
    while text != previous:
        previous = text
        text = text.removesuffix(".").strip(_QUOTES).strip()
    return text


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF, 0 to 100."""
    return float(_chrf().sentence_score(answer, [reference]).score)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1.

    >>> round(rouge_l("the cat sat", "the black cat sat down"), 3)
    0.75
    """
    from rapidfuzz.distance import LCSseq

    said, wanted = _words(answer), _words(reference)
    if not said or not wanted:
        return 0.0
    return 2 * LCSseq.similarity(said, wanted) / (len(said) + len(wanted))


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())
