"""The main job with SmolLM2's real weights and the starter rows, shortened."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import instil


@pytest.mark.real
def test_a_few_real_steps_teach_the_form_of_the_answers(tmp_path: Path) -> None:
    run = instil.finetune(
        [row for row in starter_rows() if row["task"] in ("antonym", "past_tense", "unit_conversion", "plural")],
        model="smollm2-135m",
        out=tmp_path / "run",
        max_steps=10,
        learning_rate=2e-4,
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
