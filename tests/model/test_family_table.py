"""docs/families.md has every family, and the command that fills it measures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from instil.data.templates import TEMPLATES
from instil.model.decoder import Decoder
from instil.model.families import FAMILIES
from tests.closeness import difference
from tests.model import family_table
from tests.model.family_cases import CASES
from tests.model.family_table import HEADER, MODELS, SAME, TEMPLATE

PAGE = (Path(__file__).parents[2] / "docs" / "families.md").read_text(encoding="utf-8")


def test_the_page_has_every_family() -> None:
    table = PAGE.split("<!-- table -->\n")[1].split("<!-- end of table -->")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.replace(r"\|", "").strip("|").split("|")] for line in lines]
    assert cells[0] == list(HEADER)
    found = {row[0]: row for row in cells[2:]}
    assert list(found) == [f"`{family.model_type}`" for family in FAMILIES.values()]
    for name, family in FAMILIES.items():
        row = dict(zip(HEADER, found[f"`{family.model_type}`"], strict=True))
        assert (row["models"], row["template"]) == (MODELS[name], TEMPLATE[name].replace(r"\|", ""))
        assert row["template"].replace(":", " ").split()[0] in TEMPLATES
        assert f"`{family.architecture_in_gguf}`" in row["GGUF read"]
        assert "Use --to hf" not in row["GGUF written"]
    assert sorted(case for name in FAMILIES for case in family_table.cases_of(name)) == sorted(CASES)


def test_a_row_is_measured(tmp_path: Path) -> None:
    found = family_table.measure("qwen3", tmp_path)
    assert 0 < max(found.logits, found.gradients, found.saved, found.adapters, found.read or 1.0) < 1e-5
    assert set(found.layouts) == set(family_table.LAYOUTS)
    assert 0 <= max(found.layouts.values()) <= SAME
    assert (found.answers, found.said) == ((3, 3), (3, 3))
    assert found.but == ["refused: biases in attention"]


def test_a_mistake_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    logits = Decoder.logits
    monkeypatch.setattr(Decoder, "logits", lambda self, hidden: logits(self, hidden) * 1.01)
    found = family_table.measure("llama", tmp_path)
    assert found.logits == pytest.approx(0.01, rel=1e-3)
    assert min(found.gradients, found.adapters, found.read or 0.0) > 1e-3


def test_what_differs_is_said() -> None:
    assert family_table.of_layouts({"padded": 0.0, "shared prefix": 2e-15, "pairs": 1e-16}) == "all, 2e-15"
    assert family_table.of_layouts({"padded": 0.0, "pairs": 0.02}) == "padded, 0; not pairs: 2e-2"
    assert family_table.of_layouts({"padded": float("nan")}) == "not padded: nan"
    assert family_table.in_few_words("llama.cpp reads no sense in a llama model. Use --to hf") == [
        "llama.cpp reads no sense in a llama model"
    ]
    assert family_table.worst([1.0, float("nan"), 0.0]) != family_table.worst([1.0])
    assert difference([torch.tensor([3.0, -8.0])], [torch.tensor([3.0, -10.0])]) == pytest.approx(0.2)
