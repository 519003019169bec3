"""A step's rows dealt among processes: each row once, and nobody far behind the others."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from instil.data.dealing import dealt
from instil.data.loader import Loader
from instil.records import Encoded

COSTS = st.lists(st.integers(1, 4096), max_size=40)


@given(COSTS, st.integers(1, 9))
def test_each_is_dealt_once_and_in_order(costs: list[int], hands: int) -> None:
    taken = dealt(costs, hands)
    assert len(taken) == hands
    assert sorted(place for places in taken for place in places) == list(range(len(costs)))
    assert all(places == sorted(places) for places in taken)


@given(COSTS, st.integers(1, 9))
def test_nobody_has_much_more_than_the_rest(costs: list[int], hands: int) -> None:
    """No more than the dearest above an even share (and by Graham at most a third above the best there is)."""
    loads = [sum(costs[place] for place in places) for places in dealt(costs, hands)]
    assert max(loads) <= sum(costs) / hands + max(costs, default=0)
    if len(costs) >= hands:
        assert min(loads) > 0


@given(
    st.lists(st.integers(3, 30), min_size=1, max_size=30),
    st.integers(1, 8),
    st.integers(1, 5),
    st.sampled_from([{}, {"micro_batch": 2}, {"batch_tokens": 40}, {"layout": "padded"}, {"drop_last": True}]),
)
def test_the_shares_of_a_step_are_the_step(lengths: list[int], batch: int, processes: int, how: dict[str, str]) -> None:
    rows = [Encoded(tuple(range(n)), (False, *[True] * (n - 1)), 1, number) for number, n in enumerate(lengths)]
    if "drop_last" in how and len(rows) < batch:
        return

    def examples(share: tuple[int, int]) -> list[list[int]]:
        loader = Loader(rows, batch, pad_id=0, seed=5, share=share, **how)  # type: ignore[arg-type]
        return [[row for one in step for row in one.examples] for step in loader.steps(3)]

    whole, shares = examples((0, 1)), [examples((own, processes)) for own in range(processes)]
    for number, step in enumerate(whole):
        assert sorted(row for share in shares for row in share[number]) == sorted(step)
