"""What is asked, and when, is the same on a slow machine."""

from __future__ import annotations

import time

import pytest

from instil.ask.patience import ask_all


@pytest.mark.parametrize("workers", [1, 3])
def test_no_more_is_under_way_than_there_are_workers(workers: int) -> None:
    begun: list[int] = []

    def ask(task: int) -> int:
        begun.append(task)
        return task

    for seen, outcome in enumerate(ask_all(range(12), ask, workers, tries=1)):
        time.sleep(0.02)  # time for a worker that does not wait to go ahead
        assert len(begun) <= seen + workers
        assert outcome.result == outcome.task
    assert sorted(begun) == list(range(12))


def test_nothing_is_begun_after_the_outcome_that_ends_the_work() -> None:
    begun: list[int] = []

    def ask(task: int) -> int:
        begun.append(task)
        raise ValueError(task)

    for outcome in ask_all(range(9), ask, 1, tries=1):
        time.sleep(0.05)
        assert isinstance(outcome.error, ValueError)
        break
    time.sleep(0.05)
    assert begun == [0]


def test_no_task_no_outcome() -> None:
    assert list(ask_all([], lambda task: task, 4, tries=1)) == []
