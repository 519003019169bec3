"""The targets by their names, each with the file that has it, which is not imported before one is chosen."""

from __future__ import annotations

from importlib import import_module

from tests.fuzz.promise import Target

MODULES: dict[str, str] = {
    **dict.fromkeys(("json", "csv", "arrow", "packed", "shapes"), "rows"),
    "hub": "hub",
    **dict.fromkeys(("gguf", "gguf_bytes"), "ggufs"),
    **dict.fromkeys(("safetensors", "folder", "pth", "adapter", "tensorflow"), "models"),
    **dict.fromkeys(("tokenizer", "sentencepiece"), "tokenizers"),
    **dict.fromkeys(("template", "stored_template"), "templates"),
    **dict.fromkeys(("run", "settings", "sweep"), "runs"),
    **dict.fromkeys(("verdict", "server", "journal"), "replies"),
}


def target(name: str) -> Target:
    """A target by its name."""
    found: dict[str, Target] = import_module(f"tests.fuzz.{MODULES[name]}").TARGETS
    return found[name]
