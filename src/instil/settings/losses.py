"""The losses of preference tuning: one table with a line for each, from which everything else is derived.

Names that ``dpo.loss`` and ``--method`` know, what help and messages say, which ``dpo.*`` settings have an effect, and
what `instil.tasks.pairs.losses.Preference` computes. A new loss is a line here, a function of
`instil.tasks.pairs.losses.Answers` and `instil.settings.options.DpoOptions`, and a line in ``docs/preference.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class PreferenceLoss:
    """What there is to know of a loss.

    Args:
        function: of answers and options, the loss of each pair; or where it stands, ``module:name``, which is imported
            when it is needed.
        what: what is made smaller, in a phrase.
        of: what an answer's log-probability is: the sum over its scored ids, their mean, or as ``dpo.reduction`` says.
        reference: whether log-probabilities of a reference model take part.
        distance: whether it wants to know how far the model is from the reference on the answers of other rows.
        likelihood: weight of the chosen answers' own loss that is always added, beside ``dpo.nll``.
        own: ``dpo.*`` settings that other losses do not read, but ``reduction`` and ``reference``.
        defaults: ``dpo.*`` settings with another default.
    """

    function: str | Callable[..., Any]
    what: str
    of: Literal["sum", "mean", "reduction"] = "reduction"
    reference: bool = True
    distance: bool = False
    likelihood: float = 0.0
    own: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Callable[..., Any]:
        """The function itself."""
        return self.function if callable(self.function) else resolve_name(self.function)

    @property
    def settings(self) -> tuple[str, ...]:
        """The ``dpo.*`` settings that this loss reads and some other might not."""
        shared = {"reduction": self.of == "reduction", "reference": self.reference}
        return (*self.own, *(name for name, read in shared.items() if read))


LOSSES: dict[str, PreferenceLoss] = {
    "dpo": PreferenceLoss(
        "instil.tasks.pairs.losses:dpo_loss",
        "minus the log-sigmoid of beta times the margin; `dpo.label_smoothing` makes it cDPO",
        own=("label_smoothing",),
    ),
    "ipo": PreferenceLoss(
        "instil.tasks.pairs.losses:ipo_loss",
        "the squared distance of the margin from 1 / (2 beta), per token",
        of="mean",
    ),
    "simpo": PreferenceLoss(
        "instil.tasks.pairs.losses:simpo_loss",
        "log-probabilities per token, a wanted margin, no reference",
        of="mean",
        reference=False,
        own=("gamma",),
        defaults={"beta": 2.0},  # it multiplies a mean
    ),
    "orpo": PreferenceLoss(
        "instil.tasks.pairs.losses:orpo_loss",
        "the odds of chosen against rejected, and the likelihood of the chosen answer; no reference",
        of="mean",
        reference=False,
        likelihood=1.0,
    ),
    "kto": PreferenceLoss(
        "instil.tasks.pairs.losses:kto_loss",
        "chosen and rejected answers each against how far the model has moved at all",
        distance=True,
        own=("desirable", "undesirable"),
    ),
}


def read_by(setting: str) -> tuple[str, ...]:
    """The losses that read a ``dpo.*`` setting; of one that every loss reads, none.

    >>> read_by("reduction"), read_by("gamma"), read_by("beta")
    (('dpo', 'kto'), ('simpo',), ())
    """
    return tuple(name for name, loss in LOSSES.items() if setting in loss.settings)


def listed(names: Iterable[str], last: str = "or") -> str:
    """Names as a sentence has them.

    >>> listed(["dpo", "ipo", "kto"]), listed(["simpo", "orpo"], "and"), listed(["dpo"])
    ('dpo, ipo or kto', 'simpo and orpo', 'dpo')
    """
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end
