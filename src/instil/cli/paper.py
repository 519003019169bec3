"""A plan for GPUs that are not here: its options, and its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from instil.errors import UserError

if TYPE_CHECKING:
    from instil.recipes.plan.cluster import Fit
    from instil.recipes.plan.paper import PaperPlan
    from instil.settings.options import Settings

GpusOpt = Annotated[
    int | None,
    typer.Option("--gpus", help="Plan for so many GPUs (on each node) instead of this machine; on paper, untimed."),
]
GpuMemoryOpt = Annotated[str | None, typer.Option("--gpu-memory", help="Memory of one of them, such as 80GB.")]
NodesOpt = Annotated[int | None, typer.Option("--nodes", help="Machines with so many GPUs each.  [default: 1]")]
TflopsOpt = Annotated[
    float | None,
    typer.Option("--gpu-tflops", help="Peak of one.  [default: an A100's, 312 in bf16 and 19.5 in fp32; H100: 989]"),
]
EfficiencyOpt = Annotated[
    float | None, typer.Option("--efficiency", help="The share of the peak that training reaches.  [default: 0.35]")
]
LinkOpt = Annotated[
    float | None,
    typer.Option("--gpu-link", help="GB/s that each can send.  [default: 300 within a node, 25 between nodes]"),
]
PARTS = ("weights", "copies", "gradients", "moments", "activations", "head", "communication")


def planned_on_paper(
    data: str, model: str, settings: Settings, given: Sequence[str], gpus: int, memory: str | None, nodes: int | None,
    tflops: float | None, efficiency: float | None, link: float | None,
) -> PaperPlan:  # fmt: skip
    """The plan for what the options say.

    Raises:
        UserError: they, or data, model or settings, cannot be used.
    """
    if memory is None:
        raise UserError("--gpus: how much memory has one of them? Add --gpu-memory, such as --gpu-memory 80GB")
    from instil.recipes.plan.cluster import EFFICIENCY, cluster_of
    from instil.recipes.plan.paper import plan_on_paper, precision_of

    cluster = cluster_of(
        gpus,
        memory,
        precision_of(settings),
        nodes=1 if nodes is None else nodes,
        tflops=tflops,
        efficiency=EFFICIENCY if efficiency is None else efficiency,
        link=link,
    )
    return plan_on_paper(data, model, settings, cluster, given)


def show_paper(plan: PaperPlan) -> None:
    """The ways of training, what a GPU holds in each, and what is advised."""
    from rich.table import Table
    from rich.text import Text

    from instil.cli.tables import console

    cluster, rows = plan.cluster, plan.rows
    gpus = f"{cluster.gpus} GPU{'s' if cluster.gpus > 1 else ''} of {cluster.memory / 1e9:.0f} GB"
    where = f"{cluster.nodes} nodes of {gpus}" if cluster.nodes > 1 else gpus
    title = (
        f"{plan.model} ({plan.parameters:,} parameters; adapters {plan.adapters:,}) on {where}, {plan.precision}\n"
        f"steps of {rows.batch} rows of up to {rows.longest:,} tokens (data.max_length), {plan.steps:,} steps on "
        f"{plan.counted.rows:,} training rows of about {rows.mean:.0f} tokens"
    )
    table = Table(title=Text(title), title_justify="left")
    heads = ("way", "fits", *PARTS, "GB per GPU", "rows at once", "accumulation", "tokens/s", "hours")
    for number, head in enumerate(heads):
        table.add_column(head, justify="right" if number > 1 else "left")
    for one in plan.fits:
        table.add_row(*_cells(plan, one), style="" if one.fits else "dim")
    shown = console()
    shown.print(table)
    shown.print(
        Text(
            f"GB by part; besides {plan.fits[0].parts.others / 1e9:.1f} for CUDA and NCCL. Time from counted "
            f"operations at {cluster.efficiency:.0%} of {cluster.tflops:g} TFLOP/s (--efficiency, --gpu-tflops) and "
            f"{cluster.link:g} GB/s (--gpu-link). On paper: nothing was timed (docs/scale.md)."
        )
    )
    shown.print(Text(plan.advice, style="bold" if plan.command else "bold yellow"))
    if plan.command:
        typer.echo(plan.command)


def _cells(plan: PaperPlan, one: Fit) -> list[str]:
    sizes = [f"{getattr(one.parts, name) / 1e9:.1f}" for name in PARTS]
    time = [f"{one.tokens_per_second:,.0f}", f"{plan.hours(one):,.2f}"] if one.fits else ["", ""]
    return [
        one.way.name,
        "yes" if one.fits else "no",
        *sizes,
        f"{one.parts.total / 1e9:.1f}",
        str(one.micro_batch),
        str(one.accumulation),
        *time,
    ]
