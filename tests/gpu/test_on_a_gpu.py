"""What only a GPU can show: kernels, streams, recorded passes, its memory, several of them. ``make test-gpu`` runs it.

Without one all of it is skipped. The same ways are tested on a GPU that is pretended in the files beside this one.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from instil.data.collate import collate
from instil.data.loader import Loader
from instil.generate.engine import Engine
from instil.generate.request import Request
from instil.generate.sampling import Sampling
from instil.machine import available_memory, forget_peak, machine_memory, memory_now, peak_memory, sent
from instil.model import segments
from instil.model.attention import Branches, Scores
from instil.model.decoder import Decoder
from instil.settings.options import TrainOptions
from instil.train.loop import train
from instil.train.losses import nll_sum
from instil.train.observer import Observer, Pause
from instil.train.state import TrainState
from tests.closeness import difference
from tests.model.test_segments import trees
from tests.train.test_training import SPECS, decoder, some_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: none here"),
]
GPU = torch.device("cuda", 0)


def there(family: str = "llama") -> Decoder:
    return copy.deepcopy(decoder(family)).to(GPU)


@pytest.mark.parametrize("layout", ["shared", "padded"])
@pytest.mark.parametrize("family", SPECS)
def test_a_training_is_that_of_the_cpu(family: str, layout: str) -> None:
    """In float64, in which kernels differ by rounding alone; with micro-batches and clipping."""
    options = TrainOptions(epochs=2, batch_size=5, learning_rate=1e-2, eval_every=2, clip=1.0)
    validation = [collate(some_rows()[:3], pad_id=0)]
    told = []
    for model in (there(family), decoder(family)):
        loader = Loader(some_rows(), 5, pad_id=0, layout=layout, micro_batch=2)  # type: ignore[arg-type]
        records = train(model, loader, options, validation=validation).records
        told.append([(one.train_loss, one.val_loss) for one in records])
    for ours, wanted in zip(*told, strict=True):
        assert ours == pytest.approx(wanted, rel=1e-8)


def test_a_training_in_bfloat16_is_near_that_of_the_cpu() -> None:
    options = TrainOptions(epochs=3, batch_size=4, learning_rate=1e-2, eval_every=0, precision="bf16")
    ours = train(there().float(), Loader(some_rows(), 4, pad_id=0), options).records
    wanted = train(
        decoder().float(), Loader(some_rows(), 4, pad_id=0), options.model_copy(update={"precision": "fp32"})
    )
    losses = [[one.train_loss for one in records[1:]] for records in (ours, wanted.records)]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("kv_heads", [2, 4])
def test_flash_attention_of_segments_is_that_of_bunches(window: int | None, kv_heads: int) -> None:
    """What each query and key is given, and the gradients, to what bfloat16 has."""
    batch = trees()[1].to(GPU)
    drawn = torch.Generator().manual_seed(1)
    shapes = [(len(batch.ids_N), heads, 64) for heads in (4, kv_heads, kv_heads)]
    whole = [torch.randn(shape, generator=drawn).to(GPU, torch.bfloat16) for shape in shapes]
    found = []
    for flat in (True, False):
        q, k, v = (one.clone().requires_grad_() for one in whole)
        pattern = Branches(batch.layout, GPU)
        assert segments.suits(q)
        if flat:
            out = pattern(0, q, k, v, window, Scores())
        else:
            wide = [one.float() for one in (q, k, v)]
            out = pattern(0, *wide, window, Scores())
        (out.float() * torch.linspace(-1, 1, out.numel(), device=GPU).view_as(out)).sum().backward()
        found.append([out.detach().float(), q.grad, k.grad, v.grad])
    for ours, wanted in zip(*found, strict=True):
        assert ours is not None and wanted is not None
        assert difference([ours.float()], [wanted.float()]) < 0.02


@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("family", SPECS)
def test_answers_are_those_of_the_cpu(family: str, replay: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded passes, too: rows come and go, slots grow, and caches move."""
    monkeypatch.setattr("instil.generate.slots.SMALLEST", 4)
    monkeypatch.setattr("instil.generate.replay.WORTH_IT", 0)
    told = []
    for model, how in ((there(family), replay), (decoder(family), False)):
        engine = Engine(model, rows=3, memory=1 << 24, replay=how)
        tickets = [
            engine.submit(Request(prompt, limit, sampling=Sampling(temperature=warm, seed=limit)))
            for prompt, limit, warm in (([1, 2], 13, 0.0), ([3, 4, 5, 6], 9, 1.0), ([8], 12, 0.0), ([5, 1], 7, 0.0))
        ]
        done = dict(engine.run())
        told.append([done[ticket].ids for ticket in tickets])
        if how:
            assert engine._replay is not None and engine._replay._passes
            assert all(one._graph is not None for one in engine._replay._passes.values())
    assert told[0] == told[1]


def test_nobody_waits_for_what_is_sent() -> None:
    with torch.cuda.device(GPU):
        torch.cuda.set_sync_debug_mode("error")
        try:
            batch = collate(some_rows(), pad_id=0).to(GPU)
            sent(torch.arange(7), GPU)
            total = nll_sum(there(), batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    wanted = nll_sum(decoder(), collate(some_rows(), pad_id=0))
    assert float(total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)


def test_its_memory_is_told() -> None:
    forget_peak()
    before, free = memory_now(GPU), available_memory(GPU)
    held = torch.empty(1 << 28, dtype=torch.uint8, device=GPU)
    assert memory_now(GPU) - before == held.nbytes
    del held
    assert peak_memory(GPU) - before >= 1 << 28 and memory_now(GPU) == before
    assert free <= machine_memory(GPU) == torch.cuda.get_device_properties(GPU).total_memory


class Keeps(Observer):
    """Keeps the state after a step, and stops there."""

    def __init__(self, step: int) -> None:
        self.step, self.state = step, None

    def wants_state(self, pause: Pause) -> bool:
        return pause.steps == self.step

    def on_state(self, state: TrainState) -> None:
        self.state: TrainState | None = state.copied()


@pytest.mark.parametrize(("first", "second"), [("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")])
def test_a_training_goes_on_from_one_device_to_the_other(first: str, second: str) -> None:
    options = TrainOptions(epochs=3, batch_size=4, learning_rate=1e-2, eval_every=2)
    keeps = Keeps(4)
    wanted = train(decoder().to(first), Loader(some_rows(), 4, pad_id=0), options, observers=[keeps])
    found = train(decoder().to(second), Loader(some_rows(), 4, pad_id=0), options, resume=keeps.state)
    losses = [[one.train_loss for one in result.records[1:]] for result in (found, wanted)]
    assert len(losses[0]) == len(losses[1]) == 9
    assert losses[0] == pytest.approx(losses[1], rel=1e-8)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("shard", ["no", "full"])
def test_two_gpus_train_what_one_does(shard: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Over NCCL, by torchrun."""
    rows = [{"instruction": f"Double {n}.", "input": "", "output": str(2 * n)} for n in range(40)]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    losses = []
    for name, launcher in (("one", []), ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"])):
        out = tmp_path / name
        how = ["--set", f"train.shard={shard}"] if launcher else []
        command = [sys.executable, *launcher, "-m", "instil", "train", str(tmp_path / "rows.json")]
        subprocess.run([*command, "--model", str(tiny_folder), "--out", str(out), *how], check=True, timeout=300)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train_loss"] for line in lines[1:]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
