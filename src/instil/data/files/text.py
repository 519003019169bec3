"""Text from bytes, piece by piece: by its byte order mark, or by where its NUL bytes stand, or as UTF-8."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from instil.data.files.packing import Stream
from instil.errors import DataError

PIECE = 1 << 20  # bytes read at once
LARGEST_ROW = 64 * 1024**2  # characters of one row, or of one line
MARKS = (
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (b"\xef\xbb\xbf", "utf-8"),
)


@dataclass(frozen=True, slots=True)
class Encoding:
    """How text is encoded, the length of its byte order mark, and whether that was concluded without one."""

    codec: str = "utf-8"
    mark: int = 0
    concluded: bool = False


def encoding_of(head: bytes) -> Encoding:
    """The encoding of a text by its first bytes.

    >>> encoding_of("Grüße".encode("utf-16")).codec, encoding_of("ab".encode("utf-16-be")).codec
    ('utf-16-le', 'utf-16-be')
    """
    for mark, codec in MARKS:
        if head.startswith(mark):
            return Encoding(codec, len(mark))
    sample = head[: len(head) // 4 * 4][:4096] or head
    if b"\0" in sample:
        for codec, width, letter in (
            ("utf-32-le", 4, 0),
            ("utf-32-be", 4, 3),
            ("utf-16-le", 2, 0),
            ("utf-16-be", 2, 1),
        ):
            columns = [sample[place::width] for place in range(width)]
            nul = [column.count(0) / max(1, len(column)) for column in columns]
            others = [share for place, share in enumerate(nul) if place != letter]
            if nul[letter] < 0.05 and min(others) > 0.4:
                return Encoding(codec, 0, concluded=True)
    return Encoding()


def decoded(stream: Stream, encoding: Encoding) -> Iterator[str]:
    """The text of a file, about a MiB at a time.

    Raises:
        DataError: a byte does not belong to the encoding; its place is named.
    """
    decoder = codecs.getincrementaldecoder(encoding.codec)("strict")
    at, line = 0, 1  # of the next byte that the decoder has not seen
    while at < encoding.mark:
        at += len(stream.read(encoding.mark - at))
    while True:
        data = stream.read(PIECE)
        held = len(decoder.getstate()[0])
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            raise _not_text(stream.name, encoding, error, at - held, line) from error
        at += len(data)
        line += text.count("\n")
        if text:
            yield text
        if not data:
            return


def _not_text(name: str, encoding: Encoding, error: UnicodeDecodeError, at: int, line: int) -> DataError:
    codec = encoding.codec.upper()
    cut = error.reason in ("unexpected end of data", "truncated data")
    line += error.object[: error.start].count("\n".encode(encoding.codec))
    return DataError(
        f"{name}: byte {at + error.start} (0x{error.object[error.start]:02x}) in line {line} is not {codec}; "
        + ("is the file cut off? If not, " if cut else "")
        + "save the file as UTF-8 and try again"
    )


def lines_in(name: str, pieces: Iterable[str], *, keep_ends: bool = False) -> Iterator[str]:
    """Lines of a text that comes in pieces, cut at line feeds only; other separators may stand in JSON's strings.

    With ``keep_ends`` a line keeps its end, and a text without any line feed is cut at carriage returns.

    Raises:
        DataError: a line is longer than a row may be.
    """
    rest: list[str] = []
    length = 0
    end = ""
    for piece in pieces:
        if not end:
            end = "\r" if keep_ends and "\n" not in piece and "\r" in piece[:-1] else "\n"
        first, *others = piece.split(end)
        if others:
            tail = end if keep_ends else ""
            yield "".join([*rest, first, tail])
            for line in others[:-1]:
                yield line + tail
            rest, length = [], 0
            first = others[-1]
        rest.append(first)
        length += len(first)
        if length > LARGEST_ROW:
            raise DataError(f"{name}: a line of more than {LARGEST_ROW:,} characters; wanted one row a line")
    if length:
        yield "".join(rest)
