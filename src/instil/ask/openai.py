"""A model behind OpenAI's interface, ``/chat/completions``: OpenAI, vLLM, llama-server, LM Studio, Ollama's ``/v1``.

``/completions``, which goes on with a text as it stands, is there in most of them, but not for OpenAI's newer models.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from instil.ask.attention import Attention
from instil.ask.client import (
    ALTERNATIVES,
    ModelRequest,
    Reply,
    alternatives,
    cached_of,
    listed,
    when_ready,
    whole_text,
    with_notes,
)
from instil.ask.endings import ending, endings_of, instead_of_text, refusal_of, text_of
from instil.ask.forms import JSON, SCHEMA, Forms
from instil.ask.http import Http, Passing, Refused, Rejected, Unreachable, checked_url
from instil.ask.waits import asked_wait
from instil.errors import JudgeError, did_you_mean
from instil.settings.asking import ScoreOptions

OPENAI = "https://api.openai.com/v1"


class OpenAI:
    """A model behind ``/chat/completions``: OpenAI's own servers, vLLM, llama-server, LM Studio, Ollama's ``/v1``.

    Not every server knows every parameter; one that it refuses by name is left out from then on. A schema that it
    refuses gives way to any JSON object, and that to plain text.
    """

    workers = 4

    def __init__(
        self,
        base: str,
        model: str,
        options: ScoreOptions,
        key: str = "",
        name: str = "",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        base = checked_url(base).removesuffix("/chat/completions")
        self._http = Http(f"{base}/v1" if urlsplit(base).path in ("", "/") else base, key, options.timeout)
        self._model, self._options = model, options
        self._is_openai = urlsplit(base).hostname == urlsplit(OPENAI).hostname
        self._extra = dict(extra or {})
        self._left_out: frozenset[str] = frozenset()
        self._forms = Forms()
        self._lock = threading.Lock()
        self.name = name or self._http.base + (f"#{model}" if model else "")
        self.identity = self.name
        self.notes: tuple[str, ...] = ()
        self.attention = Attention()

    @property
    def left_out(self) -> frozenset[str]:
        """Parameters that the server refused by name."""
        return self._left_out

    def open(self) -> None:
        base = self._http.base
        try:
            found, why = when_ready(lambda: self._http.look("/models"))
        except Unreachable as error:
            raise JudgeError(f"{error}; {_mend(base)}") from error
        except Passing as error:
            raise JudgeError(f"{base} cannot be used: {error}") from error
        data = found.get("data") if isinstance(found, dict) else found
        models = [str(one.get("id")) for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        if why:
            self.notes = (f"{base} does not list its models: {why}",)
        elif found is not None and not models:
            self.notes = (f"{base} lists no model",)
        if not self._model:
            if len(models) > 1:
                raise JudgeError(f"{base} has {len(models)} models ({', '.join(models[:10])}); name one: {base}#MODEL")
            self._model = models[0] if models else "default"  # a server with a single model does not mind its name
        elif models and not listed(self._model, models) and not self._is_openai:
            near = did_you_mean(self._model, models)
            self.notes = (f"{base} lists no model {self._model!r}; there: {', '.join(models[:10])}{near}",)
        self.identity = f"{base}#{self._model}"

    def chat(self, request: ModelRequest) -> Reply:
        return self._post("/chat/completions", request)

    def complete(self, request: ModelRequest) -> Reply:
        try:
            return self._post("/completions", request)
        except Unreachable:
            raise
        except JudgeError as error:
            raise JudgeError(
                f"{error}; going on with a raw text needs {self._http.base}/completions, which not every server has"
            ) from error

    def _post(self, path: str, request: ModelRequest) -> Reply:
        form = self._forms.first(wanted=request.schema is not None)
        while True:
            left_out = self._left_out
            try:
                found = self._http.post(path, self._asked(request, left_out, form, raw=path == "/completions"))
                reply = self._read(found)
            except (Passing, Refused, Rejected) as error:
                following = self._forms.after(form, error)
                if following is not None:
                    form = following
                elif isinstance(error, Refused) and error.parameter and error.parameter not in left_out:
                    with self._lock:
                        self._left_out |= {error.parameter}
                else:
                    self._forms.gave_up(form)
                    raise with_notes(error, self.notes) from error
                continue
            if request.schema is not None:
                self._forms.worked(form)
            return reply

    def _asked(self, request: ModelRequest, left_out: frozenset[str], form: int, *, raw: bool) -> dict[str, Any]:
        options = self._options
        limit = "max_completion_tokens" if self._is_openai or "max_tokens" in left_out else "max_tokens"
        asked: dict[str, Any] = {
            "model": self._model,
            **({"prompt": request.text} if raw else {"messages": [{"role": "user", "content": request.text}]}),
            "temperature": options.temperature,
            "seed": request.seed,
            limit: options.max_tokens,
            **self._extra,
        }
        if form == SCHEMA:
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        elif form == JSON:
            asked["response_format"] = {"type": "json_object"}
        if request.stop:
            asked["stop"] = list(request.stop)
        if options.weighted:
            asked |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        return {key: value for key, value in asked.items() if key not in left_out}

    def _read(self, found: Any) -> Reply:
        if isinstance(found, dict) and found.get("error"):
            raise self._said(found["error"])
        try:
            choice = found["choices"][0]
            message = choice["message"] if "message" in choice else {"content": choice["text"]}
            content = message.get("content")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            said = self._http.words(found)
            raise Passing(f"the reply is JSON, but no chat completion{': ' + said if said else ''}") from error
        if choice.get("error"):
            raise self._said(choice["error"])
        ends = endings_of(choice)
        how = ending(*ends)
        if how == "failed":
            raise Passing(f"the reply ended by {self._http.shown(', '.join(map(str, ends)))!r}")
        text = whole_text(text_of(content))
        problem = "the reply was stopped by a filter of its content" if how == "filtered" else refusal_of(message)
        usage = found.get("usage")
        read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        inner = choice.get("logprobs")
        return Reply(
            text=text,
            cut=how == "cut",
            prompt_tokens=read if type(read) is int else None,
            tokens=tuple(alternatives(inner.get("content") if isinstance(inner, dict) else None)),
            cached_tokens=cached_of(usage, found.get("timings"), found),
            problem=problem or ("" if text.strip() else instead_of_text(message)),
        )

    def _said(self, error: Any) -> Passing:
        """An error that came with the status of a success."""
        said = str(error)
        return Passing(
            f"the server said: {self._http.words({'error': error})}",
            asked_wait({}, said),
            status=200,
            said=said.lower(),
        )

    def close(self) -> None:
        self._http.close()


def _mend(base: str) -> str:
    port = urlsplit(base).port or 8080
    return (
        f"start a server there, such as: llama-server -m FILE.gguf --port {port}, or: vllm serve MODEL --port {port}; "
        "or take llama.cpp in this process: llamacpp:FILE.gguf"
    )
