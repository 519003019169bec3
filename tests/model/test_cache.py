"""The cache by hand: which rows stay, and how long they are."""

from __future__ import annotations

import torch

from instil.generate.engine import generate
from instil.model.cache import Cache
from tests.generate.test_engine import naive
from tests.train.test_training import SPECS, decoder


def test_keep_takes_keys_values_and_lengths_of_the_same_rows() -> None:
    cache = Cache(SPECS["llama"], rows=3, length=4, dtype=torch.float32, device=torch.device("cpu"))
    row_of_each = torch.arange(3.0)[:, None, None, None]
    cache.keys = [keys + row_of_each for keys in cache.keys]
    cache.values = [values + 10 * row_of_each for values in cache.values]
    cache.advance(torch.tensor([2, 4, 3]))
    cache.keep(torch.tensor([1, 2]))
    assert cache.rows == 2
    assert cache.lengths_B.tolist() == [4, 3]
    for keys, values in zip(cache.keys, cache.values, strict=True):
        assert keys[:, 0, 0, 0].tolist() == [1, 2]
        assert values[:, 0, 0, 0].tolist() == [10, 20]
        assert keys.shape == values.shape == (2, 2, 4, 6)


def test_a_short_row_that_stops_first_leaves_the_others_as_they_are() -> None:
    """Fixed, because the random cases may not stop one row of several: here the one in front goes at once."""
    model = decoder(seed=2)
    prompts = [[7], [1, 2, 3, 4, 5], [6, 7, 8]]
    free = [naive(model, prompt, 6, frozenset())[0] for prompt in prompts]
    stop = free[0][0]
    assert stop not in free[1] + free[2]
    found = generate(model, prompts, max_new_tokens=6, stop_ids=frozenset({stop}))
    assert [list(one.ids) for one in found] == [[], free[1], free[2]]
    assert [one.finish for one in found] == ["stop", "length", "length"]
