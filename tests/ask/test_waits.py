"""How long servers ask to wait."""

from __future__ import annotations

import time

import pytest

from instil.ask.waits import asked_wait, duration

SAID = {
    "Rate limit reached. Please try again in 12s. Visit https://x": 12, "Please try again in 1m2s.": 62,
    "try again in 500ms": 0.5, "Please try again in 7.66s.": 7.66, "try again in 1h2m3s": 3723,
    "Please retry after 20 seconds.": 20, '"retryDelay": "34s"': 34, "Please retry in 34.07s.": 34.07,
    "Please wait 5 minutes and try again": 300, '{"retry_after": 3}': 3, '{"retry_after_ms": 1500}': 1.5,
    "TRY AGAIN IN 2 Minutes": 120, "Try again in 1 minute and 5 seconds": 65, "resets in 45s": 45,
    "try again later": 0, "slow down": 0, "you tried 12 s": 0, "": 0,
}  # fmt: skip
HEADERS: list[tuple[dict[str, str], float]] = [
    ({"Retry-After": "1.5"}, 1.5), ({"retry-after": "7"}, 7), ({"retry-after-ms": "250", "Retry-After": "9"}, 0.25),
    ({"Retry-After": "12s"}, 12), ({"Retry-After": "-5"}, 0), ({"Retry-After": "nan"}, 0), ({"Retry-After": "soon"}, 0),
    ({"Retry-After": ".5"}, 0.5),
    ({"x-ratelimit-reset-tokens": "6m0s", "x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-requests": "1s",
      "x-ratelimit-remaining-requests": "9"}, 360),
    ({"x-ratelimit-reset-requests": "24h", "x-ratelimit-remaining-requests": "9", "x-ratelimit-reset-tokens": "2s"}, 2),
    ({"x-ratelimit-reset-requests": "24h"}, 0), ({"X-RateLimit-Reset-Requests": "500ms"}, 0.5),
    ({"RateLimit-Reset": "30"}, 30),
]  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_in_words(said: str) -> None:
    assert asked_wait({}, said) == pytest.approx(SAID[said])


@pytest.mark.parametrize(("head", "seconds"), HEADERS)
def test_in_headers(head: dict[str, str], seconds: float) -> None:
    assert asked_wait(head) == pytest.approx(seconds)


def test_moments() -> None:
    now = time.time()
    assert asked_wait({"x-ratelimit-reset": str(int((now + 30) * 1000))}) == pytest.approx(30, abs=2)
    assert asked_wait({"x-ratelimit-reset": str(int(now + 30))}) == pytest.approx(30, abs=2)
    assert asked_wait({"Retry-After": "9" * 300}) > 1e9
    assert duration("x" * 1000) is None
    assert asked_wait({}, "try again in " * 10_000 + "5 " * 10_000) == 5
