"""The processes that train one model together, as each of them sees them; one alone is the plain case.

A step's rows are dealt among them; losses are sums and counts that are added up over all of them, so that together they
compute what one would (E1). `instil.train.parallel` has those that are more than one; nothing here knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

from torch import Tensor

from instil.batches import Batch
from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.model.files.safetensors import Later

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Pass:
    """A batch that is computed forward and backward; the ``last`` of a step.

    One that does not ``count`` is computed for the sake of other processes, which wait for this one's part.
    """

    batch: Batch
    last: bool
    counts: bool = True


class UnreadWeights(ModelError):
    """Weights cannot be read by one of several processes; all of them are told."""


class Ranks:
    """One process, alone.

    Attributes:
        rank: the number of this process, from 0; the first alone writes and shows.
        world: how many there are.
        divided: what gradients are divided by as they are added up, and losses are to be multiplied by before.
        sharded: whether each holds a part of every weight, so that all of them compute a block at once or not at all.
    """

    rank = 0
    world = 1
    divided = 1
    sharded = False

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.world == 1

    @property
    def share(self) -> tuple[int, int]:
        """Which of how many this is."""
        return self.rank, self.world

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each of these added up over all processes, in float64; all have to ask, with equally many."""
        return list(values)

    def any(self, flag: bool) -> bool:
        """Whether it is so in any process; all have to ask."""
        return bool(self.sum([float(flag)])[0])

    def agree(self, value: Value) -> Value:
        """What the first process says, which can be pickled; all have to ask, and others' values are ignored."""
        return value

    def gather(self, value: Value) -> list[Value]:
        """What each process says, by their numbers; it can be pickled, and all have to ask."""
        return [value]

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Make these tensors what they are in the first process; all have to bring the same."""
        del tensors

    @contextmanager
    def sharding(self, decoder: Decoder, *, narrow: bool = False) -> Iterator[Decoder]:
        """Inside, what is trained in its place: where weights are sharded, a decoder with a part of each. Afterwards
        the one given has the weights; one whose weights are elsewhere has this process's part of them from now on, and
        its adapters.

        ``narrow``: products are in bfloat16.

        Raises:
            UnreadWeights: some process cannot read its part.
        """
        del narrow
        yield decoder

    def collected(self, decoder: Decoder) -> Decoder:
        """In the first process, one whose weights are elsewhere: in the parts that all processes have of a decoder.

        The others have to `hand_over` what is asked for, until they `agree` with the first on an empty text.
        """
        raise NotImplementedError("one process alone has no parts of tensors")

    def later(self, parts: Mapping[str, Tensor]) -> dict[str, Later]:
        """In the first process, each of these tensors as a whole when it is asked for; as with `collected`."""
        raise NotImplementedError("one process alone has no parts of tensors")

    def hand_over(self, parts: Mapping[str, Tensor]) -> None:
        """See `collected`; ``parts`` are this process's, by their names."""
        raise NotImplementedError("one process alone has no parts of tensors")

    def let_go(self, decoder: Decoder) -> None:
        """Hold no more of the weights than this process's parts, after a pass without backward."""
        del decoder

    def put(self, into: Tensor, whole: Tensor) -> None:
        """Copy a whole tensor into what this process holds of it."""
        into.copy_(whole)

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        """Write the parts that each process has of tensors into a folder; all have to ask.

        Raises:
            OSError: some process cannot write.
        """
        raise NotImplementedError("one process alone has no parts of tensors")

    @contextmanager
    def together(self, decoder: Decoder, loader: object) -> Iterator[None]:
        """Inside, `passes` and `forward` leave the same gradients in each process.

        Args:
            decoder: what is trained; it is as it was afterwards.
            loader: of several processes, one that gives a share of each step (`Spares`).
        """
        del decoder, loader
        yield

    def passes(self, batches: Sequence[Batch]) -> Iterator[Pass]:
        """The batches of a step; backward comes while each is looked at, and gradients are whole after the last."""
        for index, batch in enumerate(batches):
            yield Pass(batch, last=index == len(batches) - 1)

    def level(self, batches: Sequence[Batch]) -> Iterator[Pass]:
        """Batches that are computed forward only."""
        return self.passes(batches)

    @contextmanager
    def in_step(self, decoder: Decoder) -> Iterator[None]:
        """Inside, this process computes as many passes of a decoder as it likes, forward only.

        Where each has a part of the weights, who has computed its own goes on beside the others until all have; so all
        have to come here, be it without a pass of their own.
        """
        del decoder
        yield

    def forward(self, decoder: Decoder, compute: Callable[[Decoder], Tensor]) -> Tensor:
        """``compute(decoder)``, of which backward is asked."""
        return compute(decoder)

    def is_loss(self, error: BaseException) -> bool:
        """Whether an error says that another process is gone."""
        del error
        return False


@runtime_checkable
class Spares(Protocol):
    """A loader whose steps may be empty."""

    def spare(self) -> Batch:
        """A batch to compute that does not count."""


ALONE = Ranks()


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor: all of it, where it is not sharded."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
