"""Downloads go on where they were cut, land whole or not at all, and fail in one clear line."""

from __future__ import annotations

import hashlib
import io
import os
import random
import re
import sys
import threading
from collections import namedtuple
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pytest

from instil import downloads
from instil.downloads import Wanted, download, record, recorded
from instil.errors import ModelError
from tests.file_server import FileServer, serving

BODY = random.Random(0).randbytes(300_000)
NEW = random.Random(1).randbytes(300_000)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "FIRST_WAIT", 0.0)
    monkeypatch.setattr(downloads, "TIMEOUT", 5.0)
    monkeypatch.setenv("NO_PROXY", "*")


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serving(**{"file.bin": BODY}) as running:
        yield running


def fetch(server: FileServer | str, folder: Path, name: str = "file.bin", **options: object) -> Path:
    url = server if isinstance(server, str) else server.url
    return download(Wanted(url=f"{url}/{name}", path=folder / "got.bin", error=ModelError, **options))


def refused(*arguments: object, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        fetch(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} - {".lock"}


def test_a_file_lands_whole_and_a_second_call_asks_nobody(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert left(tmp_path) == {"got.bin"}
    fetch(server, tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize("cut", [0, 1, 777, 150_000, len(BODY) - 1])
def test_a_cut_connection_goes_on_where_it_was(server: FileServer, tmp_path: Path, cut: int) -> None:
    server.cuts = [cut]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ["", f"bytes={cut}-" if cut else ""]
    assert left(tmp_path) == {"got.bin"}


def test_every_try_that_gains_something_earns_more(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [20_000] * 12  # far more cuts than fruitless tries are allowed
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests[-1] == ("file.bin", "bytes=240000-")


def test_a_later_call_goes_on_too(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1000, 0, 0, 0, 0]
    message = refused(server, tmp_path)
    assert "1,000 bytes are kept" in message
    assert left(tmp_path) == {"got.bin.part", "got.bin.part.json"}
    server.requests.clear()
    server.cuts.clear()
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests == [("file.bin", "bytes=1000-")]


def test_a_complete_part_only_takes_its_name(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1000, 0, 0, 0, 0]
    refused(server, tmp_path)
    (tmp_path / "got.bin.part").write_bytes(BODY)
    server.requests.clear()
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert not server.requests


@pytest.mark.parametrize("longer", [False, True])
def test_a_server_without_ranges_begins_again(server: FileServer, tmp_path: Path, longer: bool) -> None:
    server.ranges, server.cuts = False, [200_000, 1000 if longer else None]
    assert fetch(server, tmp_path).read_bytes() == BODY


def test_a_server_without_tags_begins_again(server: FileServer, tmp_path: Path) -> None:
    server.tags, server.cuts = False, [200_000]
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert [asked for _, asked in server.requests] == ["", ""]


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changes_between_two_tries_is_never_mixed(
    server: FileServer, tmp_path: Path, honours_if_range: bool
) -> None:
    server.cuts = [1000, 0, 0, 0, 0]
    refused(server, tmp_path)
    server.files["file.bin"], server.cuts, server.check_if_range = NEW, [], honours_if_range
    server.requests.clear()
    assert fetch(server, tmp_path).read_bytes() == NEW
    assert len(server.requests) == (1 if honours_if_range else 2)  # the server, or we, notice


def test_a_file_that_became_shorter(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1000, 0, 0, 0, 0]
    refused(server, tmp_path)
    server.files["file.bin"], server.cuts = NEW[:500], []
    assert fetch(server, tmp_path).read_bytes() == NEW[:500]


def test_a_part_of_another_address_is_not_used(server: FileServer, tmp_path: Path) -> None:
    server.files["other.bin"], server.cuts = NEW, [1000, 0, 0, 0, 0]
    refused(server, tmp_path)
    assert fetch(server, tmp_path, "other.bin").read_bytes() == NEW
    assert server.requests[-1] == ("other.bin", "")


def test_a_part_longer_than_the_file_is_not_used(server: FileServer, tmp_path: Path) -> None:
    server.cuts = [1000, 0, 0, 0, 0]
    refused(server, tmp_path)
    (tmp_path / "got.bin.part").write_bytes(BODY + b"more")
    server.requests.clear()
    assert fetch(server, tmp_path).read_bytes() == BODY
    assert server.requests == [("file.bin", "")]


@pytest.mark.parametrize("body", [b"1234", b"12345678901"])
def test_a_client_that_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    """Whatever the HTTP library lets pass, the length announced is the length wanted."""

    class Careless(nullcontext["Careless"]):
        def __init__(self, **options: object) -> None:
            super().__init__(self)

        @contextmanager
        def stream(self, method: str, url: str, *, headers: Mapping[str, str]) -> Iterator[SimpleNamespace]:
            yield SimpleNamespace(
                status_code=200, reason_phrase="OK", headers={"Content-Length": "10"}, iter_bytes=lambda: iter([body])
            )

    monkeypatch.setattr(httpx2, "Client", Careless)
    with pytest.raises(ModelError, match=f"{len(body)} bytes came, 10 were announced"):
        fetch("http://x", tmp_path)
    assert not (tmp_path / "got.bin").exists()


def test_a_server_that_recovers(server: FileServer, tmp_path: Path) -> None:
    server.answers = [500, 503, 429]
    assert fetch(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize(("code", "tries"), [(500, 4), (404, 1), (403, 1), (304, 1)])
def test_a_server_that_refuses(server: FileServer, tmp_path: Path, code: int, tries: int) -> None:
    server.answers = [code] * 9
    message = refused(server, tmp_path, advice="Do something else.")
    assert f"the server answered {code}" in message
    assert message.endswith(". Do something else.")
    assert len(server.requests) == tries
    assert not left(tmp_path)


def test_no_network_and_no_address(tmp_path: Path) -> None:
    assert "ConnectError" in refused("http://127.0.0.1:9", tmp_path)
    assert "could not be fetched" in refused("nonsense://x", tmp_path)


@pytest.mark.parametrize("page", [b"<!DOCTYPE html><p>Sign in", b"\n <html>", b"<?xml version='1.0'?><Error/>"])
def test_a_web_page_is_not_a_file(server: FileServer, tmp_path: Path, page: bytes) -> None:
    server.files["file.bin"] = page
    assert "a web page came" in refused(server, tmp_path)
    assert not left(tmp_path)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"smallest": 300_001}, "has 300,000 bytes; wanted at least 300,001"),
        ({"largest": 299_999}, "has 300,000 bytes; wanted at most 299,999"),
        ({"sha256": "0" * 64}, "wanted 000000000000..."),
    ],
)
@pytest.mark.parametrize("lengths", [True, False])
def test_a_file_of_another_size_or_hash(
    server: FileServer, tmp_path: Path, options: dict[str, object], says: str, lengths: bool
) -> None:
    server.lengths = lengths
    message = refused(server, tmp_path, **options)
    assert says in message or (not lengths and "larger than" in message)
    assert not left(tmp_path)


def test_the_right_hash_passes(server: FileServer, tmp_path: Path) -> None:
    assert fetch(server, tmp_path, sha256=hashlib.sha256(BODY).hexdigest()).is_file()


def test_an_endless_body_is_stopped(server: FileServer, tmp_path: Path) -> None:
    server.lengths = False
    server.files["file.bin"] = b"x" * 5_000_000
    assert "larger than" in refused(server, tmp_path, largest=200_000)
    assert not left(tmp_path)


def test_a_check_decides_before_the_file_takes_its_name(server: FileServer, tmp_path: Path) -> None:
    def never(path: Path) -> None:
        assert path.read_bytes() == BODY
        raise ModelError(f"{path}: not a fish")

    message = refused(server, tmp_path, check=never)
    assert "what came: not a fish" in message
    assert server.url in message
    assert not left(tmp_path)


def test_a_full_disk_is_noticed_before(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(downloads.shutil, "disk_usage", lambda path: usage(1, 1, 1000))
    assert "it needs 0.3 MB on disk, 1,000 bytes are free" in refused(server, tmp_path)


def test_a_folder_that_cannot_be_written(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    assert "set INSTIL_HOME" in refused(server, tmp_path / "home")


def test_two_at_once_fetch_once(server: FileServer, tmp_path: Path) -> None:
    threads = [threading.Thread(target=fetch, args=(server, tmp_path)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 1
    assert (tmp_path / "got.bin").read_bytes() == BODY


def test_progress_is_said_after_a_while_only(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server, tmp_path)
    assert capsys.readouterr() == ("", "")
    (tmp_path / "got.bin").unlink()
    monkeypatch.setattr(downloads, "QUIET_FOR", 0.0)
    fetch(server, tmp_path)
    out, err = capsys.readouterr()
    assert not out
    assert "got.bin: " in err
    assert " of 0.3 MB" in err


def test_a_terminal_sees_a_bar(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "110")
    monkeypatch.setenv("NO_COLOR", "1")
    fetch(server, tmp_path)
    assert re.search(r"got\.bin .*300\.0/300\.0 kB\b.*\bleft\b", terminal.getvalue())


def test_a_manifest_notices_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, manifest = tmp_path / "a.bin", tmp_path / "fetched.json"
    path.write_bytes(BODY)
    assert recorded(manifest, path) is None
    record(manifest, path, "http://x")
    assert recorded(manifest, path) is True
    os.utime(path, ns=(1, 1))
    assert recorded(manifest, path) is True  # touched, and the same by its hash
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "sha256_of", lambda path: pytest.fail("hashed again"))
        assert recorded(manifest, path) is True
    path.write_bytes(NEW)
    assert recorded(manifest, path) is False
    path.write_bytes(BODY[:-1])
    assert recorded(manifest, path) is False
