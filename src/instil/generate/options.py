"""Settings of generation, each with its one default and unit."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class GenerateOptions(BaseModel):
    """How answers are made."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_new_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, le=100, description="0: always the likeliest token (greedy)")
    top_k: int = Field(0, ge=0, description="sample among so many likeliest tokens; 0: all")
    header: bool = Field(True, description="end the prompt with the template's response header; the book does not")
    batch_size: int = Field(64, ge=1, description="answers made side by side")
    seed: int = Field(123, ge=0, description="seed of sampling; each row has its own stream")
