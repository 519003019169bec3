"""The report stands alone: nothing from the network, and a row's text is never markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

from instil.recipes.run import run
from instil.recipes.settings import resolve
from tests.conftest import rows


def test_the_report_is_self_contained_and_escapes(tiny_folder: Path, tmp_path: Path) -> None:
    data = rows(20)
    for row in data:
        row["instruction"] += " <script>alert(1)</script><img src=x onerror=alert(2)>"
    made = run(data, tiny_folder, tmp_path / "run", resolve(values={"max_steps": 2, "max_new_tokens": 3}))
    html = (made.path / "report.html").read_text(encoding="utf-8")
    assert "<script>alert(1)" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert not re.findall(r"""(?:src|href)=["']?(?!data:)[^"'>]+""", re.sub(r"&lt;.*?&gt;", "", html))
    assert "http://" not in html
    assert "https://" not in html

    class Rows(HTMLParser):
        count = 0

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.count += tag == "tr" and any(key == "data-outcome" for key, _ in attrs)

    reader = Rows()
    reader.feed(html)
    assert reader.count == 2  # the test rows of twenty
    for figure in made.scores["tuned"].values():
        assert f"{figure if figure > 1 else figure * 100:.1f}" in html
