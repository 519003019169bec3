"""The model that a run was made of, loaded once more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.errors import UserError
from instil.model.find import find_model
from instil.model.load import file_hash
from instil.model.resize import grow_vocabulary


def base_of(facts: dict[str, Any]) -> tuple[Path, Assistant]:
    """Where the model lies that was tuned, and the model, with the rows that it was given for new tokens.

    Raises:
        InstilError: it is not there any more, or another one by now.
    """
    name = str(facts.get("model", ""))
    path = find_model(name)
    if file_hash(path) != facts["hashes"].get("model"):
        raise UserError(f"{name} is another model by now than the one that was tuned")
    base = load(path)
    wanted = int(facts.get("model_facts", {}).get("vocabulary", base.decoder.spec.vocab_size))
    grow_vocabulary(base.decoder, max(wanted, base.decoder.spec.vocab_size))
    return path, base
