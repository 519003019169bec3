"""The whole of a training between two optimizer steps, as a value: who has it goes on as if nothing had happened (E0).

Where training is, is one number: the optimizer steps done. The seeded order of rows is a function of seed, epoch and
place, so nothing of it is kept. The book's order is drawn from torch's own generator; of that the state is kept as it
was when the epoch began (from which its order is drawn again) and as it is now.

What is not trained is no part of a state: a frozen base, also one in few bits, is made again from its model.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from instil.errors import ModelError
from instil.model.decoder import Decoder
from instil.train.metrics import StepRecord
from instil.train.optimizer import AdamWInBackward
from instil.train.ranks import ALONE, Ranks
from instil.train.touched import TABLE, TouchedRows


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training is, and what it counts; it can be written as JSON and read by `instil.files.record_of`.

    ``done`` of ``planned`` optimizer steps, of which an epoch has ``in_an_epoch``. ``evaluated`` says whether the last
    of them was followed by an evaluation; the latest is ``validation``, ``train`` and ``metrics``
    (`instil.train.evaluation.Evaluation`). ``best_loss`` is None as long as there is no best model, and ``worse``
    counts the validations since. ``decayed`` is what the rows of `TABLE` that no batch reads are still to be multiplied
    by. ``epoch_random`` and ``random`` are states of generators, when the epoch of the last step began, and now.
    ``next_loss`` is the loss of the next step before it is taken (`instil.train.proof`); None: it was not looked at.
    """

    done: int
    planned: int
    in_an_epoch: int
    tokens_seen: int
    seconds: float
    evaluated: bool
    validation: float | None
    train: float | None
    metrics: dict[str, float]
    before: float | None
    best_loss: float | None
    best_step: int | None
    worse: int
    decayed: float
    epoch_random: dict[str, str]
    random: dict[str, str]
    next_loss: float | None = None


@dataclass(frozen=True, slots=True)
class TrainState:
    """The state of a training.

    Attributes:
        progress: where it is.
        records: of every step so far, and of what was before the first.
        tensors: weights that are trained, and the optimizer's moments and counts, by names such as
            ``weights/embed.weight``. As an observer is given them they are those that training goes on to change:
            write them down at once, or `copied`.
        best: the weights of the best model so far, by their names; empty where none is kept.
    """

    progress: Progress
    records: tuple[StepRecord, ...]
    tensors: Mapping[str, Tensor]
    best: Mapping[str, Tensor]

    def copied(self) -> TrainState:
        """One that later steps do not change; takes as much memory again."""
        tensors, best = ({name: one.detach().clone() for name, one in of.items()} for of in (self.tensors, self.best))
        return TrainState(self.progress, self.records, tensors, best)


def named_tensors(decoder: Decoder, optimizer: AdamWInBackward, touched: TouchedRows | None) -> dict[str, Tensor]:
    """What changes in training by its names, as it is held now; nothing is copied.

    An embedding of which only some rows are trained must not have been made whole: that rounds the others, and training
    would depend on how often its state is looked at.
    """
    return dict(_named(decoder, optimizer, touched))


def _named(decoder: Decoder, optimizer: AdamWInBackward, touched: TouchedRows | None) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in decoder.named_parameters():
        if parameter in optimizer.state:
            first, second, count = optimizer.state[parameter]
            yield f"weights/{name}", parameter.detach()
            yield f"first/{name}", first
            yield f"second/{name}", second
            yield f"count/{name}", count
    if touched is not None:
        yield TABLE, touched.table_VD


@torch.no_grad()
def put_back(
    tensors: Mapping[str, Tensor],
    decoder: Decoder,
    optimizer: AdamWInBackward,
    touched: TouchedRows | None,
    ranks: Ranks = ALONE,
) -> None:
    """Make weights and moments what a state says they were; one of its tensors is looked at after another.

    Raises:
        ModelError: the state is of another model, or of a training of other weights of it.
    """
    own = named_tensors(decoder, optimizer, touched)
    if own.keys() != tensors.keys():
        other = sorted(own.keys() ^ tensors.keys())[0]
        lacks = "lacks" if other in own else "has"
        raise ModelError(f"the state is of a training of another model or of other weights: it {lacks} {other}")
    for name, tensor in own.items():
        kept = tensors[name]
        if (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
            raise ModelError(
                f"the state is of a training of another model or of other weights: its {name} is "
                f"{list(kept.shape)} of {kept.dtype}, the model's {list(tensor.shape)} of {tensor.dtype}"
            )
        ranks.put(tensor, kept)


def random_states() -> dict[str, str]:
    """The states of the generators that are everybody's: torch's, Python's and numpy's, and each GPU's in use."""
    name, keys, *rest = np.random.get_state(legacy=True)
    found = {
        "torch": _hex(torch.get_rng_state()),
        "python": json.dumps(random.getstate()),
        "numpy": json.dumps([name, [int(key) for key in keys], *rest]),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found |= {f"cuda:{n}": _hex(state) for n, state in enumerate(torch.cuda.get_rng_state_all())}
    return found


def set_random_states(states: Mapping[str, str]) -> None:
    """Put the generators back to where they were; those of GPUs that are not here are passed over."""
    torch.set_rng_state(_bytes(states["torch"]))
    version, keys, gauss = json.loads(states["python"])
    random.setstate((version, tuple(keys), gauss))
    name, keys, *rest = json.loads(states["numpy"])
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    for n in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        if f"cuda:{n}" in states:
            torch.cuda.set_rng_state(_bytes(states[f"cuda:{n}"]), n)


def _hex(state: Tensor) -> str:
    return state.numpy().tobytes().hex()


def _bytes(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
