"""Assertions in the files beside the tests show their values, as those of the tests do."""

import pytest

pytest.register_assert_rewrite(
    *(f"tests.settings.seen_in_{where}" for where in ("answers", "loggers", "pairs", "requests", "training"))
)
