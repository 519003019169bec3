"""How the next token is picked, as a value that travels with each row (chapter 5.3, and what came after it).

Shape suffixes: R rows · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from instil.errors import InstilError, SettingsError
from instil.machine import sent
from instil.settings.options import GenerateOptions

NO_NUMBER = "the model's scores are no finite numbers; its weights are damaged, or training went too far"
CLOSE = 1e-3  # scores nearer than this may change places by rounding alone


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one row's tokens are picked.

    Attributes:
        temperature: 0 picks the likeliest token (greedy).
        top_k: sample among so many likeliest tokens; 0: all.
        top_p: among the fewest likeliest that have this probability together (Holtzman et al., 2020).
        min_p: among those at least this share as likely as the likeliest (Nguyen et al., 2024).
        repetition_penalty: scores of tokens that the row holds already are divided by it where positive, multiplied
            where negative (Keskar et al., 2019); 1: off.
        frequency_penalty: taken off the score of a token for each time that the answer holds it (as OpenAI's interface
            has it); 0: off.
        presence_penalty: the same once, however often the answer holds it.
        logit_bias: pairs of an id and what its score is raised by, at first of all.
        seed: of the row's own stream of numbers, so that neighbours do not matter.

    Raises:
        SettingsError: a value is out of its range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name, wanted, right in (
            ("temperature", "0 to 100", 0 <= self.temperature <= 100),
            ("top_k", "0 or more", self.top_k >= 0),
            ("top_p", "above 0, up to 1", 0 < self.top_p <= 1),
            ("min_p", "0 to 1", 0 <= self.min_p <= 1),
            ("repetition_penalty", "0.01 to 100", 0.01 <= self.repetition_penalty <= 100),
            ("frequency_penalty", "-100 to 100", -100 <= self.frequency_penalty <= 100),
            ("presence_penalty", "-100 to 100", -100 <= self.presence_penalty <= 100),
            ("logit_bias", "numbers from -100 to 100", all(-100 <= bias <= 100 for _, bias in self.logit_bias)),
        ):
            if not right:  # what is no number at all compares as false, too
                raise SettingsError(f"{name} is {getattr(self, name)}; wanted {wanted}")

    @staticmethod
    def of(options: GenerateOptions, row: int = 0) -> Sampling:
        """What the options say, with the stream of a row."""
        return Sampling(
            temperature=options.temperature,
            top_k=options.top_k,
            top_p=options.top_p,
            min_p=options.min_p,
            repetition_penalty=options.repetition_penalty,
            seed=options.seed * 1_000_003 + row,
        )

    @property
    def greedy(self) -> bool:
        """Whether nothing is left to chance."""
        return self.temperature == 0

    @property
    def by_text(self) -> bool:
        """Whether a row's scores are changed by what it holds, or by a bias."""
        return self.repetition_penalty != 1 or bool(self.frequency_penalty or self.presence_penalty or self.logit_bias)


def most_likely(logits_RV: Tensor) -> tuple[list[int], list[float]]:
    """The token of each row with the highest score, and by how much it leads. Spoils the scores.

    >>> most_likely(torch.tensor([[1.0, 4.0, 2.5]]))
    ([1], [1.5])

    Raises:
        InstilError: a score is no number.
    """
    best_R, ids_R = logits_RV.max(-1)
    logits_RV.scatter_(1, ids_R[:, None], float("-inf"))
    read = [ids_R.double(), best_R.double(), (best_R - logits_RV.amax(-1)).double()]
    ids, best, leads = torch.stack(read).tolist()  # all at once: a GPU is waited for once
    if not all(map(math.isfinite, best)):
        raise InstilError(NO_NUMBER)
    return [int(token) for token in ids], leads


def penalised(logits_V: Tensor, ids: Sequence[int], penalty: float) -> Tensor:
    """Scores of one row under a repetition penalty, in place.

    >>> penalised(torch.tensor([2.0, -1.0, 3.0]), [0, 1, 0], 2.0).tolist()
    [1.0, -2.0, 3.0]
    """
    if penalty != 1 and len(ids):
        seen = sent(torch.tensor(sorted(set(ids))), logits_V.device)
        scores = logits_V[seen]
        logits_V[seen] = torch.where(scores > 0, scores / penalty, scores * penalty)
    return logits_V


def shaped(logits_V: Tensor, prompt: Sequence[int], said: Sequence[int], sampling: Sampling) -> Tensor:
    """Scores of one row with all that depends on its own text: bias and penalties, in place.

    >>> often = Sampling(frequency_penalty=0.5, presence_penalty=0.25, logit_bias=((2, 3.0),))
    >>> shaped(torch.tensor([2.0, 1.0, 0.0]), [0, 0], [1, 1], often).tolist()
    [2.0, -0.25, 3.0]
    """
    if sampling.logit_bias:
        ids, biases = zip(*sampling.logit_bias, strict=True)
        biased = sent(torch.tensor(ids), logits_V.device)
        logits_V[biased] += sent(torch.tensor(biases, dtype=logits_V.dtype), logits_V.device)
    if sampling.repetition_penalty != 1:
        penalised(logits_V, [*prompt, *said], sampling.repetition_penalty)
    if said and (sampling.frequency_penalty or sampling.presence_penalty):
        seen, counts = torch.unique(torch.tensor(said), return_counts=True)
        taken = (sampling.frequency_penalty * counts + sampling.presence_penalty).to(logits_V.dtype)
        logits_V[sent(seen, logits_V.device)] -= sent(taken, logits_V.device)
    return logits_V


def probabilities(logits_RV: Tensor, sampling: Sampling) -> Tensor:
    """What is drawn from: the softmax of the scores at a temperature, with the unlikely taken out, [R, V].

    >>> probabilities(torch.tensor([[2.0, 2.0, 1.0]]), Sampling(temperature=1.0, top_k=2)).tolist()
    [[0.5, 0.5, 0.0]]
    """
    scores_RV = logits_RV.double()
    scores_RV = (scores_RV - scores_RV.amax(-1, keepdim=True)) / sampling.temperature  # no overflow near zero
    if 0 < sampling.top_k < scores_RV.shape[-1]:
        least_R1 = scores_RV.topk(sampling.top_k, dim=-1).values[:, -1:]
        scores_RV = scores_RV.masked_fill(scores_RV < least_R1, float("-inf"))
    shares_RV = scores_RV.softmax(-1)
    if sampling.top_p < 1:
        sorted_RV, order_RV = shares_RV.sort(dim=-1, descending=True, stable=True)
        before_RV = sorted_RV.cumsum(-1) - sorted_RV
        dropped_RV = torch.zeros_like(before_RV, dtype=torch.bool).scatter(1, order_RV, before_RV >= sampling.top_p)
        shares_RV = shares_RV.masked_fill(dropped_RV, 0.0)
    if sampling.min_p > 0:
        least_R1 = sampling.min_p * shares_RV.amax(-1, keepdim=True)
        shares_RV = shares_RV.masked_fill(shares_RV < least_R1, 0.0)
    return shares_RV / shares_RV.sum(-1, keepdim=True)


class Sampler:
    """A row's random numbers, which are its own; the same seed gives the same ones, whatever else goes on."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._point: Tensor | None = None

    @property
    def point(self) -> Tensor:
        """From 0 up to 1, where the next token stands among all, one after another as wide as they are likely."""
        if self._point is None:
            self._point = torch.rand((), generator=self._generator, dtype=torch.float64)
        return self._point

    def take(self) -> None:
        """The token that the point chose is taken; there will be another."""
        self._point = None


def drawn(shares_RV: Tensor, points_R: Sequence[Tensor]) -> list[int]:
    """The token of each row in which its point lies; -1 where probabilities are no numbers.

    >>> drawn(torch.tensor([[0.25, 0.0, 0.75]] * 2), [torch.tensor(0.2), torch.tensor(0.25)])
    [0, 2]
    """
    sums_RV = shares_RV.cumsum(-1)  # a token without probability adds nothing, so it is never met first
    points_R1 = sent(torch.stack(list(points_R)).to(shares_RV.dtype), shares_RV.device)[:, None]
    ids_R1 = torch.searchsorted(sums_RV, points_R1 * sums_RV[:, -1:], right=True)
    found: list[int] = ids_R1[:, 0].where(shares_RV.isfinite().all(-1), -1).tolist()
    return found
