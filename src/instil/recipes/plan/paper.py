"""A plan on paper: which ways of training fit GPUs that are not here, how long each takes, and the command for one.

Of the model its configuration is read, and of the rows how long their texts are; no weight is loaded or fetched, and
nothing is timed. `instil.recipes.plan.cluster` has the arithmetic.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

from instil.data.splits import TRAIN_SHARE
from instil.data.subset import spread
from instil.errors import SettingsError, counted
from instil.model.load import read_spec
from instil.recipes.plan.cluster import Cluster, Fit, Rows, Shard, Way, fit
from instil.recipes.plan.sizes import FLOAT, sizes_of
from instil.records import Example
from instil.settings.options import Settings
from instil.tasks.prepare import task_of

CHARACTERS = 4  # of a token, about, in English and code
FEW = 1024  # tokens at once, below which reading the weights takes longer than multiplying by them
LOOKED_AT = 2000  # rows that stand for all of them
PRECISION = "bf16"  # what GPUs are for, unless the settings say otherwise
ROOT = "HOST:29500"  # where the processes of several nodes meet; the user puts in the first one's name


@dataclass(frozen=True, slots=True)
class Counted:
    """The rows of a file, by their texts: how many are trained on, and the mean tokens and supervised share of one."""

    rows: int
    mean: float
    supervised: float


@dataclass(frozen=True, slots=True)
class PaperPlan:
    """Which ways fit. ``advice`` is one line, and ``command`` what it advises; empty where no way fits."""

    model: str
    data: str
    parameters: int
    adapters: int
    precision: str
    cluster: Cluster
    counted: Counted
    rows: Rows
    steps: int
    fits: tuple[Fit, ...]
    advice: str
    command: str

    def hours(self, one: Fit) -> float:
        """Of the whole training."""
        return self.steps * one.seconds / 3600

    def as_json(self) -> dict[str, Any]:
        """For ``--json``; sizes in bytes."""
        return {
            "model": self.model,
            "data": self.data,
            "parameters": self.parameters,
            "adapters": self.adapters,
            "precision": self.precision,
            "cluster": {**asdict(self.cluster), "ranks": self.cluster.ranks, "usable": self.cluster.usable},
            "rows": {**asdict(self.rows), "trained": self.counted.rows},
            "steps": self.steps,
            "ways": [
                {
                    "name": one.way.name,
                    **asdict(one.way),
                    "fits": one.fits,
                    "memory": {**asdict(one.parts), "total": one.parts.total},
                    "micro_batch": one.micro_batch,
                    "accumulation": one.accumulation,
                    "seconds_per_step": round(one.seconds, 4),
                    "tokens_per_second": round(one.tokens_per_second, 1),
                    "hours": round(self.hours(one), 3),
                    "bound": one.bound,
                }
                for one in self.fits
            ],
            "advice": self.advice,
            "command": self.command,
        }


def plan_on_paper(data: str, model: str, settings: Settings, cluster: Cluster, given: Sequence[str] = ()) -> PaperPlan:
    """What a training of that model on those rows would take on that cluster.

    ``given`` are options of the command line that the settings come from, for the command to be advised.
    ``train.precision`` and ``train.batch_size`` are taken as bf16, and as a row for each GPU at least, where they are
    not chosen.

    Raises:
        UserError: data, model or settings cannot be used, or a step has fewer rows than there are GPUs.
    """
    spec = read_spec(model)
    precision = precision_of(settings)
    narrow = 2 if precision == "bf16" else FLOAT
    longest = min(settings.data.max_length, spec.context)
    batch = rows_of_a_step(settings, cluster.ranks, longest)
    found = count(data, settings, longest)
    rows = Rows(batch, longest, found.mean, found.supervised, task_of(settings).sequences)
    steps = -(-found.rows // batch) * settings.train.epochs
    steps = min(steps, settings.train.max_steps) if settings.train.max_steps else steps
    fits, adapters = [], 0
    for own in _methods(settings):
        sizes = sizes_of(spec, own)
        adapters = sizes.adapters or adapters
        for shard, checkpointing in product(_shards(cluster), (False, True)):
            fits.append(
                fit(
                    Way(own.train.method, own.lora.base, shard, checkpointing),
                    cluster,
                    spec,
                    sizes,
                    rows,
                    narrow=narrow,
                    micro_batch=settings.train.micro_batch,
                    clip=settings.train.clip > 0,
                )
            )
    best = choose(fits, settings)
    command = ""
    if best is not None:
        command = command_for(best, cluster, (data, "--model", model, *given), settings, precision, batch)
    return PaperPlan(
        model=model,
        data=data,
        parameters=sizes.parameters,
        adapters=adapters,
        precision=precision,
        cluster=cluster,
        counted=found,
        rows=rows,
        steps=steps,
        fits=tuple(fits),
        advice=_advice(best, fits, cluster, steps),
        command=command,
    )


def precision_of(settings: Settings) -> str:
    """What products are computed in: as chosen, else bf16, for which GPUs have units."""
    chosen = settings.train.precision
    return chosen if "precision" in settings.train.model_fields_set and chosen != "auto" else PRECISION


def rows_of_a_step(settings: Settings, ranks: int, longest: int) -> int:
    """Rows of an optimizer step on all GPUs together.

    Raises:
        SettingsError: they were chosen, and there are fewer than GPUs.
    """
    options = settings.train
    if options.batch_tokens:
        rows, what = options.batch_tokens // longest, f"train.batch_tokens={options.batch_tokens}"
        advice = f"train.batch_tokens={ranks * longest} would be one row of {longest:,} tokens for each"
    else:
        rows, what = options.batch_size, f"train.batch_size={options.batch_size}"
        advice = f"set train.batch_size={ranks} or more"
    if rows >= ranks:
        return rows
    if options.batch_tokens or "batch_size" in options.model_fields_set:
        raise SettingsError(
            f"{counted(ranks, 'GPU')} share a step of {counted(rows, 'row')} ({what}), and each needs one; {advice}, "
            "or take fewer GPUs"
        )
    return ranks


def count(data: str, settings: Settings, longest: int) -> Counted:
    """The training rows of a file, with their tokens by the length of their texts.

    Raises:
        UserError: it cannot be read.
    """
    source = task_of(settings).read(data)
    some = spread(source.examples, LOOKED_AT)
    sizes = [_characters(example) for example in some]
    tokens = [min(max(whole / CHARACTERS, 1.0), longest) for whole, _ in sizes]
    answers = sum(answer for _, answer in sizes) / max(sum(whole for whole, _ in sizes), 1)
    rows = max(1, int(TRAIN_SHARE * len(source.examples)))
    return Counted(rows, sum(tokens) / len(tokens), answers)


def _characters(example: Example) -> tuple[int, int]:
    """Of the whole conversation, and of the answers in it."""
    sizes = [(len(turn.content) + len(turn.about), turn.role == "assistant") for turn in example.turns]
    return sum(size for size, _ in sizes), sum(size for size, learnt in sizes if learnt)


def _methods(settings: Settings) -> list[Settings]:
    """Settings for all that can be trained: everything, adapters, and adapters beside weights in few bits."""
    few: Literal["int8", "nf4"] = "int8" if settings.lora.base == "int8" else "nf4"
    ways: list[tuple[Literal["full", "lora"], Literal["fp32", "int8", "nf4"]]] = [("full", "fp32"), ("lora", "fp32")]
    if not settings.lora.dora:  # which needs the exact weights
        ways.append(("lora", few))
    return [
        settings.model_copy(
            update={
                "train": settings.train.model_copy(update={"method": method}),
                "lora": settings.lora.model_copy(update={"base": base}),
            }
        )
        for method, base in ways
    ]


def _shards(cluster: Cluster) -> tuple[Shard, ...]:
    """How weights can lie on the ranks."""
    return ("",) if cluster.ranks == 1 else ("no", "full")


def choose(fits: Sequence[Fit], settings: Settings) -> Fit | None:
    """The way to be advised: of those that fit and agree with what was chosen, the one that changes most weights.

    Of several the fastest; None where none fits.
    """
    train, lora = settings.train, settings.lora
    wanted = {
        "method": (train.model_fields_set, train.method),
        "base": (lora.model_fields_set if train.method == "lora" else set(), lora.base),
        "shard": (train.model_fields_set, getattr(train, "shard", "")),
        "gradient_checkpointing": (train.model_fields_set, train.gradient_checkpointing),
    }
    able = [one for one in fits if one.fits]
    for name, (chosen, value) in wanted.items():
        if name in chosen:
            able = [one for one in able if _said_of(one.way, name) in ("", value)]
    order = list(dict.fromkeys((one.way.method, one.way.base) for one in fits))
    return min(able, key=lambda one: (order.index((one.way.method, one.way.base)), one.seconds), default=None)


def _said_of(way: Way, name: str) -> Any:
    """What a setting would be in a way of training; empty where it is idle."""
    return way.checkpointing if name == "gradient_checkpointing" else getattr(way, name)


def command_for(
    one: Fit, cluster: Cluster, arguments: Sequence[str], settings: Settings, precision: str, batch: int
) -> str:
    """The command that trains in a way, with what was given and what it wants besides."""
    train, way = settings.train, one.way
    start = ["instil", "run"]
    if cluster.ranks > 1:
        nodes = ["--nnodes", str(cluster.nodes)] if cluster.nodes > 1 else []
        meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", ROOT] if cluster.nodes > 1 else ["--standalone"]
        start = ["torchrun", *nodes, "--nproc-per-node", str(cluster.gpus), *meet, "-m", "instil", "run"]
    by_tokens = train.batch_tokens > 0
    wanted = {
        "train.method": (way.method, train.method),
        "lora.base": (way.base, settings.lora.base if way.method == "lora" else way.base),
        "train.shard": ("full" if way.shard == "full" else "no", getattr(train, "shard", "no")),
        "train.precision": (precision, train.precision),
        "train.batch_size": (train.batch_size if by_tokens else batch, train.batch_size),
        "train.micro_batch": (one.micro_batch if one.accumulation > 1 else train.micro_batch, train.micro_batch),
        "train.gradient_checkpointing": (way.checkpointing, train.gradient_checkpointing),
    }
    more = [
        part
        for key, (value, known) in wanted.items()
        if value != known
        for part in ("--set", f"{key}={str(value).lower()}")
    ]
    return shlex.join([*start, *arguments, *more])


def _advice(best: Fit | None, fits: Sequence[Fit], cluster: Cluster, steps: int) -> str:
    """One line on what to do."""
    if best is None:
        least = min(fits, key=lambda one: one.parts.total)
        return (
            f"nothing of what was asked for fits: {least.way.name} takes the least, {least.parts.total / 1e9:.1f} GB, "
            f"and {cluster.usable / 1e9:.1f} of {cluster.memory / 1e9:.1f} GB can be filled; take more or larger GPUs, "
            "lower data.max_length, or take a smaller model"
        )
    line = (
        f"{best.way.name}: {best.parts.total / 1e9:.1f} of {cluster.memory / 1e9:.1f} GB on each GPU, "
        f"{best.tokens_per_second:,.0f} tokens a second, about {steps * best.seconds / 3600:,.2f} hours"
    )
    if best.link_seconds > best.compute_seconds:
        line += "; a step waits for the network, so that more rows in it (train.batch_size) cost next to nothing"
    if best.pass_tokens < FEW:
        line += (
            f"; {best.pass_tokens:,.0f} tokens at once on a GPU are too few for {cluster.efficiency:.0%} of its peak, "
            "and it will take longer"
        )
    return line
