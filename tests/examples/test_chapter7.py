"""The chapter as a program, run as a reader runs it."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from instil.data.encoding import encode
from instil.data.loader import Loader
from instil.data.sources import read_source
from instil.data.splits import split_in_order
from instil.data.templates import template_named
from instil.data.tokenizers import FastTokenizer
from instil.model.find import find_model
from instil.model.load import load_decoder
from instil.recipes.run.run import run
from instil.screen import Screen
from instil.settings.resolve import resolve
from instil.train.metrics import read_metrics
from tests.conftest import BOOK_DATA, make_tiny, rows
from tests.faults.judge_server import judging

PROGRAM = Path(__file__).parents[2] / "examples" / "chapter7.py"
NOBODY = "http://127.0.0.1:9"


def chapter(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(PROGRAM), *map(str, arguments)], capture_output=True, text=True, check=False, timeout=500
    )


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,010 rows, so that there is an entry 999."""
    file = tmp_path_factory.mktemp("data") / "rows.json"
    file.write_text(json.dumps(rows(1010)))
    return file


@pytest.fixture(scope="module")
def gpt2_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with GPT-2's whole vocabulary, which the chapter prints ids of."""
    return make_tiny(tmp_path_factory.mktemp("gpt2"), FastTokenizer.gpt2())


@pytest.fixture(scope="module")
def printed(gpt2_folder: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the program prints as in the book, shortened, and where its files lie."""
    out = tmp_path_factory.mktemp("chapter") / "out"
    done = chapter(
        "--model", gpt2_folder, "--data", many, "--out", out, "--as-in-book", "--judge", NOBODY,
        "--steps", 7, "--answers", 4, "--set", "generate.max_new_tokens=5",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout, out


def test_every_section_is_there_in_order(printed: tuple[str, Path]) -> None:
    assert re.findall(r"^(7\.\d) ", printed[0], re.MULTILINE) == ["7.2", "7.3", "7.4", "7.5", "7.6", "7.7", "7.8"]


def test_rows_in_their_form(printed: tuple[str, Path]) -> None:
    text = printed[0]
    assert "Number of entries: 1010" in text
    assert "### Instruction:\nDouble the number 50.\n\n### Input:\nn = 50\n\n### Response:\nIt is 100." in text
    assert "### Instruction:\nDouble the number 999.\n\n### Response:\nIt is 1998." in text
    assert "858 rows to train on, 101 to test, 51 to validate" in text


def test_ids_and_collate(printed: tuple[str, Path]) -> None:
    flat = " ".join(printed[0].split()).replace("[ ", "[")
    whole = [*FastTokenizer.gpt2().encode(template_named("alpaca").prompt(example(0)) + "It is 0."), 50256]
    assert str(whole) in printed[0]
    assert "End of text: [50256]" in flat
    first, second, final, cut = (
        re.sub(r"\s+", "", part).replace("tensor(", "").replace(")", "")
        for part in re.split(r"Draft 1|Draft 2|Final|Cut at|What -100", printed[0])[1:5]
    )
    assert "[[0,1,2,3,4],[5,6,50256,50256,50256],[7,8,9,50256,50256]]" in first
    assert "[[1,2,3,4,50256],[6,50256,50256,50256,50256],[8,9,50256,50256,50256]]" in second
    assert "[[1,2,3,4,50256],[6,50256,-100,-100,-100],[8,9,50256,-100,-100]]" in final
    assert "[[0,1,2],[5,6,50256],[7,8,9]][[1,2,3],[6,50256,-100],[8,9,50256]]" in cut


def example(number: int) -> Any:
    from instil import Example

    row = rows(number + 1)[number]
    return Example(row["instruction"], row["output"], row["input"], row=number)


def test_the_cross_entropy_of_three_predictions(printed: tuple[str, Path]) -> None:
    assert re.findall(r"(?:predictions|one|-100): +(\d\.\d{4})", printed[0]) == ["1.1269", "0.7936", "1.1269"]


def test_answers_before_and_after(printed: tuple[str, Path]) -> None:
    assert [printed[0].count(f"Model response {when}") for when in ("before training", "after 7 steps")] == [1, 1]
    assert printed[0].count("Model response after training") == 3
    assert "Loaded back into a new model: it gives the same answers." in printed[0]


def test_the_files(printed: tuple[str, Path], gpt2_folder: Path) -> None:
    text, out = printed
    answered = json.loads((out / "instruction-data-with-response.json").read_text())
    assert [row["instruction"] for row in answered] == [f"Double the number {n}." for n in range(858, 862)]
    assert all("model_response" in row for row in answered)
    assert (out / "loss.png").stat().st_size > 1000
    assert (out / "loss.pdf").read_bytes().startswith(b"%PDF")
    assert f"Model saved as {out / f'{gpt2_folder.stem}-sft.pth'}" in text
    assert (out / f"{gpt2_folder.stem}-sft.pth").stat().st_size > 1_000_000
    assert "Offline, over 4 rows" in text
    assert f"nothing answers at {NOBODY}" in text


def test_it_trains_as_the_command_does(
    printed: tuple[str, Path], gpt2_folder: Path, many: Path, tmp_path: Path
) -> None:
    settings = resolve(as_in_book=True, values={"max_steps": 7})
    made = run(many, gpt2_folder, tmp_path / "run", settings, answers=False, screen=Screen(quiet=True))
    wanted, found = (read_metrics(folder / "metrics.jsonl") for folder in (made.path, printed[1]))
    assert len(found) == len(wanted) == 8
    for name in ("train_loss", "val_loss", "eval_train_loss"):
        for a, b in zip(wanted, found, strict=True):
            assert getattr(b, name) == (pytest.approx(getattr(a, name), rel=1e-6) if getattr(a, name) else None)


def test_the_corrected_way_on_few_rows_with_a_header_free_template(tiny_folder: Path, tmp_path: Path) -> None:
    done = chapter(
        "--model", tiny_folder, "--out", tmp_path, "--rows", 30, "--steps", 2, "--answers", 2, "--judge", NOBODY,
        "--set", "data.template=plain", "--set", "generate.max_new_tokens=3",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Number of entries: 30" in done.stdout
    assert "the first of its 4 batches" in done.stdout


def test_a_mistake_is_one_line(tmp_path: Path) -> None:
    done = chapter("--data", tmp_path / "absent.json", "--out", tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("chapter7: ")
    assert "Traceback" not in done.stderr


ANSWERED = [{**row, "model_response": "It is 68."} for row in rows(4)]


@pytest.fixture(scope="module")
def program() -> Any:
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("chapter7", PROGRAM)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_judge_scores_where_one_is_running(
    program: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    replies = ("80", "85/100", "850", "about 90 or 95")
    with judging(models=("llama3:latest",), say=lambda message, number: replies[number]) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        program.evaluate(ANSWERED, "ollama:llama3")
        assert "ollama:llama3: 2 of 4 answers scored, mean [95 %] 82.50 [" in capsys.readouterr().out
        assert server.asked[0]["options"] == {"seed": 123, "temperature": 0, "num_ctx": 2048, "num_predict": 512}
        assert "score the model response `It is 68.` on a scale" in server.messages()[0]


def test_a_server_without_the_model_is_told_apart(
    program: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with judging(unlisted=False) as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        program.evaluate(ANSWERED, "ollama:other")
        assert "has no model 'other'" in capsys.readouterr().out


def test_the_chapters_name_of_the_file(program: Any) -> None:
    assert program.file_name("gpt2-medium") == "gpt2-medium355M-sft.pth"
    assert program.file_name("smollm2-135m") == "smollm2-135m-sft.pth"
    assert program.file_name("models/some.gguf") == "some-sft.pth"


def test_batches_come_as_torchs_own_loader_draws_them() -> None:
    """As the chapter's, on rows of the project's own: its DataLoader, written out, gives the same rows and lengths."""
    split, tokenizer = split_in_order(read_source("starter").examples[:300]), FastTokenizer.gpt2()
    encoded = [encode(row, template_named("alpaca"), tokenizer, "all") for row in split.train]
    loader = Loader(encoded, 8, order="book", pad_id=50256, drop_last=True, seed=123, layout="padded")
    found = [(batch.examples, batch.inputs.shape[1]) for batch in loader.batches()]
    torch.manual_seed(123)
    lengths = torch.utils.data.DataLoader(
        [(row, len(one.ids)) for row, one in enumerate(encoded)],  # type: ignore[arg-type]
        batch_size=8, shuffle=True, drop_last=True, collate_fn=list,
    )  # fmt: skip
    wanted = [([encoded[row].row for row, _ in batch], max(length for _, length in batch) - 1) for batch in lengths]
    assert len(found) == len(split.train) // 8 == 31
    assert [(list(rows), length) for rows, length in found] == wanted


@pytest.mark.skipif(not (BOOK_DATA / "instruction-data.json").is_file(), reason="the book's rows are not here")
def test_the_first_batches_are_as_long_as_the_chapter_prints() -> None:
    split, tokenizer = split_in_order(read_source(BOOK_DATA / "instruction-data.json").examples), FastTokenizer.gpt2()
    encoded = [encode(row, template_named("alpaca"), tokenizer, "all") for row in split.train]
    loader = Loader(encoded, 8, order="book", pad_id=50256, drop_last=True, seed=123, layout="padded")
    lengths = [batch.inputs.shape[1] for batch in loader.batches()]
    assert len(lengths) == 116
    assert lengths[:3] == [61, 76, 73]


@pytest.mark.slow
@pytest.mark.real
def test_with_real_weights(tmp_path: Path) -> None:
    done = chapter(
        "--out", tmp_path, "--rows", 100, "--steps", 4, "--answers", 3, "--judge", NOBODY,
        "--set", "generate.max_new_tokens=24",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "134,515,008 parameters" in done.stdout
    assert "it gives the same answers" in done.stdout
    first, last = (record for record in read_metrics(tmp_path / "metrics.jsonl") if record.val_loss is not None)
    assert last.val_loss is not None and first.val_loss is not None
    assert last.val_loss < first.val_loss
    file = tmp_path / "smollm2-135m-sft.pth"
    assert file.stat().st_size > 4 * load_decoder(find_model("smollm2-135m")).parameter_count
