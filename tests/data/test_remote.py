"""Rows by name and by address, from a server of our own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from instil import downloads
from instil.data.files import places
from instil.data.files.places import FETCHED
from instil.data.sources import read_source
from instil.errors import DataError
from tests.conftest import rows
from tests.file_server import FileServer, serving
from tests.processes import instil

BOOK, ALPACA = FETCHED["book"], FETCHED["alpaca"]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    empty = {"instruction": "Say nothing.", "input": "", "output": ""}
    files = {
        BOOK: json.dumps(rows(11)).encode(),
        ALPACA: json.dumps([*rows(30), *[empty] * 28]).encode(),
        "my/rows.jsonl": "\n".join(json.dumps(row) for row in rows(3)).encode(),
    }
    with serving(**files) as running:
        monkeypatch.setattr(downloads, "FIRST_WAIT", 0.0)
        monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("INSTIL_DATA_URL", running.url)
        monkeypatch.setenv("NO_PROXY", "*")
        yield running


def refused(data: str) -> str:
    with pytest.raises(DataError) as caught:
        read_source(data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def kept(tmp_path: Path) -> set[str]:
    return {entry.name for entry in (tmp_path / "home" / "data").iterdir()} - {".lock"}


def test_the_book_by_name_is_fetched_once_and_found_offline(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = read_source("book")
    assert (source.name, len(source)) == ("book", 11)
    assert server.requests == [(BOOK, "")]
    assert kept(tmp_path) == {"book.json"}
    monkeypatch.setenv("INSTIL_DATA_URL", "http://127.0.0.1:9")
    (tmp_path / "home" / "data" / ".lock").unlink()
    assert read_source("book").sha256 == source.sha256
    assert len(server.requests) == 1
    assert not (tmp_path / "home" / "data" / ".lock").exists()  # a folder that may only be read will do


def test_the_addresses_are_the_chapters() -> None:
    assert f"{places.GITHUB}/{BOOK}" == (
        "https://raw.githubusercontent.com/rasbt/LLMs-from-scratch/main/ch07/01_main-chapter-code/instruction-data.json"
    )
    assert f"{places.GITHUB}/{ALPACA}" == (
        "https://raw.githubusercontent.com/tatsu-lab/stanford_alpaca/main/alpaca_data.json"
    )


def test_alpacas_empty_outputs_are_refused_with_the_way_out(server: FileServer) -> None:
    with pytest.raises(DataError, match=r"28 of 58 rows cannot be used(.|\n)*output is empty") as caught:
        read_source("alpaca")
    assert "--set data.skip_bad=true" in str(caught.value)
    source = read_source("alpaca", skip_bad=True)
    assert (len(source), len(source.skipped)) == (30, 28)
    assert len(server.requests) == 1


def test_any_address(server: FileServer, tmp_path: Path) -> None:
    url = f"{server.url}/my/rows.jsonl?token=a/b"
    assert len(read_source(url)) == 3
    assert len(read_source(url)) == 3
    assert len(server.requests) == 1
    (name,) = kept(tmp_path)
    assert name.endswith("-rows.jsonl")
    read_source(f"{server.url}/my/rows.jsonl")  # another address is another file
    assert len(kept(tmp_path)) == 2


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"<!DOCTYPE html><html>", "a web page came instead of the file"),
        (b"", "the file is empty"),
        (b'[{"instruction": "a"', "not valid JSON"),
        (b"hello", "neither JSON nor JSONL"),
        (b"\xff\xfe\x00", "UTF-16"),
    ],
)
def test_what_is_no_list_of_rows_is_not_kept(server: FileServer, tmp_path: Path, body: bytes, says: str) -> None:
    server.files["my/rows.jsonl"] = body
    message = refused(f"{server.url}/my/rows.jsonl")
    assert says in message
    assert f"{server.url}/my/rows.jsonl: could not be fetched" in message
    assert message.endswith("give the path of the file instead.")
    assert not kept(tmp_path)


def test_a_short_body_and_a_server_that_recovers(server: FileServer) -> None:
    server.cuts, server.answers = [100, 50], [500]
    assert len(read_source("book")) == 11


@pytest.mark.parametrize(("code", "says"), [(404, "answered 404"), (500, "answered 500")])
def test_a_server_that_refuses(server: FileServer, code: int, says: str) -> None:
    server.answers = [code] * 9
    message = refused("book")
    assert says in message
    assert "give the path of the file instead" in message


def test_too_large(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "LARGEST_FETCHED", 100)
    assert "wanted at most 100" in refused("book")


def test_no_network(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTIL_DATA_URL", "http://127.0.0.1:9")
    assert "ConnectError" in refused("book")
    with pytest.raises(DataError, match="did you mean alpaca"):
        read_source("alpacca")


def test_the_command(server: FileServer, tmp_path: Path) -> None:
    def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return instil(*arguments, env={**os.environ, **environment})

    wanted = tmp_path / "home" / "data" / "book.json"
    done = command("fetch", "book")
    assert (done.returncode, done.stdout) == (0, f"{wanted}\n"), done.stderr
    found = json.loads(command("fetch", "book", "--json", INSTIL_DATA_URL="http://127.0.0.1:9").stdout)
    assert found == {"name": "book", "kind": "data", "path": str(wanted), "bytes": wanted.stat().st_size}
    assert command("fetch", "starter").stdout.endswith("starter.json\n")
    failed = command("fetch", f"{server.url}/nothing.json")
    assert failed.returncode == 2
    assert len(failed.stderr.splitlines()) == 1
