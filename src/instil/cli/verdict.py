"""The verbs that judge: score and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import ConfigOpt, JsonOpt, SetOpt, chosen_settings, print_json
from instil.errors import InstilError, UserError

if TYPE_CHECKING:
    from instil.evaluate.comparison import Comparison
    from instil.evaluate.health import Health
    from instil.recipes.compare import Chosen, Compared
    from instil.recipes.score import Scored
    from instil.recipes.settings import Settings

commands = typer.Typer()

JudgeOpt = Annotated[
    str,
    typer.Option(
        "--judge",
        "-j",
        help="offline, ollama:MODEL, openai:MODEL, the address of an OpenAI-compatible server, or llamacpp:FILE.gguf.",
    ),
]
PromptOpt = Annotated[str | None, typer.Option("--prompt", help="rubric (default), book or book-verbose.")]
RepeatsOpt = Annotated[int | None, typer.Option("--repeats", help="Judge each answer so many times.")]
ASK = "score.* settings say how the judge is asked"


@commands.command("score")
def score_command(
    path: Annotated[
        Path | None, typer.Argument(metavar="RUN_OR_FILE", help="A run, or a JSON file with model_response.")
    ] = None,
    judge: JudgeOpt = "offline",
    prompt: PromptOpt = None,
    repeats: RepeatsOpt = None,
    min_coverage: Annotated[
        float | None, typer.Option("--min-coverage", help="Share of the rows that must get a score, else it fails.")
    ] = None,
    check: Annotated[
        str | None, typer.Option("--check", metavar="JUDGE", help="Instead: can this judge be trusted?")
    ] = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Scores of answers: agreement with the reference, or another model's verdicts. Goes on where it was stopped."""
    more = [f"score.min_coverage={float(min_coverage)}"] if min_coverage is not None else []
    chosen = _chosen([*(settings or []), *more], config, prompt, repeats)
    if check is not None:
        if path is not None:
            raise UserError("--check asks the judge about answers of its own; leave out the file")
        _check(check, chosen, as_json=as_json)
        return
    if path is None:
        raise UserError("wanted a run folder or a file of answered rows, or --check JUDGE")
    from instil.recipes.progress import Screen
    from instil.recipes.score import check_outcome, score_path

    found = score_path(path, judge, chosen.score, Screen())
    if as_json:
        print_json({"judge": judge, "scores": {which: one.as_json() for which, one in found.items()}})
    else:
        _show_scores(found, offline=judge == "offline")
    check_outcome(found, chosen.score)


@commands.command("compare")
def compare_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A run, one of its responses/*.json, or a file of answers.")],
    b: Annotated[str, typer.Argument(metavar="B", help="What is compared with it.")],
    judge: JudgeOpt = "offline",
    prompt: PromptOpt = None,
    repeats: RepeatsOpt = None,
    pairwise: Annotated[
        bool, typer.Option("--pairwise", help="The judge chooses between the two answers, in both orders.")
    ] = False,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Whether B is better than A, on the rows that both answered: the paired verdict."""
    chosen = _chosen(settings, config, prompt, repeats)
    from instil.recipes.compare import compare, compare_pairwise
    from instil.recipes.progress import Screen
    from instil.recipes.score import check_failed

    if pairwise:
        duels = compare_pairwise(a, b, judge, chosen.score, Screen())
        if as_json:
            print_json(duels.as_json())
        else:
            _show_duels(duels)
        check_failed(judge, duels.duels.failed)
        if duels.duels.coverage < chosen.score.min_coverage:
            raise InstilError(f"only {duels.duels.coverage:.0%} of the rows have a choice; wanted score.min_coverage")
        return
    found = compare(a, b, judge, options=chosen.score, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        _show_comparison(found)
    for one in found.scored:
        check_failed(one.which, one.failed)
    if found.comparison.difference is None:
        raise InstilError("nothing could be compared")


def _chosen(settings: list[str] | None, config: Path | None, prompt: str | None, repeats: int | None) -> Settings:
    more = [f"score.prompt={prompt}"] if prompt is not None else []
    more += [f"score.repeats={repeats}"] if repeats is not None else []
    return chosen_settings([*(settings or []), *more], config, only="score")


def _check(judge: str, chosen: Settings, *, as_json: bool) -> None:
    from instil.recipes.health import check
    from instil.recipes.progress import Screen

    health = check(judge, chosen.score, Screen())
    if as_json:
        print_json(health.as_json())
    else:
        _show_health(health)
    if health.problems:
        raise InstilError(f"{judge} is not to be trusted: {'; '.join(health.problems)}")


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
