"""A whole run with adapters: less is trained, the result is a plain model, and PEFT's folder lies beside it."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import instil
from instil.errors import SettingsError
from instil.model.decoder import batch_of_ids
from instil.model.files.peft import TIED_HEAD, load_adapter
from instil.model.load import load_decoder
from instil.recipes.export.export import export
from instil.recipes.plan.plan import plan
from instil.settings.resolve import resolve
from tests.conftest import TINY_END, TINY_VOCABULARY, rows
from tests.recipes.test_export_gguf import folder_of


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"targets": ("q", "v", "head"), "scaling": "alpha", "alpha": 4.0},
        pytest.param({"dora": True}, marks=pytest.mark.slow),
        pytest.param({"trainable_token_indices": (TINY_END, 7, 29)}, marks=pytest.mark.slow),
        {"trainable_token_indices": (TINY_END, 7), "base": "nf4"},
    ],
)
def test_a_run_with_adapters(tiny_folder: Path, tmp_path: Path, more: dict[str, object]) -> None:
    run = instil.finetune(
        rows(40), model=tiny_folder, out=tmp_path / "run", method="lora", lora={"rank": 4, **more},
        learning_rate=2e-2, epochs=2, max_new_tokens=4,
    )  # fmt: skip
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["val_loss"] < records[0]["val_loss"] - 0.05
    model = load_decoder(run.path / "model")
    adapted = load_decoder(tiny_folder)
    load_adapter(adapted, run.path / "adapter")
    ids = torch.arange(5, 30)[None]
    with torch.inference_mode():
        found, wanted, base = (
            one.logits(one(batch_of_ids(ids))) for one in (model, adapted, load_decoder(tiny_folder))
        )
    assert (found - wanted).abs().max() / wanted.abs().max() < 1e-5
    assert (found - base).abs().max() / base.abs().max() > 1e-3
    assert instil.load(run.path).respond("Double the number 3.", max_new_tokens=3) is not None


def test_a_rate_that_silences_the_model_is_not_blamed_on_merging(tiny_folder: Path, tmp_path: Path) -> None:
    """Norms of what is too large are infinite, so that all scores are zero: before merging and after it."""
    settings = {"method": "lora", "learning_rate": 1e5, "max_steps": 2, "eval_every": 1, "patience": 1}
    done = instil.finetune(rows(40), model=tiny_folder, out=tmp_path / "run", max_new_tokens=2, **settings)
    assert done.validation_loss == pytest.approx(math.log(TINY_VOCABULARY), rel=1e-6)


def test_as_in_book_has_the_exercises_adapters() -> None:
    settings = resolve(as_in_book=True, assignments=["train.method=lora"])
    assert (settings.lora.rank, settings.lora.alpha, settings.lora.scaling) == (16, 16.0, "alpha")
    assert settings.lora.targets == ("all", "head")
    assert resolve(assignments=["lora.targets=q_proj, v_proj"]).lora.targets == ("q_proj", "v_proj")
    assert resolve(assignments=['lora.targets=["q", "v"]']).lora.targets == ("q", "v")
    assert resolve(values={"rank": 8}).lora.rank == 8
    for given in ("5, 9", "[5, 9]"):
        chosen = resolve(assignments=[f"lora.trainable_token_indices={given}"])
        assert chosen.lora.trainable_token_indices == (5, 9)
    assert resolve(assignments=["lora.trainable_token_indices=5"]).lora.trainable_token_indices == (5,)
    for given in ("five", "[1.5]", "-1", "[[1]]"):
        with pytest.raises(SettingsError, match=r"lora\.trainable_token_indices"):
            resolve(assignments=[f"lora.trainable_token_indices={given}"])


def test_what_cannot_be_is_refused_before_anything_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    for lora in (
        {"targets": ("q_prok",)}, {"rank": 4096}, {"dora": True, "targets": ("head",), "rank": 2},
        {"trainable_token_indices": (99_999,)}, {"trainable_token_indices": (-1,)},
        {"trainable_token_indices": (3,), "targets": ("head",), "rank": 2},
    ):  # fmt: skip
        with pytest.raises(SettingsError, match="lora"):
            instil.finetune(rows(20), model=tiny_folder, out=tmp_path / "run", method="lora", lora=lora, max_steps=1)
        assert not (tmp_path / "run").exists()
    lora = {"trainable_token_indices": (3,)}
    with pytest.raises(SettingsError, match=r"set train\.untie_head=false"):
        instil.finetune(rows(20), model=tiny_folder, out=tmp_path / "run", method="lora", lora=lora, untie_head=True)


def test_a_plan_counts_what_is_trained(tiny_folder: Path) -> None:
    planned = [
        plan(rows(40), tiny_folder, resolve(values={"method": method, "lora": {"rank": 2}, "max_new_tokens": 2}))
        for method in ("full", "lora")
    ]
    full, lora = (one.memory for one in planned)
    assert full.moments == 2 * full.weights == 2 * lora.weights
    assert 0 < lora.moments < full.moments / 50
    assert planned[0].parameters == planned[1].parameters
    chosen = {"method": "lora", "lora": {"rank": 2, "trainable_token_indices": (5, 9, 7)}, "max_new_tokens": 2}
    rows_too = plan(rows(40), tiny_folder, resolve(values=chosen)).memory
    width = load_decoder(tiny_folder).spec.width
    assert rows_too.moments - lora.moments == 2 * 4 * 3 * width


QUICK = {(True, "all", False), (True, "all,head", False), (True, "q,lm_head", True), (False, "all,head", False)}


@pytest.mark.parametrize(
    ("tied", "targets", "untie"),
    [
        pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow])  # much like one of the quick ones
        for case in itertools.product([True, False], ["all", "all,head", "q,lm_head"], [False, True])
    ],
)
def test_an_adapter_on_a_tied_head_is_warned_of(tied: bool, targets: str, untie: bool, tmp_path: Path) -> None:
    """Before training and in the folder; which forms PEFT opens with equal scores, and which it does not."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = folder_of(tmp_path / "base", "llama", tied=tied, max_position_embeddings=512)
    made = instil.finetune(
        rows(20), model=base, out=tmp_path / "run", method="lora", epochs=2, learning_rate=0.05, max_new_tokens=2,
        untie_head=untie, lora={"targets": targets.split(","), "rank": 2},
    ).path  # fmt: skip
    warned = tied and "head" in targets
    told = [line for line in json.loads((made / "report.json").read_text())["preflight"] if "merge_and_unload" in line]
    assert told == [TIED_HEAD] * warned
    readme = made / "adapter" / "README.md"
    assert readme.is_file() == warned
    assert not warned or TIED_HEAD in readme.read_text()
    ids = torch.arange(5, 30)[None]
    decoder = load_decoder(made / "model")

    def apart(model: Any) -> float:
        with torch.inference_mode():
            wanted = decoder.logits(decoder(batch_of_ids(ids)))
            return float((model(ids).logits[0] - wanted).abs().max() / wanted.abs().max())

    def opened(untied: bool = False) -> Any:
        model = AutoModelForCausalLM.from_pretrained(base)
        if untied:
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
            model.config.tie_word_embeddings = False
        return PeftModel.from_pretrained(model, made / "adapter").eval()

    assert apart(AutoModelForCausalLM.from_pretrained(made / "model").eval()) < 1e-5
    assert apart(opened()) < 1e-5
    assert (apart(opened().merge_and_unload()) < 1e-5) != warned
    assert apart(opened(untied=True).merge_and_unload()) < 1e-5
    export(base, "hf", tmp_path / "merged", adapter=made / "adapter")
    assert apart(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()) < 1e-5
