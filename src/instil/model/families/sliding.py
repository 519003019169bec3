"""Windows in the words of transformers: one for all layers, or one for those layers that a list or a period names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from instil.errors import ModelError
from instil.model.families.keys import Default, Fields, Header, Row, look_up
from instil.model.spec import DecoderSpec

FULL, WINDOWED = "full_attention", "sliding_attention"


class OneWindow(Row):
    """``sliding_window``, which all layers see, or none does.

    Args:
        family: its name, for messages.
        default: where the key is missing.
        gguf: the key of GGUF; llama.cpp has none for some families, and lets all their layers see everything.
        some: whether ``layer_types``, if it is there, says which layers see it.
    """

    fields = ("windows",)

    def __init__(self, family: str, default: int | None = None, gguf: str | None = None, *, some: bool = False) -> None:
        self._family, self._default, self._gguf, self._some = family, default, gguf, some
        self.understood: Mapping[str, tuple[Any, ...]] = dict.fromkeys(
            ("sliding_window", "layer_types") if some else ("sliding_window",), ()
        )

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        window = look_up(Default("sliding_window", self._default), config, known)
        kinds = (config.get("layer_types") if self._some else None) or [WINDOWED] * known["layers"]
        if strange := sorted(set(kinds) - {FULL, WINDOWED}):
            raise ModelError(
                f"config.json of a {self._family} model has layers of the kinds {strange} in layer_types, which is not "
                "implemented here"
            )
        if window is None or WINDOWED not in kinds:
            return {"windows": ()}
        return {"windows": tuple(window if kind == WINDOWED else None for kind in kinds)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        windows = set(spec.windows) - {None}
        if len(windows) > 1 or (None in spec.windows and not self._some):
            raise ModelError(
                f"config.json of a {self._family} model has room for one window, and this model has {spec.windows}"
            )
        found: dict[str, Any] = {"sliding_window": windows.pop() if windows else None}
        if None in spec.windows:
            found["layer_types"] = [FULL if window is None else WINDOWED for window in spec.windows]
        return found

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        window = header.get(self._gguf) if self._gguf else None
        return {"windows": (window,) * known["layers"] if window else ()}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        window = spec.window_of(0)
        return ({} if window is None or self._gguf is None else {self._gguf: window}) | within_windows(spec)


class SomeWindows(Row):
    """``sliding_window`` in the layers that ``layer_types`` names, where ``use_sliding_window`` is on.

    llama.cpp knows of no such windows.

    Args:
        family: its name, for messages.
        kinds: what ``layer_types`` is if it is missing and windows are on.
        ignored: keys that are beside these and say nothing.
    """

    fields = ("windows",)

    def __init__(
        self, family: str, kinds: Callable[[Mapping[str, Any], Fields], list[str]], ignored: tuple[str, ...] = ()
    ) -> None:
        self._family, self._kinds = family, kinds
        words = ("layer_types", "sliding_window", "use_sliding_window", "max_window_layers", *ignored)
        self.understood: Mapping[str, tuple[Any, ...]] = dict.fromkeys(words, ())

    def from_config(self, config: Mapping[str, Any], known: Fields) -> dict[str, Any]:
        window = config.get("sliding_window") if config.get("use_sliding_window") else None
        kinds = config.get("layer_types") or ([FULL] if window is None else self._kinds(config, known))
        strange = sorted(set(kinds) - ({FULL} if window is None else {FULL, WINDOWED}))
        if strange:
            without = " without a sliding_window in use" if WINDOWED in strange else ""
            raise ModelError(
                f"config.json of a {self._family} model has layers of the kinds {strange} in layer_types{without}, "
                "which is not implemented here"
            )
        if WINDOWED not in kinds:
            return {"windows": ()}
        return {"windows": tuple(window if kind == WINDOWED else None for kind in kinds)}

    def to_config(self, spec: DecoderSpec) -> dict[str, Any]:
        window, kinds = _window_and_kinds(self._family, spec)
        return {
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "max_window_layers": spec.layers if window is None else kinds.index(WINDOWED),
            "layer_types": kinds,
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"windows": ()}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        return within_windows(spec)


def within_windows(spec: DecoderSpec) -> dict[str, Any]:
    """The context within which no window hides anything, as the context that GGUF says.

    llama.cpp lets all layers see everything in the families with these rows; so far its answers are the model's.
    """
    windows = [window for window in spec.windows if window is not None]
    return {"context_length": min(windows)} if windows and min(windows) < spec.context else {}


class PeriodicWindows(Row):
    """``sliding_window`` in all layers but one in so many, from a list of kinds or from a period (Gemma 2, OLMo 3).

    Args:
        family: its name, for messages.
        period: one layer in so many sees everything, where nothing else is said; llama.cpp knows it by heart.
        window: where the key is missing; None: it must be there.
        period_key: the key of ``config.json`` for another period, if the family has one.
    """

    fields = ("windows",)
    optional = False

    def __init__(self, family: str, period: int, *, window: int | None = None, period_key: str | None = None) -> None:
        self._family, self._period, self._window, self._period_key = family, period, window, period_key
        keys = ("sliding_window", "layer_types", *([period_key] if period_key else []))
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
        window, kinds = _window_and_kinds(self._family, spec)
        return {"sliding_window": spec.context if window is None else window, "layer_types": kinds}

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        key = "attention.sliding_window"
        window = header[key] if self._window is None else header.get(key, self._window)
        pattern = header.get(f"{key}_pattern", self._period)
        if not isinstance(pattern, list):
            pattern = [kind == WINDOWED for kind in _kinds(known["layers"], pattern)]
        return {"windows": tuple(window if windowed else None for windowed in pattern)}

    def to_gguf(self, spec: DecoderSpec) -> dict[str, Any]:
        windows = {window for window in spec.windows if window is not None}
        if len(windows) > 1:
            raise ModelError(
                f"GGUF has room for one window, and this {self._family} model has {sorted(windows)}. Use --to hf"
            )
        pattern = [spec.window_of(layer) is not None for layer in range(spec.layers)]
        window = windows.pop() if windows else spec.context
        return {"attention.sliding_window": window, "attention.sliding_window_pattern": pattern}


def _kinds(layers: int, period: int) -> list[str]:
    return [WINDOWED if (layer + 1) % period else FULL for layer in range(layers)]


def _window_and_kinds(family: str, spec: DecoderSpec) -> tuple[int | None, list[str]]:
    """The one window that there is, and the kind of every layer."""
    windows = {window for window in spec.windows if window is not None}
    if len(windows) > 1:
        raise ModelError(
            f"config.json of a {family} model has room for one window, and this model has {sorted(windows)}"
        )
    kinds = [FULL if spec.window_of(layer) is None else WINDOWED for layer in range(spec.layers)]
    return (windows.pop() if windows else None), kinds


def last_windowed(default: int) -> Callable[[Mapping[str, Any], Fields], list[str]]:
    """Layers from ``max_window_layers`` on have windows (Qwen2, Qwen3)."""

    def kinds(config: Mapping[str, Any], known: Fields) -> list[str]:
        first = config.get("max_window_layers", default)
        return [WINDOWED if layer >= first else FULL for layer in range(known["layers"])]

    return kinds
