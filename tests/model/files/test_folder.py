"""Folders of other people's making: which file is read, wrapped names, a head that is said to be the embedding."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from instil.errors import ModelError
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.files.folder import save_decoder
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from instil.model.files.shards import write_shards
from instil.model.load import file_hash, load_decoder, open_model
from tests.conftest import rows, tiny_reference
from tests.processes import instil as command

IDS = torch.tensor([[5, 9, 2, 40, 33, 7, 61, 3]])
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
Tensors = dict[str, torch.Tensor]


def scores(decoder: Decoder) -> torch.Tensor:
    with torch.inference_mode():
        return decoder.logits(decoder(batch_of_ids(IDS)))


def theirs(folder: Path) -> torch.Tensor:
    """What transformers makes of a folder."""
    from transformers import AutoModelForCausalLM

    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return AutoModelForCausalLM.from_pretrained(folder).eval()(IDS).logits[0]  # type: ignore[no-any-return]


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() / other.abs().max() < 1e-5)


def read(path: Path) -> Tensors:
    file = SafetensorsFile(path)
    return {name: file.get(name) for name in file.names()}


def changed(folder: Path, change: Callable[[Tensors], Tensors], file: str = WEIGHTS) -> None:
    write_safetensors(folder / file, change(read(folder / file)).items())


def config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file."""
    tiny_reference("llama", tied=False).save_pretrained(tmp_path / "one")
    return tmp_path / "one"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Several files with an index, of another model of the same shape."""
    tiny_reference("llama", tied=False, seed=1).save_pretrained(tmp_path / "shards", max_shard_size="12KB")
    return tmp_path / "shards"


def mapped(shards: Path) -> dict[str, str]:
    return dict(json.loads((shards / INDEX).read_text())["weight_map"])


def remap(shards: Path, where: dict[str, str]) -> None:
    (shards / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": where}))


def test_a_single_file_comes_before_old_shards(folder: Path, shards: Path) -> None:
    wanted, own = scores(load_decoder(folder)), file_hash(folder)
    for file in shards.iterdir():
        if file.name not in ("config.json", WEIGHTS):
            (folder / file.name).write_bytes(file.read_bytes())
    decoder = load_decoder(folder)
    assert torch.equal(scores(decoder), wanted)
    assert close(wanted, theirs(folder))
    assert not close(wanted, theirs(shards))
    (note,) = decoder.notes
    assert "model.safetensors is read, as transformers does" in note
    assert file_hash(folder) == own  # of what is read
    for file in folder.glob("model-*"):  # the shards gone, their index left
        file.unlink()
    decoder = load_decoder(folder)
    assert torch.equal(scores(decoder), wanted)
    assert "an index (model.safetensors.index.json) as well" in decoder.notes[0]


@pytest.mark.parametrize("text", ['{"weight_map": {"model.norm.weight": "model.safetensors"}}', "{", "[]", "{}"])
def test_an_index_that_says_nothing_else(folder: Path, text: str) -> None:
    (folder / INDEX).write_text(text)
    assert load_decoder(folder).notes == ()


def test_shards_alone_are_read_in_silence(shards: Path) -> None:
    decoder = load_decoder(shards)
    assert len(set(mapped(shards).values())) > 2
    assert decoder.notes == ()
    assert close(scores(decoder), theirs(shards))


def test_an_index_that_is_not_exact(shards: Path) -> None:
    """As transformers: what counts is what the shards hold; but it is said."""
    where, names = mapped(shards), sorted(set(mapped(shards).values()))
    wanted = scores(load_decoder(shards))
    norm = "model.norm.weight"
    elsewhere = next(name for name in names if name != where[norm])
    for given in ({name: file for name, file in where.items() if name != norm}, {**where, norm: elsewhere}):
        remap(shards, given)
        decoder = load_decoder(shards)
        assert torch.equal(scores(decoder), wanted)
        assert close(wanted, theirs(shards))
        assert len(decoder.notes) == 1
        assert "does not say where model.norm.weight is" in decoder.notes[0]
    remap(shards, {**where, "model.layers.9.foo.weight": elsewhere})
    with pytest.raises(ModelError, match=rf"says that model\.layers\.9\.foo\.weight is in {elsewhere}, which does not"):
        load_decoder(shards)


def test_missing_shards_are_named(shards: Path) -> None:
    names = sorted(set(mapped(shards).values()))
    (shards / names[0]).unlink()
    with pytest.raises(ModelError, match=rf"of which '{names[0]}' is not in the folder"):
        load_decoder(shards)
    (shards / names[2]).unlink()
    with pytest.raises(ModelError, match=rf"'{names[0]}', '{names[2]}' are not in the folder"):
        load_decoder(shards)
    (shards / INDEX).unlink()
    with pytest.raises(ModelError, match=r"no model\.safetensors\.index\.json for the shards model-0"):
        load_decoder(shards)
    for text in ('{"weight_map": {"a": 3}}', '{"weight_map": []}', "{}", '{"weight_map": {}}'):
        (shards / INDEX).write_text(text)
        with pytest.raises(ModelError, match="weight_map"):
            load_decoder(shards)


def test_a_tensor_in_two_shards(shards: Path) -> None:
    where, names = mapped(shards), sorted(set(mapped(shards).values()))
    norm, wanted = "model.norm.weight", scores(load_decoder(shards))
    other = next(name for name in names if name != where[norm])
    value = read(shards / where[norm])[norm]
    changed(shards, lambda tensors: {**tensors, norm: value}, other)
    decoder = load_decoder(shards)
    assert torch.equal(scores(decoder), wanted)
    assert decoder.notes == ()
    changed(shards, lambda tensors: {**tensors, norm: value + 1}, other)
    with pytest.raises(ModelError, match=r"model\.norm\.weight is in model-.* and in model-.*, with other values"):
        load_decoder(shards)


@pytest.mark.parametrize(
    ("named", "says"),
    [
        ("model.fp16.safetensors", r"but model\.fp16\.safetensors, which .* its variant; rename it to model\.safetens"),
        ("pytorch_model.bin", r"but pytorch_model\.bin, a pickle, .* save it anew as safetensors"),
        ("weights.h5", r"no model\.safetensors in it; found config\.json, .*weights\.h5"),
    ],
)
def test_weights_under_other_names(folder: Path, named: str, says: str) -> None:
    wanted = scores(load_decoder(folder))
    (folder / named).write_bytes((folder / WEIGHTS).read_bytes())
    decoder = load_decoder(folder)  # beside the file that counts they are nothing
    assert torch.equal(scores(decoder), wanted)
    assert decoder.notes == ()
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=says):
        load_decoder(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
@pytest.mark.parametrize("tied", [True, False])
def test_names_that_are_wrapped_as_a_whole(tmp_path: Path, family: str, tied: bool) -> None:
    tiny_reference(family, tied=tied).save_pretrained(tmp_path)
    wanted, own = scores(load_decoder(tmp_path)), read(tmp_path / WEIGHTS)
    prefix = open_model(tmp_path).family.prefix
    whole = ("_orig_mod.", "module.", "module._orig_mod.", "language_model.", "base_model.model.",
             "_orig_mod._fsdp_wrapped_module.", "module.module.")  # fmt: skip
    renamed = [{before + name: value for name, value in own.items()} for before in whole]
    renamed += [  # inside of the model, whose head stands beside it
        {name.replace(prefix, inner, 1) if name.startswith(prefix) else name: value for name, value in own.items()}
        for inner in (f"{prefix}_orig_mod.", f"{prefix}language_model.", "", f"language_model.{prefix}")
    ]
    for tensors in renamed:
        write_safetensors(tmp_path / WEIGHTS, tensors.items())
        assert torch.equal(scores(load_decoder(tmp_path)), wanted), sorted(tensors)[0]


def test_names_that_are_wrapped_in_part(folder: Path) -> None:
    own = read(folder / WEIGHTS)

    def given(change: Callable[[str], str]) -> None:
        write_safetensors(folder / WEIGHTS, ((change(name), value) for name, value in own.items()))

    given(lambda name: f"_orig_mod.{name}" if "layers.0" in name else name)
    with pytest.raises(ModelError, match=r"do not all begin alike \(.* with 'model\.', .* with '_orig_mod\.model\.'\)"):
        load_decoder(folder)
    given(lambda name: f"module.{name}" if "lm_head" in name else name)
    with pytest.raises(ModelError, match=r"do not all begin alike \(.* with 'model\.', 1 with 'module\.'\)"):
        load_decoder(folder)
    given(lambda name: name.replace("layers.0.", "layers.0._orig_mod."))
    with pytest.raises(ModelError, match=r"have a wrapper in them, such as model\.layers\.0\._orig_mod\."):
        load_decoder(folder)
    given(lambda name: f"student.{name}")
    with pytest.raises(ModelError, match=r"such as student\..*; wanted names such as model\.embed_tokens"):
        load_decoder(folder)
    write_safetensors(
        folder / WEIGHTS, [*own.items(), *((f"_orig_mod.{name}", value + 1) for name, value in own.items())]
    )
    with pytest.raises(ModelError, match="do not all begin alike"):
        load_decoder(folder)


def test_an_adapter_is_no_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="these are adapters of PEFT; give their base model, and them as its adapter"):
        load_decoder(tmp_path / "adapter")


@pytest.mark.parametrize("where", ["", "base_model.model."])
def test_an_unmerged_model_of_peft_is_named(folder: Path, where: str) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    state = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).state_dict()
    cut = {name.removeprefix("" if where else "base_model.model."): one.clone() for name, one in state.items()}
    write_safetensors(folder / WEIGHTS, cut.items())
    with pytest.raises(ModelError, match=r"this is an unmerged PEFT model; save it merged"):
        load_decoder(folder)
    kept = {name.replace(".base_layer", ""): value for name, value in cut.items() if "lora" not in name}
    write_safetensors(folder / WEIGHTS, kept.items())
    load_decoder(folder)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_head_that_is_said_to_be_the_embedding(tmp_path: Path, family: str, kind: torch.dtype) -> None:
    """As transformers: one of the two is both, equal ones are one, and of two that differ each is what it is."""
    tiny_reference(family, tied=False).save_pretrained(tmp_path)
    config(tmp_path, tie_word_embeddings=True)
    own = read(tmp_path / WEIGHTS)
    head = "lm_head.weight"
    embedding = next(name for name in own if name.endswith(("embed_tokens.weight", "wte.weight")))

    decoder = load_decoder(tmp_path)
    assert not decoder.spec.tied
    assert close(scores(decoder), theirs(tmp_path))
    (note,) = decoder.notes
    assert "holds two that differ; each is read as it is" in note

    own[embedding] = own[embedding].to(kind).float()
    equal = {**own, head: own[embedding].to(kind)}
    write_safetensors(tmp_path / WEIGHTS, equal.items())
    decoder = load_decoder(tmp_path)
    assert decoder.spec.tied
    assert decoder.notes == ()
    assert close(scores(decoder), theirs(tmp_path))

    last = {**own, head: own[embedding].clone()}
    last[head][-1, -1] += 1
    write_safetensors(tmp_path / WEIGHTS, last.items())
    assert not load_decoder(tmp_path).spec.tied
    assert close(scores(load_decoder(tmp_path)), theirs(tmp_path))

    write_safetensors(tmp_path / WEIGHTS, ((name, value) for name, value in own.items() if name != embedding))
    decoder = load_decoder(tmp_path)  # the head alone
    assert decoder.spec.tied
    assert torch.equal(decoder.embed.weight, own[head])
    assert close(scores(decoder), theirs(tmp_path))


@pytest.mark.slow
def test_verbs_say_in_a_line_what_is_to_be_known_of_a_folder(tiny_folder: Path, tmp_path: Path) -> None:
    for file in tiny_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed(tmp_path, lambda tensors: {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    data = tmp_path / "rows.json"
    data.write_text(json.dumps(rows(40)))
    for arguments in (
        ("respond", str(tmp_path), "-i", "Go.", "--set", "generate.max_new_tokens=2"),
        ("inspect", str(data), "--model", str(tmp_path)),
    ):
        said = command(*arguments)
        assert said.returncode == 0, said.stderr
        assert "holds two that differ" in " ".join((said.stderr + said.stdout).split())


@pytest.mark.parametrize("tied", [True, False])
def test_what_is_larger_than_a_file_is_written_in_shards(
    tied: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `transformers` does it, and it reads them."""
    import transformers

    tiny_reference("llama", tied=tied).save_pretrained(tmp_path / "one")
    decoder = load_decoder(tmp_path / "one")
    (tmp_path / "many").mkdir()
    monkeypatch.setattr(write_shards, "__defaults__", (6000,))
    save_decoder(decoder, tmp_path / "many", eos_id=1)
    names = sorted(path.name for path in (tmp_path / "many").glob("*.safetensors"))
    assert len(names) > 2
    assert names == [f"model-{at:05d}-of-{len(names):05d}.safetensors" for at in range(1, len(names) + 1)]
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    sizes = [SafetensorsFile(tmp_path / "many" / name) for name in names]
    tensors = {name: file.get(name) for file in sizes for name in file.names()}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert index["weight_map"].keys() == tensors.keys()
    for name in names:  # no file is larger than it may be, but for a tensor that is
        held = [tensors[one].nbytes for one, file in index["weight_map"].items() if file == name]
        assert sum(held) <= 6000 or len(held) == 1
    again = load_decoder(tmp_path / "many")
    for (name, value), other in zip(decoder.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(value, other), name
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "many")
    wanted = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    for (name, value), other in zip(wanted.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(value, other), name
