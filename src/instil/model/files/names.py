"""Names of tensors that somebody has wrapped: what stands before all of them is taken off.

``torch.compile`` puts ``_orig_mod.`` before every name, ``DistributedDataParallel`` and ``DataParallel`` put
``module.``, models of pictures and text ``language_model.``, PEFT ``base_model.model.``; and they may be put before one
another. A wrapper that stands before some of the names only is not taken off: such a file holds two models, or half of
one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping

from instil.model.families.family import Stored

# Segments that stand for a wrapper, and never for a layer of a model that is read here.
WRAPPERS = ("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module",
            "language_model", "text_model", "base_model")  # fmt: skip
_ADAPTED = re.compile(r"\.(lora_\w+|base_layer)(\.|$)")


def plain_names(names: Iterable[str], table: Mapping[str, Stored], prefix: str) -> tuple[dict[str, str], str]:
    """The names of a file as a family's table has them, each with the file's own; and what is wrong, or nothing.

    Args:
        names: the file's.
        table: of the family, with ``{i}`` for the number of a layer.
        prefix: of the family's names, which a file may have or not.

    >>> table = {"norm.weight": Stored(("norm.weight",)), "head.weight": Stored(("lm_head.weight",))}
    >>> plain_names(["module.model.norm.weight", "module.lm_head.weight"], table, "model.")[0]
    {'norm.weight': 'module.model.norm.weight', 'lm_head.weight': 'module.lm_head.weight'}
    """
    names = list(names)
    known = {name for stored in table.values() for name in stored.names}
    heads = set(table["head.weight"].names)
    outer = {*WRAPPERS, "model", *filter(None, prefix.split("."))}
    found = {name: parts for name in names if (parts := _split(name, outer, known)) is not None}
    before = Counter(wrapped for wrapped, rest in found.values() if rest not in heads)
    whole = before.most_common(1)[0][0] if before else prefix
    alike = {
        name: rest
        for name, (wrapped, rest) in found.items()
        if wrapped == whole or (rest in heads and whole.startswith(wrapped))  # a head stands beside the layers
    }
    # what is not of the table, or has another prefix, keeps its name, and is left over
    plain = {alike.get(name) or name.removeprefix(whole): name for name in names}
    if problem := _adapted(names):
        return plain, problem
    if names and not found:
        return plain, (
            f"none of its names, such as {min(names)}, is one of this family's; wanted names such as "
            f"{prefix}{table['embed.weight'].names[0]}"
        )
    others = Counter(wrapped for name, (wrapped, _) in found.items() if name not in alike)
    if others or len(plain) < len(names):
        counts = ", ".join(
            f"{count:,} with {wrapped or 'nothing'!r}" for wrapped, count in [(whole, len(alike)), *others.items()]
        )
        return plain, f"its names do not all begin alike ({counts}); wanted one form for all, which is then taken off"
    inside = [name for rest, name in plain.items() if name not in found and set(WRAPPERS) & set(rest.split("."))]
    if inside:
        return plain, (
            f"{len(inside):,} of its {len(names):,} names have a wrapper in them, such as {inside[0]}; it is taken off "
            f"only where all weights have it in front. Save the state of the unwrapped model"
        )
    return plain, ""


def wrapper(names: Iterable[str]) -> str:
    """What wrappers have put before every name.

    >>> wrapper(["module._orig_mod.a.weight", "module._orig_mod.b.weight"]), wrapper(["module.a", "b"])
    ('module._orig_mod.', '')
    """
    names, found = list(names), ""
    while names:
        segment = names[0][len(found) :].partition(".")[0]
        if segment not in WRAPPERS or not all(name.startswith(f"{found}{segment}.") for name in names):
            break
        found += f"{segment}."
    return found


def _split(name: str, outer: Collection[str], known: Collection[str]) -> tuple[str, str] | None:
    """A name as a prefix of wrappers and a name of the table; None if it is not of the table however it is cut."""
    rest = name
    while _pattern(rest) not in known:
        segment, dot, behind = rest.partition(".")
        if not dot or segment not in outer:
            return None
        rest = behind
    return name[: len(name) - len(rest)], rest


def _pattern(name: str) -> str:
    """A name with ``{i}`` for the number of its layer."""
    return re.sub(r"(^|\.)\d+\.", r"\1{i}.", name, count=1)


def _adapted(names: Iterable[str]) -> str:
    """That these are the names of a model with adapters in it, as a clause for a message."""
    adapted = sorted(name for name in names if _ADAPTED.search(name))
    if not adapted:
        return ""
    return (
        f"it holds {adapted[0]}: this is an unmerged PEFT model; save it merged "
        "(model.merge_and_unload().save_pretrained(folder)), or its adapters alone (model.save_pretrained(folder)), to "
        "be given beside their base model"
    )
