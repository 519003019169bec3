"""The report stands alone, says what the comparison says, and shows a row's text as text."""

from __future__ import annotations

import json
import random
import re
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import escape

from instil.data.near_duplicates import Near
from instil.evaluate.comparison import compare_verdicts
from instil.evaluate.statistics import interval
from instil.records import NO_ROOM, Completion, Example, Verdict
from instil.runs.report.made_of import ReportData
from instil.runs.report.page import write_report
from instil.screen import visible

OTHER_JUDGE = "ollama:llama3"
HOSTILE = (
    "<script>window.hacked = 1</script>",
    "<img src=x onerror='window.hacked = 2'>",
    '"\' onmouseover="window.hacked = 3" x=\'',
    "]]></script><script>window.hacked = 4</script><![CDATA[",
    "</textarea></title></style><svg onload=window.hacked=5>",
    "x" * 3000,
    "مرحبا بالعالم \u202e abc",
    "👩‍👩‍👧‍👦 🦊 ﷽",
    "{{ 7 * 7 }} {% raw %} &lt;b&gt; &amp;",
    "a\x00b\x07c\u2028d",
    "line one\n\n   line two\t<b>bold</b>",
)
LOSS_PICTURE = bytes.fromhex(  # one grey pixel
    "89504e470d0a1a0a0000000d494844520000000100000001080000000"
    "03a7e9b550000000a49444154789c6368000000820081dd436af40000000049454e44ae426082"
)


CONTROLS = st.characters(categories=["Cc"])


def verdict(row: int, judge: str, score: float | None, rand: random.Random) -> Verdict:
    """A verdict as the judges make it."""
    if score is None:
        return Verdict(row, judge, None, "the reply <b>holds</b> no number")
    if judge != "offline":
        return Verdict(row, judge, score)
    shares = {name: rand.random() for name in ("rouge_l", "token_f1", "novel_f1")}
    return Verdict(
        row, judge, score, metrics={"exact_match": float(score > 90), "chrf": rand.uniform(0, 100), **shares}
    )


def page_data(folder: Path, count: int = 60, judges: tuple[str, ...] = ("offline", OTHER_JUDGE)) -> ReportData:
    """Made-up rows, every third of them hostile, from row 100 on; the second judge leaves some out."""
    rand = random.Random(5)

    def text(words: int) -> str:
        return " ".join(rand.choice("lorem ipsum dolor sit amet Consectetur fox".split()) for _ in range(words))

    def maybe_hostile(at: int, words: int) -> str:
        return f"{text(words)} {rand.choice(HOSTILE)}" if at % 3 == 0 else text(words)

    examples = [
        Example(f"{rand.choice(['Rewrite', 'What', 'Convert'])} {maybe_hostile(at, 4)}", maybe_hostile(at, at % 9 + 1),
                maybe_hostile(at, 3) if at % 2 else "", row=100 + at)
        for at in range(count)
    ]  # fmt: skip
    answers = {
        which: [Completion(maybe_hostile(at, rand.randint(0, 12)), row=row.row) for at, row in enumerate(examples)]
        for which in ("base", "tuned")
    }
    verdicts: dict[str, dict[str, list[Verdict]]] = {}
    for judge in judges:
        verdicts[judge] = {which: [] for which in ("base", "tuned", *(["echo"] if judge == "offline" else []))}
        for at, row in enumerate(examples):
            base = rand.uniform(0, 60)
            scores = {"echo": rand.uniform(0, 40), "base": base, "tuned": base + rand.choice([0.5, -20, 30, 35, 40])}
            for which, found in verdicts[judge].items():
                missing = judge != "offline" and which == "tuned" and at % 13 == 4
                score = None if missing else min(max(scores[which], 0.0), 100.0)
                found.append(verdict(row.row, judge, score, rand))
    samples = folder / "samples.jsonl"
    samples.write_text(
        '{"step": 0, "row": 9, "instruction": "<i>Say</i>", "input": "", "output": "yes", "model_response": ""}\n'
        '{"step": 5, "row": 9, "instruction": "<i>Say</i>", "input": "", "output": "yes", "model_response": "no"}\n',
        encoding="utf-8",
    )
    picture = folder / "loss.png"
    picture.write_bytes(LOSS_PICTURE)
    return ReportData(
        title="tiny on <rows>.json",
        facts={"model": "tiny", "settings": {"train": {"epochs": 2}}, "hashes": {"data": "ab" * 32}},
        preflight=["60 rows", "<u>no duplicates</u>"],
        part="test",
        examples=examples,
        answers={**answers},
        verdicts={judge: {**found} for judge, found in verdicts.items()},
        leaks=[Near(100, 17, 0.934), Near(105, 3, 1.0)] if count > 5 else [],
        steps=12,
        tokens_seen=3456,
        train_seconds=2.0,
        seconds={"train": 2.0, "answer after": 1.5},
        peak_memory_gb=1.25,
        samples=samples,
        loss_picture=picture,
        unended={"base": ["3 answers did not end within 64 tokens"], "tuned": []},
    )


def written(data: ReportData, folder: Path) -> str:
    """The page of this data."""
    write_report(data, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


class Reader(HTMLParser):
    """Text outside scripts and styles, and all tags with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.said: list[str] = []
        self.inside = ""
        self.feed(html)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", "".join(self.said))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.said.append(data)

    def all(self, tag: str, attribute: str = "") -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.tags if name == tag and (not attribute or attribute in attrs)]


def test_the_report_is_self_contained_and_escapes(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    html = written(data, tmp_path)
    page = Reader(html)
    assert {name for name, _ in page.tags}.isdisjoint({"link", "iframe", "object", "embed", "form", "base", "a"})
    assert len(page.all("script")) == len(page.all("style")) == 1
    assert [attrs["src"].startswith("data:") for _, attrs in page.tags if attrs.get("src")] == [True]  # type: ignore[union-attr]
    assert not [key for _, attrs in page.tags for key in attrs if key.startswith("on")]
    assert "http://" not in html
    assert "https://" not in html
    assert html.count("&lt;script&gt;window.hacked") >= sum(text.output.count("<script>") for text in data.examples)
    assert len(page.all("tr", "data-row")) == 60


@settings(max_examples=20)
@given(texts=st.lists(st.text(CONTROLS | st.characters(), max_size=12), min_size=9, max_size=9))
def test_no_control_character_comes_into_the_page(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever rows, answers, verdicts, names and settings hold; and what shows of each is its signs."""
    folder = tmp_path_factory.mktemp("page")
    plain = page_data(folder, 2)
    told = [f"a\x1b[2J{text}" for text in texts]
    row, base, tuned, why, name, line, setting, kind, about = told
    (folder / "samples.jsonl").write_text(
        json.dumps({"step": 1, "row": 1, "instruction": row, "input": about, "output": base, "model_response": tuned})
    )
    data = replace(
        plain,
        title=name,
        preflight=[line],
        facts={"model": name, "settings": {"train": {"epochs": setting}}},
        examples=[Example(row, about, base, task=kind, row=at) for at in (0, 1)],
        answers={
            "base": [Completion(base, row=at) for at in (0, 1)],
            "tuned": [Completion(tuned, row=at) for at in (0, 1)],
        },
        verdicts={name: {which: [Verdict(at, name, None, why) for at in (0, 1)] for which in ("base", "tuned")}},
        leaks=[],
        outlook=line,
        unended={"base": [line], "tuned": [line]},
    )
    html = written(data, folder)
    assert [char for char in html if unicodedata.category(char) == "Cc" and char not in "\n\t"] == []
    for text in (row, base, why, line, setting):
        shown = visible(text).encode(errors="replace").decode()
        assert str(escape(shown)) in html


def test_the_verdict_says_what_the_comparison_says(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    page = Reader(written(data, tmp_path))
    offline, other = data.verdicts["offline"], data.verdicts[OTHER_JUDGE]
    told = compare_verdicts(offline["base"], offline["tuned"])
    assert f"On 60 test rows that the model was not trained on, {told.sentence('before', 'after')}" in page.text
    assert (
        f"{told.wins} answers came closer to the reference, {told.ties} stayed as close, {told.losses} moved"
        in page.text
    )
    kept = {example.row for example in data.examples} - {100, 105}
    apart = compare_verdicts(offline["base"], offline["tuned"], kept)
    assert apart.scored == 58
    assert (
        f"Apart from 2 rows that are nearly the same as training rows, {apart.sentence('before', 'after')}" in page.text
    )
    sentence = compare_verdicts(other["base"], other["tuned"]).sentence("before", "after")
    assert sentence[1:] in page.text
    assert "55 of 60 rows scored; not scored: the reply <b>holds</b> no number (5)." in page.text


def test_figures_have_intervals_and_repeating_the_input_comes_first(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    html = written(data, tmp_path)
    scales = {"exact_match": 100, "chrf": 1, "rouge_l": 100, "token_f1": 100, "novel_f1": 100}
    wanted = []
    for judge, whiches in (("offline", ("echo", "base", "tuned")), (OTHER_JUDGE, ("base", "tuned"))):
        for metric in (*(scales if judge == "offline" else ()), ""):
            for which in whiches:
                scored = [found for found in data.verdicts[judge][which] if found.score is not None]
                values = [found.metrics[metric] * scales[metric] if metric else found.score for found in scored]
                mean = interval([value for value in values if value is not None])
                assert mean is not None
                wanted.append((which, mean.text()))
    drawn = re.findall(r'class="fill (\w+)" style="width:([\d.]+)%.*?<span>([^<]*)</span></div>\n', html)
    assert [(which, text) for which, _, text in drawn] == wanted
    assert [float(width) for _, width, _ in drawn] == pytest.approx([float(t.split()[0]) for _, t in wanted], abs=0.06)
    assert html.count('class="whisker"') == len(wanted)
    exact = [found.metrics["exact_match"] for found in data.verdicts["offline"]["tuned"]]
    assert f"{100 * sum(exact) / 60:.1f} % of the rows after" in html


def test_rows_carry_scores_reasons_and_leaks(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    html = written(data, tmp_path)
    rows = re.findall(r'<tr data-row="(\d+)".*?</tr>', html, flags=re.DOTALL)
    assert [int(row) for row in rows] == [example.row for example in data.examples]
    scores = re.findall(r'class="score of of(\d)" data-outcome="(\w+)" data-before="(.*?)" data-after="(.*?)"', html)
    assert len(scores) == 120
    for at, (judge, outcome, before, after) in enumerate(scores):
        verdicts = data.verdicts[["offline", OTHER_JUDGE][int(judge)]]
        base, tuned = verdicts["base"][at // 2].score, verdicts["tuned"][at // 2].score
        assert (before, after) == (str(base), "" if tuned is None else str(tuned))
        if base is None or tuned is None:
            assert outcome == "unscored"
        else:
            assert outcome == ("same" if abs(tuned - base) <= 1 else "better" if tuned > base else "worse")
    assert html.count('<span class="missing">the reply &lt;b&gt;holds&lt;/b&gt; no number</span>') == 5
    assert re.findall(r'<span class="near">(.*?)</span>', html) == [
        "near duplicate of training row 17 (0.93)",
        "near duplicate of training row 3 (1.00)",
    ]


def test_kinds_are_tasks_or_first_words_and_are_labelled_so(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    assert "By first word of the instruction (3 kinds)" in written(data, tmp_path)
    examples = [replace(row, task=f"task {row.row % 4}") for row in data.examples]
    assert "By kind of task (4 kinds)" in written(replace(data, examples=examples), tmp_path)
    alike = [replace(row, instruction="Do it") for row in data.examples]
    assert "kinds)" not in written(replace(data, examples=alike), tmp_path)


def test_lengths_of_answers_stand_beside_those_of_references(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    texts = [[row.output for row in data.examples], *([c.text for c in data.answers[w]] for w in ("base", "tuned"))]
    wanted, base, tuned = (sum(len(text.split()) for text in found) / 60 for found in texts)
    html = written(data, tmp_path)
    last = re.findall(r'<tr><td class="name">all</td>(.*?)</tr>', html)
    assert re.findall(r">([\d.]+)<", last[0]) == ["60", f"{wanted:.1f}", f"{base:.1f}", f"{tuned:.1f}"]


def without_rows(data: ReportData) -> ReportData:
    return replace(data, examples=[], answers={}, verdicts={}, leaks=[], unended={})


def with_empty_answers(data: ReportData) -> ReportData:
    return replace(data, answers={which: [Completion("") for _ in data.examples] for which in ("base", "tuned")})


def without_references(data: ReportData) -> ReportData:
    unscored = [Verdict(row.row, "offline", None, "the row has no reference answer") for row in data.examples]
    examples = [replace(row, output="") for row in data.examples]
    return replace(data, examples=examples, verdicts={"offline": {"base": unscored, "tuned": unscored}}, leaks=[])


def of_another_script(data: ReportData) -> ReportData:
    return replace(data, examples=[replace(row, output="Ответ: это так.") for row in data.examples])


def told_in_numbers(data: ReportData) -> ReportData:
    scores = list(data.verdicts["offline"]["base"])
    for at in range(12):
        scores[at] = replace(
            scores[at], score=None, reason=f"the judge read {at + 3} tokens of a prompt of 1{at} words"
        )
    return replace(data, verdicts={"offline": {**data.verdicts["offline"], "base": scores}})


def without_room(data: ReportData) -> ReportData:
    left = {
        which: [replace(found[0], score=None, reason=NO_ROOM), *found[1:]]
        for which, found in data.verdicts["offline"].items()
    }
    return replace(data, verdicts={"offline": left})


def with_all_leaked(data: ReportData) -> ReportData:
    return replace(data, leaks=[Near(row.row, 1, 0.95) for row in data.examples])


EMPTY_CASES: list[tuple[int, Callable[[ReportData], ReportData], str]] = [
    (60, without_rows, "No rows were held out, so nothing was answered or scored."),
    (60, with_empty_answers, "(nothing)"),
    (60, without_references, "0 of 60 rows scored; not scored: the row has no reference answer (60)."),
    (60, of_another_script, "Most references are in another script than Latin"),
    (60, told_in_numbers, "48 of 60 rows scored; not scored: the judge read 3 tokens of a prompt of 10 words (12)."),
    (60, without_room, "1 row is left out, whose prompt leaves no room for an answer."),
    (
        60,
        without_room,
        "59 of 60 rows scored; not scored: the prompt left no room for an answer in the model's context",
    ),
    (60, with_all_leaked, "all of these rows are nearly the same as training rows."),
    (60, lambda data: replace(data, leaks=[]), "On 60 test rows"),
    (60, lambda data: replace(data, verdicts={}), "60 test rows answered, and not scored."),
    (60, lambda data: replace(data, samples=Path("none"), loss_picture=Path("none")), "no picture of the loss"),
    (60, lambda data: replace(data, train_seconds=0.0), "0 tokens a second"),
    (1, lambda data: data, "On 1 test row that the model was not trained on"),
    (
        2,
        lambda data: replace(data, leaks=[Near(100, 8, 0.91)]),
        "Apart from 1 row that is nearly the same as a training",
    ),
]


@pytest.mark.parametrize(("count", "change", "sentence"), EMPTY_CASES)
def test_what_is_missing_is_left_out(
    count: int, change: Callable[[ReportData], ReportData], sentence: str, tmp_path: Path
) -> None:
    for judges in (("offline",), ("offline", OTHER_JUDGE)):
        data = change(page_data(tmp_path, count, judges))
        page = Reader(written(data, tmp_path))
        assert sentence in page.text
        assert len(page.all("tr", "data-row")) == len(data.examples)
        assert ("Apart from" in page.text) == (bool(data.leaks) and bool(data.verdicts) and len(data.leaks) < count)


def test_one_judge_needs_no_picker(tmp_path: Path) -> None:
    pickers = {
        judges: len(Reader(written(page_data(tmp_path, judges=judges), tmp_path)).all("select", "class"))
        for judges in (("offline",), ("offline", OTHER_JUDGE))
    }
    assert pickers == {("offline",): 0, ("offline", OTHER_JUDGE): 4}


def test_a_judge_of_one_side_only_is_shown_as_a_bar(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    verdicts: dict[str, Any] = {**data.verdicts, OTHER_JUDGE: {"tuned": data.verdicts[OTHER_JUDGE]["tuned"]}}
    html = written(replace(data, verdicts=verdicts), tmp_path)
    assert f"<h3>{OTHER_JUDGE}</h3>" in html
    assert 'class="judge"' not in html


def test_half_a_surrogate_pair_does_not_stop_the_page(tmp_path: Path) -> None:
    data = page_data(tmp_path)
    examples = [replace(data.examples[0], instruction="odd \ud83d text"), *data.examples[1:]]
    assert "odd ? text" in written(replace(data, examples=examples), tmp_path)
