"""Measuring a model on general material, part by part, with what was measured before it was stopped."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

from instil.ask.journal import key_of
from instil.data.encoding import check_vocabulary
from instil.data.templates import OWN, Template, carries_its_own, find_template
from instil.data.tokenizers import Tokenizer
from instil.errors import DataError, UserError
from instil.evaluate.general.material import material
from instil.evaluate.general.measure import Measured, Subject, parts_of
from instil.files import record_of
from instil.runs.kept import Kept
from instil.screen import Screen


def own_chat(model: Path, tokenizer: Tokenizer, vocab_size: int) -> tuple[Template | None, str]:
    """The chat template that a model carries, and what is to be said where it cannot be used."""
    if not carries_its_own(model):
        return None, "the base carries no chat template, so nothing is measured in one"
    try:
        own = find_template(OWN, model, tokenizer)
        check_vocabulary(own, tokenizer, vocab_size)
    except (DataError, UserError) as error:
        return None, f"nothing is measured in the base's own chat template, which cannot be used: {error}"
    return own, ""


def measured(
    subject: Subject,
    left_out: Mapping[str, str],
    screen: Screen,
    *,
    journal: Kept | None = None,
    about: str = "",
    says: Callable[[str], None] = lambda said: None,
) -> list[Measured]:
    """All parts of a model.

    Args:
        subject: the model.
        left_out: skills that are not looked at.
        screen: where it is shown that it is under way.
        journal: where each part is kept as it is found, and taken from.
        about: the hash of all that it hangs on.
        says: is told the name of each part that is measured now.
    """
    found: list[Measured] = []
    parts = parts_of(subject, material(), left_out)
    with screen.bar("measuring", len(parts)) as advance:
        for name, measure in parts.items():
            key = key_of("measured", about, name)
            kept = journal.kept(key) if journal is not None else None
            if kept is None:
                says(name)
                part = measure()
                if journal is not None:
                    journal.keep(key, [asdict(one) for one in part])
            else:
                part = [record_of(Measured, one) for one in kept]
            found += part
            advance()
    return found
