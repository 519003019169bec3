"""Derives the weights of `instil.evaluate.calibration` anew and compares sets of features.

``python -m benchmarks.calibrate judged-sample.json`` prints the table of cross-validated figures, the weights, and
whether the frozen ones are the same; it ends with 1 if they are not.

Shape suffixes: R answers · F features.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from instil.errors import DataError
from instil.evaluate.calibration import EXACT_COPY, INTERCEPT, WEIGHTS
from instil.evaluate.offline import features, score_offline
from instil.records import Example

Floats = NDArray[np.float64]

PENALTY = 0.3  # per answer, on standardised features
FOLDS = 5
GOOD = 80  # from this score of GPT-4 on, an answer counts as right
FAULTS = ("wrong_number", "echo")  # these may only lower a score, all others only raise it
CHOSEN = tuple(WEIGHTS)
SETS: tuple[tuple[str, ...], ...] = (
    (),
    ("chrf",),
    ("token_f1",),
    ("rouge_l",),
    ("novel_f1",),
    ("token_f1", "chrf", "novel_f1"),
    ("novel_f1", "chrf"),
    ("novel_f1", "wrong_number"),
    ("novel_f1", "echo"),
    ("novel_f1", "wrong_number", "echo"),
    ("chrf", "wrong_number", "echo"),
    CHOSEN,
    (*CHOSEN, "token_f1"),
    (*CHOSEN, "rouge_l"),
)


@dataclass(frozen=True)
class Judged:
    """Answers with GPT-4's scores: what is known of each, which entry it is of, and whether it is an exact copy."""

    features: Mapping[str, Floats]
    scores_R: Floats
    entries_R: NDArray[np.int64]
    copies_R: NDArray[np.bool_]

    def matrix(self, names: Sequence[str]) -> Floats:
        """The named features, [R, F]."""
        columns = [self.features[name] for name in names]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self.scores_R), 0))


@dataclass(frozen=True)
class Figures:
    """Pearson with GPT-4 over all answers, AUC at `GOOD`, and Pearson over those that are no exact copies."""

    pearson: float
    auc: float
    hard: float


def read(path: Path, *, embeddings: bool = False) -> Judged:
    """The judged answers of a file in the book's form, both models' of each entry; or what `keep` has left of them."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    if isinstance(entries, dict):
        table_RC = np.array(entries["answers"], dtype=np.float64)
        columns = dict(zip(entries["columns"], table_RC.T, strict=True))
        entries_R, scores_R = columns.pop("entry").astype(np.int64), columns.pop("score")
        return Judged(columns, scores_R, entries_R, columns["exact_match"] == 1)
    examples, answers, scores = [], [], []
    for number, entry in enumerate(entries):
        for model in (1, 2):
            examples.append(Example(entry["instruction"], entry["output"], entry["input"], row=number))
            answers.append(entry[f"model {model} response"])
            scores.append(entry[f"gpt4_model_{model}"])
    if not examples:
        raise DataError(f"{path} holds no entries; wanted the book's form with gpt4_model_1 and gpt4_model_2")
    known = [
        features(answer, example.output, f"{example.instruction}\n{example.input}", verdict.metrics)
        for example, answer, verdict in zip(
            examples, answers, score_offline(examples, answers, embeddings=embeddings), strict=True
        )
    ]
    return Judged(
        {name: np.array([one[name] for one in known], dtype=np.float64) for name in known[0]},
        np.array(scores, dtype=np.float64),
        np.array([example.row for example in examples], dtype=np.int64),
        np.array([one["exact_match"] == 1 for one in known]),
    )


def keep(judged: Judged, path: Path) -> None:
    """Write down what the weights come from, without anybody's sentences: a line of numbers for each answer."""
    names = ("exact_match", "token_f1", "rouge_l", "novel_f1", "chrf", "wrong_number", "echo")
    rows = [
        [entry, score, *(round(float(judged.features[name][at]), 6) for name in names)]
        for at, (entry, score) in enumerate(zip(judged.entries_R.tolist(), judged.scores_R.tolist(), strict=True))
    ]
    about = "50 entries of eval-example-data.json of the book's chapter 7: GPT-4's scores of two models' answers"
    lines = ",\n".join(json.dumps(row) for row in rows)
    head = json.dumps({"about": about, "columns": ["entry", "score", *names]})[:-1]
    path.write_text(f'{head}, "answers": [\n{lines}\n]}}\n', encoding="utf-8")


def ridge(values_RF: Floats, scores_R: Floats, signs_F: Floats, penalty: float) -> tuple[float, Floats]:
    """Intercept and weights [F] of least squares with ``penalty`` a row on standardised features.

    A weight never has the other sign than ``signs_F``: coordinate descent, which such a problem of few features
    needs no library for.
    """
    middle_F, spread_F = values_RF.mean(axis=0), values_RF.std(axis=0)
    spread_F = np.where(spread_F > 0, spread_F, 1.0)
    scaled_RF = (values_RF - middle_F) / spread_F
    left_R = scores_R - scores_R.mean()
    weights_F = np.zeros(values_RF.shape[1])
    for _ in range(200):
        for at in range(len(weights_F)):
            column_R = scaled_RF[:, at]
            pull = column_R @ left_R + (column_R @ column_R) * weights_F[at]
            wanted = pull / (column_R @ column_R + penalty * len(scores_R))
            wanted = wanted if wanted * signs_F[at] > 0 else 0.0
            left_R = left_R - column_R * (wanted - weights_F[at])
            weights_F[at] = wanted
    weights_F = weights_F / spread_F
    return float(scores_R.mean() - middle_F @ weights_F), weights_F


def fit(judged: Judged, names: Sequence[str], rows_R: NDArray[np.bool_]) -> tuple[float, Floats]:
    """Intercept and weights from those of the rows that are no exact copies."""
    use_R = rows_R & ~judged.copies_R
    signs_F = np.array([-1.0 if name in FAULTS else 1.0 for name in names])
    return ridge(judged.matrix(names)[use_R], judged.scores_R[use_R], signs_F, PENALTY)


def predict(judged: Judged, names: Sequence[str], fitted: tuple[float, Floats]) -> Floats:
    """Scores of all answers [R]."""
    scores_R = np.clip(fitted[0] + judged.matrix(names) @ fitted[1], 0, EXACT_COPY)
    return np.where(judged.copies_R, EXACT_COPY, scores_R)


def figures(judged: Judged, predicted_R: Floats) -> Figures:
    """How predicted scores agree with GPT-4's."""
    good_R, hard_R = judged.scores_R >= GOOD, ~judged.copies_R
    above = predicted_R[good_R][:, None] - predicted_R[~good_R][None, :]
    auc = float(np.mean((above > 0) + 0.5 * (above == 0)))
    return Figures(_pearson(predicted_R, judged.scores_R), auc, _pearson(predicted_R[hard_R], judged.scores_R[hard_R]))


def _pearson(one_R: Floats, other_R: Floats) -> float:
    if one_R.std() == 0 or other_R.std() == 0:
        return float("nan")
    return float(np.corrcoef(one_R, other_R)[0, 1])


def cross_validate(judged: Judged, names: Sequence[str], repeats: int, *, folds: int = FOLDS) -> Floats:
    """Figures of predictions for entries left out, [repeats, 3]: both answers of an entry are in one fold."""
    random = np.random.default_rng(0)
    entries = int(judged.entries_R.max()) + 1
    found = []
    for _ in range(repeats):
        fold_R = (random.permutation(entries) % folds)[judged.entries_R]
        predicted_R = np.zeros(len(judged.scores_R))
        for fold in range(folds):
            left_out_R = fold_R == fold
            predicted_R[left_out_R] = predict(judged, names, fit(judged, names, ~left_out_R))[left_out_R]
        got = figures(judged, predicted_R)
        found.append((got.pearson, got.auc, got.hard))
    return np.array(found)


def derive(judged: Judged) -> tuple[float, dict[str, float]]:
    """Intercept and weights of the chosen features from all rows, rounded as they are frozen.

    Weights are in points of score for the whole range of the feature's own unit; chrF has two digits more, as its
    unit is a hundredth of the others'.
    """
    intercept, weights_F = fit(judged, CHOSEN, np.ones(len(judged.scores_R), dtype=bool))
    return round(intercept, 1), {
        name: round(float(weight), 3 if name == "chrf" else 1) for name, weight in zip(CHOSEN, weights_F, strict=True)
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table and the weights; 1 where the frozen ones differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("path", type=Path, help="judged-sample.json, or a file of its form")
    parser.add_argument("--repeats", type=int, default=200, help="of the cross-validation; default 200")
    parser.add_argument("--folds", type=int, default=FOLDS, help=f"default {FOLDS}")
    parser.add_argument("--embeddings", action="store_true", help="also sets with the cosine of sentence embeddings")
    parser.add_argument("--keep", type=Path, help="write the answers' features and scores here, without their texts")
    asked = parser.parse_args(arguments)
    judged = read(asked.path, embeddings=asked.embeddings)
    if asked.keep:
        keep(judged, asked.keep)
    print(f"{len(judged.scores_R)} answers, {int(judged.copies_R.sum())} of them exact copies, for which GPT-4 gave")
    print(f"{judged.scores_R[judged.copies_R].mean():.1f} on average; {asked.repeats} x {asked.folds} folds\n")
    print("| features | Pearson | AUC at 80 | Pearson, no copies |\n| --- | ---: | ---: | ---: |")
    extra = (("embedding",), ("novel_f1", "embedding"), (*CHOSEN, "embedding")) if asked.embeddings else ()
    for names in (*SETS, *extra):
        runs = cross_validate(judged, names, asked.repeats, folds=asked.folds)
        cells = [f"{middle:.3f} ± {spread:.3f}" for middle, spread in zip(runs.mean(0), runs.std(0), strict=True)]
        print("| " + " | ".join([" + ".join(names) or "none (exact match)", *cells]) + " |", flush=True)
    intercept, weights = derive(judged)
    everything = figures(judged, predict(judged, CHOSEN, (INTERCEPT, np.array(list(WEIGHTS.values())))))
    print(f"\nfrozen weights on these rows: {everything}")
    same = intercept == INTERCEPT and weights == dict(WEIGHTS)
    print(f"derived: INTERCEPT = {intercept}, WEIGHTS = {weights}: {'as frozen' if same else 'NOT as frozen'}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
