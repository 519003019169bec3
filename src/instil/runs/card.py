"""The data card of a run: what its rows are, in one record (``data.json``) that stays readable without the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from instil.data.files.places import paths_of
from instil.data.files.rows import open_rows
from instil.data.splits import PARTS
from instil.errors import without_numbers
from instil.tasks.rejected import RejectedRow
from instil.tasks.task import Prepared

KINDS = 50  # kinds of a part that the card names; the others are counted together
REASONS = 20
LICENCES = {  # of named data sets, as this project or their owners state it
    "starter": "part of this project: Apache-2.0",
    "book": "Apache-2.0 (rasbt/LLMs-from-scratch)",
    "book-preference": "Apache-2.0 (rasbt/LLMs-from-scratch)",
    "alpaca": "see DATA_LICENSE in tatsu-lab/stanford_alpaca",
}


def data_card(prepared: Prepared, rejected: Sequence[RejectedRow]) -> dict[str, Any]:
    """What is known of the rows of a run: counts, lengths, kinds, scripts, repetitions, what was left out, licence."""
    source, found = prepared.source, prepared.preflight
    return {
        "name": source.name,
        "files": _files(source.name),
        "task": prepared.settings.train.objective,
        "licence": licence(source.name, prepared.settings.data.licence),
        "rows": {**found.rows, "all": len(source), "looked_at": found.looked_at},
        "shapes": found.shapes or {},
        "tokens": {
            "training_rows": found.tokens,
            "targets": found.trained_tokens,
            "supervised_share": round(found.supervised, 4),
            "rows_trained_on_their_end": found.ends_trained,
        },
        "lengths": {
            "mean": round(found.mean_length, 1),
            "quantiles": found.quantiles or {},
            "longest": found.longest,
            "max_length": found.max_length,
            "keeps_99": found.keeps_99,
            "context": found.context,
        },
        "kinds": {part: _most(Counter((found.kinds or {}).get(part, {})), KINDS) for part in PARTS},
        "scripts": found.scripts or {},
        "repeated": {
            "rows": _count(prepared, "repeated_row"),
            "held_out_prompts_in_training": found.repeated_prompts,
        },
        "rejected": {
            "left out": sum(row.outcome == "left out" for row in rejected),
            "cut": sum(row.outcome == "cut" for row in rejected),
            "reasons": _reasons([row.reason for row in rejected]),
        },
        "findings": [finding.as_json() for finding in found.findings],
        "hashes": {"rows": source.sha256, "template": prepared.template.hash},
    }


def licence(name: str, said: str) -> str:
    """What the user says of the rows' licence, or what is known of a named data set; never a guess."""
    return said or LICENCES.get(name, "not stated; say it with --set data.licence=...")


def _files(name: str) -> list[dict[str, Any]]:
    """The files that are read: of a folder, a pattern or a list each of them."""
    files = open_rows(name).files if paths_of(name) else ()
    return [{"path": str(path.resolve()), "bytes": path.stat().st_size} for path in files]


def _count(prepared: Prepared, kind: str) -> int:
    return sum(finding.count for finding in prepared.preflight.findings if finding.kind == kind)


def _most(counts: Counter[str], limit: int) -> dict[str, int]:
    kept = dict(counts.most_common(limit))
    rest = counts.total() - sum(kept.values())
    return {**kept, **({"(others)": rest} if rest else {})}


def _reasons(reasons: list[str]) -> dict[str, int]:
    """Reasons with how often they were given; those that differ in numbers only are one, told by its first."""
    first: dict[str, str] = {}
    for reason in reasons:
        first.setdefault(without_numbers(reason), reason)
    return _most(Counter(first[without_numbers(reason)] for reason in reasons), REASONS)
