"""A watch for chosen answers that fade while the margin grows."""

from __future__ import annotations

from instil.train.metrics import StepRecord

FADING = -0.5  # nats for each token by which chosen answers may become less likely before it is said


class Watch:
    """Says it once when chosen answers fade: the margin can grow while both answers become less likely.

    So collapse begins (Pal et al., 2024, arXiv 2402.13228); the margin and the loss do not show it.
    """

    def __init__(self) -> None:
        self.warned_at: int | None = None
        self._at_first: float | None = None  # not zero under another reference, or with weights in few bits

    def saw(self, record: StepRecord) -> str | None:
        """A warning, where this record is the first to call for one."""
        found = (record.val_preference or {}).get("chosen_change")
        if found is None:
            return None
        if self._at_first is None:
            self._at_first = 0.0 if record.step else found
        change = found - self._at_first
        if self.warned_at is not None or change > FADING:
            return None
        self.warned_at = record.step
        return (
            f"chosen answers have become less likely than before training ({change:+.2f} nats a token): the model may "
            " be forgetting how to answer. Add --set dpo.nll=1, lower train.learning_rate, or stop with "
            "train.patience=2"
        )


def measures(record: StepRecord) -> str:
    """What a progress line says of the validation pairs."""
    found = record.val_preference
    if not found:
        return ""
    return f"  margin {found['margin']:+.3f}  accuracy {found['accuracy']:.0%}"
