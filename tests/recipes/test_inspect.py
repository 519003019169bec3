"""The mask microscope: tokens by their masks, suspicious rows, padding, the page, and what stops a run."""

from __future__ import annotations

import json
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from instil.cli import app
from instil.cli.microscope import tokens
from instil.data.preflight import check
from instil.data.splits import Split
from instil.errors import DataError, UserError
from instil.recipes.inspect import Inspection, inspect
from instil.recipes.microscope.page import pieces, write_page
from instil.recipes.microscope.rows import InspectedRow, Token, inspected
from instil.recipes.microscope.suspicious import MOST
from instil.records import Encoded, Example
from instil.settings.resolve import resolve
from instil.tasks.prepare import prepare
from instil.tasks.task import loader_for
from tests.conftest import rows
from tests.recipes.test_export_gguf import folder_of


def saved(folder: Path, content: list[Any]) -> str:
    path = folder / "rows.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return str(path)


def dirty() -> list[dict[str, str]]:
    made = rows(40)
    made[3]["output"] = "It is 6.</s>"
    made[5]["output"] = "nan"
    made[8]["output"] = "very " * 80 + "long."
    made[9]["instruction"] = "very " * 80 + "long."
    return made


@pytest.fixture(scope="module")
def seen(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Inspection, str]:
    """Suspicious rows of forty, and their page."""
    folder = tmp_path_factory.mktemp("seen")
    settings = resolve(values={"max_length": 80, "layout": "padded"})
    found = inspect(saved(folder, dirty()), str(tiny_folder), settings, [2], suspects=True, html=folder / "page.html")
    return found, (folder / "page.html").read_text(encoding="utf-8")


def test_suspicious_rows_come_with_the_reason(seen: tuple[Inspection, str]) -> None:
    why = {row.example.row: row.why for row in seen[0].rows}
    assert list(why)[:3] == [2, 9, 8]  # what was asked for, and the worst first
    assert why[2] == ()
    assert why[9] == ("skipped: nothing to train on within 80 tokens",)
    assert why[8] == ("cut at 80 tokens", "the longest training row")
    assert "its answer is a place-holder" in why[5]
    assert why[3] == ("an answer holds marks that end an answer or begin a prompt",)
    assert any("fewest tokens" in reason for reason in why[5])
    assert len(why) <= MOST + 1


def test_every_token_has_its_mask(seen: tuple[Inspection, str]) -> None:
    by_row = {row.example.row: row for row in seen[0].rows}
    cut = by_row[8]
    assert [token.mask for token in cut.tokens[81:]] == ["cut"] * cut.cut
    assert cut.cut == len(cut.tokens) - 81
    assert cut.sentence() == f"{len(cut.tokens)} tokens, {cut.trained} trained on, {cut.cut} cut"
    text = "".join(token.text for token in by_row[3].tokens if token.mask == "trained")
    assert text == "It is 6.</s><end>"
    assert [token.control for token in by_row[3].tokens if token.mask == "trained"][-3:] == [False, False, True]


@pytest.mark.parametrize(("book", "layout"), [(False, "padded"), (True, "padded"), (False, "shared")])
def test_padding_is_that_of_the_rows_own_batch(tiny_folder: Path, book: bool, layout: str) -> None:
    assignments = [f"train.layout={layout}", "train.batch_size=4", "data.max_length=60"]
    prepared = prepare(dirty(), tiny_folder, resolve(assignments=assignments, as_in_book=book))
    shown = {row.example.row: row for row in inspected(prepared, dict.fromkeys(range(40), ()))}
    if layout == "shared":
        assert {row.padding for row in shown.values()} == {None}
        return
    loader = loader_for(prepared, "train")
    assert loader is not None
    for batch in loader.batches():
        lengths = [min(len(shown[row].tokens) - 1, 60) for row in batch.examples]
        assert [shown[row].padding for row in batch.examples] == [max(lengths) - length for length in lengths]
    assert (shown[9].padding is None) is not book  # it is left out of every batch, where prompts are not trained on
    assert shown[36].padding is not None


def test_the_page_stands_alone_and_says_all(seen: tuple[Inspection, str]) -> None:
    found, page = seen
    assert not re.findall(r"(?:src|href)=[\"'](?!#|data:)", page)
    assert page.count("<script") == 1
    assert "script-src 'sha256-" in page
    sections = re.findall(r'<section class="row" id="r\d+" data-row="(\d+)".*?</section>', page, re.DOTALL)
    assert [int(row) for row in sections] == [row.example.row for row in found.rows]
    for row, section in zip(
        found.rows, re.findall(r'<p class="tokens" dir="auto">(.*?)</p>', page, re.DOTALL), strict=True
    ):
        shown = re.findall(
            r'<span class="token (\w+)[^"]*"[^>]*>((?:<span class="sign">.*?</span>|[^<])*)</span>', section
        )
        assert [mask for mask, _ in shown] == [token.mask for token in row.tokens]
        texts = [unescape(re.sub(r'<span class="sign">.*?</span>', "", text)) for _, text in shown]
        assert texts == [token.text for token in row.tokens]
    assert "<li>cut at 80 tokens</li>" in page
    assert "tokens of padding</span>" in page
    for line in found.preflight.lines():
        assert line in unescape(page)


def test_what_rows_bring_runs_nowhere(tmp_path: Path) -> None:
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\x00\ud800"
    example = Example(evil, evil, task=evil, row=0)
    row = InspectedRow(example, "train", (Token(1, evil, "trained", 0.5), Token(2, "\n\t\u200b", "seen")), (evil,), 3)
    encoded = Encoded((1, 2), (False, True), 1, 0)
    parts: dict[Any, Any] = {"train": [encoded], "test": [], "validation": []}
    found = check(Split("book", (example,), (), ()), parts, 9, context=9, notes=[evil])
    write_page(evil, found, [row], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "<img" not in page
    assert "\0" not in page  # a browser would drop it
    assert "&times;0.5" in page
    assert "trained on with weight 0.5" in page
    assert 'class="sign">U+200B</span>' in page


def test_what_does_not_show_has_a_sign_in_the_terminal_and_on_the_page() -> None:
    spaced = ("Say:", "  ", "a", " ", "b ", "\n", "\t", "\u200b", " ")
    seen = InspectedRow(Example("x"), "train", tuple(Token(at, text, "seen") for at, text in enumerate(spaced)))
    assert tokens(seen).plain == "Say:··a b·↵\n→U+200B·"
    said = (Token(1, "A ", "trained"), Token(2, "b", "trained", 0.5), Token(3, "<end>", "trained", control=True))
    row = InspectedRow(Example("x"), "train", (Token(0, "Say", "seen"), *said, Token(4, "cut", "cut")), padding=7)
    shown = tokens(row)
    assert shown.plain == "Say«A·»«b»×0.5«<end>»cut [7 of padding]"
    styles = {shown.plain[span.start : span.end]: str(span.style) for span in shown.spans}
    assert styles["b"] == "green"
    assert styles["<end>"] == "bold green magenta"
    assert styles["c"] == "red strike"
    assert pieces("a\nb") == (("a", False), ("↵", True), ("\nb", False))
    assert row.as_json()["tokens"][2] == {"id": 2, "text": "b", "fate": "trained", "weight": 0.5}


def weighted(number: int) -> dict[str, Any]:
    answer = {"role": "assistant", "content": f"It is {number}.", "weight": 0.25 if number % 2 else 1}
    told = [{"role": "user", "content": "So?"}, {"role": "assistant", "content": "Yes, so.", "weight": 0.5}]
    return {"messages": [*told, {"role": "user", "content": f"And {number}?"}, answer]}


def test_how_often_a_message_counts_is_shown(tmp_path: Path) -> None:
    model = str(folder_of(tmp_path / "model", "llama", max_position_embeddings=512))
    data = saved(tmp_path, [weighted(number) for number in range(12)])
    ended = CliRunner().invoke(app, ["inspect", data, "-m", model, "--row", "3", "--html", str(tmp_path / "a.html")])
    assert ended.exit_code == 0, ended.output
    assert "«Yes, so.<end>»×0.5" in ended.stdout
    assert "«It is 3.<end>»×0.25" in ended.stdout
    assert "«a part»×0.5 counts so often" in ended.stdout.replace("\n", " ")
    (row,) = inspect(data, model, resolve(), [3]).rows
    counts = [token.weight for token in row.tokens if token.mask == "trained"]
    assert set(counts) == {0.5, 0.25}
    assert f"{len(counts)} trained on (counted as {sum(counts):g})" in row.sentence()
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert page.count('<span class="weight">&times;0.25</span>') == 1
    assert 'class="token trained part"' in page
    ended = CliRunner().invoke(
        app, ["inspect", saved(tmp_path, rows(12)), "-m", model, "--html", str(tmp_path / "b.html")]
    )
    assert "counts so often" not in ended.stdout + (tmp_path / "b.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("train_on", ["response", "all"])
def test_what_is_said_of_a_row_is_what_is_shown_of_it(train_on: str, tmp_path: Path) -> None:
    """The first token is no target, and neither is one beyond the limit."""
    model = str(folder_of(tmp_path / "model", "llama", max_position_embeddings=512))
    texts = [{"text": f"the thing {number} " + "x" * number} for number in range(20)]
    for data in (saved(tmp_path, texts), saved(tmp_path, rows(20))):
        found = inspect(
            data, model, resolve(values={"data": {"train_on": train_on, "max_length": 230}}), [], suspects=True
        )
        (told,) = [(row, why) for row in found.rows for why in row.why if why.startswith("the least")]
        assert told[1] == f"the least of it is trained on: {told[0].trained} of {len(told[0].tokens)} tokens"
        assert told[0].sentence().startswith(f"{len(told[0].tokens)} tokens, {told[0].trained} trained on")


def test_rows_that_are_worth_nothing_are_shown_and_refused(tiny_folder: Path, tmp_path: Path) -> None:
    data = saved(tmp_path, [{**row, "output": "null"} for row in rows(12)])
    ended = CliRunner().invoke(app, ["inspect", data, "-m", str(tiny_folder), "--json", "--suspicious"])
    assert isinstance(ended.exception, DataError)
    assert "all 10 training rows are empty or place-holders" in str(ended.exception)
    found = json.loads(ended.stdout)
    assert found["preflight"]["findings"][0]["severity"] == "error"
    assert found["rows"]
    with pytest.raises(DataError, match="all 10 training rows"):
        prepare(data, tiny_folder, resolve())
    from instil.recipes.run.run import run

    with pytest.raises(DataError, match="all 10 training rows"):
        run(data, tiny_folder, tmp_path / "run", resolve())
    assert not (tmp_path / "run").exists()


def test_what_the_command_prints(tiny_folder: Path, tmp_path: Path) -> None:
    data, page = saved(tmp_path, dirty()), tmp_path / "page.html"
    how = ["-m", str(tiny_folder), "--set", "data.max_length=80"]
    ended = CliRunner().invoke(app, ["inspect", data, *how, "--row", "3", "--html", str(page)])
    assert ended.exit_code == 0, ended.output
    assert "warning: 1 answer holds marks that end an answer" in ended.stdout
    assert "row 9 is left out: its prompt alone has" in ended.stdout
    assert "row 8 is cut: " in ended.stdout
    assert "«It is 6.</s><end>»" in ended.stdout
    assert f"page: {page}" in ended.stderr
    assert page.is_file()
    card = json.loads(CliRunner().invoke(app, ["inspect", data, *how, "--json"]).stdout)
    assert [row["row"] for row in card["rejected"]] == [8, 9]
    assert card["card"]["rejected"] == {"left out": 1, "cut": 1, "reasons": card["card"]["rejected"]["reasons"]}
    with pytest.raises(UserError, match="is a folder; wanted the name of a file"):
        inspect(data, str(tiny_folder), resolve(), [], html=tmp_path)
    with pytest.raises(UserError, match="no row 99"):
        inspect(data, str(tiny_folder), resolve(), [99], suspects=True)
