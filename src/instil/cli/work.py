"""The verbs that make, look at and move models: run, train, plan, inspect, respond, fetch, export, settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from instil.cli.options import (
    AdapterOpt,
    BookOpt,
    ConfigOpt,
    DataArg,
    JsonOpt,
    MethodOpt,
    ModelOpt,
    OutOpt,
    OverwriteOpt,
    SetOpt,
    chosen_settings,
    print_json,
)
from instil.errors import UserError

if TYPE_CHECKING:
    from instil.recipes.inspect import Slide
    from instil.recipes.settings import Settings

commands = typer.Typer()


@commands.command("run")
def run_command(
    data: DataArg = "starter",
    model: ModelOpt = "smollm2-135m",
    out: OutOpt = None,
    method: MethodOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_in_book: BookOpt = False,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """The whole job: check the data, answer the held-out rows, train, answer again, score, report."""
    chosen = chosen_settings(
        settings, config, as_in_book=as_in_book, methods=method
    )  # refused before anything heavy loads
    _tune(data, model, out, chosen, overwrite=overwrite, as_json=as_json, answers=True)


@commands.command("train")
def train_command(
    data: DataArg = "starter",
    model: ModelOpt = "smollm2-135m",
    out: OutOpt = None,
    method: MethodOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_in_book: BookOpt = False,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Training alone: no answers before or after. With --method dpo the rows are preference pairs."""
    chosen = chosen_settings(
        settings, config, as_in_book=as_in_book, methods=method
    )  # refused before anything heavy loads
    _tune(data, model, out, chosen, overwrite=overwrite, as_json=as_json, answers=False)


@commands.command("plan")
def plan_command(
    data: Annotated[str | None, typer.Argument(help="The rows, as for run.  [default: starter]")] = None,
    model: ModelOpt = "smollm2-135m",
    data_option: Annotated[str | None, typer.Option("--data", help="The same, as an option.")] = None,
    method: MethodOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_in_book: BookOpt = False,
    as_json: JsonOpt = False,
) -> None:
    """Time and memory of a run on this machine, from a few timed steps; leaves nothing behind."""
    if data is not None and data_option is not None:
        raise UserError("the rows are given twice; leave out --data")
    chosen = chosen_settings(
        settings, config, as_in_book=as_in_book, methods=method
    )  # refused before anything heavy loads
    from instil.recipes.plan import plan, tables

    made = plan(data or data_option or "starter", model, chosen)
    if as_json:
        print_json(made.as_json())
        return
    from rich.console import Console

    console = Console(highlight=False)
    for shown in tables(made):
        console.print(shown)


@commands.command("inspect")
def inspect_command(
    data: DataArg = "starter",
    model: ModelOpt = "smollm2-135m",
    row: Annotated[list[int] | None, typer.Option("--row", "-r", help="Number of a row (from 0).")] = None,
    method: MethodOpt = None,
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Pre-flight, and the mask microscope: which tokens of a row are trained on."""
    from instil.recipes.inspect import slides
    from instil.recipes.sft import prepare

    prepared = prepare(data, model, chosen_settings(settings, config, methods=method))
    shown: list[Slide] = []
    for number in row or [prepared.split.train[0].row]:
        found = slides(prepared, number)
        if not found:
            raise UserError(f"no row {number}; {data} has {len(prepared.source)} usable rows, counted from 0")
        shown += found
    if as_json:
        tokens = [
            {
                "row": one.example.row,
                "part": one.part,
                "tokens": [{"id": token.id, "text": token.text, "fate": token.fate} for token in one.tokens],
            }
            for one in shown
        ]
        print_json({"preflight": prepared.preflight.as_json(), "rows": tokens})
        return
    for line in prepared.preflight.lines():
        typer.echo(line)
    for one in shown:
        _show_slide(one)


@commands.command("respond")
def respond_command(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or any model.")],
    instruction: Annotated[str | None, typer.Option("--instruction", "-i", help="Answer this one.")] = None,
    input_text: Annotated[str, typer.Option("--input", help="What the instruction is about.")] = "",
    data: Annotated[str | None, typer.Option("--data", help="Answer the rows of this file.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of the run's data: train, validation, test.")] = None,
    template: Annotated[str | None, typer.Option("--template", help="For a model that carries none.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the answered rows here.")] = None,
    adapter: AdapterOpt = None,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in eight bits: fast for one row, not exact.")] = False,
    settings: SetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Answers: to one instruction, to the rows of a file, or to a split of the run (test by default)."""
    from instil.recipes.progress import Screen
    from instil.recipes.respond import respond_one, respond_rows, stream_one

    chosen = chosen_settings(settings, None, only="generate")
    if instruction is None and input_text:
        raise UserError("--input goes with --instruction")
    if instruction is not None and out is not None:
        raise UserError("--out is for the rows of --data or --split; one answer goes to the screen")
    if int8:
        typer.echo("weights in eight bits: answers are not exactly the model's", err=True)
    if instruction is not None:
        if data or split:
            raise UserError("--instruction answers one row; leave out --data and --split")
        if as_json:
            said = respond_one(model, instruction, input_text, template, chosen, int8=int8, adapter=adapter)
            weights = {"weights": "int8"} if int8 else {}
            print_json({"instruction": instruction, "input": input_text, **said, **weights})
            return
        for piece in stream_one(model, instruction, input_text, template, chosen, int8=int8, adapter=adapter):
            typer.echo(piece, nl=False)  # which flushes
        typer.echo()
        return
    if out is not None:  # found out now rather than after the answers
        out.parent.mkdir(parents=True, exist_ok=True)
    rows = respond_rows(model, data, split, template, chosen, Screen(), int8=int8, adapter=adapter)
    if out is not None:
        out.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        typer.echo(f"{len(rows)} answered rows in {out}", err=True)
        if as_json:
            print_json({"rows": len(rows), "out": str(out)})
    elif as_json:
        print_json({"rows": rows})
    else:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))


@commands.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="A model (gpt2-small, owner/name) or a data set (book, alpaca, a URL).")],
    as_json: JsonOpt = False,
) -> None:
    """Download and verify a model or a data set, unless it is there already, and print where it is."""
    from instil.recipes.fetch import fetch

    found = fetch(name)
    if as_json:
        print_json(found.as_json())
    else:
        typer.echo(str(found.path))


@commands.command("export")
def export_command(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or any model.")],
    to: Annotated[str, typer.Option("--to", help="hf: a folder for transformers; pth: the book's state dictionary.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to.  [default: NAME-hf or NAME.pth, here]")
    ] = None,
    template: Annotated[str | None, typer.Option("--template", help="For a model that carries none.")] = None,
    adapter: AdapterOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Take a model elsewhere: a folder that transformers opens, or the .pth of chapter 7."""
    from instil.recipes.export import export

    written = export(model, to, out, template=template, adapter=adapter)
    if as_json:
        print_json(written.as_json())
    else:
        typer.echo(str(written.path))


@commands.command("settings")
def settings_command(as_json: JsonOpt = False) -> None:
    """Every setting with its default and its meaning."""
    from instil.recipes.settings import Settings, known_settings

    if as_json:
        print_json(Settings().model_dump())
        return
    for name, meaning in known_settings().items():
        typer.echo(f"{name:24} {meaning}")


def _tune(
    data: str,
    model: str,
    out: Path | None,
    settings: Settings,
    *,
    overwrite: bool,
    as_json: bool,
    answers: bool,
) -> None:
    from instil.recipes.run import run, summary

    folder = out or Path("runs") / f"{Path(data).stem}-{Path(model).stem}"
    finished = run(data, model, folder, settings, overwrite=overwrite, answers=answers)
    if as_json:
        print_json(finished.as_json())
        return
    typer.echo()
    for line in summary(finished):
        typer.echo(line)


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
