"""Files of rows, and rows of any shape."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Iterator
from random import Random
from typing import Any

from instil.data.files.faults import Unreadable
from instil.data.files.rows import open_rows, parse_rows
from instil.data.shapes.mapping import Renames
from instil.data.sources import examples_from
from instil.errors import InstilError
from instil.tasks.pairs.source import pairs_from
from tests.data.files.writers import FORMS
from tests.fuzz.promise import Mutate, Target, file
from tests.fuzz.trees import parsed, tree_mutator

ROWS = [
    {"instruction": "Say hi.", "input": "", "output": "Hi."},
    {"instruction": 'Été, "2"?\nYes', "input": "a,b;c", "output": "4\t5"},
    {"instruction": "3", "input": "  ", "output": "🙂"},
]
NAMES = (  # the first byte of an input chooses one
    "rows.json",
    "rows.jsonl",
    "rows.csv",
    "rows.tsv",
    "rows",
    "rows.parquet",
    "rows.arrow",
    "rows.jsonl.gz",
    "rows.csv.bz2",
    "rows.zip",
    "rows.jsonl.zst",
    "rows.txt",
)
TABLES = ("csv", "tsv", "dat")
BINARY = ("parquet", "feather", "arrow")
PACKED = ("gz", "bz2", "xz", "zst", "zip")


def read(given: bytes) -> None:
    """Rows out of the bytes of a file, and examples out of the rows."""
    name, content = NAMES[given[0] % len(NAMES)] if given else NAMES[0], given[1:]
    if content.startswith(b"PK"):  # a zip archive must lie on disk
        with file(name, content) as path:
            rows = [row.value for row in open_rows(path)]
    else:
        read_leniently(content, name)
        rows = parse_rows(content, name)
    understood(rows[:50])


def read_leniently(content: bytes, name: str) -> None:
    """Rows that cannot be read are left out, and what can be read is the same with and without them."""
    try:
        rows = parse_rows(content, name)
    except InstilError:
        rows = None
    try:
        left = parse_rows(content, name, skip_bad=True)
    except InstilError:
        assert rows is None, "refused where rows may be left out, and read where they may not"
    else:
        assert rows is None or not any(isinstance(row, Unreadable) for row in left)
        assert rows is None or len(left) == len(rows)


def understood(rows: list[Any], mapping: Any = (), **options: bool) -> None:
    """Rows as examples, as questions, and as pairs; each of them may be refused."""
    refused: list[InstilError] = []
    for understand in (
        lambda: examples_from(rows, mapping=mapping, **options),
        lambda: examples_from(rows, need_output=False, skip_bad=True, mapping=mapping),
        lambda: pairs_from(rows, skip_bad=True, mapping=mapping),
    ):
        try:
            found = understand()
            json.dumps([example.as_json() for example in found.examples])
        except InstilError as error:
            refused.append(error)
    if len(refused) == 3:
        raise refused[0]


def seeds_of(*endings: str) -> Any:
    """A reader of the tests' forms whose names end so, each behind the byte that chooses its name."""

    def seeds() -> Iterator[bytes]:
        for name, write in FORMS.items():
            ending = name.rpartition(".")[2]
            if ending in endings:
                usual = next((at for at, one in enumerate(NAMES) if one.endswith(f".{ending}")), 4)
                yield bytes([usual]) + write(ROWS)

    return seeds


def mutate_json(given: bytes, draw: Random, mutate: Mutate) -> bytes:
    """A change of one of the values of a file, or of its bytes."""
    name, content = given[:1] or b"\0", given[1:]
    if draw.random() < 0.4:
        return name + mutate(content, len(content) + 50)
    if draw.random() < 0.1:
        name = bytes([draw.randrange(len(NAMES))])
    lines = content.split(b"\n")
    at = draw.randrange(len(lines))
    try:
        parsed(lines[at])
    except ValueError:
        return name + TREE(content, draw, mutate)
    lines[at] = TREE(lines[at], draw, mutate)
    return name + b"\n".join(lines)


KEYS: tuple[Any, ...] = (
    "instruction",
    "input",
    "output",
    "messages",
    "role",
    "content",
    "user",
    "assistant",
    "system",
    "tool",
    "chosen",
    "rejected",
    "prompt",
    "completion",
    "conversations",
    "from",
    "value",
    "human",
    "gpt",
    "tool_calls",
    "function",
    "arguments",
    "name",
    "tools",
    "history",
    "weight",
    "text",
    "label",
    "columns",
    "data",
    "index",
    "schema",
    "reasoning_content",
    "train",
    "images",
    "task",
    "response",
    "model_response",
    "question",
    "answer",
    "type",
    "function_call",
    "tool_call_id",
    "primaryKey",
    True,
    0.5,
)
CHAT = {
    "messages": [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "2 + 2?"},
        {"role": "assistant", "content": "4", "weight": 1},
    ]
}
CALL = {"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
TOOLS = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "2", "tool_call_id": 7},
        {"role": "assistant", "content": "2", "reasoning_content": "Easy."},
    ],
    "tools": [{"name": "add"}],
}
SHAPES: list[dict[str, Any]] = [
    {"rows": ROWS},
    {"rows": [CHAT, TOOLS]},
    {"rows": [{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}]},
    {"rows": [{"prompt": "a", "chosen": "b", "rejected": "c"}]},
    {
        "rows": [
            {
                "prompt": [{"role": "user", "content": "a"}],
                "chosen": [{"role": "assistant", "content": "b"}],
                "rejected": [{"role": "assistant", "content": "c"}],
            }
        ]
    },
    {
        "rows": [
            {"chosen": CHAT["messages"], "rejected": [*CHAT["messages"][:2], {"role": "assistant", "content": "5"}]}
        ]
    },
    {"rows": [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]},
    {"rows": [{"text": "Once upon a time."}]},
    {"rows": [{"instruction": "a", "output": "b", "history": [["c", "d"]], "system": "e"}]},
    {"rows": [{"q": {"text": "a"}, "turns": ["b", "c"]}], "map": ["q.text=instruction", "turns.1=output"]},
    {"rows": [{"question": "a", "reply": "b", "id": 3}], "map": {"reply": "output", "id": ""}},
    {"rows": [{"messages": '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'}]},
]
TREE = tree_mutator(KEYS, lambda: SHAPES)


def shaped(given: bytes) -> None:
    """Rows in memory, and what may be typed after ``--map``."""
    found = parsed_or_nothing(given)
    found = found if isinstance(found, dict) else {"rows": found}
    rows, mapping = found.get("rows"), found.get("map", ())
    if isinstance(mapping, list):
        mapping = [one for one in mapping if isinstance(one, str)]
    elif isinstance(mapping, dict):
        mapping = {key: value for key, value in mapping.items() if isinstance(value, str)}
    else:
        mapping = [str(mapping)] if mapping else ()
    Renames(mapping)
    understood(rows if isinstance(rows, list) else [rows], mapping, skip_bad=bool(found.get("skip_bad", True)))


def parsed_or_nothing(given: bytes) -> Any:
    """The value in bytes, if there is one."""
    try:
        return parsed(given)
    except ValueError:
        return None


def mutate_packed(given: bytes, draw: Random, mutate: Mutate) -> bytes:
    """A change of packed bytes, or of what is in them."""
    name, content = given[:1] or b"\7", given[1:]
    if draw.random() < 0.1:
        name = bytes([draw.randrange(len(NAMES))])
    if draw.random() < 0.4:
        return name + mutate(content, len(content) + 50)
    try:
        if content.startswith(b"PK"):
            return name + _zip(content, draw, mutate)
        for start, unpack, pack in (
            (b"\x1f\x8b", gzip.decompress, gzip.compress),
            (b"\xfd", lzma.decompress, lzma.compress),
        ):
            if content.startswith(start):
                inner = unpack(content[:5000])[:5000]
                changed = mutate_json(b"\0" + inner, draw, mutate)[1:]
                return name + draw.choice((pack(changed), pack(pack(changed)), pack(changed) + content[:20]))
    except Exception:  # of a damaged one
        pass
    return name + mutate(content, len(content) + 50)


def _zip(content: bytes, draw: Random, mutate: Mutate) -> bytes:
    """A new archive of changed members."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        names = old.namelist()
        for member in names[:5]:
            inner = old.read(member)[:5000] if old.getinfo(member).file_size < 100_000 else b""
            if draw.random() < 0.5:
                inner = mutate(inner, len(inner) + 50)
            if draw.random() < 0.3:
                member = mutate(member.encode(), 60).decode("utf-8", "replace").replace("\0", "")  # noqa: PLW2901
            method = draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
            new.writestr(zipfile.ZipInfo(member or "a"), inner, method)
    return made.getvalue()


TARGETS = {
    "json": Target(read, seeds_of("json", "jsonl", "ndjson"), mutate_json, longest=6000),
    "csv": Target(
        read,
        seeds_of(*TABLES),
        words=(
            b'"',
            b",",
            b";",
            b"\t",
            b"\r\n",
            b"\n",
            b'""',
            b"sep=",
            b"instruction",
            b"\xef\xbb\xbf",
            b"\xff\xfe",
            b"\0",
        ),
        longest=3000,
    ),
    "arrow": Target(read, seeds_of(*BINARY), words=(b"PAR1", b"ARROW1", b"\xff\xff\xff\xff", b"\0\0\0\0")),
    "packed": Target(read, seeds_of(*PACKED), mutate_packed, longest=6000),
    "shapes": Target(shaped, lambda: [json.dumps(one).encode() for one in SHAPES], TREE, longest=6000),
}
