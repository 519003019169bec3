"""A GPU that is not there: tensors that say they are on ``cuda``, and compute their numbers on the CPU.

What would be wrong or slow on a GPU, and goes unseen on a CPU, is seen with it:

- tensors of the CPU beside those of the GPU in one operation are an error (`Mixed`);
- so are products by oneDNN, and everything else that computes on a CPU alone;
- whatever makes the host wait for the GPU is written down (`PretendedGpu.waits`): numbers that are read, copies to and
  fro that are not from pinned memory, shapes that hang on values (``nonzero``, ``unique``, masks as indices).

Values are real ones, so a training here is to end as on the CPU. It needs no build of torch with CUDA: to torch's own
code these tensors are on the CPU, to whoever asks in Python on the GPU. What it cannot see: kernels that have other
limits, streams, time.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from instil.batches import Batch
from instil.model.decoder import Decoder

GPU = torch.device("cuda", 0)
SOURCES = str(Path(__file__).parents[2] / "src")
aten = torch.ops.aten

# The shape of what these return hangs on values, or a value itself is returned.
WAITING = {
    "aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::_unique", "aten::_unique2",
    "aten::unique_dim", "aten::unique_consecutive", "aten::equal", "aten::is_nonzero", "aten::bincount",
    "aten::allclose", "aten::argwhere",
}  # fmt: skip
ON_CPU_ALONE = {"mkldnn", "onednn", "mkldnn_prepacked", "quantized"}


class Mixed(AssertionError):
    """Something that does not work on a GPU."""


class OnGpu(torch.Tensor):
    """A tensor that is said to be on the GPU; ``held`` has its numbers."""

    held: Tensor
    is_cuda = True
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> OnGpu:
        like: OnGpu = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=torch.device("cpu"),
        )
        like.held = held
        return like

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return GPU

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"OnGpu({self.held!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class PretendedGpu:
    """In a ``with`` block ``cuda`` is a device like another.

    Args:
        lane: whether there is a way to it beside what it computes (`instil.train.ahead`).

    Attributes:
        waits: for each time that the host waited for the GPU, what was done and by which line of the sources.
    """

    def __init__(self, *, lane: bool = False) -> None:
        self.waits: list[str] = []
        self._open, self._lane = contextlib.ExitStack(), lane

    def __enter__(self) -> Self:
        _now.waits, _now.calls = self.waits, []
        self._open.enter_context(_Operations())
        self._open.enter_context(_Calls())
        patch = self._open.enter_context(pytest.MonkeyPatch.context())
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: True)
        patch.setattr("torch.cuda.mem_get_info", lambda device=None: (60 << 30, 80 << 30))
        patch.setattr("torch.autocast", _Autocast)
        patch.setattr("instil.train.training.lane_to", lambda device: PretendedLane() if self._lane else None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[str]]:
        """The waits within the block, when it has ended."""
        before, found = len(self.waits), list[str]()
        yield found
        found.extend(self.waits[before:])


class PretendedLane:
    """Sends at once, and knows what has been asked for."""

    def __init__(self) -> None:
        self.under_way: list[Batch] = []

    def send(self, batches: Sequence[Batch]) -> list[Batch]:
        assert not self.under_way, "one step ahead and no more"
        self.under_way = [batch.to(GPU) for batch in batches]
        return self.under_way

    def arrive(self, batches: Sequence[Batch]) -> None:
        assert all(one is other for one, other in zip(batches, self.under_way, strict=True))
        self.under_way = []


class _Now:
    """What operations and calls know of one another."""

    def __init__(self) -> None:
        self.waits: list[str] = []
        self.calls: list[bool] = []  # those in Python under way, and whether each is given something of the GPU


_now = _Now()
_pinned: dict[int, Tensor] = {}  # held, so that no other tensor gets its number
_autocast = torch.autocast


class _Autocast:
    """What is said of the GPU holds for the CPU, too, where torch's own code thinks that it computes."""

    def __init__(self, kind: str, dtype: torch.dtype | None = None, enabled: bool = True) -> None:
        kinds = [kind, "cpu"] if kind == "cuda" else [kind]
        self._all = [_autocast(one, dtype, enabled) for one in kinds]

    def __enter__(self) -> None:
        for one in self._all:
            one.__enter__()

    def __exit__(self, *error: Any) -> None:
        for one in reversed(self._all):
            one.__exit__(*error)


def to_gpu(decoder: Decoder) -> Decoder:
    """Let a decoder's weights be on the GPU."""
    held: dict[int, nn.Parameter] = {}
    for module in decoder.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in held:  # a table may be head and embedding
                held[id(parameter)] = nn.Parameter(OnGpu(parameter.detach()), parameter.requires_grad)
            if parameter is not None:
                module._parameters[name] = held[id(parameter)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = OnGpu(buffer)
    return decoder


def from_gpu(tensor: Tensor) -> Tensor:
    """The numbers of a tensor that is said to be on the GPU, or of another one."""
    return tensor.held if isinstance(tensor, OnGpu) else tensor


def _given(values: Any) -> list[OnGpu]:
    return [one for one in tree_flatten(values)[0] if isinstance(one, OnGpu)]


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do with the numbers what was to be done on the GPU, and say that what comes of it is there."""
    name = func._schema.name
    tensors = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    ours = [one for one in tensors if isinstance(one, OnGpu)]
    made_there = not tensors and bool(_now.calls) and _now.calls[-1]  # torch's own code makes a tensor for itself
    if not (ours or made_there):
        return func(*args, **kwargs)
    if name == "aten::_fused_sdp_choice":
        return 0  # written out: the CPU's own kernels are not a GPU's
    if func.namespace in ON_CPU_ALONE:
        raise Mixed(f"{name} computes on a CPU alone")
    strangers = [one for one in tensors if not isinstance(one, OnGpu) and one.dim()]
    if strangers and name != "aten::copy_":
        raise Mixed(f"{name}: a tensor on the CPU, {list(strangers[0].shape)}, beside one on the GPU")
    masks = name in ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_")
    by_value = masks and any(one is not None and one.dtype == torch.bool for one in args[1])
    repeated = name == "aten::repeat_interleave" and "Tensor" in func._schema.overload_name
    by_value = by_value or (repeated and kwargs.get("output_size") is None)
    if name in WAITING or by_value:
        _wait(name)
    if name == "aten::copy_" and strangers:
        _copied(*args[:3])

    known = {id(one.held): one for one in ours}
    there = isinstance(args[0], OnGpu) if name == "aten::copy_" else True

    def shown(one: Any) -> Any:
        if not isinstance(one, Tensor) or not there:
            return one
        return known[id(one)] if id(one) in known else OnGpu(one)  # known: it was changed in place

    with torch.inference_mode(False):  # in which torch knows no views of tensors that are not its own
        return tree_map(shown, func(*tree_map(from_gpu, args), **tree_map(from_gpu, kwargs)))


def _copied(into: Tensor, source: Tensor, non_blocking: bool = False) -> None:
    if not (non_blocking and (isinstance(source, OnGpu) or id(source) in _pinned)):
        _wait(f"copy_ {'to' if isinstance(into, OnGpu) else 'from'} the GPU")


def _wait(what: str) -> None:
    lines = [f for f in traceback.extract_stack() if f.filename.startswith(SOURCES)]
    at = f"{Path(lines[-1].filename).relative_to(SOURCES)}:{lines[-1].lineno}" if lines else "?"
    _now.waits.append(f"{what} ({at})")


class _Operations(TorchDispatchMode):
    """Operations without a tensor of the GPU among what they are given, such as new tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    """What is called in Python: that names a device, or has torch's own code make tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in NUMBERS:
            return self._number(func, *args)
        special = getattr(self, f"_{getattr(func, '__name__', '')}", None)
        if special is not None and func in SPECIAL:
            return special(*args, **kwargs)
        device = kwargs.get("device")
        asked = device is not None and torch.device(device).type == "cuda"
        if asked:
            kwargs["device"] = torch.device("cpu")
            if func in (torch.tensor, torch.as_tensor):
                _wait("numbers of the host to the GPU")
        ours = bool(_given((args, kwargs)))
        if device is not None and not asked:
            ours = False
        _now.calls.append((ours or asked) and func not in (torch.tensor, torch.as_tensor))
        try:
            if func in (Tensor.backward, torch.autograd.backward):
                return self._run_backward(args[0], args[1] if len(args) > 1 else None)
            made = func(*args, **kwargs)
        finally:
            _now.calls.pop()
        return OnGpu(made.detach()) if asked and isinstance(made, Tensor) and not isinstance(made, OnGpu) else made

    def _run_backward(self, tensor: Any, grad: Any) -> None:
        """As torch does it, where what is called in Python meanwhile is seen, too."""
        (tensor,), (grad,) = (one if isinstance(one, tuple | list) else (one,) for one in (tensor, grad))
        grad = torch.ones_like(tensor) if grad is None else grad
        with self:
            torch.autograd.graph._engine_run_backward(  # type: ignore[no-untyped-call]
                (tensor,), (grad,), False, False, (), allow_unreachable=True, accumulate_grad=True
            )

    def _number(self, func: Any, tensor: Tensor) -> Any:
        if isinstance(tensor, OnGpu):
            _wait(func.__name__)
        return func(from_gpu(tensor))

    def _pin_memory(self, tensor: Tensor) -> Tensor:
        assert not isinstance(tensor, OnGpu), "only what is on the CPU can be pinned"
        copy = tensor.clone()
        _pinned[id(copy)] = copy
        return copy

    def _tolist(self, tensor: Tensor) -> Any:
        if isinstance(tensor, OnGpu):
            _wait("tolist")
        return from_gpu(tensor).tolist()

    def _cpu(self, tensor: Tensor) -> Tensor:
        return self._to(tensor, "cpu")

    def _new_tensor(self, tensor: Tensor, data: Any, **kwargs: Any) -> Tensor:
        if not isinstance(tensor, OnGpu):
            return tensor.new_tensor(data, **kwargs)
        _wait("new_tensor")
        return OnGpu(tensor.held.new_tensor(data, **kwargs))

    def _to(self, tensor: Tensor, *rest: Any, **kwargs: Any) -> Tensor:
        if rest and isinstance(rest[0], Tensor):
            rest = (rest[0].device, rest[0].dtype, *rest[1:])
        named = [one for one in (*rest, kwargs.get("device")) if isinstance(one, str | torch.device)]
        types = [one for one in (*rest, kwargs.get("dtype")) if isinstance(one, torch.dtype)]
        there = isinstance(tensor, OnGpu)
        wanted = torch.device(named[0]).type == "cuda" if named else there
        kind = types[0] if types else tensor.dtype
        if wanted == there:
            return tensor.to(kind) if there else tensor.to(*rest, **kwargs)
        waits_not = kwargs.get("non_blocking") and id(tensor) in _pinned
        if not waits_not and tensor.dim():
            _wait(f"{'to' if wanted else 'from'} the GPU")
        moved = from_gpu(tensor.detach()).to(kind, copy=True)
        return OnGpu(moved) if wanted else moved


SPECIAL = {Tensor.pin_memory, Tensor.tolist, Tensor.cpu, Tensor.new_tensor, Tensor.to}
NUMBERS = {Tensor.item, Tensor.__float__, Tensor.__int__, Tensor.__bool__}
