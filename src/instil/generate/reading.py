"""What a model thinks of a text that is there already: the log-probability of each of its tokens.

Shape suffixes: D model width · S tokens that are read at once · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from instil.batches import Batch
from instil.errors import DataError
from instil.generate.request import TokenLogprobs, check_prompt, token_logprobs
from instil.layouts import Tree
from instil.machine import sent
from instil.model.cache import Part
from instil.model.decoder import Decoder

AT_ONCE = 256  # tokens; between two pieces others may be answered
SCORES = 1 << 26  # bytes of scores that are held


class Reading:
    """A text on its way through a model, piece by piece.

    Args:
        decoder: the model.
        ids: the text, at least one token.
        top: of how many of the likeliest tokens it is told, too.
        ends: if there are any, what the model thinks of ending here is told last, of the likeliest of these ids.

    Attributes:
        found: what it thinks of each token but the first, given those before it, as far as it has read.

    Raises:
        DataError: the text is empty or longer than the model's context, or holds ids that the model does not have.
    """

    def __init__(self, decoder: Decoder, ids: Sequence[int], top: int, ends: Sequence[int] = ()) -> None:
        check_prompt(ids, decoder.spec.vocab_size)
        if len(ids) > decoder.spec.context:
            raise DataError(f"the prompt has {len(ids):,} tokens; the model's context is {decoder.spec.context:,}")
        self.found: list[TokenLogprobs] = []
        self._decoder, self._ids, self._top, self._ends = decoder, ids, top, ends
        self._cache = decoder.new_cache(len(ids))
        self._cache.add()

    def step(self) -> bool:
        """Read the next piece; whether it was the last."""
        with self._decoder.without_graph():
            return self._step()

    def _step(self) -> bool:
        ids, decoder, first = self._ids, self._decoder, self._cache.lengths[0]
        piece = ids[first : first + AT_ONCE]
        positions_S = torch.arange(first, first + len(piece))
        batch = Batch.untargeted(
            torch.tensor(piece), positions_S, torch.zeros_like(positions_S), Tree.of([len(piece)])
        ).to(decoder.device)
        hidden_SD = decoder(batch, [Part(self._cache, (0,), (len(piece),))])
        at = first
        for some_SD in hidden_SD.split(max(1, SCORES // (4 * decoder.spec.vocab_size))):
            logprobs_SV = decoder.logits(some_SD).float().log_softmax(-1)
            told = list(ids[at + 1 : at + 1 + len(logprobs_SV)])
            at += len(logprobs_SV)
            if at == len(ids) and self._ends:
                of_ends = logprobs_SV[-1, sent(torch.tensor(self._ends), logprobs_SV.device)].tolist()
                told.append(self._ends[of_ends.index(max(of_ends))])
            if told:
                self.found += token_logprobs(told, logprobs_SV[: len(told)], self._top)
        return at == len(ids)
