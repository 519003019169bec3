"""A run as it goes on, wherever it was started: by its files alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from instil.errors import UserError, counted, did_you_mean
from instil.runs.folder import RUN_FILE
from instil.runs.following import FINISHED, RUNNING, Following, Picture
from instil.runs.listing import find_runs
from instil.screen import clock

QUIET = 10  # looks without a validation after which a line is said all the same


def follow(run: Path) -> Following:
    """What looks at a run.

    Raises:
        UserError: there is none at that path.
    """
    if (run / RUN_FILE).is_file():
        return Following(str(run), run)
    near = {str(path): path for path in find_runs(run.parent).values()} if run.parent.is_dir() else {}
    inside = list(find_runs(run)) if run.is_dir() else []
    if inside:
        raise UserError(f"{run} holds {counted(len(inside), 'run')}; name one, such as {run / inside[0]}")
    what = f"no {RUN_FILE} in it, so it is not a run folder" if run.is_dir() else "there is no such folder"
    raise UserError(f"{run}: {what}{did_you_mean(str(run), near)}")


def progress(picture: Picture) -> str:
    """Where a run is, in one line."""
    about, last = picture.about, picture.last
    if last is None:
        return picture.stage or "no step was taken"
    parts = [f"step {last.step:,}" + (f"/{about.steps:,}" if about.steps is not None else "")]
    parts.append(f"epoch {last.epoch:.2f}")
    if about.train_loss is not None:
        parts.append(f"train {about.train_loss:.3f}")
    if about.val_loss is not None:
        parts.append(f"validation {about.val_loss:.3f}")
    if picture.tokens_per_second:
        parts.append(f"{picture.tokens_per_second:,.0f} tokens/s")
    if picture.seconds_left is not None:
        parts.append(f"{clock(picture.seconds_left)} left of training")
    return "  ".join(parts)


def end(picture: Picture) -> str:
    """How a run stands that is not at work."""
    about = picture.about
    if picture.gone:
        return f"{about.name}: it is gone; there is no {RUN_FILE} any more"
    why = f", {about.why}" if about.why else ""
    scored = f"; {about.scores[0].sentence}" if about.scores else ""
    advice = "; the same command with --resume goes on" if picture.state not in (FINISHED, RUNNING) else ""
    return f"{about.name}: {picture.state}{why}{scored}{advice}{f' ({about.problem})' if about.problem else ''}"


def lines(pictures: Iterator[Picture]) -> Iterator[str]:
    """What is said of a run where nothing can be drawn: a line for each validation, and one now and then."""
    said: tuple[int, int] | None = None  # the step of the last line, and that of its validation
    stage, sampled, quiet = "", -1, 0
    picture = None
    for picture in pictures:
        step = picture.last.step if picture.last else -1
        validated = picture.curve.val[-1][0] if picture.curve.val else -1
        quiet += 1
        new = said is None or validated > said[1] or (step != said[0] and quiet >= QUIET) or step < said[0]
        if new or picture.stage != stage:
            if picture.stage != stage and picture.stage:
                yield picture.stage
            if picture.last is not None:
                yield progress(picture)
            said, stage, quiet = (step, validated), picture.stage, 0
        if picture.samples and picture.samples[0].step != sampled:
            sampled = picture.samples[0].step
            one = picture.samples[0]
            yield f"    asked: {' '.join(one.asked.split())}"
            yield f"    says:  {' '.join(one.says.split())}"
    if picture is not None:
        yield end(picture)
