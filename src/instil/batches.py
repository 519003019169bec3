"""What is computed at once: tokens of several rows, or of pairs, and what is to be predicted from which.

Shape suffixes: B rows of a batch · T positions of a row · N tokens to compute (all rows, flat) ·
S supervised predictions · M scored predictions of pairs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from instil.layouts import Grid, Layout
from instil.machine import sent

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100  # torch's cross_entropy skips this target


@dataclass(frozen=True, slots=True)
class Known:
    """`Batch.states`, `Batch.trained_tokens` and `Batch.real_tokens` of a batch."""

    states: tuple[Tensor, Tensor]
    trained_tokens: float
    real_tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens to compute, where each one stands, and what is to be predicted from which.

    =============  =====  =========================================================
    field          shape  meaning
    =============  =====  =========================================================
    ids_N          [N]    token ids, flat
    positions_N    [N]    position of each token in its own sequence, from 0
    rows_N         [N]    which row of the batch it belongs to; -1 for padding, 0 for what all rows share
    at_S           [S]    index into N of each supervised prediction
    targets_S      [S]    the id to be predicted there
    weights_S      [S]    how often that prediction counts: the sum of the weights of the rows that make it
    layout         -      which tokens see which (`Grid`, `Tree`: causal within each row)
    examples       [B]    the row numbers of the data set, for messages
    known          -      what was found out before the batch went to a GPU, which would be waited for
    =============  =====  =========================================================

    The head is applied to ``hidden[at_S]`` only, and a loss is ``sum(weights_S * nll_S)`` with
    ``trained_tokens`` as its count, which is a fraction where messages have fractions as weights.
    """

    ids_N: Tensor
    positions_N: Tensor
    rows_N: Tensor
    at_S: Tensor
    targets_S: Tensor
    weights_S: Tensor
    layout: Layout
    examples: tuple[int, ...] = ()
    known: Known | None = None

    def states(self) -> tuple[Tensor, Tensor]:
        """Which tokens predict anything, [U], in order, and which of these each prediction is made from, [S]."""
        return self.known.states if self.known else self.at_S.unique(return_inverse=True)  # type: ignore[no-untyped-call]

    @property
    def trained_tokens(self) -> float:
        """How many predictions the loss sums over, each as often as it counts."""
        if self.known:
            return self.known.trained_tokens
        return float(self.weights_S.double().sum().item())

    @property
    def real_tokens(self) -> int:
        """How many tokens the rows have, without padding; a shared one counts in every row."""
        if self.known:
            return self.known.real_tokens
        return self.layout.tokens_of_rows - int((self.rows_N < 0).sum().item())

    @property
    def inputs(self) -> Tensor:
        """The ids as the book's collate returns them, [B, T] (only of a padded grid)."""
        return self.ids_N.view(self.layout.rows, self._grid.length)

    @property
    def targets(self) -> Tensor:
        """The targets as the book's collate returns them, [B, T], -100 where nothing is predicted."""
        flat = self.ids_N.new_full(self.ids_N.shape, IGNORED)
        flat[self.at_S] = self.targets_S
        return flat.view(self.layout.rows, self._grid.length)

    @property
    def _grid(self) -> Grid:
        if not isinstance(self.layout, Grid):
            raise TypeError("a batch that shares its prefix has no rectangle of ids; make it with collate()")
        return self.layout

    @staticmethod
    def untargeted(ids_N: Tensor, positions_N: Tensor, rows_N: Tensor, layout: Layout) -> Batch:
        """Tokens of which nothing is to be predicted by the loss: prompts, and tokens being generated."""
        none = ids_N.new_empty(0)
        return Batch(ids_N, positions_N, rows_N, none, none, none.float(), layout)

    def to(self, device: Any) -> Batch:
        """The same batch on another device; what hangs on its values is found out before."""
        if self.ids_N.device == device:
            return self
        known = self.known
        if len(self.at_S):
            at_U, row_S = self.states()
            known = Known((sent(at_U, device), sent(row_S, device)), self.trained_tokens, self.real_tokens)
        return Batch(
            sent(self.ids_N, device),
            sent(self.positions_N, device),
            sent(self.rows_N, device),
            sent(self.at_S, device),
            sent(self.targets_S, device),
            sent(self.weights_S, device),
            self.layout,
            self.examples,
            known,
        )

    def tensors(self) -> list[Tensor]:
        """All that it consists of."""
        found = [getattr(self, field.name) for field in fields(self)]
        parts = [one for one in found if hasattr(one, "record_stream")]
        return [*parts, *(self.known.states if self.known else ())]


@dataclass(frozen=True, slots=True)
class PairBatch(Batch):
    """A batch of preference pairs; the rows are the first pair's chosen and rejected, the second's, and so on.

    Every prediction is made once, however many rows it belongs to. The weights count those of chosen rows that are
    trained on, for a loss that is a likelihood; what is scored of each row is listed here:

    ============  =====  ==============================================================================
    field         shape  meaning
    ============  =====  ==============================================================================
    prediction_M  [M]    index into S of each scored id of each row, row after row
    row_M         [M]    the row it belongs to, 0 to 2 * pairs - 1
    reference_M   [M]    its log-probability under the reference model; zeros where that is not known
    others        -      the same prompts with answers of other rows, or None
    ============  =====  ==============================================================================
    """

    prediction_M: Tensor = None  # type: ignore[assignment]  # fields after those with defaults need one
    row_M: Tensor = None  # type: ignore[assignment]
    reference_M: Tensor = None  # type: ignore[assignment]
    others: PairBatch | None = None

    @property
    def pairs(self) -> int:
        """How many pairs there are."""
        return self.layout.rows // 2

    def to(self, device: Any) -> PairBatch:
        """The same batch on another device."""
        plain = Batch.to(self, device)
        if isinstance(plain, PairBatch):
            return plain
        return PairBatch(
            **{field.name: getattr(plain, field.name) for field in fields(plain)},
            prediction_M=sent(self.prediction_M, device),
            row_M=sent(self.row_M, device),
            reference_M=sent(self.reference_M, device),
            others=self.others.to(device) if self.others else None,
        )

    def tensors(self) -> list[Tensor]:
        return [*Batch.tensors(self), *(self.others.tensors() if self.others else ())]
