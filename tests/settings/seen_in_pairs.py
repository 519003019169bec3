"""Settings of preference tuning, each with what is seen of it: by hand from the log-probabilities of one pair.

The reference is another model, so that margins are not nought before the first step.
"""

from __future__ import annotations

import math
from functools import partial

import pytest

from tests.settings.world import Table, Trained, World, pair, seen_in

PAIRS: Table = {}
sees = partial(seen_in, PAIRS)
PLAIN = ("train.objective=dpo", "train.max_steps=1")


def far(world: World, *settings: str, pairs: int = 1) -> Trained:
    """A step on pairs, with another model for the reference."""
    return world.run(*PLAIN, f"dpo.reference={world.other}", *settings, data=world.pairs(pairs))


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-4, abs=1e-6)


@sees("dpo.loss=ipo")
def loss(world: World) -> None:
    same = world.pairs(1)  # as the reference
    assert world.run(*PLAIN, data=same).losses == [near(math.log(2))]
    assert world.run(*PLAIN, "dpo.loss=ipo", data=same).losses == [near((1 / 0.2) ** 2)]


@sees("dpo.beta=0.3")
def beta(world: World) -> None:
    sharp, plain = far(world, "dpo.beta=0.3"), far(world)
    assert sharp.metrics["margin"] == near(3 * plain.metrics["margin"])
    for run in (sharp, plain):
        assert run.losses == [near(softplus(-run.metrics["margin"]))]
    assert sharp.losses != plain.losses


@sees("dpo.label_smoothing=0.2")
def label_smoothing(world: World) -> None:
    smooth = far(world, "dpo.label_smoothing=0.2")
    margin = smooth.metrics["margin"]
    assert smooth.losses == [near(0.8 * softplus(-margin) + 0.2 * softplus(margin))]
    assert abs(margin) > 1e-2


def scored_tokens(world: World, *settings: str) -> list[list[str]]:
    """The scored tokens of the chosen and of the rejected answer, as texts."""
    found = world.looked_at(world.pairs(1), "train.objective=dpo", *settings).json["rows"]
    return [[token["text"] for token in one["tokens"] if token["fate"] == "trained"] for one in found]


@sees("dpo.reduction=mean")
def reduction(world: World) -> None:
    means, sums = far(world, "dpo.reduction=mean", "dpo.nll=2").metrics, far(world).metrics
    for side, tokens in zip(("chosen", "rejected"), scored_tokens(world), strict=True):
        assert means[f"{side}_logp"] * len(tokens) == near(sums[f"{side}_logp"])
        assert means[f"{side}_reward"] * len(tokens) == near(sums[f"{side}_reward"])


@sees("dpo.scored=book")
def scored(world: World) -> None:
    chosen, rejected = scored_tokens(world)
    assert (chosen[0], chosen[-1]) == ("It", "<end>")
    wider = scored_tokens(world, "dpo.scored=book")
    for words, own in zip(wider, (chosen, rejected), strict=True):
        assert "".join(words).endswith("".join(own[:-1]))
        assert "Response" in "".join(words)
        assert "<end>" not in words
    book, plain = far(world, "dpo.scored=book"), far(world)
    assert book.metrics["chosen_logp"] != plain.metrics["chosen_logp"]
    assert book.losses == [near(softplus(-0.1 * book.metrics["margin"]))]  # rewards are shown without beta


@sees("dpo.nll=2")
def nll(world: World) -> None:
    kept, plain = far(world, "dpo.reduction=mean", "dpo.nll=2"), far(world)
    likelihood = -plain.metrics["chosen_logp"] / len(scored_tokens(world)[0])
    assert kept.losses[0] - softplus(-kept.metrics["margin"]) == near(2 * likelihood)


@sees("dpo.gamma=2")
def gamma(world: World) -> None:
    wanted, plain = (world.run(*PLAIN, "dpo.loss=simpo", *more, data=world.pairs(1)) for more in (("dpo.gamma=2",), ()))
    for run, margin in ((wanted, 2.0), (plain, 0.5)):
        assert run.losses == [near(softplus(margin - run.metrics["margin"]))]


def kto(world: World, *settings: str) -> Trained:
    return far(world, "dpo.loss=kto", "train.batch_size=1", *settings, pairs=3)


@sees("dpo.desirable=0")
def desirable(world: World) -> None:
    every, rejected, chosen = kto(world), kto(world, "dpo.desirable=0"), kto(world, "dpo.undesirable=0")
    assert rejected.losses[0] + chosen.losses[0] == near(every.losses[0])
    assert 2 * rejected.losses[0] == near(1 / (1 + math.exp(moved(chosen) - every.metrics["rejected_reward"])))


@sees("dpo.undesirable=0")
def undesirable(world: World) -> None:
    every, chosen = kto(world), kto(world, "dpo.undesirable=0")
    assert chosen.losses[0] < every.losses[0]
    assert moved(chosen) >= -1e-5  # a distance is never negative


def moved(chosen: Trained) -> float:
    """Beta times KTO's distance, by the loss of the chosen answer alone: (1 - sigmoid(reward - z)) / 2."""
    share = 2 * chosen.losses[0]
    return chosen.metrics["chosen_reward"] + math.log(share / (1 - share))


@sees("dpo.reference=OTHER")
def reference(world: World) -> None:
    assert world.run(*PLAIN, data=world.pairs(1)).metrics["margin"] == near(0.0)
    assert abs(far(world).metrics["margin"]) > 1e-2
    world.used.add("dpo.reference=OTHER")  # whose path is not known here


@sees("dpo.keep_equal=true")
def keep_equal(world: World) -> None:
    same = {**pair(7), "rejected": pair(7)["chosen"]}
    data = world.file([*map(pair, range(3)), same])
    refused = world.looked_at(data, "train.objective=dpo")
    assert refused.code == 2
    assert "row 3" in refused.said
    kept = world.looked_at(data, "train.objective=dpo", "dpo.keep_equal=true")
    assert kept.code == 0
    assert sum(kept.json["preflight"]["rows"].values()) == 4
