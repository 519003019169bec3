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
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from instil.model.decoder import Decoder

PATTERN = "shard-*.safetensors"  # as torch names the files


@contextmanager
def sharded(decoder: Decoder, world: int) -> Iterator[Decoder]:
    """A decoder with these weights, a part of each in every process; afterwards they are whole in the one given.

    But not where it is left by an error: making them whole takes all processes, and it may be that of this one alone.
    """
    held = [*decoder.parameters(), *decoder.buffers()]
    parts: Decoder = copy.deepcopy(decoder, {id(one): _same(one) for one in held})
    for parameter in decoder.parameters():
        parameter.data = parameter.data.new_empty(0)  # what is sharded is let go of block by block
    mesh = init_device_mesh(parts.device.type, (world,))
    for block in parts.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(parts, mesh=mesh)
    for module in parts.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # losses are divided by what all processes have
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other one
    yield parts
    _give_back(parts, decoder)


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
    writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    try:
        save(dict(tensors), storage_writer=writer)
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((one for one in causes if isinstance(one, OSError)), OSError(str(error))) from error


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
