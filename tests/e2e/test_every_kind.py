"""Every kind of model file on the same walk by the command line: looked at, trained, answered, exported and scored."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import pre_tokenizers

from instil.data.byte_level import END_OF_TEXT
from instil.data.tokenizers import FastTokenizer
from instil.model.load import file_hash, load_decoder
from tests.conftest import GPT2_VOCABULARY, rows, tiny_reference
from tests.model.files.tensorflow_files import write_model
from tests.model.files.test_gguf import split
from tests.recipes.test_export_gguf import folder_of
from tests.settings.world import World

QUICK = ("train.max_steps=1", "generate.max_new_tokens=2", "train.eval_every=0", "train.batch_size=2")


class Kinds:
    """A tiny model of each kind, made when it is asked for."""

    def __init__(self, folder: Path) -> None:
        (folder / "rows.json").write_text(json.dumps(rows(20)))
        self.folder, self.data = folder, folder / "rows.json"
        self.world = World(folder, folder, folder)

    def hf(self) -> Path:
        """A folder of transformers."""
        return self._once("hf", lambda path: folder_of(path, "llama", max_position_embeddings=512))

    def sharded(self) -> Path:
        """The same in several files."""

        def make(path: Path) -> None:
            folder_of(path, "llama", max_position_embeddings=512)
            reference = tiny_reference("llama", vocab_size=load_decoder(path).spec.vocab_size)
            (path / "model.safetensors").unlink()
            reference.save_pretrained(path / "again", max_shard_size="12KB")
            for file in (path / "again").glob("model*"):
                file.rename(path / file.name)

        return self._once("sharded", make)

    def openai(self) -> Path:
        """GPT-2's own files, a checkpoint of TensorFlow."""

        def make(path: Path) -> None:
            write_model(tiny_reference("gpt2", vocab_size=258, n_positions=512), path)
            letters = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
            (path / "encoder.json").write_text(json.dumps({**letters, "he": 256, END_OF_TEXT: 257}))
            (path / "vocab.bpe").write_text("#version: 0.2\nh e\n")

        return self._once("openai", make)

    def pth(self) -> Path:
        """A state dictionary under the book's names."""

        def make(path: Path) -> None:
            gpt2 = {"n_embd": 64, "n_head": 1, "n_layer": 1, "n_positions": 512, "vocab_size": GPT2_VOCABULARY}
            tiny_reference("gpt2", **gpt2).save_pretrained(self.folder / "wide")
            FastTokenizer.gpt2().save(self.folder / "wide")
            self.tell("export", self.folder / "wide", "--to", "pth", "--out", path)

        return self._once("book.pth", make)

    def gguf(self) -> Path:
        """One file of GGUF."""
        return self._once("one.gguf", lambda path: self.tell("export", self.hf(), "--to", "gguf", "--out", path))

    def parts(self) -> Path:
        """The same in several."""

        def make(path: Path) -> None:
            path.mkdir()
            split(self.gguf(), 3, path)

        return self._once("parts", make) / "model-00001-of-00003.gguf"

    def run(self) -> Path:
        """A run's folder."""
        return self._once("run", lambda path: self.tell("run", self.data, "-m", self.hf(), "-o", path, settings=QUICK))

    def adapter(self) -> Path:
        """A run that has adapters beside its model."""
        words = ("run", self.data, "--model", self.hf(), "--method", "lora", "--out")
        return self._once("lora", lambda path: self.tell(*words, path, settings=(*QUICK, "lora.rank=2")))

    def tell(self, *words: object, settings: tuple[str, ...] = ()) -> dict[str, object]:
        """A command that must succeed; what it says."""
        ended = self.world.command(*words, "--json", settings=settings)
        assert ended.code == 0, ended.said
        said = ended.json
        assert isinstance(said, dict)
        return said

    def _once(self, name: str, make: Callable[[Path], object]) -> Path:
        path = self.folder / name
        if not path.exists():
            make(path)
        return path


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Kinds:
    return Kinds(tmp_path_factory.mktemp("kinds"))


# What each can be taken to, besides a folder of transformers.
FORMS = {
    "hf": "gguf", "sharded": "gguf", "openai": "gguf", "pth": "pth", "gguf": "gguf", "parts": "gguf", "run": "gguf",
    "adapter": "gguf",
}  # fmt: skip


SLOW = {"pth", "sharded", "run"}  # GPT-2's whole vocabulary, and forms that are much like another


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=pytest.mark.slow) if kind in SLOW else kind for kind in FORMS]
)
def test_the_walk(kinds: Kinds, kind: str, tmp_path: Path) -> None:
    model: Path = getattr(kinds, kind)()
    tell, data, rest = kinds.tell, kinds.data, tmp_path / "rest.json"
    rest.write_text(json.dumps(rows(2)))
    assert tell("plan", data, "--model", model, settings=QUICK)
    assert tell("inspect", data, "--model", model, "--row", 0, settings=QUICK)["rows"]
    trained = tell("train", data, "--model", model, "--out", tmp_path / "trained", settings=QUICK)
    assert trained["steps"] == 1
    whole = tell("run", data, "--model", model, "--out", tmp_path / "run", settings=QUICK)
    assert set(whole["scores"]) == {"base", "tuned", "echo"}  # type: ignore[call-overload]
    tell("respond", model, "-i", "Name a colour.", settings=("generate.max_new_tokens=2",))
    said = ("respond", model, "--data", rest, "--out", tmp_path / "said.json")
    tell(*said, settings=("generate.max_new_tokens=2",))
    assert tell("score", tmp_path / "said.json")["scores"]["said"]["rows"] == 2  # type: ignore[index]
    assert set(tell("score", tmp_path / "run")["scores"]) == {"base", "tuned"}  # type: ignore[call-overload]
    for form in ("hf", FORMS[kind]):
        tell("export", model, "--to", form, "--out", tmp_path / f"out.{form}")
        own, again = load_decoder(model), load_decoder(tmp_path / f"out.{form}")
        for name, value in again.named_parameters():
            torch.testing.assert_close(value, own.get_parameter(name), msg=name)


@pytest.mark.parametrize("kind", FORMS)
def test_the_hash_is_that_of_all_files_that_are_read(kinds: Kinds, kind: str, tmp_path: Path) -> None:
    """The same in another place; another one after a change to any file that weights are read from."""
    model: Path = getattr(kinds, kind)()
    holder = model if model.is_dir() else model.parent if kind == "parts" else None
    copied = tmp_path / model.name
    copied = Path(shutil.copytree(holder, copied) if holder else shutil.copyfile(model, copied))
    same = copied / model.name if kind == "parts" else copied
    assert file_hash(same) == file_hash(model)
    endings = (".safetensors", ".gguf", ".pth")
    held = [file for file in copied.rglob("*") if file.suffix in endings or file.name.startswith("model.ckpt.data")]
    held = [file for file in held if "adapter" not in file.parent.name] if copied.is_dir() else [copied]
    assert held
    for file in held:
        whole = file.read_bytes()
        if file.suffix == ".pth":
            continue  # a changed archive is refused
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert file_hash(same) != file_hash(model), file
        file.write_bytes(whole)
