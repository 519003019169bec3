"""The checks of this machine pass on a tiny model, and each fails where what it looks at is broken on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from instil.cli import app
from instil.data import collate
from instil.errors import InstilError
from instil.model import decoder as decoders
from instil.model.decoder import Decoder
from instil.model.lora_layer import LoraLinear
from instil.recipes.selftest import bench as benches
from instil.recipes.selftest import checks
from instil.recipes.selftest import selftest as recipe
from instil.recipes.selftest.bench import Bench, apart, differing
from instil.recipes.selftest.checks import CHECKS, Measured
from instil.recipes.selftest.selftest import Checked, selftest
from instil.runs.checkpoints import Checkpoints
from instil.screen import Screen
from instil.train import training
from instil.train.objective import Likelihood

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def bench(tiny_folder: Path) -> Bench:
    return Bench(tiny_folder)


@pytest.fixture
def fresh(bench: Bench) -> Bench:
    """The bench with its model as it was."""
    bench.fresh()
    return bench


def test_all_of_them_pass(tiny_folder: Path, bench: Bench, monkeypatch: Patch) -> None:
    monkeypatch.setattr(recipe, "Bench", lambda model: bench)
    done = selftest(tiny_folder, Screen(quiet=True))
    assert done.failed == []
    assert [one.check.what for one in done.checked] == [one.what for one in CHECKS]
    done.check()


def shared_differs(patch: Patch) -> None:
    """Of what all rows begin with, the predictions of one row alone are counted."""
    real = collate.collate_shared

    def loses(rows: Any, max_length: int | None = None) -> Any:
        batch = real(rows, max_length)
        weights = batch.weights_S.clone()
        weights[0] += 1
        return replace(batch, weights_S=weights)

    patch.setattr(collate, "collate_shared", loses)


def accumulated_differs(patch: Patch) -> None:
    """A step is divided by its micro-batches and not by what they have to predict."""
    patch.setattr(Likelihood, "count", lambda self, batch: 1.0)


def recomputed_differs(patch: Patch) -> None:
    """A block that is computed again is another."""
    real = decoders.checkpointed
    patch.setattr(decoders, "checkpointed", lambda *args, **more: _nudged(real(*args, **more)))


def _nudged(x: torch.Tensor) -> torch.Tensor:
    return x * (1 + 1e-6)


def cached_differs(patch: Patch) -> None:
    """Positions of new tokens are off by one."""
    from instil.generate import engine

    real = engine._batch
    patch.setattr(engine, "_batch", lambda tokens, device: real([(at + (at > 0), ids) for at, ids in tokens], device))


def exported_differs(patch: Patch) -> None:
    """The folder has another last norm."""
    real = checks.load_decoder

    def other(folder: Path, **more: Any) -> Decoder:
        found = real(folder, **more)
        with torch.no_grad():
            next(iter(found.parameters()))[0, 0] += 1e-3
        return found

    patch.setattr(checks, "load_decoder", other)


def export_is_told_of(patch: Patch) -> None:
    """The weights are the same, and the tokenizer is not."""
    real = checks.export_folder
    patch.setattr(checks, "export_folder", lambda *args: [*real(*args), "the saved tokenizer gives other ids"])


def template_differs(patch: Patch) -> None:
    """One id of each row is lost."""
    real = checks.encode_many
    patch.setattr(
        checks,
        "encode_many",
        lambda *args: [replace(row, ids=row.ids[:-1], trained=row.trained[:-1]) for row in real(*args)],
    )


def merged_differs(patch: Patch) -> None:
    """Adapters are merged with another scale."""
    real = LoraLinear.change
    patch.setattr(LoraLinear, "change", lambda self: real(self) * 1.1)


def resumed_differs(patch: Patch) -> None:
    """What a checkpoint holds of the optimizer is not put back."""
    real = training.put_back

    def forgets(tensors: Any, decoder: Any, optimizer: Any, touched: Any, *ranks: Any) -> None:
        real(tensors, decoder, optimizer, touched, *ranks)
        for first, _, _ in optimizer.state.values():
            first.zero_()

    patch.setattr(training, "put_back", forgets)


def nothing_is_saved(patch: Patch) -> None:
    """A checkpoint is damaged as soon as it is written."""
    real = Checkpoints.save

    def damaged(self: Checkpoints, state: Any) -> Path:
        folder = real(self, state)
        (folder / "state.safetensors").write_bytes(b"")
        return folder

    patch.setattr(Checkpoints, "save", damaged)


BROKEN: list[tuple[str, Callable[[Patch], None]]] = [
    ("padded = shared layout", shared_differs),
    ("accumulated = one batch", accumulated_differs),
    ("checkpointed = kept", recomputed_differs),
    ("cached = uncached", cached_differs),
    ("exported = in memory", exported_differs),
    ("exported = in memory", export_is_told_of),
    ("template bytes", template_differs),
    ("merged = adapters", merged_differs),
    ("resumed = uninterrupted", resumed_differs),
    ("resumed = uninterrupted", nothing_is_saved),
]


def made(what: str, bench: Bench) -> Checked:
    return recipe._made(next(one for one in CHECKS if one.what == what), bench)


@pytest.mark.parametrize(("what", "broken"), BROKEN, ids=[broken.__name__ for _, broken in BROKEN])
def test_each_can_fail(what: str, broken: Callable[[Patch], None], fresh: Bench, monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        broken(patch)
        assert not made(what, fresh).passed


def test_every_check_is_broken_above() -> None:
    assert {what for what, _ in BROKEN} == {one.what for one in CHECKS}


def test_a_check_that_cannot_be_made_has_failed_and_the_others_are_made(
    tiny_folder: Path, bench: Bench, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(recipe, "Bench", lambda model: bench)

    def fails(_: Bench) -> Measured:
        raise RuntimeError("no such\nkernel")

    few = (replace(CHECKS[0], measure=fails), CHECKS[5])
    monkeypatch.setattr(recipe, "CHECKS", few)
    done = selftest(tiny_folder, Screen(quiet=True))
    assert [(one.passed, one.problem) for one in done.checked] == [(False, "RuntimeError: no such kernel"), (True, "")]
    with pytest.raises(InstilError, match="1 of 2 checks failed: padded = shared layout"):
        done.check()
    json.dumps(done.as_json(), allow_nan=False)


@pytest.mark.parametrize("difference", [float("nan"), float("inf")])
def test_what_is_no_number_is_no_pass(difference: float) -> None:
    one = Checked(CHECKS[0], Measured(difference, 1e-5), 1.0)
    assert not one.passed
    json.dumps(one.as_json(), allow_nan=False)


def test_the_command_says_what_failed(tiny_folder: Path, fresh: Bench, monkeypatch: Patch) -> None:
    monkeypatch.setattr(recipe, "CHECKS", (CHECKS[5], CHECKS[3]))
    monkeypatch.setattr(recipe, "Bench", lambda model: fresh)
    done = CliRunner().invoke(app, ["selftest", "--model", str(tiny_folder)])
    assert done.exit_code == 0, done.output
    assert "ok" in done.stdout and "template bytes" in done.stdout and "by the engine" in done.stdout
    told = json.loads(CliRunner().invoke(app, ["selftest", "-m", str(tiny_folder), "--json"]).stdout)
    assert [(one["what"], one["passed"], one["unit"]) for one in told["checks"]] == [
        ("template bytes", True, "rows"), ("cached = uncached", True, "nats"),
    ]  # fmt: skip
    assert told["failed"] == []
    with monkeypatch.context() as patch:
        template_differs(patch)
        done = CliRunner().invoke(app, ["selftest", "--model", str(tiny_folder)])
    assert isinstance(done.exception, InstilError)
    assert done.exception.exit_code == 1
    assert "1 of 2 checks failed: template bytes" in str(done.exception)
    assert "FAILED" in done.stdout


def test_a_model_that_is_not_there_is_refused() -> None:
    done = CliRunner().invoke(app, ["selftest", "--model", "nowhere/nothing-here.gguf"])
    assert isinstance(done.exception, InstilError)
    assert done.exception.exit_code == 2


def test_differences_are_relative_to_the_largest_number_and_other_shapes_are_no_match() -> None:
    one, two = {"a": torch.tensor([1.0, 100.0])}, {"a": torch.tensor([2.0, 100.0])}
    assert apart(one, two) == pytest.approx(0.01)
    assert differing(one, two) == 1
    assert apart(one, {"a": torch.zeros(3)}) == differing(one, {"b": torch.zeros(2)}) == float("inf")
    assert differing({"a": torch.tensor([float("nan")])}, {"a": torch.tensor([float("nan")])}) == 1


def test_the_rows_are_few_and_cut_short(bench: Bench) -> None:
    assert 2 <= len(bench.tokens(100)) <= benches.ROWS
    assert max(map(len, bench.tokens(100))) <= benches.LENGTH
