"""What the commands print: every table and sentence for the terminal, in one place."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from instil.errors import counted
from instil.screen import visible

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table
    from rich.text import Text

    from instil.recipes.plan.plan import Plan
    from instil.recipes.probe import Probed
    from instil.recipes.run.run import Run
    from instil.recipes.sweep.sweep import SweepResult
    from instil.recipes.sweep.table import SweepTable
    from instil.recipes.synthesize import Synthesized

NARROW_PAYS = 1.2  # times as fast, below which bfloat16 is not worth its rounding
WIDE = 200  # columns of a sweep's table where stdout is no terminal
REASONS = 5  # why rows were left out, the most frequent first


def echo(text: str = "", *, err: bool = False) -> None:
    """A line, with signs for what would steer a terminal."""
    typer.echo(visible(text), err=err)


def show_lines(lines: Iterable[str]) -> None:
    """One under the other."""
    for line in lines:
        echo(line)


def show_note(text: str) -> None:
    """On stderr, beside what stdout is for."""
    echo(text, err=True)


def show_path(path: Path) -> None:
    """Where something lies, and nothing else."""
    echo(str(path))


def show_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """Answered rows in the book's JSON."""
    typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))


def show_stream(pieces: Iterable[str]) -> None:
    """An answer as it comes; on a terminal with signs for what would steer it."""
    for piece in pieces:
        typer.echo(visible(piece) if sys.stdout.isatty() else piece, nl=False)  # which flushes
    typer.echo()


def show_settings(meanings: Mapping[str, str]) -> None:
    """Settings by name, each with its default and its meaning."""
    for name, meaning in meanings.items():
        echo(f"{name:24} {meaning}")


def _narrow(gain: float) -> str:
    """What bfloat16 would be worth here.

    >>> _narrow(2.04)
    "products take 49 % of float32's time here; the rest of a step gains less"
    >>> _narrow(0.4)
    "products take no less than float32's time here"
    """
    if gain < NARROW_PAYS:
        return "products take no less than float32's time here"
    return f"products take {1 / gain:.0%} of float32's time here; the rest of a step gains less".replace("%", " %")


def show_plan(plan: Plan) -> None:
    """Time and memory of a run."""
    from rich.console import Console

    console = Console(highlight=False)
    for shown in tables(plan):
        console.print(shown)


def tables(plan: Plan) -> Iterator[Table | Text]:
    """The plan's tables, and what must be said beneath them."""
    from rich.text import Text

    from instil.recipes.plan.plan import CHAPTER, STAGES
    from instil.screen import clock

    work, memory = plan.work, plan.memory
    job = _table(f"{plan.model} ({plan.parameters:,} parameters) on {plan.data}", "", "")
    parts = ", ".join(f"{plan.rows[part]:,} {part}" for part in ("train", "validation", "test"))
    job.add_row("rows", parts)
    job.add_row("tokens of the training rows", f"{plan.tokens:,}")
    job.add_row("optimizer steps", f"{work.steps:,} of {plan.rows['batch']} rows")
    if plan.seconds:
        job.add_row("seconds for each", f"{plan.step_seconds:.2f} ({counted(plan.timed_steps, 'step')} timed)")
        job.add_row("train.precision=bf16 (not exact)", _narrow(plan.narrow_gain))
    yield job
    if plan.seconds:
        spent = _table("Time, about", "", "")
        for name, seconds in plan.seconds.items():
            spent.add_row(STAGES[name].format(work=work, answered=plan.answered), clock(seconds))
        spent.add_row("all", clock(plan.total_seconds), style="bold")
        yield spent
    room = _table("Memory, GB", "", "")
    room.add_row("now, with the model" if plan.seconds else "now, without the model", _gb(memory.now))
    room.add_row("weights", _gb(memory.weights))
    if memory.saved:
        room.add_row("weights while adapters are trained, in few bits: not exact", _gb(memory.weights - memory.saved))
    room.add_row("gradients held at once", _gb(memory.gradients))
    room.add_row("AdamW's two moments", _gb(memory.moments))
    if plan.seconds:
        how = "measured" if memory.measured else "scaled from shorter rows"
        room.add_row(f"activations of the longest rows ({how})", _gb(memory.activations))
    room.add_row("Python and torch", _gb(memory.others))
    room.add_row("peak of training", _gb(memory.training), style="bold")
    room.add_row("peak of answering (weights, keys and values)", _gb(memory.answering), style="bold")
    room.add_row("this machine", _gb(memory.machine))
    yield room
    if not memory.fits:
        missing = "" if plan.seconds else "; nothing was timed"
        yield Text(
            f"This run needs about {_gb(memory.predicted)} GB and the machine has {_gb(memory.machine)}{missing}. "
            f"Lower {'train.micro_batch' if memory.training > memory.machine else 'generate.batch_size'}, "
            "or take a smaller model.",
            style="bold yellow",
        )
    chapter = _table("Minutes of training, as in the chapter: two epochs over 935 rows", "", "GPT-2 124M", "355M")
    for machine, (small, medium) in CHAPTER.items():
        chapter.add_row(machine, f"{small:.2f}", f"{medium:.2f}")
    yield chapter
    if plan.seconds:
        yield Text(f"this machine, {plan.model}, as many rows of this file: {plan.chapter_minutes:.2f} minutes")


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", show_header=any(columns), min_width=60)
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    return table


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f}"


def show_run(finished: Run) -> None:
    """What the user is told at the end of a run, below its progress."""
    echo()
    show_lines(summary(finished))


def summary(finished: Run) -> list[str]:
    """What the user is told at the end, line by line."""
    from instil.machine import peak_gpu_memory_gb, peak_memory_gb
    from instil.runs.answers import OTHER_FORM
    from instil.screen import clock

    lines = []
    if "tuned" in finished.scores:
        names = {"base": "before", "tuned": "after", "echo": "echo*"}
        others = [key for key in finished.scores if key not in names]
        names |= {key: f"before, asked in {key.removeprefix(OTHER_FORM)}**" for key in others}
        wide = max(8, *map(len, names.values()))
        lines.append(f"{'':{wide}}  exact match   chrF   agreement, 0 to 100")
        for key, name in names.items():
            score = finished.scores[key]
            if not score:
                lines.append(f"{name:{wide}}  no row has a score")
                continue
            exact, chrf, agreement = (score[key] for key in ("exact_match", "chrf", "score"))
            lines.append(f"{name:{wide}}  {exact:>10.1%}  {chrf:>5.1f}   {agreement:>6.1f}")
        lines.append("* an answer that only repeats the input: the least that counts")
        if others:
            lines.append("** the model was asked in two prompt forms; the better of them counts as before")
        lines.append(finished.verdict)
        lines.append("agreement with the reference answers; it compares words, not meaning (instil score --judge ...)")
        lines += [finished.note] if finished.note else []
    if finished.general is not None:
        lines += finished.general.lines()
    if finished.validation_loss is not None:
        lines.append(f"validation loss {finished.validation_loss:.3f} after {counted(finished.steps, 'step')}")
    of_gpu = "" if (peak := peak_gpu_memory_gb()) is None else f", of the GPU {peak:.1f} GB"
    lines.append(f"took {clock(sum(finished.seconds.values()))}; peak memory {peak_memory_gb():.1f} GB{of_gpu}")
    if finished.outlook:
        lines.append(finished.outlook)
    lines.append(f"report: {finished.path / 'report.html'}")
    lines.append(f"model:  {finished.path / 'model'}")
    lines.append(f'try it: instil respond {finished.path} --instruction "Name three colours."')
    return lines


def show_sweep(done: SweepResult) -> None:
    """The table of a sweep, its notes, and where it lies."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    echo()
    console.print(_sweep_table(done.table))
    for note in done.table.notes():
        console.print(note, markup=False, style="dim")
    echo(f"\ntable: {done.path / 'sweep.html'} (also sweep.md, sweep.csv, sweep.json)")


def _sweep_table(found: SweepTable) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_edge=False, pad_edge=False)
    for number, head in enumerate(found.columns()):
        table.add_column(Text(head), justify="right" if 0 < number < len(found.columns()) - 2 else "left")
    for row in found.rows:
        table.add_row(*map(Text, found.cells(row)), style="red" if row.status == "failed" else "")
    return table


def show_rates(found: Probed, out: Path | None) -> None:
    """The validation loss of each learning rate, round after round, and what follows from it."""
    rounds = sorted({one.steps for one in found.tried})
    echo(f"\n{'learning rate':>14}" + "".join(f"{counted(steps, 'step'):>14}" for steps in rounds))
    for rate in found.rates:
        losses = found.losses(rate)
        shown = ["" if steps not in losses else _loss(losses[steps]) for steps in rounds]
        best = "  <- best" if found.best is not None and rate == found.best.rate else ""
        echo(f"{rate:>14g}" + "".join(f"{text:>14}" for text in shown) + best)
    echo(f"validation loss; before training {found.untrained:.3f}; took {found.seconds:.0f} s")
    show_lines(found.advice())
    if out is not None:
        echo(f"picture: {out / 'probe.png'}")


def _loss(loss: float | None) -> str:
    return "diverged" if loss is None else f"{loss:.4f}"


def show_synthesis(made: Synthesized) -> None:
    """How many rows a model made, and why there are not more."""
    kept = len(made.rows) - made.made
    beside = f" beside {kept} that stayed as they were" if kept else ""
    echo(f"{made.out}: {counted(made.made, 'row')} by {made.made_by}{beside}")
    echo(f"  {counted(made.asked, 'request')} now, {made.found} answered before")
    for reason, times in list(made.reasons.items())[:REASONS]:
        echo(f"  left out: {times} times: {reason}")
    if made.rejected:
        echo(f"  all of them: {made.report}")
