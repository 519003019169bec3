"""What autograd keeps of a training step until backward, in bytes."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks


class _Held:
    """A tensor that is kept for backward; detached, since what is part of a graph must not hold it."""

    __slots__ = ("__weakref__", "seen", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.seen = tensor, tensor.detach()


class Kept:
    """The tensors that are kept, for as long as they are."""

    def __init__(self, module: nn.Module) -> None:
        self._held: weakref.WeakSet[_Held] = weakref.WeakSet()
        self._module = module

    def note(self, tensor: Tensor) -> _Held:
        """One more."""
        held = _Held(tensor.detach() if tensor.grad_fn is not None else tensor)
        self._held.add(held)
        return held

    def nbytes(self) -> dict[torch.dtype, int]:
        """Bytes of all that is kept now beside the module's own tensors, by type; each piece of memory once."""
        gc.collect()
        own = {one.untyped_storage().data_ptr() for one in (*self._module.parameters(), *self._module.buffers())}
        found: dict[int, tuple[torch.dtype, int]] = {}
        for held in list(self._held):
            storage = held.seen.untyped_storage()
            if storage.data_ptr() not in own:
                found[storage.data_ptr()] = held.seen.dtype, storage.nbytes()
        sizes: dict[torch.dtype, int] = {}
        for kind, size in found.values():
            sizes[kind] = sizes.get(kind, 0) + size
        return sizes


@contextmanager
def kept_for_backward(module: nn.Module) -> Iterator[Kept]:
    """Counts what is kept of what is computed inside; backward is not to be called on it."""
    kept = Kept(module)

    class Composed(saved_tensors_hooks):
        """Hooks of the code itself, whose tensors are counted, too."""

        def __init__(self, pack: Any, unpack: Any) -> None:
            def noted(tensor: Tensor) -> Any:
                packed = pack(tensor)
                return kept.note(packed) if isinstance(packed, Tensor) else packed

            super().__init__(noted, unpack)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.autograd.graph, "saved_tensors_hooks", Composed)
        with saved_tensors_hooks(kept.note, lambda held: held.tensor):
            yield kept
