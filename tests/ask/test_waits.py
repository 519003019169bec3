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
    "Please try again later, in 20 seconds": 20, "try again in about 20 seconds": 20, "next one allowed in 9s": 9,
    '{"error": "Model x is currently loading", "estimated_time": 20.5}': 20.5,
    "expected to be ready in 20.5 seconds": 20.5,
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
    ({"RateLimit-Reset": "30"}, 30), ({"x-ms-retry-after-ms": "1500"}, 1.5), ({"X-RateLimit-Reset-After": "7"}, 7),
    ({"Retry-After": "+5"}, 5), ({"Retry-After": "2015-10-21T07:28:00Z"}, 0), ({"Retry-After": "1445412480"}, 0),
    ({"Retry-After": "1445412480000"}, 0), ({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
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


def test_a_moment_in_any_form_is_told_from_a_span() -> None:
    then = time.time() + 50
    for given in (str(int(then)), str(int(then * 1000)), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(then))):
        assert 30 < asked_wait({"Retry-After": given}) < 60
        assert 30 < asked_wait({"anthropic-ratelimit-requests-reset": given}) < 60
