"""What was found in the rows of a store is kept by all that it depends on: the same as found anew, and not believed
where it is damaged.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from instil.data.duplicates import search
from instil.data.findings.look import Looked, look
from instil.data.leaks import Leaks, guard
from instil.data.splits import Split, split_examples
from instil.data.store import results
from instil.data.store.build import stored_examples
from instil.data.store.results import Results
from instil.errors import DataError
from instil.files import json_text
from instil.records import Example
from instil.screen import Screen
from instil.settings.options import DataOptions

WAYS: list[dict[str, Any]] = [
    {},
    {"leaks": "drop"},
    {"split": "grouped"},
    {"split": "grouped", "split_seed": 7, "leak_threshold": 0.8},
    {"leak_threshold": 0.8, "leaks": "drop"},
]
OWN = ["<|im_start|>"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("INSTIL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def rows(count: int = 200) -> list[Example]:
    """With leaks, repeats, contradictions and texts to be told of, numbered with gaps."""
    made = [
        Example(
            f"Describe {sha256(bytes([n])).hexdigest()[:40]}, please, and at length.",
            f"Answer {n}.",
            row=2 * n,
            task="ab"[n % 2],
        )
        for n in range(count)
    ]
    for at, like in ((190, 3), (199, 4), (50, 5), (60, 6), (172, 8)):
        made[at] = replace(made[like], row=2 * at)
    made[60] = replace(made[60], output="Otherwise.")
    made[70] = replace(made[7], instruction=made[7].instruction.replace("length", "lengths"), row=140)
    made[10] = replace(made[10], output="<|im_start|> é")
    made[11] = replace(made[11], output="")
    return made


def store(given: Sequence[Example], key: str = "of-rows") -> Any:
    return stored_examples(key, lambda: iter(given), lambda: {}, Screen(quiet=True), len(given))


def said(split: Split, leaks: Leaks, looked: Looked) -> bytes:
    """All that anybody can see of them."""
    seen = [
        split.kind,
        split.notes,
        split.as_json(),
        leaks.as_json(),
        leaks.lines(),
        [list(pairs) for pairs in (leaks.found, leaks.dropped, leaks.repeated, leaks.contradicting, leaks.alike)],
        leaks.of("test"),
        looked,
        [list(counts.items()) for counts in (*looked.kinds.values(), looked.shapes)],
    ]
    return repr(seen).encode("utf-8", "surrogatepass")


def looked_at(examples: Any, options: DataOptions) -> tuple[bytes, list[str]]:
    found = Results(examples)
    split, leaks = found.split(options)
    return said(split, leaks, found.look(split, options, OWN)), found.notes


def counting(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is found anew from now on."""
    told: list[str] = []
    for name in ("looked_for", "look"):
        real = getattr(results, name)

        def one(*given: Any, name: str = name, real: Any = real, **how: Any) -> Any:
            told.append(name)
            return real(*given, **how)

        monkeypatch.setattr(results, name, one)
    return told


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_what_is_kept_is_what_is_found(way: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    given, options = rows(), DataOptions.model_validate(way)
    split, leaks = guard(split_examples(given, options), options)
    in_memory = said(split, leaks, look(split, None, OWN))
    assert leaks.alike
    assert bool(leaks.contradicting and leaks.repeated) == ("split" not in way)
    assert bool(leaks.found) == (way == {})
    told, examples = counting(monkeypatch), store(given)
    for again in (False, True):
        assert looked_at(examples, options) == (in_memory, [])
        assert told == ["looked_for", "look"], f"again: {again}"
    assert looked_at(given, options)[0] == in_memory
    assert len(told) == 4  # rows in memory have nowhere to keep it


def test_each_setting_that_shapes_a_result_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    told, examples = counting(monkeypatch), store(rows())
    ways = [*WAYS, {"split": "grouped", "split_seed": 7}, {"leak_threshold": 0.95}]
    for way in ways:
        looked_at(examples, DataOptions.model_validate(way))
    assert told == ["looked_for", "look"] * len(ways)
    for way in [*ways, {"split_seed": 9}, {"max_length": 40}]:  # the book's split has no seed
        looked_at(examples, DataOptions.model_validate(way))
    assert len(told) == 2 * len(ways)
    found, options = Results(examples), DataOptions()
    split, _ = found.split(options)
    for own, at_most in (([], 100), ([], 120), (OWN, 100)):
        looked = found.look(split, options, own, at_most)
        assert looked.rows <= at_most
    assert told[2 * len(ways) :] == ["look"] * 3
    Results(store(rows()[:-1], "of-others")).split(options)
    assert told[2 * len(ways) + 3 :] == ["looked_for"]


@pytest.mark.parametrize("name", ["SEARCH", "LOOK"])
def test_another_version_finds_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told, examples = counting(monkeypatch), store(rows())
    looked_at(examples, DataOptions())
    monkeypatch.setattr(results, name, 99)
    looked_at(examples, DataOptions())
    assert told[2:] == (["looked_for", "look"] if name == "SEARCH" else ["look"])


def test_leaks_are_refused_from_what_is_kept_and_reported_by_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    told, examples = counting(monkeypatch), store(rows())
    refusals = []
    for given in (examples, examples, rows()):
        with pytest.raises(DataError, match=r"data\.leaks=refuse") as refused:
            Results(given).split(DataOptions(leaks="refuse"))
        refusals.append(str(refused.value))
    assert len(set(refusals)) == 1
    assert told == ["looked_for"] * 2
    Results(examples).split(DataOptions())
    assert len(told) == 2


@pytest.mark.parametrize("which", ["split", "look"])
@pytest.mark.parametrize("harm", ["cut", "empty", "changed", "another"])
def test_what_is_damaged_is_found_anew(which: str, harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    examples, options = store(rows()), DataOptions()
    wanted, _ = looked_at(examples, options)
    (path,) = (examples.folder / results.FOLDER).glob(f"{which}-*")
    whole = path.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    (other,) = (one for one in path.parent.iterdir() if one != path)
    path.write_bytes({"cut": whole[:-3], "empty": b"", "changed": changed, "another": other.read_bytes()}[harm])
    told = counting(monkeypatch)
    assert looked_at(examples, options) == (wanted, [f"{path}: damaged; what it holds was found anew"])
    assert told == ["looked_for" if which == "split" else "look"]
    assert path.read_bytes() == whole
    assert looked_at(examples, options) == (wanted, [])


def test_a_folder_that_cannot_be_written_keeps_nothing_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    examples = store(rows())
    monkeypatch.setattr(os, "fsync", full)
    assert looked_at(examples, DataOptions())[1] == []
    assert list((examples.folder / results.FOLDER).iterdir()) == []


def test_several_at_once_leave_one_whole_file() -> None:
    examples, options = store(rows()), DataOptions()
    found: list[bytes] = []
    threads = [threading.Thread(target=lambda: found.append(looked_at(examples, options)[0])) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1
    assert len(found) == 4
    assert sorted(path.name.split("-")[0] for path in (examples.folder / results.FOLDER).iterdir()) == ["look", "split"]


def test_results_of_a_version_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where this fails because the same rows give another result, raise `SEARCH` or `LOOK`, and then note it here."""
    found = {}
    ways: dict[str, dict[str, Any]] = {"book": {}, "grouped": {"split": "grouped"}, "sketched": {"leaks": "drop"}}
    for name, way in ways.items():
        monkeypatch.setattr(search, "EXACTLY", 0 if name == "sketched" else 10_000)
        options = DataOptions.model_validate(way)
        split, leaks = guard(split_examples(rows(), options), options)
        told = json_text([leaks.as_json(), split.as_json()], ascii_only=True)
        found[name] = sha256(told.encode()).hexdigest()[:12]
        found[f"{name}, looked at"] = sha256(repr(look(split, None, OWN)).encode("utf-8", "replace")).hexdigest()[:12]
    assert (results.SEARCH, results.LOOK, found) == (1, 1, NOTED)


NOTED = {
    "book": "7c0f3c83b567",
    "book, looked at": "dd2ee04f1d10",
    "grouped": "a3ee0951cd88",
    "grouped, looked at": "b3ab38aab3b4",
    "sketched": "7f029e3f90f9",
    "sketched, looked at": "21f46b106a6f",
}
