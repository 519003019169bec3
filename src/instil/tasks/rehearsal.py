"""Texts that a model writes before it is tuned and that are trained on beside the rows, so that it forgets less.

What a model is not shown while it is tuned, it loses. Showing it general texts helps (Robins 1995, "Catastrophic
forgetting, rehearsal and pseudorehearsal"), and the model itself can write them (Huang et al. 2024, arXiv 2403.01244).
They are drawn from its own distribution, at a temperature of 1 and with nothing cut off, and what is learnt of them is
not the ids that were drawn, but how likely the model held each id at each place (Li and Hoiem 2016, "Learning without
forgetting"; Hinton et al. 2015): so their gradient is zero where the model begins, and pulls it back as it moves away.
The ids alone would have none on average, too, but over some epochs they are learnt by heart, by which more is lost than
without them (docs/log.md). No data of anybody's are needed.

Shape suffixes: T places of a text but the first · V vocabulary · K ids that are kept of a place, of which M are drawn.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from instil.ask.journal import key_of
from instil.data.tokenizers import Tokenizer
from instil.errors import SettingsError
from instil.generate.prompts import generate
from instil.generate.sampling import Sampling
from instil.model.decoder import Decoder, batch_of_ids
from instil.model.elsewhere import load_elsewhere
from instil.records import Encoded, SoftTargets
from instil.screen import Screen
from instil.tasks.task import Keeps, Prepared
from instil.train.ranks import ALONE, Ranks

TOKENS = 64  # of a text, at most
LIKELIEST, OTHERS = 16, 16  # ids of a place whose shares are kept, and those that stand for all others
AT_ONCE = 64  # texts written side by side


def count_of(prepared: Prepared) -> int:
    """How many texts are mixed in."""
    return math.ceil(prepared.settings.train.rehearse * len(prepared.usable("train")))


def unwritten(prepared: Prepared) -> tuple[Encoded, ...]:
    """As many texts as there will be, as long as they may become, before the model is there to write them.

    Raises:
        SettingsError: there is no place for them.
    """
    train = prepared.settings.train
    if not train.rehearse:
        return ()
    if train.objective != "sft":
        raise SettingsError("train.rehearse is for train.objective=sft: preferences hold the model to its reference")
    if train.order == "book":
        raise SettingsError("train.rehearse is for train.order=seeded; the book's order is of the rows alone")
    ids = [prepared.tokenizer.eos_id] * _tokens(prepared)
    return tuple(_text(ids, at, prepared) for at in range(count_of(prepared)))


def rehearsed(
    prepared: Prepared, decoder: Decoder, screen: Screen, *, journal: Keeps | None = None, ranks: Ranks = ALONE
) -> Prepared:
    """With the texts, which the model writes, or which the ``journal`` of this run has.

    Where the decoder's weights are elsewhere, they are written by processes with a part of the model each, which deal
    the texts among them.
    """
    count, seed = count_of(prepared), prepared.settings.train.seed
    key = key_of("rehearsal", count, seed, _tokens(prepared), LIKELIEST, OTHERS)
    kept = ranks.gather(journal.kept(key) if journal is not None else None)
    texts = next((one for one in kept if one is not None), None)
    if texts is None:
        how = prepared.tokenizer, _tokens(prepared), seed, screen
        if decoder.elsewhere is None:
            training = decoder.training
            own = _told(decoder.eval(), range(count), *how)
            decoder.train(training)
            texts = ranks.agree(own)  # where processes have rounded otherwise, all take the same
        else:
            writer = load_elsewhere(prepared.model_path, vocab_size=prepared.spec.vocab_size, device=decoder.device)
            with ranks.sharding(writer) as parts, ranks.in_step(parts):
                own = _told(parts.eval(), range(ranks.rank, count, ranks.world), *how)
            dealt = ranks.gather(own)
            texts = [dealt[at % ranks.world][at // ranks.world] for at in range(count)]
        if journal is not None:
            journal.keep(key, texts)
    rows = [_text(ids, at, prepared, soft_of(said)) for at, (ids, said) in enumerate(texts)]
    return replace(prepared, rehearsal=tuple(rows), looked_at=True)


def written(
    decoder: Decoder, numbers: Sequence[int], tokenizer: Tokenizer, tokens: int, seed: int, screen: Screen
) -> list[list[int]]:
    """The texts of these numbers, as ids with the one that begins them and the one that ends them, if it comes."""
    begin = tokenizer.bos_id if tokenizer.begin and tokenizer.bos_id is not None else tokenizer.eos_id
    with screen.bar("writes texts to rehearse", len(numbers)) as advance:
        made = generate(
            decoder,
            [[begin]] * len(numbers),
            max_new_tokens=tokens - 1,
            stop_ids=frozenset({tokenizer.eos_id}),
            sampling=lambda row: Sampling(temperature=1.0, seed=_seed_of(seed, numbers[row])),
            batch_size=AT_ONCE,
            on_done=lambda row, generated: advance(),
        )
    return [[begin, *one.ids, *([tokenizer.eos_id] if one.finish == "stop" else [])] for one in made]


def _told(
    decoder: Decoder, numbers: Sequence[int], tokenizer: Tokenizer, tokens: int, seed: int, screen: Screen
) -> list[tuple[list[int], str]]:
    """The texts of these numbers, with what the model thought at each place."""
    texts = written(decoder, numbers, tokenizer, tokens, seed, screen)
    return [(ids, thought(decoder, ids, _seed_of(seed, at))) for at, ids in zip(numbers, texts, strict=True)]


def _seed_of(seed: int, number: int) -> int:
    return seed * 1_000_003 + number


def thought(decoder: Decoder, ids: Sequence[int], seed: int) -> str:
    """How likely the model holds ids at each place but the first, as text (`soft_of`): the likeliest, and some others.

    Those others are drawn from all the rest, and share what is left. Without them a model would learn that nothing but
    the likeliest may come, which general texts are worse for than for not being rehearsed at all.
    """
    with decoder.without_graph():
        scores_TV = decoder.logits(decoder(batch_of_ids(torch.tensor([list(ids)], device=decoder.device))))[:-1]
        shares_TV = scores_TV.float().softmax(-1)
        shares_TK, ids_TK = shares_TV.topk(min(LIKELIEST, shares_TV.shape[1]), -1)
        rest_TV = shares_TV.scatter(1, ids_TK, 0.0).cpu()
        left_T1 = rest_TV.sum(-1, keepdim=True)
        rest_TV += left_T1 == 0  # where nothing is left, whatever is drawn has no share
        drawn_TM = rest_TV.multinomial(OTHERS, replacement=True, generator=torch.Generator().manual_seed(seed))
        ids_TK = torch.cat([ids_TK.cpu(), drawn_TM], 1)
        shares_TK = torch.cat([shares_TK.cpu(), (left_T1 / OTHERS).expand(-1, OTHERS)], 1)
    both = ids_TK.numpy().astype("<i4"), shares_TK.numpy().astype("<f4")
    packed = base64.b64encode(zlib.compress(b"".join(one.tobytes() for one in both))).decode("ascii")
    return f"{ids_TK.shape[1]} {packed}"


def soft_of(said: str) -> SoftTargets:
    """What `thought` tells."""
    each, _, packed = said.partition(" ")
    both_2TK = np.frombuffer(zlib.decompress(base64.b64decode(packed)), "<i4").reshape(2, -1, int(each))
    return SoftTargets(both_2TK[0], both_2TK[1].view("<f4"))


def _tokens(prepared: Prepared) -> int:
    return min(TOKENS, prepared.max_length)


def _text(ids: Sequence[int], at: int, prepared: Prepared, soft: SoftTargets | None = None) -> Encoded:
    """A text all of which is trained on; its number is none that a row has."""
    return Encoded(tuple(ids), (False, *[True] * (len(ids) - 1)), row=_after(prepared) + at, soft=soft)


def _after(prepared: Prepared) -> int:
    """The first number that no row has."""
    rows = prepared.source.examples
    return max(len(rows), rows[-1].row + 1) if rows else 0
