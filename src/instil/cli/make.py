"""The verbs that make data with another model: generate and prefer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import ConfigOpt, JsonOpt, MapOpt, SetOpt, chosen_settings, print_json
from instil.cli.show import show_lines, show_synthesis
from instil.errors import InstilError, UserError

commands = typer.Typer()


@commands.command("generate")
def generate_command(
    way: Annotated[
        str,
        typer.Option(
            "--way",
            "-w",
            help="self-instruct: new tasks in the manner of the seeds. magpie: what a chat model takes for a user's "
            "words. reflect: the rows, improved. passive: each row, and one that asks for its passive voice.",
        ),
    ],
    model: Annotated[
        str,
        typer.Option(
            "--with",
            help="Who writes: ollama:MODEL, openai:MODEL, the address of an OpenAI-compatible server, or "
            "llamacpp:FILE.gguf.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The file to write (.json or .jsonl); a journal grows beside it.")
    ],
    seeds: Annotated[
        str | None,
        typer.Option(
            "--seeds",
            "--rows",
            help="The rows to begin with: a file, its URL, or a name. Needed by reflect and passive; "
            "self-instruct takes starter.",
        ),
    ] = None,
    existing: Annotated[
        list[str] | None, typer.Option("--existing", help="Further rows that are not to be repeated; several times.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", help="New rows (100); with reflect and passive: rows to go through.")
    ] = None,
    what: Annotated[str, typer.Option("--what", help="reflect: instruction, answer or both.")] = "both",
    chat_template: Annotated[
        str,
        typer.Option(
            "--chat-template", help="magpie: llama3, chatml, gemma, phi3 or mistral; auto: by the model's name."
        ),
    ] = "auto",
    mapping: MapOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Instruction data out of another language model. Goes on where it was stopped; every row says where it is from."""
    given = settings or []
    chosen_settings([one for one in given if not one.startswith("data.skip_bad=")], config, only="make")
    chosen = chosen_settings(given, config, mapping=mapping)
    from instil.recipes.synthesize import check_outcome, synthesize
    from instil.screen import Screen

    made = synthesize(
        way,
        model,
        out,
        seeds=seeds,
        existing=existing or (),
        count=count,
        what=what,
        chat_template=chat_template,
        options=chosen.make,
        skip_bad=chosen.data.skip_bad,
        mapping=chosen.data.map,
        screen=Screen(),
    )
    if as_json:
        print_json(made.as_json())
    else:
        show_synthesis(made)
    check_outcome(made, count)


WAYS = "--from A B, --samples N, --rewrite, or --check PAIRS"
GOES_WITH = {  # options by the ways that know them
    "--judge": ("--from", "--samples"),
    "--model": ("--samples",),
    "--template": ("--samples",),
    "--gap": ("--samples",),
    "--data": ("--samples", "--rewrite"),
    "--with": ("--rewrite",),
    "--both": ("--rewrite",),
    "--map": ("--samples", "--rewrite", "--check"),
    "--out": ("--from", "--samples", "--rewrite"),
    "--overwrite": ("--from", "--samples", "--rewrite"),
}
SECTIONS = {"--from": ("score",), "--samples": ("generate", "score"), "--rewrite": ("make",)}


@commands.command("prefer")
def prefer_command(
    between: Annotated[
        tuple[str, str] | None,
        typer.Option("--from", metavar="A B", help="Two runs, or files of answers; a judge chooses, in both orders."),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="N answers of a model to each row, best against worst."),
    ] = None,
    rewrite: Annotated[
        bool, typer.Option("--rewrite", help="A model rewrites each answer politely or impolitely, by a seeded coin.")
    ] = False,
    check: Annotated[
        str | None, typer.Option("--check", metavar="PAIRS", help="Instead: what is wrong with a file of pairs?")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge",
            "-j",
            help="Who chooses or scores: ollama:MODEL, openai:MODEL, the address of an OpenAI-compatible server, "
            "llamacpp:FILE.gguf; samples can be scored offline, which is their default.",
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="With --samples: a run, or any model.")] = None,
    data: Annotated[str | None, typer.Option("--data", help="The rows, as for run.")] = None,
    with_model: Annotated[
        str | None, typer.Option("--with", metavar="MODEL", help="With --rewrite: who rewrites, named like a judge.")
    ] = None,
    both: Annotated[bool, typer.Option("--both", help="Rewrite every answer politely and impolitely.")] = False,
    gap: Annotated[
        float | None, typer.Option("--gap", help="Points from best to worst sample, at least; 10 by default.")
    ] = None,
    template: Annotated[str | None, typer.Option("--template", help="For a model that carries none.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The file of pairs; pairs.json by default.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    mapping: MapOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Preference pairs: made in one of three ways, or checked. Goes on where it was stopped."""
    ways = {"--from": between is not None, "--samples": samples is not None, "--rewrite": rewrite}
    chosen = [way for way, given in {**ways, "--check": check is not None}.items() if given]
    if len(chosen) != 1:
        raise UserError(f"wanted {'one' if chosen else 'a way of making pairs'}: {WAYS}")
    (way,) = chosen
    options = {
        "--judge": judge, "--model": model, "--template": template, "--gap": gap, "--data": data,
        "--with": with_model, "--both": both or None, "--out": out, "--overwrite": overwrite or None,
        "--map": mapping,
    }  # fmt: skip
    for name, value in options.items():
        if value is not None and way not in GOES_WITH[name]:
            raise UserError(f"{name} goes with {' and '.join(GOES_WITH[name])}, not with {way}")
    if check is not None:
        if settings or config:
            raise UserError("--check has no settings; leave out --set and --config")
        _check(check, chosen_settings(None, None, mapping=mapping).data.map, as_json=as_json)
        return
    given = settings or []
    skipping = [one for one in given if way != "--from" and one.startswith("data.skip_bad=")]
    chosen_settings([one for one in given if one not in skipping], config, only=SECTIONS[way])
    resolved = chosen_settings(given, config, mapping=mapping)
    target = out or Path("pairs.json")
    from instil.recipes.prefer import prefer_between, prefer_rewrite, prefer_samples
    from instil.screen import Screen

    screen = Screen()
    if between is not None:
        who = _wanted(judge, way, "--judge ollama:llama3")
        a, b = between
        made = prefer_between(a, b, who, target, options=resolved.score, screen=screen, overwrite=overwrite)
    elif samples is not None:
        made = prefer_samples(
            _wanted(model, way, "--model RUN"),
            _wanted(data, way, "--data ROWS.json"),
            samples,
            judge or "offline",
            target,
            gap=10.0 if gap is None else gap,
            template=template,
            settings=resolved,
            screen=screen,
            overwrite=overwrite,
        )
    else:
        writer = _wanted(with_model, way, "--with ollama:llama3")
        rows = _wanted(data, way, "--data ROWS.json")
        made = prefer_rewrite(rows, writer, target, both=both, settings=resolved, screen=screen, overwrite=overwrite)
    if as_json:
        print_json(made.as_json())
    else:
        show_lines(made.lines())


def _wanted(value: str | None, way: str, example: str) -> str:
    if not value:
        raise UserError(f"{way} needs {example.split(maxsplit=1)[0]}, such as {example}")
    return value


def _check(pairs: str, mapping: Sequence[str], *, as_json: bool) -> None:
    from instil.recipes.prefer import check_pairs

    found = check_pairs(pairs, mapping)
    if as_json:
        print_json(found.as_json())
    else:
        show_lines(found.lines())
    if not found.usable:
        problems = "; ".join(finding.said.partition("\n")[0] for finding in found.of("error"))
        raise InstilError(f"{pairs} is not to be trained on: {problems}")
