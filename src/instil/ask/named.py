"""Other models by name: which client speaks to what the user calls ``ollama:llama3`` or ``openai:gpt-4o``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from instil.ask.client import Client
from instil.errors import JudgeError, did_you_mean
from instil.settings.asking import ScoreOptions

KINDS = ("offline", "ollama:MODEL", "openai:MODEL", "http://HOST/v1", "llamacpp:FILE.gguf")


def client_named(name: str, options: ScoreOptions) -> Client:
    """The client for a model by its name, not yet opened.

    Raises:
        JudgeError: there is no such kind, or its key is not set.
    """
    kind, _, what = name.partition(":")
    if kind in ("http", "https"):
        from instil.ask.openai import OpenAI

        url, _, model = name.partition("#")
        return OpenAI(url, model, options, key=_key("INSTIL_API_KEY"))
    if kind == "openai" and what:
        from instil.ask.openai import OPENAI, OpenAI

        base = os.environ.get("OPENAI_BASE_URL") or OPENAI
        key = _key("OPENAI_API_KEY")
        if not key and base == OPENAI:
            raise JudgeError(f"{name} needs a key in the environment: export OPENAI_API_KEY=...")
        return OpenAI(base, what, options, key=key, name=name)
    if kind == "ollama" and what:
        from instil.ask.ollama import Ollama, host_of_ollama

        return Ollama(host_of_ollama(), what, options, key=_key("OLLAMA_API_KEY"))
    if kind == "llamacpp" and what:
        from instil.ask.llamacpp import LlamaCpp

        return LlamaCpp(what, options)
    near = did_you_mean(kind, ("offline", "ollama", "openai", "llamacpp"))
    raise JudgeError(f"no judge named {name!r}; known: {', '.join(KINDS)}{near}")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise JudgeError(f"${variable} holds characters that no key has")
    return key


@contextmanager
def opened(name: str, options: ScoreOptions, say: Callable[[str], object] = lambda note: None) -> Iterator[Client]:
    """A model that is there, by its name; closed at the end of the block. ``say`` is told what may matter of it."""
    client = client_named(name, options)
    try:
        client.open()
        for note in client.notes:
            say(note)
        yield client
    finally:
        client.close()
