"""Files written whole and read with one set of excuses."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from instil import files
from instil.errors import DataError, InstilError, ModelError, UserError
from instil.files import (
    check_file,
    check_folder,
    check_new,
    free_at,
    json_object_or_empty,
    read_json,
    read_json_object,
    read_parsed,
    unfinished_of,
    write_json,
    write_rows,
    write_whole,
)


def _breaks_off(path: Path) -> None:
    path.write_text("half", encoding="utf-8")
    raise OSError(28, "No space left on device")


def test_what_breaks_off_leaves_the_old_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    write_whole(file, "old")
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, _breaks_off)
    assert file.read_text(encoding="utf-8") == "old"
    assert unfinished_of(file).exists()
    write_whole(file, b"new")
    assert file.read_text(encoding="utf-8") == "new"
    assert not unfinished_of(file).exists()


def test_what_cannot_be_written_is_told_in_the_words_of_the_caller(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(InstilError) as told:
        write_whole(file, _breaks_off, error=DataError)
    assert type(told.value) is DataError
    assert str(told.value) == f"{file}: cannot be written: No space left on device"


def test_a_write_that_fails_names_its_file(tmp_path: Path) -> None:
    """The system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, hard))
        for content in ("x" * 100, b"x" * 100, lambda path: path.write_bytes(b"x" * 100)):
            with pytest.raises(OSError, match="File too large") as no:
                write_whole(tmp_path / "file", content)
            assert no.value.filename == str(tmp_path / "file")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_folder_that_another_uses_meanwhile_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes look whether they can make the same one."""

    class Uses:
        def __init__(self, dir: Path, prefix: str) -> None:
            (dir / "status.json").touch()

        def __enter__(self) -> None: ...

        def __exit__(self, *error: object) -> None: ...

    monkeypatch.setattr(files, "TemporaryDirectory", Uses)
    check_folder(tmp_path / "one" / "two")
    assert (tmp_path / "one" / "two" / "status.json").exists()


def test_room_is_that_of_the_part_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where another process removes the folder while one looks."""
    wanted = files.shutil.disk_usage(tmp_path).free
    (tmp_path / "one").mkdir()
    look = files.shutil.disk_usage

    def goes(path: Path) -> Any:
        if path.name == "one":
            path.rmdir()
        return look(path)

    monkeypatch.setattr(files.shutil, "disk_usage", goes)
    part, free = free_at(tmp_path / "one")
    assert part == tmp_path
    assert abs(free - wanted) < 10**9


def test_half_a_surrogate_pair_is_refused_or_replaced(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    write_whole(file, "a\ud800", replace_surrogates=True)
    assert file.read_bytes() == b"a?"


def test_rows_are_lines_or_a_list_by_the_name(tmp_path: Path) -> None:
    rows = [{"a": "ä"}, {"a": "b"}]
    write_rows(tmp_path / "a.jsonl", iter(rows))
    assert (tmp_path / "a.jsonl").read_text(encoding="utf-8") == '{"a": "ä"}\n{"a": "b"}\n'
    write_rows(tmp_path / "a.json", iter(rows))
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert json.loads(text) == rows
    assert text.startswith('[\n  {\n    "a": "ä"') and text.endswith("]\n")
    write_json(tmp_path / "b.json", "ä", ascii_only=True)
    assert (tmp_path / "b.json").read_bytes() == b'"\\u00e4"\n'


@pytest.mark.parametrize("read", [read_json, read_json_object])
def test_a_damaged_file_is_told_of_in_one_line(read: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    with pytest.raises(DataError) as told:
        read(file, advice="; look elsewhere")
    assert str(told.value) == f"{file}: cannot be read: No such file or directory; look elsewhere"
    for content, reason in {
        b"{": "Expecting property name enclosed in double quotes: line 1 column 2 (char 1)",
        b"[" * 100_000: "nested too deeply",
        b'"\xff"': "byte 1 is not UTF-8",
    }.items():
        file.write_bytes(content)
        with pytest.raises(ModelError) as damaged:
            read(file, error=ModelError, problem="no configuration")
        assert str(damaged.value) == f"{file}: no configuration: {reason}"
        assert json_object_or_empty(file) == {}


def test_an_object_is_wanted(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_json(file, [1])
    with pytest.raises(DataError, match="wanted a JSON object, found: list"):
        read_json_object(file)
    assert json_object_or_empty(file) == {}
    write_json(file, {"a": 1})
    assert read_json_object(file) == json_object_or_empty(file) == {"a": 1}


def test_a_parser_gets_the_text_without_its_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbf12")
    assert read_parsed(file, int, "no number", encoding="utf-8-sig") == 12


NO_FILE = {  # names that cannot be written, and what is said
    "x" * 300: "cannot be written: File name too long",
    "new/" + "x" * 300: "cannot be written: File name too long",
    "x" * 300 + "/new": ": File name too long",
    "file/new": "file is a file",
    "nowhere/new": "nowhere is a link that leads nowhere",
    "/proc/nobody/new": "the folder cannot be made: No such file",
}


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
@pytest.mark.parametrize("name", NO_FILE)
@pytest.mark.parametrize("check", [check_new, check_file])
def test_a_place_that_cannot_be_written_is_told(check: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "deep")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InstilError, match=f"{NO_FILE[name]}.*; choose another --out$"):
        check(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "missing" / "deep")
    (tmp_path / "soon").symlink_to(tmp_path / "missing")
    before = sorted(tmp_path.iterdir())
    for name in ("file", "new", "deep/er/new", "soon", "x" * 250, "/dev/stdout", "/dev/null"):
        check_file(tmp_path / name)
    for name in ("new", "deep/er/new", "x" * 240):
        check_new(tmp_path / name)
    for name, says in {"file": "there already", "soon": "there already", "nowhere": "there already",
                       "x" * 250: "too long", "": "there already"}.items():  # fmt: skip
        with pytest.raises(UserError, match=f"{says}; choose another --out"):
            check_new(tmp_path / name)
    for name, says in {"": "is a folder; wanted the name of a file", "nowhere": "cannot be written: No such"}.items():
        with pytest.raises(UserError, match=says):
            check_file(tmp_path / name)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "file").read_text() == "mine"
