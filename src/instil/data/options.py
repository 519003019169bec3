"""Settings of the data room, each with its one default and unit."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_SEED = 2**31 - 1
TrainOn = Literal["all", "response", "response_with_header"]


class DataOptions(BaseModel):
    """How rows become batches."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    template: Literal["alpaca", "phi3", "chatml", "plain"] = Field(
        "alpaca", description="the form in which instruction and input are put to the model"
    )
    train_on: TrainOn = Field(
        "response",
        description="which tokens are targets: all; response: the response and its end; response_with_header: "
        "the template's response header too, as in the book's exercise 7.2",
    )
    max_length: int = Field(1024, ge=2, description="tokens kept of a row; what is cut is reported")
    split: Literal["book", "grouped"] = Field(
        "book",
        description="book: 85/10/5 % in file order; grouped: shuffled by split_seed, equal prompts together",
    )
    split_seed: int = Field(123, ge=0, le=MAX_SEED, description="seed of the grouped split")
    skip_bad: bool = Field(False, description="leave unusable rows out (counted and listed) instead of refusing")
