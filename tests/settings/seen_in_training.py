"""Settings of data, training and adapters, each with what is seen of it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tomllib
from functools import partial
from math import sqrt
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from instil.data.sources import Source, examples_from
from instil.data.splits import split_grouped
from instil.records import Example, Pair, Turn
from instil.runs.checkpoints import Checkpoints
from instil.settings.resolve import resolve
from instil.tasks.answers import Answers
from instil.tasks.pairs.source import PairSource
from instil.tasks.pairs.task import Preferences
from instil.tasks.prepare import prepare
from instil.tasks.task import Task
from tests.conftest import TINY_END, TINY_VOCABULARY, rows
from tests.settings.world import Table, Trained, World, seen_in
from tests.train.test_rewind import poison

TRAINING: Table = {}
sees = partial(seen_in, TRAINING)
LAYERS = 2  # of the tiny model
TRAINED_ROWS = 34  # of forty


# Rows


def text_of(world: World, *settings: str) -> str:
    tokens = world.looked_at(world.one, *settings).json["rows"][0]["tokens"]
    return "".join(token["text"] for token in tokens)


@sees("data.template=phi3")
def template(world: World) -> None:
    assert text_of(world).startswith("Below is an instruction")
    assert text_of(world, "data.template=phi3").startswith("<|user|>\nDouble the number 0.")
    asked = world.run("data.template=phi3", *STEPS, data=world.one)
    assert asked.read("model/template.json")["name"] == "phi3"
    assert len(asked.seen.steps[0].batch.ids_N) < len(world.run(*STEPS, data=world.one).seen.steps[0].batch.ids_N)


@sees("data.train_on=all")
def train_on(world: World) -> None:
    def fates(*settings: str) -> list[str]:
        return [token["fate"] for token in world.looked_at(world.one, *settings).json["rows"][0]["tokens"]]

    assert fates() == ["seen"] * 44 + ["trained"] * 5
    assert fates("data.train_on=all") == ["seen"] + ["trained"] * 48
    assert len(world.run("data.train_on=all", *STEPS, data=world.one).seen.steps[0].batch.targets_S) == 48


@sees("data.turns=last")
def turns(world: World) -> None:
    """Of a conversation, for answers and for pairs."""
    history = (Turn("user", "One?"), Turn("assistant", "Two."))
    row = Example("Three?", "Four.", row=0, history=history)
    answers, pairs = examples_from(rows(1)), PairSource("pairs", (row,), "", pairs=(Pair(row, "Four.", "Five."),))
    tokenizer, template = world.assistant.tokenizer, world.assistant.template

    def learnt(kind: type[Task[Any]], source: Source, *settings: str) -> str:
        world.used.update(settings)
        task = kind(resolve(assignments=settings))
        encoded = task.answer(task.encode(source, [row], template, tokenizer)[0])
        return "".join(tokenizer.shown(one) for one, counts in zip(encoded.ids, encoded.trained, strict=True) if counts)

    end = tokenizer.eos
    for kind, source in ((Answers, answers), (Preferences, pairs)):
        assert learnt(kind, source) == f"Two.{end}Four.{end}"
        assert learnt(kind, source, "data.turns=last") == f"Four.{end}"


@sees("data.max_length=46")
def max_length(world: World) -> None:
    tokens = world.looked_at(world.one, "data.max_length=46").json["rows"][0]["tokens"]
    assert [token["fate"] for token in tokens[44:]] == ["trained"] * 3 + ["cut"] * 2  # an id more, which is predicted
    cut, whole = (world.run(*some, *STEPS, data=world.one) for some in (("data.max_length=46",), ()))
    assert [run.steps[0].tokens_seen for run in (cut, whole)] == [46, 48]
    assert [len(run.seen.steps[0].batch.targets_S) for run in (cut, whole)] == [3, 5]


def parts(world: World, *settings: str) -> dict[int, str]:
    everything = [*rows(39), rows(1)[0]]  # the last asks what the first asks
    found = world.looked_at(world.file(everything), *settings, rows=range(40)).json["rows"]
    return {one["row"]: one["part"] for one in found}


@sees("data.split=grouped")
def split(world: World) -> None:
    in_order = parts(world)
    assert list(in_order.values()) == ["train"] * 34 + ["test"] * 4 + ["validation"] * 2
    grouped = parts(world, "data.split=grouped")
    assert grouped != in_order
    assert grouped[0] == grouped[39]


@sees("data.split_seed=7")
def split_seed(world: World) -> None:
    default, another = parts(world, "data.split=grouped"), parts(world, "data.split=grouped", "data.split_seed=7")
    assert default != another
    wanted = split_grouped(examples_from([*rows(39), rows(1)[0]]).examples, seed=7)
    assert {row for row, part in another.items() if part == "test"} == {example.row for example in wanted.test}


def drawn(world: World, *settings: str) -> list[int]:
    """Numbers of the rows that are trained on."""
    world.used.update(settings)
    return [row.row for row in prepare(rows(40), world.model, resolve(assignments=settings)).split.train]


@sees("data.max_train_samples=9")
def max_train_samples(world: World) -> None:
    assert drawn(world) == list(range(34))
    few = drawn(world, "data.max_train_samples=9")
    assert len(few) == 9
    assert few == sorted(set(few) & set(range(34)))


@sees("data.sample_seed=7")
def sample_seed(world: World) -> None:
    default, another = (drawn(world, "data.max_train_samples=9", *some) for some in ((), ("data.sample_seed=7",)))
    assert default != another


def leaks_of(world: World, *settings: str) -> Any:
    everything = rows(40)
    law = "Describe how a bill becomes a law in the"
    everything[3]["instruction"] = f"{law} United States."
    everything[35]["instruction"] = f"{law} States, in two lines."  # a test row
    return world.looked_at(world.file(everything), *settings).json["leaks"]


@sees("data.leaks=drop")
def leaks(world: World) -> None:
    found = leaks_of(world, "data.leak_threshold=0.75")
    assert (found["counts"]["held_out"], found["counts"]["dropped"]) == (1, 0)
    found = leaks_of(world, "data.leak_threshold=0.75", "data.leaks=drop")
    assert (found["counts"]["held_out"], found["counts"]["dropped"]) == (0, 1)
    assert [one["row"] for one in found["dropped"]] == [3]


@sees("data.leak_threshold=0.75")
def leak_threshold(world: World) -> None:
    assert leaks_of(world)["held_out"] == []
    found = leaks_of(world, "data.leak_threshold=0.75")["held_out"]
    assert [(one["row"], one["train_row"]) for one in found] == [(35, 3)]
    assert 0.75 <= found[0]["cosine"] < 0.9


@sees("data.normalise=nfc")
def normalise(world: World) -> None:
    apart = {"instruction": "Say cafe\u0301.", "output": "Cafe\u0301."}
    data = world.file([apart, *rows(3)])

    def text(*settings: str) -> str:
        return "".join(token["text"] for token in world.looked_at(data, *settings).json["rows"][0]["tokens"])

    assert "Say cafe" in text()  # and two bytes
    assert "caf\u00e9" not in text()
    assert "Say caf\u00e9." in text("data.normalise=nfc")


@sees("data.map=ask=instruction,reply=output")
def mapping(world: World) -> None:
    data = world.file([{"ask": f"Say {n}.", "reply": f"It is {n}."} for n in range(3)])
    refused = world.looked_at(data)
    assert refused.code == 2
    assert "add --map ask=instruction,reply=output" in refused.said
    found = world.looked_at(data, "data.map=ask=instruction,reply=output")
    assert found.code == 0, found.said
    assert "It is 0." in "".join(token["text"] for token in found.json["rows"][0]["tokens"])


@sees("data.licence=CC0-1.0")
def licence(world: World) -> None:
    assert world.run("data.licence=CC0-1.0", *STEPS, data=world.one).read("data.json")["licence"] == "CC0-1.0"
    assert world.run(*STEPS, data=world.one).read("data.json")["licence"].startswith("not stated")


@sees("data.skip_bad=true")
def skip_bad(world: World) -> None:
    data = world.file([*rows(3), {"instruction": "Say nothing."}])
    refused = world.looked_at(data)
    assert refused.code == 2
    assert "row 3" in refused.said
    kept = world.looked_at(data, "data.skip_bad=true")
    assert kept.code == 0
    assert len(kept.json["preflight"]["unusable"]) == 1


@sees("model.resize=true")
def resize(world: World) -> None:
    """A word that was added to the tokenizer and not to the model."""
    grown = world.model.parent / "with a new word"
    if not grown.exists():
        shutil.copytree(world.model, grown)
        state = json.loads((grown / "tokenizer.json").read_text(encoding="utf-8"))
        flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
        state["added_tokens"].append({"id": TINY_VOCABULARY, "content": "colourwheel", **flags})
        (grown / "tokenizer.json").write_text(json.dumps(state), encoding="utf-8")
    refused = world.looked_at(world.one, model=grown)
    assert refused.code == 2
    assert "1 ids that the model has no rows for ('colourwheel')" in refused.said
    assert "model.resize=true" in refused.said
    run = world.run("model.resize=true", *STEPS, data=world.one, model=grown)
    before, after = (
        load_file(folder / "model.safetensors")["model.embed_tokens.weight"] for folder in (grown, run.path / "model")
    )
    assert after.shape[0] == TINY_VOCABULARY + 1
    assert torch.allclose(after[-1], before.mean(0), atol=1e-2)
    assert tomllib.loads((run.path / "run.toml").read_text())["model_facts"]["new_rows"] == 1
    for reference in (grown, run.path / "model"):  # a reference grows, too, or has grown
        how = ("train.objective=dpo", f"dpo.reference={reference}", "model.resize=true")
        told = world.run(*how, *STEPS, data=world.pairs(1), model=grown)
        assert told.read("model/config.json")["vocab_size"] == TINY_VOCABULARY + 1


# Training: a few runs, in each of which several settings are changed and seen apart from one another

STEPS = ("train.max_steps=1",)
DEFAULT = ("train.epochs=1",)
SHAPED = (
    "train.epochs=3", "train.batch_size=12", "train.drop_last=true", "train.learning_rate=3e-4", "train.warmup=0.34",
    "train.schedule=linear", "train.eval_every=1", "train.sample=epoch",
)  # fmt: skip
HELD = (
    "train.layout=padded", "train.micro_batch=3", "train.gradient_checkpointing=true", "train.clip=1e-30",
    "train.untie_head=true", "train.epochs=1",
)  # fmt: skip
DRAWN = ("train.order=book", "train.precision=bf16", "train.epochs=1")
AGAIN = ("train.seed=7", "train.weight_decay=1000", "train.epochs=1", "train.schedule=constant")


def first_batch(run: Trained) -> int:
    return len(run.seen.steps[0].batch.examples)


@sees("train.objective=dpo")
def objective(world: World) -> None:
    assert "add --method dpo" in world.looked_at(world.pairs(1)).said
    assert set(world.run("train.objective=dpo", *STEPS, data=world.pairs(1)).metrics) >= {"margin", "accuracy"}


@sees("train.method=lora")
def method(world: World) -> None:
    whole = world.run(*DEFAULT)
    assert not (whole.path / "adapter").exists()
    before = load_file(world.model / "model.safetensors")
    thin = world.run("train.method=lora", *STEPS)
    assert (thin.path / "adapter" / "adapter_model.safetensors").is_file()
    assert thin.steps[0].learning_rate == 10 * whole.steps[0].learning_rate  # a default of its own
    same = {name for name, weight in before.items() if torch.equal(weight, thin.weights[name])}
    assert same == {name for name in before if "proj" not in name or name.endswith("bias")}
    assert not any(torch.equal(weight, whole.weights[name]) for name, weight in before.items())


@sees("train.layout=padded")
def layout(world: World) -> None:
    assert {one.layout for one in world.run(*DEFAULT).seen.steps} == {"Tree"}
    assert {one.layout for one in world.run(*HELD).seen.steps} == {"Grid"}


@sees("train.device=cuda")
def device(world: World) -> None:
    assert {one.device for one in world.run(*STEPS, "train.device=cpu", data=world.one).seen.steps} == {"cpu"}
    if torch.cuda.is_available():
        assert {one.device for one in world.run(*STEPS, "train.device=cuda", data=world.one).seen.steps} == {"cuda"}
        return
    refused = world.looked_at(world.one, "train.device=cuda")
    assert refused.code == 2
    assert "cuda" in refused.said


@sees("train.precision=bf16")
def precision(world: World) -> None:
    exact, rounded = world.run("train.order=book", "train.epochs=1"), world.run(*DRAWN)
    assert not any(one.in_bf16 for one in exact.seen.passes)
    assert all(one.in_bf16 for one in rounded.seen.steps)
    assert rounded.losses != exact.losses
    assert rounded.losses == pytest.approx(exact.losses, rel=0.01)


@sees("train.gradient_checkpointing=true")
def gradient_checkpointing(world: World) -> None:
    plain, spare = world.run(*DEFAULT).seen, world.run(*HELD).seen
    assert plain.blocks == LAYERS * len(plain.passes)
    assert spare.blocks == LAYERS * (len(spare.passes) + len(spare.steps))  # those of a step twice


@sees("train.shard=full")
def shard(world: World) -> None:
    """Each of two processes writes a part of the weights."""
    for settings, parts in ((("train.shard=full",), 2), ((), 0)):
        out = world.new()
        world.used |= set(settings)
        kept = ("train.keep_checkpoint=true", "train.max_steps=1", "train.batch_size=2", *settings)
        command = [
            "train",
            world.one,
            "-m",
            world.model,
            "-o",
            out,
            "--processes",
            2,
            *(f"--set={one}" for one in kept),
        ]
        subprocess.run([sys.executable, "-m", "instil", *map(str, command)], check=True, capture_output=True)
        names = {path.name for path in out.glob("checkpoints/*/shard-*.safetensors")}
        assert len({name.split("-")[1] for name in names}) == parts, names  # each process writes several


@sees("train.rehearse=0.5")
def rehearse(world: World) -> None:
    """Texts of the model's own beside the row, one for every two."""
    plain, mixed = (sorted(world.run(*some, *DEFAULT).seen.order) for some in ((), ("train.rehearse=0.5",)))
    assert plain == list(range(TRAINED_ROWS))
    assert mixed == [*plain, *range(40, 40 + TRAINED_ROWS // 2)]


@sees("train.epochs=3")
def epochs(world: World) -> None:
    assert [world.run(*some).records[-1].epoch for some in (DEFAULT, SHAPED)] == [1.0, 3.0]
    assert world.run(*STEPS, data=world.one).records[-1].epoch == 1.0


@sees("train.batch_size=12")
def batch_size(world: World) -> None:
    assert [first_batch(world.run(*some)) for some in (DEFAULT, SHAPED)] == [8, 12]


@sees("train.batch_tokens=120")
def batch_tokens(world: World) -> None:
    """Steps of rows within it, and the same rows once in the epoch."""
    run = world.run("train.batch_tokens=120", *DEFAULT)
    assert all(one.batch.layout.tokens_of_rows <= 120 for one in run.seen.steps)
    assert sorted(run.seen.order) == sorted(world.run(*DEFAULT).seen.order)
    assert len(run.steps) > len(world.run(*DEFAULT).steps)


@sees("train.micro_batch=3")
def micro_batch(world: World) -> None:
    whole, pieces = world.run(*DEFAULT), world.run(*HELD)
    assert [len(one.batch.examples) for one in pieces.seen.steps[:4]] == [3, 3, 2, 3]
    assert pieces.seen.order == whole.seen.order
    assert len(pieces.steps) == len(whole.steps) == 5
    assert pieces.losses[0] == pytest.approx(whole.losses[0], rel=1e-5)  # one mean over the step all the same


@sees("train.learning_rate=3e-4")
def learning_rate(world: World) -> None:
    assert max(one.learning_rate for one in world.run(*SHAPED).steps) == 3e-4
    before = load_file(world.model / "model.safetensors")
    for some, rate in ((STEPS, 1e-4), (("train.learning_rate=3e-4", *STEPS), 3e-4)):
        after = world.run("train.weight_decay=0", *some, data=world.one).weights
        moved = max(float((after[name] - weight).abs().max()) for name, weight in before.items())
        assert moved == pytest.approx(rate, rel=0.01)  # AdamW's first step


@sees("train.weight_decay=1000")
def weight_decay(world: World) -> None:
    before = load_file(world.model / "model.safetensors")
    ratio = [float(world.run(*AGAIN).weights[name].abs().median() / one.abs().median()) for name, one in before.items()]
    assert ratio == pytest.approx([0.9**5] * len(before), abs=0.02)  # five steps of 1e-4 * 1000, on every parameter


@sees("train.warmup=0.34")
def warmup(world: World) -> None:
    rates = [
        one.learning_rate / max(each.learning_rate for each in world.run(*SHAPED).steps)
        for one in world.run(*SHAPED).steps
    ]
    assert rates[:3] == pytest.approx([0.5, 1.0, 1.0])  # two of six steps
    assert world.run(*DEFAULT).steps[0].learning_rate == 1e-4


@sees("train.schedule=linear")
def schedule(world: World) -> None:
    rates = [[one.learning_rate for one in world.run(*some).steps] for some in (SHAPED, DEFAULT, AGAIN)]
    peak, *rest = rates[0][-4:]
    assert rest == pytest.approx([0.75 * peak, 0.5 * peak, 0.25 * peak])
    assert rates[1][1] == pytest.approx(0.5e-4 * (1 + torch.cos(torch.tensor(torch.pi / 5)).item()))
    assert set(rates[2]) == {1e-4}


@sees("train.clip=1e-30")
def clip(world: World) -> None:
    still, moving = world.run(*HELD).validation, world.run(*DEFAULT).validation
    assert still[0] == pytest.approx(moving[0], rel=1e-5)
    assert abs(still[-1] - still[0]) < 0.2 * abs(moving[-1] - moving[0])  # the decay of weights remains


@sees("train.max_steps=1")
def max_steps(world: World) -> None:
    assert [len(world.run(*some).steps) for some in (DEFAULT, ("train.method=lora", *STEPS))] == [5, 1]


@sees("train.patience=1")
def patience(world: World) -> None:
    worse = ("train.learning_rate=1", "train.eval_every=1", "train.epochs=1")
    stopped = world.run("train.patience=1", *worse)
    assert len(stopped.steps) < 5
    before = load_file(world.model / "model.safetensors")
    best = min(range(len(stopped.validation)), key=stopped.validation.__getitem__)
    assert best == len(stopped.validation) - 2  # one validation without a better loss
    kept = all(torch.equal(stopped.weights[name], weight) for name, weight in before.items())
    assert kept == (best == 0)


@sees("train.eval_every=1")
def eval_every(world: World) -> None:
    assert [one.step for one in world.run(*SHAPED).records if one.val_loss is not None] == [0, 1, 2, 3, 4, 5, 6]
    assert [one.step for one in world.run(*DEFAULT).records if one.val_loss is not None] == [0, 5]


@sees("train.eval_batches=1")
def eval_batches(world: World) -> None:
    one, every = (
        world.run("train.batch_size=1", "train.max_steps=1", *more) for more in (("train.eval_batches=1",), ())
    )
    assert [run.seen.before for run in (one, every)] == [[38], [38, 39]]
    assert one.validation[0] != every.validation[0]


@sees("train.evaluation=book")
def evaluation(world: World) -> None:
    both = world.run("train.evaluation=book", "train.eval_every=1", "train.eval_batches=1", *STEPS)
    assert all(one.eval_train_loss is not None for one in both.records)
    assert all(one.eval_train_loss is None for one in world.run(*DEFAULT).records)


@sees("train.save_every=1")
def save_every(world: World) -> None:
    saved: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", lambda self, state, first=(): saved.append(state.progress.done))
        world.run("train.save_every=1", "train.max_steps=2", data=world.one)
        assert saved == [1, 2]
        world.run("train.save_every=10m", "train.max_steps=2", data=world.one)
        assert saved == [1, 2, 2]  # after the last step in any case
        world.run("train.save_every=0", "train.max_steps=2", data=world.one)
    assert saved == [1, 2, 2]


@sees("train.keep_checkpoint=true")
def keep_checkpoint(world: World) -> None:
    for more, kept in ((("train.keep_checkpoint=true",), ["step-000000002"]), ((), [])):
        run = world.run("train.save_every=0", "train.max_steps=2", *more, data=world.one)
        assert [one.name for one in (run.path / "checkpoints").glob("step-*")] == kept


@sees("train.on_divergence=rewind")
def on_divergence(world: World) -> None:
    """There is no checkpoint yet, so it goes back to the beginning."""
    row = world.run(*DEFAULT).seen.order[0]
    with pytest.MonkeyPatch.context() as patch:
        poison(patch, row)
        run = world.run("train.on_divergence=rewind", *DEFAULT)
        with pytest.raises(AssertionError, match="step 1: the loss is nan"):
            world.run("train.max_steps=2", "train.clip=2", *DEFAULT)
    skipped = json.loads((run.path / "skipped.jsonl").read_text())
    assert (skipped["step"], skipped["back_to"]) == (1, 0)
    assert row in skipped["rows"]
    assert run.read("report.json")["skipped"] == [skipped]
    assert len(run.steps) == len(world.run(*DEFAULT).steps)
    assert len(run.losses) == len(run.steps) - 1  # that step has no rows any more


@sees("train.sample=epoch")
def sample(world: World) -> None:
    assert world.run(*SHAPED).sampled == [2, 4, 6]
    assert world.run(*DEFAULT).sampled == [0, 5]


@sees("train.order=book")
def order(world: World) -> None:
    assert world.run(*DRAWN).seen.order == as_torch_draws(123)
    assert world.run(*DEFAULT).seen.order != as_torch_draws(123)


def as_torch_draws(seed: int) -> list[int]:
    torch.manual_seed(seed)
    loader = torch.utils.data.DataLoader(list(range(TRAINED_ROWS)), batch_size=8, shuffle=True, collate_fn=list)
    return [row for some in loader for row in some]


@sees("train.untie_head=true")
def untie_head(world: World) -> None:
    tied, own = world.run(*DEFAULT), world.run(*HELD)
    assert [run.read("model/config.json")["tie_word_embeddings"] for run in (tied, own)] == [True, False]
    assert ["lm_head.weight" in run.weights for run in (tied, own)] == [False, True]


@sees("train.drop_last=true")
def drop_last(world: World) -> None:
    assert len(world.run(*SHAPED).steps) == 3 * (TRAINED_ROWS // 12)
    assert len(world.run(*DEFAULT).steps) == TRAINED_ROWS // 8 + 1


@sees("train.seed=7")
def seed(world: World) -> None:
    default, another = world.run(*DEFAULT), world.run(*AGAIN)
    assert default.seen.order != another.seen.order
    assert sorted(default.seen.order) == sorted(another.seen.order) == list(range(TRAINED_ROWS))
    assert default.read("split.json") == another.read("split.json")
    assert default.validation[0] == another.validation[0]


# Adapters

LORA = ("train.method=lora", "train.max_steps=2", "train.weight_decay=0")
THIN = ("lora.rank=3", "lora.alpha=8", "lora.targets=q,down", *LORA)
LAYER = "model.layers.0.self_attn.q_proj"


def factor(world: World, run: Trained) -> float:
    """What an adapter was multiplied by when it was merged."""
    before = load_file(world.model / "model.safetensors")[f"{LAYER}.weight"]
    a, b = (run.adapter[f"base_model.model.{LAYER}.lora_{one}.weight"] for one in "AB")
    added = b @ a
    return float(((run.weights[f"{LAYER}.weight"] - before) * added).sum() / added.square().sum())


def config(run: Trained) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run.path / "adapter" / "adapter_config.json").read_text())
    return found


@sees("lora.rank=3")
def rank(world: World) -> None:
    for some, wanted in ((THIN, 3), (LORA, 16)):
        run = world.run(*some, data=world.one)
        assert config(run)["r"] == wanted
        assert {min(tensor.shape) for tensor in run.adapter.values()} == {wanted}


@sees("lora.alpha=8")
def alpha(world: World) -> None:
    for some, wanted in ((THIN, 8), (LORA, 32)):
        run = world.run(*some, data=world.one)
        given = config(run)
        assert given["lora_alpha"] == wanted
        assert factor(world, run) == pytest.approx(wanted / given["r"], rel=1e-3)


@sees("lora.scaling=alpha/sqrt(rank)")
def scaling(world: World) -> None:
    assert factor(world, world.run(*LORA, data=world.one)) == pytest.approx(32 / 16, rel=1e-3)
    assert factor(world, world.run("lora.scaling=alpha/sqrt(rank)", *LORA, data=world.one)) == pytest.approx(
        32 / sqrt(16), rel=1e-3
    )


@sees("lora.targets=q,down")
def targets(world: World) -> None:
    adapted = [{name.split(".")[-3] for name in world.run(*some, data=world.one).adapter} for some in (THIN, LORA)]
    assert adapted[0] == {"q_proj", "down_proj"}
    assert len(adapted[1]) == 7


@sees("lora.dora=true")
def dora(world: World) -> None:
    lengths = [
        sum("magnitude" in name for name in world.run(*some, *LORA, data=world.one).adapter)
        for some in (("lora.dora=true",), ())
    ]
    assert lengths == [7 * LAYERS, 0]


@sees(f"lora.trainable_token_indices={TINY_END},11")
def trainable_token_indices(world: World) -> None:
    """The end of every answer, and a comma: their rows are trained, and no others."""
    run, plain = (
        world.run(*some, *LORA, data=world.one) for some in ((f"lora.trainable_token_indices={TINY_END},11",), ())
    )
    before, table = load_file(world.model / "model.safetensors"), "model.embed_tokens.weight"
    changed = (run.weights[table] != before[table]).any(1).nonzero().flatten().tolist()
    assert changed == [11, TINY_END]
    assert torch.equal(plain.weights[table], before[table])
    assert config(run)["trainable_token_indices"] == [TINY_END, 11]
    rows = run.adapter["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"]
    assert torch.equal(rows, run.weights[table][[TINY_END, 11]])


@sees("lora.base=int8")
def base(world: World) -> None:
    rounded, exact = world.run("lora.base=int8", *LORA, data=world.one), world.run(*LORA, data=world.one)
    assert "8 bits (lora.base=int8): not exact" in rounded.said
    assert rounded.losses[0] != exact.losses[0]
    assert rounded.losses[0] == pytest.approx(exact.losses[0], rel=0.01)
