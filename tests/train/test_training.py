"""Losses are sums divided once; micro-batches are one big batch; the loop is what a naive loop is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from instil.batches import IGNORED
from instil.data.collate import collate
from instil.data.loader import Loader
from instil.errors import SettingsError, TrainingDiverged
from instil.model.decoder import Decoder
from instil.model.frozen import quantise_base
from instil.model.lora import add_lora
from instil.model.spec import DecoderSpec, RopeScaling
from instil.records import Encoded
from instil.runs.observers import MetricsFile
from instil.runs.report.curves import plot_losses, plot_runs
from instil.settings.options import TrainOptions
from instil.train.loop import train
from instil.train.losses import LossSum, held_out_loss, nll_sum
from instil.train.metrics import StepRecord, read_metrics
from instil.train.objective import Likelihood
from instil.train.observer import Observer, OnStep, Pause
from instil.train.optimizer import AdamWInBackward
from instil.train.schedule import learning_rate
from tests.closeness import assert_e1

SPECS = {
    "gpt2": DecoderSpec(
        family="gpt2", vocab_size=17, width=12, layers=2, heads=3, kv_heads=3, head_width=4, mlp_width=20, context=16,
        norm="layer", norm_eps=1e-5, mlp="gelu", positions="learned", attention_bias=True, mlp_bias=True,
    ),
    "llama": DecoderSpec(
        family="llama", vocab_size=17, width=12, layers=2, heads=4, kv_heads=2, head_width=6, mlp_width=20, context=16,
        norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope", tied=False,
    ),
    "gemma3": DecoderSpec(  # windows are shorter than the texts
        family="gemma3", vocab_size=17, width=12, layers=3, heads=4, kv_heads=2, head_width=6, mlp_width=20, context=16,
        norm="rms_offset", norm_eps=1e-5, mlp="geglu", positions="rope", windows=(3, None, 4), window_rope_theta=10.0,
        rope_scaling=RopeScaling(kind="linear", factor=2.0), attention_multiplier=5**-0.5, qk_norm="head",
        post_norms=True, embedding_multiplier=12**0.5,
    ),
    "qwen3": DecoderSpec(
        family="qwen3", vocab_size=17, width=12, layers=2, heads=4, kv_heads=2, head_width=6, mlp_width=20, context=16,
        norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope", qk_norm="head", attention_bias=True,
    ),
    "gemma2": DecoderSpec(  # caps that scores and logits come near to
        family="gemma2", vocab_size=17, width=12, layers=2, heads=4, kv_heads=2, head_width=6, mlp_width=20, context=16,
        norm="rms_offset", norm_eps=1e-5, mlp="geglu", positions="rope", windows=(3, None), attention_multiplier=0.4,
        attention_softcap=2.0, post_norms=True, embedding_multiplier=12**0.5, logits_softcap=3.0,
    ),
    "olmo3": DecoderSpec(
        family="olmo3", vocab_size=17, width=12, layers=2, heads=4, kv_heads=2, head_width=6, mlp_width=20, context=16,
        norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope", windows=(3, None), window_rope_theta=9.0,
        qk_norm="all", pre_norms=False, post_norms=True, tied=False,
    ),
    "lfm2": DecoderSpec(  # convolutions longer than some rows, stems and prefixes
        family="lfm2", vocab_size=17, width=12, layers=3, heads=4, kv_heads=2, head_width=6, mlp_width=20, context=16,
        norm="rms", norm_eps=1e-5, mlp="swiglu", positions="rope", qk_norm="head", convolutions=(4, None, 3),
        convolution_bias=True,
    ),
    "gpt_neox": DecoderSpec(  # what other families leave out, and some layers that do not turn
        family="gpt_neox", vocab_size=17, width=12, layers=3, heads=2, kv_heads=2, head_width=6, mlp_width=20,
        context=16, norm="layer", norm_eps=1e-5, mlp="gelu_exact", positions="rope", rotary_width=4,
        rope_scaling=RopeScaling(kind="yarn", factor=3.0, high=8.0, context=8, attention_factor=1.2),
        windows=(3, None, 3), rope_layers=(True, True, False), parallel_residual=True, attention_bias=True,
        out_bias=False, mlp_bias=True, tied=False,
    ),
}  # fmt: skip


def decoder(family: str = "llama", seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    model = Decoder(SPECS[family]).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


ROW = st.lists(st.integers(0, 16), min_size=2, max_size=10).flatmap(
    lambda ids: st.integers(1, len(ids) - 1).map(
        lambda start: Encoded(tuple(ids), tuple(i >= start for i in range(len(ids))), start)
    )
)


@settings(max_examples=25, deadline=None)
@given(st.lists(ROW, min_size=1, max_size=6))
@pytest.mark.parametrize("family", SPECS)
def test_the_loss_is_the_sum_over_rows_alone(family: str, rows: list[Encoded]) -> None:
    """E1: a padded batch, against each row computed alone with torch's own masked cross-entropy."""
    model = decoder(family)
    batch = collate(rows, pad_id=0)
    together = nll_sum(model, batch)
    apart = torch.zeros((), dtype=torch.float64)
    for row in rows:
        one = collate([row], pad_id=0)
        logits = model.logits(model(one))
        apart = apart + F.cross_entropy(logits, one.targets.flatten(), ignore_index=IGNORED, reduction="sum")
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
    assert batch.trained_tokens == sum(sum(row.trained) for row in rows)


@settings(max_examples=20, deadline=None)
@given(st.lists(ROW, min_size=2, max_size=7), st.integers(1, 4))
@pytest.mark.parametrize("family", SPECS)
def test_accumulated_is_one_big_batch(family: str, rows: list[Encoded], micro: int) -> None:
    """E1: gradients of micro-batches of unequal lengths, against those of the whole batch."""
    from instil.train.step import take_step as _step

    model = decoder(family)
    whole = next(Loader(rows, len(rows), pad_id=0, shuffle=False).steps())
    parts = next(Loader(rows, len(rows), pad_id=0, shuffle=False, micro_batch=micro).steps())
    assert len(parts) == math.ceil(len(rows) / micro)
    found = {}
    for name, step in (("whole", whole), ("parts", parts)):
        model.zero_grad()
        updates = Kept(model.parameters(), weight_decay=0.0)
        loss, _, _ = _step(model, step, updates, Likelihood(), "fp32")
        updates.close()
        found[name] = (loss, {key: updates.gradients[parameter] for key, parameter in model.named_parameters()})
    assert found["whole"][0].tokens == found["parts"][0].tokens
    assert found["whole"][0].mean == pytest.approx(found["parts"][0].mean, rel=1e-12)
    whole_gradients, gradients = found["whole"][1], found["parts"][1]
    assert_e1([gradients[name] for name in whole_gradients], list(whole_gradients.values()))


class Kept(AdamWInBackward):
    """Keeps the gradients that would have been used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.gradients: dict[torch.Tensor, torch.Tensor] = {}

    def _update(self, parameters: Sequence[torch.Tensor]) -> None:
        for parameter in parameters:
            assert parameter not in self.gradients, "one update a step"
            assert parameter.grad is not None
            self.gradients[parameter], parameter.grad = parameter.grad, None

    def _update_rows(self, parameter: torch.Tensor, rows: slice, grad: torch.Tensor) -> None:
        assert (parameter in self.gradients) == (rows.start > 0), "one update a step"
        before = [self.gradients[parameter]] if rows.start else []
        self.gradients[parameter] = torch.cat([*before, grad])


def naive_training(model: Decoder, loader: Loader, options: TrainOptions) -> list[float]:
    """Twenty lines that share nothing with the loop: padded tensors, mean loss, torch's AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay)
    losses = []
    total = len(loader) * options.epochs
    for epoch in range(options.epochs):
        for step in loader.steps(epoch):
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * 0.5 * (1 + math.cos(math.pi * len(losses) / total))
            optimizer.zero_grad()
            batch = step[0]
            logits = model.logits(model(batch)).flatten(0, -2)
            loss = F.cross_entropy(logits, batch.targets.flatten(), ignore_index=IGNORED)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def some_rows(count: int = 11) -> list[Encoded]:
    generator = torch.Generator().manual_seed(4)
    rows = []
    for index in range(count):
        length = int(torch.randint(3, 11, (1,), generator=generator))
        ids = tuple(int(i) for i in torch.randint(0, 17, (length,), generator=generator))
        rows.append(Encoded(ids, tuple(i >= 2 for i in range(length)), 2, index))
    return rows


@pytest.mark.parametrize("family", SPECS)
def test_the_loop_equals_a_naive_loop(family: str) -> None:
    options = TrainOptions(epochs=2, batch_size=4, learning_rate=1e-2, eval_every=0)
    loader = Loader(some_rows(), 4, pad_id=0, seed=9)
    padded = Loader(some_rows(), 4, pad_id=0, seed=9, layout="padded")
    wanted = naive_training(decoder(family), padded, options)
    records = train(decoder(family), loader, options).records
    assert [record.train_loss for record in records[1:]] == pytest.approx(wanted, rel=1e-9)
    assert wanted[-1] < wanted[0]


def test_micro_batches_train_to_the_same_losses() -> None:
    options = TrainOptions(epochs=2, batch_size=5, learning_rate=1e-2, eval_every=0)
    one = train(decoder(), Loader(some_rows(), 5, pad_id=0), options)
    many = train(decoder(), Loader(some_rows(), 5, pad_id=0, micro_batch=2), options)
    assert [r.train_loss for r in many.records[1:]] == pytest.approx([r.train_loss for r in one.records[1:]], rel=1e-9)


class Pauses(Observer):
    """Notes the pauses after an evaluation."""

    def __init__(self, steps: list[int]) -> None:
        self.steps = steps

    def wants_pause(self, pause: Pause) -> bool:
        return pause.evaluated

    def on_pause(self, pause: Pause, decoder: Decoder) -> None:
        assert not decoder.training
        self.steps.append(pause.steps)


def test_records_say_what_happened() -> None:
    rows = some_rows()
    loader = Loader(rows, 4, pad_id=0)
    validation = list(Loader(rows[:3], 2, pad_id=0, shuffle=False).batches())
    seen: list[StepRecord] = []
    sampled: list[int] = []
    model = decoder()
    before = held_out_loss(model, validation).mean
    result = train(
        model,
        loader,
        TrainOptions(epochs=2, batch_size=4, eval_every=2),
        validation=validation,
        observers=[OnStep(seen.append), Pauses(sampled)],
    )
    assert [record.step for record in seen] == list(range(7))
    assert seen[0].val_loss == before
    assert seen[0].train_loss is None
    assert sampled == [0, 2, 3, 4, 6]  # every second step, and the end of each epoch
    assert [record.step for record in seen if record.val_loss is not None] == sampled
    assert seen[3].epoch == 1.0
    assert result.tokens_seen == seen[-1].tokens_seen == 2 * sum(len(row.ids) - 1 for row in rows)
    assert result.validation_loss == seen[-1].val_loss == held_out_loss(model, validation).mean


def test_steps_can_be_limited() -> None:
    loader = Loader(some_rows(), 4, pad_id=0)
    assert train(decoder(), loader, TrainOptions(epochs=5, max_steps=4)).steps == 4


def test_a_validation_loss_is_weighted_by_tokens() -> None:
    """By hand: two batches of unequal size. A mean of their means would be another number."""
    model = decoder()
    short, long = some_rows()[0], some_rows()[1]
    batches = [collate([short], 0), collate([long, long, long], 0)]
    sums = [float(nll_sum(model, batch).detach()) for batch in batches]
    counts = [batch.trained_tokens for batch in batches]
    assert counts[0] != counts[1]
    assert held_out_loss(model, batches).mean == pytest.approx(sum(sums) / sum(counts), rel=1e-12)
    mean_of_means = sum(s / c for s, c in zip(sums, counts, strict=True)) / 2
    assert held_out_loss(model, batches).mean != pytest.approx(mean_of_means, rel=1e-3)


@pytest.mark.parametrize(("limit", "used"), [(0, 3), (1, 1), (2, 2), (9, 3)])
def test_so_many_validation_batches_are_used(limit: int, used: int) -> None:
    validation = list(Loader(some_rows(6), 2, pad_id=0, shuffle=False).batches())
    options = TrainOptions(max_steps=1, eval_batches=limit)
    result = train(decoder(), Loader(some_rows(), 4, pad_id=0), options, validation=validation)
    means = [held_out_loss(decoder(), validation[:count]).mean for count in (1, 2, 3)]
    assert len(set(means)) == 3
    assert result.records[0].val_loss == means[used - 1]


def test_no_targets_at_all_is_zero_of_zero() -> None:
    batch = collate([Encoded((1, 2, 3), (False, False, False))], 0)
    assert float(nll_sum(decoder(), batch).detach()) == 0.0
    assert math.isnan(LossSum(0.0, 0).mean)


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_rows() -> None:
    model = decoder()
    with torch.no_grad():
        model.norm.weight.fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"step 1: .*rows \["):
        train(model, Loader(some_rows(), 4, pad_id=0), TrainOptions(eval_every=0))


@pytest.mark.parametrize("rate", [1e300, 1e308])  # finite weights too large to compute with, and infinite ones
def test_a_last_update_that_diverges_is_no_result(rate: float) -> None:
    """The loss of a step is that before its update, so the last update has no loss to show it."""
    seen: list[StepRecord] = []
    options = TrainOptions(max_steps=1, learning_rate=rate, weight_decay=0.1 if rate < 1e301 else 10.0)
    with pytest.raises(TrainingDiverged, match=r"step 1: the last update .* set train\.clip=1"):
        train(decoder("gpt2"), Loader(some_rows(), 4, pad_id=0), options, observers=[OnStep(seen.append)])
    assert seen[1].train_loss is not None
    assert math.isfinite(seen[1].train_loss)


def test_a_weight_that_is_no_number_is_found_where_no_row_shows_it() -> None:
    model = decoder()
    with torch.no_grad():
        model.embed.weight[16] = float("inf")
    rows = [Encoded(tuple(i % 16 for i in row.ids), row.trained, row.prompt_length) for row in some_rows()]
    with pytest.raises(TrainingDiverged, match="the last update"):
        train(model, Loader(rows, 4, pad_id=0), TrainOptions(max_steps=1))


def test_a_validation_loss_that_is_no_number_is_never_recorded() -> None:
    seen: list[StepRecord] = []
    loader = Loader(some_rows(), 4, pad_id=0)
    options = TrainOptions(max_steps=9, learning_rate=1e300, eval_every=1)
    with pytest.raises(TrainingDiverged, match=r"step 1: the validation loss is nan\. .* set train\.clip=1"):
        train(decoder("gpt2"), loader, options, validation=list(loader.batches()), observers=[OnStep(seen.append)])
    assert [record.step for record in seen] == [0]
    model = decoder()
    with torch.no_grad():
        model.norm.weight.fill_(float("inf"))
    with pytest.raises(TrainingDiverged, match=r"step 0: the validation loss is nan.*before the first update"):
        train(model, loader, options, validation=list(loader.batches()))


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_schedules_begin_at_the_peak_and_end_where_they_should(schedule: str) -> None:
    options = TrainOptions.model_validate({"schedule": schedule, "learning_rate": 2.0})
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[0] == 2.0
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == 2.0 if schedule == "constant" else rates[-1] < 0.05
    assert rates[50] == pytest.approx(2.0 if schedule == "constant" else 1.0)


def test_clipping_bounds_the_step() -> None:
    free = train(decoder(), Loader(some_rows(), 11, pad_id=0), TrainOptions(max_steps=2, learning_rate=0.1))
    bound = train(decoder(), Loader(some_rows(), 11, pad_id=0), TrainOptions(max_steps=2, learning_rate=0.1, clip=1e-9))
    assert free.records[1].train_loss == bound.records[1].train_loss
    assert free.records[2].train_loss != bound.records[2].train_loss


def test_metrics_and_curves_are_written(tmp_path: Path) -> None:
    loader = Loader(some_rows(), 4, pad_id=0)
    validation = list(loader.batches())
    with MetricsFile(tmp_path / "metrics.jsonl") as metrics:
        result = train(decoder(), loader, TrainOptions(), validation=validation, observers=[metrics])
    assert read_metrics(tmp_path / "metrics.jsonl") == list(result.records)
    plot_losses(result.records, tmp_path)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "loss.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("losses", "floor"),
    [
        ((3.0, 2.0, 1.0), 0.0),
        ((10.83, 10.825, 10.82), 10.82),  # from 0 they would lie glued to the upper edge
        ((3.0, 2.0, 1.1), 1.1),
        ((0.2, -0.1, -0.3), -0.3),  # of a preference; nothing is cut off
    ],
)
def test_loss_axes_begin_at_zero_only_where_losses_come_near_it(
    losses: tuple[float, ...], floor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **_: drawn.append(figure))
    records = [StepRecord(n + 1, n + 1.0, 10 * n, loss, loss, 1e-4, 1.0, 1.0) for n, loss in enumerate(losses)]
    plot_losses(records, tmp_path)
    plot_runs({"a": records, "b": records}, tmp_path / "loss.png")
    plot_runs({}, tmp_path / "loss.png")
    spread = max(losses) - min(losses)
    for axis in drawn[0].axes[:1] + drawn[2].axes:
        bottom, top = axis.get_ylim()
        assert bottom == 0 if floor == 0 else floor - 0.2 * spread < bottom < floor
        assert top > max(losses)
    assert drawn[3].axes[0].get_ylim()[0] == 0


FOUR = [Encoded((3, 4 + n, 5, 1), (False, False, True, True), 2) for n in range(4)]


@pytest.mark.parametrize("adapters", ["none", "lora", "dora", "rows"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_weights_that_would_lose_updates_are_not_trained(kind: torch.dtype, adapters: str) -> None:
    """Adapters have their base's type; all is as it was before a refusal, and in float32 every weight moves."""
    model = decoder().to(kind)
    if adapters != "none":
        add_lora(model, rank=2, dora=adapters == "dora", trainable_token_indices=[3] if adapters == "rows" else [])
    trained = {name: value.detach().clone() for name, value in model.named_parameters() if value.requires_grad}
    seen: list[int] = []
    told = [Pauses(seen)]
    loader = Loader(FOUR, 2, pad_id=0)
    options = TrainOptions(epochs=4, learning_rate=1e-4, schedule="constant", warmup=0.0)
    if kind in (torch.float32, torch.float64):
        train(model, loader, options, observers=told)
        moved = {name for name, value in model.named_parameters() if name in trained and (value != trained[name]).any()}
        assert {name.rpartition(".")[0] for name in trained} == {name.rpartition(".")[0] for name in moved}
        return
    with pytest.raises(SettingsError, match=rf"held in {str(kind)[6:]}, .*dtype=torch\.float32.*train\.precision=bf16"):
        train(model, loader, options, observers=told, seen_ids=range(17))
    assert not seen
    assert all(torch.equal(value, trained[name]) for name, value in model.named_parameters() if name in trained)


def test_a_model_of_which_nothing_or_little_could_be_trained_is_refused() -> None:
    loader, options = Loader(FOUR, 2, pad_id=0), TrainOptions(epochs=1)
    with pytest.raises(SettingsError, match="no parameter requires a gradient"):
        train(decoder().requires_grad_(False), loader, options)
    held = decoder()
    quantise_base(held, "nf4")
    with pytest.raises(SettingsError, match=r"embeddings and norms alone.*add_lora"):
        train(held, loader, options)
    mixed = decoder().bfloat16()
    add_lora(mixed, rank=2)
    for parameter in mixed.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    with pytest.raises(SettingsError, match="held in bfloat16 and float32"):
        train(mixed, loader, options)


def test_one_narrow_parameter_is_enough() -> None:
    model, name = decoder(), r"blocks\.1\.attention\.qkv\.weight"
    model.blocks[1].attention.qkv.bfloat16()
    loader, options = Loader(FOUR, 2, pad_id=0), TrainOptions(epochs=1)
    with pytest.raises(SettingsError, match=f"{name} is to be trained and is held in bfloat16"):
        train(model, loader, options)
