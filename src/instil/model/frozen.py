"""Frozen weights in eight or four bits, beside which adapters are trained (QLoRA: Dettmers et al., 2023, 2305.14314).

A weight is cut into blocks of 64, row after row, each of which is divided by its largest magnitude and rounded: to
whole numbers up to 127 (``int8``), or to the 16 quantiles of a normal distribution that the paper calls NormalFloat
(``nf4``, two codes in a byte). For each product the whole matrix is made again and dropped. Not exact: the model that
is tuned, merged and saved is the one with the rounded weights. Scales stay in float32, without a second quantisation.

Shape suffixes: N tokens · I input width · O output width · G blocks · B weights of a block · P bytes of codes.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from instil.errors import SettingsError
from instil.machine import sent
from instil.model.decoder import Decoder
from instil.model.fast.gemm import Linear, linear, product
from instil.model.fast.recompute import ReadsRecomputed
from instil.model.memory import own_memory
from instil.model.rounded.layer import refuse_rounded

QuantType = Literal["int8", "nf4"]
BITS: dict[QuantType, int] = {"int8": 8, "nf4": 4}
BLOCK = 64
HELD = ("codes_P", "scales_G")
LEVELS = (  # appendix E of the paper
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


class FrozenLinear(ReadsRecomputed):
    """A linear layer whose weight is held in few bits and never trained, made from another."""

    codes_P: Tensor
    scales_G: Tensor
    bias: nn.Parameter | None

    def __init__(self, layer: Linear, held: QuantType) -> None:
        super().__init__()
        self.in_features, self.out_features, self.held = layer.in_features, layer.out_features, held
        self.dtype = layer.weight.dtype
        for name in HELD:
            self.register_buffer(name, None)
        self.hold(layer.weight)
        bias_O = None if layer.bias is None else nn.Parameter(layer.bias.detach(), requires_grad=False)
        self.register_parameter("bias", bias_O)

    def hold(self, weight_OI: Tensor) -> None:
        """Hold this weight from now on, rounded."""
        codes_P, scales_G = _rounded(weight_OI, self.held)
        # malloc would put them into the gaps that the next layer's larger intermediates need
        own = own_memory(codes_P.shape, codes_P.dtype, codes_P.device).copy_(codes_P)
        self._keep(own, scales_G)

    def drop(self) -> None:
        """Hold nothing until `hold` is called again."""
        self._keep(None, None)

    def in_parameters(self) -> None:
        """Let what it holds be parameters, though never trained: FSDP2 shares out those, and no buffers."""
        self._keep(*(nn.Parameter(getattr(self, name), requires_grad=False) for name in HELD))

    def in_buffers(self) -> None:
        """As it was before `in_parameters`."""
        self._keep(*(getattr(self, name).detach() for name in HELD))

    def _keep(self, *held: Tensor | None) -> None:
        for name, one in zip(HELD, held, strict=True):
            delattr(self, name)
            if isinstance(one, nn.Parameter):
                self.register_parameter(name, one)
            else:
                self.register_buffer(name, one)

    @property
    def weight(self) -> Tensor:
        """The whole matrix in the type it had, [O, I]; made anew each time."""
        return self.dense(self.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes that codes and scales take."""
        return self.codes_P.nbytes + self.scales_G.nbytes

    @torch.no_grad()
    def dense(self, dtype: torch.dtype) -> Tensor:
        """The whole matrix, [O, I]: in float32, then in another type."""
        if self.held == "int8":
            codes_N = self.codes_P.float()
        else:
            codes_N = _pairs(self.codes_P.device).index_select(0, self.codes_P.int()).view(torch.float32)
        whole = codes_N.view(-1, BLOCK).mul_(self.scales_G[:, None]).flatten()
        return whole[: self.out_features * self.in_features].view(self.out_features, self.in_features).to(dtype)

    def plain(self) -> Linear:
        """A layer that can be trained and saved, with the rounded weight."""
        with torch.device("meta"):
            layer = Linear(self.in_features, self.out_features, bias=self.bias is not None)
        weight_OI = own_memory((self.out_features, self.in_features), self.dtype, self.codes_P.device)
        layer.weight = nn.Parameter(weight_OI.copy_(self.weight))
        layer.register_parameter("bias", self.bias)
        return layer

    def forward(self, x_NI: Tensor) -> Tensor:
        """Outputs, [N, O]."""
        return _Product.apply(x_NI, self)  # type: ignore[no-any-return, no-untyped-call]


class _Product(torch.autograd.Function):
    """Makes the matrix for forward and again for backward, so that autograd keeps neither it nor the inputs."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, layer: FrozenLinear) -> Tensor:
        if torch.is_autocast_enabled(x_NI.device.type):
            x_NI = x_NI.to(torch.get_autocast_dtype(x_NI.device.type))
        ctx.layer = layer
        bias_O = None if layer.bias is None else layer.bias.to(x_NI.dtype)
        return linear(x_NI, layer.dense(x_NI.dtype), bias_O)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor, None]:
        return product(grad_NO.contiguous(), ctx.layer.dense(grad_NO.dtype).t()), None


def quantise_base(decoder: Decoder, held: QuantType) -> int:
    """Round the weights of all linear layers but the head, for good; returns the bytes that this saves.

    Embeddings and norms stay as they are, and so does the head, which may be the embedding.

    Raises:
        SettingsError: weights are held in few bits already, or there are adapters.
    """
    refuse_rounded(decoder)
    if any(type(module) is not Linear and isinstance(module, Linear | FrozenLinear) for module in decoder.modules()):
        raise SettingsError("this decoder's weights are in few bits already, or have adapters; merge them first")
    saved = 0
    for owner, leaf in _places(decoder.blocks, Linear):
        layer = getattr(owner, leaf)
        frozen = FrozenLinear(layer, held)
        saved += layer.weight.nbytes - frozen.nbytes
        setattr(owner, leaf, frozen)
    return saved


def dequantise(decoder: Decoder) -> None:
    """Make every layer in few bits a plain one, with the rounded weight."""
    for owner, leaf in _places(decoder, FrozenLinear):
        setattr(owner, leaf, getattr(owner, leaf).plain())


def _places(module: nn.Module, kind: type[nn.Module]) -> list[tuple[nn.Module, str]]:
    """Where layers of a kind are; not the layers, which would all stay in memory while they are replaced."""
    return [
        (owner, leaf) for owner in module.modules() for leaf, layer in owner.named_children() if isinstance(layer, kind)
    ]


@torch.no_grad()
def _rounded(weight_OI: Tensor, held: QuantType) -> tuple[Tensor, Tensor]:
    """Codes, for ``nf4`` two in a byte with the first in its lower half, and what each block is multiplied by."""
    flat = weight_OI.detach().float().flatten()
    blocks_GB = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    tiny = torch.finfo(torch.float32).tiny  # for blocks of zeros
    scales_G = blocks_GB.abs().amax(1).div_(127 if held == "int8" else 1).clamp_min_(tiny)
    scaled = (blocks_GB / scales_G[:, None]).flatten()
    if held == "int8":
        return scaled.round_().clamp_(-127, 127).to(torch.int8), scales_G
    levels = sent(torch.tensor(LEVELS), flat.device)
    codes = torch.bucketize(scaled, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(torch.uint8)
    return codes[::2] | codes[1::2] << 4, scales_G


@functools.cache
def _pairs(device: torch.device) -> Tensor:
    """The two levels that each byte stands for, side by side in what looks like one float64: one look-up for both."""
    byte = torch.arange(256, device=device)
    levels = sent(torch.tensor(LEVELS), device)
    return torch.stack([levels[byte & 15], levels[byte >> 4]], 1).view(torch.float64).flatten()
