"""Settings of training, each with its one default and unit."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**31 - 1


class TrainOptions(BaseModel):
    """How the model is tuned."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    method: Literal["full"] = Field("full", description="which weights change: all of them")
    layout: Literal["shared", "padded"] = Field(
        "shared", description="shared: no padding, and what all rows begin with computed once; padded: as the book"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to compute; auto: a GPU if there is one")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32", description="bf16: products in bfloat16, weights and updates in float32; faster, not exact"
    )
    epochs: int = Field(4, ge=1, le=100_000, description="passes over the training rows")
    batch_size: int = Field(8, ge=1, description="rows of one optimizer step")
    micro_batch: int = Field(0, ge=0, description="rows computed at once; 0: the whole step")
    learning_rate: float = Field(1e-4, gt=0, description="peak, after warmup")
    weight_decay: float = Field(0.1, ge=0, description="AdamW's decoupled decay, on every parameter")
    warmup: float = Field(0.0, ge=0, lt=1, description="share of all steps in which the rate rises from zero")
    schedule: Literal["constant", "cosine", "linear"] = Field("cosine", description="the rate after warmup")
    clip: float = Field(0.0, ge=0, description="largest norm of the gradient; 0: no clipping")
    max_steps: int = Field(0, ge=0, description="stop after so many optimizer steps; 0: after the epochs")
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
