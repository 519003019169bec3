"""Chapter 7 again, written apart from the package and as plainly as possible, in float64.

Nothing here is shared with `instil`: its own attention without a fused kernel, its own LayerNorm and GELU,
its own padding by value, its own AdamW, its own losses over all positions. It exists to be compared with.
Only torch's DataLoader is the same, because the order it draws is part of what the chapter prints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.utils.data import DataLoader

PREAMBLE = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n"
)


def text_of(entry: dict[str, str]) -> str:
    """Prompt and response of an entry, as figure 7.4 (left) lays them out."""
    parts = [PREAMBLE, entry["instruction"]]
    if entry["input"]:
        parts += ["\n\n### Input:\n", entry["input"]]
    return "".join([*parts, "\n\n### Response:\n", entry["output"]])


def pad_and_shift(rows: list[list[int]], end: int, longest_allowed: int = 1024) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a batch; of the padding only its first id is a target, found by value."""
    width = max(map(len, rows)) + 1
    inputs, targets = [], []
    for row in rows:
        padded = row + [end] * (width - len(row))
        shifted = padded[1:]
        seen_end = False
        for place, token in enumerate(shifted):
            if token == end and seen_end:
                shifted[place] = -100
            seen_end = seen_end or token == end
        inputs.append(padded[:-1][:longest_allowed])
        targets.append(shifted[:longest_allowed])
    return torch.tensor(inputs), torch.tensor(targets)


class NaiveGPT:
    """GPT-2 as functions over a dict of leaf tensors named as transformers names them."""

    def __init__(self, weights: dict[str, Tensor], heads: int, layers: int, eps: float) -> None:
        self.w = {name: value.detach().double().clone().requires_grad_() for name, value in weights.items()}
        self.w.setdefault("lm_head.weight", self.w["transformer.wte.weight"].detach().clone().requires_grad_())
        self.heads, self.layers, self.eps = heads, layers, eps

    def norm(self, x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + self.eps)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def conv(self, x: Tensor, name: str) -> Tensor:
        return x @ self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def attend(self, x: Tensor, name: str) -> Tensor:
        count, length, width = x.shape
        q, k, v = self.conv(x, f"{name}.c_attn").chunk(3, -1)
        apart = [t.view(count, length, self.heads, width // self.heads).transpose(1, 2) for t in (q, k, v)]
        scores = apart[0] @ apart[1].transpose(-1, -2) / math.sqrt(width // self.heads)
        later = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
        weights = torch.softmax(scores.masked_fill(later, -math.inf), -1)
        return self.conv((weights @ apart[2]).transpose(1, 2).reshape(count, length, width), f"{name}.c_proj")

    def mlp(self, x: Tensor, name: str) -> Tensor:
        inner = self.conv(x, f"{name}.c_fc")
        gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
        return self.conv(gelu, f"{name}.c_proj")

    def logits(self, ids: Tensor) -> Tensor:
        x = self.w["transformer.wte.weight"][ids] + self.w["transformer.wpe.weight"][: ids.shape[1]]
        for layer in range(self.layers):
            name = f"transformer.h.{layer}"
            x = x + self.attend(self.norm(x, f"{name}.ln_1"), f"{name}.attn")
            x = x + self.mlp(self.norm(x, f"{name}.ln_2"), f"{name}.mlp")
        return self.norm(x, "transformer.ln_f") @ self.w["lm_head.weight"].T

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean over the targets of a batch."""
        logits = self.logits(inputs)
        scores = torch.log_softmax(logits, -1)
        wanted = targets != -100
        return -scores[wanted].gather(1, targets[wanted][:, None]).mean()


class NaiveAdamW:
    """Algorithm 2 of Loshchilov and Hutter (2019), line by line."""

    def __init__(self, weights: Iterable[Tensor], rate: float, decay: float) -> None:
        self.weights, self.rate, self.decay, self.time = list(weights), rate, decay, 0
        self.first = [torch.zeros_like(w) for w in self.weights]
        self.second = [torch.zeros_like(w) for w in self.weights]

    @torch.no_grad()
    def step(self) -> None:
        self.time += 1
        for i, w in enumerate(self.weights):
            assert w.grad is not None
            w.sub_(self.rate * self.decay * w)
            self.first[i] = 0.9 * self.first[i] + 0.1 * w.grad
            self.second[i] = 0.999 * self.second[i] + 0.001 * w.grad**2
            first, second = self.first[i] / (1 - 0.9**self.time), self.second[i] / (1 - 0.999**self.time)
            w.sub_(self.rate * first / (torch.sqrt(second) + 1e-8))
            w.grad = None


def loss_over(model: NaiveGPT, loader: DataLoader, batches: int) -> float:
    """The mean of the mean losses of the first few batches."""
    losses = []
    for index, (inputs, targets) in enumerate(loader):
        if index == batches:
            break
        with torch.no_grad():
            losses.append(float(model.loss(inputs, targets)))
    return sum(losses) / len(losses)


def run_chapter(
    model: NaiveGPT,
    entries: list[dict[str, str]],
    encode: Callable[[str], list[int]],
    *,
    end: int,
    steps: int,
    on_gradients: Callable[[int, NaiveGPT], None] = lambda step, model: None,
) -> dict[str, list[float]]:
    """Split, load, evaluate, train: losses of each step and of each evaluation (train, validation)."""
    train_size, test_size = int(len(entries) * 0.85), int(len(entries) * 0.1)
    parts = {"train": entries[:train_size], "validation": entries[train_size + test_size :]}
    loaders = {
        name: DataLoader(
            [encode(text_of(entry)) for entry in part],  # type: ignore[arg-type]
            batch_size=8,
            shuffle=name == "train",
            drop_last=name == "train",
            collate_fn=lambda rows: pad_and_shift(rows, end),
        )
        for name, part in parts.items()
    }
    found: dict[str, list[float]] = {"steps": [], "train": [], "validation": []}

    def evaluate() -> None:
        for name in ("train", "validation"):
            found[name].append(loss_over(model, loaders[name], 5))

    torch.manual_seed(123)
    evaluate()
    torch.manual_seed(123)
    optimizer = NaiveAdamW(model.w.values(), 5e-5, 0.1)
    done = 0
    while True:
        for inputs, targets in loaders["train"]:
            loss = model.loss(inputs, targets)
            loss.backward()
            on_gradients(done, model)
            optimizer.step()
            found["steps"].append(float(loss.detach()))
            if done % 5 == 0:
                evaluate()
            done += 1
            if done == steps:
                return found
