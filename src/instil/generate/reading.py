"""What a model thinks of a text that is there already: the log-probability of each of its tokens.

Shape suffixes: N tokens · D model width · S tokens whose scores are held at once · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from instil.errors import DataError
from instil.generate.request import TokenLogprobs, check_prompt, token_logprobs
from instil.model.decoder import Decoder, batch_of_ids

AT_ONCE = 1 << 26  # bytes of scores that are held


@torch.inference_mode()
def read(decoder: Decoder, ids: Sequence[int], top: int, ends: Sequence[int] = ()) -> list[TokenLogprobs]:
    """What the model thinks of each token of a text but the first, given those before it.

    Args:
        decoder: the model.
        ids: the text, at least one token.
        top: of how many of the likeliest tokens it is told, too.
        ends: if there are any, what it thinks of ending here is told last, of the likeliest of these ids.

    Raises:
        DataError: the text is empty or longer than the model's context, or holds ids that the model does not have.
    """
    spec = decoder.spec
    check_prompt(ids, spec.vocab_size)
    if len(ids) > spec.context:
        raise DataError(f"the prompt has {len(ids):,} tokens; the model's context is {spec.context:,}")
    ids_N = torch.tensor(ids, device=decoder.device)
    hidden_ND = decoder(batch_of_ids(ids_N[None]))
    size = max(1, AT_ONCE // (4 * spec.vocab_size))
    found = []
    for start in range(0, len(ids), size):
        for at, logprobs_V in enumerate(decoder.logits(hidden_ND[start : start + size]).float().log_softmax(-1), start):
            if at + 1 < len(ids):
                found.append(token_logprobs(ids[at + 1], logprobs_V, top))
            elif ends:
                found.append(token_logprobs(max(ends, key=lambda end: float(logprobs_V[end])), logprobs_V, top))
    return found
