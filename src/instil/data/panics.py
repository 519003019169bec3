"""What `tokenizers` says by a panic of Rust, which is no Exception to Python, said as an error of ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from instil.errors import ModelError

PANIC = "PanicException"  # its class cannot be imported


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Where a file's own expressions and maps are used, which may be such that the library gives up.

    Raises:
        ModelError: it did.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != PANIC:
            raise
        raise ModelError(
            f"the model's tokenizer cannot be used ({str(error)[:200]}); fetch its files again, or take another model"
        ) from error
