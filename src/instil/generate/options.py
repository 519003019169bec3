"""Settings of generation, each with its one default and unit."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from instil.errors import SettingsError, did_you_mean

MAX_SEED = 2**31 - 1


def _as_tuple(value: Any) -> Any:
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
    stop: Annotated[tuple[StopText, ...], BeforeValidator(_as_tuple)] = Field(
        (), description="texts that end an answer and are no part of it"
    )
    header: bool = Field(True, description="end the prompt with the template's response header; the book does not")
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
