"""A plan for GPUs that are not here: its options, and what they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from instil.errors import UserError

if TYPE_CHECKING:
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
