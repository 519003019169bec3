"""The table of a sweep: what is said in which form, and what is not concluded."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from instil.evaluate.comparison import compare_verdicts
from instil.evaluate.statistics import holm, interval
from instil.recipes.sweep.page import write_page
from instil.recipes.sweep.table import SweepRow, SweepTable
from instil.records import Verdict

ODD = 'a "quoted", comma | pipe\nline <b>'


def verdicts(scores: list[float]) -> list[Verdict]:
    return [Verdict(row, "offline", score) for row, score in enumerate(scores)]


FIRST = [50.0 + row % 7 for row in range(40)]


def row(name: str, shift: float = 0.0, noise: float = 3.0, **more: Any) -> SweepRow:
    """A run whose scores are those of the first and so much more, with some noise."""
    scores = [score + shift + (noise if at % 2 else -noise) for at, score in enumerate(FIRST)]
    return SweepRow(
        name=name, folder=f"out/{name}", status="done", model="m", data="d", steps=3, trained=1000, train_seconds=90.0,
        seconds=700.0, peak_memory_gb=1.25, train_loss=0.5, validation_loss=0.75, after=interval(scores),
        before=interval(FIRST), exact_match=interval(FIRST),
        against=compare_verdicts(verdicts(FIRST), verdicts(scores)), **more,
    )  # fmt: skip


def first(**more: Any) -> SweepRow:
    return SweepRow(name="one", folder="out/one", status="kept", after=interval(FIRST), trained=7, **more)


def test_odd_names_and_reasons_survive_every_form(tmp_path: Path) -> None:
    failed = SweepRow(name="bad", folder="out/bad", status="failed", reason=ODD)
    table = SweepTable.of("x.toml", "offline", [first(), row(ODD), failed])
    lines = list(csv.DictReader(io.StringIO(table.as_csv())))
    assert [line["name"] for line in lines] == ["one", ODD, "bad"]
    assert lines[2]["reason"] == ODD
    assert lines[1]["train_minutes"] == "1.5"
    assert lines[2]["after"] == ""
    assert {len(line) for line in lines} == {len(lines[0])}
    markdown = table.as_markdown().splitlines()[:5]
    assert {line.replace("\\|", "").count("|") for line in markdown} == {13}
    assert 'a "quoted", comma \\| pipe line &lt;b>' in markdown[3]
    write_page(table, tmp_path / "none.png", tmp_path / "sweep.html")
    page = (tmp_path / "sweep.html").read_text()
    assert "<b>\n" not in page.replace("</b>", "") and "line &lt;b&gt;" in page
    assert json.loads(json.dumps(table.as_json(), allow_nan=False)) == table.as_json()


def test_a_verdict_must_hold_among_all_comparisons() -> None:
    """One difference alone would count; among many it does not, and that is said."""
    close = row("close", 1.0, 2.9)
    assert close.against is not None and close.against.outcome == "better"
    assert 0.026 < close.against.p < 0.05
    alone = SweepTable.of("x", "offline", [first(), close])
    assert (alone.rows[1].verdict, alone.rows[1].p) == ("better", close.against.p)
    assert not any("Holm" in note for note in alone.notes())
    many = SweepTable.of("x", "offline", [first(), close, row("b", 0.1), row("c", 30.0), row("d", -30.0)])
    assert [one.verdict for one in many.rows] == ["", "not distinguishable", "not distinguishable", "better", "worse"]
    told = "\n".join(many.notes())
    assert "4 runs are compared with one: p is adjusted for that (Holm)" in told
    assert "Alone, close would be told apart from one." in told
    assert "choose by the validation loss" in told


def test_what_has_no_row_in_common_is_said_not_to_be_compared() -> None:
    table = SweepTable.of("x", "offline", [first(), row("a"), replace(row("b"), against=None)])
    assert table.cells(table.rows[2])[-2:] == ["not compared", "-"]
    assert "b answered no row that one answered" in "\n".join(table.notes())
    assert "answered no row" not in "\n".join(SweepTable.of("x", "offline", [first(), row("a")]).notes())


def test_holm_against_its_definition() -> None:
    ps = [0.001, 0.01, 0.02, 0.04, 0.5]
    assert holm(ps) == pytest.approx([0.005, 0.04, 0.06, 0.08, 0.5])
    assert holm(ps[::-1]) == pytest.approx([0.5, 0.08, 0.06, 0.04, 0.005])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_losses_of_other_things_are_pointed_out() -> None:
    of = {"template": "a", "targets": "all"}
    rows = [
        first(loss_of=of), row("same", loss_of=dict(of)), row("t", loss_of={**of, "template": "b"}),
        row("u", loss_of={**of, "template": "c"}), row("v", loss_of={"template": "b", "targets": "response"}),
    ]  # fmt: skip
    found = [note for note in SweepTable.of("x", "offline", rows).notes() if "comparable" in note]
    assert found == [
        "The validation losses of t, u and one are not comparable: different template.",
        "The validation losses of v and one are not comparable: different template and targets.",
    ]


def test_cells_for_people() -> None:
    table = SweepTable.of("x", "offline", [first(), row("b", 30.0), SweepRow("c", "out/c")])
    assert len(table.columns()) == len(table.cells(table.rows[0])) == len(table.cells(table.rows[2]))
    shown = dict(zip(table.columns(), table.cells(table.rows[1]), strict=True))
    assert (shown["training, min"], shown["whole, min"], shown["memory, GB"]) == ("1.50", "11.7", "1.25")
    assert (shown["trained"], shown["train loss"], shown["p"]) == ("1,000", "0.500", "< 0.001")
    assert shown["against one"].startswith("better +30.0 [+")
    assert table.cells(table.rows[2])[-2] == "waiting"
    assert "score after" in SweepTable.of("x", "ollama:l", table.rows).columns()


def test_the_page_before_anything_is_finished(tmp_path: Path) -> None:
    write_page(SweepTable.of("x", "offline", [SweepRow("a", "o/a")]), tmp_path / "none.png", tmp_path / "p.html")
    assert "0 of 1 run is finished." in (tmp_path / "p.html").read_text()
