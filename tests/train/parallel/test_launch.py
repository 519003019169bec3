"""Several processes that one command starts: what it says where the first cannot."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest
import torch

from instil.errors import RankLost, UserError
from instil.stopping import SIGNALS, stop_at_once
from instil.train.parallel import launch, processes
from instil.train.ranks import ALONE

SLEEPS = "import time; time.sleep(60)"


@pytest.fixture
def three(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[subprocess.Popen[bytes]]]:
    monkeypatch.setattr(launch, "GRACE", 0.3)
    made = [subprocess.Popen([sys.executable, "-c", SLEEPS]) for _ in range(3)]
    yield made
    for process in made:
        process.kill()
        process.wait()


def test_the_first_is_killed(three: list[subprocess.Popen[bytes]]) -> None:
    three[0].kill()
    since = time.monotonic()
    with pytest.raises(RankLost, match=r"the first process of this run is gone \(SIGKILL, as .*--resume goes on"):
        launch._watch(three, [])
    assert time.monotonic() - since < 2.0  # all others have the same grace
    assert three[2].wait(10) == -signal.SIGTERM


def test_a_signal_that_was_passed_on_is_its_exit_code(three: list[subprocess.Popen[bytes]]) -> None:
    three[0].terminate()
    assert launch._watch(three, [signal.SIGTERM]) == 128 + signal.SIGTERM


def test_the_first_does_not_end(three: list[subprocess.Popen[bytes]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "SAVING", 0.1)
    monkeypatch.setattr(three[0], "terminate", lambda: None)
    three[1].kill()
    with pytest.raises(RankLost, match="did not end by itself"):
        launch._watch(three, [])


def test_a_signal_waits_until_all_are_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """And for each until it has come so far; before, it would end one with a traceback, or be lost."""
    masks = []

    class Ended:
        def __init__(self, *given: object, **how: object) -> None:
            masks.append(signal.pthread_sigmask(signal.SIG_BLOCK, ()))

        def poll(self) -> int:
            return 0

        def kill(self) -> None:
            pass

        wait = kill

    monkeypatch.setattr(launch.subprocess, "Popen", Ended)
    before = signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())
    assert launch.launch(["run"], 2) == 0
    assert [set(SIGNALS) <= mask for mask in masks] == [True, True]
    assert (signal.getsignal(signal.SIGTERM), signal.pthread_sigmask(signal.SIG_BLOCK, ())) == before


def test_who_waits_for_others_to_come_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the system, since a library that waits lets no handler run."""
    seen = []

    def waits(*given: object, **how: object) -> None:
        seen.append(signal.getsignal(signal.SIGTERM))
        raise RuntimeError("nobody is there")

    monkeypatch.setattr(processes, "rendezvous", waits)
    before = signal.signal(signal.SIGTERM, stop_at_once)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    try:
        with pytest.raises(UserError, match="does not find the others"), processes.joined(where, device="cpu"):
            pass
        assert signal.getsignal(signal.SIGTERM) is stop_at_once
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIG_DFL]


@pytest.mark.parametrize("world", ["", "1"])
def test_one_that_torchrun_starts_is_alone(world: str) -> None:
    """Updates inside backward and DDP do not go together: losses after the first step were others."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": world, "RANK": "0", "LOCAL_RANK": "0"}
    with processes.joined(where | {"TORCHELASTIC_RUN_ID": "one"}) as ranks:
        assert ranks is ALONE


def test_processes_on_cpus_need_no_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*given: object, **how: object) -> None:
        raise RuntimeError("nobody is there")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(processes, "rendezvous", unreachable)
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", "WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1"}
    with pytest.raises(UserError, match="has no GPU"), processes.joined(where):
        pass
    with pytest.raises(UserError, match="does not find the others"), processes.joined(where, device="cpu"):
        pass
