"""Files from elsewhere, landed whole or not at all.

A download goes on where it was cut, is held against its length and its hash, is looked at by a check of
the caller's, and only then takes its name.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from instil.errors import UserError
from instil.files import json_object_or_empty, sha256_of, write_json

if TYPE_CHECKING:
    import httpx2

    from instil.screen import Bytes

GIB = 1024**3
TRIES = 4  # in a row without a byte gained
FIRST_WAIT = 0.5  # seconds before the second try; doubled each time
LONGEST_WAIT = 8.0
TIMEOUT = 30.0  # seconds without a byte
QUIET_FOR = 2.0  # seconds before progress is shown where stderr is no terminal
SAID_EVERY = 10.0
PASSING = (408, 425, 429)  # answers besides 5xx that may be another one soon
PAGES = (b"<!doctype html", b"<html", b"<?xml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """One file: whence, whither, and what it must be.

    ``check`` looks at the complete file before it takes its name, and raises ``error`` if it will not do.
    ``advice`` ends every message: what the user can do instead.
    """

    url: str
    path: Path
    error: type[UserError]
    advice: str = ""
    sha256: str = ""
    smallest: int = 0
    largest: int = 64 * GIB
    check: Callable[[Path], object] | None = None


class _Passing(Exception):
    """A failure after which another try is worth while."""


def cache_folder() -> Path:
    """Where fetched files are kept: ``$INSTIL_HOME``, or ``~/.cache/instil``."""
    named = os.environ.get("INSTIL_HOME")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "instil"


def download(wanted: Wanted) -> Path:
    """Fetch a file, unless it is there already; returns its path.

    Raises:
        UserError: of the class ``wanted.error``, in one line: it could not be had, or is not what was wanted.
    """
    from filelock import FileLock

    try:
        wanted.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(wanted.path.parent / ".lock"):  # of two processes one fetches and the other finds it there
            if not wanted.path.exists():
                _fetch(wanted, _Part(wanted))
    except OSError as error:
        raise wanted.error(
            f"{error.filename or wanted.path.parent}: cannot be written: {error.strerror or error}; "
            "set INSTIL_HOME to a folder with room that you may write to"
        ) from error
    return wanted.path


def _fetch(wanted: Wanted, part: _Part) -> None:
    import httpx2
    from tenacity import RetryCallState, Retrying, retry_if_exception_type, wait_exponential

    best, fruitless = part.size, 0

    def enough(state: RetryCallState) -> bool:
        nonlocal best, fruitless
        fruitless = 0 if part.size > best else fruitless + 1
        best = max(best, part.size)
        return fruitless >= TRIES

    waits = wait_exponential(multiplier=FIRST_WAIT, max=LONGEST_WAIT)
    retrying = Retrying(stop=enough, wait=waits, retry=retry_if_exception_type(_Passing), reraise=True)
    with httpx2.Client(follow_redirects=True, timeout=TIMEOUT) as client, progress(wanted.path.name) as show:
        try:
            retrying(_receive, wanted, part, client, show)
        except _Passing as error:
            kept = f"; {megabytes(part.size)} are kept, the next try goes on from there" if part.can_go_on else ""
            raise _refusal(wanted, f"{error}{kept}") from error
    _check(wanted, part)
    part.path.replace(wanted.path)
    part.forget()


def _receive(wanted: Wanted, part: _Part, client: httpx2.Client, show: Bytes) -> None:
    """One try: ask for what is missing and add it to the part."""
    import httpx2

    if part.size and part.size == part.total:
        return  # complete already; the process ended before it could take its name
    headers = {"Accept-Encoding": "identity", "User-Agent": "instil"}
    if part.can_go_on:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.version}
    try:
        with client.stream("GET", wanted.url, headers=headers) as answer:
            _begin(wanted, part, answer)
            for piece in answer.iter_bytes():  # as they come: pieces of a set size would be lost with a cut
                part.add(piece)
                if part.size > wanted.largest:
                    part.discard()
                    raise _refusal(wanted, f"it is larger than {megabytes(wanted.largest)}, the most that is fetched")
                show(part.size, part.total)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        reason = str(error).strip().splitlines()
        raise _Passing(f"{type(error).__name__}: {reason[0] if reason else 'no answer'}") from error
    finally:
        part.close()
    have, total = part.size, part.total
    if total is not None and have != total:
        if have > total:
            part.discard()
        raise _Passing(f"{have:,} bytes came, {total:,} were announced")


def _begin(wanted: Wanted, part: _Part, answer: Any) -> None:
    """Look at an answer's head and open the part accordingly."""
    status = int(answer.status_code)
    if status in PASSING or status >= 500:
        raise _Passing(f"the server answered {status} {answer.reason_phrase}")
    if status == 416:  # our part does not belong to the file there
        part.discard()
        raise _Passing("the file there has changed")
    if status not in (200, 206):
        raise _refusal(wanted, f"the server answered {status} {answer.reason_phrase}")
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"  # then lengths are not of our bytes
    version = _version(answer.headers)
    if status == 206:
        start, whole = _range(answer.headers.get("Content-Range", ""))
        same = part.total in (None, whole) and version in ("", part.version)
        if encoded or not same or start != part.size:
            part.discard()
            raise _Passing("the server sent another piece than was asked for")
        part.open(whole)
    else:
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() and not encoded else None
        _check_size(wanted, total)
        part.begin("" if encoded else version, total)
    if part.total is not None:
        missing, free = part.total - part.size, shutil.disk_usage(wanted.path.parent).free
        if missing > free:
            raise _refusal(wanted, f"it needs {megabytes(missing)} on disk, {megabytes(free)} are free")


def _check_size(wanted: Wanted, size: int | None) -> None:
    if size is not None and not wanted.smallest <= size <= wanted.largest:
        limit = f"at least {wanted.smallest:,}" if size < wanted.smallest else f"at most {wanted.largest:,}"
        raise _refusal(wanted, f"the file there has {size:,} bytes; wanted {limit}")


def _check(wanted: Wanted, part: _Part) -> None:
    """Whether a complete part is what was wanted; if not, nothing of it is kept."""
    try:
        _check_size(wanted, part.size)
        with part.path.open("rb") as file:
            start = file.read(512).lstrip().lower()
        if start.startswith(PAGES):
            raise _refusal(wanted, "a web page came instead of the file")
        if wanted.sha256 and (found := sha256_of(part.path)) != wanted.sha256:
            raise _refusal(wanted, f"what came has the hash {found[:12]}..., wanted {wanted.sha256[:12]}...")
        if wanted.check is not None:
            wanted.check(part.path)
    except UserError as error:
        part.discard()
        if str(part.path) in str(error):
            raise _refusal(wanted, str(error).replace(str(part.path), "what came")) from error
        raise


def _refusal(wanted: Wanted, reason: str) -> UserError:
    advice = f". {wanted.advice}" if wanted.advice else ""
    return wanted.error(f"{wanted.url}: could not be fetched: {reason}{advice}")


def _version(headers: Mapping[str, str]) -> str:
    """What tells one state of a file from another: a strong ETag, or the time of its last change."""
    tag = headers.get("ETag", "")
    return tag if tag.startswith('"') else headers.get("Last-Modified", "")


def _range(text: str) -> tuple[int, int]:
    """First byte and whole length of a Content-Range.

    >>> _range("bytes 5-9/10"), _range("nonsense")
    ((5, 10), (-1, -1))
    """
    span, _, total = text.removeprefix("bytes ").partition("/")
    start = span.partition("-")[0]
    return (int(start), int(total)) if start.isdigit() and total.isdigit() else (-1, -1)


class _Part:
    """What has come of a file so far, and a note of which state of which address it is."""

    def __init__(self, wanted: Wanted) -> None:
        self.path = wanted.path.with_name(wanted.path.name + ".part")
        self._note = wanted.path.with_name(wanted.path.name + ".part.json")
        self._url = wanted.url
        self._file: Any = None
        self.version = ""
        self.total: int | None = None
        self.size = 0
        note = json_object_or_empty(self._note)
        size = self.path.stat().st_size if self.path.is_file() else 0
        if size and note.get("url") == self._url and note.get("version") and size <= (note.get("total") or size):
            self.version, self.total, self.size = str(note["version"]), note.get("total"), size

    @property
    def can_go_on(self) -> bool:
        """Whether the rest can be asked for: without a version nobody knows that it is of the same file."""
        return bool(self.size and self.version)

    def begin(self, version: str, total: int | None) -> None:
        """Start from nothing, with a file of that version and length."""
        self.discard()
        self.version, self.total = version, total
        write_json(self._note, {"url": self._url, "version": version, "total": total}, ascii_only=True)
        self._file = self.path.open("wb")

    def open(self, total: int) -> None:
        """Go on at the end of what is there, towards a length."""
        self.total = total
        self._file = self.path.open("ab")

    def add(self, piece: bytes) -> None:
        """More of the file."""
        self._file.write(piece)
        self.size += len(piece)

    def close(self) -> None:
        """Let go of the file; what was added is on disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None

    def discard(self) -> None:
        """Forget what came."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self.path.unlink(missing_ok=True)
        self.size, self.version, self.total = 0, "", None
        self.forget()

    def forget(self) -> None:
        """Remove the note."""
        self._note.unlink(missing_ok=True)


# A manifest says what was fetched, so that a later change is noticed.


def record(manifest: Path, path: Path, url: str) -> None:
    """Write down a fetched file's size, time and hash."""
    known = json_object_or_empty(manifest)
    stat = path.stat()
    entry = {"url": url, "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": sha256_of(path)}
    write_json(manifest, {**known, path.name: entry}, ascii_only=True)


def recorded(manifest: Path, path: Path) -> bool | None:
    """Whether a file is still what was fetched; None if nothing is written down about it.

    A file of the same size and time is believed to be the same; else its hash decides, and the new time is
    written down, so that a copied folder is not hashed at every use.
    """
    known = json_object_or_empty(manifest)
    entry = known.get(path.name)
    if not isinstance(entry, dict):
        return None
    stat = path.stat()
    if stat.st_size != entry.get("bytes"):
        return False
    if stat.st_mtime_ns != entry.get("mtime_ns"):
        if sha256_of(path) != entry.get("sha256"):
            return False
        with suppress(OSError):  # a folder that may only be read
            write_json(manifest, {**known, path.name: {**entry, "mtime_ns": stat.st_mtime_ns}}, ascii_only=True)
    return True


# What is seen of it, on stderr.


@contextmanager
def progress(name: str) -> Iterator[Bytes]:
    """A bar with speed and time left; where stderr is no terminal, now and then a line, after two seconds."""
    if not sys.stderr.isatty():
        yield _lines(name)
        return
    from instil.screen import Screen

    with Screen().bytes_bar(name) as show:
        yield show


def _lines(name: str) -> Bytes:
    began, from_byte, next_at = time.monotonic(), -1, time.monotonic() + QUIET_FOR

    def show(have: int, total: int | None) -> None:
        nonlocal from_byte, next_at
        now = time.monotonic()
        if from_byte < 0:
            from_byte = have
        if now < next_at:
            return
        next_at = now + SAID_EVERY
        speed = (have - from_byte) / (now - began)
        of = f" of {megabytes(total)}" if total else ""
        left = f", about {(total - have) / speed:,.0f} s left" if total and speed else ""
        print(f"{name}: {megabytes(have)}{of}{left}", file=sys.stderr)

    return show


def megabytes(count: int) -> str:
    """A size for people.

    >>> megabytes(1_419_292_672), megabytes(90)
    ('1,419.3 MB', '90 bytes')
    """
    return f"{count / 1e6:,.1f} MB" if count >= 100_000 else f"{count:,} bytes"
