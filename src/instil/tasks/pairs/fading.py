"""A watch for chosen answers that fade while the margin grows."""

from __future__ import annotations

from instil.screen import Screen
from instil.train.metrics import StepRecord
from instil.train.observer import Observer
from instil.train.state import TrainState

FADING = -0.5  # nats for each token by which chosen answers may become less likely before it is said


class FadingWatch(Observer):
    """Says it once when chosen answers fade: the margin can grow while both answers become less likely.

    So collapse begins (Pal et al., 2024, arXiv 2402.13228); the margin and the loss do not show it.
    """

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self.warned_at: int | None = None
        self._at_first: float | None = None  # not zero under another reference, or with weights in few bits

    def on_resume(self, state: TrainState) -> None:
        for record in state.records:
            self.warning(record)

    def on_step(self, record: StepRecord) -> None:
        if warning := self.warning(record):
            self._screen.say(f"  {warning}", "yellow")

    def warning(self, record: StepRecord) -> str | None:
        """What to say, where this record is the first to call for it."""
        moved = (record.val_metrics or {}).get("chosen_change")
        if moved is None:
            return None
        if self._at_first is None:
            self._at_first = 0.0 if record.step else moved
        change = moved - self._at_first
        if self.warned_at is not None or change > FADING:
            return None
        self.warned_at = record.step
        return (
            f"chosen answers have become less likely than before training ({change:+.2f} nats a token): the model may "
            " be forgetting how to answer. Add --set dpo.nll=1, lower train.learning_rate, or stop with "
            "train.patience=2"
        )
