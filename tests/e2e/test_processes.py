"""Several processes of one run as a user meets them: the same answers, one line of what went wrong, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.model.files.safetensors import SafetensorsFile, write_safetensors
from tests.conftest import make_tinier
from tests.train.parallel.pool import free_port

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
QUICK = ("-s", "train.eval_every=0", "-s", "train.save_every=5", "-s", "generate.max_new_tokens=4")
LONG = (*QUICK, "-s", "train.epochs=2000", "-s", "train.schedule=constant")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "INSTIL_GEMM": "torch", "CUDA_VISIBLE_DEVICES": ""}
LONGEST = 120  # seconds


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tinier(tmp_path_factory.mktemp("tinier"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [{"instruction": f"Say {n}.", "input": "", "output": f"It is {n}." + " Yes." * (n % 5)} for n in range(40)]
    file = tmp_path_factory.mktemp("data") / "rows.json"
    file.write_text(json.dumps(rows))
    return file


def started(*arguments: object, environment: dict[str, str] | None = None, **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "instil", *map(str, arguments)]
    whole = ENVIRONMENT | (environment or {})
    return subprocess.Popen(command, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


def ended(*arguments: object, **how: Any) -> tuple[int, str]:
    """Exit code and what was said on stderr."""
    with started(*arguments, **how) as process:
        said = process.communicate(timeout=LONGEST)[1]
    return process.returncode, said


def until(process: subprocess.Popen[str], text: str) -> str:
    """What it says until it says this."""
    said = ""
    assert process.stderr is not None
    for line in process.stderr:
        said += line
        if text in line:
            return said
    raise AssertionError(said)


def rank_of(launcher: int, rank: int) -> int:
    """The process with that number."""
    for place in Path("/proc").iterdir():
        if place.name.isdecimal():
            try:
                found = dict(one.split("=", 1) for one in (place / "environ").read_text().split("\0") if "=" in one)
                parent = (place / "stat").read_text().rpartition(")")[2].split()[1]
            except OSError:
                continue
            if found.get("RANK") == str(rank) and parent == str(launcher):
                return int(place.name)
    raise AssertionError(f"no process has the number {rank}")


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_alike(run: Path, whole: Path) -> None:
    found, wanted = records(run), records(whole)
    assert [one["step"] for one in found] == [one["step"] for one in wanted]
    for one, other in zip(found[1:], wanted[1:], strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)


slow = pytest.mark.slow
PARTS = ("--processes", 2, "-s", "train.shard=full")


@pytest.mark.parametrize(
    ("shard", "more"),
    [
        ("no", ()),
        ("full", ("-s", "keep.measure=true")),
        pytest.param("full", ("--method", "lora", "-s", "lora.base=int8"), marks=slow),
        pytest.param("full", ("-s", "train.untie_head=true", "-s", "generate.temperature=0.7"), marks=slow),
    ],
)
def test_two_answer_and_score_as_one_does(
    shard: str, more: tuple[str, ...], model: Path, data: Path, tmp_path: Path
) -> None:
    how = ("run", data, "-m", model, *QUICK, "-s", "train.epochs=1", *more)
    for out, by in (("one", ()), ("two", ("--processes", 2, "-s", f"train.shard={shard}"))):
        code, said = ended(*how, "-o", tmp_path / out, *by)
        assert code == 0, said
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert_same_answers(tmp_path / "two", tmp_path / "one")
    if "keep.measure=true" in more:
        for name in ("base", "tuned"):
            one, other = (measured(tmp_path / out, name) for out in ("one", "two"))
            assert one.keys() == other.keys()
            assert other == pytest.approx(one, rel=1e-4, abs=1e-4)


def assert_same_answers(found: Path, wanted: Path) -> None:
    for name in ("responses/base.json", "responses/tuned.json", "scores/tuned.offline.jsonl", "samples.jsonl"):
        assert (found / name).read_text() == (wanted / name).read_text(), name
    likely = [
        [json.loads(line) for line in (run / "scores" / "tuned.likelihood.jsonl").read_text().splitlines()]
        for run in (wanted, found)
    ]
    assert [one["row"] for one in likely[1]] == [one["row"] for one in likely[0]]
    assert [one["score"] for one in likely[1]] == pytest.approx([one["score"] for one in likely[0]], rel=1e-4)


def measured(run: Path, name: str) -> dict[tuple[str, str, str], float]:
    lines = [json.loads(line) for line in (run / "keep" / f"{name}.jsonl").read_text().splitlines()]
    return {(one["part"], one["group"], one["name"]): one["value"] for one in lines}


def assert_same_model(found: Path, wanted: Path, room: float = 1e-6) -> None:
    assert sorted(file.name for file in found.iterdir()) == sorted(file.name for file in wanted.iterdir())
    for file in wanted.iterdir():
        if file.suffix != ".safetensors":
            assert (found / file.name).read_bytes() == file.read_bytes(), file.name
    one, other = (SafetensorsFile(folder / "model.safetensors") for folder in (found, wanted))
    assert one._entries == other._entries
    for name in other.names():
        torch.testing.assert_close(one.get(name), other.get(name), rtol=1e-4, atol=room)


@pytest.mark.parametrize(
    "how",
    [
        (),
        ("--method", "lora"),
        pytest.param(("--method", "lora", "-s", "lora.base=nf4", "-s", 'lora.targets=["q","head"]'), marks=slow),
        pytest.param(("--method", "lora", "-s", "train.untie_head=true"), marks=slow),
        pytest.param(("--method", "lora", "-s", "lora.dora=true"), marks=slow),
        pytest.param(("--method", "lora", "-s", "lora.trainable_token_indices=[3, 46]"), marks=slow),
    ],
    ids=["full", "lora", "few bits, head", "untied", "dora", "rows of tokens"],
)
def test_a_model_in_parts_is_saved_as_one_saves_it(
    how: tuple[str, ...], model: Path, data: Path, tmp_path: Path
) -> None:
    told = ("train", data, "-m", model, *QUICK, "-s", "train.epochs=1", *how)
    assert ended(*told, "-o", tmp_path / "one")[0] == 0
    code, said = ended(*told, "-o", tmp_path / "two", *PARTS)
    assert code == 0, said
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert (tmp_path / "two" / "samples.jsonl").read_text() == (tmp_path / "one" / "samples.jsonl").read_text()
    assert_same_model(tmp_path / "two" / "model", tmp_path / "one" / "model")
    if how:
        names = [sorted(file.name for file in (tmp_path / out / "adapter").iterdir()) for out in ("one", "two")]
        assert names[0] == names[1]


@pytest.mark.parametrize(
    "loss", ["dpo", *(pytest.param(name, marks=slow) for name in ("kto", "dpo, lora", "dpo, another reference"))]
)
def test_a_reference_is_asked_in_parts(loss: str, model: Path, tmp_path: Path) -> None:
    pairs = [
        {"instruction": f"Say {n}.", "chosen": f"It is {n}." + " Yes." * (n % 5), "rejected": "No."} for n in range(23)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    told = ["train", tmp_path / "pairs.json", "-m", model, *QUICK, "-s", "train.epochs=1", "-s", "train.batch_size=4"]
    told += ["-s", "train.objective=dpo", "-s", f"dpo.loss={loss[:3]}"]
    told += ["--method", "lora"] if "lora" in loss else []
    told += ["-s", f"dpo.reference={make_tinier(tmp_path / 'other')}"] if "another" in loss else []
    assert ended(*told, "-o", tmp_path / "one")[0] == 0
    code, said = ended(*told, "-o", tmp_path / "two", *PARTS)
    assert code == 0, said
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert_same_model(tmp_path / "two" / "model", tmp_path / "one" / "model")


def test_pairs_are_answered_in_parts(model: Path, tmp_path: Path) -> None:
    """Before a reference is asked in parts, and after."""
    pairs = [
        {"instruction": f"Say {n}.", "chosen": f"It is {n}." + " Yes." * (n % 5), "rejected": "No."} for n in range(23)
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    told = ("run", tmp_path / "pairs.json", "-m", model, *QUICK, "-s", "train.epochs=1", "-s", "train.objective=dpo")
    told = (*told, "-s", "keep.measure=false")
    assert ended(*told, "-o", tmp_path / "one")[0] == 0
    code, said = ended(*told, "-o", tmp_path / "two", *PARTS)
    assert code == 0, said
    assert_alike(tmp_path / "two", tmp_path / "one")
    assert_same_answers(tmp_path / "two", tmp_path / "one")


@pytest.mark.parametrize("shard", ["full", pytest.param("no", marks=slow)])
def test_texts_to_rehearse_are_written_in_parts(shard: str, model: Path, data: Path, tmp_path: Path) -> None:
    told = ("train", data, "-m", model, *QUICK, "-s", "train.epochs=1", "-s", "train.rehearse=0.5")
    assert ended(*told, "-o", tmp_path / "one")[0] == 0
    code, said = ended(*told, "-o", tmp_path / "two", "--processes", 2, "-s", f"train.shard={shard}")
    assert code == 0, said
    assert_alike(tmp_path / "two", tmp_path / "one")


def test_one_that_dies_while_it_answers_ends_all_and_one_alone_goes_on(model: Path, data: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text(json.dumps(2 * json.loads(data.read_text())))
    how = ("run", tmp_path / "rows.json", "-m", model, *QUICK, "-s", "train.max_steps=2", "-s", "data.split=book")
    how = (*how, "-s", "generate.max_new_tokens=40", "-s", "generate.batch_size=1", "-s", "keep.measure=false")
    with started(*how, "-o", tmp_path / "run", *PARTS) as launcher:
        until(launcher, "Before: answering")
        wait_for(tmp_path / "run" / "checkpoints" / "1.kept.journal")
        os.kill(rank_of(launcher.pid, 1), signal.SIGKILL)
        said = launcher.communicate(timeout=LONGEST)[1]
    assert launcher.returncode == 4
    assert said.count("instil: ") == 1
    assert "Traceback" not in said
    code, said = ended(*how, "-o", tmp_path / "run", "--resume")
    assert code == 0, said
    assert "were answered before it was stopped" in said
    assert ended(*how, "-o", tmp_path / "whole")[0] == 0
    assert_same_answers(tmp_path / "run", tmp_path / "whole")


def wait_for(file: Path) -> None:
    """Until something is in it."""
    end = time.monotonic() + LONGEST
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < end, f"{file} is empty"
        time.sleep(0.01)


STEADY = ("-s", "train.eval_every=1", "-s", "train.schedule=constant", "-s", "train.learning_rate=0.05")


def test_the_best_model_is_kept_in_parts(model: Path, data: Path, tmp_path: Path) -> None:
    told = ("train", data, "-m", model, *QUICK, *STEADY, "-s", "train.patience=2", "-s", "train.epochs=9")
    assert ended(*told, "-o", tmp_path / "one")[0] == 0
    code, said = ended(*told, "-o", tmp_path / "two", *PARTS)
    assert code == 0, said
    assert_alike(tmp_path / "two", tmp_path / "one")
    one, other = (json.loads((tmp_path / out / "report.json").read_text()) for out in ("one", "two"))
    assert one["best_step"] == other["best_step"] < len(records(tmp_path / "one")) - 1  # not what it ended with
    assert_same_model(tmp_path / "two" / "model", tmp_path / "one" / "model", room=1e-3)  # a step changes them by 0.05
    assert not (tmp_path / "two" / "checkpoints" / "best.safetensors").exists()


def test_weights_that_are_no_numbers_are_told_in_one_line(model: Path, data: Path, tmp_path: Path) -> None:
    """Of which only the process that has these rows knows at first."""
    shutil.copytree(model, tmp_path / "model")
    file = SafetensorsFile(model / "model.safetensors")
    own = {name: file.get(name) for name in file.names()}
    own["model.norm.weight"][-1] = torch.nan
    write_safetensors(tmp_path / "model" / "model.safetensors", own.items())
    code, said = ended("train", data, "-m", tmp_path / "model", "-o", tmp_path / "run", *QUICK, *PARTS)
    assert code == 2
    lines = [line for line in said.splitlines() if line.startswith("instil: ")]
    assert len(lines) == 1
    assert "norm.weight hold values that are not finite numbers" in lines[0]
    assert "Traceback" not in said


@pytest.mark.parametrize("shard", ["no", pytest.param("full", marks=pytest.mark.slow)])
def test_one_that_dies_ends_all_and_the_run_goes_on(shard: str, model: Path, data: Path, tmp_path: Path) -> None:
    how = ("train", data, "-m", model, "-o", tmp_path / "run", "-s", f"train.shard={shard}", *LONG)
    with started(*how, "--processes", 2) as launcher:
        until(launcher, "epoch 3.00")
        os.kill(rank_of(launcher.pid, 1), signal.SIGKILL)
        since = time.monotonic()
        said = launcher.communicate(timeout=LONGEST)[1]
        assert time.monotonic() - since < 60  # 10 are promised of a machine that does nothing else
    assert launcher.returncode == 4
    last = said.strip().splitlines()[-1]
    assert last.startswith("instil: another process of this ")
    assert "--resume goes on" in last
    assert "Traceback" not in said
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"
    with started(*how, "--resume") as process:  # one alone
        said = until(process, "taken up at step")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=LONGEST)
    assert process.returncode == 143
    assert "number of processes is 1 and was 2" in said


@pytest.mark.slow
def test_one_that_dies_as_parts_are_saved(model: Path, data: Path, tmp_path: Path) -> None:
    """After every step, so that most of the time is that; each of them once, and others go on."""
    how = ("train", data, "-m", model, *QUICK, "-s", "train.epochs=12", "-s", "train.save_every=1")
    assert ended(*how, "-o", tmp_path / "whole")[0] == 0
    parts = (*how, "-o", tmp_path / "run", "-s", "train.shard=full")
    for world, dies, more in ((2, 1, ()), (4, 0, ("--resume",)), (3, 2, ("--resume",))):
        with started(*parts, *more, "--processes", world) as launcher:
            until(launcher, "taken up at step" if more else "epoch 1.00")
            time.sleep(0.1 * world)
            os.kill(rank_of(launcher.pid, dies), signal.SIGKILL)
            said = launcher.communicate(timeout=LONGEST)[1]
        assert launcher.returncode == 4, said
        assert said.count("instil: ") == 1
        assert "Traceback" not in said
    code, said = ended(*parts, "--resume")
    assert code == 0, said
    assert_alike(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_signal_stops_all_after_a_step(number: signal.Signals, model: Path, data: Path, tmp_path: Path) -> None:
    how = ("train", data, "-m", model, "-o", tmp_path / "run", *QUICK, "-s", "train.epochs=60")
    with started(*how, "--processes", 2) as launcher:
        until(launcher, "epoch 3.00")
        launcher.send_signal(number)
        said = launcher.communicate(timeout=LONGEST)[1]
    assert launcher.returncode == 128 + number
    last = said.strip().splitlines()[-1]
    assert last.startswith("instil: stopped after step ")
    assert last.endswith("--processes 2 --resume")
    assert "Traceback" not in said
    done = len(records(tmp_path / "run"))
    code, said = ended(*how, "--resume", "--processes", 2, "-s", "train.max_steps=0")
    assert code == 0
    assert "the loss of its next step is as it was" in said
    assert len(records(tmp_path / "run")) > done


@pytest.mark.slow
def test_torchrun_starts_it_anew(model: Path, data: Path, tmp_path: Path) -> None:
    how = ("train", data, "-m", model, *QUICK, "-s", "train.epochs=200")
    assert ended(*how, "-o", tmp_path / "whole")[0] == 0
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    whole = [sys.executable, *command, "-m", "instil", *map(str, (*how, "-o", tmp_path / "run"))]
    with subprocess.Popen(whole, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as torchrun:
        until(torchrun, "epoch 3.00")
        os.kill(rank_of(torchrun.pid, 1), signal.SIGKILL)
        said = torchrun.communicate(timeout=LONGEST)[1]
    assert torchrun.returncode == 0, said
    assert "the loss of its next step is as it was" in said
    assert_alike(tmp_path / "run", tmp_path / "whole")


def together(
    first: tuple[object, ...], second: tuple[object, ...], places: tuple[Path | None, Path | None] = (None, None)
) -> Iterator[tuple[int, str]]:
    """Two processes with arguments of their own: code and stderr of each."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    both = [
        started(*given, environment=where | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=place)
        for rank, (given, place) in enumerate(zip((first, second), places, strict=True))
    ]
    for process in both:
        with process:
            said = process.communicate(timeout=LONGEST)[1]
        yield process.returncode, said


def test_other_rows_in_one_of_them(model: Path, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "rows.json"
    other.write_text(data.read_text().replace("It is 3.", "It is 4."))
    how = ("-m", model, "-o", tmp_path / "run", *QUICK)
    (code, said), (code_of_other, said_by_other) = together(("train", data, *how), ("train", other, *how))
    assert (code, code_of_other) == (2, 2)
    assert "instil: process 1 on " in said
    assert "has another data than process 0" in said
    assert said_by_other == ""
    assert not (tmp_path / "run").exists()


def test_a_file_that_one_of_them_lacks(model: Path, data: Path, tmp_path: Path) -> None:
    how = ("-m", model, "-o", tmp_path / "run", *QUICK)
    (code, said), (code_of_other, said_by_other) = together(
        ("train", data, *how), ("train", tmp_path / "no.json", *how)
    )
    assert (code, code_of_other) == (2, 2)
    assert said.strip().splitlines()[-1].startswith("instil: process 1 cannot prepare this run: ")
    assert said_by_other == ""


def test_a_folder_that_is_not_shared(model: Path, data: Path, tmp_path: Path) -> None:
    how = ("train", data, "-m", model, "-o", "run", *QUICK)
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (code, said), (code_of_other, _) = together(how, how, (tmp_path / "here", tmp_path / "there"))
    assert (code, code_of_other) == (2, 2)
    assert "process 1 on " in said
    assert "does not see run as process 0 does" in said
    assert not list((tmp_path / "there").iterdir())


def test_more_of_them_than_rows_of_a_step(model: Path, data: Path, tmp_path: Path) -> None:
    how = ("train", data, "-m", model, "-o", tmp_path / "run", *QUICK, "-s", "train.batch_size=1")
    code, said = ended(*how, "--processes", 2)
    assert code == 2
    lines = [line for line in said.splitlines() if line.startswith("instil: ")]
    assert len(lines) == 1
    assert "2 processes share the rows of a step, and train.batch_size=1 gives some of them none" in lines[0]


def test_a_world_without_a_place(model: Path, data: Path, tmp_path: Path) -> None:
    how = ("train", data, "-m", model, "-o", tmp_path / "run")
    code, said = ended(*how, environment={"WORLD_SIZE": "2", "RANK": "0"})
    assert code == 2
    assert said.startswith("instil: WORLD_SIZE says that there are several processes, without MASTER_ADDR")
    code, said = ended(*how, "--processes", 2, environment={"WORLD_SIZE": "2", "RANK": "0"})
    assert code == 2
    assert said.startswith("instil: these processes are started already")


def test_a_port_that_is_taken(model: Path, data: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
        code, said = ended("train", data, "-m", model, "-o", tmp_path / "run", environment=where)
    assert code == 2
    assert said.count("instil: ") == 1
    assert f"process 0 does not find the others at 127.0.0.1:{port}: " in said
    assert "Traceback" not in said
