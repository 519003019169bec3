"""The verbs that use and move models: respond, fetch, export."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from instil.cli.options import AdapterOpt, Bf16Opt, Int8Opt, JsonOpt, MapOpt, SetOpt, chosen_settings, print_json
from instil.cli.show import show_note, show_path, show_rows, show_stream
from instil.errors import UserError, counted
from instil.files import check_file, json_text, make_folder

commands = typer.Typer()


@commands.command("respond")
def respond_command(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or any model.")],
    instruction: Annotated[str | None, typer.Option("--instruction", "-i", help="Answer this one.")] = None,
    input_text: Annotated[str, typer.Option("--input", help="What the instruction is about.")] = "",
    data: Annotated[str | None, typer.Option("--data", help="Answer the rows of this file.")] = None,
    split: Annotated[str | None, typer.Option("--split", help="Of the run's data: train, validation, test.")] = None,
    template: Annotated[str | None, typer.Option("--template", help="For a model that carries none.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the answered rows here.")] = None,
    mapping: MapOpt = None,
    adapter: AdapterOpt = None,
    int8: Int8Opt = False,
    bf16: Bf16Opt = False,
    settings: SetOpt = None,
    as_json: JsonOpt = False,
) -> None:
    """Answers: to one instruction, to the rows of a file, or to a split of the run (test by default)."""
    from instil.recipes.respond import respond_one, respond_rows, stream_one
    from instil.screen import Screen

    chosen = chosen_settings(settings, None, only="generate", mapping=mapping)
    if mapping and data is None:
        raise UserError("--map names keys of the rows of --data; leave it out")
    if instruction is None and input_text:
        raise UserError("--input goes with --instruction")
    if instruction is not None and out is not None:
        raise UserError("--out is for the rows of --data or --split; one answer goes to the screen")
    if int8 != bf16:
        show_note(f"weights in {'eight bits' if int8 else 'bfloat16'}: answers are not exactly the model's")
    if instruction is not None:
        if data or split:
            raise UserError("--instruction answers one row; leave out --data and --split")
        if as_json:
            said = respond_one(model, instruction, input_text, template, chosen, int8=int8, bf16=bf16, adapter=adapter)
            weights = {"weights": "int8" if int8 else "bf16"} if int8 or bf16 else {}
            print_json({"instruction": instruction, "input": input_text, **said, **weights})
            return
        show_stream(stream_one(model, instruction, input_text, template, chosen, int8=int8, bf16=bf16, adapter=adapter))
        return
    if out is not None:  # found out now rather than after the answers
        check_file(out)
    rows = respond_rows(model, data, split, template, chosen, Screen(), int8=int8, bf16=bf16, adapter=adapter)
    if out is not None:
        make_folder(out.parent)
        out.write_text(json_text(rows), encoding="utf-8")  # not by renaming: it may be /dev/stdout
        show_note(f"{counted(len(rows), 'answered row')} in {out}")
        if as_json:
            print_json({"rows": len(rows), "out": str(out)})
    elif as_json:
        print_json({"rows": rows})
    else:
        show_rows(rows)


@commands.command("fetch")
def fetch_command(
    name: Annotated[
        str, typer.Argument(help="A model (gpt2-small, owner/name) or data (book, alpaca, a URL, hf:owner/name).")
    ],
    as_json: JsonOpt = False,
) -> None:
    """Download and verify a model or a data set, unless it is there already, and print where it is."""
    from instil.recipes.fetch import fetch

    found = fetch(name)
    if as_json:
        print_json(found.as_json())
    else:
        show_path(found.path)


@commands.command("export")
def export_command(
    model: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or any model.")],
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="hf: a folder for transformers; gguf: a file for llama.cpp; pth: the book's state dictionary; "
            "gguf-lora, mlx-lora: a run's adapters alone, for llama.cpp and mlx-lm.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Where to.  [default: NAME-hf, NAME.gguf, ..., here]")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            "--dtype",
            help="f32, bf16, f16; --to gguf also q8_0, q5_1, q4_1.  [default: f32; of hf that of the base's files]",
        ),
    ] = None,
    template: Annotated[str | None, typer.Option("--template", help="For a model that carries none.")] = None,
    adapter: AdapterOpt = None,
    push: Annotated[
        str | None, typer.Option("--push", metavar="OWNER/NAME", help="--to hf: send the folder to the hub, too.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="--push: for everybody, not for its owner alone.")] = False,
    as_json: JsonOpt = False,
) -> None:
    """Take a model elsewhere: a folder for transformers, a GGUF for llama.cpp, the .pth of chapter 7, or adapters."""
    from instil.recipes.export.export import export
    from instil.screen import Screen

    written = export(
        model, to, out, dtype=dtype, template=template, adapter=adapter, push_to=push, public=public, screen=Screen()
    )
    if as_json:
        print_json(written.as_json())
    else:
        show_path(written.path)
        if written.pushed:
            show_note(written.pushed)
