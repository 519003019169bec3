"""Chapter 7's bonus on preference tuning once more, apart from the package, plain, in float64.

As in the chapter: rows side by side, all scores of all positions, a mean over the answer and the header's words
without the end of the text, and a second model as the reference.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from tests.parity.naive_book import NaiveAdamW, NaiveGPT, text_of

Rows = list[tuple[list[int], int]]  # ids, and how many of them belong to the question and the empty line after it


def rows_of(entry: dict[str, str], encode: object) -> tuple[tuple[list[int], int], ...]:
    """The chosen and the rejected text of an entry."""
    question = text_of({**entry, "output": ""}).removesuffix("\n\n### Response:\n")
    skip = len(encode(question)) + 2  # type: ignore[operator]
    return tuple((encode(text_of({**entry, "output": entry[key]})), skip) for key in ("chosen", "rejected"))  # type: ignore[operator]


def mean_log_probs(model: NaiveGPT, rows: Rows, end: int) -> Tensor:
    """For each row the mean log-probability of what is scored of it."""
    width = max(len(ids) for ids, _ in rows) + 1
    ids = torch.tensor([row + [end] * (width - len(row)) for row, _ in rows])
    wanted = torch.tensor([[skip <= at < len(row) for at in range(width)] for row, skip in rows])
    scores = torch.log_softmax(model.logits(ids[:, :-1]), -1)
    picked = scores.gather(2, ids[:, 1:, None])[..., 0]
    mask = wanted[:, 1:].double()
    return (picked * mask).sum(1) / mask.sum(1)


def loss_of(policy: NaiveGPT, reference: NaiveGPT, batch: list[object], end: int) -> tuple[Tensor, float]:
    """The mean loss of a batch with beta 0.1, and the mean difference of the rewards, which are log-ratios."""
    sides = [[row[side] for row in batch] for side in (0, 1)]  # type: ignore[index]
    chosen, rejected = (mean_log_probs(policy, side, end) for side in sides)
    with torch.no_grad():
        old_chosen, old_rejected = (mean_log_probs(reference, side, end) for side in sides)
    margin = (chosen - rejected) - (old_chosen - old_rejected)
    return -torch.nn.functional.logsigmoid(0.1 * margin).mean(), float(margin.mean().detach())


def run_bonus(
    policy: NaiveGPT, reference: NaiveGPT, entries: list[dict[str, str]], encode: object, *, end: int, steps: int
) -> dict[str, list[float]]:
    """Losses of each step, and of each evaluation with its margin (train, validation)."""
    train_size, test_size = int(len(entries) * 0.85), int(len(entries) * 0.1)
    parts = {"train": entries[:train_size], "validation": entries[train_size + test_size :]}
    loaders = {
        name: DataLoader(
            [rows_of(entry, encode) for entry in part],  # type: ignore[arg-type]
            batch_size=8,
            shuffle=name == "train",
            drop_last=name == "train",
            collate_fn=list,
        )
        for name, part in parts.items()
    }
    found: dict[str, list[float]] = {"steps": [], "train": [], "validation": [], "margin": []}

    def evaluate() -> None:
        for name in ("train", "validation"):
            seen = []
            for index, batch in enumerate(loaders[name]):
                if index == 5:
                    break
                with torch.no_grad():
                    loss, margin = loss_of(policy, reference, batch, end)
                seen.append((float(loss), margin))
            found[name].append(sum(loss for loss, _ in seen) / len(seen))
        found["margin"].append(sum(margin for _, margin in seen) / len(seen))

    torch.manual_seed(123)
    evaluate()
    torch.manual_seed(123)
    optimizer = NaiveAdamW(policy.w.values(), 5e-6, 0.01)
    for done, batch in enumerate(loaders["train"]):
        loss, _ = loss_of(policy, reference, batch, end)
        loss.backward()
        optimizer.step()
        found["steps"].append(float(loss.detach()))
        if done % 5 == 0:
            evaluate()
        if done + 1 == steps:
            break
    return found
