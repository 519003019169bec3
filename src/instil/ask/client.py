"""What every client of another model takes and gives: Ollama, a server with OpenAI's interface, llama.cpp here.

``ollama:llama3``                        Ollama's own interface, at $OLLAMA_HOST or on this machine
``openai:gpt-4o``                        OpenAI, or $OPENAI_BASE_URL; the key from $OPENAI_API_KEY
``http://127.0.0.1:8080/v1[#MODEL]``     any other server (vLLM, llama-server, LM Studio); key from $INSTIL_API_KEY
``llamacpp:FILE.gguf``                   llama.cpp from the package xllamacpp, in this process

Facts about the interfaces: Ollama's ``api/types.go`` and ``server/routes.go``, llama.cpp's ``tools/server/README.md``.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from instil.ask.http import Passing, Refused, Rejected

if TYPE_CHECKING:
    from instil.ask.attention import Attention

ALTERNATIVES = 20  # most that servers tell of
MOST = 1e-3  # a log-probability is not positive, but for rounding
LOADING = 120.0  # seconds that a server may take to load its model

Alternatives = tuple[
    str, Mapping[str, float]
]  # a token of the reply; texts that could have stood there: log-probability


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """One message to a model. ``num_ctx``: the context to ask for, in tokens; the reply ends before a ``stop`` text."""

    text: str
    schema: dict[str, Any] | None
    seed: int
    num_ctx: int
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    ``prompt_tokens`` is how many the model read, if it says so, and ``cached_tokens`` how many it had read before,
    which some servers leave out of the first; ``cut``: it had no more room; ``problem``: why the text is not to be
    used, whatever it says.
    """

    text: str
    cut: bool = False
    prompt_tokens: int | None = None
    tokens: tuple[Alternatives, ...] = ()
    cached_tokens: int = 0
    problem: str = ""


class Client(Protocol):
    """A model that can be asked.

    ``name`` is for people; ``identity`` says which model it is, as exactly as the server tells; ``workers`` how many
    requests at once suit it. ``notes`` are what `open` found that may matter; ``attention`` is what the model has read.
    """

    name: str
    identity: str
    workers: int
    notes: tuple[str, ...]
    attention: Attention

    def open(self) -> None:
        """Make sure that it is there.

        Raises:
            JudgeError: it is not; the message says what would mend that.
        """

    def chat(self, request: ModelRequest) -> Reply:
        """One reply. Safe to call from several threads.

        Raises:
            Passing, Refused, JudgeError: see `instil.ask.http`.
        """

    def complete(self, request: ModelRequest) -> Reply:
        """What the model writes after a text, which it gets as it is, without a chat template.

        Raises:
            JudgeError: the server has no such interface.
            Passing, Refused: see `instil.ask.http`.
        """

    def close(self) -> None:
        """Let go of what `open` took."""


def alternatives(given: Any) -> list[Alternatives]:
    """Tokens with what could have stood in their place; nothing where the server's form is not the known one."""
    found: list[Alternatives] = []
    for one in given if isinstance(given, list) else []:
        if not isinstance(one, dict):
            return []
        others = one.get("top_logprobs")
        table: dict[str, float] = {}
        for other in others if isinstance(others, list) else []:
            value = other.get("logprob") if isinstance(other, dict) else None
            if isinstance(value, int | float) and not isinstance(value, bool) and -1e9 < value <= MOST:  # nor no number
                table.setdefault(str(other.get("token", "")), min(float(value), 0.0))
        found.append((str(one.get("token", "")), table))
    return found


def whole_text(given: Any) -> str:
    """A reply's text, without halves of surrogate pairs, which cannot be written down; empty if it is no text."""
    return given.encode("utf-8", "replace").decode("utf-8") if isinstance(given, str) else ""


def cached_of(*tables: Any) -> int:
    """Tokens of a prompt that a server had read before, by whatever name its counts call them.

    >>> cached_of({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 500}}, {"cache_n": 3})
    500
    """
    counts: dict[str, int] = {}
    for table in tables:
        for name, value in table.items() if isinstance(table, dict) else ():
            inner = value if isinstance(value, dict) else {name: value}
            for key, count in inner.items():
                if type(count) is int and "cach" in str(key) and "miss" not in str(key):
                    counts[str(key)] = max(count, counts.get(str(key), 0))
    written = counts.get("cache_read_input_tokens", 0) + counts.get("cache_creation_input_tokens", 0)
    return max([0, written, *counts.values()])


def listed(model: str, names: Iterable[str]) -> bool:
    """Whether a model is in a server's list, under this name or one that means the same there.

    >>> listed("llama3", ["llama3:latest"]), listed("a/b:free", ["a/b"]), listed("x/y", ["x/*"]), listed("b", ["a"])
    (True, True, True, False)
    """
    plain = _plain(model)
    return any(name == model or _plain(name) == plain or _matches(plain, name) for name in names)


def _plain(name: str) -> str:
    name = name.removeprefix("models/")
    return re.sub(r":(?:latest|free|nitro|floor|online|extended|thinking|beta|exacto)\Z", "", name)


def _matches(model: str, name: str) -> bool:
    return "*" in name and bool(re.fullmatch(".*".join(map(re.escape, name.split("*"))), model))


def when_ready(look: Callable[[], Any]) -> Any:
    """Ask again while the server says that it is still loading (503)."""
    end = time.monotonic() + LOADING
    while True:
        try:
            return look()
        except Passing as passing:
            if "503" not in str(passing) or "load" not in str(passing).lower() or time.monotonic() > end:
                raise
            time.sleep(1.0)


def with_notes(error: Exception, notes: Iterable[str]) -> Exception:
    """A refusal of a question, with what was known before it was asked: a model that the server does not list."""
    more = "; ".join(notes)
    if not more or more in str(error):
        return error
    if isinstance(error, Rejected):
        return Rejected(f"{error}; {more}", status=error.status, said=error.said)
    if isinstance(error, Refused) and "model" in error.said:
        return Refused(f"{error}; {more}", error.parameter, status=error.status, said=error.said)
    return error
