"""The page of a sweep: the table, the scores as bars, the losses of all runs in one picture. It opens offline."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

from instil.errors import counted, listed_names
from instil.evaluate.comparison import shown_p
from instil.evaluate.offline import JUDGE as OFFLINE
from instil.evaluate.statistics import Interval
from instil.files import write_whole
from instil.recipes.sweep.table import SweepRow, SweepTable
from instil.runs.report.charts import Bar, bar
from instil.runs.report.page import clean, environment

OUTCOMES = {"better": "better than", "worse": "worse than", "not distinguishable": "not distinguishable from"}
NAMED = 6  # runs named in one sentence


def write_page(table: SweepTable, picture: Path, path: Path) -> None:
    """Write the page; the runs' folders lie beside it."""
    html = (
        environment("instil.recipes.sweep")
        .get_template("sweep.html.j2")
        .render(
            title=Path(table.title).stem,
            verdict=_verdict(table),
            table=table,
            score_of="agreement with the reference" if table.judge == OFFLINE else f"score by {table.judge}",
            links={row.name: quote(f"{Path(row.folder).name}/report.html") for row in table.rows},
            charts=_charts(table),
            shown_p=shown_p,
            models=sorted({row.model for row in table.rows if row.model}),
            rows_of=sorted({Path(row.data).name for row in table.rows if row.data}),
            picture=base64.b64encode(picture.read_bytes()).decode("ascii") if picture.exists() else "",
        )
    )
    write_whole(path, clean(html), replace_surrogates=True)


def _verdict(table: SweepTable) -> str:
    """What the page says in large letters."""
    first = table.rows[0].name
    done = [row for row in table.rows if row.finished]
    said = f"{len(done)} of {counted(len(table.rows), 'run')} {'is' if len(table.rows) == 1 else 'are'} finished"
    if not any(row.against for row in done):
        return f"{said}."
    parts = [said]
    for outcome, than in OUTCOMES.items():
        named = [row.name for row in done if row.verdict == outcome]
        if named:
            who = listed_names(named) if len(named) <= NAMED else f"{len(named)} runs"
            parts.append(f"{who} {'is' if len(named) == 1 else 'are'} {than} {first}")
    return f"{'; '.join(parts)}."


def _charts(table: SweepTable) -> list[tuple[str, list[Bar]]]:
    """Scores of all runs side by side, with the mean before training where it is one for all."""
    done = [row for row in table.rows if row.finished and row.after]
    charts = []
    for name, label in (("after", "score after training"), ("exact_match", "exact match")):
        bars = [_bar("tuned", row, getattr(row, name)) for row in done]
        if name == "after":
            before = list(dict.fromkeys(row.before for row in done if row.before))
            if len(before) == 1:
                bars.insert(0, bar("base", "before", before[0]))
        if done:
            charts.append((label, bars))
    return charts


def _bar(which: str, row: SweepRow, value: Interval | None) -> Bar:
    return bar(which, row.name, value or Interval(0.0, None, None, 0))
