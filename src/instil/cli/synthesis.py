"""The verb that makes data: generate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import ConfigOpt, JsonOpt, SetOpt, chosen_settings, print_json

commands = typer.Typer()

WORST = 5  # reasons shown


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
    settings: SetOpt = None,
    config: ConfigOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Instruction data out of another language model. Goes on where it was stopped; every row says where it is from."""
    given = settings or []
    chosen_settings([one for one in given if not one.startswith("data.skip_bad=")], config, only="make")
    chosen = chosen_settings(given, config)
    from instil.recipes.generate import check_outcome, generate_rows, report_file
    from instil.recipes.progress import Screen

    made = generate_rows(
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
        screen=Screen(),
    )
    if as_json:
        print_json(made.as_json())
    else:
        kept = len(made.rows) - made.made
        beside = f" beside {kept} that stayed as they were" if kept else ""
        typer.echo(f"{made.out}: {made.made} rows by {made.made_by}{beside}")
        typer.echo(f"  {made.asked} requests now, {made.found} answered before")
        for reason, times in list(made.reasons.items())[:WORST]:
            typer.echo(f"  left out: {times} times: {reason}")
        if made.left:
            typer.echo(f"  all of them: {report_file(made.out)}")
    check_outcome(made, count)
