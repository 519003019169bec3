"""Several runs or files compared at once: on the rows that all have, with p-values for their number."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

import instil
from instil.data.near_duplicates import Near
from instil.errors import DataError, UserError
from instil.evaluate.comparison import compare_verdicts
from instil.recipes.common_rows import names_of
from instil.recipes.compare_many import adjusted, letter, letters_of
from instil.records import Verdict
from tests.conftest import rows
from tests.processes import instil as command


def files(folder: Path, shares: dict[str, float], count: int = 40) -> list[Path]:
    """Answers of which such a share is right, each its own draw."""
    paths = []
    for at, (name, share) in enumerate(shares.items()):
        draw = random.Random(at)
        said = [
            {**row, "model_response": row["output"] if draw.random() < share else "No idea."} for row in rows(count)
        ]
        paths.append(folder / f"{name}.json")
        paths[-1].write_text(json.dumps(said))
    return paths


def test_the_best_comes_first_and_those_that_are_alike_share_a_letter(tmp_path: Path) -> None:
    paths = files(tmp_path, {"fair": 0.5, "good": 0.85, "poor": 0.05, "best": 0.95})
    found = instil.compare_many(paths)
    assert [one.name for one in found.standings] == ["best.json", "good.json", "fair.json", "poor.json"]
    assert [one.letters for one in found.standings] == ["a", "a", "b", "c"]
    assert found.groups == [["best.json", "good.json"]]
    assert found.sentence() == (
        "best.json is better than fair.json and poor.json, and not distinguishable from good.json."
    )
    assert found.rows == 40
    told = found.as_json()
    assert len(told["pairs"]) == 6
    assert told["indistinguishable"] == found.groups
    assert told["standings"][0]["metrics"]["exact_match"]["mean"] == pytest.approx(100 * 38 / 40, abs=5)


def test_each_pair_is_that_of_two_alone_but_for_its_p(tmp_path: Path) -> None:
    paths = files(tmp_path, {"a": 0.5, "b": 0.7, "c": 0.9})
    many = instil.compare_many(paths)
    alone = {}
    for one, other in combinations(paths, 2):
        two = instil.compare(one, other).comparison
        pair = many.pairs[one.name, other.name]  # the means rise with the names
        alone[one.name, other.name] = two.p
        assert pair.difference == two.difference
        assert (pair.wins, pair.losses, pair.ties) == (two.wins, two.losses, two.ties)
    by_scipy = sorted(alone.values())
    by_scipy = [max(min(1.0, (3 - k) * by_scipy[k]) for k in range(at + 1)) for at in range(3)]
    assert sorted(pair.p for pair in many.pairs.values()) == pytest.approx(by_scipy)


def test_p_values_are_adjusted_so_that_chance_is_not_found_among_many() -> None:
    """Twelve sets of scores of one distribution: 66 pairs, of which some look different alone."""
    alone = together = 0
    for seed in range(12):
        draw = random.Random(seed)
        verdicts = {str(n): [Verdict(row, "x", 100.0 * (draw.random() < 0.5)) for row in range(50)] for n in range(8)}
        alone += any(
            compare_verdicts(verdicts[a], verdicts[b]).outcome != "not distinguishable"
            for a, b in combinations(verdicts, 2)
        )
        together += any(one.outcome != "not distinguishable" for one in adjusted(verdicts).values())
    assert alone >= 6  # else the test shows nothing
    assert together <= 2


def test_rows_that_not_all_have_are_left_out(tmp_path: Path) -> None:
    a, b, c = files(tmp_path, {"a": 0.5, "b": 0.5, "c": 0.5})
    a.write_text(json.dumps(json.loads(a.read_text())[5:]))
    c.write_text(json.dumps(list(reversed(json.loads(c.read_text())[:30]))))
    found = instil.compare_many([a, b, c])
    assert found.rows == 25
    assert {one.name: one.left_out for one in found.standings} == {"a.json": 10, "b.json": 15, "c.json": 5}
    whole = instil.compare(a, b).comparison
    assert whole.rows == 35
    lone = tmp_path / "lone.json"
    lone.write_text(json.dumps([{"instruction": "Sing.", "output": "La.", "model_response": "La."}]))
    with pytest.raises(DataError, match=r"a\.json, .*b\.json and .*lone\.json have no row in common"):
        instil.compare_many([a, b, lone])


def test_leaks_are_told_of_with_what_they_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = files(tmp_path, {"wrong": 0.0, "half": 0.5, "right": 1.0})
    clean = instil.compare_many(paths)
    assert (clean.leaks, clean.changed) == (None, ())  # nobody looked
    near = {n: Near(n, 3, 0.95) for n in range(2, 40)}
    monkeypatch.setattr("instil.recipes.compare_many.leaks_of", lambda answered, rows: (near, True))
    found = instil.compare_many(paths)
    assert found.leaks == 38
    assert found.pairs == clean.pairs
    assert ("wrong.json", "right.json") in found.changed  # two rows show nothing
    told = [pair for pair in found.as_json()["pairs"] if pair["otherwise_without_near_duplicates"]]
    assert [(pair["a"], pair["b"]) for pair in told] == list(found.changed)


def test_leaks_of_any_of_the_runs_count(copied_run: Path, plain_run: Path) -> None:
    split = json.loads((copied_run / "split.json").read_text())
    held_out = split["test"] or split["validation"]
    split["near_duplicates"] = [{"row": held_out[0], "train_row": 3, "cosine": 0.95}]
    (copied_run / "split.json").write_text(json.dumps(split))
    base = copied_run / "responses" / "base.json"
    assert instil.compare_many([plain_run, base, copied_run]).leaks == 1


def test_letters_are_those_of_the_largest_groups() -> None:
    names = ["a", "b", "c", "d"]
    apart: Callable[..., set[frozenset[str]]] = lambda *pairs: {frozenset(pair) for pair in pairs}  # noqa: E731
    assert letters_of(names, apart("ad")) == {"a": "a", "b": "ab", "c": "ab", "d": "b"}
    assert letters_of(names, apart("ac", "ad", "bd")) == {"a": "a", "b": "ab", "c": "bc", "d": "c"}
    every = apart(*map("".join, combinations(names, 2)))
    assert letters_of(names, every) == {"a": "a", "b": "b", "c": "c", "d": "d"}
    draw = random.Random(1)
    for _ in range(30):
        some = {pair for pair in every if draw.random() < 0.5}
        found = letters_of(names, some)
        for one, other in combinations(names, 2):
            assert bool(set(found[one]) & set(found[other])) == (frozenset((one, other)) not in some)
    assert len({letter(at) for at in range(200)}) == 200


def test_names_are_as_long_as_it_takes() -> None:
    paths = [Path("/x/one/run"), Path("/x/two/run"), Path("/x/run")]
    assert names_of(paths) == ["one/run", "two/run", "x/run"]


@pytest.mark.parametrize(
    ("names", "more", "said"),
    [
        (["a"], [], "one alone cannot be compared"),
        (["a", "b", "a"], [], "named twice"),
        (["a", "b", "c"], ["--pairwise"], "name two runs or files"),
        (["a", "b", "none"], [], "no such file"),
    ],
)
def test_what_cannot_be_compared_is_refused_in_one_line(
    names: list[str], more: list[str], said: str, tmp_path: Path
) -> None:
    files(tmp_path, {"a": 0.5, "b": 0.5, "c": 0.5})
    result = command("compare", *[tmp_path / f"{name}.json" for name in names], *more)
    assert result.returncode == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_command_prints_a_table_or_json(tmp_path: Path) -> None:
    paths = files(tmp_path, {"a": 0.1, "b": 0.5, "c": 0.95})
    shown = command("compare", *paths).stdout
    assert shown.index("c.json  ") < shown.index("b.json  ") < shown.index("a.json  ")
    assert "c.json is better than" in shown.splitlines()[0]
    assert "Holm, 3 comparisons" in shown
    told: dict[str, Any] = json.loads(command("compare", *paths, "--json").stdout)
    assert [one["name"] for one in told["standings"]] == ["c.json", "b.json", "a.json"]


def test_the_same_run_twice_is_refused(tmp_path: Path) -> None:
    a, b = files(tmp_path, {"a": 0.5, "b": 0.5})
    with pytest.raises(UserError, match="named twice"):
        instil.compare_many([a, b, tmp_path / "." / "a.json"])
