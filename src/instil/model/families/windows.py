"""Layers of two kinds: most see a short window, and one in so many sees everything (Gemma 2 and 3, OLMo 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from instil.errors import ModelError
from instil.model.families.keys import Fields, Header, Row
from instil.model.spec import DecoderSpec

FULL, WINDOWED = "full_attention", "sliding_attention"


class Windows(Row):
    """The window of every layer, from a list of kinds or from a period, which llama.cpp knows by heart.

    Args:
        family: its name, for messages.
        period: one layer in so many sees everything, where nothing else is said.
        window: tokens, where none are said; None: they must be.
        period_key: the key of ``config.json`` for another period, if the family has one.
        also: keys of ``config.json`` that say what is said elsewhere, and are never read by transformers.
    """

    fields = ("windows",)
    optional = False

    def __init__(
        self, family: str, period: int, *, window: int | None, period_key: str | None = None, also: tuple[str, ...] = ()
    ) -> None:
        self._family, self._period, self._window, self._period_key = family, period, window, period_key
        keys = ("sliding_window", "layer_types", *also, *([period_key] if period_key else []))
        self.understood: Mapping[str, tuple[Any, ...]] = dict.fromkeys(keys, ())

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        period = (config.get(self._period_key) if self._period_key else None) or self._period
        kinds = config.get("layer_types") or _kinds(known["layers"], period)
        strange = sorted(set(kinds) - {FULL, WINDOWED})
        if strange:
            raise ModelError(
                f"config.json of a {self._family} model has layer_types {strange}, which is not implemented here"
            )
        if WINDOWED not in kinds:
            return {"windows": (None,) * len(kinds)}
        window = config["sliding_window"] if self._window is None else config.get("sliding_window", self._window)
        if window is None:
            raise ModelError(
                f"config.json of a {self._family} model has layers of the kind {WINDOWED!r}, but no sliding_window"
            )
        return {"windows": tuple(window if kind == WINDOWED else None for kind in kinds)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        windows = {window for window in spec.windows if window is not None}
        if len(windows) > 1:
            raise ModelError(
                f"config.json of a {self._family} model has room for one window, and this model has {sorted(windows)}"
            )
        return {
            "sliding_window": windows.pop() if windows else spec.context,
            "layer_types": [FULL if window is None else WINDOWED for window in spec.windows],
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        key = "attention.sliding_window"
        window = header[key] if self._window is None else header.get(key, self._window)
        pattern = header.get(f"{key}_pattern", self._period)
        if not isinstance(pattern, list):
            pattern = [kind == WINDOWED for kind in _kinds(known["layers"], pattern)]
        return {"windows": tuple(window if windowed else None for windowed in pattern)}


def _kinds(layers: int, period: int) -> list[str]:
    return [WINDOWED if (layer + 1) % period else FULL for layer in range(layers)]
