"""Arguments that several verbs share, and what is done with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from instil.errors import UserError, did_you_mean
from instil.settings.losses import LOSSES, listed

if TYPE_CHECKING:
    from instil.settings.options import Settings

DataArg = Annotated[
    str,
    typer.Argument(
        help="Rows: a file (JSON, JSONL, CSV, TSV, Parquet, Arrow; packed or not), a 'PATTERN*', a folder, a URL, "
        "hf:owner/name (then @revision, :config, /split), a name (starter, book, alpaca), or several with commas "
        "between; docs/data.md."
    ),
]
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
MapOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        metavar="FOUND=WANTED,...",
        help="Keys of the rows under the names they are read by, such as question=instruction,reply=output.",
    ),
]
MethodOpt = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help=f"full, lora; on preference pairs {listed(LOSSES)} (which go with lora, too).",
    ),
]
JsonOpt = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
BookOpt = Annotated[bool, typer.Option("--as-in-book", help="The chapter's choices (docs/book.md).")]
Int8Opt = Annotated[bool, typer.Option("--int8", help="Weights in eight bits: faster, not exact.")]
Bf16Opt = Annotated[bool, typer.Option("--bf16", help="Weights in bfloat16: half the memory to read; not exact.")]
AdapterOpt = Annotated[
    Path | None, typer.Option("--adapter", help="A folder of LoRA adapters (PEFT's form) for this model, or their run.")
]
ResumeOpt = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in that folder, to the same end; begin it if it is none.")
]
ExtendOpt = Annotated[
    bool, typer.Option("--extend", help="With --resume: more train.epochs or train.max_steps than it was begun for.")
]
ProcessesOpt = Annotated[
    int,
    typer.Option(
        "--processes",
        min=1,
        help="Train in so many processes on this machine; on several, torchrun starts them (docs/scale.md).",
    ),
]
ForceOpt = Annotated[
    bool, typer.Option("--force", help="With --resume: go on even if the loss of the next step is not what it was.")
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace an earlier run in that folder.")]


WEIGHTS = {"full": ("train.method=full",), "lora": ("train.method=lora",)}  # methods that say which weights change


def _objectives() -> dict[str, tuple[str, ...]]:
    """Methods that say what is learnt."""
    losses = {loss: ("train.objective=dpo", f"dpo.loss={loss}") for loss in LOSSES}
    return {"sft": ("train.objective=sft",), **losses}


def chosen_settings(
    assignments: list[str] | None,
    config: Path | None,
    only: str | tuple[str, ...] = "",
    *,
    as_in_book: bool = False,
    methods: list[str] | None = None,
    mapping: list[str] | None = None,
) -> Settings:
    from instil.settings.resolve import resolve

    objectives = _objectives()
    known = WEIGHTS | objectives
    for method in methods or []:
        if method not in known:
            raise UserError(f"--method {method}: known: {', '.join(known)}{did_you_mean(method, known)}")
    for kind in (WEIGHTS, objectives):
        both = [method for method in dict.fromkeys(methods or []) if method in kind]
        if len(both) > 1:
            raise UserError(f"--method {both[0]} and --method {both[1]} contradict each other; leave one out")
    named = [key for method in methods or [] for key in known[method]]
    assignments = [*named, *(assignments or [])]
    sections = tuple(f"{one}." for one in ((only,) if isinstance(only, str) else only) if one)
    wrong = [given for given in assignments if sections and not given.startswith(sections)]
    if wrong:
        raise UserError(f"--set {wrong[0]}: only {' and '.join(f'{one}*' for one in sections)} settings matter here")
    mapped = [f"data.map={','.join(mapping)}"] if mapping else []
    return resolve(as_in_book=as_in_book, config=config, assignments=[*assignments, *mapped])


def print_json(value: Any) -> None:
    typer.echo(json.dumps(value, ensure_ascii=False, allow_nan=False))
