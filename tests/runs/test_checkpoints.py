"""A complete checkpoint is found whatever happens while one is written; damaged ones are named and passed over."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from io import FileIO
from pathlib import Path

import pytest
import torch

from instil.errors import SettingsError
from instil.runs.checkpoints import MANIFEST, PROGRESS, TENSORS, CheckpointError, Checkpoints, Disk
from instil.runs.saving import SavesCheckpoints
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.train.observer import Observer, Pause
from instil.train.state import TrainState
from tests.train.test_state import CASES, ended, scramble, whole

NAME = "patience"


class Died(BaseException):
    """The process, or the machine, is gone."""


class Dying(Disk):
    """Dies at its ``at``-th operation, after half of it where it is a write; then nothing works any more.

    Args:
        at: the operation, from 0.
        power: whether the power went, so that what was not synced is lost: half of a file, and names of folders.
    """

    def __init__(self, at: int, *, power: bool = False) -> None:
        self.at, self.power = at, power
        self.done = 0
        self.kinds: list[str] = []
        self._unsynced: dict[Path, int] = {}
        self._renamed: list[tuple[Path, Path]] = []

    def _next(self, kind: str, half: Callable[[], object] = lambda: None) -> None:
        if self.done == self.at:
            half()
            self.done += 1
            self._lose()
        if self.done > self.at:
            raise Died
        self.done += 1
        self.kinds.append(kind)

    def _lose(self) -> None:
        if not self.power:
            return
        for path, size in self._unsynced.items():
            if path.exists():
                with path.open("r+b") as file:
                    file.truncate(size // 2)
        for old, new in reversed(self._renamed):
            if new.exists():
                new.rename(old)

    def make(self, folder: Path) -> None:
        self._next("make")
        super().make(folder)

    def write(self, file: FileIO, piece: bytes | memoryview) -> None:
        self._next("write", lambda: super(Dying, self).write(file, memoryview(piece)[: len(piece) // 2]))
        super().write(file, piece)
        self._unsynced[Path(str(file.name))] = file.tell()

    def sync(self, file: FileIO) -> None:
        self._next("sync")
        super().sync(file)
        self._unsynced.pop(Path(str(file.name)))

    def sync_folder(self, folder: Path) -> None:
        self._next("sync folder")
        super().sync_folder(folder)
        self._renamed = [one for one in self._renamed if one[0].parent != folder]

    def rename(self, old: Path, new: Path) -> None:
        self._next("rename")
        super().rename(old, new)
        self._renamed.append((old, new))

    def remove(self, folder: Path) -> None:
        self._next("remove", lambda: next(folder.iterdir()).unlink())
        super().remove(folder)


class States(Observer):
    """The state after each step."""

    def __init__(self) -> None:
        self.found: list[TrainState] = []

    def wants_state(self, pause: Pause) -> bool:
        return True

    def on_state(self, state: TrainState) -> None:
        self.found.append(state.copied())


@pytest.fixture(scope="module")
def states() -> list[TrainState]:
    """Of a training that keeps its best model."""
    watching = States()
    CASES[NAME].run([watching])
    assert any(state.best for state in watching.found)
    return watching.found


@pytest.fixture(scope="module")
def small(states: list[TrainState]) -> list[TrainState]:
    """Of each state a few tensors, so that dying at every write of a save takes no minutes."""

    def few(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: tensors[name] for name in sorted(tensors)[:3]}

    return [replace(state, tensors=few(state.tensors), best=few(state.best)) for state in states]


def assert_is(found: TrainState | None, wanted: TrainState) -> None:
    assert found is not None
    assert (found.progress, found.records) == (wanted.progress, wanted.records)
    for ours, theirs in ((found.tensors, wanted.tensors), (found.best, wanted.best)):
        assert set(ours) == set(theirs)
        assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == theirs[name].dtype for name in theirs)


def test_a_state_comes_back_as_it_was(tmp_path: Path, states: list[TrainState]) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", {"model": "one"})
    assert checkpoints.newest().state is None
    for state in states[:5]:
        written = checkpoints.save(state)
        assert written.name == f"step-{state.progress.done:09}"
        assert_is(checkpoints.newest().state, state)
    assert [path.name for path in sorted(checkpoints.folder.iterdir())] == ["step-000000003", "step-000000004"]
    checkpoints.clear()
    assert list(checkpoints.folder.iterdir()) == []


@pytest.mark.parametrize("name", [NAME, "lora, nf4", "as in the book", "kto"])
def test_a_training_goes_on_from_the_disk(name: str, tmp_path: Path) -> None:
    wanted, steps = whole(name)
    checkpoints = Checkpoints(tmp_path)

    class Saves(Observer):
        def wants_state(self, pause: Pause) -> bool:
            return pause.steps <= steps // 2

        def on_state(self, state: TrainState) -> None:
            checkpoints.save(state)

    CASES[name].run([Saves()])
    scramble()
    state = checkpoints.newest().state
    assert state is not None
    assert state.progress.done == steps // 2
    found = ended(CASES[name], state)
    for key, value in wanted.items():
        if key != "samples":
            assert torch.equal(found[key], value) if isinstance(value, torch.Tensor) else found[key] == value, key


@pytest.mark.parametrize(
    ("power", "keep", "before"), [(False, 1, 1), (True, 1, 0), (True, 1, 1), (True, 2, 2)], ids=str
)
def test_a_complete_checkpoint_is_always_there(
    power: bool, keep: int, before: int, tmp_path: Path, small: list[TrainState]
) -> None:
    """It dies at every write, sync, rename and removal of a save in turn, and is started again."""
    states = small
    at, kinds, earlier = 0, [], tmp_path / "earlier"
    earlier.mkdir()
    for state in states[1 : 1 + before]:
        Checkpoints(earlier, keep=keep).save(state)
    while True:
        folder = tmp_path / str(at)
        shutil.copytree(earlier, folder)
        dying = Dying(at, power=power)
        try:
            Checkpoints(folder, keep=keep, disk=dying).save(states[before + 1])
        except Died:
            pass
        else:
            kinds = dying.kinds
            break
        again = Checkpoints(folder, keep=keep)
        found = again.newest()
        assert found.damaged == (), at
        if before or found.state is not None:
            done = found.state.progress.done if found.state else None
            assert done in (before, before + 1), at
            assert_is(found.state, states[done])
        again.save(states[before + 2])
        assert_is(again.newest().state, states[before + 2])
        assert len(list(folder.iterdir())) <= keep
        shutil.rmtree(folder)
        at += 1
    assert kinds.count("write") >= 6
    assert kinds.count("sync") == 3 + bool(states[before + 1].best)
    assert kinds.count("rename") == 1 + (before == keep)
    assert at == len(kinds)


def flip(path: Path) -> None:
    held = bytearray(path.read_bytes())
    held[len(held) // 2] ^= 1
    path.write_bytes(held)


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "flipped": (lambda at: flip(at / TENSORS), "state.safetensors is damaged: its bytes are not those"),
    "flipped json": (lambda at: flip(at / PROGRESS), "state.json is damaged: its bytes are not those"),
    "flipped best": (lambda at: flip(at / "best.safetensors"), "best.safetensors is damaged"),
    "flipped manifest": (lambda at: flip(at / MANIFEST), "manifest.json is damaged"),
    "truncated": (lambda at: (at / TENSORS).write_bytes(b"123"), "state.safetensors is damaged: it has 3 bytes, and"),
    "empty manifest": (lambda at: (at / MANIFEST).write_bytes(b""), "manifest.json is damaged: "),
    "no manifest": (lambda at: (at / MANIFEST).unlink(), "manifest.json is missing"),
    "no tensors": (lambda at: (at / TENSORS).unlink(), "state.safetensors is missing"),
    "a link": (lambda at: ((at / TENSORS).unlink(), (at / TENSORS).symlink_to(at / PROGRESS)), "is missing"),
    "nothing": (lambda at: [one.unlink() for one in at.iterdir()], "manifest.json is missing"),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_one_is_named_and_the_one_before_used(how: str, tmp_path: Path, states: list[TrainState]) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(states[2])
    hurt = checkpoints.save(states[4])
    damage, said = DAMAGE[how]
    damage(hurt)
    found = checkpoints.newest()
    assert_is(found.state, states[2])
    (line,) = found.damaged
    assert line.startswith(f"{hurt}: ")
    assert said in line
    checkpoints.save(states[3])  # training goes on from the one before, and the damaged one goes
    assert [path.name for path in checkpoints.complete()] == ["step-000000002", "step-000000003"]
    damage(checkpoints.save(states[4]))
    checkpoints.save(states[4])  # in place of a damaged one
    assert_is(checkpoints.newest().state, states[4])
    assert len(list(tmp_path.iterdir())) == 2


def test_that_of_another_run_is_named_and_passed_over(tmp_path: Path, states: list[TrainState]) -> None:
    Checkpoints(tmp_path, {"model": "aaa", "data": "same"}).save(states[1])
    found = Checkpoints(tmp_path, {"model": "bbb", "data": "same"}).newest()
    assert found.state is None
    assert found.damaged == (f"{tmp_path / 'step-000000001'}: it is another run's: model is aaa, here bbb",)


def test_a_forged_manifest_names_no_files_elsewhere(tmp_path: Path, states: list[TrainState]) -> None:
    from instil.runs.checkpoints import _hash_of

    checkpoints = Checkpoints(tmp_path)
    at = checkpoints.save(states[1])
    for name, said in (("../../secret", "names other files"), ("", "names other files"), (None, "no checkpoint")):
        body = json.loads((at / MANIFEST).read_text())
        del body["sha256"]
        if name is None:
            body = {"format": 1, "identity": {}}
        else:
            body["files"][name] = body["files"][TENSORS]
        (at / MANIFEST).write_text(json.dumps({**body, "sha256": _hash_of(body)}))
        assert said in checkpoints.newest().damaged[0]
        at = checkpoints.save(states[1])


@pytest.mark.parametrize("fails", ["write", "sync", "sync_folder", "rename", "make"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_disk_that_fails_leaves_the_checkpoint_before(
    fails: str, code: int, tmp_path: Path, states: list[TrainState], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(states[1])

    def failing(*_: object) -> None:
        raise OSError(code, "the disk says no")

    with monkeypatch.context() as patch:
        patch.setattr(Disk, fails, failing)
        with pytest.raises(CheckpointError, match=r"step-0+2: the checkpoint cannot be written: the disk says no;"):
            checkpoints.save(states[2])
    kept = [path.name for path in tmp_path.iterdir()]
    assert kept == ["step-000000001"] or fails == "sync_folder"
    assert checkpoints.newest().damaged == ()
    checkpoints.save(states[3])
    assert_is(checkpoints.newest().state, states[3])


def test_room_is_looked_for_before(tmp_path: Path, states: list[TrainState], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(states[1])
    monkeypatch.setattr(Disk, "free", lambda self, folder: 64_000_000)
    monkeypatch.setattr(Disk, "write", lambda *_: pytest.fail("it began to write"))
    with pytest.raises(CheckpointError, match=r"needs 0\.00 GB beside those that are there, and 0\.06 GB are free"):
        checkpoints.save(states[2])
    assert_is(checkpoints.newest().state, states[1])


def saved_at(
    every: str, steps: int, tmp_path: Path, states: list[TrainState], a_save: float, a_step: float
) -> list[int]:
    """After which of so many steps a training is saved, where saves and steps take so many seconds."""
    now, found = 0.0, []

    class Slow(Checkpoints):
        def save(self, state: TrainState, first: Sequence[Callable[[], None]] = ()) -> Path:
            nonlocal now
            now += a_save
            return self.folder

    saving = SavesCheckpoints(Slow(tmp_path), every, Screen(quiet=True), now=lambda: now)
    saving.on_train_begin(None, steps)  # type: ignore[arg-type]
    for step in range(steps + 1):
        now += a_step if step else 0
        if saving.wants_state(Pause(step, False, False, step == steps)):
            saving.on_state(states[0])
            found.append(step)
    return found


def test_saves_by_steps_and_by_the_clock(tmp_path: Path, states: list[TrainState]) -> None:
    assert saved_at("4", 10, tmp_path, states, 1.0, 1.0) == [4, 8, 10]
    assert saved_at("4", 3, tmp_path, states, 1.0, 1.0) == [3]  # nothing is trained twice, however short it is
    assert saved_at("30s", 100, tmp_path, states, 0.1, 1.0) == [30, 60, 90, 100]
    assert saved_at("1m", 200, tmp_path, states, 2.0, 1.0) == [60, 160, 200]  # a fiftieth of the time
    assert saved_at("10m", 100, tmp_path, states, 0.1, 1.0) == [100]
    assert saved_at("0", 100, tmp_path, states, 0.1, 1.0) == []


@pytest.mark.parametrize("value", ["10 m", "often", "-1", "1.5h", True, ""])
def test_a_rhythm_that_is_none_is_refused(value: object) -> None:
    with pytest.raises(SettingsError, match="save_every"):
        resolve(values={"save_every": value})
    assert resolve(values={"save_every": 100}).train.save_every == "100"
