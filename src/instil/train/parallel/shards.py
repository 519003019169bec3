"""Weights that lie in parts in several processes: FSDP2's ``fully_shard``, and files of them by PyTorch's
``torch.distributed.checkpoint`` in safetensors (nothing in them is executed when they are read).
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from instil.model.decoder import Decoder
from instil.model.elsewhere import begins_at
from instil.model.fast.gemm import Linear
from instil.model.frozen import HELD, FrozenLinear
from instil.model.lora_layer import LoraLinear
from instil.model.memory import own_memory

PATTERN = "shard-*.safetensors"  # as torch names the files
FILES = 8  # of a process, about


@contextmanager
def sharded(decoder: Decoder, world: int, *, narrow: bool = False) -> Iterator[Decoder]:
    """A decoder with these weights, a part of each in every process; afterwards they are whole in the one given.

    But not where it is left by an error: making them whole takes all processes, and it may be that of this one alone.
    ``narrow``: see `_share_out`.
    """
    frozen = [layer for layer in decoder.modules() if isinstance(layer, FrozenLinear)]
    for layer in frozen:
        layer.in_parameters()
    held = [*decoder.parameters(), *decoder.buffers()]
    parts: Decoder = copy.deepcopy(decoder, {id(one): _same(one) for one in held})
    for parameter in decoder.parameters():
        parameter.data = parameter.data.new_empty(0)  # what is sharded is let go of block by block
    _share_out(parts, world, narrow=narrow)
    yield parts
    _give_back(parts, decoder)
    for layer in frozen:
        layer.in_buffers()


@torch.no_grad()
def own_parts(decoder: Decoder, rank: int, world: int) -> dict[str, Tensor]:
    """This process's rows of each parameter of a decoder whose weights are elsewhere; one after another is read.

    Adapters that begin at what a whole weight says (lengths of its rows, rows of a table) are told while it is read.
    A weight that is held in few bits is rounded while it is whole; what it is held as are parameters afterwards.

    Raises:
        ModelError: they cannot be read, or are no numbers.
    """
    elsewhere = decoder.elsewhere
    assert elsewhere is not None, "its weights are here"
    parts: dict[str, Tensor] = {}
    for name, layer in decoder.named_modules():
        if isinstance(layer, FrozenLinear):
            layer.hold(elsewhere.parameter(f"{name.removesuffix('.held')}.weight"))
            for leaf in HELD:
                held = getattr(layer, leaf)
                parts[f"{name}.{leaf}"] = held[rows_of(len(held), rank, world)].clone()
                setattr(layer, leaf, torch.empty_like(held, device="meta"))
            layer.in_parameters()
    for name, one in decoder.named_parameters():
        if not one.is_meta or name in parts:
            continue
        own, begins = rows_of(len(one), rank, world), begins_at(decoder, name)
        if begins is None:
            parts[name] = elsewhere.parameter(name, own)
            continue
        whole = elsewhere.parameter(name)
        begins.begin_at(whole)
        parts[name] = whole[own].clone()
    return parts


def rows_of(length: int, rank: int, world: int) -> slice:
    """Which rows of a tensor a process has.

    >>> [rows_of(5, rank, 4) for rank in range(4)]
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None), slice(5, 5, None)]
    """
    each = -(-length // world)  # as `torch.chunk` deals them
    return slice(min(length, rank * each), min(length, (rank + 1) * each))


@contextmanager
def filled(decoder: Decoder, parts: dict[str, Tensor], world: int, *, narrow: bool = False) -> Iterator[None]:
    """Let a decoder whose weights are elsewhere be these ``parts`` of it, which are given up, for good.

    Afterwards its adapters, if it has some, are whole.
    """
    adapters = [name for name, one in _named(decoder) if not one.is_meta]
    _share_out(decoder, world, narrow=narrow)
    held: dict[int, nn.Parameter] = {}  # a tied table is one parameter under two names
    known: dict[str, Tensor] = {}
    for name, one in _named(decoder):
        if id(one) not in held and name in parts:
            assert isinstance(one, DTensor), "all parameters are shared out"
            where = one.device_mesh, one.placements
            own = DTensor.from_local(parts.pop(name), *where, shape=one.shape, stride=one.stride(), run_check=False)
            held[id(one)] = nn.Parameter(own, requires_grad=one.requires_grad)
        if id(one) in held:
            known[name] = held[id(one)]
    decoder.load_state_dict(known, strict=False, assign=True)
    del known, held
    yield
    let_go(decoder)
    whole: dict[Tensor, nn.Parameter] = {}  # a tied table's rows are one parameter under two names, too
    for name in adapters:
        owner, _, leaf = name.rpartition(".")
        part = decoder.get_parameter(name)
        if part not in whole:
            whole[part] = nn.Parameter(part.full_tensor() if isinstance(part, DTensor) else part.detach())
        setattr(decoder.get_submodule(owner), leaf, whole[part])


def collect(part: Tensor, rank: int, world: int) -> Tensor | None:
    """The whole of a tensor in the first process, None in others; all have to call it."""
    if not isinstance(part, DTensor):
        return None if rank else part.detach()
    own = part.to_local().detach().contiguous()
    if rank:
        if own.numel():
            dist.send(own, 0)
        return None
    whole = own_memory(tuple(part.shape), part.dtype, own.device)
    whole[rows_of(len(whole), 0, world)] = own
    for other in range(1, world):
        into = whole[rows_of(len(whole), other, world)]
        if into.numel():
            dist.recv(into, other)
    return whole


def _share_out(parts: Decoder, world: int, *, narrow: bool) -> None:
    """Leave this process a part of each parameter.

    ``narrow``: weights of linear layers are gathered in bfloat16, as autocast's products read them, and not in float32;
    their gradients are added up in float32. The rest, which is computed with in float32 all the same, is gathered so.
    """
    mesh = init_device_mesh(parts.device.type, (world,))
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for block in parts.blocks:
        read: list[nn.Module] = [one for one in block.modules() if isinstance(one, Linear) and not _apart(one)]
        if narrow and read:
            fully_shard(read, mesh=mesh, mp_policy=policy)
        fully_shard(block, mesh=mesh)
    fully_shard(parts, mesh=mesh)
    parts.in_parts, parts.narrow = True, narrow
    for module in parts.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by what all processes have
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other one


def _apart(layer: Linear) -> bool:
    """Whether it is gathered as it is: bfloat16 would blur the lengths of its rows, or codes and scales of few bits."""
    return isinstance(layer, LoraLinear) and (layer.is_dora or layer.held is not None)


def _same(tensor: Tensor) -> Tensor:
    """Another tensor of the same memory."""
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(tensor.data, requires_grad=tensor.requires_grad)
    return tensor


@torch.no_grad()
def _give_back(parts: Decoder, decoder: Decoder) -> None:
    let_go(parts)
    given: dict[int, Tensor] = {}  # a tied table is one parameter under two names
    for (name, part), (_, own) in zip(_named(parts), _named(decoder), strict=True):
        del name
        if id(own) not in given:
            given[id(own)] = part.full_tensor() if isinstance(part, DTensor) else part.detach()
            own.data = given[id(own)]


def _named(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return module.named_parameters(remove_duplicate=False)


def let_go(decoder: Decoder) -> None:
    """Hold this process's parts alone: the outermost stay whole after a pass that no backward follows."""
    for module in decoder.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def put(into: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into what this process holds of it."""
    if isinstance(into, DTensor):
        whole = distribute_tensor(whole, into.device_mesh, into.placements, src_data_rank=None)
    into.copy_(whole)


def save_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write what each process has of these tensors into a folder that is there; all have to call it.

    Raises:
        OSError: some process cannot write.
    """
    writer = HuggingFaceStorageWriter(str(folder), fqn_to_index_mapping=_files_of(tensors), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((one for one in causes if isinstance(one, OSError)), OSError(str(error))) from error


def _files_of(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """In which file of a process each goes, from 1: as many bytes in one as in another, about.

    A file is made in memory before it is written, so that of all tensors would take as much as they do.

    >>> _files_of({name: torch.empty(5, 8) for name in "abcdefghijklmnop"})["d"]
    2
    """
    most = sum(one.nbytes for one in tensors.values()) / FILES
    found: dict[str, int] = {}
    index, held = 1, 0
    for name, one in tensors.items():
        if held and held + one.nbytes > most:
            index, held = index + 1, 0
        held += one.nbytes
        found[name] = index
    return found


class Shards(Mapping[str, Tensor]):
    """The tensors in such a folder, each whole, and read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known = HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata

    def __getitem__(self, name: str) -> Tensor:
        about: Any = self._known[name]
        whole = torch.empty(about.size, dtype=about.properties.dtype)
        reader = HuggingFaceStorageReader(str(self._folder))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # each reads for itself
            load({name: whole}, storage_reader=reader, no_dist=True)
        return whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)
