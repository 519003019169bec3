"""llama.cpp in this process, from the prebuilt wheel `xllamacpp` (the extra ``llamacpp``).

Its server listens on this machine only, with one slot and without reuse of earlier prompts, because that changes
rounding (llama.cpp, ``tools/server/README.md``): the same request gets the same reply.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from instil.ask.attention import Attention
from instil.ask.client import ModelRequest, Reply
from instil.ask.openai import OpenAI
from instil.errors import JudgeError, ModelError
from instil.files import sha256_of
from instil.model.find import find_model
from instil.settings.asking import ScoreOptions

MAGIC = b"GGUF"
CONTEXT = 8192  # of the server; a request may ask for less


class LlamaCpp:
    """A GGUF file behind llama.cpp's own server."""

    workers = 1

    def __init__(self, model: str, options: ScoreOptions) -> None:
        if importlib.util.find_spec("xllamacpp") is None:
            raise JudgeError("llamacpp: needs llama.cpp: pip install xllamacpp")
        try:
            self._file = find_model(model)
        except ModelError as error:
            raise JudgeError(f"llamacpp:{model}: {error}") from error
        if not self._file.is_file():
            raise JudgeError(f"llamacpp:{model}: {self._file} is no GGUF file")
        with self._file.open("rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise JudgeError(f"llamacpp:{model}: {self._file} is no GGUF file")
        self.name = f"llamacpp:{Path(model).name}"
        self.identity = self.name
        self.notes: tuple[str, ...] = ()
        self.attention = Attention()
        self._options = options
        self._server: Any = None
        self._client: OpenAI | None = None

    def open(self) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = str(self._file)
        params.n_parallel = 1
        params.n_ctx = self._options.num_ctx or CONTEXT
        params.verbosity = -1
        try:
            self._server = xllamacpp.Server(params)
        except RuntimeError as error:
            raise JudgeError(f"{self.name}: llama.cpp cannot load {self._file}: {error}") from error
        address = f"{self._server.listening_address}/v1"
        self._client = OpenAI(address, "", self._options, extra={"cache_prompt": False})
        self._client.open()
        self.identity = f"{self.name}@{sha256_of(self._file)}"  # not its address, which changes

    def chat(self, request: ModelRequest) -> Reply:
        assert self._client is not None, "open() comes first"
        return self._client.chat(request)

    def complete(self, request: ModelRequest) -> Reply:
        assert self._client is not None, "open() comes first"
        return self._client.complete(request)

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = self._server = None
