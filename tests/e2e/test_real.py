"""The main job with SmolLM2's real weights and the starter rows, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import instil


@pytest.mark.real
def test_a_few_real_steps_teach_the_form_of_the_answers(tmp_path: Path) -> None:
    short = [row for row in starter_rows() if row["task"] in ("antonym", "past_tense", "unit_conversion", "plural")]
    run = instil.finetune(
        short[:90:3],
        model="smollm2-135m",
        out=tmp_path / "run",
        max_steps=4,
        batch_size=4,
        learning_rate=5e-4,
        max_new_tokens=24,
        eval_every=0,
    )
    assert run.scores["tuned"]["chrf"] > run.scores["base"]["chrf"] + 5
    records = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["val_loss"] < 0.8 * records[0]["val_loss"]
    assert instil.load(run.path).respond("What is the opposite of 'hot'?", max_new_tokens=16)


def starter_rows() -> list[dict[str, str]]:
    from importlib import resources

    return json.loads((resources.files("instil.data") / "starter.json").read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "rows", [pytest.param(6, marks=pytest.mark.real), pytest.param(110, marks=[pytest.mark.real, pytest.mark.slow])]
)
def test_answers_are_those_of_the_chapters_loop(rows: int) -> None:
    """E2 on real weights: all rows side by side, against one after the other, the whole text again for each token."""
    from instil.data.encoding import encode_prompt
    from instil.data.sources import read_source
    from instil.data.splits import split_examples
    from instil.settings.options import DataOptions
    from tests.generate.test_engine import naive

    assistant = instil.load("smollm2-135m", max_new_tokens=16)
    examples = split_examples(read_source("starter").examples, DataOptions()).test[:rows]
    answers = assistant.respond_to(examples)
    for example, found in zip(examples, answers, strict=True):
        prompt = encode_prompt(example, assistant.template, assistant.tokenizer)
        ids, finish = naive(assistant.decoder, prompt, 16, assistant.tokenizer.stop_ids)
        assert (list(found.ids), found.finish) == (ids, finish), example
