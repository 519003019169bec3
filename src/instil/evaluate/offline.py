r"""Agreement with the reference, without a judge: five metrics and one calibrated figure for each row.

These compare words and letters, not meaning; they are labelled so. `trivial_baseline` shows what an
answer that merely repeats the input would get, because on short tasks that is a lot.

===========  =======  ===================================================================================
metric       range    definition
===========  =======  ===================================================================================
exact_match  0 or 1   equal to the reference but for white space around (and in NFC); case is kept
chrf         0 - 100  sentence chrF, Popovic 2015, through `sacrebleu` (character 6-grams, beta 2)
rouge_l      0 - 1    ROUGE-L, Lin 2004: F1 of the longest common subsequence of words, as `rouge_score` has it
token_f1     0 - 1    F1 of the words, as bags; Rajpurkar et al. 2016 (SQuAD), but every word counts
novel_f1     0 - 1    the same, of the words that the prompt does not hold
embedding    -1 - 1   cosine of sentence embeddings (`embeddings.py`); only where asked for
===========  =======  ===================================================================================

Words are those of `instil.data.words`, and all texts are compared in Unicode's NFC. A number counts as equal in the
word metrics (not in chrF and ROUGE-L, which are the libraries' own) where one reading makes it so: "1 500" is "1,500".
`rouge_score` splits at everything but a-z and 0-9 and has nothing of other scripts; ``rouge_l`` splits the words that
have such letters as it does, but keeps what stands between: the book's 110 answers get .58318 by both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Sequence
from functools import cache
from itertools import pairwise
from statistics import mean
from typing import Any

from instil.data.words import mostly_other_scripts, normal, same, units, words
from instil.errors import DataError
from instil.evaluate.calibration import EXACT_COPY, calibrated, echo
from instil.evaluate.numbers import wrong_number
from instil.evaluate.respelling import as_in
from instil.records import NO_ROOM, Example, Verdict, blank

JUDGE = "offline"
VERSION = 3  # of what is computed; 1 read words and numbers of other languages wrongly, and scored unanswerable rows;
# 2 had no emoji, and no fractions, magnitudes and numerals that are no digits
METRICS = ("exact_match", "chrf", "rouge_l", "token_f1", "novel_f1")
# Articles and glue that any sentence has. Words that carry tense or negation are left out: tasks ask for them.
STOP_WORDS = frozenset("a an and are in is of the to".split())


_LATIN = re.compile(r"[a-z0-9]+")


def score_offline(
    examples: Sequence[Example],
    answers: Sequence[str],
    *,
    embeddings: bool = False,
    no_room: Collection[int] = (),
) -> list[Verdict]:
    """One verdict for each row: ``score`` is the calibrated figure (0 to 100), ``metrics`` holds the others.

    The score is `EXACT_COPY` for an exact copy, 0 for an empty answer, and what `calibration.py` makes of the
    features for all others; it does not depend on ``embeddings``, which adds the metric ``embedding``. A row
    without a reference is not scored, and says so, nor is one of those in ``no_room``, which could not be answered.

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
        if example.row in no_room:
            verdicts.append(Verdict(example.row, JUDGE, None, NO_ROOM))
            continue
        metrics = _metrics(example, answer)
        verdicts.append(Verdict(example.row, JUDGE, _score(example, answer, metrics), metrics=metrics))
    if embeddings:
        from instil.evaluate.embeddings import similarity

        scored = [at for at, verdict in enumerate(verdicts) if verdict.score is not None]
        cosines = similarity([normal(answers[at]) for at in scored], [normal(examples[at].output) for at in scored])
        for at, cosine in zip(scored, cosines, strict=True):
            verdicts[at].metrics["embedding"] = cosine
    return verdicts


def trivial_baseline(examples: Sequence[Example]) -> list[Verdict]:
    """The verdicts of an answer that repeats the input, or the instruction where there is none."""
    return score_offline(examples, [example.about or example.instruction for example in examples])


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
        "exact_match": float(same(answer, example.output)),
        "chrf": chrf(answer, example.output),
        "rouge_l": rouge_l(answer, example.output),
        "token_f1": token_f1(answer, example.output),
        "novel_f1": novel_f1(answer, example.output, _prompt(example)),
    }


def _score(example: Example, answer: str, metrics: dict[str, float]) -> float:
    if metrics["exact_match"]:
        return EXACT_COPY
    if blank(answer):
        return 0.0
    return calibrated(features(answer, example.output, _prompt(example), metrics))


def features(answer: str, reference: str, prompt: str, metrics: dict[str, float]) -> dict[str, float]:
    """What the calibrated figure is made of: the metrics, and two faults that they do not see (0 or 1).

    Its chrF is of the answer with equal numbers as the reference writes them: another way to write one is no fault.
    """
    written = as_in(answer, reference)
    return metrics | {
        "chrf": chrf(written, reference) if written != normal(answer) else metrics["chrf"],
        "wrong_number": float(wrong_number(answer, reference, prompt)),
        "echo": float(echo(answer, reference, prompt)),
    }


def _prompt(example: Example) -> str:
    return f"{example.instruction}\n{example.about}"


def chrf(answer: str, reference: str) -> float:
    """Sentence chrF, 0 to 100."""
    return float(_chrf().sentence_score(normal(answer), [normal(reference)]).score)


@cache
def _chrf() -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF()


def rouge_l(answer: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, 0 to 1.

    >>> round(rouge_l("the cat sat", "the black cat sat down"), 3)
    0.75
    """
    both = units(answer, reference)
    parts = [[part for unit in found for part in _split(unit)] for found in both]
    return _subsequence_f1(*(parts if any(parts) else both))


def _split(word: str) -> list[str]:
    """A word in as many parts as `rouge_score` makes of it, but with what that leaves out; others stay as they are.

    >>> _split("l\u00edmite"), _split("a_b"), _split("\u043a\u043e\u0442"), _split("-5")
    (['l', '\u00edmite'], ['a', 'b'], ['\u043a\u043e\u0442'], ['-5'])
    """
    parts = []
    for piece in word.split("_"):
        begins = [match.start() for match in _LATIN.finditer(piece)][1:]
        ends = [match.end() for match in _LATIN.finditer(piece)][:-1]
        parts += [piece[start:end] for start, end in pairwise([0, *(ends or []), len(piece)])] if begins else [piece]
    return [part for part in parts if part]


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
    return _bag_f1(*units(as_in(answer, reference), reference))


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
    every = units(as_in(answer, reference), reference)
    said, wanted = ([unit for unit in found if unit not in known] for found in every)
    return _bag_f1(said, wanted) if said or wanted else _subsequence_f1(*every)


def of_other_scripts(examples: Sequence[Example]) -> str:
    """What must be said of the calibrated figure where most references are in other letters than Latin ones."""
    if not mostly_other_scripts([example.output for example in examples]):
        return ""
    return (
        "most references are in another script than Latin, and agreement was fitted on English answers: "
        "look at exact match and chrF first"
    )
