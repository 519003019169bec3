"""Every setting with its one default and unit, a class for each section."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticKnownError

from instil.errors import SettingsError, did_you_mean
from instil.settings.asking import MAX_SEED, MakeOptions, ScoreOptions
from instil.settings.keep import KeepOptions
from instil.settings.log import LogOptions
from instil.settings.losses import LOSSES, listed, read_by

Normalise = Literal["none", "nfc"]
TrainOn = Literal["all", "response", "response_with_header"]
Turns = Literal["all", "last"]
Scored = Literal["response", "book"]
AUTO = "auto"
TEMPLATE_NAMES = ("alpaca", "alpaca-stanford", "phi3", "chatml", "llama3", "gemma", "plain", "model")


class ModelOptions(BaseModel):
    """What is made of a model before it is tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    resize: bool = Field(
        False, description="give tokens that the model has no rows for rows of their own: the mean of the others"
    )


def map_parts(value: Any) -> Any:
    """``FOUND=WANTED`` pairs out of a text with commas, a list of such texts, or a table.

    >>> map_parts("question=instruction, reply=output"), map_parts({"Answer, final": "output"})
    (('question=instruction', 'reply=output'), ('Answer, final=output',))
    """
    if isinstance(value, dict):
        return tuple(f"{found}={wanted}" for found, wanted in value.items())
    if isinstance(value, list | tuple) and all(isinstance(one, str) for one in value):
        return tuple(part for one in value for part in map_parts(one))
    if not isinstance(value, str):
        return value
    parts, begun = [], ""
    for piece in value.split(","):
        begun = f"{begun},{piece}" if begun else piece
        if "=" in piece:  # else the comma belongs to the key
            parts.append(begun.strip())
            begun = ""
    return (*parts, begun.strip()) if begun.strip() else tuple(parts)


def _known_template(value: Any) -> Any:
    """A template's name, or what can be a file."""
    if isinstance(value, Path):
        value = str(value)
    known = (AUTO, *TEMPLATE_NAMES)
    if isinstance(value, str) and (value in known or value.endswith((".jinja", ".jinja2", ".j2", ".json"))):
        return value
    names = " or ".join([", ".join(map(repr, known[:-1])), repr(known[-1])])
    raise PydanticKnownError("literal_error", {"expected": f"{names}, or a file (.jinja, .json)"})


class DataOptions(BaseModel):
    """How rows become batches."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    template: Annotated[str, BeforeValidator(_known_template)] = Field(
        AUTO,
        description="the form in which rows are put to the model: "
        f"{', '.join(TEMPLATE_NAMES)} (the model's own chat template), or a file (.jinja, .json); "
        "auto: the model's own where it carries one, else alpaca",
    )
    turns: Turns = Field(
        "all", description="which answers of a conversation are trained on: all, or the last; see docs/templates.md"
    )
    train_on: TrainOn = Field(
        "response",
        description="which tokens are targets: all; response: the response and its end; response_with_header: "
        "the template's response header too, as in the book's exercise 7.2",
    )
    max_length: int = Field(1024, ge=2, description="tokens kept of a row; what is cut is reported")
    split: Literal["book", "grouped"] = Field(
        "book",
        description="book: 85/10/5 % in file order; grouped: shuffled by split_seed, nearly equal prompts together",
    )
    split_seed: int = Field(123, ge=0, le=MAX_SEED, description="seed of the grouped split")
    max_train_samples: int = Field(
        0,
        ge=0,
        description="training rows that are trained on, at most, drawn by sample_seed; 0: all",
    )
    sample_seed: int = Field(123, ge=0, le=MAX_SEED, description="seed by which max_train_samples rows are drawn")
    leaks: Literal["report", "drop", "refuse"] = Field(
        "report",
        description="training rows that are nearly held-out rows: report; drop: train without them; refuse the data",
    )
    leak_threshold: float = Field(
        0.9, ge=0.7, le=1, description="likeness (cosine of characters) from which on two prompts are nearly the same"
    )
    normalise: Normalise = Field(
        "none", description="none: rows as they are; nfc: letters and their accents in one piece (Unicode's NFC)"
    )
    map: Annotated[tuple[str, ...], BeforeValidator(map_parts)] = Field(
        (), description="keys of rows under the names they are read by: question=instruction,reply=output"
    )
    licence: str = Field("", description="what the rows' licence is, for the data card of the run")
    skip_bad: bool = Field(False, description="leave unusable rows out (counted and listed) instead of refusing")


def _as_tuple(value: Any) -> Any:
    """Names as a list, or in one text with commas, as the command line has them."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list | tuple) else value


def _as_ids(value: Any) -> Any:
    """Whole numbers as a list, as one, or in one text with commas, as the command line has them."""
    if isinstance(value, str):
        given = [part.strip() for part in value.split(",") if part.strip()]
        return tuple(int(part) if part.isascii() and part.isdecimal() else part for part in given)
    return (value,) if isinstance(value, int) else _as_tuple(value)


TokenId = Annotated[int, Field(ge=0)]


class LoraOptions(BaseModel):
    """Adapters, with ``train.method=lora``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    rank: int = Field(16, ge=1, description="width of each adapter")
    alpha: float = Field(32.0, gt=0, le=1e6, description="how much adapters count: they are multiplied by alpha / rank")
    targets: Annotated[tuple[str, ...], BeforeValidator(_as_tuple)] = Field(
        ("all",), description="all (but the head), or names: q, k, v, out, gate, up, down, head, q_proj, c_attn, ..."
    )
    scaling: Literal["alpha/rank", "alpha/sqrt(rank)", "alpha"] = Field(
        "alpha/rank", description="alpha/sqrt(rank): rsLoRA; alpha: as in the book"
    )
    dora: bool = Field(False, description="learn the lengths of the weights' rows, too (DoRA)")
    trainable_token_indices: Annotated[tuple[TokenId, ...], BeforeValidator(_as_ids)] = Field(
        (), description="ids of tokens whose rows of the embedding (and of a head that is the embedding) are trained"
    )
    base: Literal["fp32", "int8", "nf4"] = Field(
        "fp32", description="how frozen weights are held: fp32; int8 or nf4 (4 bits, QLoRA): less memory, not exact"
    )


def _known_loss(value: Any) -> Any:
    """The name of a loss that the table has now."""
    if not isinstance(value, str) or value not in LOSSES:
        raise PydanticKnownError("literal_error", {"expected": listed(map(repr, LOSSES))})
    return value


def _for(setting: str) -> str:
    return ", ".join(read_by(setting))


class DpoOptions(BaseModel):
    """Preference tuning, with ``train.objective=dpo``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    loss: Annotated[str, BeforeValidator(_known_loss)] = Field(
        "dpo",
        description="what is made smaller (docs/preference.md); "
        f"{listed((name for name, loss in LOSSES.items() if not loss.reference), 'and')} need no reference",
    )
    beta: float = Field(0.1, gt=0, le=1e6, description="how closely the model is held to the reference (orpo: lambda)")
    label_smoothing: float = Field(
        0.0, ge=0, lt=0.5, description=f"{_for('label_smoothing')}: share of pairs taken to be the wrong way round"
    )
    reduction: Literal["sum", "mean"] = Field(
        "sum",
        description=f"{_for('reduction')}: an answer's log-probability is the sum over its tokens, or, as in the book, "
        "the mean",
    )
    scored: Scored = Field(
        "response",
        description="response: the answer and its end; book: the header's words, too, and not the end",
    )
    nll: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="weight of the chosen answers' own loss, which keeps them likely "
        f"({', '.join(f'{name} has {loss.likelihood:g}' for name, loss in LOSSES.items() if loss.likelihood)})",
    )
    gamma: float = Field(0.5, ge=0, le=1e6, description=f"{_for('gamma')}: the margin that is wanted")
    desirable: float = Field(1.0, ge=0, le=1e6, description=f"{_for('desirable')}: weight of chosen answers")
    undesirable: float = Field(1.0, ge=0, le=1e6, description=f"{_for('undesirable')}: weight of rejected answers")
    reference: str = Field("", description="the reference model; empty: the model as it is before training")
    keep_equal: bool = Field(False, description="keep pairs with two equal answers, as the book does")


UNITS = {"s": 1, "m": 60, "h": 3600}


def steps_and_seconds(every: str) -> tuple[int, int]:
    """How often checkpoints are written: every so many steps, or seconds; both are 0 for never.

    >>> steps_and_seconds("100"), steps_and_seconds("10m"), steps_and_seconds("0")
    ((100, 0), (0, 600), (0, 0))
    """
    unit = UNITS.get(every[-1])
    return (0, int(every[:-1]) * unit) if unit else (int(every), 0)


def _rhythm(value: Any) -> Any:
    """So many steps, as a number or a text, or a time."""
    text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
    if isinstance(text, str) and re.fullmatch(r"[0-9]{1,9}[smh]?", text):
        return text
    raise PydanticKnownError("literal_error", {"expected": "so many steps (100), a time (90s, 10m, 2h), or 0 (never)"})


class TrainOptions(BaseModel):
    """How the model is tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    objective: Literal["sft", "dpo"] = Field(
        "sft", description="sft: rows with an answer each; dpo: preference pairs (see dpo.*)"
    )

    method: Literal["full", "lora"] = Field(
        "full", description="which weights change: all of them, or thin adapters beside them"
    )
    layout: Literal["shared", "padded"] = Field(
        "shared", description="shared: no padding, and what all rows begin with computed once; padded: as the book"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto: a GPU if there is one")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        "fp32",
        description="bf16: products in bfloat16, weights and updates in float32; faster, not exact; auto: bf16 where "
        "the machine has units for it",
    )
    gradient_checkpointing: bool = Field(
        False, description="keep only each block's input, and make the rest again in backward: less memory, slower"
    )
    shard: Literal["no", "full"] = Field(
        "no",
        description="of several processes (torchrun, --processes): no: each holds the whole model (DDP); full: each "
        "holds a part of every weight, gradient and moment (FSDP2), for what does not fit otherwise",
    )
    epochs: int = Field(4, ge=1, le=100_000, description="passes over the training rows")
    batch_size: int = Field(8, ge=1, description="rows of one optimizer step")
    batch_tokens: int = Field(
        0,
        ge=0,
        description="tokens of one optimizer step, in place of batch_size: rows of like length stand together, and a "
        "row that is longer is a step of its own; 0: batch_size rows",
    )
    micro_batch: int = Field(0, ge=0, description="rows computed at once; 0: the whole step")
    learning_rate: float = Field(
        1e-4,
        gt=0,
        description="peak, after warmup; by default ten times that with adapters, 5e-6 or 5e-5 for preferences",
    )
    weight_decay: float = Field(0.1, ge=0, description="AdamW's decoupled decay, on every parameter")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of all steps in which the rate rises from zero")
    schedule: Literal["constant", "cosine", "linear"] = Field("cosine", description="the rate after warmup")
    clip: float = Field(0.0, ge=0, description="largest norm of the gradient; 0: no clipping")
    max_steps: int = Field(0, ge=0, description="stop after so many optimizer steps; 0: after the epochs")
    patience: int = Field(
        0, ge=0, description="stop after so many validations without a better loss, and keep the best model; 0: never"
    )
    eval_every: int = Field(25, ge=0, description="steps between validations; 0: only at the end of an epoch")
    eval_batches: int = Field(0, ge=0, description="validation batches each time; 0: all")
    evaluation: Literal["held_out", "book"] = Field(
        "held_out", description="held_out: all validation tokens count alike; book: means of batch means, of both parts"
    )
    rehearse: float = Field(
        0.0,
        ge=0,
        le=1,
        description="texts mixed in for each training row, which the model writes before the first step, so that it "
        "forgets less of what the rows are not about (docs/keep.md)",
    )
    save_every: Annotated[str, BeforeValidator(_rhythm)] = Field(
        "10m", description="when a checkpoint is written: after so many steps (100), or a time (10m); 0: never"
    )
    keep_checkpoint: bool = Field(
        False, description="keep the last checkpoint when the run is finished, so that --resume --extend can go on"
    )
    on_divergence: Literal["stop", "rewind"] = Field(
        "stop",
        description="when the loss is no longer a number: stop; rewind: go back to the last good checkpoint and go on "
        "without the rows of that step, which are named; at most three times",
    )
    sample: Literal["evaluation", "epoch"] = Field("evaluation", description="when sample answers are written")
    order: Literal["seeded", "book"] = Field(
        "seeded", description="seeded: a function of seed and epoch; book: as torch's DataLoader draws it"
    )
    untie_head: bool = Field(False, description="give the head its own copy of the embedding, as the book does")
    drop_last: bool = Field(False, description="leave out an incomplete last batch of an epoch")
    seed: int = Field(123, ge=0, le=MAX_SEED, description="seed of the order of rows")


def _as_texts(value: Any) -> Any:
    """One text, or several as TOML and JSON have them."""
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple):
        raise ValueError('wanted a text, or a list of texts such as \'["###", "User:"]\'')
    return tuple(value)


StopText = Annotated[str, Field(min_length=1)]


class GenerateOptions(BaseModel):
    """How answers are made."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    max_new_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, le=100, description="0: always the likeliest token (greedy)")
    top_k: int = Field(0, ge=0, description="sample among so many likeliest tokens; 0: all")
    top_p: float = Field(1.0, gt=0, le=1, description="sample among the fewest tokens with this probability together")
    min_p: float = Field(0.0, ge=0, le=1, description="sample among tokens this share as likely as the likeliest")
    repetition_penalty: float = Field(
        1.0, ge=0.01, le=100, description="tokens said already score so much less; 1: off"
    )
    stop: Annotated[tuple[StopText, ...], BeforeValidator(_as_texts)] = Field(
        (), description="texts that end an answer and are no part of it"
    )
    header: bool = Field(True, description="end the prompt with the template's response header; the book does not")
    max_rows: int = Field(
        1000, ge=0, description="held-out rows answered before and after, at most, evenly spaced among them; 0: all"
    )
    before: Literal["better", "same"] = Field(
        "better",
        description="the form in which the model is asked before training: same: as after it; better: in its own chat "
        "template as well, where it carries one, and what scores better counts as before",
    )
    batch_size: int = Field(128, ge=1, description="answers made side by side, at most")
    seed: int = Field(123, ge=0, le=MAX_SEED, description="seed of sampling; each row has its own stream")

    def changed(self, **values: Any) -> GenerateOptions:
        """These options with some changed, checked as if they were given anew.

        Raises:
            SettingsError: a name is unknown or a value cannot be used.
        """
        unknown = [name for name in values if name not in type(self).model_fields]
        if unknown:
            raise SettingsError(f"unknown setting {unknown[0]!r}{did_you_mean(unknown[0], type(self).model_fields)}")
        try:
            return type(self).model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            first = error.errors()[0]
            raise SettingsError(f"generate.{first['loc'][0]}={first['input']!r}: {first['msg']}") from error


class Settings(BaseModel):
    """Every setting, in sections named after the rooms."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: ModelOptions = Field(default_factory=ModelOptions)
    data: DataOptions = Field(default_factory=DataOptions)
    train: TrainOptions = Field(default_factory=TrainOptions)
    lora: LoraOptions = Field(default_factory=LoraOptions)
    dpo: DpoOptions = Field(default_factory=DpoOptions)
    generate: GenerateOptions = Field(default_factory=GenerateOptions)
    score: ScoreOptions = Field(default_factory=ScoreOptions)
    keep: KeepOptions = Field(default_factory=KeepOptions)
    make: MakeOptions = Field(default_factory=MakeOptions)
    log: LogOptions = Field(default_factory=LogOptions)


SECTIONS: dict[str, type[BaseModel]] = {name: type(options) for name, options in Settings()}
