"""AdamW, stepped inside backward where nothing needs the whole gradient first.

A gradient that is used as soon as it is complete is still in the processor's cache and never held with the
others: less traffic, and four bytes a parameter less memory. Clipping needs the norm of all of them, so with
it the update waits; so do those of small parameters (norms, adapters), where calling costs more than computing,
and which are updated together. On a GPU others, too, wait until they are some millions of numbers. Either way every
parameter gets the same update by the same kernel (E0).
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from instil.model.fast.tied import RowGradientHook
from instil.train.ranks import local

BETAS, EPS = (0.9, 0.999), 1e-8
SMALL = 1 << 17  # numbers of a parameter below which its update waits for the others
TOGETHER = 1 << 24  # numbers that a GPU updates in one call: fewer take it less time than asking for it takes the host


class AdamWInBackward:
    """AdamW (Loshchilov and Hutter, 2019), the optimizer of one run, at its ``learning_rate``.

    Args:
        parameters: what is trained; those that need no gradient are left alone.
        weight_decay: decoupled, on every parameter.
        clip: largest norm of the whole gradient; 0 means no clipping.
        waits: update everything in `finish`, as where gradients are added up over processes in between.
    """

    def __init__(
        self, parameters: Iterable[Tensor], *, weight_decay: float, clip: float = 0.0, waits: bool = False
    ) -> None:
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.weight_decay, self.clip, self._waits = weight_decay, clip, bool(waits or clip)
        self.learning_rate = 0.0
        # All at once, before the first activations: made one by one in the first backward, the moments would
        # come to lie between the activations and break up what these leave behind.
        self.state: dict[Tensor, tuple[Tensor, Tensor, Tensor]] = {
            parameter: (
                torch.zeros_like(parameter, requires_grad=False),
                torch.zeros_like(parameter, requires_grad=False),
                torch.zeros((), dtype=torch.float32, device=parameter.device),
            )
            for parameter in self.parameters
        }
        self._complete = False
        on_cpu = all(parameter.device.type == "cpu" for parameter in self.parameters)
        self._together = 0 if on_cpu else TOGETHER
        self._ready: list[Tensor] = []  # parameters of the running backward whose gradients wait to be enough
        self._unfit: Tensor | None = None  # whether the running step is not to be taken, as the device will know
        self._begun = False  # whether parameters of this step are updated already
        self._forget()  # what an earlier backward left is no part of the first step
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]
            for parameter in self.parameters
            if parameter.numel() >= SMALL
        ]

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradient of a micro-batch; with the ``last`` of a step its parameters are updated on the way."""
        self._complete = last and not self._waits
        try:
            loss.backward()  # type: ignore[no-untyped-call]
        finally:
            self._complete = False

    def only_if(self, loss: Tensor | None) -> None:
        """Update nothing in the step that is ended next unless its loss is finite, which the device finds out."""
        self._unfit = None if loss is None else (~loss.isfinite()).float()

    def finish(self) -> None:
        """End an optimizer step: update what was not updated on the way."""
        waiting = [parameter for parameter in self.parameters if parameter.grad is not None]
        if self.clip and waiting:
            torch.nn.utils.clip_grad_norm_(waiting, self.clip)
        if waiting:
            self._update(waiting)
        self._ready.clear()
        self._begun, self._unfit = False, None

    def abandon(self) -> bool:
        """Forget the gradients of a step that cannot be ended; returns whether it may be taken once more from here.

        It may not where parameters were updated on the way.
        """
        self._forget()
        clean, self._begun, self._unfit = not self._begun, False, None
        return clean

    def close(self) -> None:
        """Let go of the parameters."""
        for hook in self._hooks:
            hook.remove()
        self._forget()

    def _forget(self) -> None:
        self._ready.clear()
        for parameter in self.parameters:
            parameter.grad = None

    def _on_gradient(self, parameter: Tensor) -> None:
        if self._complete and parameter.grad is not None:  # none where a row hook has had it
            self._ready.append(parameter)
            if sum(one.numel() for one in self._ready) >= self._together:
                ready, self._ready = self._ready, []
                self._update(ready)

    def row_hook(self, parameter: Tensor) -> RowGradientHook | None:
        """A hook that takes the gradient of a matrix by rows and updates them, for the last backward of a step.

        None where the whole gradient is needed: to clip it, or to add it to an earlier micro-batch's.
        """
        if self._waits or parameter not in self.state or parameter.grad is not None:
            return None
        return functools.partial(self._update_rows, parameter)

    def _update(self, parameters: Sequence[Tensor]) -> None:
        self._begun = True
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        states = [self.state[parameter] for parameter in parameters]
        self._step(
            [local(parameter.detach()) for parameter in parameters],
            [local(grad) for grad in grads],
            *([local(one) for one in part] for part in zip(*states, strict=True)),
        )
        for parameter in parameters:
            parameter.grad = None

    def _update_rows(self, parameter: Tensor, rows: slice, grad: Tensor) -> None:
        self._begun = True
        first, second, step = self.state[parameter]
        if rows.stop < len(parameter):
            step = step.clone()  # a step is counted once, with its last rows
        self._step([parameter.detach()[rows]], [grad], [first[rows]], [second[rows]], [step])

    @torch.no_grad()
    def _step(
        self, weights: list[Tensor], grads: list[Tensor], first: list[Tensor], second: list[Tensor], steps: list[Tensor]
    ) -> None:
        adamw(
            weights, grads, first, second, [], steps,
            fused=True, amsgrad=False, maximize=False,
            beta1=BETAS[0], beta2=BETAS[1], eps=EPS, lr=self.learning_rate, weight_decay=self.weight_decay,
            found_inf=self._unfit,  # what gradient scalers tell it by: with it set, neither weights nor counts change
        )  # fmt: skip
        # The fused kernel does not count as a write, by which those who hold something made of a weight know of it.
        torch.autograd.graph.increment_version(weights)
