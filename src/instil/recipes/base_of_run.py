"""What a run was made of and with, once more: its model, and the products that it computed with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from instil.assistant.assistant import Assistant, load
from instil.errors import UserError
from instil.machine import processor
from instil.model.fast.gemm import PRODUCTS, own_products, use_again
from instil.model.find import find_model
from instil.model.load import file_hash
from instil.model.resize import grow_vocabulary
from instil.runs.folder import RunFolder


def base_of(folder: RunFolder, template: str | None = None, **generate: Any) -> tuple[Path, Assistant]:
    """Where the model lies that was tuned, and the model, with the rows that it was given for new tokens.

    Args:
        folder: of the run.
        template: to ask it with, if not its own form or the usual one.
        **generate: settings of generation.

    Raises:
        InstilError: it is not there any more, or another one by now.
    """
    name, facts = folder.base(), folder.read_settings()
    path = find_model(name)
    if file_hash(path) != facts["hashes"].get("model"):
        raise UserError(f"{name} is another model by now than the one that was tuned")
    base = load(path, template=template, **generate)
    wanted = int(facts.get("model_facts", {}).get("vocabulary", base.decoder.spec.vocab_size))
    grow_vocabulary(base.decoder, max(wanted, base.decoder.spec.vocab_size))
    return path, base


@contextmanager
def products_of(folder: RunFolder, *, only_here: bool = False) -> Iterator[None]:
    """Inside, products are computed as the run did, which rounds alike and need not measure which is faster.

    Args:
        folder: of the run.
        only_here: not if it was made on another processor, where another may have been the faster.
    """
    with own_products():
        then = folder.read_settings().get("versions")
        then = then if isinstance(then, dict) else {}
        if then.get("products") in PRODUCTS and (not only_here or then.get("processor") == processor()):
            use_again(then["products"])
        yield
