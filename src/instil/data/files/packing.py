"""The bytes of a data file, unpacked as they are read: gzip, bzip2, xz, zstd, and the members of zip archives.

Nothing is unpacked to disk but what must be read from its end (Parquet), and that into a nameless temporary file.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import stat
import struct
import tempfile
import textwrap
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from instil.errors import DataError, counted, listed

LARGEST_FILE = 2 * 1024**3  # bytes of what is held whole: a pipe, or one JSON object
BOMB_SIZE = 256 * 1024**2  # bytes, from which on it matters how much smaller they were when packed
BOMB_RATIO = 200  # text that anybody could learn from is packed to a fortieth at best
MOST_MEMBERS = 10_000
EXTRA = "pip install 'instil[data]'"
PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
PACKED_SUFFIXES = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd", ".zstd": "zstd", ".zip": "zip"}
FAULTS = (  # what the unpackers raise over damaged data; of zip archives zipfile decodes names and numbers anew
    OSError, EOFError, ValueError, RuntimeError, MemoryError, struct.error, zlib.error, lzma.LZMAError,
    zipfile.BadZipFile,
)  # fmt: skip
OFFICE = {"[Content_Types].xml": "an Excel or Word file", "mimetype": "an OpenDocument file"}

Watch = Callable[[int], object]  # told how many bytes of the file on disk have been read


@dataclass(frozen=True, slots=True)
class Entry:
    """One file, or one member of a zip archive, before anybody has looked into it.

    ``name`` is what messages call it, ``label`` what its rows call it, ``size`` its bytes as they lie there, and
    ``unpacked`` what a zip archive says of them unpacked.
    """

    name: str
    label: str
    open: Callable[[], IO[bytes]]
    size: int
    path: Path | None = None
    unpacked: int = 0

    @property
    def length(self) -> int:
        """How many bytes `open` gives."""
        return self.unpacked or self.size


def entry_of(path: Path, label: str = "") -> Entry:
    """A file on disk. What comes through a pipe is read at once, because it cannot be read twice.

    Raises:
        DataError: it cannot be read, or is no file.
    """
    try:
        status = path.stat()
        if stat.S_ISFIFO(status.st_mode):
            with path.open("rb") as pipe:
                held = pipe.read(LARGEST_FILE + 1)
            check_whole(str(path), len(held))
            return Entry(str(path), label or path.name, lambda: BytesIO(held), len(held))
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path}: is neither a file nor a folder; wanted a file of rows")
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    return Entry(str(path), label or path.name, lambda: path.open("rb"), status.st_size, path)


def check_whole(name: str, size: int) -> None:
    """Refuse to hold more than `LARGEST_FILE` in memory.

    Raises:
        DataError: it is more.
    """
    if size > LARGEST_FILE:
        raise DataError(
            f"{name}: more than {LARGEST_FILE / 1024**3:.1f} GiB, the most that is held in memory at once; "
            "a file with one JSON object a line (JSONL) may be of any size"
        )


def packer_of(head: bytes) -> str:
    """How bytes are packed, by their first few; "" if they are not."""
    return next((packer for magic, packer in PACKERS.items() if head.startswith(magic)), "")


class Stream:
    """The bytes of an entry from its start, unpacked; ``packing`` names its packers from the outside in.

    Every fault of a packed file, and one that holds suspiciously much, is a `DataError` with the file's name.
    """

    def __init__(self, entry: Entry, packing: tuple[str, ...] = (), watch: Watch | None = None) -> None:
        self.name = entry.name
        self._size, self._packing, self._watch, self._read = entry.size, packing, watch, 0
        try:
            self._raw = entry.open()
        except FAULTS as error:
            raise DataError(f"{self.name}: cannot be read: {_reason(error)}") from error
        self._layers: list[Any] = [self._raw]
        try:
            for packer in packing:
                self._layers.append(_unpacked(self._layers[-1], packer, self.name))
        except DataError:
            self.close()
            raise

    def read(self, size: int) -> bytes:
        """At most so many bytes more; none at the end."""
        try:
            data = cast(bytes, self._layers[-1].read(size))
            if self._watch is not None:
                self._watch(self._raw.tell())
        except FAULTS as error:
            if not self._packing and isinstance(error, OSError):
                raise DataError(f"{self.name}: cannot be read: {_reason(error)}") from error
            packing = " and ".join(self._packing) or "zip"
            cut = isinstance(error, EOFError) or "truncated" in str(error).lower()
            what = f"its {packing} data end too early (is the file cut off?)" if cut else ""
            what = what or f"damaged {packing} data ({_reason(error)})"
            raise DataError(f"{self.name}: {what}; fetch it or pack it again") from error
        self._read += len(data)
        if self._read > max(BOMB_SIZE, BOMB_RATIO * self._size):
            raise DataError(
                f"{self.name}: unpacks to more than {BOMB_RATIO} times its {self._size:,} bytes, as rows never do "
                "(a zip bomb?); unpack it yourself and look at it, then give the path of what was in it"
            )
        return data

    def close(self) -> None:
        """Let go of the file."""
        for layer in reversed(self._layers):
            layer.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _reason(error: BaseException) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return textwrap.shorten(str(said), 160, placeholder="...").rstrip(".")


def _unpacked(file: Any, packer: str, name: str) -> Any:
    if packer == "zstd":
        try:
            import pyarrow
        except ImportError as error:
            raise DataError(f"{name}: is packed with zstd, which pyarrow reads; install it with: {EXTRA}") from error
        return pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
    if packer == "gzip":
        return gzip.GzipFile(fileobj=file, mode="rb")
    return bz2.BZ2File(file) if packer == "bzip2" else lzma.LZMAFile(file)


def unpacked_file(entry: Entry, packing: tuple[str, ...]) -> IO[bytes]:
    """A file that can be read from any place: the entry's own, or a temporary one with what was packed in it."""
    if not packing and entry.path is not None:
        return entry.open()
    whole = tempfile.TemporaryFile()  # noqa: SIM115  # the caller closes it
    try:
        with Stream(entry, packing) as stream:
            while data := stream.read(1 << 20):
                whole.write(data)
    except OSError as error:
        whole.close()
        free = shutil.disk_usage(tempfile.gettempdir()).free
        raise DataError(
            f"{entry.name}: cannot be unpacked into {tempfile.gettempdir()} ({free:,} bytes free): {_reason(error)}; "
            "unpack it yourself, or set TMPDIR to a folder with room"
        ) from error
    except DataError:
        whole.close()
        raise
    whole.seek(0)
    return whole


def members_of(entry: Entry) -> list[Entry]:
    """The files in a zip archive as entries of their own, without those that systems hide in it.

    Raises:
        DataError: it is damaged, encrypted, of an office program, or names files outside of itself.
    """
    if entry.path is None:
        raise DataError(f"{entry.name}: a zip archive inside of another file; unpack that first")
    try:
        with zipfile.ZipFile(entry.path) as archive:
            infos = archive.infolist()
    except FAULTS as error:
        raise DataError(f"{entry.name}: a zip archive that is damaged or cut off ({_reason(error)})") from error
    names = [info.filename for info in infos]
    if not all(names):
        raise DataError(f"{entry.name}: a zip archive that is damaged (a file in it has no name)")
    for mark, what in OFFICE.items():
        if mark in names:
            raise DataError(f"{entry.name}: is {what}, not a file of rows; save the sheet as CSV (UTF-8) and give that")
    if any(name.endswith("/data.pkl") or name.endswith(".npy") for name in names):
        raise DataError(f"{entry.name}: holds tensors or arrays (PyTorch or NumPy), not rows; give a file of rows")
    if len(infos) > MOST_MEMBERS:
        raise DataError(
            f"{entry.name}: a zip archive with {counted(len(infos), 'file')}; unpack it and give the folder"
        )
    outside = [f"{name!r}" for name in names if _leads_outside(name)]
    if outside:
        raise DataError(
            f"{entry.name}: a zip archive that names files outside of itself, as no honest one does:\n{listed(outside)}"
        )
    files = [info for info in infos if not info.is_dir()]
    kept = [info for info in files if not any(p.startswith(".") or p == "__MACOSX" for p in info.filename.split("/"))]
    if any(info.flag_bits & 1 for info in kept):
        raise DataError(f"{entry.name}: a zip archive with a password; unpack it and give the path of what was in it")
    return [_member(entry, info) for info in kept]


def _leads_outside(name: str) -> bool:
    parts = PurePosixPath(name.replace("\\", "/")).parts
    return ".." in parts or name.startswith(("/", "\\")) or (bool(parts) and parts[0].endswith(":"))


def _member(entry: Entry, info: zipfile.ZipInfo) -> Entry:
    path = cast(Path, entry.path)

    def opened() -> IO[bytes]:
        with zipfile.ZipFile(path) as archive:  # the member keeps the file open for as long as it needs it
            return archive.open(info)

    name, label = f"{entry.name}/{info.filename}", f"{entry.label}/{info.filename}"
    return Entry(name, label, opened, info.compress_size, unpacked=info.file_size)
