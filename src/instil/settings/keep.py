"""Settings of looking at what a model does besides what it is taught."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class KeepOptions(BaseModel):
    """What is measured of a run outside of its rows."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    measure: bool = Field(
        True,
        description="before training and after it, measure general texts, small skills, refusals and chats, and say "
        "what was lost (docs/keep.md)",
    )
