"""``--as-in-book`` gives the numbers of an independent, naive chapter 7."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from instil.errors import ModelError
from instil.generate.answer import answer
from instil.model.files.reader import hub_tensors
from instil.model.find import find_model
from instil.model.load import load_decoder
from instil.recipes.run.run import run
from instil.runs import observers
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.task import loader_for
from instil.tasks.tune import tune
from instil.train.metrics import read_metrics
from instil.train.optimizer import AdamWInBackward
from tests.conftest import BOOK_DATA, rows, single_bytes
from tests.parity.naive_book import NaiveGPT, run_chapter

STEPS = 20
BYTES = single_bytes()


@pytest.fixture(scope="module")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random GPT-2 over single bytes, whose end of text is 256: quick, and as exact as any."""
    folder = tmp_path_factory.mktemp("tiny-gpt2")
    torch.manual_seed(11)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, n_positions=512, vocab_size=257, bos_token_id=256, eos_token_id=256
    )
    model = transformers.GPT2LMHeadModel(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    BYTES.save(folder)
    return folder


def entries() -> list[dict[str, str]]:
    """110 rows of unequal length, so that 11 whole batches and a rest make an epoch."""
    made = rows(110)
    for index, row in enumerate(made):
        row["output"] += " And again." * (index % 5)
    return made


def test_every_loss_and_gradient_is_the_naive_ones(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((tiny_gpt2 / "config.json").read_text())
    stored = dict(transformers.GPT2LMHeadModel.from_pretrained(tiny_gpt2).state_dict())
    stored.pop("lm_head.weight")
    naive = NaiveGPT(stored, config["n_head"], config["n_layer"], config["layer_norm_epsilon"])
    wanted_gradients: dict[str, torch.Tensor] = {}

    def keep(step: int, model: NaiveGPT) -> None:
        if step == 3:
            wanted_gradients.update({name: w.grad.clone() for name, w in model.w.items() if w.grad is not None})

    wanted = run_chapter(naive, entries(), BYTES.encode, end=256, steps=STEPS, on_gradients=keep)

    settings = resolve(as_in_book=True, values={"max_steps": STEPS})
    prepared = prepare(entries(), tiny_gpt2, settings)
    decoder = load_decoder(tiny_gpt2, dtype=torch.float64)
    decoder.untie()
    original = AdamWInBackward._update
    fourth: dict[int, torch.Tensor] = {}

    def spy(self: AdamWInBackward, parameters: Sequence[torch.Tensor]) -> None:
        for parameter in parameters:
            if self.state[parameter][2] == 3:
                assert parameter.grad is not None
                fourth[id(parameter)] = parameter.grad.clone()
        original(self, parameters)

    monkeypatch.setattr(AdamWInBackward, "_update", spy)
    result = tune(prepared, decoder)
    holder = load_decoder(tiny_gpt2, dtype=torch.float64)
    holder.untie()
    whole = {id(parameter) for parameter in decoder.parameters()}
    (read,) = (grad for key, grad in fourth.items() if key not in whole)  # of the rows of the embedding that are read
    loader = loader_for(prepared, "train")
    assert loader is not None
    fourth[id(decoder.embed.weight)] = torch.zeros_like(decoder.embed.weight).index_put(
        (torch.tensor(loader.ids()),), read
    )
    with torch.no_grad():
        for mine, theirs in zip(holder.parameters(), decoder.parameters(), strict=True):
            mine.copy_(fourth[id(theirs)])
    found_gradients = dict(hub_tensors(holder))
    records = result.records
    assert [r.train_loss for r in records[1:]] == pytest.approx(wanted["steps"], rel=1e-10)
    evaluated = [r for r in records if r.eval_train_loss is not None]
    assert [r.step for r in evaluated] == [0, 1, 6, 11, 16]
    assert [r.eval_train_loss for r in evaluated] == pytest.approx(wanted["train"], rel=1e-10)
    assert [r.val_loss for r in evaluated] == pytest.approx(wanted["validation"], rel=1e-10)
    assert found_gradients.keys() == wanted_gradients.keys()
    for name, gradient in wanted_gradients.items():
        torch.testing.assert_close(found_gradients[name], gradient, rtol=1e-9, atol=1e-12)


def test_the_switch_sets_the_chapters_choices(tiny_gpt2: Path) -> None:
    settings = resolve(as_in_book=True)
    prepared = prepare(rows(1100), tiny_gpt2, settings)
    assert [len(prepared.split.part(part)) for part in ("train", "test", "validation")] == [935, 110, 55]
    loader = loader_for(prepared, "train")
    assert loader is not None
    assert len(loader) == 116
    assert (settings.train.learning_rate, settings.train.weight_decay, settings.train.epochs) == (5e-5, 0.1, 2)
    assert settings.generate.max_new_tokens == 256
    changed = resolve(as_in_book=True, assignments=["train.epochs=1", "data.template=phi3"])
    assert (changed.train.epochs, changed.data.template, changed.train.drop_last) == (1, "phi3", True)


def test_a_run_as_in_the_book(tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample after each epoch, an untied head in the saved model, and the header left to the model."""
    asked: list[bool] = []

    def spy(*arguments: Any) -> Any:
        asked.append(arguments[4].header)
        return answer(*arguments)

    monkeypatch.setattr(observers, "answer", spy)
    made = run(
        entries(), tiny_gpt2, tmp_path / "run", resolve(as_in_book=True, values={"max_new_tokens": 4}),
        screen=Screen(quiet=True),
    )  # fmt: skip
    samples = [json.loads(line) for line in (made.path / "samples.jsonl").read_text().splitlines()]
    assert sorted({sample["step"] for sample in samples}) == [11, 22]
    assert asked == [False, False]
    assert json.loads((made.path / "model" / "config.json").read_text())["tie_word_embeddings"] is False
    assert len(read_metrics(made.path / "metrics.jsonl")) == 23


@pytest.mark.slow
def test_gpt2_medium_gives_the_printed_losses(tmp_path: Path) -> None:
    """3.8259 / 3.7619 before training, 0.296 +- 0.010 / 0.657 +- 0.006 after 230 steps."""
    data = Path(os.environ.get("INSTIL_BOOK_DATA", BOOK_DATA / "instruction-data.json"))
    try:
        find_model("gpt2-medium")
    except ModelError as error:
        pytest.skip(f"the weights of gpt2-medium are not on this machine: {error}")
    if not data.is_file():
        pytest.skip(f"the chapter's rows are not at {data}; set INSTIL_BOOK_DATA")
    made = run(data, "gpt2-medium", tmp_path / "run", resolve(as_in_book=True), answers=False)
    records = {record.step: record for record in read_metrics(made.path / "metrics.jsonl")}
    assert records[0].eval_train_loss == pytest.approx(3.8259, abs=1e-4)
    assert records[0].val_loss == pytest.approx(3.7619, abs=1e-4)
    assert records[231].eval_train_loss == pytest.approx(0.296, abs=0.010)
    assert records[231].val_loss == pytest.approx(0.657, abs=0.006)
