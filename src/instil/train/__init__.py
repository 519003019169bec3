"""Loss sums, the optimizer, its schedule, and the loop.

The room's name is also the name of its one verb: ``instil.train(decoder, loader, options)`` calls
`instil.train.loop.train`.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """A module that can be called, because ``instil.train`` names both a room and what is done in it."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from instil.train.loop import train

        return train(*args, **kwargs)


sys.modules[__name__].__class__ = _Room
