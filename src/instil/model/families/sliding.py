"""Windows in the words of transformers: one for all layers, or one for those layers that a list names."""

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
        windows = {window for window in spec.windows if window is not None}
        if len(windows) > 1:
            raise ModelError(
                f"config.json of a {self._family} model has room for one window, and this model has {sorted(windows)}"
            )
        kinds = [FULL if spec.window_of(layer) is None else WINDOWED for layer in range(spec.layers)]
        first = kinds.index(WINDOWED) if windows else spec.layers
        return {
            "use_sliding_window": bool(windows),
            "sliding_window": windows.pop() if windows else None,
            "max_window_layers": first,
            "layer_types": kinds,
        }

    def from_gguf(self, header: Header, known: Fields) -> dict[str, Any]:
        return {"windows": ()}


def last_windowed(default: int) -> Callable[[Mapping[str, Any], Fields], list[str]]:
    """Layers from ``max_window_layers`` on have windows (Qwen2, Qwen3)."""

    def kinds(config: Mapping[str, Any], known: Fields) -> list[str]:
        first = config.get("max_window_layers", default)
        return [WINDOWED if layer >= first else FULL for layer in range(known["layers"])]

    return kinds
