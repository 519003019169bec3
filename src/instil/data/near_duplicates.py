"""Rows that say nearly the same: held-out rows that were as good as seen in training.

Two texts are as near as the cosine of their TF-IDF vectors of single characters, pairs and triples, in lower case, in
one normal form (NFC), and without punctuation (letters keep their marks): the book's bonus material (chapter 7, dataset
utilities) finds duplicates so, from 0.9 on. Rarity is smoothed: ln((1 + texts) / (1 + texts with it)) + 1.

Shape suffixes: H held-out rows of a chunk · T training rows · V different n-grams.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter

import torch
from torch import Tensor

from instil.data.words import without_punctuation
from instil.errors import counted
from instil.records import Example

NEAR = 0.9
LONGEST_N_GRAM = 3
AT_ONCE = 64_000_000  # numbers of a dense chunk


@dataclass(frozen=True, slots=True)
class Near:
    """A held-out row, the training row nearest to it, and their cosine."""

    row: int
    train_row: int
    cosine: float


def leaked(train: Sequence[Example], held_out: Sequence[Example], threshold: float = NEAR) -> list[Near]:
    """Held-out rows whose prompt (instruction and input) has a training prompt at least as near as ``threshold``.

    >>> train = [Example("Add 2 and 3.", "5", row=0), Example("Name a colour.", "Red.", row=1)]
    >>> leaked(train, [Example("Name a color!", "Blue.", row=7), Example("Say hello.", "Hello.", row=8)], 0.8)
    [Near(row=7, train_row=1, cosine=0.8198)]
    """
    if not train or not held_out:
        return []
    cosines, nearest = nearest_of([prompt_text(row) for row in train], [prompt_text(row) for row in held_out])
    return [
        Near(row.row, train[at].row, round(cosine, 4))
        for row, at, cosine in zip(held_out, nearest, cosines, strict=True)
        if cosine >= threshold
    ]


def prompt_text(row: Example) -> str:
    """What is compared: instruction and input; of a text without a question the text."""
    return f"{row.instruction or row.output} {row.about}"


def nearest_of(known: Sequence[str], asked: Sequence[str]) -> tuple[list[float], list[int]]:
    """For each text asked about the cosine of the nearest known one, and its index."""
    found = Seen(known, common=asked).nearest_of_each(asked)
    return [cosine for cosine, _ in found], [at for _, at in found]


class Seen:
    """Texts seen so far, to tell whether a further one is near to one of them; texts can be added.

    How rare an n-gram is stays as it was in the first texts, so that a cosine does not depend on what came later.

    Args:
        texts: what has been seen.
        common: further texts, from which rarity is taken as well; few texts alone do not tell what is rare.

    >>> seen = Seen(["Name a colour."], ["Add 2 and 3.", "Say hello.", "Sort these words."])
    >>> seen.nearest("Name a color!")[0] > 0.8 > seen.nearest("Sort these numbers.")[0]
    True
    """

    def __init__(self, texts: Sequence[str], common: Sequence[str] = ()) -> None:
        counts = [_n_grams(text) for text in [*texts, *common]]
        times = Counter(gram for count in counts for gram in count)
        self._index = {gram: at for at, gram in enumerate(times)}
        self._rarity = {gram: math.log((1 + len(counts)) / (1 + there)) + 1 for gram, there in times.items()}
        self._unknown = math.log(1 + len(counts)) + 1
        self._first_TV = self._rows(map(self._weights, counts[: len(texts)]))
        self._later: list[dict[str, float]] = []

    def __len__(self) -> int:
        return len(self._first_TV) + len(self._later)

    def nearest(self, text: str) -> tuple[float, int]:
        """The cosine of the nearest text, and its number in the order of arrival; 0 and -1 if there is none."""
        return self.nearest_of_each([text])[0]

    def nearest_of_each(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """The same for many texts at once."""
        found: list[tuple[float, int]] = []
        step = max(1, AT_ONCE // max(len(self._index), len(self._first_TV), 1))
        for start in range(0, len(texts), step):
            asked = [self._weights(_n_grams(text)) for text in texts[start : start + step]]
            first = [(0.0, -1)] * len(asked)
            if len(self._first_TV):
                best = (self._first_TV @ self._rows(asked).to_dense().T).max(dim=0)
                first = list(zip(best.values.tolist(), best.indices.tolist(), strict=True))
            for weights, nearest in zip(asked, first, strict=True):
                later = [
                    (sum(weight * other[gram] for gram, weight in weights.items() if gram in other), at)
                    for at, other in enumerate(self._later, start=len(self._first_TV))
                ]
                cosine, at = max([nearest, *later], key=itemgetter(0))
                found.append((min(cosine, 1.0), at))
        return found

    def add(self, text: str) -> None:
        """One more text."""
        self._later.append(self._weights(_n_grams(text)))

    def _weights(self, count: Counter[str]) -> dict[str, float]:
        """A text's TF-IDF vector of length one, by n-gram."""
        weights = {gram: times * self._rarity.get(gram, self._unknown) for gram, times in count.items()}
        length = max(math.sqrt(sum(weight**2 for weight in weights.values())), 1e-12)
        return {gram: weight / length for gram, weight in weights.items()}

    def _rows(self, vectors: Iterable[dict[str, float]]) -> Tensor:
        """Such vectors as sparse rows, [vectors, V], without n-grams that the first texts did not have."""
        ends, columns, weights = [0], array("q"), array("f")
        for vector in vectors:
            known = [gram for gram in vector if gram in self._index]
            columns.extend(self._index[gram] for gram in known)
            weights.extend(vector[gram] for gram in known)
            ends.append(len(columns))
        rows = torch.arange(len(ends) - 1).repeat_interleave(torch.tensor(ends).diff())
        return torch.sparse_coo_tensor(
            torch.stack([rows, torch.tensor(columns, dtype=torch.long)]),
            torch.tensor(weights, dtype=torch.float32),
            (len(ends) - 1, len(self._index)),
            check_invariants=False,  # torch warns where nothing is said
        ).coalesce()


def _n_grams(text: str) -> Counter[str]:
    text = without_punctuation(text)
    return Counter(text[at : at + n] for n in range(1, LONGEST_N_GRAM + 1) for at in range(len(text) - n + 1))


def leak_line(leaks: Sequence[Near], part: str) -> str:
    """Which held-out rows were as good as seen in training.

    >>> leak_line([Near(936, 12, 0.97)], "test")
    '1 test row is nearly the same as a training row: 936 (like 12)'
    """
    shown = ", ".join(f"{near.row} (like {near.train_row})" for near in leaks[:10])
    more = f" and {len(leaks) - 10} more" if len(leaks) > 10 else ""
    same = "is nearly the same as a training row" if len(leaks) == 1 else "are nearly the same as training rows"
    return f"{counted(len(leaks), f'{part} row')} {same}: {shown}{more}"
