"""A chat template made ready: compiled once, rendered with an allowance, its faults said in one sentence."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from jinja2 import nodes

from instil.data.templates.allowance import Allowance, Exhausted
from instil.data.templates.sandbox import FORMAT, Refused, Sandbox
from instil.errors import DataError

LONGEST = 256 * 1024  # characters of a template's source


class Program:
    """A chat template that can be rendered."""

    def __init__(self, source: str) -> None:
        if len(source) > LONGEST:
            raise DataError(f"it has {len(source):,} characters; a chat template here may have {LONGEST:,}")
        self._place = Sandbox()
        self._lock = threading.Lock()  # an allowance is of one rendering
        self._template = self._guarded(lambda: self._place.compiled(source))

    def render(self, given: int, **values: Any) -> str:
        """What the template makes of these values, in which there are ``given`` characters.

        Raises:
            DataError: it refuses them, fails, or asks for more than it is allowed.
        """
        with self._lock:
            self._place.allowance = Allowance(given)
            made: str = self._guarded(lambda: self._place.concat(self._template.generate(**values)))
            return made

    @staticmethod
    def _guarded(work: Callable[[], Any]) -> Any:
        try:
            return work()
        except Refused as error:
            raise DataError(f"it refuses this conversation: {str(error)[:300]}") from error
        except Exhausted as error:
            raise DataError(f"it was stopped: {error}") from error
        except OverflowError as error:  # of `range`, where it is too long, among others
            raise DataError(f"it was stopped: {error}") from error
        except RecursionError as error:
            raise DataError("it was stopped: it is nested too deeply") from error
        except MemoryError as error:
            raise DataError("it was stopped: there is not enough memory for it") from error
        except Exception as error:  # a template is a program of someone else's: it may raise anything
            raise DataError(f"it fails: {str(error)[:300] or type(error).__name__}") from error


@functools.lru_cache(maxsize=32)
def program(source: str) -> Program:
    """A template made ready, once.

    Raises:
        DataError: it is no template.
    """
    return Program(source)


def dates_in(source: str) -> list[str]:
    """The forms in which a template asks for the day."""
    calls = Sandbox().parse(source).find_all(nodes.Call)
    asked = [call for call in calls if isinstance(call.node, nodes.Name) and call.node.name == "strftime_now"]
    forms = [arg.value for call in asked for arg in call.args if isinstance(arg, nodes.Const)]
    return list(dict.fromkeys(form for form in forms if isinstance(form, str) and FORMAT.fullmatch(form)))
