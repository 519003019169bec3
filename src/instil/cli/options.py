"""Arguments that several verbs share, and what is done with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from instil.settings.options import Settings

DataArg = Annotated[str, typer.Argument(help="Rows: a JSON or JSONL file, its URL, or a name (starter, book, alpaca).")]
ModelOpt = Annotated[
    str,
    typer.Option("--model", "-m", help="A name (smollm2-135m, gpt2-medium), a folder, a GGUF file, or owner/name."),
]
OutOpt = Annotated[Path | None, typer.Option("--out", "-o", help="The run folder.  [default: runs/DATA-MODEL]")]
SetOpt = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Override a setting; 'instil settings' lists all."),
]
ConfigOpt = Annotated[Path | None, typer.Option("--config", "-c", help="A TOML file of settings.")]
MethodOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="full, lora; on preference pairs dpo, ipo, simpo, orpo or kto (which go with lora, too).",
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
BookOpt = Annotated[bool, typer.Option("--as-in-book", help="The chapter's choices (docs/book.md).")]
AdapterOpt = Annotated[
    Path | None, typer.Option("--adapter", help="A folder of LoRA adapters (PEFT's form) for this model, or their run.")
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in that folder.")]


METHODS = {
    "full": ("train.method=full",),
    "lora": ("train.method=lora",),
    "sft": ("train.objective=sft",),
    **{loss: ("train.objective=dpo", f"dpo.loss={loss}") for loss in ("dpo", "ipo", "simpo", "orpo", "kto")},
}


def chosen_settings(
    assignments: list[str] | None,
    config: Path | None,
    only: str | tuple[str, ...] = "",
    *,
    as_in_book: bool = False,
    methods: list[str] | None = None,
) -> Settings:
    from instil.settings.resolve import resolve

    for method in methods or []:
        if method not in METHODS:
            raise UserError(f"--method {method}: known: {', '.join(METHODS)}{did_you_mean(method, METHODS)}")
    for kind in (("full", "lora"), tuple(METHODS)[2:]):  # which weights change; what is learnt
        both = [method for method in dict.fromkeys(methods or []) if method in kind]
        if len(both) > 1:
            raise UserError(f"--method {both[0]} and --method {both[1]} contradict each other; leave one out")
    named = [key for method in methods or [] for key in METHODS[method]]
    assignments = [*named, *(assignments or [])]
    sections = tuple(f"{one}." for one in ((only,) if isinstance(only, str) else only) if one)
    wrong = [given for given in assignments if sections and not given.startswith(sections)]
    if wrong:
        raise UserError(f"--set {wrong[0]}: only {' and '.join(f'{one}*' for one in sections)} settings matter here")
    return resolve(as_in_book=as_in_book, config=config, assignments=assignments)


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
