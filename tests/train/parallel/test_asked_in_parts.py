"""A model that lies in parts is asked: the same ids and likelihoods as by one process, whoever has how much to ask."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from instil.evaluate.likelihood import likelihoods
from instil.generate.prompts import generate
from instil.generate.reading import Reading
from instil.generate.sampling import Sampling
from instil.model.decoder import Decoder
from instil.model.elsewhere import load_elsewhere
from instil.model.load import load_decoder
from instil.runs.kept import weights_hash
from instil.train.parallel.processes import Processes
from instil.train.ranks import ALONE, Ranks
from tests.conftest import tiny_reference
from tests.train.parallel.pool import Pool
from tests.train.test_state import some_rows

STOP = frozenset(range(0, 97, 8))
PROMPTS = [[5, 6, 7, 8, 9 + number, *range(20, 20 + 3 * number)] for number in range(7)]  # which begin alike
LIMIT = 12
FAMILIES = ("llama", "gpt2", "gemma3", "lfm2")  # one with windows, one that convolves


@pytest.fixture(scope="module")
def pools() -> Iterator[dict[int, Pool]]:
    made = {world: Pool(world) for world in (2, 3)}
    yield made
    for pool in made.values():
        pool.close()


Asked = tuple[dict[int, tuple[tuple[int, ...], str]], dict[int, float], list[float]]


def ask(decoder: Decoder, ranks: Ranks, dealt: Sequence[Sequence[int]], temperature: float) -> Asked:
    """Answers to this process's prompts, likelihoods of its rows, and what is thought of a text (by the first only)."""
    own = dealt[ranks.rank]
    with ranks.in_step(decoder):
        answers = generate(
            decoder,
            [PROMPTS[at] for at in own],
            max_new_tokens=LIMIT,
            stop_ids=STOP,
            sampling=lambda row: Sampling(temperature=temperature, seed=own[row]),
            batch_size=2,
        ) if own else []  # fmt: skip
    rows = [some_rows(7)[at] for at in own]
    with ranks.in_step(decoder):
        found = likelihoods(decoder, rows, 64)
    read: list[float] = []
    with ranks.in_step(decoder):
        if ranks.rank == 0:
            reading = Reading(decoder, [*range(20, 60)], top=1)
            while not reading.step():
                pass
            read = [one.logprob for one in reading.found]
    said = {at: (one.ids, one.finish) for at, one in zip(own, answers, strict=True)}
    return said, {at: one.metrics["loss"] for at, one in zip(own, found, strict=True)}, read


def in_parts(
    ranks: Ranks, model: Path, dealt: Sequence[Sequence[int]], temperature: float, dtype: torch.dtype, narrow: bool
) -> tuple[Asked, bool]:
    """What `ask` finds, twice over; and whether nothing but parts is held afterwards."""
    ranks = Processes(ranks.rank, ranks.world, sharded=True)
    with ranks.sharding(load_elsewhere(model, dtype=dtype), narrow=narrow) as decoder:
        first = ask(decoder, ranks, dealt, temperature)
        assert ask(decoder, ranks, dealt, temperature) == first
        return first, all(hasattr(one, "to_local") for one in decoder.parameters())


def made(family: str, folder: Path) -> Path:
    tiny_reference(family, tied=family != "llama").save_pretrained(folder)  # tied ones say one thing again and again
    return folder


def together(found: Sequence[Asked]) -> Asked:
    answers: dict[int, tuple[tuple[int, ...], str]] = {}
    losses: dict[int, float] = {}
    for said, likely, _ in found:
        answers |= said
        losses |= likely
    return answers, losses, found[0][2]


DEALT = {
    "evenly": {2: ([0, 2, 4, 6], [1, 3, 5]), 3: ([0, 3, 6], [1, 4], [2, 5])},
    "all to the first": {2: ([*range(7)], []), 3: ([*range(7)], [], [])},
    "all to the last": {2: ([], [*range(7)]), 3: ([], [], [*range(7)])},
}


@pytest.mark.parametrize(
    ("family", "world", "how", "temperature"),
    [
        *((family, 2, "evenly", 0.0) for family in FAMILIES),
        ("llama", 3, "evenly", 0.0),
        ("llama", 3, "all to the first", 0.0),
        ("llama", 2, "all to the last", 0.8),
    ],
)
def test_they_say_what_one_says(
    family: str, world: int, how: str, temperature: float, pools: dict[int, Pool], tmp_path: Path
) -> None:
    model = made(family, tmp_path)
    alone = load_decoder(model, dtype=torch.float64).eval()
    answers, losses, read = ask(alone, ALONE, [[*range(7)]], temperature)
    told = pools[world].call(in_parts, model, DEALT[how][world], temperature, torch.float64, False)
    assert all(parts for _, parts in told)
    found = together([one for one, _ in told])
    assert found[0] == answers
    assert len({len(ids) for ids, _ in answers.values()}) > 1 or family != "llama"  # some end before others
    assert found[1] == pytest.approx(losses, rel=1e-12)
    assert found[2] == pytest.approx(read, rel=1e-12)


def test_weights_gathered_in_bfloat16_answer(pools: dict[int, Pool], tmp_path: Path) -> None:
    """As samples do while training with it: near to what float32 says, and not it."""
    model = made("llama", tmp_path)
    _, losses, _ = ask(load_decoder(model).eval(), ALONE, [[*range(7)]], 0.0)
    told = pools[2].call(in_parts, model, DEALT["evenly"][2], 0.0, torch.float32, True)
    answers, found, _ = together([one for one, _ in told])
    assert sorted(answers) == list(range(7))
    assert found == pytest.approx(losses, rel=0.05)
    assert found != pytest.approx(losses, rel=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_the_hash_of_weights_is_the_same_wherever_they_are(tied: bool, tmp_path: Path) -> None:
    """By which what was answered is found again."""
    tiny_reference("gpt2", tied=tied).save_pretrained(tmp_path)
    assert weights_hash(load_elsewhere(tmp_path)) == weights_hash(load_decoder(tmp_path))
