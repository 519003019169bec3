"""Angles, scaled in every way that is read, against transformers; and what a GGUF file says of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from instil.errors import ModelError
from instil.generate.prompts import generate
from instil.model.decoder import batch_of_ids
from instil.model.families import FAMILIES
from instil.model.files.folder import save_decoder
from instil.model.load import load_decoder
from instil.model.spec import RopeScaling
from tests.conftest import tiny_reference
from tests.model.family_cases import CASES, FULL, WINDOWED, rope
from tests.model.files.gguf_files import write_gguf
from tests.model.test_families import LLAMA3, change_config, reopened
from tests.model.test_parity import IDS_BT, assert_same_logits

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 20, "rope_theta": 300.0}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"beta_fast": 4.0, "beta_slow": 2.0},
        {"truncate": False, "beta_fast": 3.0},
        {"attention_factor": 0.7},
        {"mscale": 0.8, "mscale_all_dim": 0.5},
        {"mscale": 0.8},
        {"factor": None},
        {"factor": 0.5},
        {"beta_fast": 2.5, "beta_slow": 0.4, "rope_theta": 20000.0, "truncate": False},
        {"rope_theta": 2.0},
        {"original_max_position_embeddings": 1000000},
    ],
)
def test_yarn(more: dict[str, Any], tmp_path: Path) -> None:
    theirs = tiny_reference("llama", head_dim=24, rope_parameters={**YARN, **more})
    theirs.save_pretrained(tmp_path / "theirs")
    assert_same_logits(theirs, tmp_path / "theirs")
    assert_same_logits(reopened(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "theirs")
    ours = load_decoder(tmp_path / "ours").spec
    assert ours == load_decoder(tmp_path / "theirs").spec


@pytest.mark.parametrize("kind", ["yarn", "llama3", "longrope"])
def test_what_a_model_was_first_trained_on_stands_where_transformers_looks(kind: str, tmp_path: Path) -> None:
    """Beside the settings before within them, and else it is the whole context."""
    import transformers

    more = {"yarn": {}, "llama3": {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "longrope": {"short_factor": [1.0, 1.5, 2.0, 9.0], "long_factor": [2.0, 3.0, 4.0, 18.0]}}  # fmt: skip
    settings = {"rope_type": kind, "factor": 4.0, "rope_theta": 300.0, **more[kind]}
    tiny_reference("llama").save_pretrained(tmp_path)
    for values in (
        {"rope_parameters": settings},
        {"rope_parameters": {**settings, "original_max_position_embeddings": 30}},
        {"rope_parameters": settings, "original_max_position_embeddings": 40},
        {"rope_parameters": {**settings, "original_max_position_embeddings": 30},
         "original_max_position_embeddings": 50},
    ):  # fmt: skip
        change_config(tmp_path, **{"original_max_position_embeddings": None, **values})
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
        assert_same_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path)


def test_yarn_in_those_layers_of_gemma3_that_see_everything(tmp_path: Path) -> None:
    full = rope(400.0, "yarn", factor=4.0)
    theirs = tiny_reference("gemma3", rope_parameters={WINDOWED: rope(50.0), FULL: dict(full)})
    theirs.save_pretrained(tmp_path)
    change_config(tmp_path, rope_parameters={WINDOWED: rope(50.0), FULL: full})  # trained on as many as its context
    assert_same_logits(theirs, tmp_path)


def test_longrope_turns_by_its_long_factors_beyond_what_it_was_trained_on(tmp_path: Path) -> None:
    theirs = tiny_reference("phi3-longrope")
    theirs.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    assert decoder.spec.context == 24
    assert decoder.spec.rope_scaling is not None
    assert decoder.spec.rope_scaling.reach == 64
    for length in (23, 24, 25, 40):
        ids = torch.randint(0, 97, (2, length), generator=torch.Generator().manual_seed(length))
        assert_same_logits(theirs, tmp_path, ids)
    short, long = (
        decoder(batch_of_ids(IDS_BT[:1].repeat(1, 2)[:, :length])).view(1, length, -1) for length in (24, 25)
    )
    assert (short - long[:, :24]).abs().max() > 0.01  # the whole text, and not its end alone


def test_a_longrope_model_answers_up_to_what_it_was_trained_on(tmp_path: Path) -> None:
    theirs = tiny_reference("phi3-longrope")
    theirs.save_pretrained(tmp_path)
    decoder = load_decoder(tmp_path)
    (found,) = generate(decoder, [IDS_BT[0, :18].tolist()], max_new_tokens=20, stop_ids=frozenset())
    assert found.finish == "length"
    wanted = theirs.generate(IDS_BT[:1, :18], max_new_tokens=6, do_sample=False, eos_token_id=None)
    assert list(found.ids) == wanted[0, 18:].tolist()


@pytest.mark.parametrize("kind", ["su", "yarn", "longrope"])
def test_phi3_as_the_hub_has_it(kind: str, tmp_path: Path) -> None:
    """Three keys in rope_scaling, by one of three names, and the others beside it; notes of the code on the hub."""
    theirs = tiny_reference("phi3-longrope")
    theirs.save_pretrained(tmp_path / "theirs")
    factors = {"short_factor": [1.0, 1.1, 1.5], "long_factor": [1.5, 3.0, 9.0]}
    change_config(
        tmp_path / "theirs", remove=("rope_parameters",), rope_theta=900.0, partial_rotary_factor=0.75,
        rope_scaling={"type": kind, **factors}, attention_bias=False, resid_pdrop=0.0, full_attn_mod=1,
        auto_map={"AutoConfig": "configuration_phi3.Phi3Config"}, interpolate_factor=1,
    )  # fmt: skip
    assert_same_logits(theirs, tmp_path / "theirs")
    assert_same_logits(reopened(tmp_path / "theirs", tmp_path / "ours"), tmp_path / "theirs")
    stored = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert stored["rope_scaling"] == {"type": "longrope", **factors}
    assert stored["max_position_embeddings"] == 64


def test_phi3_was_first_trained_on_4096_tokens_if_nothing_is_said(tmp_path: Path) -> None:
    theirs = tiny_reference("phi3-longrope", original_max_position_embeddings=4096, max_position_embeddings=9000)
    theirs.save_pretrained(tmp_path)
    change_config(tmp_path, remove=("original_max_position_embeddings", "rope_parameters"), rope_theta=900.0,
                  rope_scaling={"type": "longrope", "short_factor": [1.0, 1.1, 1.5], "long_factor": [1.5, 3.0, 9.0]},
                  partial_rotary_factor=0.75)  # fmt: skip
    assert_same_logits(theirs, tmp_path)
    assert load_decoder(tmp_path).spec.context == 4096


@pytest.mark.parametrize("case", ["phi3", "gpt_neox"])
def test_a_part_of_a_head_is_said_so_that_it_is_read_the_same(case: str, tmp_path: Path) -> None:
    """A part is a fraction, and the dimensions are what is left of their product: 44 * (30 / 44) is less than 30."""
    tiny_reference(case).save_pretrained(tmp_path)
    spec = load_decoder(tmp_path).spec
    family = FAMILIES[spec.family]
    for head_width in (6, 44, 46, 52, 78, 86, 128):
        for turned in range(2, head_width, 2):
            changed = replace(
                spec, head_width=head_width, width=spec.heads * head_width, rotary_width=turned, rope_scaling=None
            )
            assert family.spec_from_config(family.config_from_spec(changed)) == changed


@pytest.mark.parametrize("case", ["llama", "mistral", "smollm3"])
def test_the_factors_of_llama3_in_a_gguf(case: str, tmp_path: Path) -> None:
    """llama.cpp keeps what divides each frequency; the scaling that made them is found again."""
    scaling = {**LLAMA3, "original_max_position_embeddings": 8192, "rope_theta": 500000.0, "factor": 32.0}
    theirs = tiny_reference(case, head_dim=16, rope_parameters=scaling)
    write_gguf(theirs, tmp_path / "tiny.gguf")
    assert load_decoder(tmp_path / "tiny.gguf").spec.rope_scaling == RopeScaling(
        kind="llama3", factor=32.0, low=1.0, high=4.0, context=8192
    )
    assert_same_logits(theirs, tmp_path / "tiny.gguf")


def test_other_factors_in_a_gguf(tmp_path: Path) -> None:
    """Of a scaling that is not Llama's own they are kept as they are, and go to transformers as LongRoPE."""
    import transformers

    theirs = tiny_reference("llama", head_dim=16, rope_parameters={**LLAMA3, "low_freq_factor": 1.5})
    write_gguf(theirs, tmp_path / "tiny.gguf")
    decoder = load_decoder(tmp_path / "tiny.gguf")
    assert decoder.spec.rope_scaling is not None
    assert decoder.spec.rope_scaling.kind == "longrope"
    assert decoder.spec.context == 64
    assert_same_logits(theirs, tmp_path / "tiny.gguf")
    save_decoder(decoder, tmp_path, eos_id=1)
    assert_same_logits(transformers.AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path / "tiny.gguf")


Add = Callable[[gguf.GGUFWriter], None]


def with_header(path: Path, model: Any, add: Add, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GGUF file of the model with more in its header."""
    write = gguf.GGUFWriter.write_header_to_file

    def with_more(writer: gguf.GGUFWriter) -> None:
        add(writer)
        write(writer)

    with monkeypatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "write_header_to_file", with_more)
        write_gguf(model, path)
    return path


def scaling(kind: str | None, factor: float | None, **more: float) -> Add:
    """Keys of the header about the scaling of rope."""

    def add(writer: gguf.GGUFWriter) -> None:
        if kind is not None:
            writer.add_string("llama.rope.scaling.type", kind)
        if factor is not None:
            writer.add_float32("llama.rope.scaling.factor", factor)
        for key, value in more.items():
            if isinstance(value, int):
                writer.add_uint32(f"llama.rope.scaling.{key}", value)
            else:
                writer.add_float32(f"llama.rope.scaling.{key}", value)

    return add


@pytest.mark.parametrize(
    ("add", "wanted"),
    [
        (scaling("none", None), rope(300.0)),
        (scaling("none", 4.0), rope(300.0)),
        (scaling("linear", None), rope(300.0)),
        (scaling("linear", 4.0), rope(300.0, "linear", factor=4.0)),
        (scaling(None, 4.0), rope(300.0, "linear", factor=4.0)),
        (lambda writer: writer.add_float32("llama.rope.scale_linear", 4.0), rope(300.0, "linear", factor=4.0)),
        (scaling("yarn", 4.0, original_context_length=20), YARN),
        (
            scaling("yarn", 4.0, original_context_length=20, yarn_beta_fast=5.0, yarn_beta_slow=2.0),
            {**YARN, "beta_fast": 5.0, "beta_slow": 2.0},
        ),
        (scaling("yarn", 2.0), {**YARN, "factor": 2.0, "original_max_position_embeddings": 64}),
        (
            scaling("yarn", 4.0, original_context_length=20, attn_factor=0.5),
            {**YARN, "attention_factor": 0.5 * (1 + 0.1 * math.log(4))},
        ),
        (
            scaling("yarn", 4.0, original_context_length=20, yarn_attn_factor=1 + 0.1 * math.log(4)),
            YARN,
        ),
        (
            scaling("linear", 2.0, attn_factor=0.8),
            rope(300.0, "longrope", short_factor=[2.0] * 4, long_factor=[2.0] * 4, attention_factor=0.8,
                 original_max_position_embeddings=64),
        ),
    ],
)  # fmt: skip
def test_a_header_that_scales_rope(
    add: Add, wanted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_header(tmp_path / "x.gguf", tiny_reference("llama", rope_parameters=rope(300.0)), add, monkeypatch)
    assert_same_logits(tiny_reference("llama", rope_parameters=wanted), path)


def factors(name: str, *values: float) -> Add:
    return lambda writer: writer.add_tensor(name, np.array(values, dtype=np.float32))


@pytest.mark.parametrize(
    ("add", "says"),
    [
        (scaling("longrope", 2.0), "'longrope' without its factors"),
        (scaling("su", 2.0), "rope scaling 'su'"),
        (scaling("yarn", None), "'yarn' without a factor"),
        (scaling("yarn", 4.0, yarn_ext_factor=0.5), "yarn_ext_factor=0.5"),
        (scaling("yarn", 4.0, yarn_attn_factor=3.0), "yarn_attn_factor=3.0"),
        (scaling("yarn", 4.0, yarn_log_multiplier=0.1), "yarn_log_multiplier=0.1"),
        (factors("rope_freqs.weight", 1.0, 2.0), r"rope_freqs.weight of shape \[2\]; wanted one number for each of 4"),
        (factors("rope_freqs.weight", 1.0, 2.0, 0.0, 1.0), "numbers that cannot divide"),
        (factors("rope_freqs.weight", 1.0, 2.0, math.nan, 1.0), "numbers that cannot divide"),
        (factors("rope_factors_long.weight", 1.0, 2.0, 3.0, 4.0), r"rope_factors_short.weight of shape \[\]"),
        (lambda writer: writer.add_uint32("llama.rope.dimension_count", 4), "rope over 4 of 8 dimensions"),
        (lambda writer: writer.add_uint32("llama.expert_count", 8), "8 experts"),
    ],
)
def test_a_header_that_scales_rope_otherwise_is_refused(
    add: Add, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_header(tmp_path / "x.gguf", tiny_reference("llama"), add, monkeypatch)
    with pytest.raises(ModelError, match=says):
        load_decoder(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("add", "wanted"),
    [
        (lambda writer: writer.add_float32("gemma3.rope.scaling.factor", 8.0), rope(4000.0, "linear", factor=8.0)),
        (
            lambda writer: (
                writer.add_string("gemma3.rope.scaling.type", "yarn"),
                writer.add_float32("gemma3.rope.scaling.factor", 4.0),
            ),
            rope(4000.0, "yarn", factor=4.0),
        ),
    ],
)
def test_a_header_that_scales_rope_of_gemma3(
    add: Add, wanted: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, scaled = (
        tiny_reference("gemma3", query_pre_attn_scalar=10, rope_parameters={WINDOWED: rope(10.0), FULL: full})
        for full in (rope(4000.0), wanted)
    )
    assert_same_logits(scaled, with_header(tmp_path / "x.gguf", plain, add, monkeypatch))


def test_factors_of_one_say_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_reference("llama")
    with_header(tmp_path / "x.gguf", model, factors("rope_freqs.weight", 1.0, 1.0, 1.0, 1.0), monkeypatch)
    assert load_decoder(tmp_path / "x.gguf").spec.rope_scaling is None
    assert_same_logits(model, tmp_path / "x.gguf")


def test_a_family_that_does_not_read_factors_refuses_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_reference("gemma3", **(CASES["gemma3"].gguf or {}))
    with_header(tmp_path / "x.gguf", model, factors("rope_freqs.weight", *[2.0] * 5), monkeypatch)
    with pytest.raises(ModelError, match=r"rope_freqs\.weight are not part of a gemma3 model"):
        load_decoder(tmp_path / "x.gguf")


def test_a_longrope_spec_is_for_texts_that_it_was_trained_on(tmp_path: Path) -> None:
    """Beyond them the angles hang on the other texts of a batch, and on the tokens to come."""
    tiny_reference("phi3-longrope").save_pretrained(tmp_path)
    spec = load_decoder(tmp_path).spec
    with pytest.raises(ValueError, match="a context of 25 goes beyond the 24 tokens of longrope"):
        replace(spec, context=25)
