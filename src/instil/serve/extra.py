"""What serving needs beyond the core, said in one sentence where it is not there."""

from __future__ import annotations

from importlib.util import find_spec

from instil.errors import UserError

PACKAGES = ("fastapi", "uvicorn", "h11", "prometheus_client")
INSTALL = "pip install 'instil[serve]'"


def need_extra() -> None:
    """Call this before anything else of this room is imported.

    Raises:
        UserError: a package is missing; the message says how to get it.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"serving needs {', '.join(missing)}: {INSTALL}")
