"""Settings of writing a run down elsewhere, too: for who has a dashboard."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

LoggerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]


def _names(value: Any) -> Any:
    """Names as a list, or in one text with commas, as the command line has them."""
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else value


class LogOptions(BaseModel):
    """Where losses and settings of a training go besides its folder."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    to: Annotated[tuple[LoggerName, ...], BeforeValidator(_names)] = Field(
        (), description="where metrics are written, too: tensorboard, wandb, trackio, mlflow (docs/runs.md)"
    )
    project: str = Field("instil", min_length=1, max_length=100, description="what they file the run under")
    online: bool = Field(False, description="let them use the network; without it they write to this machine alone")
