"""Data sets on the hub: which files are meant, and fetching them from a server of our own that speaks its protocol."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from instil.data.files import hub as hub_files
from instil.data.files.hub import Address, address_of
from instil.errors import DataError
from tests.data.files.writers import lines, parquet

COMMIT = "c" * 40


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        ("hf:me/rows", Address("me/rows")),
        ("hf:me/rows/test", Address("me/rows", split="test")),
        ("hf:me/rows:main", Address("me/rows", config="main")),
        ("hf:me/rows:main/train", Address("me/rows", config="main", split="train")),
        ("hf:me/rows@v1.0", Address("me/rows", revision="v1.0")),
        ("hf:me/rows@abc:main/test", Address("me/rows", "abc", "main", "test")),
        ("hf:me/rows@refs/convert/parquet:main/test", Address("me/rows", "refs/convert/parquet", "main", "test")),
        ("hf:me/rows@refs/pr/3", Address("me/rows", "refs/pr/3")),
    ],
)
def test_addresses(data: str, wanted: Address) -> None:
    assert address_of(data) == wanted


@pytest.mark.parametrize("data", ["hf:", "hf:rows", "hf:me/rows:", "hf:me/rows:a:b", "hf:me/rows/a/b", "hf:a b/c"])
def test_what_is_no_address(data: str) -> None:
    with pytest.raises(DataError, match="wanted hf:owner/name"):
        address_of(data)


def chosen(
    monkeypatch: pytest.MonkeyPatch, data: str, names: list[str], card: dict[str, Any] | Exception | None = None
) -> tuple[list[str], list[str]]:
    def read(path: Path) -> dict[str, Any]:
        if isinstance(card, Exception):
            raise card
        return card or {}

    monkeypatch.setattr(hub_files, "hub_file", lambda repository, file, commit: Path(file))
    monkeypatch.setattr(hub_files, "hub_card", read)
    return hub_files._chosen(address_of(data), COMMIT, ["README.md", ".gitattributes", *names], data)


SHARDS = ["data/test-00000.parquet", "data/train-00000.parquet", "data/train-00001.parquet"]


@pytest.mark.parametrize(
    ("data", "names", "card", "wanted"),
    [
        ("hf:me/rows", ["rows.jsonl"], {}, ["rows.jsonl"]),
        ("hf:me/rows", SHARDS, {}, SHARDS[1:]),
        ("hf:me/rows/test", SHARDS, {}, SHARDS[:1]),
        ("hf:me/rows/validation", ["dev.csv", "train.csv"], {}, ["dev.csv"]),
        ("hf:me/rows", ["a.json", "b.json", "dataset_info.json"], {}, ["a.json", "b.json"]),
        ("hf:me/rows", ["train.jsonl", "train.parquet"], {}, ["train.parquet"]),
        ("hf:me/rows", ["train-1.jsonl", "train-2.jsonl", "train.csv"], {}, ["train-1.jsonl", "train-2.jsonl"]),
        ("hf:me/rows:en", ["en/train.csv", "fr/train.csv"], {}, ["en/train.csv"]),
        ("hf:me/rows:en/test", ["en/train.csv", "en/test.csv"], {}, ["en/test.csv"]),
        ("hf:me/rows", ["a.csv", "b.csv"], {"configs": [{"config_name": "default", "data_files": "b.csv"}]}, ["b.csv"]),
        (
            "hf:me/rows",
            SHARDS,
            {"configs": [{"config_name": "x", "data_files": [{"split": "train", "path": "data/train-*"}]}]},
            SHARDS[1:],
        ),
        (
            "hf:me/rows:b/test",
            ["a/x.json", "b/y.json", "b/z.json"],
            {
                "configs": [
                    {"config_name": "a", "data_files": {"train": "a/*"}, "default": True},
                    {"config_name": "b", "data_files": {"train": ["b/y.json"], "test": "b/z.json"}},
                ]
            },
            ["b/z.json"],
        ),
        (
            "hf:me/rows",
            ["a/x.json", "b/y.json"],
            {
                "configs": [
                    {"config_name": "b", "data_dir": "b"},
                    {"config_name": "a", "data_dir": "a", "default": True},
                ]
            },
            ["a/x.json"],
        ),
        (
            "hf:me/rows",
            ["x/deep/train.json", "x/y.json"],
            {"configs": [{"config_name": "d", "data_files": "**/train.json"}]},
            ["x/deep/train.json"],
        ),
        (
            "hf:me/rows@refs/convert/parquet:en/test",
            ["en/train/0.parquet", "en/test/0.parquet"],
            {},
            ["en/test/0.parquet"],
        ),
    ],
)
def test_the_files_that_are_meant(
    data: str, names: list[str], card: dict[str, Any], wanted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert chosen(monkeypatch, data, names, card)[0] == wanted


@pytest.mark.parametrize(
    ("data", "names", "card", "says"),
    [
        ("hf:me/rows/tset", SHARDS, {}, r"no split 'tset'; it has: test, train; did you mean test\?"),
        (
            "hf:me/rows",
            ["test.csv", "dev.csv"],
            {},
            r"has 2 splits; name one:\n  hf:me/rows/test\n  hf:me/rows/validation",
        ),
        ("hf:me/rows:fr", ["en/train.csv", "de/train.csv"], {}, "no config 'fr'; it has: de, en"),
        (
            "hf:me/rows",
            ["a.csv", "b.csv"],
            {"configs": [{"config_name": "a", "data_files": "a.csv"}, {"config_name": "b", "data_files": "b.csv"}]},
            r"has 2 configs; name one:\n  hf:me/rows:a\n",
        ),
        ("hf:me/rows", ["rows.py", "a.txt"], {}, r"its own program \(rows\.py\) is not run.*@refs/convert/parquet"),
    ],
)
def test_what_is_not_clear_is_asked_for(
    data: str, names: list[str], card: dict[str, Any], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=says):
        chosen(monkeypatch, data, names, card)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"data_files": [f"{'**a' * 30}**b", "train-*"]}, "train-0.csv"),  # the first would take years, way after way
        ({"data_files": "**t*-*.cs*v"}, "train-0.csv"),
        ({"config_name": ["a"], "default": True, "data_files": {1: "train-*"}}, "train-0.csv"),
    ],
)
def test_odd_cards(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any], wanted: str) -> None:
    names = ["a" * 60 + ".csv", "train-0.csv"]
    assert chosen(monkeypatch, "hf:me/rows", names, {"configs": [config]})[0] == [wanted]


def test_what_was_chosen_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chosen(monkeypatch, "hf:me/rows", SHARDS)[1] == ["hf:me/rows: the split 'train' is read; it also has test"]
    _, said = chosen(monkeypatch, "hf:me/rows", ["train.jsonl", "train.parquet"], ValueError("no YAML"))
    assert "cannot be read (no YAML); told by their names" in said[0]
    assert "passed over, as the same rows in another form are read: train.jsonl" in said[1]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A hub with one data set, me/rows, and one that asks for consent."""
    card = (
        "---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: data/train-*\n"
        "  - split: test\n    path: more/test.jsonl\n---\n# Rows\n"
    )
    row = {"instruction": "a", "output": "b"}
    files = {
        "README.md": card.encode(),
        "data/train-0.parquet": parquet([row, row]),
        "data/train-1.parquet": parquet([row]),
        "more/test.jsonl": lines([{"instruction": "a", "output": "c"}]),
    }

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            revision = path.removeprefix("/api/datasets/me/rows").removeprefix("/revision/")
            if path.startswith("/api/datasets/me/rows") and revision in ("", "v1", COMMIT):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": "me/rows", "sha": COMMIT, "siblings": siblings}
                self.answer(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif path.startswith("/api/datasets/me/rows"):
                self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            elif path.startswith("/api/datasets/me/gated"):
                self.answer(403, b"{}", {"X-Error-Code": "GatedRepo"})
            elif (name := path.removeprefix(f"/datasets/me/rows/resolve/{COMMIT}/")) in files:
                tag = hashlib.sha256(files[name]).hexdigest()
                self.answer(200, files[name], {"ETag": f'"{tag}"', "X-Repo-Commit": COMMIT})
            else:
                self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            del args

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def ask(hub: str, tmp_path: Path, *names: str) -> list[Any]:
    """What each name gives: its rows' answers and notes, or the message."""
    code = (
        "import json, sys\nfrom instil.data.files.rows import open_rows\nfrom instil.errors import DataError\n"
        "said = []\nfor name in sys.argv[1:]:\n    try:\n        found = open_rows(name)\n"
        "        said.append([[row.value['output'] for row in found], list(found.notes), next(iter(found)).where])\n"
        "    except DataError as error:\n        said.append(str(error))\nprint(json.dumps(said))"
    )
    environment = {
        **os.environ, "HF_ENDPOINT": hub, "HF_HOME": str(tmp_path / "cache"), "INSTIL_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*",
    }  # fmt: skip
    environment.pop("HF_HUB_OFFLINE", None)
    done = subprocess.run(
        [sys.executable, "-c", code, *names], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_rows_are_fetched_from_the_hub_and_found_again_without_it(hub: str, tmp_path: Path) -> None:
    names = ("hf:me/rows", "hf:me/rows:main/test", "hf:me/rows@v1/test")
    train, test, tagged = ask(hub, tmp_path, *names)
    assert train[0] == ["b", "b", "b"]
    assert train[1][0].startswith("hf:me/rows: 2 files, one after another: train-0.parquet, train-1.parquet")
    assert any("of commit ccccccc" in note for note in train[1])
    assert any("it also has test" in note for note in train[1])
    assert train[2] == "train-0.parquet row 0"
    assert test[0] == tagged[0] == ["c"]
    assert not any("it also has" in note for note in test[1])
    again = ask("http://127.0.0.1:9", tmp_path, *names)
    assert [one[0] for one in again] == [["b", "b", "b"], ["c"], ["c"]]
    assert all(any("the hub did not answer" in note for note in one[1]) for one in again)


def test_what_the_hub_does_not_give_is_one_clear_line(hub: str, tmp_path: Path) -> None:
    missing, gated, revision = ask(hub, tmp_path, "hf:me/nothing", "hf:me/gated", "hf:me/rows@v9")
    assert "hf:me/nothing: not on the hub, or not for everybody" in missing
    assert "accept the terms" in gated
    assert "no such revision" in revision
    (offline,) = ask("http://127.0.0.1:9", tmp_path, "hf:me/rows")
    assert "could not be fetched from the hub" in offline
    assert "give the path of its files instead" in offline
    assert not any("\n" in one for one in (missing, gated, revision, offline))
