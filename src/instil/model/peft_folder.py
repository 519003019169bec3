"""Moved to `instil.model.files.peft`; this name stays for one release."""

from __future__ import annotations

from instil.model.files.peft import load_adapter

__all__ = ["load_adapter"]
