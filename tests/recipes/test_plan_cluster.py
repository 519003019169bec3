"""The arithmetic of a plan on paper, against figures that are counted by hand, and against what autograd keeps."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from instil.batches import Batch
from instil.errors import SettingsError
from instil.layouts import Tree
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from instil.model.fast import narrow as narrow_ways
from instil.model.spec import DecoderSpec
from instil.recipes.plan import cluster as cluster_module
from instil.recipes.plan.activations import head_bytes, kept_bytes, of_adapters, of_layer, working_bytes
from instil.recipes.plan.cluster import OTHERS, Cluster, Fit, Parts, Rows, Way, cluster_of, fit, held, size_of
from instil.recipes.plan.operations import of_token, visible
from instil.recipes.plan.sizes import Sizes, sizes_of
from instil.settings.resolve import resolve
from instil.tasks.adapters import adapt
from instil.train.losses import nll_sum
from tests.conftest import tiny_reference
from tests.recipes.kept import kept_for_backward
from tests.recipes.shapes import LLAMA_3_8B, SMALL

EIGHT = FAMILIES["llama"].spec_from_config(LLAMA_3_8B)
GB = 10**9


def sizes(spec: DecoderSpec, *assignments: str) -> Sizes:
    return sizes_of(spec, resolve(assignments=assignments))


def gpus(ranks: int = 1, memory: int = 80 * GB, link: float = 100.0) -> Cluster:
    return Cluster(ranks, 1, memory, tflops=100.0, efficiency=0.5, link=link)


def test_a_small_decoder_is_counted_as_by_hand() -> None:
    found = sizes(SMALL)
    # of a block: (2 + 2) * 4 * 8 of attention in, 8 * 8 out, 32 * 8 gate and up, 8 * 16 down, and two norms of 8
    products = 128 + 64 + 256 + 128
    assert (found.block.products, found.block.all) == (products, products + 16)
    assert found.outside.all == 10 * 8 + 10 * 8 + 8
    assert found.parameters == found.trained == 2 * (products + 16) + 168 == 1352
    assert found.bytes == 4 * 1352
    assert (found.adapters, found.head_trained, found.few_bits) == (0, True, False)
    assert found.largest_gradient == 256
    tied = sizes(replace(SMALL, tied=True))
    assert tied.parameters == 1352 - 80
    assert sizes(replace(SMALL, tied=True), "train.untie_head=true").parameters == 1352


def test_adapters_are_counted_as_by_hand() -> None:
    found = sizes(SMALL, "train.method=lora", "lora.rank=2")
    # two numbers for each row and column of q, k, v, out, gate, up and down
    assert found.adapters == 2 * 2 * ((8 + 8) + 2 * (8 + 4) + (8 + 8) + 2 * (8 + 16) + (16 + 8))
    # as they are held, one matrix has the B of q, k and v, and one those of gate and up, with zeros between
    zeros = 2 * 2 * (2 * (8 + 4 + 4) + 1 * (16 + 16))
    assert found.trained == found.adapters + zeros
    assert found.parameters == 1352
    assert found.block.ranks == 2 * 7
    assert not found.head_trained


def test_weights_in_few_bits_take_four_and_a_half(  # a code of four bits, and a scale of 32 for 64 of them
) -> None:
    plain = sizes(EIGHT, "train.method=lora")
    few = sizes(EIGHT, "train.method=lora", "lora.base=nf4")
    assert few.few_bits
    assert few.blocks.products == plain.blocks.products
    assert plain.bytes - few.bytes == plain.blocks.products * (32 - 4.5) / 8


def test_llama_3_8b_is_counted_as_by_hand() -> None:
    found = sizes(EIGHT)
    attention = 4096 * (4096 + 2 * 1024) + 4096 * 4096
    assert found.block.all == attention + 3 * 4096 * 14336 + 2 * 4096 == 218_112_000
    assert found.parameters == 32 * 218_112_000 + 2 * 128_256 * 4096 + 4096 == 8_030_261_248
    adapted = sizes(EIGHT, "train.method=lora", "lora.rank=16")
    one = 2 * (4096 + 4096) + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    assert adapted.adapters == 32 * 16 * one == 41_943_040
    assert adapted.parameters == found.parameters


def test_what_a_layer_keeps_of_a_token_is_counted_as_by_hand() -> None:
    # the stream twice; queries, keys and values as projected, as turned, and as attention reads them; what attention
    # makes, twice, and a number for each head; gate and up
    assert of_layer(SMALL, 0, 4) == 4 * (2 * 8 + 16 + 12 + (8 + 4 + 4) + 8 + 8 + 2 + 32)
    # in bfloat16 besides: what both norms make, and what the gate lets through; what is turned stays as it is
    assert of_layer(SMALL, 0, 2) == 4 * (2 * 8 + 12 + 2) + 2 * (2 * 8 + 16 + (8 + 4 + 4) + 8 + 8 + 32 + 16)
    found = sizes(SMALL)
    assert kept_bytes(SMALL, found, 100, 4, checkpointing=False) == 100 * (2 * of_layer(SMALL, 0, 4) + 32)
    assert kept_bytes(SMALL, found, 100, 4, checkpointing=True) == 100 * (2 * 32 + of_layer(SMALL, 0, 4) + 32)
    assert head_bytes(SMALL, found, 100, 4) == 4 * 100 * 10 + 2 * 4 * 100 * 8
    # pieces of half a gigabyte, of which the head's gradient is added up
    whole, states, table = sizes(EIGHT), 2 * 4 * 10**5 * 4096, 128_256 * 4096
    assert head_bytes(EIGHT, whole, 10**5, 4) == 2**29 + states + 2 * 4 * table
    assert head_bytes(EIGHT, whole, 10**5, 2) == 1.5 * 2**29 + states + 2 * table + (4 + 2) * table
    assert head_bytes(EIGHT, whole, 1000, 2) == 1.5 * 4 * 1000 * 128_256 + 2 * 4 * 1000 * 4096 + 2 * table
    frozen = sizes(EIGHT, "train.method=lora")
    assert head_bytes(EIGHT, frozen, 10**5, 4) == 2**25 + states  # smaller ones where it has no gradient
    assert head_bytes(replace(SMALL, logits_softcap=3.0), found, 100, 4) == 2 * 4 * 100 * 10 + 2 * 4 * 100 * 8


FAMILIES_TRIED = ("llama", "gpt2", "gemma2", "gemma3", "qwen3", "gpt_neox", "lfm2", "phi3")


@pytest.mark.parametrize("family", FAMILIES_TRIED)
@pytest.mark.parametrize(("method", "bf16"), [("full", False), ("lora", False), ("lora", True)])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_autograd_keeps_what_is_counted(
    family: str, method: str, bf16: bool, checkpointing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a tenth. Plans are of GPUs, where autocast goes its own ways, as it is made to here.

    With bfloat16 norms must be frozen here: on a CPU torch makes trained ones of several steps."""
    monkeypatch.setattr(narrow_ways, "NARROW", torch.float16)
    config = tiny_reference(family).config.to_dict()
    spec = FAMILIES[config["model_type"].removesuffix("_text")].spec_from_config(config)
    spec = replace(spec, width=256, mlp_width=512, context=128)
    settings = resolve(assignments=[f"train.method={method}", "lora.rank=4"])
    counted = sizes_of(spec, settings)
    lengths = [65, 63, 64, 64]  # rows of a batch are seldom of one length, and are set side by side for attention
    tokens, narrow = sum(lengths), 2 if bf16 else 4
    decoder = Decoder(spec).train()
    if method == "lora":
        adapt(decoder, settings)
    decoder.gradient_checkpointing = checkpointing
    ids_N = torch.randint(0, spec.vocab_size, (tokens,))
    batch = Batch(
        ids_N, torch.cat([torch.arange(length) for length in lengths]),
        torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)), torch.arange(tokens),
        ids_N.roll(-1), torch.ones(tokens), Tree.of(lengths),
    )  # fmt: skip
    with kept_for_backward(decoder) as kept, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = nll_sum(decoder, batch)
    found = sum(kept.nbytes().values())
    assert loss.requires_grad
    head = tokens * (narrow * spec.vocab_size + 4 * spec.width)  # scores, and the states that they are made of
    copies = 2 * counted.blocks.products if bf16 and not checkpointing else 0
    expected = kept_bytes(spec, counted, tokens, narrow, checkpointing=checkpointing) + head + copies
    if checkpointing:  # forward alone has not made any layer again
        again = max(of_layer(spec, layer, narrow) for layer in range(spec.layers))
        expected -= tokens * (again + of_adapters(counted, narrow) // spec.layers)
    assert found == pytest.approx(expected, rel=0.1)


def test_one_gpu_holds_what_is_counted_by_hand() -> None:
    found = held(Way("full", "fp32", "", False), gpus(), SMALL, sizes(SMALL), 100, 4, waits=False)
    assert found.weights == 4 * 1352
    assert found.gradients == 4 * 256  # each goes as soon as its weight is updated
    assert found.moments == 8 * 1352
    assert (found.copies, found.communication, found.others) == (0, 0, OTHERS)
    activations = kept_bytes(SMALL, sizes(SMALL), 100, 4, checkpointing=False) + working_bytes(SMALL, 100, 4)
    assert found.activations == activations
    assert found.total == 4 * 1352 + 4 * 256 + 8 * 1352 + activations + found.head + OTHERS
    waiting = held(Way("full", "fp32", "", False), gpus(), SMALL, sizes(SMALL), 100, 4, waits=True)
    assert waiting.gradients == 4 * 1352


def test_ddp_holds_everything() -> None:
    ddp = held(Way("full", "fp32", "no", True), gpus(16), EIGHT, sizes(EIGHT), 1024, 2, waits=False)
    whole = 4 * 8_030_261_248
    assert (ddp.weights, ddp.gradients, ddp.moments) == (whole, whole, 2 * whole)
    assert ddp.copies == 2 * 32 * (218_112_000 - 2 * 4096)
    assert ddp.communication == 0
    assert ddp.total > 140 * GB


@pytest.mark.parametrize("narrow", [False, True])
def test_fsdp2_holds_its_share_and_what_it_gathers(narrow: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "GATHERS_NARROW", narrow)
    counted = sizes(EIGHT)
    fsdp = held(Way("full", "fp32", "full", True), gpus(16), EIGHT, counted, 1024, 2, waits=False)
    whole = 4 * 8_030_261_248
    assert (fsdp.weights, fsdp.gradients, fsdp.moments) == (whole // 16, whole // 16, whole // 8)
    outside, norms, each = 2 * 128_256 * 4096 + 4096, 2 * 4096, 2 if narrow else 4
    gathered = 3 * (each * (218_112_000 - norms) + 4 * norms) + 4 * outside
    assert fsdp.communication == gathered + 4 * (2 * 218_112_000 + outside)
    ddp = held(Way("full", "fp32", "no", True), gpus(16), EIGHT, counted, 1024, 2, waits=False)
    assert (fsdp.activations, fsdp.head, fsdp.copies) == (ddp.activations, ddp.head, 0 if narrow else ddp.copies)


def test_weights_in_few_bits_are_shared_out_and_gathered_as_they_are_held() -> None:
    counted = sizes(EIGHT, "train.method=lora", "lora.base=nf4")
    one, many = (held(Way("lora", "nf4", "full", True), gpus(n), EIGHT, counted, 1024, 2, waits=False) for n in (1, 16))
    assert one.weights == counted.bytes
    block, adapters = counted.block, counted.block.all - counted.block.products
    codes = (218_112_000 - 2 * 4096) * 9 // 16  # bytes: four bits, and four bytes for 64 of them
    assert one.weights - many.weights == (4 * (counted.all - counted.blocks.products) + 32 * codes) * 15 // 16
    assert many.communication == 3 * codes + 4 * (3 * adapters + counted.outside.all) + 4 * 2 * block.trained


def test_frozen_weights_are_cast_block_by_block_where_blocks_are_made_again() -> None:
    counted = sizes(EIGHT, "train.method=lora")
    kept = held(Way("lora", "fp32", "", False), gpus(), EIGHT, counted, 1024, 2, waits=False)
    again = held(Way("lora", "fp32", "", True), gpus(), EIGHT, counted, 1024, 2, waits=False)
    assert (kept.copies, again.copies) == (2 * counted.blocks.products, 2 * counted.block.products)
    few = sizes(EIGHT, "train.method=lora", "lora.base=nf4")
    assert held(Way("lora", "nf4", "", True), gpus(), EIGHT, few, 1024, 2, waits=False).copies == 8 * 28672 * 4096


def test_operations_are_counted_as_by_hand() -> None:
    counted = sizes(SMALL)
    assert (visible(4, None), visible(4, 4), visible(4, 2), visible(4, 1)) == (2.5, 2.5, 1.75, 1.0)
    found = of_token(SMALL, counted, 4)
    forward = 2 * 2 * 576 + 2 * 4 * 8 * 2.5 + 2 * 8 * 10
    assert (found.forward, found.backward, found.again) == (forward, 2 * forward, 0)
    half = of_token(SMALL, counted, 4, 0.5, checkpointing=True)
    assert half.forward == forward - 80
    assert half.again == forward - 160  # the head is not made again
    assert half.all == 3 * half.forward + half.again
    windowed = of_token(replace(SMALL, windows=(2, None)), counted, 4)
    assert windowed.forward == forward - 4 * 8 * (2.5 - 1.75)
    frozen = of_token(SMALL, sizes(SMALL, "train.method=lora", "lora.rank=2"), 4)
    adapters = 2 * 2 * 2 * 128  # two operations for each of their numbers in both layers
    assert frozen.forward == forward + adapters
    assert frozen.backward == 2 * 2 * 576 + 2 * adapters + 2 * 2 * 4 * 8 * 2.5 + 160


def test_the_most_rows_at_once_that_fit() -> None:
    counted, rows = sizes(EIGHT, "train.method=lora", "lora.base=nf4"), Rows(32, 1024, 1000)
    way = Way("lora", "nf4", "no", False)

    def tried(memory: int, micro_batch: int = 0, ranks: int = 2) -> Fit:
        return fit(way, gpus(ranks, memory), EIGHT, counted, rows, narrow=2, micro_batch=micro_batch)

    def total(count: int) -> int:
        return held(way, gpus(2), EIGHT, counted, count * 1024, 2, waits=True).total

    found = tried(80 * GB)
    assert (found.fits, found.micro_batch, found.accumulation) == (True, 8, 2)
    assert total(8) <= 76 * GB < total(16)
    assert tried(160 * GB).micro_batch == 16
    assert tried(total(8)).micro_batch == 4  # some of it stays free
    assert tried(10 * GB) == replace(found, fits=False, micro_batch=1, accumulation=16, parts=tried(10 * GB).parts,
                                     pass_tokens=1000)  # fmt: skip
    assert tried(10 * GB).parts.total == total(1)
    wanted = tried(80 * GB, micro_batch=3)
    assert (wanted.micro_batch, wanted.accumulation) == (3, 6)
    assert not tried(80 * GB, micro_batch=16).fits
    assert (
        fit(way, gpus(3), EIGHT, counted, replace(rows, batch=4), narrow=2).micro_batch == 2
    )  # two rows for the first


def test_a_step_takes_as_long_as_computing_or_sending(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = sizes(SMALL)
    rows = Rows(8, 32, 4.0)
    ddp, fsdp = (
        fit(Way("full", "fp32", one, False), gpus(4), SMALL, counted, rows, narrow=4) for one in ("no", "full")
    )
    computing = of_token(SMALL, counted, 4).all * 2 * 4 / (100e12 * 0.5)  # two rows of four tokens on each of four
    assert ddp.compute_seconds == fsdp.compute_seconds == pytest.approx(computing)
    assert ddp.link_seconds == pytest.approx(0.75 * 2 * 4 * 1352 / 100e9)
    assert fsdp.link_seconds == pytest.approx(0.75 * 3 * 4 * 1352 / 100e9)
    way = Way("full", "fp32", "full", False)
    twice = fit(way, gpus(4), SMALL, counted, rows, narrow=2, micro_batch=1)
    once = fit(way, gpus(4), SMALL, counted, rows, narrow=2)
    assert twice.link_seconds == 2 * once.link_seconds
    products = counted.blocks.products  # which go in bfloat16
    assert once.link_seconds == pytest.approx(0.75 * (2 * (2 * products + 4 * (1352 - products)) + 4 * 1352) / 100e9)
    monkeypatch.setattr(cluster_module, "GATHERS_NARROW", False)
    assert fit(way, gpus(4), SMALL, counted, rows, narrow=2).link_seconds == fsdp.link_seconds
    assert ddp.seconds == max(ddp.compute_seconds, ddp.link_seconds)
    assert ddp.tokens_per_second == pytest.approx(32 / ddp.seconds)
    assert ddp.bound == "the network"
    alone = fit(Way("full", "fp32", "", False), gpus(1), SMALL, counted, rows, narrow=4)
    assert (alone.link_seconds, alone.bound) == (0, "computing")
    pairs = fit(Way("full", "fp32", "", False), gpus(1), SMALL, counted, replace(rows, sequences=2), narrow=4)
    assert pairs.seconds == pytest.approx(2 * alone.seconds)
    assert pairs.parts.activations == 2 * alone.parts.activations


@pytest.mark.parametrize(
    ("text", "size"), [("80GB", 80 * GB), ("24GiB", 24 * 2**30), ("1.5 tb", 1500 * GB), ("512MB", 512 * 10**6)]
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    assert size_of(text) == size


@pytest.mark.parametrize(
    "text", ["80", "", "GB", "-80GB", "0GB", "80 bananas", "1e3GB", "999999999TB", "٨٠GB", "nanGB"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"--gpu-memory .*such as 80GB"):
        size_of(text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpus": 0}, "--gpus 0"),
        ({"gpus": -8}, "--gpus -8"),
        ({"gpus": 10**6}, "--gpus 1000000"),
        ({"nodes": 0}, "--nodes 0"),
        ({"efficiency": 0.0}, "--efficiency 0"),
        ({"efficiency": 35.0}, "--efficiency 35"),
        ({"efficiency": math.nan}, "--efficiency nan"),
        ({"tflops": 0.0}, "--gpu-tflops 0"),
        ({"link": -1.0}, "--gpu-link -1"),
    ],
)
def test_clusters_that_cannot_be_are_refused(options: dict[str, float], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        cluster_of(**{"gpus": 8, "memory": "80GB", "precision": "bf16", **options})  # type: ignore[arg-type]


def test_a_cluster_of_several_nodes_is_bound_by_what_lies_between_them() -> None:
    one, two = (cluster_of(8, "80GB", "bf16", nodes=nodes) for nodes in (1, 2))
    assert (one.ranks, two.ranks) == (8, 16)
    assert (one.link, two.link) == (300.0, 25.0)
    assert cluster_of(8, "80GB", "fp32").tflops == 19.5
    assert cluster_of(8, "80GB", "bf16", tflops=989.0, link=50.0, efficiency=0.4) == Cluster(
        8, 1, 80 * GB, 989.0, 0.4, 50.0
    )


def test_all_parts_add_up() -> None:
    assert Parts(1, 2, 4, 8, 16, 32, 64, 128).total == 255
