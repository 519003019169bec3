"""Stores of many rows: what goes in comes out, and a build that was killed goes on to the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from instil.data.encoding import encode, mask_notes
from instil.data.lengths import lengths_of
from instil.data.near_duplicates import Prompts, prompt_text
from instil.data.spelling import spelling
from instil.data.store import build, kept, shards, sources, workers
from instil.data.store.build import stored_examples, stored_tokens
from instil.data.store.examples import ExampleStore
from instil.data.store.kept import Kept
from instil.data.store.tokens import TokenStore
from instil.data.subset import Subset
from instil.data.templates import template_named
from instil.data.tokenizers import FastTokenizer
from instil.errors import DataError, InstilError
from instil.records import Encoded, Example, Turn
from instil.screen import Screen
from tests.conftest import gpt2

GPT2 = gpt2()
ALPACA = template_named("alpaca")
QUIET = Screen(quiet=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
ROLES = st.sampled_from(["system", "user", "assistant"])
TURN = st.builds(Turn, ROLES, TEXT, TEXT, st.sampled_from([0.0, 0.5, 1.0]), TEXT, st.just(""), TEXT)
EXAMPLE = st.builds(
    Example,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    st.integers(0, 2**40),
    st.lists(TURN, max_size=2).map(tuple),
    st.lists(TURN, max_size=2).map(tuple),
    st.sampled_from(["", "[]"]),
    TEXT,
    st.just(""),
    st.sampled_from([1.0, 0.0, 0.25]),
)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def some(count: int) -> list[Example]:
    """Plain rows, a conversation, and rows of other scripts."""
    before = (Turn("user", "Hi."), Turn("assistant", "你好"))
    return [
        Example(
            f"Add {n} and {n * 7}.",
            f"{8 * n}" * (1 + n % 9),
            "" if n % 3 else "é",
            row=3 * n,
            history=() if n % 17 else before,
        )
        for n in range(count)
    ]


def put(rows: list[Example], key: str = "rows") -> ExampleStore:
    return stored_examples(key, lambda: iter(rows), lambda: {"sha256": "of rows"}, QUIET, len(rows))


def files(folder: Path) -> dict[str, bytes]:
    there = [file for file in folder.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in there}


def small(patch: pytest.MonkeyPatch, batch: int = 8) -> None:
    """Files of few rows, all in this process."""
    for module in (shards, *(sys.modules[f"instil.data.store.{name}"] for name in ("examples", "tokens", "build"))):
        patch.setattr(module, "BATCH", batch)
    patch.setattr(shards, "FILES", 2)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(EXAMPLE, max_size=12), batch=st.integers(2, 5))
def test_examples_come_out_as_they_went_in(rows: list[Example], batch: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small(patch, batch)
        store = put(rows, build.key_of(rows=repr(rows), batch=batch))
        assert list(store) == rows
        assert [store[at] for at in range(len(store))] == rows
        assert list(store[1:]) == rows[1:]


def test_rows_of_a_store_are_as_encoded_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    rows = some(300)
    tokens = stored_tokens(put(rows), ALPACA, GPT2, "response", QUIET)
    wanted = [encode(row, ALPACA, GPT2) for row in rows]
    assert list(tokens) == wanted
    assert [tokens[at] for at in (0, 299, -1, 17)] == [wanted[at] for at in (0, 299, -1, 17)]
    assert len(shards.read_manifest(tokens.folder)) and len(list(tokens.folder.glob("*.arrow"))) == 2 + 2 + 1
    for found, known in ((tokens, wanted), (tokens[20:90], wanted[20:90])):
        ours, theirs = lengths_of(found), lengths_of(known)
        for column in ("ids_R", "targets_R", "first_target_R", "row_R"):
            assert getattr(ours, column).tolist() == getattr(theirs, column).tolist()
        assert ours.trained_R(40).tolist() == theirs.trained_R(40).tolist()
    assert tokens.seen_ids == sorted({index for row in wanted for index in row.ids})
    kinds = {row.row: spelling(row, GPT2) for row in rows}
    assert Kept(tokens).spelt() == ([], [row for row, kind in kinds.items() if kind == "altered"])


def test_other_ids_have_another_store(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    store = put(some(20))
    named = {
        stored_tokens(store, template, tokenizer, train_on, QUIET).folder.name
        for template, tokenizer, train_on in [
            (ALPACA, GPT2, "response"),
            (ALPACA, GPT2, "all"),
            (template_named("plain"), GPT2, "response"),
            (ALPACA, FastTokenizer(GPT2.saved(), "<|endoftext|>", [11]), "response"),
            (ALPACA, GPT2, "response"),
        ]
    }
    assert len(named) == 4


def test_weights_of_targets_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where rows have them; those of most have none."""
    if "weights" not in Encoded.__dataclass_fields__:
        pytest.skip("rows have no weights")
    small(monkeypatch)
    rows = [replace(row, history=(Turn("user", "Hi."), Turn("assistant", "Yes.", weight=0.5))) for row in some(20)]
    assert list(stored_tokens(put(rows), ALPACA, GPT2, "response", QUIET)) == [
        encode(row, ALPACA, GPT2) for row in rows
    ]


class Killed(Exception):
    """Stands for the end of the process."""


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10_000))
def test_a_build_that_was_killed_goes_on_to_the_same_bytes(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """At random points, several times; complete files are not written again."""
    draw, rows = random.Random(seed), some(150)
    with pytest.MonkeyPatch.context() as patch:
        small(patch)
        found = []
        for deaths in (0, draw.randint(1, 4)):
            home = tmp_path_factory.mktemp("home")
            patch.setenv("INSTIL_HOME", str(home))
            for death in range(deaths, -1, -1):
                left = [draw.randint(0, 30) if death else 10**9]

                def advance(note: str = "", steps: int = 1, left: list[int] = left) -> None:
                    left[0] -= 1
                    if left[0] < 0:
                        raise Killed

                screen = Screen(quiet=True)
                patch.setattr(screen, "bar", lambda what, total, advance=advance: _Bar(advance))
                before = {path: path.stat().st_mtime_ns for path in home.rglob("*.arrow")}
                try:
                    store = stored_examples("rows", lambda: iter(rows), lambda: {}, screen, len(rows))
                    stored_tokens(store, ALPACA, GPT2, "response", screen)
                except Killed:
                    assert death
                assert all(path.stat().st_mtime_ns == when for path, when in before.items())
            found.append(files(home))
        assert found[0] == found[1]


class _Bar:
    def __init__(self, advance: object) -> None:
        self.advance = advance

    def __enter__(self) -> object:
        return self.advance

    def __exit__(self, *_: object) -> None:
        pass


BUILD = """
import os, signal, sys
from instil.data.store.build import stored_examples, stored_tokens
from instil.data.templates import template_named
from instil.data.tokenizers import FastTokenizer
from instil.screen import Screen
from tests.data import test_store

class Bar(test_store._Bar):
    pass

left = int(sys.argv[1])
def advance(note="", steps=1):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
screen = Screen(quiet=True)
screen.bar = lambda what, total: Bar(advance)
test_store.workers.FEWEST = 1024
store = test_store.put(test_store.some(3500))
stored_tokens(store, template_named("alpaca"), FastTokenizer.gpt2(), "response", screen)
"""


@pytest.mark.slow
@pytest.mark.skipif(workers.processors() < 2, reason="one processor")
def test_killed_processes_leave_what_is_complete(tmp_path: Path, home: Path) -> None:
    """The builder is killed while two others encode for it; those end by themselves, and the rest is made later."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    ends = []
    for left in (2, 10**9):
        run = subprocess.run(
            [sys.executable, "-c", BUILD, str(left)], env=environment, capture_output=True, check=False
        )
        ends.append(run.returncode)
    assert ends == [-signal.SIGKILL, 0], run.stderr.decode()
    (folder,) = (home / "store").glob("tokens-*")
    assert list(TokenStore(folder)) == [encode(row, ALPACA, GPT2) for row in some(3500)]
    assert not list(folder.glob("*.unfinished"))


def test_an_error_of_another_process_is_that_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a row that cannot be encoded, and of a process that is gone."""
    monkeypatch.setattr(workers, "FEWEST", 1)
    monkeypatch.setattr(workers, "processors", lambda: 2)
    store = put(some(2000))
    with pytest.raises(DataError, match="has no response header to train on"):
        stored_tokens(store, template_named("chatml"), GPT2, "response_with_header", QUIET)
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(InstilError, match=r"ended by itself .* the same command goes on"):
        stored_tokens(store, ALPACA, GPT2, "response", QUIET)


def test_rows_are_encoded_beside_other_work_and_given_up_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "FEWEST", 1)
    monkeypatch.setattr(workers, "processors", lambda: 2)
    begun: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *given: Any, **how: Any) -> None:
            super().__init__(*given, **how)
            begun.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    rows, how = some(1500), (ALPACA, GPT2, "response", QUIET)
    store = put(rows)
    with pytest.raises(ZeroDivisionError), build.tokens_ahead(store, *how):
        while len(begun) < 2:
            pass
        raise ZeroDivisionError
    assert [one.poll() for one in begun] == [-signal.SIGKILL] * 2
    with build.tokens_ahead(store, *how) as tokens:
        while len(begun) < 4:  # though nobody has asked yet
            pass
        assert list(tokens()) == [encode(row, ALPACA, GPT2) for row in rows]
        assert tokens() is tokens()
    with (
        build.tokens_ahead(store, template_named("chatml"), GPT2, "response_with_header", QUIET) as tokens,
        pytest.raises(DataError, match="has no response header to train on"),
    ):
        tokens()


def test_where_one_process_is_enough_rows_are_encoded_when_they_are_asked_for() -> None:
    store = put(some(40))
    with build.tokens_ahead(store, ALPACA, GPT2, "response", QUIET):
        pass
    assert not list(store.folder.parent.glob("tokens-*"))
    with build.tokens_ahead(store, ALPACA, GPT2, "response", QUIET) as tokens:
        assert tokens() is tokens()
        assert list(tokens()) == [encode(row, ALPACA, GPT2) for row in some(40)]


def test_who_waits_for_another_builder_can_be_told_not_to(home: Path) -> None:
    from filelock import FileLock

    store = put(some(40))
    key = build.tokens_key(store, ALPACA, GPT2, "response")
    folder = home / "store" / f"tokens-{key}"
    folder.mkdir()
    stop = threading.Event()

    class Stopping(Screen):
        def say(self, text: str, style: str = "") -> None:
            stop.set()

    with FileLock(folder / "build.lock"), pytest.raises(workers.Stopped):
        stored_tokens(store, ALPACA, GPT2, "response", Stopping(quiet=True), "all", stop)


def test_of_two_builders_one_builds_and_the_other_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    rows, opened, may_go = some(40), [], threading.Event()
    waiting = threading.Event()

    def slowly() -> Iterator[Example]:
        opened.append(1)
        may_go.wait(20)
        yield from rows

    class Listening(Screen):
        def say(self, text: str, style: str = "") -> None:
            if "another process" in text:
                waiting.set()

    found: list[list[Example]] = []

    def build_it(screen: Screen) -> None:
        found.append(list(stored_examples("rows", slowly, lambda: {}, screen)))

    first = threading.Thread(target=build_it, args=(QUIET,))
    first.start()
    while not opened:
        pass
    second = threading.Thread(target=build_it, args=(Listening(quiet=True),))
    second.start()
    assert waiting.wait(20)
    may_go.set()
    first.join(20)
    second.join(20)
    assert found == [rows, rows]
    assert opened == [1]


def test_what_was_seen_of_files_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a training that looks at every row holds a few batches, and rows are the same after that."""
    small(monkeypatch)
    for module in (shards, sys.modules["instil.data.store.tokens"]):
        monkeypatch.setattr(module, "MAPPED", 3)
    rows = some(200)
    tokens = stored_tokens(put(rows), ALPACA, GPT2, "response", QUIET)
    wanted = [encode(row, ALPACA, GPT2) for row in rows]
    draw = random.Random(0)
    for at in draw.choices(range(200), k=100):
        assert tokens[at] == wanted[at]
        assert len(tokens._batches) <= 3
        assert len(tokens._shards._open) <= 3


def test_a_damaged_store_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    store = put(some(40))
    file = store.folder / "00000.arrow"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match=r"00000\.arrow: damaged: .* remove its folder, and it is made anew"):
        ExampleStore(store.folder)  # before any row is asked for
    manifest = store.folder / shards.MANIFEST
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "sizes": [100]}))
    with pytest.raises(DataError, match=r"00000\.arrow: damaged: .* remove its folder, and it is made anew"):
        list(ExampleStore(store.folder))  # of a store whose files were not measured
    file.unlink()
    with pytest.raises(DataError, match="remove its folder"):
        list(ExampleStore(store.folder))


def test_damaged_ids_are_told_of_when_their_store_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    folder = stored_tokens(put(some(40)), ALPACA, GPT2, "response", QUIET).folder
    file = folder / "00001.arrow"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"00001\.arrow: damaged: it has [\d,]+ bytes, .* and it is made anew"):
        TokenStore(folder)
    file.unlink()
    with pytest.raises(DataError, match=r"00001\.arrow: gone: .* remove its folder"):
        TokenStore(folder)


def test_what_masks_lack_is_told_of_without_looking_at_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    rows = some(60)
    tokens = stored_tokens(put(rows), ALPACA, GPT2, "response", QUIET)
    odd = [replace(row, straddling=n % 3, left_out=n % 5 // 4) for n, row in enumerate(tokens)]
    for name in ("straddling", "left_out"):
        tokens.columns[name] = np.array([getattr(row, name) for row in odd], np.int32)
    monkeypatch.setattr(TokenStore, "__getitem__", lambda *_: pytest.fail("a row was looked at"))
    parts: dict[Any, Any] = {"train": tokens.subset(range(40)), "test": tokens.subset(np.arange(40, 60))}
    assert Kept(tokens).mask_notes(parts) == mask_notes(odd)
    assert len(mask_notes(odd)) == 2


@pytest.mark.parametrize("kept", [0, 60, 150])
def test_a_damaged_column_says_what_to_do(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    folder = stored_tokens(put(some(40)), ALPACA, GPT2, "response", QUIET).folder
    file = next(folder.glob("*.npy"))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"\.npy: damaged: .* remove its folder, and it is made anew"):
        TokenStore(folder)


def test_a_folder_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file")
    with pytest.raises(DataError, match=r"the folder cannot be made: .* INSTIL_HOME names another place"):
        put(some(3))


def test_a_full_disk_leaves_no_part_of_a_file(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match=r"00000\.arrow: cannot be written: No space left .* INSTIL_HOME names another"):
        put(some(3))
    assert [file.name for file in home.rglob("*") if file.is_file()] == ["build.lock"]


def test_rows_by_their_numbers_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their order: few or many of a batch, of a part of a part, and across the windows of numbers."""
    small(monkeypatch)
    monkeypatch.setattr(sys.modules["instil.data.store.examples"], "AT_ONCE", 50)
    rows, draw = some(200), random.Random(1)
    store = put(rows)
    for numbers in (range(200), range(7, 150), range(3, 190, 5), [*range(60, 90), 3, 199, *range(20)], []):
        chosen = numbers if isinstance(numbers, range) else np.array(numbers, np.int64)
        assert list(store.some(chosen)) == list(store.subset(chosen)) == [rows[at] for at in numbers]
    shuffled = draw.sample(range(200), 200)
    part = store.subset(np.array(shuffled))
    assert list(part) == [rows[at] for at in shuffled]
    assert list(part.some(range(10, 100))) == [rows[at] for at in shuffled[10:100]]
    assert list(store[5:180][10:60].some(np.array([3, 4, 5, 6, 49]))) == [rows[at] for at in (18, 19, 20, 21, 64)]
    prompts, plain = Prompts(store[:60], store[60:60], store[60:]), [*map(prompt_text, rows)]
    monkeypatch.setattr(sys.modules["instil.data.near_duplicates"], "AT_ONCE", 30)
    for order in (shuffled, sorted(shuffled[:90])):
        assert list(prompts.some(np.array(order))) == [plain[at] for at in order]


def test_rows_in_a_row_are_not_read_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    store = put(some(200))
    monkeypatch.setattr(ExampleStore, "__getitem__", lambda *_: pytest.fail("a row was read by itself"))
    assert len(list(store.subset(range(100)))) == 100
    assert len(list(Prompts(store.subset(range(100))).some(np.arange(3, 80)))) == 77


def test_subsets_of_a_store_are_views(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    store = put(some(40))
    assert isinstance(store[3:9], Subset)
    assert [row.row for row in store[3:9]] == [9, 12, 15, 18, 21, 24]
    assert build.size_line(store.folder).startswith("rows and their ids are kept for the next time (0 MB); to be rid")
    assert sources.MANY == 50_000


@given(st.lists(st.tuples(st.sampled_from(["train", "test", "validation"]), st.integers(0, 9)), max_size=40))
def test_prompts_of_held_out_rows_are_looked_for_in_training_rows(given_rows: list[tuple[str, int]]) -> None:
    """The same as looking at each, however many are looked at together."""
    tokens: Any = SimpleNamespace(columns={"prompt": np.array([prompt for _, prompt in given_rows], np.uint64)})
    numbers = {
        name: np.array([at for at, (part, _) in enumerate(given_rows) if part == name], np.int64)
        for name in ("train", "test", "validation")
    }
    asked = {prompt for part, prompt in given_rows if part == "train"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "AT_ONCE", 3)
        found = Kept(tokens).repeated({name: Subset((), its) for name, its in numbers.items()})  # type: ignore[misc]
    assert found == sum(part != "train" and prompt in asked for part, prompt in given_rows)
