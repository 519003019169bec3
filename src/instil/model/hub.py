"""Moved to `instil.model.find`; this name stays for one release."""

from __future__ import annotations

from instil.model.find import find_model

__all__ = ["find_model"]
