"""What the commands print: every table and sentence for the terminal, in one place."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from instil.evaluate.comparison import Comparison
    from instil.evaluate.health import Health
    from instil.recipes.compare import Chosen, Compared
    from instil.recipes.score import Scored
if TYPE_CHECKING:
    from instil.recipes.inspect import Slide
from collections.abc import Iterator
from typing import TYPE_CHECKING

from instil.screen import clock

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text
from instil.errors import counted
from instil.machine import peak_memory_gb
from instil.recipes.plan.plan import CHAPTER, STAGES, Plan
from instil.recipes.run import Run


def _show_scores(found: dict[str, Scored], *, offline: bool) -> None:
    if offline:
        from instil.evaluate.offline import means

        head = f"{'':12} {'scored':>9}   agreement [95 %]      exact match   chrF   ROUGE-L   token F1   novel F1"
        typer.echo(head)
        for which, one in found.items():
            mean, metrics = one.mean(), means(one.verdicts)
            counts = f"{len(one.scores)}/{len(one.verdicts)}"
            if mean is None:
                typer.echo(f"{which:12} {counts:>9}   no row has a reference answer")
                continue
            exact, chrf, rouge = metrics["exact_match"], metrics["chrf"], metrics["rouge_l"]
            words, novel = metrics["token_f1"], metrics["novel_f1"]
            more = f"   embedding {metrics['embedding']:.3f}" if "embedding" in metrics else ""
            figures = f"{exact:>10.1%}  {chrf:>5.1f}   {rouge:>7.3f}   {words:>8.3f}   {novel:>8.3f}{more}"
            typer.echo(f"{which:12} {counts:>9}   {mean.text():20}  {figures}")
        typer.echo("agreement with the reference, 0 to 100; it compares words, not meaning")
        return
    for which, one in found.items():
        mean = one.mean()
        low, high = one.bounds()
        typer.echo(f"{which}: {mean.text() if mean else 'no score'} of 100 by {one.judge}")
        typer.echo(
            f"  {len(one.scores)} of {len(one.verdicts)} rows have a score ({one.asked} questions now, "
            f"{one.found} before)"
        )
        if one.unscored:
            typer.echo(f"  if all others had 0: {low:.1f}; if they had 100: {high:.1f}")
            for reason, rows in _by_reason(one.unscored):
                typer.echo(f"  no score: {len(rows)} rows ({', '.join(map(str, rows[:10]))}): {reason}")
        if one.flagged:
            flagged = ", ".join(map(str, one.flagged[:10]))
            typer.echo(f"  {len(one.flagged)} answers hold words that are aimed at a judge: rows {flagged}")
        if one.noise is not None:
            typer.echo(f"  asked again, the judge differs from itself by {one.noise:.1f} points (standard deviation)")


def _by_reason(unscored: dict[int, str]) -> list[tuple[str, list[int]]]:
    reasons: dict[str, list[int]] = {}
    for row, reason in unscored.items():
        reasons.setdefault(reason, []).append(row)
    return sorted(reasons.items(), key=lambda item: -len(item[1]))[:10]


def _show_comparison(found: Compared) -> None:
    one = found.comparison
    typer.echo(one.sentence(found.a, found.b))
    if one.a is None or one.b is None:
        return
    typer.echo(f"\n{'judge ' + found.judge:22} {found.a[-24:]:>24} {found.b[-24:]:>24}   difference [95 %]")
    _line("score, 0 to 100", one)
    for name, metric in found.metrics.items():
        _line({"exact_match": "exact match, %", "chrf": "chrF"}[name], metric)
    typer.echo(f"\n{one.wins} rows better, {one.ties} equal, {one.losses} worse (of {one.scored} with two scores)")
    typer.echo(f"to right (80 points and more): {_rows(one.gained)}; no longer: {_rows(one.lost)}")
    if one.smallest is not None:
        typer.echo(f"the smallest true difference that these rows would show in four of five cases: {one.smallest:.1f}")
    if one.scored < one.rows:
        low, high = one.bounds
        typer.echo(
            f"{one.rows - one.scored} rows lack a score; at the worst the difference is {low:+.1f}, at best {high:+.1f}"
        )
    if found.clean is not None:
        typer.echo(
            f"{len(found.leaks)} rows are nearly the same as training rows. Without them: "
            f"{found.clean.sentence(found.a, found.b)}"
        )
    elif not found.looked:
        typer.echo("training rows are not known here, so nobody looked for rows that leaked")
    if found.only_a or found.only_b:
        typer.echo(f"left out: {found.only_a} rows only in {found.a}, {found.only_b} only in {found.b}")


def _line(name: str, one: Comparison) -> None:
    a, b, difference = one.a, one.b, one.difference
    if a is not None and b is not None and difference is not None:
        typer.echo(f"{name:22} {a.text():>24} {b.text():>24}   {difference.text()}")


def _rows(rows: tuple[int, ...]) -> str:
    if not rows:
        return "none"
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"{len(rows)} (rows {', '.join(map(str, rows[:10]))}{more})"


def _show_duels(found: Chosen) -> None:
    duels = found.duels
    typer.echo(duels.sentence(found.a, found.b))
    if duels.same:
        typer.echo(f"{len(duels.same)} rows have equal answers and count as ties")
    if duels.consistency is not None:
        typer.echo(
            f"the judge's choice did not depend on the order in {duels.consistency:.0%} of the rows; "
            "where it did, the row is a tie"
        )
    if duels.longer is not None:
        typer.echo(f"the longer answer won in {duels.longer:.0%} of the decided rows")
    for reason, rows in _by_reason({one.row: one.reason for one in duels.duels if one.outcome is None}):
        typer.echo(f"no choice: {len(rows)} rows ({', '.join(map(str, rows[:10]))}): {reason}")


def _show_health(health: Health) -> None:
    for group in (health.right, health.wrong, health.shuffled):
        _show_group(group.name, group.mean, group.unscored)
    typer.echo(f"a right answer gets more than a wrong one in {health.order:.0%} of the pairs")
    typer.echo("\nanswers that are none:")
    for group in health.canaries:
        _show_group(group.name, group.mean, group.unscored, paid=group.name in health.paid)
    if not health.problems:
        typer.echo(f"\n{health.judge} tells right from wrong and pays for no canary")


def _show_group(name: str, mean: float | None, unscored: int, *, paid: bool = False) -> None:
    figure = "no score" if mean is None else f"{mean:.0f} of 100"
    missing = f", {unscored} without a score" if unscored else ""
    typer.echo(f"  {name:24} {figure}{missing}{'   <- it pays for this' if paid else ''}")


def _show_slide(slide: Slide) -> None:
    """Tokens on the terminal: trained ones bold green, seen ones plain, cut ones struck through in red."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    styles = {"trained": "bold green", "seen": "", "cut": "red strike"}
    console.print(
        f"\nrow {slide.example.row} ({slide.part}): {len(slide.tokens)} tokens, {slide.trained} trained on "
        "([bold green]green[/], in brackets)",
    )
    text = Text()
    inside = False
    for token in slide.tokens:
        if (token.fate == "trained") != inside:
            text.append("«" if not inside else "»", style="dim")
            inside = not inside
        text.append(token.text, style=styles[token.fate])
    if inside:
        text.append("»", style="dim")
    console.print(text)


def tables(plan: Plan) -> Iterator[Table | Text]:
    """What the user is shown."""
    from rich.text import Text

    work, memory = plan.work, plan.memory
    job = _table(f"{plan.model} ({plan.parameters:,} parameters) on {plan.data}", "", "")
    parts = ", ".join(f"{plan.rows[part]:,} {part}" for part in ("train", "validation", "test"))
    job.add_row("rows", parts)
    job.add_row("tokens of the training rows", f"{plan.tokens:,}")
    job.add_row("optimizer steps", f"{work.steps:,} of {plan.rows['batch']} rows")
    if plan.seconds:
        job.add_row("seconds for each", f"{plan.step_seconds:.2f} ({plan.timed_steps} steps timed)")
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


def summary(finished: Run) -> list[str]:
    """What the user is told at the end."""
    lines = []
    if "tuned" in finished.scores:
        lines.append(f"{'':8}  exact match   chrF   agreement, 0 to 100")
        names = {"base": "before", "tuned": "after", "echo": "echo*"}
        for key, name in names.items():
            score = finished.scores[key]
            lines.append(f"{name:8}  {score['exact_match']:>10.1%}  {score['chrf']:>5.1f}   {score['score']:>6.1f}")
        lines.append("* an answer that only repeats the input: the least that counts")
        lines.append(finished.verdict)
        lines.append("agreement with the reference answers; it compares words, not meaning (instil score --judge ...)")
    if finished.validation_loss is not None:
        lines.append(f"validation loss {finished.validation_loss:.3f} after {counted(finished.steps, 'step')}")
    lines.append(f"took {clock(sum(finished.seconds.values()))}; peak memory {peak_memory_gb():.1f} GB")
    if finished.outlook:
        lines.append(finished.outlook)
    lines.append(f"report: {finished.path / 'report.html'}")
    lines.append(f"model:  {finished.path / 'model'}")
    lines.append(f'try it: instil respond {finished.path} --instruction "Name three colours."')
    return lines
