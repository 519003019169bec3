"""Processes that train one model together, as torchrun starts them."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from instil.batches import Batch
from instil.errors import InstilError, UserError
from instil.machine import keep_little, leave_behind
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.safetensors import Later
from instil.model.load import blank_decoder
from instil.stopping import nothing_to_lose
from instil.train.parallel import shards
from instil.train.ranks import ALONE, Pass, Ranks, Spares, UnreadWeights

Value = TypeVar("Value")
# What gloo says where the other end is gone; NCCL and the store have types of their own.
GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Connection refused",
    "Timed out waiting",
)
MEETING = timedelta(seconds=60)  # until all are there
TIMEOUT = timedelta(minutes=30)  # for who waits while the first evaluates, samples or saves


def started(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this is one of several processes that torchrun, or another launcher, has started."""
    return environment.get("WORLD_SIZE", "1") not in ("", "1") or "TORCHELASTIC_RUN_ID" in environment


def restarted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun has started these processes anew after some had failed (``--max-restarts``)."""
    return environment.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")


@contextmanager
def joined(
    environment: Mapping[str, str] = os.environ, *, sharded: bool = False, device: str = "auto"
) -> Iterator[Ranks]:
    """Inside, the processes that torchrun has started; alone where it has started none, or a single one.

    Args:
        environment: where a launcher has said how many there are, and where the first one listens.
        sharded: each is to hold a part of every weight.
        device: what they compute on, as ``train.device`` has it.

    Raises:
        UserError: they cannot find one another, or what they need is not there.
    """
    if environment.get("WORLD_SIZE", "1") in ("", "1"):
        yield ALONE
        return
    _check(environment)
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        at = int(environment["LOCAL_RANK"])
        if at >= torch.cuda.device_count():
            raise UserError(
                f"process {at} of this machine has no GPU: there are {torch.cuda.device_count()}; start so many "
                "processes (--nproc-per-node)"
            )
        torch.cuda.set_device(at)
    backend = "cpu:gloo,cuda:nccl" if on_gpu else "gloo"
    if on_gpu and not dist.is_nccl_available():
        raise UserError("this torch has no NCCL, which processes on GPUs talk by; install a build of torch with it")
    try:
        with nothing_to_lose():
            store, rank, world = next(iter(rendezvous("env://", timeout=MEETING)))
            store.set_timeout(TIMEOUT)
            # Of processes that torchrun starts anew, those before may have left their addresses.
            attempt = environment.get("TORCHELASTIC_RESTART_COUNT", "0")
            whole = dist.PrefixStore(f"instil/{attempt}", store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=whole, rank=rank, world_size=world, timeout=TIMEOUT)
    except (RuntimeError, ValueError, OSError) as error:
        where = f"{environment['MASTER_ADDR']}:{environment['MASTER_PORT']}"
        raise UserError(
            f"process {environment['RANK']} does not find the others at {where}: {_first_line(error)}; is the port "
            f"free, can every machine reach it, and were all {environment['WORLD_SIZE']} started?"
        ) from error
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), sharded=sharded)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        leave_behind("torch.distributed")  # a thread of its that is not done aborts a process that takes itself apart


def _check(environment: Mapping[str, str]) -> None:
    lacking = [name for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if lacking:
        raise UserError(
            f"WORLD_SIZE says that there are several processes, without {' and '.join(lacking)}; start them by "
            "torchrun, or take WORLD_SIZE out of the environment"
        )
    if not dist.is_available():
        raise UserError("this torch cannot train in several processes; install a build of it that can")


class Processes(Ranks):
    """This process and the others.

    Args:
        rank: the number of this one, from 0.
        world: how many there are.
        sharded: whether each holds a part of every weight (FSDP2), or all of them (DDP).
    """

    def __init__(self, rank: int, world: int, *, sharded: bool = False) -> None:
        self.rank, self.world, self.sharded = rank, world, sharded
        self.divided = 1 if sharded else world  # DDP takes means
        if sharded:
            keep_little()
        # Sums and what is pickled go by gloo, also where gradients go by NCCL.
        self._group = dist.new_group(backend="gloo") if torch.cuda.is_available() else None
        self._spares: Spares | None = None
        self._wrapped: DistributedDataParallel | None = None

    def sum(self, values: Sequence[float]) -> list[float]:
        sums = torch.tensor([float(value) for value in values], dtype=torch.float64)
        dist.all_reduce(sums, group=self._group)
        found: list[float] = sums.tolist()
        return found

    def agree(self, value: Value) -> Value:
        said: list[Any] = [value if self.rank == 0 else None]
        dist.broadcast_object_list(said, src=0, group=self._group)
        return said[0]  # type: ignore[no-any-return]

    def gather(self, value: Value) -> list[Value]:
        said: list[Any] = [None] * self.world
        dist.all_gather_object(said, value, group=self._group)
        return said

    def spread(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)

    @contextmanager
    def together(self, decoder: Decoder, loader: object) -> Iterator[None]:
        assert isinstance(loader, Spares), "a share of a step may be empty, so the loader has to have a spare batch"
        self._spares = loader
        if self.sharded:
            yield
            return
        with warnings.catch_warnings():
            # Its successor, forward_sync_buffers, is not in every version that is supported.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self._wrapped = DistributedDataParallel(
                _Computed(decoder), broadcast_buffers=False, gradient_as_bucket_view=True
            )
        try:
            yield
        finally:
            self._wrapped = None

    def passes(self, batches: Sequence[Batch]) -> Iterator[Pass]:
        """Gradients are added up over all processes with the last batch of a step, which each has to have; those of
        parts of weights with each batch.
        """
        if self.sharded:
            yield from self.level(batches)
            return
        assert self._wrapped is not None, "outside of `together` nothing is trained"
        shown = [(batch, True) for batch in batches] or [(self._spare_batch(), False)]
        for index, (batch, counts) in enumerate(shown):
            last = index == len(shown) - 1
            with nullcontext() if last else self._wrapped.no_sync():
                yield Pass(batch, last=last, counts=counts)

    def level(self, batches: Sequence[Batch]) -> Iterator[Pass]:
        if not self.sharded:
            yield from super().passes(batches)
            return
        most = max(self.gather(len(batches)))
        for index in range(most):
            counts = index < len(batches)
            yield Pass(batches[index] if counts else self._spare_batch(), last=index == most - 1, counts=counts)

    def _spare_batch(self) -> Batch:
        assert self._spares is not None, "outside of `together` nothing is computed in parts"
        return self._spares.spare()  # made anew: what was a good row may be left out by now

    @contextmanager
    def sharding(self, decoder: Decoder, *, narrow: bool = False) -> Iterator[Decoder]:
        if not self.sharded:
            yield decoder
            return
        if decoder.elsewhere is None:
            with shards.sharded(decoder, self.world, narrow=narrow) as whole:
                yield whole
            return
        parts: dict[str, Tensor] = {}
        problem = ""
        try:
            parts = shards.own_parts(decoder, *self.share)
        except (InstilError, OSError) as error:
            problem = str(error)
        if problems := [said for said in self.gather(problem) if said]:  # each has read other rows
            raise UnreadWeights(problems[0])
        with shards.filled(decoder, parts, self.world, narrow=narrow):
            yield decoder

    @contextmanager
    def in_step(self, decoder: Decoder) -> Iterator[None]:
        if not decoder.in_parts:
            yield
            return
        # Before a pass all are asked whether anybody makes one: who does not goes along with a single token.
        told = decoder.register_forward_pre_hook(lambda module, given: self._tell(), prepend=True)
        try:
            yield
        finally:
            told.remove()
        idle = batch_of_ids(torch.zeros((1, 1), dtype=torch.long, device=decoder.device))
        with decoder.without_graph():
            while self.any(False):
                decoder(idle)
        self.let_go(decoder)

    def _tell(self) -> None:
        self.any(True)

    def collected(self, decoder: Decoder) -> Decoder:
        whole = blank_decoder(decoder.spec, decoder.embed.weight.dtype)
        whole.elsewhere = _Collected(self, dict(decoder.named_parameters()), decoder.device)
        return whole

    def later(self, parts: Mapping[str, Tensor]) -> dict[str, Later]:
        found = _Collected(self, parts, torch.device("cpu"))
        return {
            name: Later(torch.empty(one.shape, dtype=one.dtype, device="meta"), partial(found.parameter, name))
            for name, one in parts.items()
        }

    def hand_over(self, parts: Mapping[str, Tensor]) -> None:
        while name := self.agree(""):
            shards.collect(parts[name], *self.share)

    def let_go(self, decoder: Decoder) -> None:
        shards.let_go(decoder)

    def put(self, into: Tensor, whole: Tensor) -> None:
        shards.put(into, whole)

    def save(self, tensors: Mapping[str, Tensor], folder: Path) -> None:
        shards.save_shards(tensors, folder)

    def forward(self, decoder: Decoder, compute: Callable[[Decoder], Tensor]) -> Tensor:
        if self.sharded:
            return compute(decoder)
        assert self._wrapped is not None, "outside of `together` nothing is trained"
        loss: Tensor = self._wrapped(compute)
        return loss

    def is_loss(self, error: BaseException) -> bool:
        return isinstance(error, dist.DistError) or any(text in str(error) for text in GONE)


class _Collected:
    """Tensors that lie in parts, each made whole when the first process asks for it."""

    def __init__(self, ranks: Processes, parts: Mapping[str, Tensor], device: torch.device) -> None:
        self._ranks, self._parts, self.device = ranks, parts, device

    def parameter(self, name: str, rows: slice | None = None) -> Tensor:
        self._ranks.agree(name)
        whole = shards.collect(self._parts[name], *self._ranks.share)
        assert whole is not None, "the first process alone asks"
        return whole if rows is None else whole[rows]


class _Computed(nn.Module):
    """A decoder as the part of a module that gives losses: what DDP wraps is what its backward begins at."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, compute: Callable[[Decoder], Tensor]) -> Tensor:
        return compute(self.decoder)


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
