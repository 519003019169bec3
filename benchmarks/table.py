"""From sessions to medians, ratios and the words around them; nothing here measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.contenders import Contender
from benchmarks.floor import Work

DIGITS = 1e-4  # losses that differ by less, relatively, are equal to four digits


@dataclass(frozen=True)
class Session:
    """One run of one contender in a process of its own.

    ``started`` is when the process was started, ``begin`` when its first step began, ``at`` when each step was
    done, all on one clock, in seconds. ``evaluated`` is the loss of a pass over the rows after them and its seconds, if
    one was asked for. ``failure`` says what went wrong, if anything; the steps before it count.
    """

    contender: str
    round: int
    started: float
    begin: float | None = None
    at: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    evaluated: tuple[float, float] | None = None
    end: Mapping[str, Any] = field(default_factory=dict)
    failure: str = ""

    @property
    def first_step(self) -> float | None:
        """Seconds from the start of the process to the end of the first optimizer step."""
        return self.at[0] - self.started if self.at else None

    def measured(self, warmup: int) -> range:
        """Steps that count: those after the warmup, or the last one where there are no others."""
        return range(min(warmup, max(len(self.at) - 1, 0)), len(self.at))

    def seconds(self, warmup: int) -> float | None:
        """What the measured steps took."""
        steps = self.measured(warmup)
        if not steps or self.begin is None:
            return None
        return self.at[-1] - (self.at[steps.start - 1] if steps.start else self.begin)

    def tokens_per_second(self, work: Sequence[Work], warmup: int) -> float | None:
        """Real tokens, without padding, of the measured steps over their time."""
        seconds = self.seconds(warmup)
        return sum(work[step].tokens for step in self.measured(warmup)) / seconds if seconds else None

    def over_floor(
        self, work: Sequence[Work], warmup: int, peak: float, bandwidth: float, *, untied: bool
    ) -> float | None:
        """Time of the measured steps over the least they can take."""
        seconds = self.seconds(warmup)
        least = sum(work[step].seconds(peak, bandwidth, untied=untied) for step in self.measured(warmup))
        return seconds / least if seconds else None


def paired_ratios(ours: Sequence[Session], theirs: Sequence[Session], work: Sequence[Work], warmup: int) -> list[float]:
    """Our speed over theirs in each round in which both ran; where they ran only once, over all of ours.

    Neighbours in time share what else the machine was doing, so the ratio is taken in each round.
    """
    speed = {one.round: one.tokens_per_second(work, warmup) for one in ours}
    found = []
    for one in theirs:
        there = one.tokens_per_second(work, warmup)
        here = speed.get(one.round)
        if here and there:
            found.append(here / there)
    return found


def middle(values: Sequence[float | None]) -> float | None:
    """The median of those that are known."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def unequal_losses(sessions: Sequence[Session], contenders: Sequence[Contender], *, passes: bool = False) -> list[str]:
    """Where contenders that compute the same did not log the same losses, in words; empty if all is well.

    All start from the same weights, so the first loss of all exact ones is compared; later ones among those of the
    same mathematics only. With ``passes`` that of the pass without gradients, too: a peer's is a mean of its batches'
    means, which only of rows that have as many targets each can be ours.
    """
    kinds = {contender.name: contender.mathematics for contender in contenders}
    reference: dict[tuple[str, int], tuple[float, str]] = {}
    wrong = []
    for session in sessions:
        kind = kinds[session.contender]
        if not kind:
            continue
        evaluated = [session.evaluated[0]] if passes and session.evaluated else []
        for step, loss in [*enumerate(session.losses), *((-1, loss) for loss in evaluated)]:
            key = (kind if step else "first", step)
            wanted, whose = reference.setdefault(key, (loss, session.contender))
            if not abs(loss - wanted) <= DIGITS * abs(wanted):  # also where it is not a number
                what = f"step {step + 1}" if step >= 0 else "the pass"
                wrong.append(f"{what}: {session.contender} {loss:.6g}, {whose} {wanted:.6g}")
    return wrong


def summary(
    contenders: Sequence[Contender],
    sessions: Sequence[Session],
    work: Sequence[Work],
    warmup: int,
    peak: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """A row of figures for each contender that ran."""
    by_name = {one.name: [s for s in sessions if s.contender == one.name] for one in contenders}
    rows = []
    for one in contenders:
        own = by_name[one.name]
        untied = one.mathematics == "untied"
        ratios = paired_ratios(by_name.get("instil", []), own, work, warmup)
        alike = paired_ratios(by_name.get(one.counterpart, []), own, work, warmup)
        ours = {s.round: s.evaluated[1] for s in by_name.get("instil", []) if s.evaluated}
        passes = [(s.round, *s.evaluated) for s in own if s.evaluated]
        memory = middle([s.end.get("peak_bytes") for s in own])
        over = {
            name: middle([s.over_floor(work, warmup, peak[name], peak["bandwidth"], untied=untied) for s in own])
            for name in ("fma", "sgemm_best")
            if peak.get(name)
        }
        rows.append(
            {
                "contender": one.name,
                "mathematics": one.mathematics or "other",
                "rounds": len([s for s in own if s.at]),
                "tokens_per_second": middle([s.tokens_per_second(work, warmup) for s in own]),
                "instil_times_as_fast": middle(ratios),
                "range": [min(ratios), max(ratios)] if ratios else None,
                "same_mathematics_times_as_fast": middle(alike),
                "peak_gb": memory / 1e9 if memory else None,
                "first_step_seconds": middle([s.first_step for s in own]),
                "over_floor_fma": over.get("fma"),
                "over_floor_sgemm": over.get("sgemm_best"),
                "losses": next((list(s.losses) for s in own if s.losses), []),
                "evaluation_loss": passes[0][1] if passes else None,
                "evaluation_seconds": middle([seconds for _, _, seconds in passes]),
                "evaluation_instil_times_as_fast": middle(
                    [seconds / ours[number] for number, _, seconds in passes if number in ours]
                ),
                "failures": [s.failure for s in own if s.failure],
            }
        )
    return rows


def efficiency(
    sessions: Sequence[Session], work: Sequence[Work], warmup: int, peak: Mapping[str, Any], shapes: float | None
) -> dict[str, float | None]:
    """What share of the peaks instil's whole step reaches, in counted minimal operations."""
    own = [s for s in sessions if s.contender == "instil"]
    rates: list[float | None] = []
    per_step: list[float | None] = []
    for session in own:
        seconds, steps = session.seconds(warmup), session.measured(warmup)
        rates.append(sum(work[step].flops for step in steps) / seconds if seconds else None)
        per_step.append(seconds / len(steps) if seconds else None)
    rate, step = middle(rates), middle(per_step)
    return {
        "flops_per_second": rate,
        "of_fma": rate / peak["fma"] if rate and peak.get("fma") else None,
        "of_sgemm": rate / peak["sgemm_best"] if rate else None,
        "of_best_at_shapes": shapes / step if shapes and step else None,
    }


COLUMNS = (
    ("contender", "contender"),
    ("rounds", "rounds"),
    ("tokens_per_second", "real tokens/s"),
    ("instil_times_as_fast", "instil is ... times as fast"),
    ("range", "range"),
    ("same_mathematics_times_as_fast", "same mathematics"),
    ("peak_gb", "peak GB"),
    ("first_step_seconds", "first step, s"),
    ("over_floor_fma", "t / floor (FMA)"),
    ("over_floor_sgemm", "t / floor (sgemm)"),
)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The figures as a table."""
    lines = ["| " + " | ".join(title for _, title in COLUMNS) + " |", "|" + " --- |" * len(COLUMNS)]
    lines += ["| " + " | ".join(_cell(row[key]) for key, _ in COLUMNS) + " |" for row in rows]
    return "\n".join(lines)


def loss_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The loss of every step of every contender, to five digits."""
    steps = max((len(row["losses"]) for row in rows), default=0)
    lines = ["| contender | " + " | ".join(f"step {step + 1}" for step in range(steps)) + " |"]
    lines.append("|" + " --- |" * (steps + 1))
    for row in rows:
        cells = [f"{loss:.5g}" for loss in row["losses"]] + ["-"] * (steps - len(row["losses"]))
        lines.append(f"| {row['contender']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def evaluations(rows: Sequence[Mapping[str, Any]]) -> str:
    """What a pass over the rows without gradients came to and took."""
    lines = [
        "| contender | loss without gradients | seconds | instil is ... times as fast |",
        "| --- | --- | --- | --- |",
    ]
    for row in rows:
        loss, keys = row["evaluation_loss"], ("evaluation_seconds", "evaluation_instil_times_as_fast")
        if loss is not None:
            lines.append(
                " | ".join([f"| {row['contender']}", f"{loss:.5g}", *(_cell(row[key]) for key in keys)]) + " |"
            )
    return "\n".join(lines)


def set_to(taken: Sequence[Any]) -> list[str]:
    """What each of those that are compared was set to, in words; those of one setting together.

    >>> from benchmarks.contenders import CONTENDERS
    >>> set_to([one for one in CONTENDERS if one.module == "lit" or one.ours])
    ['- LitGPT: float32, its chunked loss']
    """
    by_settings: dict[str, list[str]] = {}
    for one in taken:
        if one.settings:
            by_settings.setdefault(one.settings, []).append(one.name)
    return [f"- {'; '.join(names)}: {settings}" for settings, names in by_settings.items()]


def _cell(value: Any) -> str:
    """A value in a table.

    >>> _cell(3.14159), _cell(314.159), _cell(None), _cell([1.0, 2.5])
    ('3.14', '314', '-', '1.00 to 2.50')
    """
    if value is None:
        return "-"
    if isinstance(value, list):
        return " to ".join(_cell(one) for one in value)
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return str(value)
