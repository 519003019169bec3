"""Tables that are fitted to the width of the terminal: of runs, of what was checked, and of plans on paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from instil.errors import UserError, counted
from instil.screen import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from instil.recipes.plan.paper import PaperPlan
    from instil.recipes.runs import ListedRun, Pruned, RunList
    from instil.recipes.selftest.selftest import SelfTest

WIDE = 200  # columns where stdout is no terminal
BETWEEN = 2  # blanks between two columns
PARTS = ("weights", "moments", "activations", "gradients", "communication", "copies", "head")  # the first stay longest


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Of ``rank`` 0 it is always there; others go where there is no room, the highest first."""

    head: str
    cells: tuple[str, ...]
    rank: int = 0
    right: bool = False

    @property
    def width(self) -> int:
        """Of its widest cell on a terminal."""
        from rich.cells import cell_len

        return max(map(cell_len, (self.head, *self.cells)))


def fitted(columns: Sequence[Column], width: int) -> list[Column]:
    """The columns for which there is room; one without any content is left out.

    >>> one, two = Column("run", ("a" * 10,)), Column("age", ("3 h",), rank=1)
    >>> [column.head for column in fitted([one, two], 15)], [column.head for column in fitted([one, two], 14)]
    (['run', 'age'], ['run'])
    """
    kept = [column for column in columns if not column.rank or any(column.cells)]
    while sum(column.width + BETWEEN for column in kept) - BETWEEN > width and any(column.rank for column in kept):
        kept.remove(max(kept, key=lambda column: column.rank))
    return kept


def console(*, err: bool = False) -> Console:
    """Where tables go; wide where that is no terminal."""
    from rich.console import Console

    found = Console(highlight=False, stderr=err)
    return found if found.is_terminal else Console(highlight=False, stderr=err, width=WIDE)


def table_of(columns: Sequence[Column], width: int, styles: Sequence[str] = ()) -> Table:
    """A table of as many columns as fit; what is still too wide is folded."""
    from rich.table import Table
    from rich.text import Text

    kept = fitted(columns, width)
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, BETWEEN, 0, 0), header_style="bold")
    for column in kept:
        table.add_column(Text(column.head), justify="right" if column.right else "left", overflow="fold")
    for number, cells in enumerate(zip(*(column.cells for column in kept), strict=True)):
        table.add_row(*(Text(visible(cell)) for cell in cells), style=styles[number] if styles else "")
    return table


STYLES = {"running": "green", "failed": "red", "stopped": "yellow"}  # of runs by their state


def show_runs(found: RunList) -> None:
    """The table of runs, and what is wrong with some."""
    from instil.recipes.runs import size_text

    if line := found.line():
        typer.echo(visible(line))
        return
    out = console()
    out.print(table_of(_columns(found.runs), out.width, [STYLES.get(one.state, "") for one in found.runs]))
    for one in found.runs:
        if one.about.problem:
            typer.echo(visible(f"{one.about.name}: {one.about.problem}"))
    kept = sum(one.checkpoints for one in found.with_checkpoints(finished=True))
    if kept:
        typer.echo(f"{size_text(kept)} are checkpoints of finished runs; instil runs --prune removes them")


def _columns(runs: Sequence[ListedRun]) -> list[Column]:
    from instil.recipes.runs import age_text, size_text

    def column(head: str, cells: list[str], rank: int = 0, *, right: bool = False) -> Column:
        return Column(head, tuple(cells), rank, right)

    return [
        column("run", [one.about.name for one in runs]),
        column("state", [one.state for one in runs]),
        column("model", [one.about.model for one in runs], 6),
        column("data", [one.about.data for one in runs], 7),
        column("steps", [_steps(one) for one in runs], right=True),
        column("train loss", [_number(one.about.train_loss, 3) for one in runs], 5, right=True),
        column("val. loss", [_number(one.about.val_loss, 3) for one in runs], 2, right=True),
        column("score", [_scores(one) for one in runs], 1, right=True),
        column("age", [age_text(one.age) for one in runs], 3, right=True),
        column("size", [size_text(one.bytes) for one in runs], 4, right=True),
    ]


def _steps(one: ListedRun) -> str:
    done = "-" if one.about.step is None else f"{one.about.step:,}"
    return done if one.about.steps is None else f"{done}/{one.about.steps:,}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _scores(one: ListedRun) -> str:
    """Before and after, by the first judge that scored both."""
    if not one.about.scores:
        return ""
    scored = one.about.scores[0]
    before, after = ("-" if side is None else _number(side.mean, 1) for side in (scored.before, scored.after))
    return f"{before} > {after}"


def show_pruned(done: Pruned) -> None:
    """How much space there is again, and what could not be removed."""
    from instil.recipes.runs import size_text

    for name, problem in done.problems.items():
        typer.echo(visible(f"{name}: {problem}"), err=True)
    if done.freed:
        typer.echo(f"freed {size_text(done.bytes)}: checkpoints of {counted(len(done.freed), 'run')}", err=True)
    elif not done.problems:
        typer.echo("nothing was removed", err=True)


def confirmed(text: str) -> bool:
    """Whether who is asked says yes.

    Raises:
        UserError: nobody answers.
    """
    try:
        return typer.confirm(visible(text), default=False, err=True)
    except typer.Abort as error:
        raise UserError("--prune asks before it removes something, and nobody answered; add --yes") from error


def show_selftest(done: SelfTest) -> None:
    """What was checked, how, what came of it, and where."""
    out = console()
    rows = done.checked
    columns = [
        Column("", tuple("ok" if one.passed else "FAILED" for one in rows)),
        Column("what", tuple(one.check.what for one in rows)),
        Column("how", tuple(one.check.how for one in rows), rank=3),
        Column("difference", tuple(one.difference for one in rows), right=True),
        Column("allowed", tuple(one.allowed for one in rows), rank=1, right=True),
        Column("seconds", tuple(f"{one.seconds:.1f}" for one in rows), rank=2, right=True),
    ]
    typer.echo()
    out.print(table_of(columns, out.width, ["" if one.passed else "red" for one in rows]))
    for one in rows:
        if one.problem:
            typer.echo(visible(f"{one.check.what}: {one.problem}"))
    typer.echo(visible(done.on()))


def show_paper(plan: PaperPlan) -> None:
    """The ways of training, what a GPU holds in each, and what is advised."""
    out, cluster, rows, fits = console(), plan.cluster, plan.rows, plan.fits
    gpus = f"{counted(cluster.gpus, 'GPU')} of {cluster.memory / 1e9:g} GB"
    where = gpus if cluster.nodes == 1 else f"{cluster.nodes} nodes of {gpus}"
    typer.echo(
        visible(
            f"{plan.model} ({plan.parameters:,} parameters; {plan.adapters:,} in adapters) on {where}, "
            f"{plan.precision}\n"
            f"steps of {counted(rows.batch, 'row')} of at most {rows.longest:,} tokens (data.max_length); "
            f"{counted(plan.steps, 'step')} on {counted(plan.counted.rows, 'training row')} of {plan.data} with about "
            f"{rows.mean:.0f} tokens each\n"
        )
    )
    columns = [
        Column("", tuple("fits" if one.fits else "no" for one in fits)),
        Column("way", tuple(one.way.name for one in fits)),
        Column("GB", tuple(_gigabytes(one.parts.total) for one in fits), right=True),
        *(
            Column(name, tuple(_gigabytes(getattr(one.parts, name)) for one in fits), rank, right=True)
            for rank, name in enumerate(PARTS, 3)
        ),
        Column("rows at once", tuple(str(one.micro_batch) for one in fits), 2, right=True),
        Column("times", tuple(str(one.accumulation) for one in fits), 2, right=True),
        Column("tokens/s", tuple(f"{one.tokens_per_second:,.0f}" if one.fits else "" for one in fits), right=True),
        Column("hours", tuple(f"{plan.hours(one):,.2f}" if one.fits else "" for one in fits), 1, right=True),
    ]
    out.print(table_of(columns, out.width, ["" if one.fits else "dim" for one in fits]))
    typer.echo(
        f"\nGB on each GPU, {fits[0].parts.others / 1e9:.1f} of them for CUDA and NCCL. Counted, not timed: "
        f"{cluster.efficiency:.0%} of {cluster.tflops:g} TFLOP/s (--efficiency, --gpu-tflops), {cluster.link:g} GB/s "
        "between GPUs (--gpu-link)\n"
    )
    typer.echo(visible(plan.advice))
    if plan.command:
        typer.echo(visible(plan.command))


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f}"
