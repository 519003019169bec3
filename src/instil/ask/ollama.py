"""A model behind Ollama's own interface, ``/api/chat``, and ``/api/generate`` for raw texts.

Facts: ``api/types.go`` and ``server/routes.go`` of Ollama. Seed, temperature and context count only inside
``options``; an error in the middle comes as a line under status 200; the last line says ``done``.
"""

from __future__ import annotations

import os
import shutil
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
from instil.ask.endings import THOUGHTS, ending, instead_of_text, text_of
from instil.ask.forms import JSON, PLAIN, Forms
from instil.ask.http import Http, Passing, Refused, Rejected, Unreachable, is_loopback
from instil.errors import JudgeError, did_you_mean
from instil.settings.asking import ScoreOptions

OLLAMA = "http://127.0.0.1:11434"


class Ollama:
    """A model behind Ollama's ``/api/chat``."""

    workers = 1  # it computes one answer at a time by default

    def __init__(self, base: str, model: str, options: ScoreOptions, key: str = "") -> None:
        self._http = Http(base, key, options.timeout)
        self._model, self._options = model, options
        self._forms = Forms()
        self.name = f"ollama:{model}"
        self.identity = self.name
        self.notes: tuple[str, ...] = ()
        self.attention = Attention()

    def open(self) -> None:
        base = self._http.base
        try:
            found, why = when_ready(lambda: self._http.look("/api/tags"))
        except Unreachable as error:
            raise JudgeError(f"{error}; {_mend(base)}") from error
        except (Passing, Refused, JudgeError) as error:
            raise JudgeError(f"{base} is not an Ollama that can be used: {error}") from error
        models = found.get("models") if isinstance(found, dict) else None
        if found is not None and not isinstance(models, list):
            raise JudgeError(f"{base} answers, but not as Ollama does; for another server give its address instead")
        digests = {str(one.get("name")): str(one.get("digest", "")) for one in models or [] if isinstance(one, dict)}
        wanted = self._model if ":" in self._model else f"{self._model}:latest"
        digest = digests.get(wanted) or digests.get(self._model)
        self.identity = f"{self.name}@{digest}" if digest else self.name
        if found is None:
            said = f": {why}" if why else "; for another server than Ollama give its address instead"
            self.notes = (f"{base} does not list its models{said}",)
        elif not listed(self._model, digests):
            there = f"there: {', '.join(sorted(digests)[:10])}" if digests else "no model is there"
            where = "" if is_loopback(urlsplit(base).hostname or "") else f" on {urlsplit(base).hostname}"
            near = did_you_mean(self._model, digests)
            listed_not = f"Ollama's list has no model {self._model!r} ({there}{near})"
            self.notes = (f"{listed_not}: ollama pull {self._model}{where}",)

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
        if options.weighted:
            asked |= {"logprobs": True, "top_logprobs": ALTERNATIVES}
        form = self._forms.first(wanted=request.schema is not None)
        while True:
            held = {} if form == PLAIN else {"format": "json" if form == JSON else request.schema}
            try:
                lines = self._http.post_lines(path, {**asked, **held})
            except (Passing, Refused, Rejected) as error:
                following = self._forms.after(form, error)
                if following is None:
                    self._forms.gave_up(form)
                    raise with_notes(error, self.notes) from error
                form = following
                continue
            if request.schema is not None:
                self._forms.worked(form)
            return _read(lines)

    def close(self) -> None:
        self._http.close()


def _read(lines: list[dict[str, Any]]) -> Reply:
    """The reply in the lines that came."""
    text, tokens = [], []
    held: dict[str, Any] = {}  # what came beside the text
    for line in lines:
        message = line.get("message")
        if not isinstance(message, dict):
            message = {"content": line.get("response"), "thinking": line.get("thinking")}
        text.append(text_of(message.get("content")))
        held |= {name: message[name] for name in (*THOUGHTS, "tool_calls", "refusal") if message.get(name)}
        tokens += alternatives(line.get("logprobs"))
    last = lines[-1]
    read, how = last.get("prompt_eval_count"), ending(last.get("done_reason"))
    whole = whole_text("".join(text))
    if how == "failed":
        raise Passing(f"the reply ended by {last.get('done_reason')!r}")
    problem = "the reply was stopped by a filter of its content" if how == "filtered" else ""
    return Reply(
        text=whole,
        cut=how == "cut",
        prompt_tokens=read if type(read) is int else None,
        tokens=tuple(tokens),
        cached_tokens=cached_of(last),
        problem=problem or ("" if whole.strip() else instead_of_text({"content": whole, **held})),
    )


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
