"""In which form a server is asked to reply: by a schema, as any JSON object, or as it likes.

Servers refuse schemas in many words and with many statuses, or keywords of one that others demand. So what was refused
is asked again in the next form, whatever the words, unless they name another cause; and what a server does not take is
not sent again.
"""

from __future__ import annotations

import re
import threading

from instil.ask.http import Passing, Refused, Rejected

SCHEMA, JSON, PLAIN = range(3)
PASSES = (402, 408, 425, 429)  # statuses that have their own cause
IN_VAIN = 3  # questions with a vague refusal in every form, after which such a refusal is taken for what it is
BROKEN = (500, 501)  # statuses of a server that fails at what it was asked

_OF_FORM = re.compile(
    r"schema|response_?format|json_object|json mode|json_validate|json output|structured|grammar|guided|regex"
    r"|additional_?properties|\bstrict\b|\bformat\b|requested parameters|output_config|constrain"
)
_SURELY = re.compile(r"schema|response_?format|json_object|grammar|guided|structured output|requested parameters")
_PARAMETER = re.compile(
    r"\b(?:parameter|argument|field|property|input|inputs|keyword|option|key)s?\b.*\bresponse_?format\b"
    r"|\bresponse_?format\b.*\b(?:parameter|argument|field|property|inputs?|keyword|option)s?\b"
)
_OF_ITS_VALUE = re.compile(r"schema|json_object|\btype\b|\bvalue\b|variant|version|\bstrict\b|must be|expected")
_KEYS = re.compile(r"\"(?:type|code|object|status|param)\": ?(?:\"[^\"]*\"|[^\",}]*)")
_TOO_LONG = re.compile(
    r"context[ _-]?(?:length|window|size|limit|overflow)|(?:input|prompt|request|message)s?(?: \w+)? (?:is|are) too"
    r" (?:long|large)|too many (?:input )?tokens|maximum (?:context|length|input|number of tokens|prompt)"
    r"|(?:length|tokens?) exceeds?"
    r"|exceeds? (?:the )?(?:available |model'?s? |maximum )*(?:context|length|tokens?|limit)"
    r"|reduce (?:the )?(?:length|your)|n_ctx|max_model_len"
)
_OTHER_CAUSE = re.compile(
    r"content.?filter|content.?(?:management )?policy|moderat|flagged|safety|harmful|quota|credit|billing|payment"
    r"|balance|rate.?limit|api.?key|model.{0,40}(?:not (?:exist|found)|does not exist)|no such model"
)


class Forms:
    """Which form a server takes, as learnt from what it refused. Safe to use from several threads."""

    def __init__(self) -> None:
        self._first = SCHEMA
        self._vain = 0
        self._broke = 0
        self._worked = PLAIN + 1  # the strictest form in which a question has been answered
        self._lock = threading.Lock()

    def first(self, *, wanted: bool) -> int:
        """The form to begin with; a question without a schema is asked plainly."""
        return self._first if wanted else PLAIN

    def after(self, form: int, error: Exception) -> int | None:
        """The form to ask in next, or None where the refusal is not about the form."""
        if form == PLAIN or not isinstance(error, Refused | Rejected | Passing) or error.status in PASSES:
            return None
        said = error.said
        if error_parameter(error) and not _SURELY.search(said):
            return None
        if self._is_of_form(said, refused=isinstance(error, Refused)):
            words = _KEYS.sub("", said)
            whole = _PARAMETER.search(words) and not _OF_ITS_VALUE.search(words)
            following = PLAIN if whole else form + 1
            if not _TOO_LONG.search(said):  # else it may not be the form, which then is told by what follows
                self.settle(following)
            return following
        if form >= self._worked or self._vain >= IN_VAIN or _TOO_LONG.search(said) or _OTHER_CAUSE.search(said):
            return None
        if isinstance(error, Passing) and error.status in BROKEN:
            self._broke += 1  # once may be chance
            return form + 1 if self._broke > 1 else None
        return form + 1 if isinstance(error, Refused) else None

    def settle(self, form: int) -> None:
        """Begin with this form from now on; a form that was given up is not taken up again."""
        with self._lock:
            self._first = max(self._first, form)

    def worked(self, form: int) -> None:
        """A question was answered in this form."""
        with self._lock:
            self._worked = min(self._worked, form)
        self.settle(form)

    def gave_up(self, form: int) -> None:
        """A question was refused in this form, too, and in those before it: the form may not be what is refused."""
        with self._lock:
            self._vain += form > self._first

    def _is_of_form(self, said: str, *, refused: bool) -> bool:
        """Whether a server's words are about the form; it needs surer ones where a request is not just refused."""
        surely = bool(_SURELY.search(said))
        return surely or (refused and bool(_OF_FORM.search(said)) and not _TOO_LONG.search(said))


def error_parameter(error: Exception) -> str:
    """The parameter that a refusal names, if any."""
    return error.parameter if isinstance(error, Refused) else ""
