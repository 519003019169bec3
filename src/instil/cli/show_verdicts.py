"""What the verbs that judge print: scores, verdicts on two answers or more, and a judge's health."""

from __future__ import annotations

from typing import TYPE_CHECKING

from instil.cli.show import echo, show_lines
from instil.errors import counted, verb, without_numbers

if TYPE_CHECKING:
    from instil.evaluate.comparison import Comparison
    from instil.evaluate.health import Health
    from instil.evaluate.people import ChoosesLikePeople, LikePeople
    from instil.recipes.compare import Compared, ComparedPairwise
    from instil.recipes.compare_many import ComparedMany
    from instil.recipes.rivals.rivals import Rivals
    from instil.recipes.score import Scored


def show_scores(found: dict[str, Scored], *, offline: bool) -> None:
    """Means and metrics of the offline scores, or what a judge said of each set of answers."""
    if offline:
        _show_offline(found)
    else:
        _show_judged(found)


def _show_offline(found: dict[str, Scored]) -> None:
    from instil.evaluate.offline import means

    head = f"{'':12} {'scored':>9}   exact match   chrF   ROUGE-L   token F1   novel F1   agreement [95 %]"
    echo(head)
    for which, one in found.items():
        mean, metrics = one.mean(), means(one.verdicts)
        counts = f"{len(one.scores)}/{len(one.verdicts)}"
        if mean is None:
            echo(f"{which:12} {counts:>9}   {next(iter(one.unscored.values()), 'there are no rows')}")
            continue
        exact, chrf, rouge = metrics["exact_match"], metrics["chrf"], metrics["rouge_l"]
        words, novel = metrics["token_f1"], metrics["novel_f1"]
        more = f"   embedding {metrics['embedding']:.3f}" if "embedding" in metrics else ""
        figures = f"{exact:>11.1%}  {chrf:>5.1f}   {rouge:>7.3f}   {words:>8.3f}   {novel:>8.3f}"
        echo(f"{which:12} {counts:>9}   {figures}   {mean.text()}{more}")
    echo("agreement with the reference, 0 to 100; it compares words, not meaning")
    for which, one in found.items():
        for reason, rows in _by_reason(one.unscored):
            echo(f"{which}: no score: {counted(len(rows), 'row')} ({', '.join(map(str, rows[:10]))}): {reason}")
    show_lines(dict.fromkeys(one.note for one in found.values() if one.note))


def _show_judged(found: dict[str, Scored]) -> None:
    for which, one in found.items():
        mean = one.mean()
        low, high = one.bounds()
        echo(f"{which}: {mean.text() if mean else 'no score'} of 100 by {one.judge}")
        echo(
            f"  {len(one.scores)} of {counted(len(one.verdicts), 'row')} "
            f"{verb(len(one.scores), 'has', 'have')} a score ({counted(one.asked, 'question')} now, "
            f"{one.found} before)"
        )
        if one.unscored:
            echo(f"  if all others had 0: {low:.1f}; if they had 100: {high:.1f}")
            for reason, rows in _by_reason(one.unscored):
                echo(f"  no score: {counted(len(rows), 'row')} ({', '.join(map(str, rows[:10]))}): {reason}")
        if one.flagged:
            flagged = ", ".join(map(str, one.flagged[:10]))
            hold = counted(len(one.flagged), "answer holds", "answers hold")
            echo(f"  {hold} words that are aimed at a judge: rows {flagged}")
        if one.noise is not None:
            echo(f"  asked again, the judge differs from itself by {one.noise:.1f} points (standard deviation)")


def _by_reason(unscored: dict[int, str]) -> list[tuple[str, list[int]]]:
    """Rows by their reason, the first ten; reasons that differ in numbers only are one, told by its first."""
    reasons: dict[str, tuple[str, list[int]]] = {}
    for row, reason in unscored.items():
        reasons.setdefault(without_numbers(reason), (reason, []))[1].append(row)
    return sorted(reasons.values(), key=lambda item: -len(item[1]))[:10]


def show_comparison(found: Compared) -> None:
    """The verdict in one sentence, its figures, and what must be known of them."""
    one = found.comparison
    echo(one.sentence(found.a, found.b))
    if one.a is None or one.b is None:
        return
    echo(f"\n{'judge ' + found.judge:22} {found.a[-24:]:>24} {found.b[-24:]:>24}   difference [95 %]")
    for name, metric in found.metrics.items():
        _line({"exact_match": "exact match, %", "chrf": "chrF"}[name], metric)
    _line("score, 0 to 100", one)
    show_lines(dict.fromkeys(scored.note for scored in found.scored if scored.note))
    echo(f"\n{counted(one.wins, 'row')} better, {one.ties} equal, {one.losses} worse (of {one.scored} with two scores)")
    echo(f"to right (80 points and more): {_rows(one.gained)}; no longer: {_rows(one.lost)}")
    if one.smallest is not None:
        echo(f"the smallest true difference that these rows would show in four of five cases: {one.smallest:.1f}")
    if one.scored < one.rows:
        low, high = one.bounds
        echo(
            f"{counted(one.rows - one.scored, 'row lacks', 'rows lack')} a score; at the worst the difference is "
            f"{low:+.1f}, at best {high:+.1f}"
        )
    if found.clean is not None:
        echo(
            f"{counted(len(found.leaks), 'row is', 'rows are')} nearly the same as training rows. Without them: "
            f"{found.clean.sentence(found.a, found.b)}"
        )
    elif not found.looked:
        echo("training rows are not known here, so nobody looked for rows that leaked")
    if found.only_a or found.only_b:
        echo(f"left out: {counted(found.only_a, 'row')} only in {found.a}, {found.only_b} only in {found.b}")


def _line(name: str, one: Comparison) -> None:
    a, b, difference = one.a, one.b, one.difference
    if a is not None and b is not None and difference is not None:
        echo(f"{name:22} {a.text():>24} {b.text():>24}   {difference.text()}")


def _rows(rows: tuple[int, ...]) -> str:
    if not rows:
        return "none"
    more = f" and {len(rows) - 10} more" if len(rows) > 10 else ""
    return f"{len(rows)} (rows {', '.join(map(str, rows[:10]))}{more})"


def show_many(found: ComparedMany) -> None:
    """Several sets of answers, the best first; those that share a letter are not distinguishable."""
    from instil.cli.tables import Column, console, table_of
    from instil.evaluate.comparison import shown_p

    echo(found.sentence())
    ordered = found.standings
    shown = {"exact_match": "exact %", "chrf": "chrF"}
    best = ordered[0].name

    def against(name: str) -> str:
        pair = found.pairs.get((name, best))
        return "" if pair is None or pair.difference is None else shown_p(pair.p).removeprefix("= ")

    columns = [
        Column("", tuple(one.name for one in ordered)),
        Column("score [95 %]", tuple(one.mean.text() if one.mean else "none" for one in ordered), right=True),
        Column("like", tuple(one.letters for one in ordered)),
        Column("p, to the first", tuple(against(one.name) for one in ordered), rank=1, right=True),
    ]
    for name in ordered[0].metrics:
        cells = tuple(f"{metric.mean:.1f}" if (metric := one.metrics[name]) else "" for one in ordered)
        columns.insert(-2, Column(shown[name], cells, rank=2, right=True))
    echo()
    out = console()
    out.print(table_of(columns, out.width))
    echo(
        f"\n{counted(found.rows, 'row')} that all have, judge {found.judge}; those that share a letter are not "
        f"distinguishable (Holm, {counted(len(found.pairs), 'comparison')})"
    )
    for (a, b), pair in reversed(found.pairs.items()):
        if pair.outcome != "not distinguishable":
            echo(pair.sentence(a, b))
    if found.leaks:
        are = counted(found.leaks, "row is", "rows are")
        other = "; ".join(f"{b} and {a}" for a, b in found.changed)
        same = f"without them the outcome is another for {other}" if other else "without them no outcome is another"
        echo(f"{are} nearly the same as training rows; {same}")
    elif found.leaks is None:
        echo("training rows are not known here, so nobody looked for rows that leaked")
    if left := [f"{one.left_out} of {one.name}" for one in ordered if one.left_out]:
        echo(f"left out, since not all have them: rows {', '.join(left)}")
    show_lines(dict.fromkeys(scored.note for scored in found.scored if scored.note))


def show_rivals(found: Rivals) -> None:
    """The tuned model and its rivals: scores, what the tuned model is ahead by, and what an answer costs."""
    from instil.cli.tables import Column, console, table_of
    from instil.evaluate.comparison import shown_p

    echo(found.sentence())
    rivals = found.rivals

    def column(head: str, cells: list[str], rank: int = 0) -> Column:
        return Column(head, tuple(cells), rank, right=True)

    pairs = [one.against for one in rivals]
    ahead = ["" if pair is None or pair.difference is None else pair.difference.text() for pair in pairs]
    ps = ["" if pair is None or pair.difference is None else shown_p(pair.p).removeprefix("= ") for pair in pairs]
    out = console()
    columns = [
        Column("", tuple(one.name for one in rivals)),
        column("exact %", [f"{100 * one.metrics['exact_match']:.1f}" if one.metrics else "" for one in rivals], 4),
        column("chrF", [f"{one.metrics['chrf']:.1f}" if one.metrics else "" for one in rivals], 5),
        column("score", [f"{one.metrics['score']:.1f}" if one.metrics else "none" for one in rivals]),
        column("tuned is ahead by [95 %]", ahead),
        column("p", ps, 1),
        column("s an answer", [f"{one.asked.seconds:.2f}" for one in rivals], 2),
        column("tokens asked", [f"{one.asked.prompt_tokens:.0f}" for one in rivals], 6),
        column("memory, GB", [f"{one.asked.memory / 1e9:.2f}" for one in rivals], 3),
    ]
    echo()
    out.print(table_of(columns, out.width))
    echo()
    show_lines(f"{one.name}: {one.asked.how}" for one in rivals)
    if found.tried:
        tried = ", ".join(f"{count}: {score:.1f}" for count, score in found.tried.items())
        echo(f"score on validation rows by the number of examples: {tried}")
    show_lines(found.notes)
    adjusted = "p-values are adjusted for the number of rivals (Holm)"
    echo(f"{counted(found.rows, 'row')}; {adjusted}; the answers lie in rivals/")


def show_pairwise(found: ComparedPairwise) -> None:
    """The verdict of a judge that chose between answers, and how it came to its choices."""
    verdicts = found.verdicts
    echo(verdicts.sentence(found.a, found.b))
    if verdicts.same:
        same = len(verdicts.same)
        ties = verb(same, "counts as a tie", "count as ties")
        echo(f"{counted(same, 'row has', 'rows have')} equal answers and {ties}")
    if verdicts.consistency is not None:
        echo(
            f"the judge's choice did not depend on the order in {verdicts.consistency:.0%} of the rows; "
            "where it did, the row is a tie"
        )
    if verdicts.longer is not None:
        echo(f"the longer answer won in {verdicts.longer:.0%} of the decided rows")
    if found.no_room:
        echo(f"left out: {counted(found.no_room, 'row')} without room for an answer on one side")
    for reason, rows in _by_reason({one.row: one.reason for one in verdicts.rows if one.outcome is None}):
        echo(f"no choice: {counted(len(rows), 'row')} ({', '.join(map(str, rows[:10]))}): {reason}")


def show_health(health: Health) -> None:
    """What a judge gave to answers that are known to be right, wrong or none at all."""
    for group in (health.right, health.wrong, health.shuffled):
        _show_group(group.name, group.mean, group.unscored)
    echo(f"a right answer gets more than a wrong one in {health.order:.0%} of the pairs")
    echo("\nanswers that are none:")
    for group in health.canaries:
        _show_group(group.name, group.mean, group.unscored, paid=group.name in health.paid)
    if not health.problems:
        echo(f"\n{health.judge} tells right from wrong and pays for no canary")


def _show_group(name: str, mean: float | None, unscored: int, *, paid: bool = False) -> None:
    figure = "no score" if mean is None else f"{mean:.0f} of 100"
    missing = f", {unscored} without a score" if unscored else ""
    echo(f"  {name:24} {figure}{missing}{'   <- it pays for this' if paid else ''}")


def show_like_people(found: LikePeople | ChoosesLikePeople) -> None:
    """How far a judge agrees with people, and what it is led by."""
    echo(found.sentence())
    show_lines(found.lines())
