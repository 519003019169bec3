"""Preference losses and their gradients against TRL's own trainers, for each loss that TRL has."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.data.templates import template_named
from instil.data.tokenizers import load_tokenizer
from instil.model.decoder import Decoder
from instil.model.files.reader import hub_tensors
from instil.model.load import load_decoder
from instil.records import EncodedPair
from instil.settings.options import DpoOptions
from instil.tasks.pairs.batches import collate_pairs
from instil.tasks.pairs.encoding import _after, encode_pair, with_others
from instil.tasks.pairs.losses import Preference, reference_log_probs
from instil.tasks.pairs.source import pairs_from
from instil.train.objective import look
from tests.conftest import TINY_END, TINY_VOCABULARY, tiny_reference

ROWS = [
    {"instruction": "Say hi.", "chosen": "Hi there.", "rejected": "What?"},
    {"instruction": "Name a colour of the sky.", "chosen": "Blue.", "rejected": "Blue, you fool, as it always was."},
    {"instruction": "Double four.", "chosen": "Eight is what it makes.", "rejected": "Eight is wrong."},
]


@pytest.fixture(scope="module")
def trl() -> Any:
    return pytest.importorskip("trl")


@pytest.fixture(scope="module")
def references(tiny_folder: Path) -> tuple[Any, Any]:
    """The policy of `tiny_folder` in transformers, and another model for the reference."""
    import transformers

    policy = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32)
    reference = tiny_reference("llama", vocab_size=TINY_VOCABULARY, seed=2)
    return policy, reference


@pytest.fixture(scope="module")
def ours(tiny_folder: Path, references: Any, tmp_path_factory: Any) -> tuple[Decoder, list[EncodedPair]]:
    """The same policy as a decoder, and the pairs with the reference's log-probabilities."""
    folder = tmp_path_factory.mktemp("reference")
    references[1].save_pretrained(folder)
    tokenizer = load_tokenizer(tiny_folder)
    plain = template_named("plain")
    pairs = with_others([encode_pair(pair, plain, tokenizer) for pair in pairs_from(ROWS).pairs])
    return load_decoder(tiny_folder), scored(load_decoder(folder), pairs)


def scored(reference: Decoder, pairs: list[EncodedPair]) -> list[EncodedPair]:
    found = reference_log_probs(reference, collate_pairs(pairs))
    others = [pair.other for pair in pairs if pair.other]
    with_their_own = scored(reference, others) if others else [None] * len(pairs)
    return [
        replace(pair, reference=one, other=other) for pair, one, other in zip(pairs, found, with_their_own, strict=True)
    ]


def measured(ours: tuple[Decoder, list[EncodedPair]], options: DpoOptions, layout: Any) -> tuple[float, Any, Any]:
    """Mean loss, gradients under the hub's names, metrics."""
    decoder, pairs = ours
    objective = Preference(options)
    batch = collate_pairs(pairs, TINY_END, layout=layout)
    measure = objective.measure([batch])
    measure.begin(decoder)
    decoder.zero_grad()
    loss = measure(decoder, batch) / objective.count(batch)
    loss.backward()
    return float(loss.detach()), gradients(decoder), measure.metrics()


def gradients(decoder: Decoder) -> dict[str, torch.Tensor]:
    """Gradients of a decoder under the names of the hub's format."""
    kept = {name: parameter.data for name, parameter in decoder.named_parameters()}
    for parameter in decoder.parameters():
        parameter.data = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    found = {name: tensor.clone() for name, tensor in hub_tensors(decoder)}
    for name, parameter in decoder.named_parameters():
        parameter.data = kept[name]
    return found


def same(found: tuple[float, Any, Any], loss: torch.Tensor, model: Any) -> None:
    assert found[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    model.zero_grad()
    loss.backward()
    seen = 0
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and name in found[1]:
            largest = float(parameter.grad.abs().max())
            torch.testing.assert_close(found[1][name], parameter.grad, rtol=1e-5, atol=1e-5 * largest + 1e-9, msg=name)
            seen += int(parameter.grad.abs().max() > 1e-4)
    assert seen > 10


def texts() -> list[dict[str, str]]:
    return [{"prompt": f"{row['instruction']}\n", **{key: row[key] for key in ("chosen", "rejected")}} for row in ROWS]


def common(trl: Any, tmp_path: Path, tiny_folder: Path, rows: list[Any], size: int) -> tuple[dict[str, Any], Any]:
    import datasets
    import transformers

    settings = {
        "output_dir": str(tmp_path),
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "per_device_train_batch_size": size,
        "gradient_checkpointing": False,
    }
    kept = {
        "train_dataset": datasets.Dataset.from_list(rows),
        "processing_class": transformers.AutoTokenizer.from_pretrained(tiny_folder),
    }
    return settings, kept


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize(
    ("options", "theirs"),
    [
        (DpoOptions(beta=0.3), {"loss_type": ["sigmoid"], "beta": 0.3}),
        (DpoOptions(beta=0.3, reduction="mean"), {"loss_type": ["sigmoid_norm"], "beta": 0.3}),
        (DpoOptions(loss="ipo", beta=0.2), {"loss_type": ["ipo"], "beta": 0.2}),
        (DpoOptions(nll=0.7), {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.7]}),
    ],
    ids=["dpo", "mean", "ipo", "with nll"],
)
def test_dpo_trainer(
    trl: Any, references: Any, ours: Any, tiny_folder: Path, tmp_path: Path, options: Any, theirs: Any, layout: str
) -> None:
    settings, kept = common(trl, tmp_path, tiny_folder, texts(), len(ROWS))
    args = trl.DPOConfig(**settings, **theirs, train_sampling_strategy="sequential")
    trainer = trl.DPOTrainer(model=references[0], ref_model=references[1], args=args, **kept)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"][:3, :4].tolist() == [list(pair.chosen.ids[:4]) for pair in ours[1]]
    found = measured(ours, options, layout)
    same(found, trainer.compute_loss(trainer.model, batch), references[0])
    told = {name: value[-1] for mode in ("train", "eval") for name, value in trainer._metrics[mode].items() if value}
    for name, theirs_name in {
        "margin": "rewards/margins",
        "accuracy": "rewards/accuracies",
        "chosen_reward": "rewards/chosen",
        "rejected_logp": "logps/rejected",
    }.items():
        if options.loss == "dpo" and options.reduction == "sum":
            assert found[2][name] == pytest.approx(told[theirs_name], rel=1e-4), name


def mixed_as_in_trl(pairs: list[EncodedPair]) -> list[EncodedPair]:
    """The pairs with the answers that TRL puts under each prompt: those of the row before, all rejected ones last."""
    rows = [*(pair.chosen for pair in pairs), *(pair.rejected for pair in pairs)]
    others = [_after(row, before) for row, before in zip(rows, [rows[-1], *rows[:-1]], strict=True)]
    scored_ids = [range(row.prompt_length, len(row.ids)) for row in others]
    half = len(pairs)
    return [
        replace(pair, other=EncodedPair(others[at], others[half + at], scored_ids[at], scored_ids[half + at]))
        for at, pair in enumerate(pairs)
    ]


@pytest.mark.parametrize("layout", ["shared", "padded"])
def test_kto_trainer(trl: Any, references: Any, ours: Any, tiny_folder: Path, tmp_path: Path, layout: str) -> None:
    rows = [
        {"prompt": row["prompt"], "completion": row[side], "label": side == "chosen"}
        for side in ("chosen", "rejected")
        for row in texts()
    ]
    settings, kept = common(trl, tmp_path, tiny_folder, rows, len(rows))
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    args = trl.KTOConfig(**settings, **weights, beta=0.2, train_sampling_strategy="sequential")
    trainer = trl.KTOTrainer(model=references[0], ref_model=references[1], args=args, **kept)
    batch = next(iter(trainer.get_train_dataloader()))
    options = DpoOptions(loss="kto", beta=0.2, desirable=1.5, undesirable=0.5)
    references[1].save_pretrained(tmp_path / "reference")
    pairs = scored(load_decoder(tmp_path / "reference"), mixed_as_in_trl(ours[1]))
    same(measured((ours[0], pairs), options, layout), trainer.compute_loss(trainer.model, batch), references[0])
    told = [value["kl"][-1] for value in trainer._metrics.values() if value.get("kl")]
    assert told and told[0] > 0.01, told  # else it would not matter which answers are mixed


def test_simpo_trainer(trl: Any, references: Any, ours: Any, tiny_folder: Path, tmp_path: Path) -> None:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    settings, kept = common(trl, tmp_path, tiny_folder, texts(), len(ROWS))
    args = CPOConfig(**settings, loss_type="simpo", beta=1.7, simpo_gamma=0.4, cpo_alpha=0.0)
    trainer = CPOTrainer(model=references[0], args=args, **kept)
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(len(ROWS))])
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    same(measured(ours, DpoOptions(loss="simpo", beta=1.7, gamma=0.4), "shared"), loss, references[0])


def test_orpo_trainer(trl: Any, references: Any, ours: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """TRL takes the likelihood over the prompt, too, which is ``data.train_on=all`` here."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    settings, kept = common(trl, tmp_path, tiny_folder, texts(), len(ROWS))
    trainer = ORPOTrainer(model=references[0], args=ORPOConfig(**settings, beta=0.3), **kept)
    batch = trainer.data_collator([trainer.train_dataset[at] for at in range(len(ROWS))])
    loss, _ = trainer.get_batch_loss_metrics(trainer.model, batch)
    tokenizer, plain = load_tokenizer(tiny_folder), template_named("plain")
    pairs = [encode_pair(pair, plain, tokenizer, "all") for pair in pairs_from(ROWS).pairs]
    same(measured((ours[0], pairs), DpoOptions(loss="orpo", beta=0.3), "shared"), loss, references[0])


def test_the_reference_is_looked_up_and_not_learnt(ours: Any) -> None:
    """With the model itself as the reference every loss begins where its paper says."""
    decoder, pairs = ours
    own = scored(decoder, pairs)
    batch = collate_pairs(own)
    for loss, wanted in {"dpo": 0.6931471825, "ipo": 25.0, "kto": 0.5}.items():
        found, metrics = look(Preference(DpoOptions(loss=loss)), decoder, [batch])  # type: ignore[arg-type]
        assert found.mean == pytest.approx(wanted, rel=1e-6), loss
        assert metrics["margin"] == pytest.approx(0.0, abs=1e-5)
        assert metrics["kl"] == pytest.approx(0.0, abs=1e-6)
