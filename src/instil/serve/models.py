"""What is served: assistants under the names that clients call them by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from instil.errors import did_you_mean

if TYPE_CHECKING:  # brings torch, and a port that is taken is told before that is loaded
    from instil.assistant.assistant import Assistant


@dataclass(frozen=True, slots=True)
class Served:
    """A model under a name.

    Attributes:
        name: what clients call it.
        assistant: what answers.
        created: when its weights were written, in seconds since 1970.
        run: the run folder that it comes from, where it comes from one.
        base_of: the name of the tuned model whose base this is, where it is one.
    """

    name: str
    assistant: Assistant
    created: int
    run: Path | None = None
    base_of: str | None = None


class UnknownModel(LookupError):
    """A client asked for a model that is not served; the message says which are."""


class Models(Mapping[str, Served]):
    """The models that are served, by name, in the order in which they were given.

    Args:
        served: no two of one name.
    """

    def __init__(self, served: Sequence[Served]) -> None:
        self._served = {one.name: one for one in served}

    def __getitem__(self, name: str) -> Served:
        if name not in self._served:
            names = ", ".join(self._served)
            raise UnknownModel(f"no model {name[:100]!r}{did_you_mean(name[:100], self._served)}; served: {names}")
        return self._served[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)
