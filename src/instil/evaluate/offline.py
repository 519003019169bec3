r"""Agreement with the reference, without a judge: five metrics and one calibrated figure for each row.

These compare words and letters, not meaning; they are labelled so. `trivial_baseline` shows what an
answer that merely repeats the input would get, because on short tasks that is a lot.

===========  =======  ===================================================================================
metric       range    definition
===========  =======  ===================================================================================
exact_match  0 or 1   equal to the reference but for white space around; case is kept
chrf         0 - 100  sentence chrF, Popovic 2015, through `sacrebleu` (character 6-grams, beta 2)
rouge_l      0 - 1    ROUGE-L, Lin 2004: F1 of the longest common subsequence of words, as `rouge_score` has it
token_f1     0 - 1    F1 of the words, as bags; Rajpurkar et al. 2016 (SQuAD), but every word counts
novel_f1     0 - 1    the same, of the words that the prompt does not hold
embedding    -1 - 1   cosine of sentence embeddings (`embeddings.py`); only where asked for
===========  =======  ===================================================================================

Words are ``\w+``, lower-cased. `rouge_score` splits at everything but a-z and 0-9 instead, and so does ``rouge_l``:
the book's 110 answers get .58318 by it, and .58296 by ``\w+``; the library was preferred to that figure.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache
from statistics import mean
from typing import Any

from instil.errors import DataError
from instil.evaluate.calibration import EXACT_COPY, calibrated, echo, words, wrong_number
from instil.records import Example, Verdict

JUDGE = "offline"
METRICS = ("exact_match", "chrf", "rouge_l", "token_f1", "novel_f1")
# Articles and glue that any sentence has. Words that carry tense or negation are left out: tasks ask for them.
STOP_WORDS = frozenset("a an and are in is of the to".split())


def score_offline(examples: Sequence[Example], answers: Sequence[str], *, embeddings: bool = False) -> list[Verdict]:
    """One verdict for each row: ``score`` is the calibrated figure (0 to 100), ``metrics`` holds the others.

    The score is `EXACT_COPY` for an exact copy, 0 for an empty answer, and what `calibration.py` makes of the
    features for all others; it does not depend on ``embeddings``, which adds the metric ``embedding``. A row
    without a reference is not scored, and says so.

    Raises:
        DataError: there are not as many answers as rows.
        ModelError: embeddings are wanted, and the package that holds the model is absent or damaged.
    """
    if len(examples) != len(answers):
        raise DataError(f"{len(answers)} answers for {len(examples)} rows; wanted one for each")
    verdicts = []
    for example, answer in zip(examples, answers, strict=True):
        if not example.output.strip():
            verdicts.append(Verdict(example.row, JUDGE, None, "the row has no reference answer"))
            continue
        metrics = _metrics(example, answer)
        verdicts.append(Verdict(example.row, JUDGE, _score(example, answer, metrics), metrics=metrics))
    if embeddings:
        from instil.evaluate.embeddings import similarity

        scored = [at for at, verdict in enumerate(verdicts) if verdict.score is not None]
        cosines = similarity([answers[at] for at in scored], [examples[at].output for at in scored])
        for at, cosine in zip(scored, cosines, strict=True):
            verdicts[at].metrics["embedding"] = cosine
    return verdicts


def trivial_baseline(examples: Sequence[Example]) -> list[Verdict]:
    """The verdicts of an answer that repeats the input, or the instruction where there is none."""
    return score_offline(examples, [example.input or example.instruction for example in examples])


def means(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Mean score and mean of each metric over the scored rows; empty when none was scored.

    ``embedding`` is among them where every scored row has it.
    """
    scores = [verdict.score for verdict in verdicts if verdict.score is not None]
    scored = [verdict.metrics for verdict in verdicts if verdict.score is not None]
    if not scored:
        return {}
    extra = ("embedding",) if all("embedding" in metrics for metrics in scored) else ()
    return {"score": mean(scores)} | {name: mean(metrics[name] for metrics in scored) for name in (*METRICS, *extra)}


def _metrics(example: Example, answer: str) -> dict[str, float]:
    return {
        "exact_match": float(answer.strip() == example.output.strip()),
        "chrf": chrf(answer, example.output),
        "rouge_l": rouge_l(answer, example.output),
        "token_f1": token_f1(answer, example.output),
        "novel_f1": novel_f1(answer, example.output, _prompt(example)),
    }


def _score(example: Example, answer: str, metrics: dict[str, float]) -> float:
    if metrics["exact_match"]:
        return EXACT_COPY
    if not answer.strip():
        return 0.0
    return calibrated(features(answer, example.output, _prompt(example), metrics))


def features(answer: str, reference: str, prompt: str, metrics: dict[str, float]) -> dict[str, float]:
    """What the calibrated figure is made of: the metrics, and two faults that they do not see (0 or 1)."""
    return metrics | {
        "wrong_number": float(wrong_number(answer, reference, prompt)),
        "echo": float(echo(answer, reference, prompt)),
    }


def _prompt(example: Example) -> str:
    return f"{example.instruction}\n{example.input}"


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
    return _subsequence_f1(*(re.findall(r"[a-z0-9]+", text.lower()) for text in (answer, reference)))


def _subsequence_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    from rapidfuzz.distance import LCSseq

    if not said or not wanted:
        return 0.0
    return 2 * LCSseq.similarity(said, wanted) / (len(said) + len(wanted))


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words as bags, 0 to 1; 0 where either has none.

    >>> round(token_f1("sat the cat", "the black cat sat down"), 3)
    0.75
    """
    return _bag_f1(words(answer), words(reference))


def _bag_f1(said: Sequence[str], wanted: Sequence[str]) -> float:
    if not said or not wanted:
        return 0.0
    return 2 * (Counter(said) & Counter(wanted)).total() / (len(said) + len(wanted))


def novel_f1(answer: str, reference: str, prompt: str) -> float:
    """F1 of the words that are neither in the prompt nor in `STOP_WORDS`, 0 to 1.

    Where only one of the two has such words, it is 0: something is missing, or made up. Where neither has any, the
    task was to choose from the prompt or to rearrange it, so it is the F1 of the longest common subsequence of all
    words, which sees their order.

    >>> novel_f1("Its capital is Rome.", "Its capital is Oslo.", "Name its capital.")
    0.0
    >>> round(novel_f1("3, 2, 1", "1, 2, 3", "Sort 2, 3, 1."), 3)
    0.333
    """
    known = STOP_WORDS.union(words(prompt))
    said, wanted = _without(known, answer), _without(known, reference)
    if not said and not wanted:
        return _subsequence_f1(words(answer), words(reference))
    return _bag_f1(said, wanted)


def _without(known: frozenset[str], text: str) -> list[str]:
    return [word for word in words(text) if word not in known]
