"""Ids to text as they come: no broken characters, no part of a stop text, nothing taken back."""

from __future__ import annotations

from collections.abc import Sequence

from instil.data.tokenizers import Tokenizer
from instil.records import visible_from

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoders put for bytes that are no character, or not yet


class TextStream:
    """The text of one answer while it is being made.

    All ids are decoded again with every new one, since a tokenizer may join or space them by what stands before.

    Args:
        tokenizer: turns ids into text.
        stop: texts that end the answer and are no part of it; what ends before the first visible character is none.
        header: what the answer may begin with; stop texts are looked for after it.
        goes_on: it goes on from another text, so that a space at its beginning is one.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), header: str = "", *, goes_on: bool = False
    ) -> None:
        self._tokenizer, self._stop, self._header = tokenizer, tuple(stop), header.strip()
        # Some vocabularies begin every text with a space, which their decoders take away again.
        self._ids: list[int] = tokenizer.encode("b")[-1:] if goes_on else []
        self._before = len(tokenizer.decode(self._ids)) if goes_on else 0
        self._given = 0
        self.text = ""  # all of it, an unfinished character or stop text at its end included
        self.stopped = False

    def push(self, token: int) -> str:
        """Take an id; the text that is certain now and was not before. Nothing after a stop text."""
        if self.stopped:
            return ""
        self._ids.append(token)
        self.text = self._tokenizer.decode(self._ids)[self._before :]
        begin = self._begin()
        if begin is None:
            return ""
        first = begin + visible_from(self.text[begin:])
        if self._stop and first == len(self.text):  # nothing to be seen yet, so nothing to stop
            return ""
        found = [at for stop in self._stop if (at := self.text.find(stop, max(begin, first - len(stop) + 1))) >= 0]
        if found:
            self.text, self.stopped = self.text[: min(found)], True
            return self.finish()
        certain = len(self.text.rstrip(BROKEN))
        for stop in self._stop:
            sure = self.text[begin:certain]
            certain -= next((size for size in range(len(stop) - 1, 0, -1) if sure.endswith(stop[:size])), 0)
        return self._give(certain)

    def finish(self) -> str:
        """What was held back, once no more ids come."""
        return self._give(len(self.text))

    def _begin(self) -> int | None:
        """Where stop texts are looked for from; None while a header may still be coming."""
        said = self.text.lstrip()
        if self._header and self._header.startswith(said) and said != self._header:
            return None
        lead = len(self.text) - len(said)
        return lead + len(self._header) if self._header and said.startswith(self._header) else 0

    def _give(self, upto: int) -> str:
        new = self.text[self._given : upto]
        self._given = max(self._given, upto)
        return new
