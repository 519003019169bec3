"""Plans for GPUs that are not here: what is advised, the command for it, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from instil.cli import tune
from instil.cli.tables import show_paper
from instil.errors import SettingsError, UserError
from instil.model import load as load_module
from instil.recipes.plan.cluster import Cluster, cluster_of
from instil.recipes.plan.paper import PaperPlan, plan_on_paper, precision_of
from instil.settings.resolve import known_settings, resolve
from tests.conftest import rows
from tests.e2e.test_cli import instil as command
from tests.recipes.shapes import llama_3_8b

GB = 10**9


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(llama_3_8b(tmp_path_factory.mktemp("llama")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("rows") / "rows.json"
    path.write_text(json.dumps(rows(1000)))
    return str(path)


def planned(data: str, model: str, gpus: int, memory: str, *assignments: str, nodes: int = 1) -> PaperPlan:
    settings = resolve(assignments=assignments)
    cluster = cluster_of(gpus, memory, precision_of(settings), nodes=nodes)
    given = [part for one in assignments for part in ("--set", one)]
    return plan_on_paper(data, model, settings, cluster, given)


def settings_of(made: PaperPlan) -> dict[str, str]:
    """What the advised command sets."""
    words = shlex.split(made.command)
    return dict(words[at + 1].split("=") for at, word in enumerate(words) if word == "--set")


def test_llama_3_8b_on_two_nodes(data: str, model: str) -> None:
    made = planned(data, model, 8, "80GB", nodes=2)
    fits = {one.way.name: one.fits for one in made.fits}
    assert fits == {
        "full, DDP": False, "full, DDP, checkpointing": False, "full, FSDP2": True, "full, FSDP2, checkpointing": True,
        "lora, DDP": True, "lora, DDP, checkpointing": True, "lora, FSDP2": True, "lora, FSDP2, checkpointing": True,
        "lora, nf4, DDP": True, "lora, nf4, DDP, checkpointing": True,
        "lora, nf4, FSDP2": True, "lora, nf4, FSDP2, checkpointing": True,
    }  # fmt: skip
    assert (made.parameters, made.adapters, made.precision) == (8_030_261_248, 41_943_040, "bf16")
    assert (made.rows.batch, made.rows.longest) == (16, 1024)  # a row for each, where nothing was chosen
    assert made.command == (
        "torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 -m instil run "
        f"{data} --model {model} --set train.shard=full --set train.precision=bf16 --set train.batch_size=16"
    )
    assert made.advice.startswith("full, FSDP2: ")
    assert "waits for the network" in made.advice
    assert set(settings_of(made)) - {"train.shard"} <= known_settings().keys()
    json.dumps(made.as_json(), allow_nan=False)


def test_one_gpu_needs_neither_torchrun_nor_shards(data: str, model: str) -> None:
    made = planned(data, model, 1, "80GB")
    assert [one.way.shard for one in made.fits] == [""] * 6
    assert made.command.startswith(f"instil run {data} --model {model} ")
    assert settings_of(made) == {
        "train.method": "lora", "train.precision": "bf16", "train.micro_batch": "2",
    }  # fmt: skip
    assert settings_of(planned(data, model, 1, "24GB")) == {
        "train.method": "lora", "lora.base": "nf4", "train.precision": "bf16", "train.micro_batch": "1",
    }  # fmt: skip
    assert made.rows.batch == 8


def test_one_node_meets_by_itself(data: str, model: str) -> None:
    made = planned(data, model, 8, "80GB")
    assert made.command.startswith("torchrun --nproc-per-node 8 --standalone -m instil run ")


def test_what_was_chosen_is_what_is_advised(data: str, model: str) -> None:
    lora = planned(data, model, 8, "80GB", "train.method=lora", "train.batch_size=64")
    assert lora.advice.startswith("lora, DDP: ")
    assert settings_of(lora)["train.method"] == "lora"  # as it was given, once
    assert lora.command.count("train.method") == lora.command.count("train.batch_size") == 1
    again = planned(data, model, 8, "80GB", "train.gradient_checkpointing=true", "train.batch_size=64")
    assert again.advice.startswith("full, FSDP2, checkpointing: ")
    few = planned(data, model, 8, "80GB", "train.method=lora", "lora.base=nf4", "train.batch_size=64")
    assert few.advice.startswith("lora, nf4, DDP: ")
    exact = planned(data, model, 8, "80GB", "train.precision=fp32", "train.method=lora")
    assert exact.precision == "fp32"
    assert {one.parts.copies for one in exact.fits if one.way.base == "fp32"} == {0}
    own = planned(data, model, 8, "80GB", "train.method=lora", "train.batch_size=64", "train.micro_batch=1")
    assert {one.micro_batch for one in own.fits} == {1}
    assert {one.accumulation for one in own.fits} == {8}
    dora = planned(data, model, 8, "80GB", "lora.dora=true", "train.method=lora")
    assert "nf4" not in {one.way.base for one in dora.fits}


def test_what_does_not_fit_is_said(data: str, model: str) -> None:
    made = planned(data, model, 8, "8GB", "train.method=full")
    assert not any(one.fits for one in made.fits)
    assert made.command == ""
    assert "nothing of what was asked for fits: lora, " in made.advice
    assert "7.6 of 8.0 GB" in made.advice
    no_full = planned(data, model, 1, "80GB", "train.method=full")
    assert no_full.command == ""


def test_time_is_counted_for_the_training_rows(data: str, model: str, tmp_path: Path) -> None:
    texts = [{"instruction": "i" * 200, "output": "o" * 200} for _ in range(40)]
    texts += [{"instruction": "i" * 200, "output": "o" * 10_000}] * 40  # longer than what is kept
    (tmp_path / "long.json").write_text(json.dumps(texts))
    made = planned(str(tmp_path / "long.json"), model, 1, "80GB", "train.epochs=3")
    assert made.counted.rows == 68  # 85 %
    assert made.rows.mean == (100 + 1024) / 2  # four characters a token
    assert made.counted.supervised == pytest.approx(10_200 / 10_600)
    assert made.steps == 9 * 3
    lora = next(one for one in made.fits if one.way.name == "lora, one GPU")
    assert lora.tokens == 8 * made.rows.mean
    assert made.hours(lora) == pytest.approx(27 * lora.seconds / 3600)
    assert planned(data, model, 1, "80GB", "train.max_steps=5").steps == 5
    assert "too few" in planned(data, model, 1, "80GB").advice


def test_pairs_are_two_sequences(model: str, tmp_path: Path) -> None:
    pairs = [{"instruction": f"Say {n}.", "output": f"{n}", "chosen": f"{n}", "rejected": f"no {n}"} for n in range(40)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    one = planned(str(tmp_path / "pairs.json"), model, 1, "80GB", "train.objective=dpo", "train.micro_batch=1")
    assert one.rows.sequences == 2
    rows_alone = planned(str(tmp_path / "pairs.json"), model, 1, "80GB", "train.micro_batch=1")
    assert one.fits[0].parts.activations == 2 * rows_alone.fits[0].parts.activations


@pytest.mark.parametrize(
    ("gpus", "chosen", "says"),
    [
        (8, "train.batch_size=4", r"8 GPUs share a step of 4 rows .*set train.batch_size=8 or more"),
        (2, "train.batch_size=1", r"2 GPUs share a step of 1 row .*"),
        (8, "train.batch_tokens=4096", r"8 GPUs share a step of 4 rows .*train.batch_tokens=8192"),
    ],
)
def test_more_gpus_than_rows_are_refused(data: str, model: str, gpus: int, chosen: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        planned(data, model, gpus, "80GB", chosen)
    assert planned(data, model, 4, "80GB", "train.batch_tokens=4096").rows.batch == 4


def test_no_weight_is_read_and_a_file_of_weights_will_do(
    data: str, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(*arguments: object) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(load_module, "fill", filled)
    assert planned(data, str(tiny_folder), 2, "16GB").command.startswith("torchrun ")
    smollm2 = planned(data, "smollm2-135m", 2, "16GB")  # a GGUF file
    assert smollm2.parameters == 134_515_008
    assert smollm2.advice.startswith("full, DDP: ")


def test_the_command_line(data: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    tune.plan_command(data, model, gpus=8, gpu_memory="80GB", nodes=2, settings=["train.epochs=2"], method=["lora"])
    shown = capsys.readouterr().out
    for words in ("2 nodes of 8 GPUs of 80 GB", "weights", "moments", "activations", "35% of 312 TFLOP/s", "25 GB/s"):
        assert words in shown
    *_, last = shown.strip().splitlines()
    assert last.startswith("torchrun --nnodes 2 ")
    assert f"-m instil run {data} --model {model} --method lora --set train.epochs=2 " in last
    tune.plan_command(
        data, model, gpus=8, gpu_memory="80GB", gpu_tflops=989.0, efficiency=0.5, gpu_link=50.0, as_json=True
    )
    said = json.loads(capsys.readouterr().out)
    assert said["cluster"]["tflops"] == 989
    assert said["cluster"]["efficiency"] == 0.5
    assert said["cluster"]["link"] == 50
    assert {one["name"] for one in said["ways"]} >= {"full, DDP", "lora, nf4, DDP"}
    memory = said["ways"][0]["memory"]
    assert memory["total"] == sum(size for name, size in memory.items() if name != "total")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gpus": 8}, "--gpu-memory"),
        ({"nodes": 2}, "--nodes is for GPUs that are not here"),
        ({"gpu_memory": "80GB"}, "--gpu-memory is for GPUs that are not here"),
        ({"efficiency": 0.5}, "--efficiency is for"),
    ],
)
def test_options_that_lack_others_are_refused(data: str, model: str, options: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=says):
        tune.plan_command(data, model, **options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_errors_are_one_line(data: str, model: str) -> None:
    for arguments in (
        ["--gpus", "0", "--gpu-memory", "80GB"], ["--gpus", "8", "--gpu-memory", "much"],
        ["--gpus", "8", "--gpu-memory", "80GB", "--set", "train.batch_size=2"],
        ["--gpus", "8", "--gpu-memory", "80GB", "--model", "nothing"],
    ):  # fmt: skip
        done = command("plan", data, *(() if "--model" in arguments else ("--model", model)), *arguments)
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.strip().splitlines()) == 1
        assert done.stderr.startswith("instil: ")


def test_a_plan_with_nothing_to_advise_is_shown(data: str, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    settings = resolve()
    made = plan_on_paper(data, model, settings, Cluster(1, 1, 2 * GB, 312.0, 0.35, 300.0))
    show_paper(made)
    assert "nothing of what was asked for fits" in capsys.readouterr().out
