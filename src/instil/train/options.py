"""Settings of training, each with its one default and unit."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MAX_SEED = 2**31 - 1


def _as_tuple(value: Any) -> Any:
    """Names as a list, or in one text with commas, as the command line has them."""
    if isinstance(value, str):
        return tuple(name.strip() for name in value.split(",") if name.strip())
    return tuple(value) if isinstance(value, list | tuple) else value


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
    base: Literal["fp32", "int8", "nf4"] = Field(
        "fp32", description="how frozen weights are held: fp32; int8 or nf4 (4 bits, QLoRA): less memory, not exact"
    )


class DpoOptions(BaseModel):
    """Preference tuning, with ``train.objective=dpo``."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    loss: Literal["dpo", "ipo", "simpo", "orpo", "kto"] = Field(
        "dpo", description="what is made smaller (docs/preference.md); simpo and orpo need no reference"
    )
    beta: float = Field(0.1, gt=0, le=1e6, description="how closely the model is held to the reference (orpo: lambda)")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="dpo: share of pairs taken to be the wrong way round")
    reduction: Literal["sum", "mean"] = Field(
        "sum",
        description="dpo, kto: an answer's log-probability is the sum over its tokens, or, as in the book, the mean",
    )
    scored: Literal["response", "book"] = Field(
        "response",
        description="response: the answer and its end; book: the header's words, too, and not the end",
    )
    nll: float = Field(
        0.0, ge=0, le=1e6, description="weight of the chosen answers' own loss, which keeps them likely (orpo has 1)"
    )
    gamma: float = Field(0.5, ge=0, le=1e6, description="simpo: the margin that is wanted")
    desirable: float = Field(1.0, ge=0, le=1e6, description="kto: weight of chosen answers")
    undesirable: float = Field(1.0, ge=0, le=1e6, description="kto: weight of rejected answers")
    reference: str = Field("", description="the reference model; empty: the model as it is before training")
    keep_equal: bool = Field(False, description="keep pairs with two equal answers, as the book does")


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
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: products in bfloat16, weights and updates in float32; faster, not exact"
    )
    gradient_checkpointing: bool = Field(
        False, description="keep only each block's input, and make the rest again in backward: less memory, slower"
    )
    epochs: int = Field(4, ge=1, le=100_000, description="passes over the training rows")
    batch_size: int = Field(8, ge=1, description="rows of one optimizer step")
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
    sample: Literal["evaluation", "epoch"] = Field("evaluation", description="when sample answers are written")
    order: Literal["seeded", "book"] = Field(
        "seeded", description="seeded: a function of seed and epoch; book: as torch's DataLoader draws it"
    )
    untie_head: bool = Field(False, description="give the head its own copy of the embedding, as the book does")
    drop_last: bool = Field(False, description="leave out an incomplete last batch of an epoch")
    seed: int = Field(123, ge=0, le=MAX_SEED, description="seed of the order of rows")
