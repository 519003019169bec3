"""Data sets on the hub: ``hf:owner/name[@revision][:config][/split]`` to the files of one config and one split.

The README of a data set says at its top which files make up which config and split; where it does not, files are told
apart by their names, as the hub itself does it. What was chosen is remembered in ``$INSTIL_HOME/data``, so that the
same name is found again without a network. No program of a data set is ever run.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from instil.data.files.kinds import is_named_as_data, kind_by_name
from instil.data.files.packing import Entry, entry_of
from instil.downloads import cache_folder
from instil.errors import DataError, UserError, did_you_mean, listed
from instil.files import json_object_or_empty, write_json
from instil.hub import NotReached, hub_card, hub_file, hub_listing

PREFIX = "hf:"
FORM = re.compile(
    r"hf:(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>refs/(?:convert/\w+|pr/\d+)|[^:/@]+))?"
    r"(?::(?P<config>[^/:]+))?(?:/(?P<split>[^/:]+))?"
)
SPLITS = {  # the hub's own words for them, in names of files and folders
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
README = "README.md"
_PARTS = re.compile(r"\*\*/|\*\*|\*|\[!?\]?[^\]]*\]|.", re.DOTALL)  # of a pattern of files
CONVERTED = "refs/convert/parquet"  # where the hub keeps its own Parquet copy of a data set


@dataclass(frozen=True, slots=True)
class Address:
    """A data set on the hub, as it was asked for; what was left out is ""."""

    repository: str
    revision: str = ""
    config: str = ""
    split: str = ""


def address_of(data: str) -> Address:
    """An address taken apart.

    Raises:
        DataError: it is none.

    >>> address_of("hf:owner/name@v1:main/test")
    Address(repository='owner/name', revision='v1', config='main', split='test')
    """
    found = FORM.fullmatch(data)
    if found is None:
        raise DataError(
            f"{data}: wanted hf:owner/name, or hf:owner/name@revision:config/split, of which the last three may be "
            "left out"
        )
    return Address(**{key: value or "" for key, value in found.groupdict().items()})


def hub_entries(data: str) -> tuple[list[Entry], list[str]]:
    """The files of a data set on the hub, fetched if they are not here yet, and what is to be said of the choice.

    Raises:
        DataError: it cannot be had; it has no such config or split, or several and none was named.
    """
    address = address_of(data)
    note = cache_folder() / "data" / "hub" / f"{hashlib.sha256(data.encode()).hexdigest()[:16]}.json"
    try:
        commit, names = hub_listing(address.repository, address.revision or None)
        files, said = _chosen(address, commit, names, data)
        paths = {file: str(hub_file(address.repository, file, commit)) for file in files}
    except NotReached as error:
        known = json_object_or_empty(note)
        paths = known.get("files") or {}
        if not paths or not all(Path(path).is_file() for path in paths.values()):
            raise DataError(
                f"{error}. Fetch it while there is a network, or give the path of its files instead"
            ) from error
        commit, said = known["commit"], [f"{data}: the hub did not answer; what was fetched from it before is read"]
    except DataError:
        raise
    except UserError as error:
        raise DataError(str(error)) from error
    else:
        _remember(note, {"data": data, "commit": commit, "files": paths})
    entries = [
        replace(entry_of(Path(path), PurePosixPath(file).name), name=f"hf:{address.repository}@{commit[:7]}/{file}")
        for file, path in paths.items()
    ]
    return entries, [
        f"{data}: {', '.join(list(paths)[:10])}{', ...' if len(paths) > 10 else ''} of commit {commit[:7]}",
        *said,
    ]


def _remember(note: Path, value: dict[str, Any]) -> None:
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, value, ascii_only=True)
    except OSError as error:
        raise DataError(
            f"{note.parent}: cannot be written: {error.strerror or error}; "
            "set INSTIL_HOME to a folder with room that you may write to"
        ) from error


def _chosen(address: Address, commit: str, names: Sequence[str], data: str) -> tuple[list[str], list[str]]:
    """The files that are wanted, and what is to be said of them."""
    card: dict[str, Any] = {}
    said = []
    if README in names:
        try:
            card = hub_card(hub_file(address.repository, README, commit))
        except ValueError as error:
            said.append(f"{data}: what its {README} says of its files cannot be read ({error}); told by their names")
    rows = [name for name in names if is_named_as_data(name)]
    if not rows:
        scripts = [name for name in names if name.endswith(".py")]
        how = f"; its own program ({scripts[0]}) is not run" if scripts else ""
        raise DataError(
            f"{data}: has no data files that are read here{how}. The hub may have a copy as Parquet: "
            f"hf:{address.repository}@{CONVERTED}"
        )
    configs = _configs(card, rows, address)
    splits = configs[_one_of(list(configs), address.config, "config", data, _default(card, configs))]
    split = _one_of(list(splits), address.split, "split", data, "train" if "train" in splits else "")
    files, others = _of_one_form(splits[split])
    if others:
        said.append(f"{data}: passed over, as the same rows in another form are read: {', '.join(others[:10])}")
    left = [name for name in splits if name != split]
    if left and not address.split:
        said.append(f"{data}: the split {split!r} is read; it also has {', '.join(left)}")
    return files, said


def _one_of(known: list[str], asked: str, what: str, data: str, default: str) -> str:
    if asked in known:
        return asked
    if asked:
        raise DataError(f"{data}: has no {what} {asked!r}; it has: {', '.join(known)}{did_you_mean(asked, known)}")
    if default or len(known) == 1:
        return default or known[0]
    mark = ":" if what == "config" else "/"
    examples = [f"{data}{mark}{name}" for name in known]
    raise DataError(f"{data}: has {len(known)} {what}s; name one:\n{listed(examples)}")


def _default(card: dict[str, Any], configs: dict[str, Any]) -> str:
    for config in _dicts(card.get("configs")):
        name = str(config.get("config_name", "default"))
        if config.get("default") is True and name in configs:
            return name
    return "default" if "default" in configs else ""


def _dicts(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _configs(card: dict[str, Any], rows: list[str], address: Address) -> dict[str, dict[str, list[str]]]:
    """Files by config and split: as the README has them, else by folders of the config that was asked for."""
    found: dict[str, dict[str, list[str]]] = {}
    for config in _dicts(card.get("configs")):
        splits = _declared(config, rows)
        if splits:
            found[str(config.get("config_name", "default"))] = splits
    if found:
        return found
    folders = sorted({name.split("/")[0] for name in rows if "/" in name})
    in_folders = {folder: [name for name in rows if name.startswith(f"{folder}/")] for folder in folders}
    known_splits = {word for words in SPLITS.values() for word in words}
    if address.config in in_folders or (
        address.revision == CONVERTED and folders
    ):  # the hub's copy has a folder for each config
        return {folder: _by_name(files, f"{folder}/") for folder, files in in_folders.items()}
    if address.config and address.config not in known_splits:
        return {folder: _by_name(files, f"{folder}/") for folder, files in in_folders.items()} or {
            "default": _by_name(rows)
        }
    return {"default": _by_name(rows)}


def _declared(config: dict[str, Any], rows: list[str]) -> dict[str, list[str]]:
    """The files of a config's splits, as the README's ``data_files`` and ``data_dir`` have them."""
    folder = str(config.get("data_dir") or "").strip("./")
    inside = f"{folder}/" if folder else ""
    files = config.get("data_files")
    if files is None:
        return _by_name([name for name in rows if name.startswith(inside)], inside)
    pairs: list[tuple[str, Any]] = []
    if isinstance(files, dict):
        pairs = [(str(split), path) for split, path in files.items()]
    elif _dicts(files):
        pairs = [(str(one.get("split", "train")), one.get("path")) for one in _dicts(files)]
    else:
        pairs = [("train", files)]
    splits: dict[str, list[str]] = {}
    for split, patterns in pairs:
        for pattern in patterns if isinstance(patterns, list) else [patterns]:
            matching = _matching(f"{inside}{pattern}", rows)
            splits[split] = splits.get(split, []) + [name for name in matching if name not in splits.get(split, [])]
    return {split: names for split, names in splits.items() if names}


def _matching(pattern: str, names: list[str]) -> list[str]:
    """Names that a pattern stands for; only its ``**`` goes across folders."""
    parts = _PARTS.findall(pattern.removeprefix("./"))
    return [name for name in names if _fits(parts, name)]


def _fits(parts: Sequence[str], name: str) -> bool:
    """Whether a name is what the parts of a pattern say, all of whose ways are gone at once: a pattern may have many.

    >>> [_fits(_PARTS.findall(form), "a/b/t-0.csv") for form in ("**/t-*.csv", "a/*.csv", "a/*/?-[0-9].csv")]
    [True, False, True]
    """
    fresh: set[int] = {0}  # parts that may come next
    within: set[int] = set()  # of ``**/``, those that are in the middle of a folder's name
    for char in [*name, ""]:
        for at in sorted(fresh):  # a star may stand for nothing
            while at < len(parts) and parts[at].startswith("*"):
                at += 1  # noqa: PLW2901
                fresh.add(at)
        if not char:
            break
        following: set[int] = set()
        inside = {at for at in fresh | within if at < len(parts) and parts[at] == "**/"}
        for at in fresh - inside:
            part = parts[at] if at < len(parts) else None
            if part == "**" or (part == "*" and char != "/"):
                following.add(at)
            elif part is not None and (char == part or (char != "/" and part[0] != "*" and fnmatchcase(char, part))):
                following.add(at + 1)
        fresh = following | ({at + 1 for at in inside} if char == "/" else set())
        within = inside
    return len(parts) in fresh


def _by_name(names: list[str], inside: str = "") -> dict[str, list[str]]:
    """Files by split, told by words in their names; all are "train" where none has such a word."""
    found: dict[str, list[str]] = {}
    for name in names:
        words = re.split(r"[^a-z]+", name.removeprefix(inside).lower())
        split = next((split for split, keys in SPLITS.items() if set(words) & set(keys)), "")
        found.setdefault(split, []).append(name)
    if set(found) == {""}:
        return {"train": found[""]}
    found.pop("", None)
    return found


def _of_one_form(names: list[str]) -> tuple[list[str], list[str]]:
    """Those of the commonest form (Parquet where it is as common), and the others."""
    forms = Counter(kind_by_name(name) for name in names)
    best = max(forms, key=lambda form: (forms[form], form == "parquet"))
    return [name for name in names if kind_by_name(name) == best], [n for n in names if kind_by_name(n) != best]
