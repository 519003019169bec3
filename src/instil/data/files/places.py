"""Where rows lie, by what the user names: files on disk, patterns, folders, addresses, data sets on the hub.

What comes from the network is fetched once into ``$INSTIL_HOME/data`` and read from there ever after;
remove the file to fetch it anew. ``$INSTIL_DATA_URL`` stands in for GitHub's raw files (a mirror).
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import resources
from pathlib import Path
from urllib.parse import urlsplit

from instil.data.files.hub import PREFIX, hub_entries
from instil.data.files.kinds import SUFFIXES, data_files, is_named_as_data
from instil.data.files.packing import PACKED_SUFFIXES, Entry, entry_of
from instil.downloads import Wanted, cache_folder, download, progress
from instil.errors import DataError, counted, did_you_mean, listed

NAMED = {"starter": "starter.json"}
GITHUB = "https://raw.githubusercontent.com"
FETCHED = {  # the chapter's 1,100 rows; Alpaca's 52,002, of which 28 have an empty output (exercise 7.3)
    "book": "rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json",
    "book-preference": "rasbt/LLMs-from-scratch/main/ch07/04_preference-tuning-with-dpo/"
    "instruction-data-with-preference.json",
    "alpaca": "tatsu-lab/stanford_alpaca/main/alpaca_data.json",
}
SCHEMES = ("http://", "https://")
LONG = 16 * 1024**2  # bytes of files, from which on reading them takes long enough to be shown
LARGEST_FETCHED = 64 * 1024**3  # bytes
HUB_PAGE = re.compile(r"https?://huggingface\.co/datasets/([\w.-]+/[\w.-]+)/?(?:[?#].*|viewer.*|tree/.*)?$")
RUN_FILE = "run.toml"


def entries_of(data: str | Path, *, skip_bad: bool = False) -> tuple[list[Entry], list[str]]:
    """The files that are meant by a name, a path, a pattern, an address or several of them with commas between.

    What is there under the very name is meant, whatever characters the name has. With ``skip_bad`` also a file is
    kept of those fetched that has rows which cannot be read.

    Raises:
        DataError: there is nothing of that name, or it cannot be fetched.
    """
    parts = _parts(data)
    entries: list[Entry] = []
    notes: list[str] = []
    for part in parts:
        found, said = _entries(part, str(data), skip_bad)
        entries += found
        notes += said
    kept = list({entry.path.absolute() if entry.path else entry.name: entry for entry in reversed(entries)}.values())[
        ::-1
    ]
    if len(kept) < len(entries):
        notes.append(f"{data}: {counted(len(entries) - len(kept), 'file')} named more than once, read once")
    if len(kept) > 1:
        shown = ", ".join(entry.label for entry in kept[:10]) + (", ..." if len(kept) > 10 else "")
        notes.insert(0, f"{data}: {len(kept)} files, one after another: {shown}")
    labels = Counter(entry.label for entry in kept)
    return [replace(one, label=one.name) if labels[one.label] > 1 else one for one in kept], notes


def _parts(data: str | Path) -> list[str]:
    """Several names with commas between; a comma in a name that is there, or inside an address, is its own."""
    text = str(data)
    if isinstance(data, Path) or "," not in text or _is_there(Path(text)):
        return [text]
    if text.startswith(SCHEMES):
        return re.split(r",(?=https?://|hf:)", text)
    return [part.strip() for part in text.split(",") if part.strip()]


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a name that is too long for the system, or has a NUL in it
        return False


def absolute(data: str) -> str:
    """A data set's name that is good from any folder, as far as it lies on disk; "" if none of it does.

    >>> absolute("starter")
    ''
    """
    parts = []
    for part in _parts(data):
        path = Path(part).expanduser()
        there = part not in NAMED | FETCHED and (
            _is_there(path) or (glob.has_magic(part) and not comes_from_afar(part))
        )
        parts.append(str(path.resolve() if _is_there(path) else path.absolute()) if there else part)
    return ",".join(parts) if parts != _parts(data) or _is_there(Path(data)) else ""


def on_disk(name: str) -> str:
    """A model's name that is good from any folder, if it is a path; "" for a name that is looked up.

    >>> on_disk("smollm2-135m")
    ''
    """
    path = Path(name).expanduser()
    return str(path.resolve()) if _is_there(path) else ""


def paths_of(data: str | Path) -> list[Path]:
    """The files on disk that a name stands for, and the folder, if it names one; they must not be written over.

    >>> paths_of("starter")
    []
    """
    found: list[Path] = []
    for part in _parts(data):
        path = Path(part).expanduser()
        if _is_there(path):
            found += [path, *(sorted(filter(Path.is_file, path.iterdir())) if path.is_dir() else ())]
        elif glob.has_magic(part) and not comes_from_afar(part):
            found += filter(Path.is_file, _globbed(path))
    return found


def short_name(data: str) -> str:
    """A name for what is made of a data set.

    >>> short_name("data/rows.jsonl.gz"), short_name("hf:owner/name:main/test"), short_name("a/*.csv,b.json")
    ('rows', 'name-main-test', 'csv-b')
    """
    names = []
    for part in _parts(data):
        last = part.rpartition("/")[2]
        if part.startswith(PREFIX):
            last = part.partition("/")[2]
        elif part.startswith(SCHEMES):
            last = _label(part)
        while Path(last).suffix.lower() in (*SUFFIXES, *PACKED_SUFFIXES) and Path(last).stem.strip("*?."):
            last = Path(last).stem
        names.append(re.sub(r"[^\w.-]+", "-", last).strip("-.") or "rows")
    return "-".join(names)[:80]


def _entries(part: str, data: str, skip_bad: bool) -> tuple[list[Entry], list[str]]:
    if part in NAMED:
        file = resources.files("instil.data") / NAMED[part]
        return [Entry(part, part, lambda: file.open("rb"), len(file.read_bytes()))], []
    if part.startswith(PREFIX):
        return hub_entries(part)
    if page := HUB_PAGE.match(part):
        raise DataError(f"{part}: is a page of the hub; its rows are {PREFIX}{page[1]}")
    if comes_from_afar(part):
        return [replace(entry_of(fetch_data(part, skip_bad=skip_bad), _label(part)), name=part)], []
    path = Path(part).expanduser()
    if _is_there(path):
        return _in_folder(path) if path.is_dir() else ([entry_of(path)], [])
    if glob.has_magic(part):
        return _matching(path)
    known = NAMED | FETCHED
    inside = f"{data}: " if part != data else ""
    near = _with_slashes(part) or did_you_mean(part, known) or _near_file(path)
    if not near and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", part) and not is_named_as_data(part):
        near = f"; a data set on the hub is {PREFIX}{part}"
    raise DataError(
        f"{inside}{part}: no such file, and no data set of that name; known names: {', '.join(known)}" + near
    )


def _with_slashes(part: str) -> str:
    """A path as Windows writes it, where it leads to something as it is written here."""
    path = part.replace("\\", "/")
    return f"; did you mean {path}?" if path != part and _is_there(Path(path)) else ""


def _near_file(path: Path) -> str:
    try:
        return did_you_mean(path.name, [other.name for other in path.parent.iterdir()])
    except OSError:
        return ""


def _label(data: str) -> str:
    return data if data in FETCHED else urlsplit(data).path.rpartition("/")[2] or data


def comes_from_afar(data: str) -> bool:
    """Whether a data set is fetched: by its name, or because it is an http(s) address or on the hub.

    >>> comes_from_afar("book"), comes_from_afar("https://example.org/rows.json"), comes_from_afar("rows.json")
    (True, True, False)
    """
    return data in FETCHED or data.lower().startswith((*SCHEMES, PREFIX))


def fetch_data(data: str, *, skip_bad: bool = False) -> Path:
    """The local copy of a named data set or of an address, fetched if it is not there yet.

    Raises:
        DataError: it cannot be had, or what came has no rows in it.
    """
    folder = cache_folder() / "data"
    if data in FETCHED:
        url = f"{os.environ.get('INSTIL_DATA_URL', GITHUB).rstrip('/')}/{FETCHED[data]}"
        path = folder / f"{data}.json"
    else:
        url = data
        last = re.sub(r"[^A-Za-z0-9._-]", "_", urlsplit(url).path.rpartition("/")[2]).lstrip(".")
        path = folder / f"{hashlib.sha256(url.encode()).hexdigest()[:16]}-{last[-80:] or 'rows'}"
    if path.is_file():
        return path

    def check(part: Path) -> None:  # a page or half a file is not kept
        entry = entry_of(part, path.name)
        with progress(f"looking at {path.name}") if entry.size >= LONG else nullcontext() as show:
            for file in data_files(entry)[0]:
                for _ in file.rows(partial(show, total=entry.length) if show else None, skip_bad=skip_bad):
                    pass

    wanted = Wanted(
        url=url,
        path=path,
        error=DataError,
        advice="Fetch it by other means and give the path of the file instead.",
        largest=LARGEST_FETCHED,
        check=check,
    )
    return download(wanted)


def _in_folder(folder: Path) -> tuple[list[Entry], list[str]]:
    if (folder / RUN_FILE).is_file():
        raise DataError(
            f"{folder} is a folder of a run, not of data; wanted the rows themselves, such as the run's "
            f"{folder / 'responses' / 'tuned.json'}"
        )
    try:
        inside = sorted(one for one in folder.iterdir() if not one.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: cannot be read: {error.strerror or error}") from error
    files = [one for one in inside if one.is_file() and is_named_as_data(one.name)]
    others = [one.name + ("/" if one.is_dir() else "") for one in inside if one not in files]
    if not files:
        folders = [str(one) for one in inside if one.is_dir()]
        more = f"; it has folders, of which one may be meant:\n{listed(folders)}" if folders else ""
        raise DataError(f"{folder} is a folder without data files ({', '.join(SUFFIXES)}, as they are or packed){more}")
    return [entry_of(file) for file in files], _passed_over(str(folder), others)


def _globbed(pattern: Path) -> list[Path]:
    root = Path(pattern.anchor or ".")
    try:
        return sorted(one for one in root.glob(str(pattern.relative_to(pattern.anchor))) if one.name[:1] != ".")
    except (ValueError, NotImplementedError, OSError) as error:
        raise DataError(f"{pattern}: not a pattern of file names: {error}") from error


def _matching(pattern: Path) -> tuple[list[Entry], list[str]]:
    found = _globbed(pattern)
    files = [one for one in found if one.is_file()]
    if not files:
        raise DataError(f"{pattern}: no file of that name, and none that this is a pattern of")
    named = [one for one in files if is_named_as_data(one.name)] or files
    others = [one.name + ("/" if one.is_dir() else "") for one in found if one not in named]
    return [entry_of(file) for file in named], _passed_over(str(pattern), others)


def _passed_over(name: str, others: list[str]) -> list[str]:
    if not others:
        return []
    return [f"{name}: passed over: {', '.join(others[:10])}{', ...' if len(others) > 10 else ''}"]
