"""A model behind Ollama's own interface, ``/api/chat``, and ``/api/generate`` for raw texts.

Facts: ``api/types.go`` and ``server/routes.go`` of Ollama. Seed, temperature and context count only inside
``options``; an error in the middle comes as a line under status 200; the last line says ``done``.
"""

from __future__ import annotations

import os
import shutil
from typing import Any
from urllib.parse import urlsplit

from instil.ask.client import ALTERNATIVES, ModelRequest, Reply, alternatives, when_ready, whole_text
from instil.ask.http import Http, Passing, Refused, Unreachable, is_loopback
from instil.errors import JudgeError, did_you_mean
from instil.settings.options import ScoreOptions

OLLAMA = "http://127.0.0.1:11434"


class Ollama:
    """A model behind Ollama's ``/api/chat``."""

    workers = 1  # it computes one answer at a time by default

    def __init__(self, base: str, model: str, options: ScoreOptions, key: str = "") -> None:
        self._http = Http(base, key, options.timeout)
        self._model, self._options = model, options
        self.name = f"ollama:{model}"
        self.identity = self.name

    def open(self) -> None:
        base = self._http.base
        try:
            found = when_ready(lambda: self._http.get("/api/tags"))
        except Unreachable as error:
            raise JudgeError(f"{error}; {_mend(base)}") from error
        except (Passing, Refused, JudgeError) as error:
            raise JudgeError(f"{base} is not an Ollama that can be used: {error}") from error
        models = found.get("models") if isinstance(found, dict) else None
        if not isinstance(models, list):
            raise JudgeError(f"{base} answers, but not as Ollama does; for another server give its address instead")
        digests = {str(one.get("name")): str(one.get("digest", "")) for one in models if isinstance(one, dict)}
        wanted = self._model if ":" in self._model else f"{self._model}:latest"
        if wanted not in digests and self._model not in digests:
            there = f"there: {', '.join(sorted(digests)[:10])}" if digests else "no model is there"
            where = "" if is_loopback(urlsplit(base).hostname or "") else f" on {urlsplit(base).hostname}"
            near = did_you_mean(self._model, digests)
            raise JudgeError(f"Ollama has no model {self._model!r} ({there}{near}): ollama pull {self._model}{where}")
        self.identity = f"{self.name}@{digests.get(wanted) or digests.get(self._model)}"

    def chat(self, request: ModelRequest) -> Reply:
        return self._sent("/api/chat", request, {"messages": [{"role": "user", "content": request.text}]})

    def complete(self, request: ModelRequest) -> Reply:
        return self._sent("/api/generate", request, {"prompt": request.text, "raw": True})

    def _sent(self, path: str, request: ModelRequest, what: dict[str, Any]) -> Reply:
        options = self._options
        asked: dict[str, Any] = {
            "model": self._model,
            **what,
            "stream": True,
            "truncate": False,  # an error instead of half a prompt; older servers do not know these two
            "shift": False,
            "options": {  # at the top level Ollama would ignore them
                "seed": request.seed,
                "temperature": options.temperature,
                "num_ctx": request.num_ctx,
                "num_predict": options.max_tokens,
                **({"stop": list(request.stop)} if request.stop else {}),
            },
        }
        if request.schema is not None:
            asked["format"] = request.schema
        if options.weighted:
            asked |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        lines = self._http.post_lines(path, asked)
        text, tokens = [], []
        for line in lines:
            message = line.get("message")
            content = message.get("content") if isinstance(message, dict) else line.get("response")
            text.append(content if isinstance(content, str) else "")
            tokens += alternatives(line.get("logprobs"))
        last = lines[-1]
        read = last.get("prompt_eval_count")
        return Reply(
            text=whole_text("".join(text)),
            cut=last.get("done_reason") == "length",
            prompt_tokens=read if type(read) is int else None,
            tokens=tuple(tokens),
        )

    def close(self) -> None:
        self._http.close()


def host_of_ollama() -> str:
    """The address in $OLLAMA_HOST, in any form that Ollama takes: host, host:port, :port, a whole address."""
    given = os.environ.get("OLLAMA_HOST", "").strip()
    if not given:
        return OLLAMA
    if given.startswith(":"):
        given = f"127.0.0.1{given}"
    url = given if "://" in given else f"http://{given}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "127.0.0.1", parts.port
    except ValueError as error:
        raise JudgeError(f"OLLAMA_HOST={given!r} is not an address: {error}") from error
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # what a server listens on is not an address to call
    port = port or (11434 if "://" not in given else {"https": 443}.get(parts.scheme, 80))
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}{parts.path.rstrip('/')}"


def _mend(base: str) -> str:
    host = urlsplit(base).hostname or ""
    if not is_loopback(host):
        return f"start Ollama on {host} with OLLAMA_HOST=0.0.0.0 ollama serve, or set OLLAMA_HOST to where it runs"
    if shutil.which("ollama"):
        return "Ollama is installed but not running: ollama serve"
    return "Ollama is not installed here: get it from https://ollama.com/download, then ollama serve"
