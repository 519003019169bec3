"""A model that no process ever has as a whole: read in parts, trained, saved a tensor at a time, and asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from instil.data.loader import Loader
from instil.errors import ModelError
from instil.generate.prompts import generate
from instil.machine import FORGET, forget_peak, memory_now, peak_memory, release
from instil.model.decoder import Decoder
from instil.model.elsewhere import Trained, load_elsewhere
from instil.model.files.folder import save_decoder
from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from instil.model.frozen import HELD, FrozenLinear, quantise_base
from instil.model.load import load_decoder
from instil.model.lora import add_lora, merge
from instil.model.lora_layer import LoraLinear
from instil.model.resize import grow_vocabulary
from instil.settings.options import TrainOptions
from instil.tasks.adapters import MergeError, merged_later
from instil.train.loop import train
from instil.train.observer import TrainResult
from instil.train.parallel.processes import Processes
from instil.train.ranks import ALONE, Ranks, UnreadWeights
from tests.conftest import tiny_reference
from tests.train.parallel.pool import Pool
from tests.train.parallel.test_processes import assert_near
from tests.train.test_state import some_rows

HOW: dict[str, dict[str, Any]] = {
    "full": {},
    "untied, grown": {"untied": True, "vocab_size": 101},
    "lora": {"rank": 2},
    "lora, some, head": {"rank": 2, "targets": ("q", "down", "head")},
    "lora, int8": {"rank": 2, "held": "int8", "targets": ("v", "up", "down")},
    "lora, nf4": {"rank": 2, "held": "nf4"},
    "lora, dora": {"rank": 2, "dora": True, "targets": ("q", "v", "up", "down")},
    "lora, rows of tokens": {"rank": 2, "trainable_token_indices": (3, 7)},
    "lora, rows of tokens, untied, grown": {
        "rank": 2,
        "trainable_token_indices": (3, 98),
        "untied": True,
        "vocab_size": 101,
    },
}


ALSO = ("llama", 2), ("gpt2", 3)  # others where there is time


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Pool]]:
    made = {world: Pool(world) for world in (2, 3)}
    yield made
    for pool in made.values():
        pool.close()


def in_parts(ranks: Ranks) -> Processes:
    return Processes(ranks.rank, ranks.world, sharded=True)


def prepared(decoder: Decoder, how: dict[str, Any]) -> Decoder:
    """As `instil.tasks` makes it ready to be trained."""
    if how.get("untied"):
        decoder.untie()
    if how.get("held"):
        quantise_base(decoder, how["held"])
    if how.get("rank"):
        more = {name: how[name] for name in ("targets", "dora", "trainable_token_indices") if name in how}
        add_lora(decoder, rank=how["rank"], seed=3, **more)
    return decoder


def tuned(decoder: Decoder, ranks: Ranks, **changed: Any) -> TrainResult:
    options = TrainOptions(**{"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "eval_every": 2} | changed)
    held = [batch for step in Loader(some_rows(4, first=100), 4, pad_id=0).steps() for batch in step]
    loader = Loader(some_rows(11), 4, pad_id=0, share=ranks.share)
    return train(decoder, loader, options, validation=held, ranks=ranks)


def records(result: TrainResult) -> list[dict[str, Any]]:
    return [asdict(one) | {"seconds": 0.0, "tokens_per_second": 0.0} for one in result.records]


def save(decoder: Decoder, ranks: Ranks, folder: Path, adapters: bool) -> None:
    """The first process saves; with adapters it needs no other for that."""
    if adapters:
        if ranks.rank == 0:
            save_decoder(merged_later(decoder), folder, eos_id=1)
    elif ranks.rank == 0:
        save_decoder(ranks.collected(decoder), folder, eos_id=1)
        ranks.agree("")
    else:
        ranks.hand_over(dict(decoder.named_parameters()))


def from_files(ranks: Ranks, model: Path, how: dict[str, Any], to: Path) -> list[dict[str, Any]]:
    ranks = in_parts(ranks)
    more = {"dtype": torch.float64, "vocab_size": how.get("vocab_size", 0)}
    decoder = prepared(load_elsewhere(model, **more), how)
    found = records(tuned(decoder, ranks))
    save(decoder, ranks, to, "rank" in how)
    return found


WAYS = [
    pytest.param(name, family, world, marks=() if (family, world) in ALSO else pytest.mark.slow)
    for name in HOW
    for family, world in (("llama", 2), ("gpt2", 2), ("llama", 3), ("gpt2", 3))
]


@pytest.mark.parametrize(("name", "family", "world"), WAYS)
def test_they_train_and_save_what_one_does(
    name: str, family: str, world: int, pools: dict[int, Pool], tmp_path: Path
) -> None:
    how = HOW[name]
    tiny_reference(family).save_pretrained(tmp_path / "model")
    for folder in ("one", "many"):
        (tmp_path / folder).mkdir()
    alone = load_decoder(tmp_path / "model", dtype=torch.float64)
    grow_vocabulary(alone, max(alone.spec.vocab_size, how.get("vocab_size", 0)))
    wanted = records(tuned(prepared(alone, how), ALONE))
    if "rank" in how:
        merge(alone)
    save_decoder(alone, tmp_path / "one", eos_id=1)
    for found in pools[world].call(from_files, tmp_path / "model", how, tmp_path / "many"):
        for one, other in zip(found, wanted, strict=True):
            assert_near(one, other, f"step {one['step']}", 1e-12)
    assert_same_folders(tmp_path / "many", tmp_path / "one")


@pytest.mark.parametrize("name", HOW)
def test_what_is_trained_begins_as_where_all_of_it_is_here(name: str, tmp_path: Path) -> None:
    """Read tensor by tensor, as by who goes back to before the first step."""
    how = HOW[name]
    tiny_reference("gpt2").save_pretrained(tmp_path)
    here = load_decoder(tmp_path, dtype=torch.float64)
    grow_vocabulary(here, size := max(here.spec.vocab_size, how.get("vocab_size", 0)))
    wanted = dict(Trained(prepared(here, how)))
    found = Trained(prepared(load_elsewhere(tmp_path, dtype=torch.float64, vocab_size=size), how))
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


def assert_same_folders(found: Path, wanted: Path) -> None:
    assert sorted(file.name for file in found.iterdir()) == sorted(file.name for file in wanted.iterdir())
    for name in ("config.json", "generation_config.json"):
        assert (found / name).read_text() == (wanted / name).read_text()
    one, other = (SafetensorsFile(folder / "model.safetensors") for folder in (found, wanted))
    assert list(one._entries.items()) == list(other._entries.items())  # the same header, in the same order
    for name in one.names():  # Adam's first steps go by signs, so those of numbers that are nearly zero may differ
        torch.testing.assert_close(one.get(name), other.get(name), rtol=1e-6, atol=1e-6)


def test_a_layer_that_is_merged_otherwise_than_it_computes_is_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_reference("llama").save_pretrained(tmp_path)
    decoder = prepared(load_elsewhere(tmp_path), HOW["lora"])
    for module in decoder.modules():
        if isinstance(module, LoraLinear):
            torch.nn.init.ones_(module.lora_b)
    monkeypatch.setattr(LoraLinear, "change", lambda self: torch.zeros_like(self.weight))
    elsewhere = merged_later(decoder).elsewhere
    assert elsewhere is not None
    elsewhere.parameter("norm.weight")
    with pytest.raises(MergeError, match=r"changed the outputs of blocks\.0\.mlp\.down\.weight by "):
        elsewhere.parameter("blocks.0.mlp.down.weight")


def damaged(ranks: Ranks, model: Path) -> str:
    ranks = in_parts(ranks)
    with pytest.raises(UnreadWeights) as found, ranks.sharding(load_elsewhere(model)):
        pass
    return str(found.value)


def test_all_are_told_that_one_cannot_read_its_part(pools: dict[int, Pool], tmp_path: Path) -> None:
    """The others would wait for it for ever."""
    tiny_reference("llama").save_pretrained(tmp_path)
    file = SafetensorsFile(tmp_path / "model.safetensors")
    own = {name: file.get(name) for name in file.names()}
    own["model.norm.weight"][-1] = torch.inf
    write_safetensors(tmp_path / "model.safetensors", own.items())
    with pytest.raises(ModelError):
        load_decoder(tmp_path)
    said = pools[2].call(damaged, tmp_path)
    assert said[0] == said[1]
    assert "norm.weight hold values that are not finite numbers" in said[0]


def codes_held(ranks: Ranks, model: Path, how: dict[str, Any], elsewhere: bool) -> list[tuple[int, int]]:
    """Bytes of codes and scales that this process holds of each layer in few bits, and all bytes of them."""
    decoder = prepared((load_elsewhere if elsewhere else load_decoder)(model), how)
    layers = [layer for layer in decoder.modules() if isinstance(layer, FrozenLinear)]
    assert not any(isinstance(one, torch.nn.Parameter) for layer in layers for one in (layer.codes_P, layer.scales_G))
    all_bytes = [layer.nbytes for layer in layers]
    with in_parts(ranks).sharding(decoder, narrow=True) as parts:
        shared = [layer for layer in parts.modules() if isinstance(layer, FrozenLinear)]
        own = [sum(getattr(layer, name).to_local().nbytes for name in HELD) for layer in shared]
        for module in parts.modules():
            if isinstance(module, FSDPModule):
                module.unshard()
        assert {(layer.codes_P.dtype, layer.scales_G.dtype) for layer in shared} == {
            (torch.int8 if how["held"] == "int8" else torch.uint8, torch.float32)
        }
    if not elsewhere:  # as they were
        assert [layer.nbytes for layer in layers] == all_bytes
        assert not any(isinstance(one, DTensor) for layer in layers for one in (layer.codes_P, layer.scales_G))
    return list(zip(own, all_bytes, strict=True))


@pytest.mark.parametrize("elsewhere", [True, False])
@pytest.mark.parametrize("held", ["int8", "nf4"])
def test_codes_of_few_bits_are_shared_out_too(
    held: str, elsewhere: bool, pools: dict[int, Pool], tmp_path: Path
) -> None:
    tiny_reference("llama").save_pretrained(tmp_path)
    found = pools[3].call(codes_held, tmp_path, {"rank": 2, "held": held, "targets": ("v", "down")}, elsewhere)
    assert found[0]
    for of_layer in zip(*found, strict=True):
        whole = of_layer[0][1]
        assert sum(own for own, _ in of_layer) == whole
        assert all(own <= whole / 3 + 8 for own, _ in of_layer)


LAYERS, WIDTH, ROOM = 24, 256, 0.2  # 101 MB of blocks of 4 MB each, and an embedding of 0.1 MB


def llama(folder: Path, layers: int) -> Path:
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    sizes = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": layers}
    tiny_reference("llama", **sizes, **heads).save_pretrained(folder)
    return folder


class Measures(Processes):
    """Looks at what was taken when each process has its part, before gradients and moments."""

    taken: Callable[[], float]
    load = 0.0

    @contextmanager
    def sharding(self, decoder: Decoder, *, narrow: bool = False) -> Iterator[Decoder]:
        with super().sharding(decoder, narrow=narrow) as parts:
            self.load = self.taken()
            yield parts


def models_taken(ranks: Ranks, model: Path, to: Path, how: dict[str, Any], whole: bool) -> dict[str, float]:
    """The most memory that this process takes beside what it held before, by what it does; in models."""
    ranks, size = Measures(ranks.rank, ranks.world, sharded=True), (model / "model.safetensors").stat().st_size
    release()
    before = memory_now()

    def taken() -> float:
        peak = peak_memory() - before
        release()
        assert forget_peak()
        return peak / size

    assert forget_peak()
    decoder = prepared(load_decoder(model) if whole else load_elsewhere(model), how)
    ranks.taken = taken  # type: ignore[method-assign]
    tuned(decoder, ranks, epochs=1, max_steps=2)
    found = {"load": ranks.load, "train": taken()}
    if not whole:
        before = memory_now()  # its part, and what training has left behind
        save(decoder, ranks, to, "rank" in how)
        found["save"] = taken()
    return found


@pytest.mark.skipif(not FORGET.exists(), reason="the system does not tell the peak of a part of the work")
@pytest.mark.parametrize("name", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_no_process_ever_has_all_of_it(name: str, pools: dict[int, Pool], tmp_path: Path) -> None:
    """Two have half of it each, and besides a tensor when they load and save, and a few blocks when they train."""
    how, two, large = HOW[name], pools[2], llama(tmp_path / "large", LAYERS)
    (tmp_path / "saved").mkdir()
    # What is imported, compiled and connected once is no part of a model.
    two.call(models_taken, llama(tmp_path / "small", 2), tmp_path / "saved", how, False)
    held = 0.5 * (4 if name == "full" else 1)  # with gradients and moments
    for found in two.call(models_taken, large, tmp_path / "saved", how, False):
        assert found["load"] < 0.5 + ROOM, found
        assert found["train"] < held + 4 / LAYERS + ROOM, found
        assert found["save"] < ROOM, found
    for found in two.call(models_taken, large, tmp_path / "saved", how, True):
        assert found["load"] > 1.0, found
    assert_same_shapes(tmp_path / "saved", large)


def models_taken_to_ask(ranks: Ranks, model: Path) -> dict[str, float]:
    """The most memory that this process takes while a model is asked in parts, and what it has left; in models."""
    ranks, size = in_parts(ranks), (model / "model.safetensors").stat().st_size
    release()
    before = memory_now()
    assert forget_peak()
    _ask(ranks, model)
    peak = peak_memory() - before
    release()
    return {"ask": peak / size, "left": (memory_now() - before) / size}


def _ask(ranks: Ranks, model: Path) -> None:
    with ranks.sharding(load_elsewhere(model)) as parts, ranks.in_step(parts):
        prompts = [[5, 6, 7 + ranks.rank, number] for number in range(8)]
        generate(parts, prompts, max_new_tokens=6 if ranks.rank else 12, stop_ids=frozenset())


@pytest.mark.skipif(not FORGET.exists(), reason="the system does not tell the peak of a part of the work")
def test_no_process_has_all_of_what_it_asks(pools: dict[int, Pool], tmp_path: Path) -> None:
    two = pools[2]
    two.call(models_taken_to_ask, llama(tmp_path / "small", 2))
    for found in two.call(models_taken_to_ask, llama(tmp_path / "large", LAYERS)):
        assert found["ask"] < 0.5 + 2 / LAYERS + ROOM, found
        assert found["left"] < ROOM, found


def assert_same_shapes(found: Path, wanted: Path) -> None:
    one, other = (SafetensorsFile(folder / "model.safetensors") for folder in (found, wanted))
    assert {name: one.entry(name).shape for name in one.names()} == {
        name: other.entry(name).shape for name in other.names()
    }
