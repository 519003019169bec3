"""What a data set on the hub says of its files: its README's card, and their names."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

from instil.data.files import hub
from tests.fuzz.promise import Target, file
from tests.fuzz.trees import dumped, parsed, tree_mutator


def read(given: bytes) -> None:
    """The choice of files, with a card as it is parsed, or with the README's text."""
    try:
        found = parsed(given)
    except ValueError:
        found = {}
    found = found if isinstance(found, dict) else {}
    card, names, asked = found.get("card"), found.get("names"), found.get("asked")
    listed = [one for one in names if isinstance(one, str)] if isinstance(names, list) else []
    address = hub.address_of(asked if isinstance(asked, str) else "hf:owner/name")
    if isinstance(card, str):
        with file("README.md", card.encode("utf-8", "replace")) as path, patch.object(hub, "hub_file", lambda *_: path):
            hub._chosen(address, "c" * 40, listed, "hf:owner/name")
        return
    card = card if isinstance(card, dict) else {}
    here = patch.object(hub, "hub_file", lambda *_: Path("README.md"))
    with here, patch.object(hub, "hub_card", lambda _: card):
        hub._chosen(address, "c" * 40, listed, "hf:owner/name")


def cards() -> list[Any]:
    """Files by config and split in the ways of the hub's READMEs."""
    names = ["README.md", "data/train-0.parquet", "data/test-0.parquet", "main/train.jsonl", "main/test.jsonl", "a.csv"]
    files = [{"split": "train", "path": "data/train-*"}, {"split": "test", "path": ["data/test-*"]}]
    return [
        {"card": {"configs": [{"config_name": "default", "data_files": files}]}, "names": names},
        {"card": {"configs": [{"config_name": "main", "data_dir": "main", "default": True}]}, "names": names},
        {"card": {"configs": [{"config_name": "a", "data_files": {"train": "**/*.csv"}}]}, "names": names},
        {"card": {}, "names": names[1:], "asked": "hf:owner/name@main:main/test"},
        {"card": "---\nconfigs:\n- config_name: a\n  data_files: '*.csv'\n---\nText.\n", "names": names},
    ]


WORDS = (
    "configs",
    "config_name",
    "data_files",
    "data_dir",
    "split",
    "path",
    "default",
    "train",
    "*",
    "**",
    "[",
    "[!a]",
)
TARGETS = {"hub": Target(read, lambda: [dumped(one) for one in cards()], tree_mutator(WORDS, cards), longest=5000)}
