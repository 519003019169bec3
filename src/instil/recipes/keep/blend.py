"""The verb blend: mixtures of base and tuned weights, of which one may keep the gain and lose less.

Every weight goes in a straight line from the base's to the tuned model's (Wortsman et al. 2022, arXiv 2109.01903);
nothing is trained. Of a run with adapters that is the same as scaling them, since the model of the run has them added
to its weights. A mixture is chosen by its answers to validation rows: how likely their references are is told as well,
but that ends to improve, and gets worse, while answers still come nearer. Test rows are looked at only if that is asked
for, afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from instil.assistant.assistant import Assistant, load
from instil.assistant.folder import export_folder
from instil.data.encoding import encode_many
from instil.data.subset import spread
from instil.errors import DataError, UserError, counted
from instil.evaluate.comparison import compare_verdicts, shown_p
from instil.evaluate.general.material import material
from instil.evaluate.general.measure import Measured, Subject, measure_texts
from instil.evaluate.likelihood import likelihoods
from instil.evaluate.offline import score_offline
from instil.evaluate.statistics import Interval, interval, permutation_p
from instil.files import check_folder
from instil.generate.answer import answer
from instil.model.decoder import Decoder
from instil.recipes.base_of_run import base_of, products_of
from instil.recipes.keep.keep import finished_run
from instil.recipes.rows_of_run import part_of_run
from instil.records import Encoded, Example, Verdict, blank
from instil.runs.answers import find_answers
from instil.runs.blend import Blend, Point, chosen_of, write_blend
from instil.runs.facts import read_facts
from instil.runs.folder import RunFolder
from instil.runs.report.report import refresh_report
from instil.screen import Screen

POINTS = 11
MOST = 200  # validation rows that are looked at, evenly spaced
CHECKED_ROWS = 5  # whose ids are looked at again in what was saved


@dataclass(frozen=True, slots=True)
class Blended:
    """What came of it; ``test`` says how the chosen mixture does on test rows, where that was asked for."""

    run: Path
    blend: Blend
    saved: str = ""
    test: str = ""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """A table of the mixtures, and what is to be said of them."""
        found = ["of the tuned model  gain kept  agreement  nats a token  bits a byte more on general texts"]
        for number, point in enumerate(self.blend.points):
            mark = "  <- chosen" if number == self.blend.chosen else ""
            gained = f"{point.gain:>9.1%}  {point.score:>9.1f}  {point.loss:>12.3f}"
            found.append(f"{point.share:>18.1f}  {gained}  {point.lost:>+8.4f}{mark}")
        found += [self.blend.sentence, *([self.test] if self.test else []), *self.notes]
        return [*found, *([f"saved: {self.saved}"] if self.saved else [])]

    def as_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "run": str(self.run),
            **self.blend.as_json(),
            "saved": self.saved,
            "test": self.test,
            "notes": self.notes,
        }


def blend(run: str | Path, *, save: Path | None = None, test: bool = False, screen: Screen | None = None) -> Blended:
    """Measure eleven mixtures, choose one, and write that down in the run's folder and report.

    Both models are in memory, and the mixture as a third.

    Args:
        run: a finished run's folder.
        save: a folder for the chosen mixture, as ``RUN/model`` is one.
        test: answer the run's test rows with it, and compare that with the tuned model's answers.
        screen: where progress is shown; nowhere by default.

    Raises:
        UserError: the run is not finished, its base or its validation rows are not there, or nothing can be chosen.
    """
    folder, screen = finished_run(run), screen or Screen(quiet=True)
    if save is not None:
        _check_free(save)
    if test and read_facts(folder).part != "test":
        raise UserError(f"{run}: the run has no test rows; those that it answered are the ones that choose the mixture")
    with products_of(folder):
        rows = _validation_rows(folder)
        _, base = base_of(folder)
        tuned = load(folder.path)
        encoded = encode_many([replace(row, weight=1.0) for row in rows], tuned.template, tuned.tokenizer, turns="last")
        with _between(base.decoder, tuned.decoder) as mix:
            looks = _looked_at(tuned, rows, encoded, mix, screen)
            found = _blend_of(looks)
            write_blend(folder, found)
            saved, said, notes = "", "", list[str]()
            if found.best is None and (save is not None or test):
                notes.append("nothing was chosen, so nothing is saved or tested")
            elif found.best is not None:
                mix(found.best.share)
                if save is not None:
                    screen.say(f"saving the mixture to {save}")
                    notes += export_folder(tuned.decoder, tuned.tokenizer, tuned.template, save, rows[:CHECKED_ROWS])
                    saved = str(save)
                if test:
                    said = _tested(folder, tuned, screen)
    refresh_report(folder)
    return Blended(folder.path, found, saved, said, notes)


@dataclass(frozen=True, slots=True)
class _Look:
    """What one mixture does: agreement and nats a token of each validation row, and what was measured of each text."""

    share: float
    scores: list[float]
    losses: list[float]
    texts: list[Measured]


class _Mix:
    """Sets the weights of a decoder to a mixture."""

    def __init__(self, decoder: Decoder, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
        self._decoder, self._base, self._tuned = decoder, base, tuned

    @torch.no_grad()
    def __call__(self, share: float) -> None:
        for name, weight in self._decoder.named_parameters():
            weight.copy_(torch.lerp(self._base[name], self._tuned[name], share))


@contextmanager
def _between(base: Decoder, tuned: Decoder) -> Iterator[_Mix]:
    """Inside, ``tuned`` may be set to mixtures with ``base``; afterwards it is as it was.

    Raises:
        UserError: they are not of one shape.
    """
    if base.spec.tied and not tuned.spec.tied:
        base.untie()
    first, second = ({name: one.detach() for name, one in model.named_parameters()} for model in (base, tuned))
    shapes = [{name: (one.shape, one.dtype) for name, one in weights.items()} for weights in (first, second)]
    if shapes[0] != shapes[1]:
        raise UserError("base and tuned model have weights of other shapes, so there is nothing between them")
    second = {name: one.clone() for name, one in second.items()}
    mix = _Mix(tuned, first, second)
    try:
        yield mix
    finally:
        mix(1.0)


def _validation_rows(folder: RunFolder) -> Sequence[Example]:
    rows = [row for row in part_of_run(folder, "validation") if not blank(row.output)]
    if not rows:
        raise UserError(
            f"{folder.path}: no validation rows with a reference answer, so no mixture can be chosen by them"
        )
    return spread(rows, MOST)


def _looked_at(
    tuned: Assistant, rows: Sequence[Example], encoded: Sequence[Encoded], mix: _Mix, screen: Screen
) -> list[_Look]:
    subject = Subject(tuned.decoder, tuned.tokenizer, tuned.template)
    found = []
    with screen.bar("mixtures", POINTS) as advance:
        for number in range(POINTS):
            share = number / (POINTS - 1)
            mix(share)
            context = tuned.decoder.spec.context
            likely = likelihoods(tuned.decoder, encoded, context)
            losses = [verdict.metrics["loss"] for verdict in likely if verdict.score is not None]
            scores = [verdict.score for verdict in _answered(tuned, rows) if verdict.score is not None]
            found.append(_Look(share, scores, losses, measure_texts(subject, material().texts)))
            advance(f"{share:.1f}")
    if not (found[0].losses and found[0].scores):
        raise DataError("no validation row fits into the model's context, so no mixture can be chosen by them")
    return found


def _blend_of(looks: Sequence[_Look]) -> Blend:
    base, tuned = looks[0], looks[-1]
    scores = [_mean(look.scores) for look in looks]
    bits = [_mean([one.value for one in look.texts]) for look in looks]
    whole = scores[-1] - scores[0]
    gains = [(score - scores[0]) / whole if whole else 0.0 for score in scores]
    points = tuple(
        Point(look.share, score, gain, _mean(look.losses), each, each - bits[0])
        for look, score, gain, each in zip(looks, scores, gains, bits, strict=True)
    )
    chosen, rows = chosen_of(points), counted(len(base.scores), "validation row")
    if chosen is None:
        sentence = f"On {rows} the tuned model is no better than its base, so there is no gain to keep."
        return Blend(points, None, len(base.scores), len(base.texts), sentence)
    best, gained = points[chosen], interval([b - a for a, b in zip(base.scores, tuned.scores, strict=True)])
    apart = interval([a - b for a, b in zip(looks[chosen].scores, tuned.scores, strict=True)])
    sentence = (
        f"{best.share:.1f} of the way from the base to the tuned model keeps {100 * best.gain:.1f} % of the gain in "
        f"agreement on {rows}{_shown(apart)}, and needs {best.lost:+.4f} bits a byte on general texts beside the base, "
        f"where the tuned model needs {points[-1].lost:+.4f}"
    )
    gaps = [a.value - b.value for a, b in zip(looks[chosen].texts, tuned.texts, strict=True)]
    less = interval(gaps)
    if chosen == len(points) - 1:
        sentence += ": it is the tuned model itself"
    elif less is not None and less.low is not None and less.high is not None:
        sentence += (
            f" (difference {less.mean:+.4f}, 95 % interval {less.low:+.4f} to {less.high:+.4f}, "
            f"p {shown_p(permutation_p(gaps))})"
        )
    if gained is None or gained.low is None or gained.low <= 0:
        sentence += "; the gain itself cannot be told from chance"
    return Blend(points, chosen, len(base.scores), len(base.texts), f"{sentence}.")


def _shown(apart: Interval | None) -> str:
    """How far answers may be from the tuned model's all the same."""
    if apart is None or apart.low is None or apart.high is None or apart.low == apart.high == 0:
        return ""
    return f" ({apart.mean:+.1f} points beside it, 95 % interval {apart.low:+.1f} to {apart.high:+.1f})"


def _tested(folder: RunFolder, mixed: Assistant, screen: Screen) -> str:
    """How the mixture answers the test rows, beside the tuned model's answers."""
    (rows,) = find_answers(folder.path, only=("tuned",))
    with screen.bar("answering", len(rows.examples)) as advance:
        blended = _answered(mixed, rows.examples, advance)
    tuned = score_offline(rows.examples, rows.answers, no_room=rows.no_room)
    told = compare_verdicts(tuned, blended).sentence("the tuned model", "the mixture")
    return f"On {counted(len(rows.examples), 'test row')}, {told}"


def _answered(
    assistant: Assistant, rows: Sequence[Example], advance: Callable[[], None] = lambda: None
) -> list[Verdict]:
    """The agreement of answers to rows with their references."""
    made = answer(assistant.decoder, assistant.tokenizer, assistant.template, rows, assistant.options, advance)
    no_room = frozenset(one.row for one in made if one.finish == "no_room")
    return score_offline(rows, [one.text for one in made], no_room=no_room)


def _check_free(folder: Path) -> None:
    """Refuse a folder that cannot be written, or in which something lies.

    Raises:
        UserError: it is so.
    """
    check_folder(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} is not empty; choose another --save")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
