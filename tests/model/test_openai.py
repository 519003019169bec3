"""GPT-2 by name from a mirror of OpenAI's files, on a server of our own."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from instil import downloads
from instil.data.tokenizers import FastTokenizer, load_tokenizer
from instil.errors import ModelError
from instil.model import find as hub
from instil.model.find import MANIFEST, OPENAI_FILES, WEIGHTS, find_model
from instil.model.load import read_spec
from tests.conftest import tiny_reference
from tests.file_server import FileServer, serving
from tests.model.files.tensorflow_files import write_model
from tests.model.test_parity import assert_same_logits
from tests.processes import instil


@pytest.fixture
def openai(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A mirror with a tiny model in the place of the one of 124M; nothing else can be reached."""
    write_model(tiny_reference("gpt2"), tmp_path / "served")
    files = {f"124M/{file.name}": file.read_bytes() for file in (tmp_path / "served").iterdir()}
    with serving(**files) as server:
        monkeypatch.setattr(downloads, "FIRST_WAIT", 0.0)
        monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("INSTIL_GPT2_URL", server.url + "/")
        monkeypatch.setenv("NO_PROXY", "*")
        monkeypatch.setattr(hub, "GPT2_URL", "http://127.0.0.1:9")
        monkeypatch.setattr(hub, "_from_hub", no_hub)
        yield server


def no_hub(hub_id: str, name: str) -> Path:
    raise ModelError(f"{name}: could not be fetched from the hub as {hub_id}.")


def refused() -> str:
    with pytest.raises(ModelError) as caught:
        find_model("gpt2-small")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_gpt2_by_name(openai: FileServer, tmp_path: Path) -> None:
    folder = find_model("gpt2-small")
    assert folder == tmp_path / "home" / "models" / "gpt2-124M"
    assert {entry.name for entry in folder.iterdir()} == {*OPENAI_FILES, MANIFEST, ".lock"}
    assert_same_logits(tiny_reference("gpt2"), folder)
    assert isinstance(load_tokenizer(folder), FastTokenizer)
    assert len(openai.requests) == 7
    assert find_model("gpt2-small") == folder
    assert len(openai.requests) == 7


def test_all_four_names_have_their_folder() -> None:
    folders = {name: named.openai for name, named in hub.NAMED.items() if named.openai}
    assert folders == {"gpt2-small": "124M", "gpt2-medium": "355M", "gpt2-large": "774M", "gpt2-xl": "1558M"}


@pytest.mark.parametrize("cut", [0, 1, 5000, 13_000])
def test_weights_go_on_after_a_cut(openai: FileServer, cut: int) -> None:
    openai.cuts = [*(None,) * 6, cut, 0, 0, 0, 0]
    assert WEIGHTS in refused()
    openai.cuts = []
    openai.requests.clear()
    assert_same_logits(tiny_reference("gpt2"), find_model("gpt2-small"))
    assert openai.requests == [(f"124M/{WEIGHTS}", f"bytes={cut}-" if cut else "")]


@pytest.mark.parametrize(
    ("file", "change", "says"),
    [
        (WEIGHTS, lambda raw: raw[:-4], "wanted at least"),
        (WEIGHTS, lambda raw: b"<html>", "wanted at least"),
        ("model.ckpt.index", lambda raw: raw[:-4], "what came: not a TensorFlow index"),
        ("hparams.json", lambda raw: b"[1]", "wanted a JSON object"),
        ("hparams.json", lambda raw: b"<!DOCTYPE html>", "a web page came"),
        ("encoder.json", lambda raw: raw[:-1] + b" ", "has the hash"),
        ("vocab.bpe", lambda raw: raw + b"\n", "has the hash"),
    ],
)
def test_another_file_than_wanted(
    openai: FileServer, tmp_path: Path, file: str, change: Callable[[bytes], bytes], says: str
) -> None:
    right = openai.files[f"124M/{file}"]
    openai.files[f"124M/{file}"] = change(right)
    message = refused()
    assert says in message
    assert f"124M/{file}: could not be fetched" in message
    assert "INSTIL_GPT2_URL" in message
    assert not (tmp_path / "home" / "models" / "gpt2-124M" / file).exists()
    openai.files[f"124M/{file}"] = right
    assert_same_logits(tiny_reference("gpt2"), find_model("gpt2-small"))


def test_damage_on_the_way_is_noticed_when_it_is_read(openai: FileServer) -> None:
    raw = bytearray(openai.files[f"124M/{WEIGHTS}"])
    raw[777] ^= 1
    openai.files[f"124M/{WEIGHTS}"] = bytes(raw)
    folder = find_model("gpt2-small")
    with pytest.raises(ModelError, match="wrong checksum"):
        assert_same_logits(tiny_reference("gpt2"), folder)


@pytest.mark.parametrize("file", ["hparams.json", "model.ckpt.meta", WEIGHTS])
def test_a_file_that_changed_since_is_noticed(openai: FileServer, file: str) -> None:
    path = find_model("gpt2-small") / file
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    assert f"{file}: changed since it was fetched" in refused()
    path.unlink()
    assert_same_logits(tiny_reference("gpt2"), find_model("gpt2-small"))
    assert openai.requests[7:] == [(f"124M/{file}", "")]


def test_files_that_a_user_put_there_are_used(openai: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "models" / "gpt2-124M"
    write_model(tiny_reference("gpt2"), folder)
    assert find_model("gpt2-small") == folder
    assert not openai.requests
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    assert "vocab.bpe: not the file that OpenAI published" in refused()


def test_the_order_of_places(openai: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_hub(hub_id: str, name: str) -> Path:
        asked.append(hub_id)
        return tmp_path

    monkeypatch.setattr(hub, "_from_hub", from_hub)
    monkeypatch.delenv("INSTIL_GPT2_URL")
    monkeypatch.setattr(hub, "GPT2_URL", openai.url)
    assert find_model("gpt2-small") == tmp_path  # the hub before OpenAI
    assert asked == ["openai-community/gpt2"]
    assert not openai.requests
    monkeypatch.setattr(hub, "_from_hub", no_hub)
    openai.cuts = [*(None,) * 6, 9000, 0, 0, 0, 0]
    message = refused()  # neither the one nor the other: both are named
    assert "from the hub as openai-community/gpt2" in message
    assert WEIGHTS in message
    monkeypatch.setattr(hub, "_from_hub", from_hub)
    assert find_model("gpt2-small").name == "gpt2-124M"  # what was begun is ended
    assert asked == ["openai-community/gpt2"]


def test_no_mirror_no_network(openai: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTIL_GPT2_URL", "http://127.0.0.1:9")
    message = refused()
    assert "ConnectError" in message
    assert "name a mirror in INSTIL_GPT2_URL" in message


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return instil(*arguments, env={**os.environ, **environment})


def test_the_command_fetches_verifies_and_prints_the_path(openai: FileServer, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "models" / "gpt2-124M"
    done = command("fetch", "gpt2-small")
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    again = command("fetch", "gpt2-small", "--json", INSTIL_GPT2_URL="http://127.0.0.1:9")
    found = json.loads(again.stdout)
    assert (found["name"], found["kind"], found["path"]) == ("gpt2-small", "model", str(folder))
    assert found["bytes"] > 10_000
    raw = bytearray((folder / WEIGHTS).read_bytes())
    raw[777] ^= 1
    (folder / WEIGHTS).write_bytes(bytes(raw))
    (folder / MANIFEST).unlink()
    damaged = command("fetch", "gpt2-small")
    assert damaged.returncode == 2
    assert "wrong checksum" in damaged.stderr


@pytest.mark.parametrize(
    ("name", "says"), [("gpt2-smal", "did you mean gpt2-small"), ("no/such/thing", "no such file")]
)
def test_an_unknown_name_is_one_line(name: str, says: str) -> None:
    done = command("fetch", name)
    assert done.returncode == 2
    assert says in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_sizes_alone_are_fetched_for_who_wants_no_more(openai: FileServer, tmp_path: Path) -> None:
    spec = read_spec("gpt2-small")
    assert (spec.family, spec.layers, spec.mlp_width) == ("gpt2", 2, 36)
    assert [path for path, _ in openai.requests] == ["124M/hparams.json", "124M/model.ckpt.index"]
    assert not (tmp_path / "home" / "models").exists()  # nobody is to think that the model has come in part
    assert read_spec("gpt2-small") == spec
    assert len(openai.requests) == 2
    find_model("gpt2-small")
    assert len(openai.requests) == 9
    assert read_spec("gpt2-small") == spec
