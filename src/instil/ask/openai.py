"""A model behind OpenAI's interface, ``/chat/completions``: OpenAI, vLLM, llama-server, LM Studio, Ollama's ``/v1``.

``/completions``, which goes on with a text as it stands, is there in most of them, but not for OpenAI's newer models.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from instil.ask.client import ALTERNATIVES, ModelRequest, Reply, alternatives, when_ready, whole_text
from instil.ask.http import Http, Passing, Refused, Unreachable, checked_url
from instil.errors import JudgeError, did_you_mean
from instil.settings.options import ScoreOptions

OPENAI = "https://api.openai.com/v1"


class OpenAI:
    """A model behind ``/chat/completions``: OpenAI's own servers, vLLM, llama-server, LM Studio, Ollama's ``/v1``.

    Not every server knows every parameter; one that it refuses by name is left out from then on.
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
        self._lock = threading.Lock()
        self.name = name or self._http.base + (f"#{model}" if model else "")
        self.identity = self.name

    @property
    def left_out(self) -> frozenset[str]:
        """Parameters that the server refused by name."""
        return self._left_out

    def open(self) -> None:
        base = self._http.base
        try:
            found = when_ready(lambda: self._http.get("/models"))
        except Unreachable as error:
            raise JudgeError(f"{error}; {_mend(base)}") from error
        except (Passing, Refused) as error:
            raise JudgeError(f"{base} cannot be used: {error}") from error
        if found is None:  # some servers have no list; one with a single model does not mind its name
            self._model = self._model or "default"
            self.identity = f"{base}#{self._model}"
            return
        data = found.get("data") if isinstance(found, dict) else None
        models = [str(one.get("id")) for one in data if isinstance(one, dict)] if isinstance(data, list) else []
        if not self._model:
            if len(models) != 1:
                there = ", ".join(models[:10]) or "none named"
                raise JudgeError(f"{base} has {len(models)} models ({there}); name one: {base}#MODEL")
            self._model = models[0]
        elif models and self._model not in models and not self._is_openai:
            near = did_you_mean(self._model, models)
            raise JudgeError(f"{base} has no model {self._model!r}; there: {', '.join(models[:10])}{near}")
        self.identity = f"{base}#{self._model}"

    def chat(self, request: ModelRequest) -> Reply:
        return self._read(self._post("/chat/completions", request))

    def complete(self, request: ModelRequest) -> Reply:
        try:
            return self._read(self._post("/completions", request))
        except Unreachable:
            raise
        except JudgeError as error:
            raise JudgeError(
                f"{error}; going on with a raw text needs {self._http.base}/completions, which not every server has"
            ) from error

    def _post(self, path: str, request: ModelRequest) -> Any:
        while True:
            left_out = self._left_out
            try:
                return self._http.post(path, self._asked(request, left_out, raw=path == "/completions"))
            except Refused as refused:
                if not refused.parameter or refused.parameter in left_out:
                    raise
                with self._lock:
                    self._left_out |= {refused.parameter}

    def _asked(self, request: ModelRequest, left_out: frozenset[str], *, raw: bool) -> dict[str, Any]:
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
        if request.schema is not None:
            schema = {"name": "reply", "strict": True, "schema": request.schema}
            asked["response_format"] = {"type": "json_schema", "json_schema": schema}
        if request.stop:
            asked["stop"] = list(request.stop)
        if options.weighted:
            asked |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        return {key: value for key, value in asked.items() if key not in left_out}

    def _read(self, found: Any) -> Reply:
        if isinstance(found, dict) and found.get("error"):
            raise Passing(f"the server said: {self._http.shown(found['error'])}")
        try:
            choice = found["choices"][0]
            content = choice["message"].get("content") if "message" in choice else choice["text"]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise Passing("the reply is JSON, but no chat completion") from error
        if isinstance(content, list):  # some servers send the text in parts
            content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
        usage = found.get("usage")
        read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        inner = choice.get("logprobs")
        return Reply(
            text=whole_text(content),
            cut=choice.get("finish_reason") == "length",
            prompt_tokens=read if type(read) is int else None,
            tokens=tuple(alternatives(inner.get("content") if isinstance(inner, dict) else None)),
        )

    def close(self) -> None:
        self._http.close()


def _mend(base: str) -> str:
    port = urlsplit(base).port or 8080
    return (
        f"start a server there, such as: llama-server -m FILE.gguf --port {port}, or: vllm serve MODEL --port {port}; "
        "or take llama.cpp in this process: llamacpp:FILE.gguf"
    )
