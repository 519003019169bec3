"""Rows of Parquet and Arrow IPC (feather), by pyarrow, a thousand at a time; every value as JSON has it.

Times, dates and decimal numbers become text, NaN (pandas' word for a missing number) becomes null. Bytes become text
where they are UTF-8, as older writers of Parquet have it; images and other bytes are refused by their column's name.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator
from typing import IO, Any

from instil.data.files.faults import Faults
from instil.data.files.json_rows import Rows
from instil.data.files.packing import BOMB_RATIO, EXTRA
from instil.errors import DataError, counted

AT_ONCE = 1000  # rows that are Python objects at the same time
MANY = 500_000  # values, from which on it matters how few bytes they came of
DAMAGE = (OSError, ValueError, OverflowError, MemoryError, SystemError)  # what pyarrow raises besides its own
KINDS = {"parquet": "a Parquet file", "arrow": "an Arrow file", "arrow stream": "an Arrow stream"}
Seekable = Callable[[], IO[bytes]]
Fault = Callable[[str], object]  # told what is wrong with the row at hand
Clean = Callable[[Any, str, Fault], Any]  # makes a value, which is found by these keys, such as JSON has
Shown = Callable[[float], object]  # told which part of the rows has been read


def arrow_rows(open_: Seekable, name: str, kind: str, show: Shown | None = None, *, skip_bad: bool = False) -> Rows:
    """The rows of a file and their numbers.

    Args:
        open_: opens the file so that it can be read from any place.
        name: the file's, for messages.
        kind: a key of `KINDS`.
        show: is told how far it has come.
        skip_bad: whether rows with numbers that JSON does not have are passed on as `Unreadable`.

    Raises:
        DataError: the file is damaged, or a column holds what has no place in JSON.
    """
    pa = _pyarrow(name, kind)
    faults = Faults(name, "numbers that JSON does not have", skip_bad=skip_bad)
    found: list[str] = []
    row = values = 0
    with open_() as file:
        try:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            schema, batches = _opened(file, kind)
            wanted = _as_json(schema, name)
            loose = {field.name: clean for field in schema if (clean := _cleaner(field.type))}
            for batch, part in batches:
                batch.validate(full=True)  # pyarrow believes a file's offsets, wherever they lead
                converted = _converted(batch, wanted, name)
                values += batch.num_rows + sum(map(_count, converted.columns))
                if values > max(MANY, BOMB_RATIO * size):  # nulls, and what is written as a run, take no bytes
                    raise DataError(
                        f"{name}: {KINDS[kind]} of {size:,} bytes with {values:,} values or more, as files of rows "
                        "never have (damaged, or a bomb?); fetch or write it again"
                    )
                for value in converted.to_pylist():
                    for column, clean in loose.items():
                        value[column] = clean(value[column], column, found.append)
                    if found:
                        value = faults.row(row, value, found)  # noqa: PLW2901
                        found.clear()
                    if not faults:
                        yield value, f"row {row}"
                    row += 1
                if show is not None:
                    show(part)
        except (pa.ArrowException, *DAMAGE) as error:
            raise _damaged(name, kind, error, row) from error
    faults.check(row)


def schema_notes(open_: Seekable, name: str, kind: str) -> list[str]:
    """Which columns are read as text though they are none, in words; raises as `arrow_rows`."""
    pa = _pyarrow(name, kind)
    with open_() as file:
        try:
            schema, _ = _opened(file, kind)
            changed = [
                f"{old.name!r} ({old.type})"
                for old, new in zip(schema, _as_json(schema, name), strict=True)
                if new != _stored(old.type)
            ]
        except (pa.ArrowException, *DAMAGE) as error:
            raise _damaged(name, kind, error) from error
    return [f"{name}: read as text: {', '.join(changed[:10])}{', ...' if len(changed) > 10 else ''}"] if changed else []


def _pyarrow(name: str, kind: str) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(f"{name}: {KINDS[kind]}, which pyarrow reads; install it with: {EXTRA}") from error
    return pyarrow


def _damaged(name: str, kind: str, error: Exception, read: int = 0) -> DataError:
    said = textwrap.shorten(str(error), 200, placeholder="...").rstrip(".") or type(error).__name__
    after = f" after {counted(read, 'row')}" if read else ""
    return DataError(f"{name}: {KINDS[kind]} that is damaged or cut off{after} ({said}); fetch or write it again")


def _opened(file: IO[bytes], kind: str) -> tuple[Any, Iterator[tuple[Any, float]]]:
    """A file's schema, and its rows in batches, each with the part that has been read when it is done."""
    import pyarrow as pa

    if kind == "parquet":
        import pyarrow.parquet as pq

        parquet = pq.ParquetFile(file)
        return parquet.schema_arrow, _counted(parquet.iter_batches(AT_ONCE), parquet.metadata.num_rows)
    if kind == "arrow":
        reader = pa.ipc.open_file(file)
        count = reader.num_record_batches
        return reader.schema, _cut((reader.get_batch(at), (at + 1) / count) for at in range(count))
    stream = pa.ipc.open_stream(file)
    return stream.schema, _cut((batch, 0.0) for batch in stream)


def _counted(batches: Iterator[Any], rows: int) -> Iterator[tuple[Any, float]]:
    done = 0
    for batch in batches:
        done += batch.num_rows
        yield batch, done / rows


def _cut(batches: Iterator[tuple[Any, float]]) -> Iterator[tuple[Any, float]]:
    for batch, part in batches:
        for start in range(0, batch.num_rows, AT_ONCE):
            yield batch.slice(start, AT_ONCE), part


def _count(column: Any) -> int:
    """How many values Python would have of a column, those inside of others included."""
    import pyarrow as pa

    if pa.types.is_struct(column.type):
        return len(column) + sum(map(_count, column.flatten()))
    if pa.types.is_map(column.type):
        start: int = column.offsets[0].as_py()
        length: int = column.offsets[-1].as_py() - start
        return len(column) + length + _count(column.items.slice(start, length))
    return len(column) + (_count(column.flatten()) if pa.types.is_nested(column.type) else 0)


def _as_json(schema: Any, name: str) -> list[Any]:
    """The type of each column once its values are such as JSON has."""
    twice = [column for column, times in Counter(schema.names).items() if times > 1]
    if twice:
        raise DataError(f"{name}: has the column {twice[0]!r} twice; write it with a name for each column")
    wanted = []
    for field in schema:
        found = _json_type(field.type)
        if found is None:
            raise DataError(
                f"{name}: column {field.name!r} is of the type {field.type}, which has no place in JSON; write the "
                f"file without it (pandas: df.drop(columns=[{field.name!r}]))"
            )
        wanted.append(found)
    return wanted


def _stored(found: Any) -> Any:
    """The type of a column's values, whichever way they are kept."""
    import pyarrow as pa

    if isinstance(found, pa.BaseExtensionType):
        return _stored(found.storage_type)
    return _stored(found.value_type) if pa.types.is_dictionary(found) else found


def _json_type(found: Any) -> Any:
    """The type that an Arrow type is turned into; None if there is none."""
    import pyarrow as pa

    is_ = pa.types
    found = _stored(found)
    if is_.is_nested(found):
        return _json_nested(found)
    if is_.is_decimal(found) or is_.is_date(found) or is_.is_time(found) or is_.is_timestamp(found):
        return pa.string()
    if is_.is_binary(found) or is_.is_large_binary(found) or is_.is_binary_view(found):
        return pa.large_string()
    if is_.is_float16(found):
        return pa.float32()
    texts = (is_.is_string, is_.is_large_string, is_.is_string_view)
    as_it_is = (is_.is_null, is_.is_boolean, is_.is_integer, is_.is_floating, *texts)
    return found if any(is_such(found) for is_such in as_it_is) else None


def _json_nested(found: Any) -> Any:
    import pyarrow as pa

    is_ = pa.types
    if is_.is_map(found):
        key, item = _json_type(found.key_type), _json_type(found.item_type)
        return pa.map_(key, item) if item is not None and (is_.is_string(key) or is_.is_large_string(key)) else None
    if is_.is_struct(found):
        fields = [(field.name, _json_type(field.type)) for field in found]
        if any(inner is None for _, inner in fields) or len({key for key, _ in fields}) < len(fields):
            return None
        return found if all(old.type == new for old, (_, new) in zip(found, fields, strict=True)) else pa.struct(fields)
    if is_.is_list(found) or is_.is_large_list(found) or is_.is_fixed_size_list(found):
        inner = _json_type(found.value_type)
        if inner is None or inner == found.value_type:
            return None if inner is None else found
        return pa.large_list(inner) if is_.is_large_list(found) else pa.list_(inner)
    return None  # unions, and what is encoded by runs


def _converted(batch: Any, wanted: list[Any], name: str) -> Any:
    import pyarrow as pa

    columns = []
    for column, field, target in zip(batch.columns, batch.schema, wanted, strict=True):
        if field.type == target:
            columns.append(column)
            continue
        try:
            storage = column.storage if isinstance(field.type, pa.BaseExtensionType) else column
            columns.append(storage.cast(target))
        except pa.ArrowException as error:
            bytes_ = "UTF8" in str(error)
            raise DataError(
                f"{name}: column {field.name!r} "
                + (
                    f"holds bytes that are no text ({field.type})"
                    if bytes_
                    else f"({field.type}) cannot be read as text"
                )
                + f"; write the file without it (pandas: df.drop(columns=[{field.name!r}]))"
            ) from error
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _cleaner(found: Any) -> Clean | None:
    """What makes values of a type such as JSON has; None where they are so already."""
    import pyarrow as pa

    found = _stored(found)
    if pa.types.is_floating(found):
        return _clean_number
    if pa.types.is_map(found):
        return _clean_map(_cleaner(found.item_type))
    if pa.types.is_struct(found):
        return _clean_struct({field.name: clean for field in found if (clean := _cleaner(field.type))})
    if pa.types.is_nested(found):
        return _clean_list(_cleaner(found.value_type))
    return None


def _clean_number(value: Any, key: str, fault: Fault) -> Any:
    if value is None or math.isfinite(value):
        return value
    if math.isinf(value):
        fault(f"{key}: {value} is not JSON")
    return None


def _clean_map(item: Clean | None) -> Clean:
    def clean(value: Any, key: str, fault: Fault) -> Any:
        if value is None:
            return None
        names = Counter(name for name, _ in value)
        for name, times in names.items():
            if times > 1:
                fault(f"{key} has the key {name!r} twice")
        return {name: item(each, f"{key}.{name}", fault) if item else each for name, each in value}

    return clean


def _clean_struct(parts: dict[str, Clean]) -> Clean | None:
    def clean(value: Any, key: str, fault: Fault) -> Any:
        if value is None:
            return None
        return {
            name: parts[name](each, f"{key}.{name}", fault) if name in parts else each for name, each in value.items()
        }

    return clean if parts else None


def _clean_list(part: Clean | None) -> Clean | None:
    def clean(value: Any, key: str, fault: Fault) -> Any:
        if value is None or part is None:
            return value
        return [part(each, f"{key}[{at}]", fault) for at, each in enumerate(value)]

    return clean if part else None
