"""A real llama.cpp with SmolLM2 as the writer: weak, but all that lies between the rows and the file is real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from instil.ask.journal import Journal
from instil.data.sources import read_source
from instil.recipes.synthesize import report_file, synthesize
from instil.settings.asking import MakeOptions
from instil.synthesis.prompts import USER_TURNS
from instil.synthesis.writing import TextRequest, write_all, writer

pytest.importorskip("xllamacpp")
pytestmark = pytest.mark.real

SHORT = MakeOptions(max_tokens=40, temperature=0.0)


@pytest.mark.slow
def test_every_row_has_a_passive_or_a_reason_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    rows = [
        {"instruction": "What happened?", "input": "", "output": "The cat chased the mouse."},
        {"instruction": "And then?", "input": "", "output": "The gardener watered the roses."},
        {"instruction": "A word?", "input": "", "output": "Rose."},
    ]
    given, out = tmp_path / "rows.json", tmp_path / "new.json"
    given.write_text(json.dumps(rows))
    made = synthesize("passive", "llamacpp:smollm2-135m", out, seeds=str(given), options=SHORT)
    assert made.asked == 2
    assert made.made + len(made.rejected) == 3
    assert len(read_source(out)) == 3 + made.made
    report = json.loads(report_file(out).read_text())
    assert {one["number"] for one in report["left_out"]} >= {2}
    before = out.read_bytes()
    again = synthesize("passive", "llamacpp:smollm2-135m", out, seeds=str(given), options=SHORT)
    assert (again.asked, again.found) == (0, 2)
    assert out.read_bytes() == before


def test_it_goes_on_with_a_raw_text_and_stops_where_it_is_told() -> None:
    turn = USER_TURNS["chatml"]
    raw = "<|im_start|>user\nName a colour.<|im_end|>\n<|im_start|>assistant\nA colour is red. One more colour is"
    wanted = [
        TextRequest(0, raw, 1, "raw", raw=True, stop=(*turn.stop, ".")),
        TextRequest(1, raw, 1, "raw", raw=True, stop=turn.stop),
    ]
    with writer("llamacpp:smollm2-135m", SHORT) as model:
        short, longer = write_all(model, wanted, SHORT, Journal())
    assert short.text is not None
    assert "." not in short.text
    assert "<|im_end|>" not in (longer.text or "")
    assert longer.text or "cut off" in longer.reason
