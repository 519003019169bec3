"""Layers that convolve: which tokens come before which in every layout and in the cache, and LFM2's own words."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
import torch.nn.functional as F

from instil.batches import Batch
from instil.data import tree
from instil.data.collate import collate, collate_shared
from instil.errors import ModelError
from instil.generate.engine import Engine
from instil.generate.prompts import generate
from instil.generate.request import Request
from instil.layouts import Grid, Tree
from instil.model.attention import Branches, PaddedGrid, pattern_for
from instil.model.cache import Cache, Part, position_bytes
from instil.model.decoder import Decoder, ShortConvolution, batch_of_ids
from instil.model.families import FAMILIES
from instil.model.files.folder import save_decoder
from instil.model.files.peft import load_adapter, save_adapter
from instil.model.load import load_decoder
from instil.model.lora import add_lora
from instil.model.preceding import Steps
from instil.model.rounded.int8 import Int8Linear
from instil.model.rounded.weights import round_weights
from instil.model.spec import DecoderSpec
from instil.records import Encoded
from instil.tasks.pairs.batches import collate_pairs
from instil.train.losses import log_probs, nll_sum
from tests.closeness import assert_e1
from tests.conftest import tiny_reference
from tests.generate.test_engine import naive
from tests.model.files.gguf_files import write_gguf
from tests.model.test_families import change_config, reopened
from tests.model.test_lora import IDS, moved, scores
from tests.model.test_parity import assert_same_logits
from tests.parity.test_pair_layouts import gradients, one_by_one, pair
from tests.train.test_training import SPECS, decoder

CPU = torch.device("cpu")
CONV, FULL = "conv", "full_attention"
LONG = DecoderSpec(  # no attention between them, so that a wrong neighbour is seen at once; one sees a token alone
    family="lfm2", vocab_size=17, width=6, layers=3, heads=2, kv_heads=1, head_width=4, mlp_width=8, context=32,
    norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope", qk_norm="head", convolutions=(5, 1, 3),
)  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def every_beginning() -> Iterator[None]:
    """What these few tokens have in common is set together, which would not be worth it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree, "WORTH", 1)
        yield


def long() -> Decoder:
    """A model of convolutions alone, of which two reach farther than prefixes and stems are long."""
    torch.manual_seed(3)
    model = Decoder(LONG).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def found(steps: Steps) -> list[list[int | None]]:
    """Which token is one step, two steps, ... before each."""
    return [
        [None if place in none.tolist() else token for place, token in enumerate(index.tolist())]
        for index, none in steps
    ]


def test_which_tokens_come_before_which() -> None:
    grid = PaddedGrid(Grid(2, 3), CPU)
    assert found(grid.steps(2, CPU)) == [[None, 0, 1, None, 3, 4], [None, None, 0, None, None, 3]]
    assert found(grid.steps(0, CPU)) == []
    shared = Branches(Tree.of([3, 1], prefix=2), CPU)  # 0 1 | 2 3 4 | 5
    assert found(shared.steps(3, CPU)) == [
        [None, 0, 1, 2, 3, 1],
        [None, None, 0, 1, 2, 0],
        [None, None, None, 0, 1, None],
    ]
    assert found(Branches(Tree.of([2, 1]), CPU).steps(1, CPU)) == [[None, 0, None]]
    forks = Branches(Tree((-1, 0, 1, 1, 0, 0), (1, 2, 2, 1, 1, 2), rows=4), CPU)  # 0 | 1 2 | 3 4 | 5 | 6 | 7 8
    assert found(forks.steps(3, CPU)) == [
        [None, 0, 1, 2, 3, 2, 0, 0, 7],
        [None, None, 0, 1, 2, 1, None, None, 0],
        [None, None, None, 0, 1, 0, None, None, None],
    ]


def test_in_a_cache_what_came_before_lies_behind_the_new_tokens() -> None:
    caches = [Cache(LONG, room, dtype=torch.float64, device=CPU) for room in (4, 8)]
    for cache, lengths in zip(caches, [[1], [0, 3]], strict=True):
        for row, length in enumerate(lengths):
            cache.add()
            cache.lengths[row] = length
            for position in range(length):
                cache.keys[0][row, :, position] = 10 * cache.length + 100 * row + position
    parts = [Part(caches[0], (0,), (2,)), Part(caches[1], (1, 0), (1, 3))]
    attend = pattern_for(batch_of_ids(torch.zeros(1, 6, dtype=torch.long)), parts)
    x_ND = torch.arange(6.0, dtype=torch.float64)[:, None].expand(-1, 6)
    source_MD, steps = attend.preceding(0, x_ND, 2)
    read = [[None if at is None else source_MD[at, 0].item() for at in step] for step in found(steps)]
    assert read == [[40, 0, 182, None, 3, 4], [None, 40, 181, None, None, 3]]
    assert caches[0].keys[0][0, 0, :3, 0].tolist() == [40, 0, 1]
    assert caches[1].keys[0][:2, 0, :4, 0].tolist() == [[3, 4, 5, 0], [180, 181, 182, 2]]


@pytest.mark.parametrize("length", [1, 2, 3, 7])
@pytest.mark.parametrize("bias", [False, True])
def test_one_layer_is_that_of_transformers_in_float64(length: int, bias: bool) -> None:
    """Outputs and gradients of all that goes in, where rows are longer and shorter than the convolution."""
    from transformers import Lfm2Config
    from transformers.models.lfm2.modeling_lfm2 import Lfm2ShortConv

    spec = DecoderSpec(**{**_fields(LONG), "convolutions": (length,) * 3, "convolution_bias": bias})
    config = Lfm2Config(hidden_size=6, num_hidden_layers=1, layer_types=[CONV], conv_L_cache=length, conv_bias=bias)
    torch.manual_seed(length)
    theirs, ours = Lfm2ShortConv(config, 0).double(), ShortConvolution(spec, 0, length).double()
    weights = {"weight": theirs.conv.weight, "bias": theirs.conv.bias}
    for name in ("in_proj", "out"):
        module = theirs.get_submodule(name.replace("out", "out_proj"))
        weights |= {f"{name}.{kind}": value for kind, value in module.named_parameters()}
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(weights[name].detach().view(parameter.shape))
    x = torch.randn(3, 5, 6, dtype=torch.float64, requires_grad=True)
    factors = torch.randn(3, 5, 6, dtype=torch.float64)
    wanted = theirs(x)
    made = ours(x.flatten(0, 1), PaddedGrid(Grid(3, 5), CPU), None, None).view(3, 5, 6)
    torch.testing.assert_close(made, wanted, rtol=1e-13, atol=1e-13)
    names = [name for name, _ in ours.named_parameters()]
    for_theirs = torch.autograd.grad((wanted * factors).sum(), [x, *(weights[name] for name in names)])
    for_ours = torch.autograd.grad((made * factors).sum(), [x, *ours.parameters()])
    for mine, other in zip(for_ours, for_theirs, strict=True):
        torch.testing.assert_close(mine, other.view(mine.shape), rtol=1e-12, atol=1e-12)


def _fields(spec: DecoderSpec) -> dict[str, Any]:
    return {name: getattr(spec, name) for name in DecoderSpec.__dataclass_fields__}


def test_backward_keeps_the_gates_and_the_input_alone() -> None:
    model, held = long(), {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    convolution = model.blocks[0].convolution
    bcx = torch.randn(50, 18, dtype=torch.float64, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda one: one):
        convolution._mixed(PaddedGrid(Grid(5, 10), CPU), None, bcx)
    assert sum(held.values()) == bcx.nbytes + convolution.weight.nbytes


def test_padding_and_short_rows_are_as_each_row_alone(tmp_path: Path) -> None:
    """Against transformers, which is given a row at a time."""
    theirs = tiny_reference("lfm2")
    theirs.save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    rows = [torch.randint(0, 97, (length,)) for length in (1, 2, 9, 4)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=5)
    with torch.no_grad():
        ours = model.logits(model(batch_of_ids(padded))).view(*padded.shape, -1)
        for row, logits in zip(rows, ours, strict=True):
            wanted = theirs(row[None]).logits[0]
            torch.testing.assert_close(logits[: len(row)], wanted, rtol=1e-5, atol=1e-5)


ROW_LENGTHS = (2, 3, 4, 9)


@pytest.mark.parametrize("prefix", [0, 1, 2, 6])
def test_a_shared_prefix_of_any_length(prefix: int) -> None:
    common = [7, 3, 11, 2, 9, 5][:prefix]
    rows = [
        Encoded((*common, *range(n, n + own)), (True,) * (prefix + own)) for n, own in enumerate(ROW_LENGTHS, start=1)
    ]
    for model in (long(), decoder("lfm2")):
        wanted = torch.stack([nll_sum(model, collate([row], 0)) for row in rows]).sum()
        shared = collate_shared(rows)
        lengths = [prefix + own - 1 for own in ROW_LENGTHS]
        assert shared.layout == Tree.of([length - prefix for length in lengths], prefix=prefix)
        expected = [wanted.detach(), *torch.autograd.grad(wanted, list(model.parameters()), allow_unused=True)]
        for batch in (collate(rows, 0), shared):
            loss = nll_sum(model, batch)
            made = [loss.detach(), *torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)]
            assert_e1(*([one for one in both if one is not None] for both in (made, expected)))


@pytest.mark.parametrize("prefix", [0, 1, 2, 6])
def test_stems_shorter_than_the_convolution(prefix: int) -> None:
    common = [7, 3, 11, 2, 9, 5][:prefix]
    pairs = [
        pair((*common, *range(n, n + stem + 1)), (16, 1, 2, n)[: 1 + n], (15, 3), n)
        for n, stem in enumerate((0, 1, 2, 5))
    ]
    for model in (long(), decoder("lfm2")):
        wanted = one_by_one(model, pairs, None)
        factors = torch.arange(1.0, len(wanted) + 1, dtype=torch.float64)
        expected = gradients(model, (wanted * factors).sum())
        batch = collate_pairs(pairs)
        assert isinstance(batch.layout, Tree)
        assert batch.layout.rows == 8
        assert len(batch.layout.lengths) == 8 + bool(prefix) + 3  # one pair has no stem
        sums = wanted.new_zeros(len(wanted)).index_add(0, batch.row_M, log_probs(model, batch)[batch.prediction_M])
        torch.testing.assert_close(sums, wanted, rtol=1e-12, atol=1e-12)
        assert_e1(gradients(model, (sums * factors).sum()), expected)


def fed(model: Decoder, parts: list[Part], ids: list[list[int]]) -> list[torch.Tensor]:
    """Hidden states of new tokens of some rows, in the order of the parts."""
    starts = [part.cache.lengths[row] for part in parts for row in part.rows]
    positions = [torch.arange(start, start + len(row)) for start, row in zip(starts, ids, strict=True)]
    lengths = tuple(len(row) for row in ids)
    batch = Batch.untargeted(
        torch.tensor([token for row in ids for token in row]),
        torch.cat(positions),
        torch.arange(len(ids)).repeat_interleave(torch.tensor(lengths)),
        Tree.of(lengths),
    )
    return list(torch.split(model(batch, parts), lengths))


@torch.no_grad()
def test_rows_of_unlike_caches_that_are_cut_copied_and_dropped() -> None:
    for model in (long(), decoder("lfm2")):
        texts = [[int(n) for n in torch.randint(0, 17, (13,))] for _ in range(4)]
        wanted = [model(batch_of_ids(torch.tensor([text]))) for text in texts]
        small, large = model.new_cache(13), model.new_cache(16)
        for cache in (small, large):
            cache.add()
            cache.add()

        # Rows of two caches, of unlike lengths, in no order.
        parts = [Part(small, (1, 0), (2, 5)), Part(large, (0, 1), (1, 3))]
        first = fed(model, parts, [texts[1][:2], texts[0][:5], texts[2][:1], texts[3][:3]])
        for states, text, count in zip(first, (1, 0, 2, 3), (2, 5, 1, 3), strict=True):
            torch.testing.assert_close(states, wanted[text][:count], rtol=1e-11, atol=1e-12)

        # One goes on in another cache; one is cut back to its beginning, and goes on as it had not.
        large.add()
        small.copy(0, large, 2, 4)
        large.lengths[1] = 1
        parts = [Part(large, (0, 1, 2), (3, 4, 1)), Part(small, (1,), (1,))]
        then = fed(model, parts, [texts[2][1:4], texts[3][1:5], texts[0][4:5], texts[1][2:3]])
        for states, text, span in zip(then, (2, 3, 0, 1), ((1, 4), (1, 5), (4, 5), (2, 3)), strict=True):
            torch.testing.assert_close(states, wanted[text][slice(*span)], rtol=1e-11, atol=1e-12)

        # The first leaves; the last takes its place.
        assert large.drop(0) == 2
        (states,) = fed(model, [Part(large, (0,), (2,))], [texts[0][5:7]])
        torch.testing.assert_close(states, wanted[0][5:7], rtol=1e-11, atol=1e-12)


def test_a_remembered_beginning_may_be_used_up_to_anywhere() -> None:
    for model in (long(), decoder("lfm2")):
        engine = Engine(model)
        engine.warm([1, 2, 3, 4, 5, 6, 7, 8])
        for shared in range(1, 9):
            prompt = [*range(1, shared + 1), 16, 14]
            before = engine.tokens
            engine.submit(Request(prompt, max_new_tokens=4))
            ((_, answer),) = engine.run()
            assert list(answer.ids) == naive(model, prompt, 4, frozenset())[0]
            assert engine.tokens - before < len(prompt) - shared + 4 + 1  # the beginning was not computed again


def test_answers_are_those_of_transformers(tmp_path: Path) -> None:
    theirs = tiny_reference("lfm2")
    theirs.save_pretrained(tmp_path)
    theirs.generation_config.eos_token_id = None
    model = load_decoder(tmp_path)
    prompts = [[5], [9, 2], [40, 33, 7, 61, 3, 8, 1], [5, 9]]
    ours = generate(model, prompts, max_new_tokens=12, stop_ids=frozenset(), batch_size=3)
    for prompt, answer in zip(prompts, ours, strict=True):
        wanted = theirs.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, pad_token_id=0)
        assert list(answer.ids) == wanted[0, len(prompt) :].tolist()


def test_what_a_position_takes_is_what_the_cache_has() -> None:
    for spec in (LONG, SPECS["lfm2"], SPECS["llama"]):
        cache = Cache(spec, 5, dtype=torch.float32, device=CPU)
        cache.reserve(3)
        held = sum(tensor.nbytes for tensor in (*cache.keys, *cache.values))
        assert held == 3 * 5 * position_bytes(spec, torch.float32)
    assert position_bytes(SPECS["lfm2"], torch.float64) == 8 * (12 + 2 * 2 * 6 + 12)


def test_adapters_of_convolutions_go_both_ways_with_peft(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model
    from transformers import AutoModelForCausalLM

    tiny_reference("lfm2").save_pretrained(tmp_path / "base")
    names = ["in_proj", "out_proj", "k_proj", "w1"]
    config = LoraConfig(r=3, lora_alpha=7, target_modules=names, task_type="CAUSAL_LM", init_lora_weights=False)
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_decoder(tmp_path / "base")
    load_adapter(ours, tmp_path / "theirs")
    with torch.inference_mode():
        wanted = theirs(IDS).logits.flatten(0, 1)
    torch.testing.assert_close(scores(ours), wanted, rtol=1e-5, atol=1e-5)

    ours = load_decoder(tmp_path / "base")
    trained = add_lora(ours, rank=2, targets=("in_proj",))
    assert trained == 3 * 2 * (24 + 72)
    save_adapter(moved(ours), tmp_path / "ours", "x")
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "ours").eval()
    with torch.inference_mode():
        wanted = again(IDS).logits.flatten(0, 1)
    torch.testing.assert_close(scores(ours), wanted, rtol=1e-5, atol=1e-5)
    assert (wanted - scores(load_decoder(tmp_path / "base"))).abs().max() > 1e-2


def test_eight_bit_weights_are_of_all_projections() -> None:
    spec = DecoderSpec(**{**_fields(LONG), "width": 64, "mlp_width": 64})
    torch.manual_seed(0)
    model = Decoder(spec)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        exact = model(batch_of_ids(ids))
        round_weights(model, "int8")
        assert all(isinstance(block.convolution.in_proj, Int8Linear) for block in model.blocks)
        rounded = model(batch_of_ids(ids))
    assert 0 < (rounded - exact).abs().max() / exact.abs().max() < 0.1


HUB = {  # LiquidAI/LFM2-1.2B, in small
    "block_auto_adjust_ff_dim": True, "block_dim": 24, "block_ff_dim": 50, "block_ffn_dim_multiplier": 1.0,
    "block_mlp_init_scale": 1.0, "block_multiple_of": 8, "block_norm_eps": 1e-5, "block_out_init_scale": 1.0,
    "block_use_swiglu": True, "block_use_xavier_init": True, "conv_L_cache": 3, "conv_bias": False, "conv_dim": 24,
    "conv_dim_out": 24, "conv_use_xavier_init": True, "full_attn_idxs": [1, 3], "num_heads": 6,
    "rope_theta": 1000000.0, "tie_embedding": True, "theta": 1000000.0, "use_pos_enc": True,
}  # fmt: skip
THE_HUBS = ("rope_parameters", "layer_types", "intermediate_size", "tie_word_embeddings", "head_dim")


def on_the_hub(folder: Path, **changes: Any) -> Any:
    """A folder whose configuration speaks as the hub's do, and the model of transformers that it describes."""
    import transformers

    values = {**HUB, **changes}
    sizes = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2}
    config = transformers.Lfm2Config(**values, **sizes, vocab_size=97, max_position_embeddings=64)
    config.use_cache = False  # theirs must have a layer with attention
    torch.manual_seed(0)
    theirs = transformers.Lfm2ForCausalLM(config).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=0.1 if parameter.dim() == 1 else 0.0, std=0.2)
    theirs.save_pretrained(folder)
    change_config(folder, remove=THE_HUBS, **values)
    return theirs


@pytest.mark.parametrize(
    ("changes", "mlp_width", "attending"),
    [
        ({}, 40, [1, 3]),
        ({"block_ffn_dim_multiplier": 1.3}, 48, [1, 3]),
        ({"block_auto_adjust_ff_dim": False}, 50, [1, 3]),
        ({"block_multiple_of": 1}, 33, [1, 3]),
        ({"full_attn_idxs": []}, 40, []),
        ({"full_attn_idxs": None}, 40, [0, 1, 2, 3]),
        ({"layer_types": [FULL, CONV, CONV, CONV]}, 40, [0]),
        ({"tie_embedding": False}, 40, [1, 3]),
        ({"conv_bias": True, "conv_L_cache": 1}, 40, [1, 3]),
    ],
)
def test_configurations_of_the_hub(
    changes: dict[str, Any], mlp_width: int, attending: list[int], tmp_path: Path
) -> None:
    theirs = on_the_hub(tmp_path / "theirs", **changes)
    spec = load_decoder(tmp_path / "theirs").spec
    assert spec.mlp_width == mlp_width
    assert [layer for layer in range(4) if spec.convolution_of(layer) is None] == attending
    assert spec.tied is changes.get("tie_embedding", True)
    assert_same_logits(theirs, tmp_path / "theirs")
    again = reopened(tmp_path / "theirs", tmp_path / "ours")
    again.config.use_cache = False
    assert_same_logits(again, tmp_path / "theirs")


def test_a_width_that_is_not_rounded_and_defaults_that_are_null(tmp_path: Path) -> None:
    theirs = on_the_hub(tmp_path, block_multiple_of=1)
    nulls = ("conv_L_cache", "conv_bias", "block_auto_adjust_ff_dim", "tie_embedding", "layer_types")
    change_config(tmp_path, block_multiple_of=8, block_ffn_dim_multiplier=None, **dict.fromkeys(nulls))
    assert_same_logits(theirs, tmp_path)


def test_the_base_of_the_angles_is_another_familys_only_where_it_is_given(tmp_path: Path) -> None:
    theirs = on_the_hub(tmp_path)
    change_config(tmp_path, remove=("rope_theta",))
    assert load_decoder(tmp_path).spec.rope_theta == 1_000_000.0
    assert_same_logits(theirs, tmp_path)
    change_config(tmp_path, rope_parameters={"rope_theta": 50.0, "rope_type": "default"})
    assert load_decoder(tmp_path).spec.rope_theta == 50.0


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"layer_types": [CONV, FULL, CONV, "sliding_attention"]}, "sliding_attention"),
        ({"layer_types": [CONV, FULL]}, "2 convolutions for 4 layers"),
        ({"layer_types": 7}, "makes no sense"),
        ({"conv_L_cache": 0}, "wanted whole numbers above zero"),
        ({"conv_L_cache": "3"}, "wanted whole numbers above zero"),
        ({"conv_bias": "no"}, "convolution_bias is 'no'"),
        ({"conv_dim": 48}, "conv_dim=48 beside hidden_size=24"),
        ({"block_use_swiglu": False}, "block_use_swiglu=False"),
        ({"use_pos_enc": False}, "use_pos_enc=False"),
        ({"block_multiple_of": 0}, "makes no sense"),
        ({"block_ff_dim": "wide"}, "makes no sense"),
        ({"block_ff_dim": 51, "block_auto_adjust_ff_dim": False}, "do not belong together"),
        ({"num_experts": 8}, "num_experts=8"),
        ({"model_type": "lfm2_moe"}, "read here: .*lfm2"),
    ],
)
def test_what_is_not_implemented_is_refused(values: dict[str, Any], says: str, tmp_path: Path) -> None:
    on_the_hub(tmp_path)
    change_config(tmp_path, **values)
    with pytest.raises(ModelError, match=says):
        load_decoder(tmp_path)


def test_unlike_convolutions_are_not_saved_and_unlike_layers_contradict(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"room for convolutions of one length, and this model has \[1, 3, 5\]"):
        save_decoder(long(), tmp_path, eos_id=1)
    with pytest.raises(ValueError, match="2 convolutions for 3 layers"):
        DecoderSpec(**{**_fields(LONG), "convolutions": (1, 2)})


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_transformers_reads_the_same_from_a_gguf(kind: str, tmp_path: Path) -> None:
    import transformers

    reference = tiny_reference(
        "lfm2", hidden_size=32, intermediate_size=64, block_ffn_dim_multiplier=1.0, block_multiple_of=32,
        conv_bias=False, tied=False,
    )  # fmt: skip
    write_gguf(reference, tmp_path / "tiny.gguf", gguf.GGMLQuantizationType[kind])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="tiny.gguf", dtype=torch.float32, config=reference.config
    )
    assert_same_logits(theirs, tmp_path / "tiny.gguf")


@pytest.mark.parametrize("kinds", [[CONV] * 4, [FULL] * 4, [FULL, CONV, CONV, FULL]])
def test_a_gguf_says_which_layers_convolve_by_their_heads(kinds: list[str], tmp_path: Path) -> None:
    theirs = tiny_reference("lfm2", layer_types=kinds, use_cache=False)  # theirs must have a layer with attention
    write_gguf(theirs, tmp_path / "tiny.gguf")
    assert_same_logits(theirs, tmp_path / "tiny.gguf")


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("lfm2.rope.dimension_count", 4, "rope over 4 of 8 dimensions"),
        ("lfm2.attention.sliding_window", 4, "a window of 4 tokens"),
        ("lfm2.attention.head_count_kv", [0, 2, 1, 0], r"unlike numbers of key/value heads, \[1, 2\]"),
        ("lfm2.attention.head_count_kv", [0, 2], "2 convolutions for 4 layers"),
        ("lfm2.attention.head_count_kv", [0, 2, 2, 0], "no tensor 'blk.2.attn_q"),
        ("lfm2.shortconv.l_cache", 5, "do not belong together"),
    ],
)
def test_a_gguf_that_is_not_read_is_refused(
    key: str, value: Any, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from instil.model.files import gguf as ours

    real = ours.read_gguf

    def changed(path: Path) -> Any:
        header = real(path)
        header.values[key] = value
        return header

    monkeypatch.setattr(ours, "read_gguf", changed)
    write_gguf(tiny_reference("lfm2"), tmp_path / "tiny.gguf")
    with pytest.raises(ModelError, match=says):
        load_decoder(tmp_path / "tiny.gguf")


def test_what_a_gguf_is_told_of_convolutions_and_what_llama_cpp_does_not_compute() -> None:
    (layers,) = (row for row in FAMILIES["lfm2"].keys if "convolutions" in row.fields)
    said = {"width": 8, "convolutions": (3, None, 3), "convolution_bias": False}
    spec = DecoderSpec(**{**_fields(LONG), **said})
    assert layers.to_gguf(spec) == {"attention.head_count_kv": [0, 1, 0], "shortconv.l_cache": 3}
    for change, says in (
        ({"convolution_bias": True}, "only without biases"),
        ({"width": 12}, "heads that together are as wide as the model"),
        ({"convolutions": (3, None, 4)}, r"GGUF of an lfm2 model has room for .* of one length, .*\[3, 4\]"),
    ):
        with pytest.raises(ModelError, match=says):
            layers.to_gguf(DecoderSpec(**{**_fields(LONG), **said, **change}))


def test_losses_are_those_of_transformers(tmp_path: Path) -> None:
    """Of rows of unlike lengths, padded on the right and masked there, as a trainer gives them."""
    theirs = tiny_reference("lfm2")
    theirs.save_pretrained(tmp_path)
    rows = [tuple(torch.randint(0, 97, (length,)).tolist()) for length in (3, 12, 7)]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row), dtype=torch.long) for row in rows], batch_first=True)
    logits = theirs(ids, attention_mask=mask).logits[:, :-1].flatten(0, 1)
    targets = ids.masked_fill(mask == 0, -100)[:, 1:].flatten()
    wanted = F.cross_entropy(logits, targets, reduction="sum", ignore_index=-100)
    found = nll_sum(load_decoder(tmp_path), collate([Encoded(row, (True,) * len(row)) for row in rows], 0))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
