"""One figure from 0 to 100 for how far an answer agrees with its reference, on the scale of GPT-4's scores.

An exact copy gets `EXACT_COPY`. Any other answer gets a weighted sum of four features, each with a reason:

============  ==========================================================================================
feature       why
============  ==========================================================================================
novel_f1      what the prompt does not say already is what an answer is asked for
chrf          near misses: another form of the word, other quotes, a word left out
wrong_number  10 cm and 12 cm share nearly all letters, and one of them is wrong
echo          an answer that repeats the text which it was to change shares nearly all words with the reference
============  ==========================================================================================

**Where the weights come from.** `judged-sample.json`, 50 entries of `eval-example-data.json` of the book's chapter 7
with answers of two models and the scores GPT-4-turbo gave them: 100 answers, of which 49 are exact copies, all scored
100. Ridge regression (penalty 0.3 a row on standardised features, no weight of the wrong sign) on the other 51,
2026-11-21, by ``python -m benchmarks.calibrate``, which compares other feature sets as well. Repeated 5-fold
cross-validation with both answers of an entry in one fold (200 repeats, mean and standard deviation):

=========================================  =============  =============  ===================
features                                   Pearson        AUC at 80      Pearson, no copies
=========================================  =============  =============  ===================
none: exact copies against the rest        .753 ± .014    .865 ± .015    -.340 ± .112
chrf                                       .754 ± .017    .906 ± .017    -.062 ± .125
novel_f1                                   .807 ± .016    .946 ± .008    .366 ± .083
token_f1, chrf, novel_f1                   .803 ± .016    .949 ± .009    .348 ± .082
novel_f1, wrong_number                     .845 ± .014    .961 ± .005    .538 ± .059
novel_f1, wrong_number, echo               .872 ± .011    .971 ± .006    .643 ± .044
**novel_f1, chrf, wrong_number, echo**     .886 ± .011    .981 ± .004    .692 ± .040
these and the embeddings' cosine           .887 ± .011    .980 ± .005    .693 ± .041
=========================================  =============  =============  ===================

With half of the entries to learn from (2 folds): .880 ± .020, .979 ± .008, .669 ± .079. With the frozen weights, on
the rows they come from: .910, .988, .779. Llama 3 8B as a judge reaches .83, .94 and .65 on the file's original.

The features were chosen while looking at these rows, so the figures flatter; only the weights are cross-validated. A
difference in negation was thought of and left out: no row of the file has one, so there is nothing to weigh it by.
All words right but a comma or a quote wrong makes about 70, not 100: one row alone tells how GPT-4 sees that. GPT-4
is itself a stand-in for people, and these rows are short: read the figure as agreement with the reference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from instil.data.words import as_word, cased_words, words

EXACT_COPY = 100.0
INTERCEPT = 5.1
WEIGHTS: Mapping[str, float] = MappingProxyType({"novel_f1": 32.9, "chrf": 0.367, "wrong_number": -38.7, "echo": -26.9})

_SENTENCE_END = ".!?:\n"


def calibrated(features: Mapping[str, float]) -> float:
    """The score of an answer that is no exact copy, 0 to `EXACT_COPY`, from the features named in `WEIGHTS`.

    ``novel_f1``, ``wrong_number`` and ``echo`` are 0 to 1, ``chrf`` is 0 to 100.
    """
    score = INTERCEPT + sum(weight * features[name] for name, weight in WEIGHTS.items())
    return min(max(score, 0.0), EXACT_COPY)


def echo(answer: str, reference: str, prompt: str) -> bool:
    """Whether the answer is a piece of the prompt, word for word, though the reference is not.

    Case is ignored for the answer and kept for the reference, which may differ from the prompt in nothing
    else; a sentence's first word is the same with or without its capital. An answer of less than half the
    reference's words may be the one word that was asked for, and is no echo.

    >>> echo("The chef cooked a meal.", "A meal was cooked by the chef.", "Make it passive: The chef cooked a meal.")
    True
    >>> echo("i love it", "I Love It", "Capitalize each word: i love it")
    True
    >>> echo("fly", "The verb is 'fly'.", "Find the verb: Birds fly south.")
    False
    """
    said, wanted = words(answer), words(reference)
    long_enough = 2 * len(said) >= len(wanted)
    return long_enough and _inside(said, words(prompt)) and not _inside(_cased(reference), _cased(prompt))


def _inside(piece: Sequence[str], whole: Sequence[str]) -> bool:
    """Whether all words of the piece stand in a row in the whole."""
    return f" {' '.join(piece)} " in f" {' '.join(whole)} "


def _cased(text: str) -> list[str]:
    """Words with their case, but for the first letter of a sentence."""
    found = []
    for written, before in cased_words(text):
        word, end = as_word(written), before.rstrip(" \"'(\u2018\u201c")[-1:]
        found.append(word if end and end not in _SENTENCE_END else word[0].lower() + word[1:])
    return found
