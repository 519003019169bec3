"""Text from bytes, piece by piece: by its byte order mark, or by where its first NUL bytes stand, or as UTF-8."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from instil.data.files.packing import Stream
from instil.errors import DataError

PIECE = 1 << 20  # bytes read at once
MARKED, FIRST_MARK = "instil-marked", 0xDC00  # how bytes that are no text are decoded where they are to be left out
LARGEST_ROW = 64 * 1024**2  # characters of one row, or of one line
# RFC 4627, section 3: rows begin with two characters of ASCII, a bracket or a column's name.
NULS: dict[tuple[bool, ...], str] = {
    (False, True, True, True): "utf-32-le",
    (True, True, True, False): "utf-32-be",
    (False, True, False, True): "utf-16-le",
    (True, False, True, False): "utf-16-be",
}
LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")
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
    zeros = tuple(byte == 0 for byte in head[:4])
    codec = NULS.get(zeros, "")
    if codec:
        return Encoding(codec, 0, concluded=True)
    return Encoding()


def decoded(stream: Stream, encoding: Encoding, *, skip_bad: bool = False) -> Iterator[str]:
    """The text of a file, about a MiB at a time.

    Args:
        stream: the file from its start.
        encoding: of its text.
        skip_bad: a byte that does not belong to it is passed on as a mark, which `stray` finds; no text has such.

    Raises:
        DataError: a byte does not belong to the encoding; its place is named.
    """
    if skip_bad:
        codecs.register_error(MARKED, _marked)
    decoder = codecs.getincrementaldecoder(encoding.codec)(MARKED if skip_bad else "strict")
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


def _marked(error: UnicodeError) -> tuple[str, int]:
    """Half of a surrogate pair for each byte that is no text: what is decoded otherwise never has one."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(FIRST_MARK + byte) for byte in error.object[error.start : error.end]), error.end


def stray(text: str, encoding: Encoding) -> str:
    r"""What to say of the first byte in a line that is not of its encoding; "" if all are.

    >>> stray("caf\udce9 au lait", Encoding())
    'byte 4 of it (0xe9) is not UTF-8'
    """
    if text.isascii():
        return ""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        at = len(text[: error.start].encode(encoding.codec)) + 1
        return f"byte {at} of it (0x{ord(text[error.start]) - FIRST_MARK:02x}) is not {encoding.codec.upper()}"
    return ""


def _not_text(name: str, encoding: Encoding, error: UnicodeDecodeError, at: int, line: int) -> DataError:
    codec = encoding.codec.upper()
    cut = error.reason in ("unexpected end of data", "truncated data")
    line += error.object[: error.start].count("\n".encode(encoding.codec))
    return DataError(
        f"{name}: byte {at + error.start} (0x{error.object[error.start]:02x}) in line {line} is not {codec}; "
        + ("is the file cut off? If not, " if cut else "")
        + "save the file as UTF-8 and try again"
    )


def lines_in(name: str, pieces: Iterable[str]) -> Iterator[str]:
    """Lines of a text that comes in pieces, without their ends; cut at line feeds, as others may stand in strings.

    Raises:
        DataError: a line is longer than a row may be.
    """
    rest: list[str] = []
    length = 0
    for piece in pieces:
        first, *others = piece.split("\n")
        if others:
            yield "".join([*rest, first])
            yield from others[:-1]
            rest, length = [], 0
            first = others[-1]
        rest.append(first)
        length += len(first)
        _check_line(name, length)
    if length:
        yield "".join(rest)


def lines_with_ends(name: str, pieces: Iterable[str]) -> Iterator[str]:
    """Lines with their ends, of any system, as the csv library wants them; raises as `lines_in`.

    >>> list(lines_with_ends("", ["a\\r", "\\nb\\rc"]))
    ['a\\r\\n', 'b\\r', 'c']
    """
    rest: list[str] = []
    length = 0
    for piece in pieces:
        held = rest.pop() if rest and rest[-1].endswith("\r") else ""
        lines = LINE.findall(held + piece)
        for line in lines[:-1]:
            yield "".join([*rest, line])
            rest = []
            length = 0
        last = lines[-1]
        rest.append(last)
        length += len(last)
        if last.endswith("\n"):
            yield "".join(rest)
            rest, length = [], 0
        _check_line(name, length)
    if rest:
        yield "".join(rest)


def _check_line(name: str, length: int) -> None:
    if length > LARGEST_ROW:
        raise DataError(f"{name}: a line of more than {LARGEST_ROW:,} characters; wanted one row a line")
