"""The verbs that judge: score and compare."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import ConfigOpt, JsonOpt, SetOpt, chosen_settings, print_json
from instil.cli.show_verdicts import (
    show_comparison,
    show_health,
    show_like_people,
    show_many,
    show_pairwise,
    show_scores,
)
from instil.errors import InstilError, UserError

if TYPE_CHECKING:
    from instil.settings.options import Settings

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
    labels: Annotated[
        Path | None,
        typer.Option(
            "--labels",
            metavar="FILE",
            help="With --check: rows with model_response and people's label, or preference pairs; does it follow them?",
        ),
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
        if labels is not None:
            _check_labels(check, labels, chosen, as_json=as_json)
        else:
            _check(check, chosen, as_json=as_json)
        return
    if labels is not None:
        raise UserError("--labels is what people say of answers; name the judge to be checked: --check JUDGE")
    if path is None:
        raise UserError("wanted a run folder or a file of answered rows, or --check JUDGE")
    from instil.recipes.score import check_outcome, score_path
    from instil.screen import Screen

    found = score_path(path, judge, chosen.score, Screen())
    if as_json:
        print_json({"judge": judge, "scores": {which: one.as_json() for which, one in found.items()}})
    else:
        show_scores(found, offline=judge == "offline")
    check_outcome(found, chosen.score)


@commands.command("compare")
def compare_command(
    answered: Annotated[
        list[str],
        typer.Argument(metavar="A B...", help="Runs, files in their responses/, or files of answers; two or more."),
    ],
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
    """Whether B is better than A, on the rows that both answered: the paired verdict. Of more than two a table."""
    chosen = _chosen(settings, config, prompt, repeats)
    if len(answered) < 2:
        raise UserError("one alone cannot be compared; name two runs or files, or more")
    if len(answered) > 2:
        if pairwise:
            raise UserError("--pairwise lets a judge choose between two answers; name two runs or files")
        _compare_many(answered, judge, chosen, as_json=as_json)
        return
    a, b = answered
    from instil.recipes.compare import compare, compare_pairwise
    from instil.recipes.score import check_failed
    from instil.screen import Screen

    if pairwise:
        choices = compare_pairwise(a, b, judge, chosen.score, Screen())
        if as_json:
            print_json(choices.as_json())
        else:
            show_pairwise(choices)
        check_failed(judge, choices.verdicts.failed)
        if choices.verdicts.coverage < chosen.score.min_coverage:
            share = f"{choices.verdicts.coverage:.0%}"
            raise InstilError(f"only {share} of the rows have a choice; wanted score.min_coverage")
        return
    found = compare(a, b, judge, options=chosen.score, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_comparison(found)
    for one in found.scored:
        check_failed(one.which, one.failed)
    if found.comparison.difference is None:
        raise InstilError("nothing could be compared")


def _compare_many(answered: list[str], judge: str, chosen: Settings, *, as_json: bool) -> None:
    from instil.recipes.compare_many import compare_many
    from instil.recipes.score import check_failed
    from instil.screen import Screen

    found = compare_many(answered, judge, options=chosen.score, screen=Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_many(found)
    for one in found.scored:
        check_failed(one.which, one.failed)
    if all(pair.difference is None for pair in found.pairs.values()):
        raise InstilError("nothing could be compared")


def _chosen(settings: list[str] | None, config: Path | None, prompt: str | None, repeats: int | None) -> Settings:
    more = [f"score.prompt={prompt}"] if prompt is not None else []
    more += [f"score.repeats={repeats}"] if repeats is not None else []
    return chosen_settings([*(settings or []), *more], config, only="score")


def _check(judge: str, chosen: Settings, *, as_json: bool) -> None:
    from instil.recipes.score import check
    from instil.screen import Screen

    health = check(judge, chosen.score, Screen())
    if as_json:
        print_json(health.as_json())
    else:
        show_health(health)
    if health.problems:
        raise InstilError(f"{judge} is not to be trusted: {'; '.join(health.problems)}")


def _check_labels(judge: str, file: Path, chosen: Settings, *, as_json: bool) -> None:
    from instil.recipes.labels import check_labels
    from instil.screen import Screen

    found = check_labels(judge, file, chosen.score, Screen())
    if as_json:
        print_json(found.as_json())
    else:
        show_like_people(found)
    if found.problems:
        raise InstilError(f"{judge} is not to be trusted: {'; '.join(found.problems)}")
